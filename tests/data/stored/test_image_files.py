"""Image files are found wherever they lie, with their parts and classes, and nothing is dropped
without a word."""

import io
import json
import os
import pickle
import shutil
import subprocess
import sys
import tarfile
import zipfile
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from inkdrop.data.stored import image_files
from inkdrop.data.stored.collection import Found
from inkdrop.data.stored.image_files import find_images, image_extensions, looks_like_an_image
from inkdrop.data.stored.trees import open_tree
from inkdrop.errors import InkdropError

KINDS = ["folder", "zip", "tar", "tar.gz"]


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch) -> Path:
    monkeypatch.setenv("INKDROP_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


def encoded(kind: str) -> bytes:
    file = io.BytesIO()
    Image.new("RGB", (20, 20)).save(file, kind)
    return file.getvalue()


PNG = encoded("PNG")


def write(path: Path, kind: str, files: Mapping[str, bytes]) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    if kind == "folder":
        for name, content in files.items():
            (path / name).parent.mkdir(parents=True, exist_ok=True)
            (path / name).write_bytes(content)
    elif kind == "zip":
        with zipfile.ZipFile(path, "w") as archive:
            for name, content in files.items():
                archive.writestr(name, content)
    else:
        with tarfile.open(path, "w:gz" if kind == "tar.gz" else "w") as archive:
            for name, content in files.items():
                member = tarfile.TarInfo(name)
                member.size = len(content)
                archive.addfile(member, io.BytesIO(content))
    return path


def images(*names: str) -> dict[str, bytes]:
    return dict.fromkeys(names, PNG)


def find(*paths: Path) -> Found:
    found = find_images([open_tree(path) for path in paths])
    assert found is not None
    return found


def find_in(folder: Path, *names: str) -> Found:
    return find(write(folder / "photos", "folder", images(*names)))


def places(collection) -> list[str]:
    return [item.place for item in collection.read(0, len(collection))]


def refusal(*paths: Path) -> str:
    with pytest.raises(InkdropError) as error:
        find(*paths)
    assert "\n" not in str(error.value)
    return str(error.value)


# Which files are images


def test_images_are_told_by_their_extension_in_any_case(tmp_path):
    found = find_in(tmp_path, "a.PNG", "b.jpg", "c.JPeG", "d.webp", "e.bmp", "f.gif", "g.tif")
    assert len(found.train) == 7
    assert found.train.notes == ()
    assert found.test is None
    assert {".ppm", ".pgm", ".tiff", ".jfif"} <= image_extensions()
    assert not {".pdf", ".mpg", ".eps", ".ps", ".wmf", ".h5"} & image_extensions()


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "GIF", "BMP", "TIFF", "WEBP", "PPM", "JPEG2000"])
def test_images_without_an_extension_are_told_by_their_content(tmp_path, kind):
    content = encoded(kind)
    assert looks_like_an_image(content[:32])
    found = find(write(tmp_path / "x", "folder", {"a": content, "b.dat": content}))
    assert places(found.train) == ["a", "b.dat"]


@pytest.mark.parametrize("start", [b"", b"BM", b"P1", b"PK\3\4", b"%PDF-1.7", b"RIFF1234WAVE"])
def test_what_does_not_look_like_an_image(start):
    assert not looks_like_an_image(start + bytes(10))


@pytest.mark.parametrize("kind", KINDS)
def test_other_files_are_counted_and_named(tmp_path, kind):
    files = images("1.png", ".hidden/2.png", "._1.png", "__MACOSX/1.png") | {
        "notes.txt": b"",
        "a.json": b"{}",
        "data.bin": bytes(100),
        "film.mp4": b"",
        "Thumbs.db": b"",
    }
    train = find(write(tmp_path / "x", kind, files)).train
    assert places(train) == ["1.png"]
    litter, others, *_ = [note for note in train.notes if "unpacked" not in note]
    assert litter.startswith("left out, as hidden or the system's own: 4 files (")
    assert others == "left out, as no images: 4 files (a.json, data.bin, film.mp4, …)"


def test_an_empty_file_is_an_image_if_its_name_says_so(tmp_path):
    train = find(write(tmp_path / "x", "folder", {"a.png": b"", "b": b""})).train
    assert [(item.place, item.content) for item in train.read(0, 1)] == [("a.png", b"")]
    assert train.notes == ("left out, as no images: 1 file (b)",)


@pytest.mark.parametrize("kind", ["folder", "zip"])
def test_no_images_at_all(tmp_path, kind):
    assert find_images([open_tree(write(tmp_path / "x", kind, {"a.txt": b"hello"}))]) is None


def test_no_trees_at_all():
    assert find_images([]) is None


# Reading


def test_images_come_in_order_with_their_bytes(tmp_path):
    files = {f"{i}.png": PNG + bytes([i]) for i in range(12)}
    train = find(write(tmp_path / "x", "zip", files)).train
    assert [item.content for item in train.read(0, 12)] == list(files.values())
    assert [item.place for item in train.read(9, 11)] == ["9.png", "10.png"]
    assert (train.name, train.kind) == ("x", "a zip of images")
    assert (train.block, train.sequential) == (1, False)


def test_an_unreadable_image_comes_with_its_fault(tmp_path):
    path = write(tmp_path / "x", "zip", {"1.png": b"first", "2.png": b"second", "3.png": b"third"})
    path.write_bytes(path.read_bytes().replace(b"second", b"broken"))
    items = list(find(path).train.read(0, 3))
    assert [item.content for item in items] == [b"first", None, b"third"]
    assert items[1].fault == "damaged in the zip: Bad CRC-32 for file '2.png'"


def test_places_name_the_archive_only_where_there_are_several(tmp_path):
    a = write(tmp_path / "a.zip", "zip", images("1.png", "2.png"))
    b = write(tmp_path / "b", "folder", images("1.png"))
    found = find(a, b)
    assert places(found.train) == ["a.zip/1.png", "a.zip/2.png", "b/1.png"]
    assert (found.train.name, found.train.kind) == (
        "a.zip and 1 more",
        "1 folder and 1 zip of images",
    )
    assert places(find(a).train) == ["1.png", "2.png"]


def test_a_tree_given_twice_is_named(tmp_path):
    path = write(tmp_path / "a.zip", "zip", images("1.png"))
    assert refusal(path, path) == f"{path} is given 2 times: give it once"


@pytest.mark.parametrize("kind", KINDS)
def test_a_pickled_collection_is_read_in_a_process_that_has_no_torch(tmp_path, kind):
    names = [f"{part}/{c}/{i}.png" for part in ("train", "test") for c in "ab" for i in range(20)]
    test = find(write(tmp_path / "x", kind, images(*names))).test
    program = (
        "import pickle, sys; c = pickle.load(sys.stdin.buffer); items = list(c.read(0, len(c))); "
        "assert 'torch' not in sys.modules; "
        "pickle.dump((items, c.labels, c.name, c.kind, c.identity()), sys.stdout.buffer)"
    )
    pickled = pickle.dumps(test)
    assert len(pickled) < 1000
    done = subprocess.run([sys.executable, "-c", program], input=pickled, capture_output=True)
    assert done.returncode == 0, done.stderr.decode()
    items, labels, *facts = pickle.loads(done.stdout)
    assert items == list(test.read(0, len(test)))
    assert len(items) == 40
    assert labels.tolist() == test.labels.tolist() == [0] * 20 + [1] * 20
    assert facts == [test.name, test.kind, test.identity()]


def test_a_process_looks_through_the_same_files_once(tmp_path, monkeypatch):
    train = find_in(tmp_path, "a.png", "b.png").train
    monkeypatch.setattr(image_files, "_sort", None)
    for _ in range(3):
        assert places(pickle.loads(pickle.dumps(train))) == ["a.png", "b.png"]


def test_the_parts_and_the_files_make_the_identity(tmp_path):
    found = find_in(tmp_path, "train/a.png", "test/b.png")
    again = find_in(tmp_path, "train/a.png", "test/b.png")
    assert len({found.train.identity(), found.test.identity(), again.train.identity()}) == 3
    shutil.copytree(tmp_path / "photos", tmp_path / "copy")
    assert find(tmp_path / "copy").train.identity() == again.train.identity()


# Classes


@pytest.mark.parametrize("wrapping", ["", "set/", "my/set/"])
@pytest.mark.parametrize("kind", KINDS)
def test_folders_are_classes_in_any_kind_of_tree(tmp_path, kind, wrapping):
    names = ["class 10/1.png", "class 9/x/2.png", "class 9/1.png", "class 10/2.png"]
    train = find(write(tmp_path / "x", kind, images(*(wrapping + name for name in names)))).train
    assert train.class_names == ("class 9", "class 10")
    assert train.labels.dtype == np.int64
    assert train.labels.tolist() == [0, 0, 1, 1]
    assert places(train)[0] == f"{wrapping}class 9/1.png"


def test_images_in_one_folder_or_in_none_have_no_classes(tmp_path):
    for i, names in enumerate([["a.png", "b.png"], ["x/a.png", "x/b.png"], ["x/y/a.png"]]):
        train = find_in(tmp_path / str(i), *names).train
        assert train.labels is None
        assert (train.class_names, train.notes) == ((), ())


def test_images_beside_the_folders_leave_all_without_labels_and_this_is_said(tmp_path):
    train = find_in(tmp_path, "b/1.png", "a/1.png", "logo.png").train
    assert train.labels is None
    (note,) = train.notes
    assert note == "no labels, for beside 2 folders (a, b) there lie 1 image (logo.png)"


def test_several_trees_are_one_set(tmp_path):
    a = write(tmp_path / "1.zip", "zip", images("cats/1.png", "dogs/1.png"))
    b = write(tmp_path / "2.zip", "zip", images("dogs/2.png", "eels/2.png"))
    train = find(a, b).train
    assert train.class_names == ("cats", "dogs", "eels")
    assert train.labels.tolist() == [0, 1, 1, 2]


# Parts


@pytest.mark.parametrize(
    ("train", "test"), [("train", "test"), ("Training", "VAL"), ("TRAIN", "validation")]
)
def test_folders_called_train_and_test_are_the_parts(tmp_path, train, test):
    found = find_in(tmp_path, f"x/{train}/a/1.png", f"x/{train}/b/1.png", f"x/{test}/b/2.png")
    assert places(found.train) == [f"x/{train}/a/1.png", f"x/{train}/b/1.png"]
    assert places(found.test) == [f"x/{test}/b/2.png"]
    assert found.train.class_names == found.test.class_names == ("a", "b")
    assert found.train.labels.tolist() == [0, 1]
    assert found.test.labels.tolist() == [1]
    assert (found.train.name, found.test.name) == ("photos", "photos (test)")
    assert any("taken as test" in note for note in found.train.notes) == (test != "test")
    assert found.description == "photos: a folder of images, 2 images, 1 test image, 2 classes"


def test_with_test_and_validation_images_the_latter_are_not_used_and_this_is_said(tmp_path):
    found = find_in(tmp_path, "train/1.png", "test/1.png", "val/1.png", "val/2.png")
    assert places(found.test) == ["test/1.png"]
    assert found.train.notes == (
        "not used, for there are test images: the validation set, 2 images (val/1.png, val/2.png)",
    )


def test_images_in_neither_part_are_left_out_and_this_is_said(tmp_path):
    found = find_in(tmp_path, "train/1.png", "test/1.png", "logo.png", "extra/2.png")
    assert (len(found.train), len(found.test)) == (1, 1)
    assert found.train.notes == (
        "left out, as neither in the training nor in the test set: 2 images "
        "(extra/2.png, logo.png)",
    )


def test_a_class_called_train_is_no_part(tmp_path):
    found = find_in(tmp_path, "bus/1.png", "train/1.png", "tram/1.png")
    assert found.test is None
    assert found.train.class_names == ("bus", "train", "tram")


def test_a_class_of_the_test_images_that_the_training_images_lack(tmp_path):
    names = ["train/cat/1.png", "train/dog/1.png", "test/cow/1.png"]
    message = refusal(write(tmp_path / "x", "folder", images(*names)))
    assert message == (
        "x: the test images have 1 class (cow) which the training images lack: those have "
        "2 classes (cat, dog)"
    )


def test_test_images_outside_class_folders_have_no_labels_and_this_is_said(tmp_path):
    found = find_in(tmp_path, "train/cat/1.png", "train/dog/1.png", "test/1.png")
    assert found.train.labels.tolist() == [0, 1]
    assert found.test.labels is None
    assert found.test.notes == ("no labels, for these images do not lie in class folders",)


def test_archives_called_train_and_test_are_the_parts(tmp_path):
    train = write(tmp_path / "train.zip", "zip", images("train/a/1.png", "train/b/1.png"))
    test = write(tmp_path / "test.tar", "tar", images("b/2.png"))
    found = find(test, train)
    assert places(found.train) == ["train.zip/train/a/1.png", "train.zip/train/b/1.png"]
    assert found.test.labels.tolist() == [1]
    assert (found.train.kind, found.test.kind) == ("a zip of images", "a tar of images")


# WebDataset shards


def shard(path: Path, first: int, labels: list, beside: str = "cls", image: str = "png") -> Path:
    files = {}
    for i, label in enumerate(labels, start=first):
        files[f"{i:06d}.{image}"] = PNG + bytes([i])
        if label is not None:
            files[f"{i:06d}.{beside}"] = label if isinstance(label, bytes) else str(label).encode()
    return write(path, "tar", files)


def test_shards_are_a_set_with_labels(tmp_path):
    for i in range(3):
        shard(tmp_path / "x" / f"{i}.tar", 2 * i, [i, "5\n"])
    (tmp_path / "x" / "sizes.json").write_text("{}")
    train = find(tmp_path / "x").train
    assert train.kind == "WebDataset shards (3 tars)"
    assert train.labels.tolist() == [0, 5, 1, 5, 2, 5]
    assert (train.name, train.class_names) == ("x", ())
    assert train.notes == ("left out, as no tars: 1 file (sizes.json)",)
    assert [item.content[-1] for item in train.read(0, 6)] == list(range(6))
    assert places(train)[:3] == ["0.tar/000000.png", "0.tar/000001.png", "1.tar/000002.png"]
    listed = find(*(tmp_path / "x" / f"{i}.tar" for i in range(3))).train
    assert listed.labels.tolist() == train.labels.tolist()


def test_one_shard_is_a_set(tmp_path):
    train = find(shard(tmp_path / "a.tar", 0, [3, 1])).train
    assert (train.kind, train.labels.tolist()) == ("WebDataset shards (1 tar)", [3, 1])
    assert places(train) == ["000000.png", "000001.png"]


def test_labels_that_are_names_are_classes(tmp_path):
    train = find(shard(tmp_path / "a.tar", 0, ["dog", "cat", "dog"])).train
    assert (train.class_names, train.labels.tolist()) == (("cat", "dog"), [1, 0, 1])


@pytest.mark.parametrize("key", ["label", "class", "cls"])
def test_labels_are_read_from_json(tmp_path, key):
    labels = [json.dumps({"caption": "x", key: i}) for i in (4, 2)]
    assert find(shard(tmp_path / "a.tar", 0, labels, "json")).train.labels.tolist() == [4, 2]


def test_json_and_texts_without_labels_are_no_labels_and_this_is_said(tmp_path):
    train = find(shard(tmp_path / "a.tar", 0, ["{}", '{"url": 1}', "[]"], "json")).train
    assert train.labels is None
    assert train.kind == "WebDataset shards (1 tar)"
    (note,) = train.notes
    assert note.startswith("no labels, for there are none in 3 files (000000.json")
    train = find(shard(tmp_path / "b.tar", 0, ["a cat", "a dog"], "txt")).train
    assert train.labels is None
    assert train.notes == ("left out, as no images: 2 files (000000.txt, 000001.txt)",)


def test_the_first_sample_without_a_label_is_named(tmp_path):
    message = refusal(shard(tmp_path / "a.tar", 0, [1, None, None]))
    assert message == (
        f"{tmp_path / 'a.tar'}, 000001.png has no label, but {tmp_path / 'a.tar'}, 000000.cls has: "
        "give labels to all images or to none"
    )


@pytest.mark.parametrize(
    ("beside", "label", "fault"),
    [
        ("cls", b"\xff\xfe", "the label is no text"),
        ("cls", "", "the label '' is neither a number from 0 to 1,048,575 nor a name"),
        ("cls", "99999999999", "the label 99999999999 is neither"),
        ("cls", b"x" * 2_000_000, "too long for a label"),
        ("json", '{"label": -1}', "the label -1 is neither"),
        ("json", '{"label": true}', "the label True is neither"),
        ("json", '{"label": 1.5}', "the label 1.5 is neither"),
        ("json", "{", "this is no JSON"),
        ("json", "[" * 100_000, "this is no JSON"),
    ],
    ids=range(9),
)
def test_a_label_that_is_none_is_named(tmp_path, beside, label, fault):
    message = refusal(shard(tmp_path / "a.tar", 0, [label], beside))
    assert f"a.tar, 000000.{beside}: " in message
    assert fault in message


def test_labels_that_are_numbers_and_names_are_named(tmp_path):
    message = refusal(shard(tmp_path / "a.tar", 0, [1, "cat"]))
    assert "000000.cls is a number, but in " in message


def test_a_sample_of_several_images_is_named(tmp_path):
    files = images("a/1.left.png", "a/1.right.png", "b/1.png") | {"a/1.cls": b"1", "b/1.cls": b"1"}
    message = refusal(write(tmp_path / "a.tar", "tar", files))
    assert "the sample a/1 has several images, a/1.left.png and a/1.right.png" in message


def test_shards_are_split_by_words_in_their_names(tmp_path):
    for i, name in enumerate(["set-train-00.tar", "set-train-01.tar", "set-test-00.tar"]):
        shard(tmp_path / "x" / name, i, [i])
    found = find(tmp_path / "x")
    assert (found.train.labels.tolist(), found.test.labels.tolist()) == ([0, 1], [2])
    assert found.test.kind == "WebDataset shards (1 tar)"


def test_shards_are_split_by_the_folders_they_lie_in(tmp_path):
    for i, name in enumerate(["train/0.tar", "train/1.tar", "val/0.tar"]):
        shard(tmp_path / "x" / name, i, [i])
    found = find(tmp_path / "x")
    assert (found.train.labels.tolist(), found.test.labels.tolist()) == ([0, 1], [2])
    assert places(found.train) == ["train/0.tar/000000.png", "train/1.tar/000001.png"]
    assert places(found.test) == ["val/0.tar/000002.png"]


def test_no_word_is_seen_within_another(tmp_path):
    for i, name in enumerate(["contest-0.tar", "strain-0.tar"]):
        shard(tmp_path / "x" / name, i, [i])
    assert find(tmp_path / "x").test is None


def test_a_tar_with_class_folders_and_a_readme_is_not_shards(tmp_path):
    files = images("a/1.png", "b/1.png", "b/readme.png") | {"b/readme.txt": b"hello"}
    train = find(write(tmp_path / "a.tar", "tar", files)).train
    assert (train.kind, train.class_names) == ("a tar of images", ("a", "b"))


def test_a_folder_of_plain_tars_is_a_set(tmp_path):
    for name in ("1.tar", "2.tar"):
        write(tmp_path / "x" / name, "tar", images("a.png"))
    assert find(tmp_path / "x").train.kind == "2 tars of images"


def test_shards_that_are_one_file_of_many_names_are_each_read(tmp_path):
    shard(tmp_path / "x" / "0.tar", 0, [1, 2])
    for i in range(1, 50):
        os.link(tmp_path / "x" / "0.tar", tmp_path / "x" / f"{i}.tar")
    train = find(tmp_path / "x").train
    assert train.labels.tolist() == [1, 2] * 50
    assert len({item.content for item in train.read(0, 100)}) == 2
    pickled = pickle.dumps(train)
    assert len(pickled) < 20_000
    assert places(pickle.loads(pickled)) == places(train)


# The real thing


def test_the_emoji_are_a_set_packed_or_not(data_dir, tmp_path):
    packed = data_dir / "emoji" / "noto-emoji-32.zip"
    shutil.unpack_archive(packed, tmp_path / "unpacked")
    a, b = find(packed).train, find(tmp_path / "unpacked").train
    assert len(a) == len(b) == 3583
    assert list(a.read(0, len(a))) == list(b.read(0, len(b)))
    assert a.labels is b.labels is None
    assert a.notes == b.notes == ()
    assert find(packed).description == (
        "noto-emoji-32.zip: a zip of images, 3,583 images, no labels"
    )
