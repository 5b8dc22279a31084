"""IDX files are read as they are, or refused in one line that says what is wrong with which."""

import gzip
import math
import struct
from pathlib import Path

import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from inkdrop.data.stored.idx import (
    IdxFiles,
    find_idx,
    find_idx_set,
    holds_idx,
    read_idx_images,
    read_idx_labels,
)
from inkdrop.errors import InkdropError

IMAGES, LABELS = 0x803, 0x801


def idx(magic: int, *sizes: int, payload: bytes | None = None) -> bytes:
    if payload is None:
        payload = bytes(i % 10 for i in range(math.prod(sizes)))
    return struct.pack(f">{1 + len(sizes)}I", magic, *sizes) + payload


THREE_IMAGES = idx(IMAGES, 3, 4, 5)
THREE_LABELS = idx(LABELS, 3)


def write_set(folder: Path, **changes: bytes | None) -> Path:
    """A small MNIST of 3 and 2 images in `folder`; a change to None leaves a file out."""
    files = {
        "train_images": ("train-images-idx3-ubyte", THREE_IMAGES),
        "train_labels": ("train-labels-idx1-ubyte", THREE_LABELS),
        "test_images": ("t10k-images-idx3-ubyte", idx(IMAGES, 2, 4, 5)),
        "test_labels": ("t10k-labels-idx1-ubyte", idx(LABELS, 2)),
    }
    folder.mkdir(exist_ok=True)
    for role, (name, content) in files.items():
        content = changes.get(role, content)
        if content is not None:
            (folder / name).write_bytes(content)
    return folder


def refusal(function, *arguments) -> str:
    """The message with which the arguments are refused; it is one line."""
    with pytest.raises(InkdropError) as error:
        function(*arguments)
    assert "\n" not in str(error.value)
    return str(error.value)


def image_refusal(folder: Path, content: bytes) -> str:
    path = folder / "train-images-idx3-ubyte"
    path.write_bytes(content)
    message = refusal(read_idx_images, path)
    assert str(path) in message
    return message


# Reading


@pytest.mark.parametrize("pack", [bytes, gzip.compress], ids=["plain", "gzip"])
@pytest.mark.parametrize("name", ["images", "images.gz"])
def test_images_are_read_whatever_the_name_says_of_gzip(tmp_path, pack, name):
    (tmp_path / name).write_bytes(pack(idx(IMAGES, 2, 2, 3, payload=bytes(range(12)))))
    images = read_idx_images(tmp_path / name)
    assert images.dtype == np.uint8
    assert np.array_equal(images, np.arange(12).reshape(2, 2, 3))


@pytest.mark.parametrize("pack", [bytes, gzip.compress], ids=["plain", "gzip"])
def test_labels_are_read(tmp_path, pack):
    (tmp_path / "labels").write_bytes(pack(idx(LABELS, 3, payload=bytes([7, 0, 255]))))
    labels = read_idx_labels(tmp_path / "labels")
    assert labels.dtype == np.int64
    assert labels.tolist() == [7, 0, 255]


def test_a_gzip_file_of_several_members_is_read_to_its_end(tmp_path):
    path = tmp_path / "images"
    path.write_bytes(gzip.compress(THREE_IMAGES[:30]) + gzip.compress(THREE_IMAGES[30:]))
    assert len(read_idx_images(path)) == 3


# What a file can be instead


def test_a_missing_file(tmp_path):
    message = refusal(read_idx_images, tmp_path / "nowhere")
    assert message == f"no such file: {tmp_path / 'nowhere'}"


def test_a_folder_in_place_of_a_file(tmp_path):
    assert "is a folder" in refusal(read_idx_labels, tmp_path)


@pytest.mark.parametrize("length", [0, 3, 4, 15])
def test_a_file_too_short_for_its_header(tmp_path, length):
    message = image_refusal(tmp_path, THREE_IMAGES[:length])
    assert f"takes 16 bytes, found {length}" in message


@pytest.mark.parametrize(
    ("content", "look"),
    [
        (b"\x89PNG\r\n\x1a\n" + bytes(20), "0x89504e47 instead of 0x00000803; it looks like a PNG"),
        (b"\xff\xd8\xff\xe0" + bytes(20), "a JPEG image"),
        (b"<!DOCTYPE html><html></html>", "a web page"),
        (b"\n  <html><body>404</body></html>", "a web page"),
        (gzip.compress(gzip.compress(THREE_IMAGES, mtime=0), mtime=0), "gzip inside gzip"),
        (b"PK\x03\x04" + bytes(20), "a ZIP archive"),
        (b"PAR1" + bytes(20), "a Parquet file"),
        (b"version https://git-lfs.github.com/spec/v1\n", "a Git LFS pointer"),
        (idx(0xD03, 3, 4, 5), "an IDX file of float32 with 3 dimensions"),
        (idx(0x804, 3, 4, 5, 1), "an IDX file of uint8 with 4 dimensions"),
    ],
)
def test_a_wrong_magic_number_is_shown_with_what_the_file_looks_like(tmp_path, content, look):
    message = image_refusal(tmp_path, content)
    assert "not IDX images" in message
    assert look in message


def test_a_wrong_magic_number_of_nothing_known(tmp_path):
    message = image_refusal(tmp_path, bytes.fromhex("deadbeef") + bytes(20))
    assert message.endswith("starts with 0xdeadbeef instead of 0x00000803")


@pytest.mark.parametrize("pack", [bytes, gzip.compress], ids=["plain", "gzip"])
def test_images_and_labels_mislabelled_as_each_other(tmp_path, pack):
    message = image_refusal(tmp_path, pack(THREE_LABELS))
    assert "mislabelled: it holds labels (magic number 0x00000801) where images" in message
    (tmp_path / "labels").write_bytes(pack(THREE_IMAGES))
    message = refusal(read_idx_labels, tmp_path / "labels")
    assert "mislabelled: it holds images (magic number 0x00000803) where labels" in message


# Damage


def test_a_truncated_file(tmp_path):
    message = image_refusal(tmp_path, THREE_IMAGES[:-13])
    assert "truncated" in message
    assert "3 images of 4x5, 60 bytes, but 47 bytes follow" in message


def test_a_truncated_file_packed_after_the_damage(tmp_path):
    message = image_refusal(tmp_path, gzip.compress(THREE_IMAGES[:-13]))
    assert "3 images of 4x5, 60 bytes, but 47 bytes follow" in message


def test_a_truncated_gzip_stream(tmp_path):
    noise = np.random.default_rng(0).bytes(3000)
    packed = gzip.compress(idx(IMAGES, 30, 10, 10, payload=noise))
    message = image_refusal(tmp_path, packed[:2000])
    assert "truncated: the gzip stream breaks off after " in message
    found = int(message.split("breaks off after ")[1].split()[0])
    assert 1500 < found < 2000
    assert "of the 3000 bytes of 30 images of 10x10" in message


def test_a_gzip_stream_without_its_checksum(tmp_path):
    message = image_refusal(tmp_path, gzip.compress(THREE_IMAGES)[:-8])
    assert "breaks off after 60 of the 60 bytes" in message


def test_a_gzip_stream_that_ends_within_the_header(tmp_path):
    assert "within the header" in image_refusal(tmp_path, gzip.compress(THREE_IMAGES)[:12])


def test_a_corrupted_gzip_checksum(tmp_path):
    packed = bytearray(gzip.compress(THREE_IMAGES))
    packed[-5] ^= 1
    assert "corrupt (CRC check failed" in image_refusal(tmp_path, bytes(packed))


def test_garbage_after_a_gzip_stream(tmp_path):
    assert "corrupt" in image_refusal(tmp_path, gzip.compress(THREE_IMAGES) + b"garbage")


@pytest.mark.parametrize("pack", [bytes, gzip.compress], ids=["plain", "gzip"])
def test_trailing_bytes(tmp_path, pack):
    message = image_refusal(tmp_path, pack(THREE_IMAGES + b"\0"))
    assert "too long: its header promises 3 images of 4x5, 60 bytes, but more follow" in message


@pytest.mark.parametrize("sizes", [(0, 28, 28), (3, 0, 28), (3, 28, 0)])
def test_no_images(tmp_path, sizes):
    count, height, width = sizes
    message = image_refusal(tmp_path, idx(IMAGES, *sizes))
    assert f"empty: its header promises {count} images of {height}x{width}" in message


def test_no_labels(tmp_path):
    (tmp_path / "labels").write_bytes(idx(LABELS, 0))
    assert "empty: its header promises 0 labels" in refusal(read_idx_labels, tmp_path / "labels")


@pytest.mark.parametrize("pack", [bytes, gzip.compress], ids=["plain", "gzip"])
@pytest.mark.parametrize("count", [2**32 - 1, 2**20])
def test_an_absurd_size_is_refused_without_taking_its_memory(tmp_path, monkeypatch, pack, count):
    # The one place where payload gathers must not even be reached.
    monkeypatch.setattr("inkdrop.data.stored.idx.bytearray", None, raising=False)
    message = image_refusal(tmp_path, pack(idx(IMAGES, count, 28, 28, payload=bytes(100))))
    assert f"promises {count} images of 28x28, {count * 784} bytes" in message


def test_a_gzip_bomb_is_not_unpacked_beyond_what_its_header_promises(tmp_path, monkeypatch):
    unpacked = 0
    read1 = gzip.GzipFile.read1

    def counting_read1(self, size=-1):
        nonlocal unpacked
        chunk = read1(self, size)
        unpacked += len(chunk)
        return chunk

    monkeypatch.setattr(gzip.GzipFile, "read1", counting_read1)
    bomb = gzip.compress(idx(IMAGES, 3, 4, 5, payload=bytes(50_000_000)))
    assert "too long" in image_refusal(tmp_path, bomb)
    assert unpacked == 61


# Whatever happens to the bytes


def assert_read_or_refused(read, path: Path) -> None:
    try:
        result = read(path)
    except InkdropError as error:
        message = str(error)
    else:
        message = None
    if message is None:
        assert result.size > 0
        assert (result.ndim, result.dtype) == (
            (3, np.uint8) if read is read_idx_images else (1, np.int64)
        )
    else:
        assert str(path) in message
        assert "\n" not in message


@pytest.mark.parametrize("pack", [bytes, gzip.compress], ids=["plain", "gzip"])
@given(data=st.data())
def test_a_damaged_file_is_read_or_refused_but_nothing_else(tmp_path_factory, pack, data):
    content = bytearray(pack(THREE_IMAGES))
    length = data.draw(st.integers(0, len(content)), label="length")
    flips = st.lists(st.tuples(st.integers(0, len(content) - 1), st.integers(1, 255)), max_size=3)
    for position, mask in data.draw(flips, label="flips"):
        content[position] ^= mask
    path = tmp_path_factory.getbasetemp() / f"damaged-{pack.__name__}"
    path.write_bytes(content[:length])
    for read in (read_idx_images, read_idx_labels):
        assert_read_or_refused(read, path)


@given(st.binary(max_size=40))
@example(b"\0\0\x08\x03")
@example(b"\x1f\x8b")
def test_any_bytes_are_read_or_refused(tmp_path_factory, content):
    path = tmp_path_factory.getbasetemp() / "anything"
    path.write_bytes(content)
    for read in (read_idx_images, read_idx_labels):
        assert_read_or_refused(read, path)


# Finding


def test_a_folder_is_found_and_loaded(tmp_path):
    assert holds_idx(write_set(tmp_path / "small"))
    found = find_idx_set([tmp_path / "small"])
    assert (len(found.train), len(found.test)) == (3, 2)
    assert found.train.labels.tolist() == [0, 1, 2]
    assert found.train.labels.dtype == np.int64
    assert (found.train.name, found.test.name) == ("small train", "small test")
    assert found.train.kind == "IDX files"
    (first, last) = (*found.train.read(0, 1), *found.test.read(1, 2))
    assert first.content.tolist() == (np.arange(20) % 10).reshape(4, 5).tolist()
    assert last.place == "small test, image 1"


def test_a_set_is_called_what_it_is_told(tmp_path):
    assert find_idx_set([write_set(tmp_path)], "digits").train.name == "digits train"


def test_the_identity_changes_with_the_files_and_differs_between_the_parts(tmp_path):
    write_set(tmp_path)
    before = find_idx_set([tmp_path])
    assert before.train.identity() == find_idx_set([tmp_path]).train.identity()
    assert before.train.identity() != before.test.identity()
    write_set(tmp_path, train_labels=gzip.compress(THREE_LABELS))
    after = find_idx_set([tmp_path])
    assert after.train.identity() != before.train.identity()
    assert after.train.labels.tolist() == before.train.labels.tolist()


def test_other_files_and_folders_in_the_folder_do_not_matter(tmp_path):
    write_set(tmp_path)
    (tmp_path / "README.md").write_text("hello")
    (tmp_path / "train-images.idx3-ubyte").mkdir()
    assert len(find_idx_set([tmp_path], "small").train) == 3


def test_both_forms_of_the_names_mix_with_and_without_gz(tmp_path):
    write_set(tmp_path)
    (tmp_path / "train-images-idx3-ubyte").rename(tmp_path / "train-images.idx3-ubyte")
    (tmp_path / "t10k-labels-idx1-ubyte").rename(tmp_path / "t10k-labels.idx1-ubyte.gz")
    assert find_idx([tmp_path]) == IdxFiles(
        tmp_path / "train-images.idx3-ubyte",
        tmp_path / "train-labels-idx1-ubyte",
        tmp_path / "t10k-images-idx3-ubyte",
        tmp_path / "t10k-labels.idx1-ubyte.gz",
    )


def test_files_are_told_apart_by_name_in_any_order(tmp_path):
    files = sorted(write_set(tmp_path).iterdir())
    assert find_idx(files) == find_idx(files[::-1]) == find_idx([tmp_path])


def test_the_unpacked_one_is_taken_where_a_folder_has_both(tmp_path):
    write_set(tmp_path)
    (tmp_path / "train-images-idx3-ubyte.gz").write_bytes(gzip.compress(THREE_IMAGES))
    assert find_idx([tmp_path]).train_images == tmp_path / "train-images-idx3-ubyte"


def test_the_test_set_is_optional(tmp_path):
    assert find_idx_set([write_set(tmp_path, test_images=None, test_labels=None)], "s").test is None


def test_labels_are_optional_all_together(tmp_path):
    source = find_idx_set([write_set(tmp_path, train_labels=None, test_labels=None)], "small")
    assert source.train.labels is None
    assert source.test.labels is None


@pytest.mark.parametrize(("missing", "left"), [("train", "test"), ("test", "training")])
def test_labels_of_one_part_only(tmp_path, missing, left):
    write_set(tmp_path, **{f"{missing}_labels": None})
    assert f"only the {left} images have labels" in refusal(find_idx, [tmp_path])


def test_labels_without_images(tmp_path):
    write_set(tmp_path / "no-train", train_images=None)
    assert "no training images in" in refusal(find_idx, [tmp_path / "no-train"])
    write_set(tmp_path / "no-test", test_images=None)
    assert "t10k-labels-idx1-ubyte are labels without their images" in refusal(
        find_idx, [tmp_path / "no-test"]
    )


def test_an_empty_folder_is_told_the_names_expected(tmp_path):
    message = refusal(find_idx, [tmp_path])
    assert f"no IDX files in the folder {tmp_path}" in message
    for name in ("train-images-idx3-ubyte", "t10k-labels-idx1-ubyte", ".gz"):
        assert name in message


def test_a_path_that_does_not_exist(tmp_path):
    assert refusal(find_idx, [tmp_path / "no"]) == f"no such file or folder: {tmp_path / 'no'}"


def test_a_file_of_another_name(tmp_path):
    (tmp_path / "pictures").write_bytes(THREE_IMAGES)
    message = refusal(find_idx, [tmp_path / "pictures"])
    assert f"{tmp_path / 'pictures'}: not a name of an IDX file: expected train-images" in message
    assert message.endswith("one of another name must be given alone")


def test_a_file_given_twice(tmp_path):
    file = write_set(tmp_path) / "train-images-idx3-ubyte"
    assert f"given twice, as {file} and {file}" in refusal(find_idx, [file, file])
    packed = tmp_path / "train-images.idx3-ubyte.gz"
    packed.write_bytes(gzip.compress(THREE_IMAGES))
    assert "the train images are given twice" in refusal(find_idx, [tmp_path])


def test_no_paths_at_all():
    assert "no training images" in refusal(find_idx, [])


def test_images_and_labels_of_different_counts(tmp_path):
    write_set(tmp_path, train_labels=idx(LABELS, 4))
    message = refusal(find_idx_set, [tmp_path])
    assert "train-images-idx3-ubyte holds 3 images but " in message
    assert "train-labels-idx1-ubyte 4 labels" in message


def test_training_and_test_images_of_different_sizes(tmp_path):
    write_set(tmp_path, test_images=idx(IMAGES, 2, 5, 5))
    assert "must be the same" in refusal(find_idx_set, [tmp_path])


# A single file


@pytest.mark.parametrize("pack", [bytes, gzip.compress], ids=["plain", "gzip"])
def test_a_single_file_of_any_name_is_a_set_without_labels(tmp_path, pack):
    path = tmp_path / "pictures"
    path.write_bytes(pack(THREE_IMAGES))
    assert holds_idx(path)
    found = find_idx_set([path])
    assert (len(found.train), found.train.labels, found.test) == (3, None, None)
    assert found.train.name == "pictures"


@pytest.mark.parametrize(
    "content",
    [b"", b"\0\0\x08", THREE_LABELS, b"\x1f\x8b", gzip.compress(b"text"), b"\x89PNG\r\n\x1a\n"],
    ids=["nothing", "3 bytes", "labels", "broken gzip", "gzip", "PNG"],
)
def test_other_files_are_not_taken_for_idx(tmp_path, content):
    (tmp_path / "other").write_bytes(content)
    assert not holds_idx(tmp_path / "other")
    assert not holds_idx(tmp_path)


# EMNIST


def write_emnist(folder: Path, variant: str) -> Path:
    for part, count in (("train", 3), ("test", 2)):
        start = folder / f"emnist-{variant}-{part}"
        images, labels = (
            idx(IMAGES, count, 4, 5),
            idx(LABELS, count, payload=bytes([1, 26, 3])[:count]),
        )
        Path(f"{start}-images-idx3-ubyte.gz").write_bytes(gzip.compress(images))
        Path(f"{start}-labels-idx1-ubyte.gz").write_bytes(gzip.compress(labels))
    return folder


@pytest.mark.parametrize(
    "variant", ["byclass", "bymerge", "balanced", "letters", "digits", "mnist"]
)
def test_the_images_of_emnist_are_turned_upright(tmp_path, variant):
    found = find_idx_set([write_emnist(tmp_path, variant)])
    stored = read_idx_images(tmp_path / f"emnist-{variant}-train-images-idx3-ubyte.gz")
    assert found.train.pixels.shape == (3, 5, 4)
    assert np.array_equal(found.train.pixels, stored.transpose(0, 2, 1))
    assert len(found.test) == 2
    for part in found:
        assert "transposed" in part.notes[0]
        assert ("class 0 is empty" in "".join(part.notes)) == (variant == "letters")
    assert found.train.labels.tolist() == [1, 26, 3]


def test_the_images_of_mnist_are_left_as_they_are(tmp_path):
    found = find_idx_set([write_set(tmp_path)])
    assert np.array_equal(found.train.pixels, read_idx_images(tmp_path / "train-images-idx3-ubyte"))
    assert found.train.notes == ()


def test_several_sets_of_emnist_are_ambiguous_until_one_is_chosen(tmp_path):
    write_set(write_emnist(write_emnist(tmp_path, "letters"), "digits"))
    message = refusal(find_idx_set, [tmp_path])
    assert "several sets, mnist, emnist-digits, emnist-letters: give the files of one" in message
    digits = find_idx_set(sorted(tmp_path.glob("emnist-digits-*")))
    assert len(digits.train) == 3
    assert digits.train.name == f"{tmp_path.name} train"


# The real thing


def test_mnist_has_the_numbers_everyone_knows(data_dir):
    found = find_idx_set([data_dir / "mnist"])
    assert found.train.pixels.shape == (60_000, 28, 28)
    assert found.test.pixels.shape == (10_000, 28, 28)
    assert found.description == (
        "mnist train: IDX files, 60,000 images, 10,000 test images, 10 classes"
    )
    assert found.train.pixels.mean() / 255 == pytest.approx(0.13066, abs=5e-6)
    assert found.train.pixels.std() / 255 == pytest.approx(0.30811, abs=5e-6)
    counts = [5923, 6742, 5958, 6131, 5842, 5421, 5918, 6265, 5851, 5949]
    assert np.bincount(found.train.labels).tolist() == counts
    assert found.train.labels[:10].tolist() == [5, 0, 4, 1, 9, 2, 1, 3, 1, 4]
