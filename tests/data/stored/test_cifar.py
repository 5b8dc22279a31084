"""CIFAR's own files are read in each of their forms, and nothing in them is run."""

import codecs
import contextlib
import gzip
import io
import math
import os
import pickle
import struct
import tarfile
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from inkdrop.data.stored import cifar, pickles
from inkdrop.data.stored.cifar import find_cifar, holds_cifar
from inkdrop.data.stored.pickles import BadPickle, parse_pickle
from inkdrop.errors import InkdropError

TEN = [f"class {i}" for i in range(10)]
HUNDRED = [f"fine class {i}" for i in range(100)]
FOLDERS = {
    "cifar-10-batches-py": "cifar-10-python.tar.gz",
    "cifar-10-batches-bin": "cifar-10-binary.tar.gz",
    "cifar-100-python": "cifar-100-python.tar.gz",
    "cifar-100-binary": "cifar-100-binary.tar.gz",
}


def drawn(count: int, classes: int) -> tuple[np.ndarray, list[int]]:
    """Images (N, 32, 32, 3) and their labels, the last of them the last class."""
    generator = np.random.default_rng(count)
    labels = [*generator.integers(classes, size=count - 1).tolist(), classes - 1]
    return generator.integers(256, size=(count, 32, 32, 3), dtype=np.uint8), labels


TRAIN, TEST = drawn(10, 10), drawn(3, 10)
TRAIN_100, TEST_100 = drawn(6, 100), drawn(4, 100)


def planes(images: np.ndarray) -> np.ndarray:
    return images.transpose(0, 3, 1, 2).reshape(len(images), 3072)


def python_2(value: object) -> bytes:
    """The pickle that Python 2 makes of a dictionary of text, numbers and arrays (protocol 2)."""

    def text(value: bytes) -> bytes:
        return b"T" + struct.pack("<i", len(value)) + value

    def dumped(value: object) -> bytes:
        match value:
            case str():
                return text(value.encode("latin1"))
            case int():
                return b"J" + struct.pack("<i", value)
            case list():
                return b"](" + b"".join(map(dumped, value)) + b"e"
            case dict():
                items = (dumped(key) + dumped(item) for key, item in value.items())
                return b"}(" + b"".join(items) + b"u"
            case np.ndarray():
                made = b"cnumpy.core.multiarray\n_reconstruct\nq\x01cnumpy\nndarray\nq\x02"
                made += b"K\x00\x85" + text(b"b") + b"\x87Rq\x03(K\x01"
                made += b"".join(map(dumped, value.shape)) + b"\x86cnumpy\ndtype\n"
                made += text(b"u1") + b"K\x00K\x01\x87R(K\x03" + text(b"|") + b"NNN"
                made += b"J\xff\xff\xff\xff" * 2 + b"K\x00tb\x89" + text(value.tobytes()) + b"tb"
                return made
            case _:
                raise AssertionError(value)

    return b"\x80\x02" + dumped(value) + b"."


def write(folder: Path, dumps=python_2) -> Path:
    """A small CIFAR in the form that the folder's name tells."""
    folder.mkdir(parents=True)
    files: dict[str, bytes] = {}
    match folder.name:
        case "cifar-10-batches-py":
            parts = [(f"data_batch_{i + 1}", TRAIN, slice(2 * i, 2 * i + 2)) for i in range(5)]
            for name, (images, labels), at in [*parts, ("test_batch", TEST, slice(None))]:
                batch = {"batch_label": name, "labels": labels[at], "data": planes(images[at])}
                files[name] = dumps({**batch, "filenames": ["x.png"] * len(labels[at])})
            files["batches.meta"] = dumps({"num_vis": 3072, "label_names": TEN})
        case "cifar-10-batches-bin":
            parts = [(f"data_batch_{i + 1}.bin", TRAIN, slice(2 * i, 2 * i + 2)) for i in range(5)]
            for name, (images, labels), at in [*parts, ("test_batch.bin", TEST, slice(None))]:
                rows = zip(labels[at], planes(images[at]), strict=True)
                files[name] = b"".join(bytes([label]) + row.tobytes() for label, row in rows)
            files["batches.meta.txt"] = ("\n".join(TEN) + "\n\n").encode()
        case "cifar-100-python":
            for name, (images, labels) in (("train", TRAIN_100), ("test", TEST_100)):
                batch = {"fine_labels": labels, "coarse_labels": [7] * len(labels)}
                files[name] = dumps({**batch, "data": planes(images)})
            files["meta"] = dumps({"fine_label_names": HUNDRED, "coarse_label_names": ["x"] * 20})
        case "cifar-100-binary":
            for name, (images, labels) in (("train.bin", TRAIN_100), ("test.bin", TEST_100)):
                rows = zip(labels, planes(images), strict=True)
                files[name] = b"".join(bytes([7, label]) + row.tobytes() for label, row in rows)
            files["fine_label_names.txt"] = "\r\n".join(HUNDRED).encode()
    for name, content in files.items():
        (folder / name).write_bytes(content)
    return folder


def pack(folder: Path, archive: Path) -> Path:
    with tarfile.open(archive, "w:gz") as tar:
        tar.add(folder, folder.name)
    return archive


def refusal(path: Path) -> str:
    """The message with which the path is refused; it is one line that names it."""
    with pytest.raises(InkdropError) as error:
        find_cifar(path)
    assert "\n" not in str(error.value)
    assert str(path) in str(error.value)
    return str(error.value)


def assert_is_what_was_written(found, name: str) -> None:
    ten = name.startswith("cifar-10-")
    for part, (images, labels) in zip(
        found, (TRAIN, TEST) if ten else (TRAIN_100, TEST_100), strict=True
    ):
        assert part.pixels.dtype == np.uint8
        assert np.array_equal(part.pixels, images)
        assert part.labels.dtype == np.int64
        assert part.labels.tolist() == labels
        assert part.class_names == tuple(TEN if ten else HUNDRED)
    assert any("fine" in note for note in found.train.notes) == (not ten)
    stem = "cifar-10" if ten else "cifar-100"
    assert [part.name for part in found] == [f"{stem} train", f"{stem} test"]
    assert ("python" if name.endswith(("py", "python")) else "binary") in found.train.kind


# Each of the forms


@pytest.mark.parametrize("name", FOLDERS)
def test_a_folder_is_read(tmp_path, name):
    folder = write(tmp_path / name)
    assert holds_cifar(folder)
    assert_is_what_was_written(find_cifar(folder), name)


@pytest.mark.parametrize("name", FOLDERS)
def test_a_folder_is_found_in_the_one_given(tmp_path, name):
    write(tmp_path / name)
    (tmp_path / "README").write_text("hello")
    assert holds_cifar(tmp_path)
    assert_is_what_was_written(find_cifar(tmp_path), name)


@pytest.mark.parametrize("name", FOLDERS)
def test_a_folder_of_another_name_is_known_by_its_files(tmp_path, name):
    write(tmp_path / name).rename(tmp_path / "mine")
    assert holds_cifar(tmp_path / "mine")
    assert_is_what_was_written(find_cifar(tmp_path / "mine"), name)


@pytest.mark.parametrize(("name", "archive"), FOLDERS.items())
def test_the_original_archive_is_read_and_not_unpacked(tmp_path, name, archive):
    path = pack(write(tmp_path / "in" / name), tmp_path / archive)
    (tmp_path / "in").rename(tmp_path / "gone")
    before = sorted(tmp_path.rglob("*"))
    assert holds_cifar(path)
    assert_is_what_was_written(find_cifar(path), name)
    assert sorted(tmp_path.rglob("*")) == before


def test_an_archive_of_another_name_is_known_by_its_content(tmp_path):
    name = "cifar-10-batches-py"
    path = pack(write(tmp_path / name), tmp_path / "download.tgz")
    assert holds_cifar(path)
    assert_is_what_was_written(find_cifar(path), name)


def bytes_keys(value: dict[str, object]) -> bytes:
    return pickle.dumps({key.encode(): item for key, item in value.items()}, protocol=4)


@pytest.mark.parametrize("protocol", range(pickle.HIGHEST_PROTOCOL + 1))
def test_pickles_of_every_protocol_are_read(tmp_path, protocol):
    name = "cifar-10-batches-py"
    folder = write(tmp_path / name, lambda value: pickle.dumps(value, protocol=protocol))
    assert_is_what_was_written(find_cifar(folder), name)


def test_pickles_with_keys_of_bytes_are_read(tmp_path):
    name = "cifar-100-python"
    assert_is_what_was_written(find_cifar(write(tmp_path / name, bytes_keys)), name)


def test_labels_may_be_an_array(tmp_path):
    folder = write(tmp_path / "cifar-100-python")
    images, labels = TRAIN_100
    batch = {"data": planes(images), "fine_labels": np.array(labels)}
    (folder / "train").write_bytes(pickle.dumps(batch))
    assert find_cifar(folder).train.labels.tolist() == labels


def test_real_pictures_survive_the_way_through_the_batches(tmp_path, data_dir):
    from PIL import Image
    from pyarrow import parquet

    rows = parquet.ParquetFile(data_dir / "cifar10" / "test.parquet").read_row_group(0)
    rows = rows.slice(0, 20).to_pylist()
    images = np.stack([np.array(Image.open(io.BytesIO(row["img"]["bytes"]))) for row in rows])
    labels = [row["label"] for row in rows]
    folder = write(tmp_path / "cifar-10-batches-py")
    batch = {"data": planes(images), "labels": labels}
    (folder / "test_batch").write_bytes(python_2(batch))
    test = find_cifar(folder).test
    assert np.array_equal(test.pixels, images)
    assert test.labels.tolist() == labels


def test_the_identity_tells_parts_and_changes_apart(tmp_path):
    folder = write(tmp_path / "cifar-10-batches-py")
    first = find_cifar(folder)
    assert first.train.identity() == find_cifar(tmp_path).train.identity()
    assert first.train.identity() != first.test.identity()
    (folder / "test_batch").write_bytes(python_2({"data": planes(TEST[0]), "labels": [0, 0, 0]}))
    os.utime(folder / "test_batch", (1, 1))
    assert find_cifar(folder).test.identity() != first.test.identity()


# What is missing, and what is something else


def test_other_folders_and_archives_are_not_cifar(tmp_path):
    (tmp_path / "train").write_bytes(b"anything")
    (tmp_path / "test").write_bytes(b"anything")
    (tmp_path / "other.tar.gz").write_bytes(gzip.compress(b"no tar"))
    (tmp_path / "empty.tar").write_bytes(b"")
    pack(write(tmp_path / "cifar-10-batches-py"), tmp_path / "batches.zip")
    for path in (tmp_path / name for name in ("train", "other.tar.gz", "empty.tar", "batches.zip")):
        assert not holds_cifar(path)
    (tmp_path / "cifar-10-batches-py").rename(tmp_path / "deeper")
    assert not holds_cifar(tmp_path)


def test_missing_batches_are_named(tmp_path):
    folder = write(tmp_path / "cifar-10-batches-py")
    (folder / "data_batch_2").unlink()
    (folder / "data_batch_5").unlink()
    assert "lack data_batch_2, data_batch_5: fetch cifar-10 again" in refusal(folder)


def test_test_images_and_class_names_are_optional(tmp_path):
    folder = write(tmp_path / "cifar-10-batches-bin")
    (folder / "test_batch.bin").unlink()
    (folder / "batches.meta.txt").unlink()
    found = find_cifar(folder)
    assert found.test is None
    assert found.train.notes == ("no test images: there is no test_batch.bin",)
    assert found.train.class_names == ()


def test_two_sets_in_one_folder_are_ambiguous(tmp_path):
    write(tmp_path / "cifar-10-batches-py")
    write(tmp_path / "cifar-100-python")
    assert holds_cifar(tmp_path)
    assert "several sets: give one of " in refusal(tmp_path)


def test_a_folder_without_batches(tmp_path):
    assert "no batches of CIFAR" in refusal(tmp_path)


# Damage


def test_records_that_are_cut_off(tmp_path):
    folder = write(tmp_path / "cifar-10-batches-bin")
    content = (folder / "data_batch_3.bin").read_bytes()
    (folder / "data_batch_3.bin").write_bytes(content[:-1])
    message = refusal(folder)
    assert f"data_batch_3.bin: {len(content) - 1:,} bytes are not whole records of 3073" in message


@pytest.mark.parametrize("name", FOLDERS)
def test_an_empty_file(tmp_path, name):
    folder = write(tmp_path / name)
    file = next(file for file in sorted(folder.iterdir()) if "test" in file.name)
    file.write_bytes(b"")
    assert file.name in refusal(folder)


@pytest.mark.parametrize("label", [10, 255])
def test_a_label_beyond_the_classes(tmp_path, label):
    folder = write(tmp_path / "cifar-10-batches-bin")
    (folder / "test_batch.bin").write_bytes(bytes(3073) + bytes([label]) + bytes(3072))
    assert "the label of image 1 is outside 0 … 9" in refusal(folder)


GOOD = {"data": np.zeros((2, 3072), np.uint8), "labels": [0, 1]}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"labels": [0]}, "2 images but 1 labels"),
        ({"labels": [0, -1]}, "label of image 1 is outside 0 … 9"),
        ({"labels": [10**30, 0]}, "label of image 0 is outside 0 … 9"),
        ({"labels": ["cat", "dog"]}, "'labels' is not a list of whole numbers"),
        ({"labels": [True, False]}, "'labels' is not a list of whole numbers"),
        ({"labels": np.zeros(2, np.float32)}, "'labels' is not a list of whole numbers"),
        ({"labels": np.zeros((2, 1), np.int64)}, "'labels' is not a list of whole numbers"),
        ({"data": np.zeros((2, 1024), np.uint8)}, "must be (N, 3072) of uint8, got (2, 1024)"),
        ({"data": np.zeros((2, 3072), np.int64)}, "of int64"),
        ({"data": np.zeros((2, 3, 32, 32), np.uint8)}, "got (2, 3, 32, 32)"),
        ({"data": np.zeros((0, 3072), np.uint8), "labels": []}, "empty: it holds no image"),
        ({"data": [0, 1]}, "'data' is a list, not an array"),
        ({"data": np.array([None, None])}, "an array of 'O8', not of numbers: refused"),
        ({"data": np.array(["a", "b"])}, "an array of 'U1', not of numbers: refused"),
    ],
    ids=str,
)
def test_a_batch_of_other_things(tmp_path, change, message):
    folder = write(tmp_path / "cifar-10-batches-py")
    (folder / "data_batch_4").write_bytes(pickle.dumps({**GOOD, **change}, protocol=2))
    refused = refusal(folder)
    assert message in refused
    assert str(folder / "data_batch_4") in refused


@pytest.mark.parametrize("missing", ["data", "labels"])
def test_a_batch_that_lacks_a_key(tmp_path, missing):
    folder = write(tmp_path / "cifar-10-batches-py")
    batch = {key: value for key, value in GOOD.items() if key != missing}
    (folder / "data_batch_1").write_bytes(pickle.dumps(batch))
    assert f"no {missing!r} in it" in refusal(folder)


def test_a_batch_that_is_no_dictionary(tmp_path):
    folder = write(tmp_path / "cifar-10-batches-py")
    (folder / "data_batch_1").write_bytes(pickle.dumps([1, 2]))
    assert "holds a list, not a batch of CIFAR" in refusal(folder)


@pytest.mark.parametrize("name", ["cifar-10-batches-py", "cifar-10-batches-bin"])
def test_class_names_of_another_number(tmp_path, name):
    folder = write(tmp_path / name)
    if name.endswith("py"):
        (folder / "batches.meta").write_bytes(pickle.dumps({"label_names": TEN[:9]}))
    else:
        (folder / "batches.meta.txt").write_text("\n".join(TEN[:9]))
    assert "9 class names instead of 10" in refusal(folder)


@pytest.mark.parametrize("cut", [40, 0.5, 0.99])
def test_an_archive_that_is_cut_off(tmp_path, cut):
    whole = pack(write(tmp_path / "cifar-10-batches-py"), tmp_path / "a.tar.gz").read_bytes()
    path = tmp_path / "cifar-10-python.tar.gz"
    path.write_bytes(whole[: cut if isinstance(cut, int) else int(cut * len(whole))])
    assert holds_cifar(path)
    assert "the archive is damaged or cut off" in refusal(path)


def test_a_file_that_is_no_archive(tmp_path):
    path = tmp_path / "cifar-10-python.tar.gz"
    path.write_bytes(b"<html>404</html>")
    assert holds_cifar(path)
    assert "damaged" in refusal(path)


def test_an_archive_of_something_else(tmp_path):
    path = tmp_path / "cifar-10-python.tar.gz"
    (tmp_path / "other").mkdir()
    pack(tmp_path / "other", path)
    assert "holds none of the folders cifar-10-batches-py, " in refusal(path)


def archive_of(path: Path, *members: tuple[tarfile.TarInfo, bytes]) -> Path:
    with tarfile.open(path, "w:gz") as tar:
        for info, content in members:
            tar.addfile(info, io.BytesIO(content))
    return path


def member(name: str, size: int = 0, **changes: object) -> tarfile.TarInfo:
    info = tarfile.TarInfo(name)
    info.size = size
    for key, value in changes.items():
        setattr(info, key, value)
    return info


def test_links_and_doubles_in_an_archive_are_refused(tmp_path):
    name = "cifar-10-batches-py/test_batch"
    link = member(name, type=tarfile.SYMTYPE, linkname="/etc/passwd")
    assert "no plain file" in refusal(archive_of(tmp_path / "links.tar.gz", (link, b"")))
    twice = [(member(name, 1), b"x")] * 2
    assert f"holds {name} twice" in refusal(archive_of(tmp_path / "twice.tar.gz", *twice))


def test_an_archive_that_unpacks_to_more_than_cifar_does_is_refused(tmp_path, monkeypatch):
    monkeypatch.setattr(cifar, "LARGEST_ARCHIVE", 1 << 20)
    content = (member("other", 8 << 20), bytes(8 << 20))
    message = refusal(archive_of(tmp_path / "bomb.tar.gz", content))
    assert "unpacks to more than 1,048,576 bytes" in message


def test_a_file_larger_than_any_of_cifar_is_refused(tmp_path, monkeypatch):
    monkeypatch.setattr(cifar, "LARGEST_FILE", 1 << 20)
    content = (member("cifar-10-batches-bin/test_batch.bin", 2 << 20), bytes(2 << 20))
    assert "larger than any file" in refusal(archive_of(tmp_path / "a.tar.gz", content))
    folder = write(tmp_path / "cifar-10-batches-bin")
    (folder / "test_batch.bin").write_bytes(bytes(2 << 20))
    assert "larger than any file" in refusal(folder)


# Pickles that are not what they seem


class Calls:
    """Pickles as a call of a function, as a malicious file would."""

    def __init__(self, function, *arguments):
        self.call = (function, arguments)

    def __reduce__(self):
        return self.call


@pytest.mark.parametrize("protocol", range(pickle.HIGHEST_PROTOCOL + 1))
@pytest.mark.parametrize(
    ("value", "name"),
    [
        (Calls(os.system, "touch RAN"), f"{os.system.__module__}.system"),
        (Calls(eval, "open('RAN', 'w')"), "builtins.eval"),
        ({"data": [Calls(getattr, "x", "upper")]}, "builtins.getattr"),
        (Calls(codecs.encode, Calls(open, "RAN", "w"), "latin1"), "io.open"),
        (pickle.loads, "_pickle.loads"),
        (np.float64, "numpy.float64"),
    ],
    ids=["system", "eval", "nested", "within a call that is allowed", "function", "type"],
)
def test_a_pickle_that_holds_code_is_refused_and_not_run(
    tmp_path, monkeypatch, value, name, protocol
):
    monkeypatch.chdir(tmp_path)
    folder = write(tmp_path / "cifar-10-batches-py")
    (folder / "data_batch_1").write_bytes(pickle.dumps(value, protocol=protocol))
    message = refusal(folder)
    # Python 2 has other names for some of the modules.
    assert "holds code (" in message
    assert f"{name[name.rindex('.') :]}): refused" in message
    assert not (tmp_path / "RAN").exists()


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b"\x80\x02cos\nsystem\nX\x04\x00\x00\x00true\x85R.", "holds code (os.system)"),
        (b"\x80\x02co\x1bs\nsystem\n.", "holds code (o\\x1bs.system)"),
        (b"\x80\x04\x8c\x02os\x8c\x06system\x93\x8c\x01x\x85R.", "holds code (os.system)"),
        (b"\x80\x04\x8c\x05numpy\x8c\x07ndarray\x93\x8c\x01x\x85R.", "other arguments"),
        (b"\x80\x04\x8c\x05numpy\x8c\x0bndarray.fly\x93.", "holds code (numpy.ndarray.fly)"),
        (b"(S'x'\nios\nsystem\n.", "(inst)"),
        (b"\x80\x02cnumpy\nndarray\n)\x81.", "(newobj)"),
        (b"\x80\x02\x82\x01.", "(ext1)"),
        (b"Pevil\n.", "(persid)"),
        (b"\x80\x02}c_codecs\nencode\n}b.", "a state for what has none"),
        (b"\x80\x02}))s.", "a tuple as a key"),
        (b"\x80\x02}Na.", "an item for what is no list"),
        (b"\x80\x02g5\n.", "5"),
        (b"\x80\x02.", "damaged"),
        (b"\x80\x02N", "damaged"),
        (b"", "damaged"),
        (b"q\x00.", "damaged"),
        (b"e.", "damaged"),
        (b"I" + b"9" * 5000 + b"\n.", "damaged"),
        (b"\x8d\xff\xff\xff\xff\xff\xff\xff\x7f.", "damaged"),
        (b"\x8e\xff\xff\xff\xff\xff\xff\xff\x7f.", "damaged"),
        (b"\x80\x05\x96\xff\xff\xff\xff\xff\xff\xff\x7f.", "damaged"),
        (b"\x95\xff\xff\xff\xff\xff\xff\xff\x7f.", "damaged"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_a_hand_made_pickle_is_refused(content, reason):
    with pytest.raises(BadPickle, match=r".") as error:
        parse_pickle(content)
    assert reason in str(error.value)
    assert "\n" not in str(error.value)


def array_pickle(shape: tuple[int, ...], code: bytes = b"u1", raw: bytes = b"1234") -> bytes:
    sizes = b"".join(b"L%dL\n" % size for size in shape)
    return (
        b"\x80\x02cnumpy.core.multiarray\n_reconstruct\ncnumpy\nndarray\nK\x00\x85U\x01b\x87R"
        b"(K\x01(" + sizes + b"tcnumpy\ndtype\nU" + bytes([len(code)]) + code + b"K\x00K\x01\x87R"
        b"(K\x03U\x01|NNNJ\xff\xff\xff\xffJ\xff\xff\xff\xffK\x00tb\x89U"
        + bytes([len(raw)]) + raw + b"tb."
    )  # fmt: skip


def test_an_array_is_no_larger_than_its_bytes():
    assert parse_pickle(array_pickle((2, 2))).tolist() == [[49, 50], [51, 52]]
    for shape in ((5,), (3,), (10**18,), (2**32, 2**32), (-2, -2), (0, 10**30)):
        with pytest.raises(BadPickle, match="damaged"):
            parse_pickle(array_pickle(shape))


def test_a_memo_of_absurd_size_takes_no_memory():
    assert parse_pickle(b"\x80\x02Nr\xff\xff\xff\x7f.") is None
    assert parse_pickle(b"Np99999999999999999\n.") is None


def test_the_same_bytes_are_not_made_into_ever_more_arrays():
    text = b"X" + struct.pack("<I", 1000) + b"x" * 1000
    made = b"c_codecs\nencode\nq\x01" + text + b"q\x02U\x06latin1\x86R"
    again = b"h\x01h\x02U\x06latin1\x86R"
    assert parse_pickle(b"\x80\x02(" + made + b"l.") == [b"x" * 1000]
    with pytest.raises(BadPickle, match="over and over"):
        parse_pickle(b"\x80\x02(" + made + again * 10 + b"l.")


def test_a_pickle_of_endless_empty_lists_is_refused(monkeypatch):
    monkeypatch.setattr(pickles, "_MOST_STEPS", 1000)
    assert parse_pickle(b"(" + b"]" * 997 + b"l.") == [[]] * 997
    with pytest.raises(BadPickle, match="more than 1,000 values"):
        parse_pickle(b"(" + b"]" * 998 + b"l.")


@given(st.data())
def test_a_damaged_pickle_is_parsed_or_refused_but_nothing_else(data):
    value = {"data": np.arange(24, dtype=np.uint8).reshape(2, 12), "labels": [1, 2], "x": "text"}
    protocol = data.draw(st.integers(0, pickle.HIGHEST_PROTOCOL))
    content = bytearray(pickle.dumps(value, protocol=protocol))
    flips = st.lists(st.tuples(st.integers(0, len(content) - 1), st.integers(1, 255)), max_size=3)
    for position, mask in data.draw(flips):
        content[position] ^= mask
    with contextlib.suppress(BadPickle):
        parse_pickle(bytes(content[: data.draw(st.integers(0, len(content)))]))


@given(
    shape=st.lists(st.integers(0, 4), min_size=1, max_size=4),
    dtype=st.sampled_from(["u1", "?", "<i2", ">i4", "<i8", ">u8", "<f4", ">f8"]),
    order=st.sampled_from("CF"),
    protocol=st.integers(0, pickle.HIGHEST_PROTOCOL),
)
def test_arrays_of_numbers_come_back_as_they_were(shape, dtype, order, protocol):
    array = np.arange(math.prod(shape)).astype(dtype).reshape(shape, order=order)
    parsed = parse_pickle(pickle.dumps({"a": array, "n": 3}, protocol=protocol))
    assert parsed["a"].dtype == array.dtype
    assert np.array_equal(parsed["a"], array)
