"""Parquet: every image arrives as it is stored, or one line says what is wrong and where."""

import io
import json
import pickle
import random
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from inkdrop.data.stored import parquet
from inkdrop.data.stored.columns import first_line
from inkdrop.data.stored.parquet import ParquetImages, find_parquet, holds_parquet
from inkdrop.errors import InkdropError

IMAGES = [f"image {i}".encode() for i in range(7)]  # what is in them is not looked at
STRUCT = pa.struct([("bytes", pa.binary()), ("path", pa.string())])


def table(images=IMAGES, column="image", **columns) -> pa.Table:
    held = [image if image is None else {"bytes": image, "path": None} for image in images]
    return pa.table({column: pa.array(held, STRUCT), **columns})


def declared(content: pa.Table, **features) -> pa.Table:
    note = json.dumps({"info": {"features": features}})
    return content.replace_schema_metadata({"huggingface": note})


def write(folder: Path, content: pa.Table, name: str = "train.parquet", **options) -> Path:
    (folder / name).parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(content, folder / name, **options)
    return folder / name


def contents(collection, start=0, stop=None) -> list:
    stop = len(collection) if stop is None else stop
    return [item.content for item in collection.read(start, stop)]


def refusal(function, *arguments) -> str:
    """The message with which the arguments are refused; it is one line."""
    with pytest.raises(InkdropError) as error:
        function(*arguments)
    assert "\n" not in str(error.value)
    return str(error.value)


def refused(folder: Path, content: pa.Table) -> str:
    return refusal(find_parquet, [write(folder, content)])


# What there is


def test_images_arrive_as_they_are_stored_with_labels_and_places(tmp_path):
    file = write(tmp_path, table(label=[3, 1, 4, 1, 5, 9, 2]), row_group_size=3)
    found = find_parquet([file])
    items = list(found.train.read(0, 7))
    assert [item.content for item in items] == IMAGES
    assert items[5].place == "train.parquet, row 5"
    assert not any(item.fault for item in items)
    assert found.train.labels.tolist() == [3, 1, 4, 1, 5, 9, 2]
    assert found.train.labels.dtype == np.int64
    assert found.test is None
    assert found.train.notes == ()
    assert found.description == "train.parquet: Parquet, 7 images, 10 classes"


def test_images_without_labels(tmp_path):
    found = find_parquet([write(tmp_path, table(), "mine.parquet")], "mine")
    assert found.train.labels is None
    assert found.description == "mine: Parquet, all for training, 7 images, no labels"


@pytest.mark.parametrize("column", ["image", "img"])
@pytest.mark.parametrize("label", ["label", "labels", "fine_label"])
def test_columns_are_found_by_their_names(tmp_path, column, label):
    content = table(IMAGES, column, zother=IMAGES, coarse_label=[0] * 7, **{label: [1] * 7})
    train = find_parquet([write(tmp_path, content)]).train
    assert contents(train) == IMAGES
    assert train.labels.tolist() == [1] * 7


@pytest.mark.parametrize("held", [pa.binary(), pa.large_binary(), STRUCT])
def test_the_only_column_that_can_hold_images_does(tmp_path, held):
    values = [{"bytes": image} for image in IMAGES] if held == STRUCT else IMAGES
    content = pa.table({"image": ["a name"] * 7, "scan": pa.array(values, held), "n": [1] * 7})
    train = find_parquet([write(tmp_path, content)]).train
    assert contents(train) == IMAGES
    assert train.labels is None


def test_declared_columns_go_before_names(tmp_path):
    content = table(IMAGES, "scan", kind=[1, 0, 1, 0, 1, 0, 1], image=[b"no"] * 7)
    kind = {"_type": "ClassLabel", "names": ["cat", "dog\x1b"]}
    content = declared(content, scan={"_type": "Image"}, kind=kind, image={"_type": "Value"})
    train = find_parquet([write(tmp_path, content)]).train
    assert contents(train) == IMAGES
    assert train.labels.tolist() == [1, 0, 1, 0, 1, 0, 1]
    assert train.class_names == ("cat", "dog\\x1b")
    assert train.notes == ()


def test_what_else_was_declared_is_noted(tmp_path):
    content = table(mask=IMAGES, label=[0] * 7, breed=[1] * 7)
    image, label = {"_type": "Image"}, {"_type": "ClassLabel", "names": ["cat", "dog"]}
    content = declared(content, image=image, mask=image, label=label, breed=label)
    assert find_parquet([write(tmp_path, content)]).train.notes == (
        "images are taken from column 'image', not from 'mask'",
        "labels are taken from column 'label', not from 'breed'",
    )


def test_no_labels_are_guessed_among_several_declared(tmp_path):
    label = {"_type": "ClassLabel", "names": ["a", "b"]}
    content = declared(table(breed=[0] * 7, mood=[1] * 7), breed=label, mood=label)
    train = find_parquet([write(tmp_path, content)]).train
    assert train.labels is None
    assert "which of breed, mood are the labels? none is used" in train.notes[0]


@pytest.mark.parametrize(
    "note",
    [
        "no JSON",
        "[]",
        '{"info": null}',
        '{"info": {"features": 3}}',
        '{"info": {"features": {"image": 3, "label": {"_type": "ClassLabel", "names": 5}}}}',
        '{"info": {"features": {"gone": {"_type": "Image"}}}}',
        "[" * 100_000,
    ],
    ids=range(7),
)
def test_a_note_in_the_file_that_makes_no_sense_is_passed_over(tmp_path, note):
    content = table(label=[0] * 7).replace_schema_metadata({"huggingface": note})
    train = find_parquet([write(tmp_path, content)]).train
    assert (len(train), train.class_names) == (7, ())


def test_missing_bytes_are_the_fault_of_their_image_alone(tmp_path):
    held = [*IMAGES[:2], None, {"bytes": None, "path": "3.png"}, *IMAGES[4:]]
    values = [{"bytes": one} if isinstance(one, bytes) else one for one in held]
    file = write(tmp_path, pa.table({"image": pa.array(values, STRUCT)}))
    items = list(find_parquet([file]).train.read(0, 7))
    assert [item.content for item in items] == [*IMAGES[:2], None, None, *IMAGES[4:]]
    assert [item.fault for item in items[1:4]] == ["", *["the image's bytes are missing"] * 2]


# Labels


def test_labels_that_are_all_unknown_are_none(tmp_path):
    write(tmp_path, table(label=[0, 1] * 3 + [0]))
    write(tmp_path, table(label=[-1] * 7), "test.parquet")
    found = find_parquet([tmp_path])
    assert found.train.labels is not None
    assert found.test.labels is None
    assert found.test.notes == ("column 'label' is -1 throughout: these images have no labels",)


@pytest.mark.parametrize(
    ("labels", "message"),
    [
        ([0, 1, None, 3, 4, 5, 6], "train.parquet, row 2: the label is missing"),
        ([0, 1, 2, -1, 4, 5, 6], "train.parquet, row 3: the label is -1, but must be 0 or more"),
        ([-2] * 7, "train.parquet, row 0: the label is -2"),
        (["cat"] * 7, "column 'label' holds string, but labels must be whole numbers"),
        ([0.5] * 7, "column 'label' holds double, but labels must be whole numbers"),
        (pa.array([2**64 - 1] * 7, pa.uint64()), "a label is too large"),
    ],
)
def test_labels_that_are_none_are_refused(tmp_path, labels, message):
    assert message in refused(tmp_path, table(label=labels))


def test_a_label_without_a_name_is_refused(tmp_path):
    label = {"_type": "ClassLabel", "names": ["cat", "dog"]}
    content = declared(table(label=[0, 1, 1, 0, 2, 0, 0]), label=label)
    assert "row 4: the label is 2, but must be 0 … 1" in refused(tmp_path, content)


# Ranges


@given(data=st.data())
def test_any_range_in_any_order_is_the_same(tmp_path_factory, data):
    rows = data.draw(st.lists(st.integers(0, 9), min_size=1, max_size=4), label="rows of files")
    size = data.draw(st.integers(1, 5), label="row group size")
    at_once = data.draw(st.integers(1, 60), label="bytes at once")
    count = sum(rows)
    if not count:
        return
    images = [f"{i:02}".encode() for i in range(count)]
    folder = tmp_path_factory.mktemp("ranges")
    ends = np.cumsum(rows).tolist()
    for i, (end, length) in enumerate(zip(ends, rows, strict=True)):
        content = table(
            images[end - length : end], label=pa.array(range(end - length, end), pa.int64())
        )
        write(folder, content, f"{i}.parquet", row_group_size=size)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(parquet, "_BYTES_AT_ONCE", at_once)
        train = find_parquet([folder]).train
        assert train.labels.tolist() == list(range(count))
        for _ in range(4):
            start = data.draw(st.integers(0, count), label="start")
            stop = data.draw(st.integers(start, count), label="stop")
            assert contents(train, start, stop) == images[start:stop]


def test_a_row_group_is_decoded_once_for_all_its_ranges(tmp_path, monkeypatch):
    opened = []
    open_ = parquet._open
    file = write(tmp_path, table([b"x"] * 1000), row_group_size=500)
    train = find_parquet([file]).train
    monkeypatch.setattr(parquet, "_open", lambda file: opened.append(file) or open_(file))
    for start in range(0, 1000, 10):
        assert len(contents(train, start, start + 10)) == 10
    assert len(opened) == 2


def test_of_a_large_row_group_only_a_part_is_held(tmp_path, monkeypatch):
    monkeypatch.setattr(parquet, "_BYTES_AT_ONCE", 50_000)
    images = [bytes([i]) * 1000 for i in range(200)]
    options = {"use_dictionary": False, "compression": "none"}
    train = find_parquet([write(tmp_path, table(images), **options)]).train
    assert train.block < 60
    assert contents(train) == images
    assert len(train._idle[0]._batch) < 60


@pytest.mark.parametrize(("size", "block"), [(2, 2), (100, 100), (1000, 512)])
def test_the_block_is_a_row_group_unless_that_is_large(tmp_path, size, block):
    file = write(tmp_path, table([b"x"] * 1000), row_group_size=size)
    assert find_parquet([file]).train.block == block


def test_threads_read_at_once(tmp_path):
    images = [f"{i}".encode() for i in range(2000)]
    train = find_parquet([write(tmp_path, table(images), row_group_size=300)]).train
    starts = [i % 190 * 10 for i in range(0, 1900, 7)]
    with ThreadPoolExecutor(4) as pool:
        read = list(pool.map(lambda start: contents(train, start, start + 25), starts))
    assert read == [images[start : start + 25] for start in starts]


def test_a_read_given_up_halfway_harms_no_other(tmp_path):
    train = find_parquet([write(tmp_path, table())]).train
    given_up = train.read(0, 7)
    assert [next(given_up).content for _ in range(3)] == IMAGES[:3]
    assert contents(train, 1, 3) == IMAGES[1:3]
    given_up.close()
    assert contents(train) == IMAGES


def test_reads_that_take_turns_do_not_get_in_each_others_way(tmp_path, monkeypatch):
    monkeypatch.setattr(parquet, "_BYTES_AT_ONCE", 1)
    train = find_parquet([write(tmp_path, table())]).train
    contents(train, 0, 1)
    pairs = zip(train.read(1, 4), train.read(3, 6), strict=True)
    assert [(one.content, other.content) for one, other in pairs] == list(
        zip(IMAGES[1:4], IMAGES[3:6], strict=True)
    )


def test_a_pickled_copy_reads_the_same_files(tmp_path):
    train = find_parquet([write(tmp_path, table(label=[0] * 7))]).train
    contents(train, 0, 3)
    copy = pickle.loads(pickle.dumps(train))
    assert contents(copy) == IMAGES
    assert copy.identity() == train.identity()
    assert copy.labels.tolist() == [0] * 7


def test_a_pickle_holds_no_images(tmp_path):
    noise = random.Random(0).randbytes(100_000)
    train = find_parquet([write(tmp_path, table([noise]))]).train
    contents(train)
    assert len(pickle.dumps(train)) < 10_000


def test_reading_does_not_import_torch(tmp_path):
    file = write(tmp_path, table())
    code = (
        "import sys; from pathlib import Path; from inkdrop.data.stored.parquet import *; "
        "assert 'pyarrow' not in sys.modules; "
        "assert len(list(find_parquet([Path(sys.argv[1])]).train.read(0, 7))) == 7; "
        "assert 'torch' not in sys.modules"
    )
    done = subprocess.run([sys.executable, "-c", code, file], capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, "")


def test_the_identity_changes_with_the_files(tmp_path):
    file = write(tmp_path, table())
    before = find_parquet([file]).train.identity()
    assert find_parquet([file]).train.identity() == before
    write(tmp_path, table(IMAGES[:5]))
    assert find_parquet([file]).train.identity() != before


# Files and folders


def test_what_is_parquet(tmp_path):
    file = write(tmp_path / "hub" / "data", table(), "train-00000-of-00001.parquet")
    bare = tmp_path / "other" / "bare"
    bare.parent.mkdir()
    bare.write_bytes(file.read_bytes())
    text = bare.with_name("text.txt")
    text.write_text("PAR1 is how it starts")
    short = bare.with_name("short")
    short.write_bytes(b"PAR")
    assert holds_parquet(file)
    assert holds_parquet(file.parent)
    assert holds_parquet(file.parent.parent)
    assert holds_parquet(bare)
    assert not any(map(holds_parquet, [text, short, text.parent, tmp_path / "gone"]))


def test_a_file_is_parquet_whatever_its_name(tmp_path):
    file = write(tmp_path, table(), "images")
    assert contents(find_parquet([file]).train) == IMAGES


def test_files_are_told_apart_by_name_and_ordered_by_it(tmp_path):
    second = write(tmp_path, table(IMAGES[3:5], label=[3, 4]), "train-10.parquet")
    first = write(tmp_path, table(IMAGES[:3], label=[0, 1, 2]), "train-9.parquet")
    test = write(tmp_path, table(IMAGES[5:], label=[5, 6]), "test-0.parquet")
    for paths in ([tmp_path], [second, test, first], [test, first, second]):
        found = find_parquet(paths, "set")
        assert contents(found.train) == IMAGES[:5]
        assert contents(found.test) == IMAGES[5:]
        assert found.train.labels.tolist() == [0, 1, 2, 3, 4]
        assert [item.place for item in found.train.read(3, 4)] == ["train-10.parquet, row 0"]
        assert (found.train.name, found.test.name) == ("set", "set test")


def test_the_hubs_layouts_are_found(tmp_path):
    write(tmp_path / "a", table(), "data/train-00000-of-00001.parquet")
    write(tmp_path / "a", table(IMAGES[:2]), "data/test-00000-of-00001.parquet")
    write(tmp_path / "b", table(), "train/0000.parquet")
    write(tmp_path / "b", table(IMAGES[:2]), "test/0000.parquet")
    for layout in ("a", "b"):
        found = find_parquet([tmp_path / layout])
        assert (len(found.train), len(found.test), found.train.name) == (7, 2, layout)


def test_validation_serves_where_there_is_no_test(tmp_path):
    write(tmp_path, table())
    write(tmp_path, table(IMAGES[:2]), "validation.parquet")
    found = find_parquet([tmp_path])
    assert len(found.test) == 2
    assert "(validation.parquet) serve as test images" in found.test.notes[0]
    write(tmp_path, table(IMAGES[:3]), "test.parquet")
    found = find_parquet([tmp_path])
    assert len(found.test) == 3
    assert "(validation.parquet) are left aside" in found.train.notes[0]


def test_files_of_one_name_are_told_apart(tmp_path):
    for folder in ("a", "b"):
        write(tmp_path / folder, table(IMAGES[:2]))
    train = find_parquet([tmp_path]).train
    places = [item.place for item in train.read(0, 4)]
    assert places[1] == f"{tmp_path / 'a' / 'train.parquet'}, row 1"
    assert places[2] == f"{tmp_path / 'b' / 'train.parquet'}, row 0"


def test_names_without_a_word_among_names_with_one(tmp_path):
    write(tmp_path, table())
    odd = write(tmp_path, table(), "more.parquet")
    assert f"{odd}: training or test images?" in refusal(find_parquet, [tmp_path])
    odd.rename(tmp_path / "train-test.parquet")
    assert "train-test.parquet: training or test images?" in refusal(find_parquet, [tmp_path])


def test_a_test_set_alone_is_nothing_to_train_on(tmp_path):
    file = write(tmp_path, table(), "test.parquet")
    assert f"no training images in {file}" in refusal(find_parquet, [file])


def test_a_file_given_twice(tmp_path):
    file = write(tmp_path, table())
    assert f"{file} is given twice" in refusal(find_parquet, [file, file])
    assert f"{file} is given twice" in refusal(find_parquet, [tmp_path, file])


def test_hidden_files_do_not_matter(tmp_path):
    write(tmp_path, table())
    (tmp_path / "._train.parquet").write_text("left by another system")
    assert len(find_parquet([tmp_path]).train) == 7


def test_a_table_about_the_images_beside_it_holds_none(tmp_path):
    file = write(tmp_path / "folder", pa.table({"file_name": ["1.png"]}), "metadata.parquet")
    assert not holds_parquet(file.parent)
    assert not holds_parquet(tmp_path)


def test_a_file_without_rows_is_noted(tmp_path):
    write(tmp_path, pa.table({"image": [], "label": []}), "0.parquet")
    write(tmp_path, table(), "1.parquet")
    train = find_parquet([tmp_path]).train
    assert contents(train) == IMAGES
    assert train.notes == ("0.parquet has no rows",)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (pa.table({"text": ["a"], "label": [1]}), "its columns are text, label"),
        (pa.table({"image": ["a"]}), "column 'image' holds string, not encoded images (bytes)"),
        (pa.table({"a": IMAGES, "b": IMAGES}), "which column holds the images? a, b all could"),
        (table([]), "empty: it has no rows"),
        (pa.Table.from_arrays([pa.array(IMAGES)] * 2, ["image"] * 2), "which column holds"),
    ],
    ids=range(5),
)
def test_what_is_not_there_is_named(tmp_path, content, message):
    assert message in refused(tmp_path, content)


def test_files_of_different_columns(tmp_path):
    first = write(tmp_path, table(label=[0] * 7), "a.parquet")
    second = write(tmp_path, table(), "b.parquet")
    message = refusal(find_parquet, [tmp_path])
    assert f"{second} has images in 'image' and no labels, but {first} has" in message


@pytest.mark.parametrize("name", ["train-2.parquet", "test.parquet"])
def test_files_that_name_other_classes(tmp_path, name):
    for names, file in ((["a", "b"], "train-1.parquet"), (["b", "a"], name)):
        label = {"_type": "ClassLabel", "names": names}
        write(tmp_path, declared(table(label=[0] * 7), label=label), file)
    assert f"{tmp_path / name} names other classes than" in refusal(find_parquet, [tmp_path])


def test_a_path_that_is_missing_or_no_parquet(tmp_path):
    missing, other = tmp_path / "no.parquet", tmp_path / "text.parquet"
    other.write_text("hello, this is text\n" * 10)
    assert refusal(find_parquet, [missing]) == f"no such file or folder: {missing}"
    assert f"{other}: not readable as Parquet" in refusal(find_parquet, [other])
    (tmp_path / "empty").mkdir()
    assert "no Parquet in" in refusal(find_parquet, [tmp_path / "empty"])
    assert "no training images" in refusal(find_parquet, [])


# Damage


def test_a_file_cut_off(tmp_path):
    file = write(tmp_path, table())
    content = file.read_bytes()
    file.write_bytes(content[: len(content) // 2])
    assert f"{file}: not readable as Parquet" in refusal(find_parquet, [file])


def test_what_pyarrow_says_of_damage_is_shown_in_one_line():
    assert first_line(ValueError("no type: \x0e\nmore")) == "no type: \\x0e"
    assert first_line(ValueError()) == "ValueError"


def test_a_damaged_row_group_is_named_and_the_others_are_read(tmp_path):
    file = write(tmp_path, table([b"x" * 100] * 9, label=[0] * 9), row_group_size=3)
    column = pq.read_metadata(file).row_group(1).column(0)
    content = bytearray(file.read_bytes())
    content[column.dictionary_page_offset : column.data_page_offset] = b"\xff" * (
        column.data_page_offset - column.dictionary_page_offset
    )
    file.write_bytes(content)
    train = find_parquet([file]).train
    assert contents(train, 0, 3) == contents(train, 6, 9) == [b"x" * 100] * 3
    message = refusal(contents, train)
    assert message.startswith(f"{file}, row group 1: not readable as Parquet")


def test_a_file_exchanged_after_it_was_found(tmp_path):
    train = find_parquet([write(tmp_path, table())]).train
    write(tmp_path, table(IMAGES[:5]))
    assert "has changed since it was looked through" in refusal(contents, train)


@given(data=st.data())
def test_a_damaged_file_is_read_or_refused_but_nothing_else(tmp_path_factory, data):
    file = write(tmp_path_factory.getbasetemp(), table(label=[0] * 7), "damaged.parquet")
    content = bytearray(file.read_bytes())
    length = data.draw(st.sampled_from([len(content)] * 3 + [len(content) * 2 // 3]))
    flips = st.lists(st.tuples(st.integers(0, len(content) - 1), st.integers(1, 255)), max_size=3)
    for position, mask in data.draw(flips, label="flips"):
        content[position] ^= mask
    file.write_bytes(content[:length])
    try:
        train = ParquetImages([file], "damaged")
        items = list(train.read(0, len(train)))
    except InkdropError as error:
        message = str(error)
        assert str(file) in message or "damaged.parquet" in message
        assert "\n" not in message
    else:
        assert len(items) == len(train)


# The real thing


def test_cifar10_is_there_in_full(data_dir):
    found = find_parquet([data_dir / "cifar10"])
    assert found.description == "cifar10: Parquet, 50,000 images, 10,000 test images, 10 classes"
    assert found.train.class_names[:3] == ("airplane", "automobile", "bird")
    assert np.bincount(found.train.labels).tolist() == [5000] * 10
    row = pq.read_table(data_dir / "cifar10" / "test.parquet").slice(7_777, 1).to_pylist()[0]
    (item,) = found.test.read(7_777, 7_778)
    assert item.content == row["img"]["bytes"]
    assert found.test.labels[7_777] == row["label"]
    assert item.place == "test.parquet, row 7777"
    assert Image.open(io.BytesIO(item.content)).size == (32, 32)
