"""Each source finds its images where its user says they are."""

import gzip
import io
import struct
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from PIL import Image
from sklearn.datasets import load_digits

from inkdrop import config
from inkdrop.config import DataConfig
from inkdrop.data import sources
from inkdrop.data.images import Source
from inkdrop.data.loading import load_source
from inkdrop.data.points import POINTS, PointSet, draw
from inkdrop.data.sources import find, place_of
from inkdrop.data.stored.collection import Arrays, Found
from inkdrop.errors import InkdropError


@pytest.fixture(autouse=True)
def no_data_of_ones_own(monkeypatch):
    monkeypatch.delenv("INKDROP_DATA", raising=False)


@pytest.fixture
def hub_calls(monkeypatch) -> list[tuple[str, bool]]:
    """What is asked of the hub, which answers with one grey image."""
    calls = []

    def find_hub(reference: str, streaming: bool) -> Found:
        calls.append((reference, streaming))
        return Found(Arrays(np.zeros((1, 4, 4), np.uint8), None, reference, "of the hub"), None)

    monkeypatch.setattr(sources, "find_hub", find_hub)
    return calls


def asked(source: str, *path: object, **settings: object) -> DataConfig:
    return DataConfig(source=source, path=tuple(map(str, path)), **settings)


def load(source: str, *path: object) -> Source:
    return load_source(asked(source, *path)).source


def refusal(source: str, *path: object) -> str:
    """The message with which the path is refused; it is one line."""
    with pytest.raises(InkdropError) as error:
        find(asked(source, *path))
    assert "\n" not in str(error.value)
    return str(error.value)


def write_idx(folder: Path) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    for part, count in (("train", 3), ("t10k", 2)):
        images = struct.pack(">4I", 0x803, count, 4, 4) + bytes(range(count * 16))
        labels = struct.pack(">2I", 0x801, count) + bytes(range(count))
        (folder / f"{part}-images-idx3-ubyte.gz").write_bytes(gzip.compress(images))
        (folder / f"{part}-labels-idx1-ubyte").write_bytes(labels)
    return folder


def write_parquet(file: Path, labels: range, column: str = "image") -> Path:
    """Grey 4x4 images whose pixels all equal their label."""
    file.parent.mkdir(parents=True, exist_ok=True)
    images = []
    for label in labels:
        encoded = io.BytesIO()
        Image.fromarray(np.full((4, 4), label, np.uint8)).save(encoded, format="PNG")
        images.append({"bytes": encoded.getvalue(), "path": f"{label}.png"})
    pq.write_table(pa.table({column: images, "label": list(labels)}), file)
    return file


def test_an_unknown_source_is_refused_by_the_configuration():
    with pytest.raises(InkdropError, match="did you mean 'mnist'"):
        DataConfig(source="minst")
    with pytest.raises(InkdropError, match=f"choose from {', '.join(config.SOURCES)}, own"):
        DataConfig(source="no such source")


def test_images_of_ones_own_have_to_be_passed():
    assert "pass them: train(config, source=" in refusal("own")


def test_files_need_a_path():
    assert "which images? give them: --data PATH" in refusal("files")


def test_an_empty_path_is_not_the_folder_one_is_in():
    assert "a path is empty" in refusal("files", "")
    assert "a path is empty" in refusal("mnist", "photos", "")


def test_a_data_set_nearly_named_is_told():
    assert "did you mean the data set 'cifar10'?" in refusal("files", "cifar-10")


# Digits


def test_the_digits_are_those_of_scikit_learn():
    source = load("digits")
    assert source.test is None
    assert source.train.images.shape == (1797, 1, 8, 8)
    assert source.train.labels.tolist() == load_digits().target.tolist()
    assert source.train.classes == 10


def test_the_digits_levels_are_spread_over_the_whole_range():
    images = load("digits").train.images
    levels = [0, 16, 32, 48, 64, 80, 96, 112, 128, 143, 159, 175, 191, 207, 223, 239, 255]
    assert images.unique().tolist() == levels
    original = torch.from_numpy(load_digits().images).long()
    assert torch.equal(images[:, 0].long(), torch.tensor(levels)[original])


def test_the_digits_are_the_same_everywhere():
    known = "706d16867f1e6e6f6d7913defdca282aafab2abc4bb00f40864d837e27a6bd2b"
    assert load("digits").train.fingerprint == known


def test_the_digits_take_no_path(tmp_path):
    assert f"the digits take no path, got {tmp_path}" in refusal("digits", tmp_path)


# Points in the plane


@pytest.mark.parametrize("name", POINTS)
def test_points_are_drawn_for_training_and_testing(name):
    source = load(name)
    assert (len(source.train), len(source.test)) == (50_000, 10_000)
    assert source.train.shape == source.test.shape == (2,)
    assert source.train.fingerprint == load(name).train.fingerprint
    drawn = torch.cat([source.train.points, source.test.points, draw(name, 10_000)])
    # In float32 a few of 70,000 points coincide by chance; two draws from one address all would.
    assert len(drawn.unique(dim=0)) > 69_900


def test_points_of_a_file_go_before_those_of_the_source(tmp_path):
    (tmp_path / "mine.csv").write_text("x,y\n0,1\n2,3\n")
    found = find(asked("points-rings", tmp_path / "mine.csv"))
    assert isinstance(found, Source)
    assert isinstance(found.train, PointSet)
    assert found.train.points.tolist() == [[0, 1], [2, 3]]
    assert found.test is None


# MNIST


def test_mnist_from_a_folder_and_from_files_in_any_order(tmp_path):
    write_idx(tmp_path)
    files = sorted(tmp_path.iterdir())
    folder = load("mnist", tmp_path)
    assert (len(folder.train), len(folder.test)) == (3, 2)
    assert folder.train.values[1].flatten().tolist() == list(range(16, 32))
    for other in (files, files[::-1]):
        assert load("mnist", *other).train.fingerprint == folder.train.fingerprint


@pytest.mark.parametrize("place", [".", "mnist/train-00000-of-00002.parquet"])
def test_mnist_from_parquet_in_the_layout_of_the_hub(tmp_path, place):
    write_parquet(tmp_path / "mnist/train-00001-of-00002.parquet", range(3, 5))
    write_parquet(tmp_path / "mnist/train-00000-of-00002.parquet", range(3))
    write_parquet(tmp_path / "mnist/test-00000-of-00001.parquet", range(5, 9))
    source = load("mnist", tmp_path / place)
    if place == ".":
        assert source.train.labels.tolist() == source.train.values[:, 0, 0, 0].tolist()
        assert source.train.labels.tolist() == [0, 1, 2, 3, 4]
        assert source.test.labels.tolist() == [5, 6, 7, 8]
    else:
        assert source.train.labels.tolist() == [0, 1, 2]
        assert source.test is None


def test_a_known_set_keeps_its_name_wherever_it_lies(tmp_path):
    assert find(asked("mnist", write_idx(tmp_path))).train.name.startswith("mnist")


def test_a_missing_folder_is_named(tmp_path):
    assert f"no such file or folder: {tmp_path / 'no'}" in refusal("mnist", tmp_path / "no")


def test_a_tilde_is_the_home_folder(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("USERPROFILE", str(tmp_path))
    write_idx(tmp_path / "digits")
    assert len(load("mnist", "~/digits").train) == 3


def test_paths_that_the_system_will_not_take():
    assert "cannot read" in refusal("mnist", "x" * 5000)
    assert "no home folder for ~nobody-at-all" in refusal("mnist", "~nobody-at-all/mnist")


# CIFAR-10


def test_cifar10_from_files_in_any_order(tmp_path):
    first = write_parquet(tmp_path / "train-0.parquet", range(3), "img")
    second = write_parquet(tmp_path / "train-1.parquet", range(3, 5), "img")
    test = write_parquet(tmp_path / "cifar10_test.parquet", range(5, 9), "img")
    for order in ([first, second, test], [test, second, first], [tmp_path]):
        source = load("cifar10", *order)
        assert source.train.labels.tolist() == [0, 1, 2, 3, 4]
        assert source.test.labels.tolist() == [5, 6, 7, 8]


def test_training_and_test_images_of_the_real_cifar10(data_dir, tmp_path):
    (tmp_path / "train.parquet").symlink_to(data_dir / "cifar10/test.parquet")
    found = find(asked("cifar10", tmp_path))
    assert len(found.train.class_names) == 10
    (item,) = found.train.read(0, 1)
    assert isinstance(item.content, bytes)


# Places of one's own


@pytest.mark.parametrize("source", ["mnist", "fashion-mnist", "cifar10"])
def test_inkdrop_data_is_looked_in_first(tmp_path, monkeypatch, hub_calls, source):
    monkeypatch.setenv("INKDROP_DATA", str(tmp_path))
    write_parquet(tmp_path / source / "train.parquet", range(3))
    for data in (asked(source), asked("files", source)):
        assert find(data).train.labels.tolist() == [0, 1, 2]
    assert hub_calls == []


def test_a_path_goes_before_inkdrop_data(tmp_path, monkeypatch):
    monkeypatch.setenv("INKDROP_DATA", str(tmp_path / "nowhere"))
    assert len(load("mnist", write_idx(tmp_path)).train) == 3


@pytest.mark.parametrize("source", ["mnist", "fashion-mnist", "cifar10"])
def test_inkdrop_data_without_the_set_is_an_error_that_names_the_path(
    tmp_path, monkeypatch, hub_calls, source
):
    monkeypatch.setenv("INKDROP_DATA", str(tmp_path))
    message = refusal(source)
    assert f"INKDROP_DATA is {tmp_path}, but there is no {tmp_path / source}" in message
    assert hub_calls == []


@pytest.mark.parametrize(
    ("source", "reference"),
    [
        ("mnist", "ylecun/mnist"),
        ("fashion-mnist", "zalando-datasets/fashion_mnist"),
        ("cifar10", "uoft-cs/cifar10"),
    ],
)
def test_without_a_place_of_its_own_a_set_comes_from_the_hub(
    monkeypatch, hub_calls, source, reference
):
    monkeypatch.setenv("INKDROP_DATA", "")
    for data in (asked(source), asked("files", source), asked("files", f"hf:{reference}")):
        assert find(data).train.name == reference
    assert hub_calls == [(reference, False)] * 3


def test_the_hub_is_told_of_streaming(hub_calls):
    find(asked("files", "hf:a/b:c", streaming=True))
    assert hub_calls == [("a/b:c", True)]


def test_a_set_of_the_hub_has_a_name_and_stands_alone(hub_calls):
    assert "hf: needs the name of a set" in refusal("files", "hf:")
    assert "stands alone, got hf:a/b, photos" in refusal("files", "hf:a/b", "photos")
    assert hub_calls == []


def test_a_folder_goes_before_the_known_set_of_its_name(tmp_path, monkeypatch, hub_calls):
    monkeypatch.chdir(tmp_path)
    write_parquet(Path("mnist/train.parquet"), range(3))
    assert find(asked("files", "mnist")).train.labels.tolist() == [0, 1, 2]
    assert place_of(asked("files", "mnist")) == "mnist"
    assert hub_calls == []


def test_the_place_of_each_source_is_told(tmp_path, monkeypatch):
    assert place_of(asked("digits")) == place_of(asked("files", "digits")) == "scikit-learn"
    assert place_of(asked("points-gmm")) == "its formula"
    assert "the hub (ylecun/mnist)" in place_of(asked("mnist"))
    assert place_of(asked("mnist", tmp_path)) == str(tmp_path)
    (tmp_path / "mnist").mkdir()
    monkeypatch.setenv("INKDROP_DATA", str(tmp_path))
    assert place_of(asked("mnist")) == str(tmp_path / "mnist")
