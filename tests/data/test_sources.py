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
from inkdrop.data import sources
from inkdrop.data.images import ImageSet
from inkdrop.data.points import POINTS, draw
from inkdrop.data.sources import SOURCES, load_source, origin
from inkdrop.errors import InkdropError


@pytest.fixture(autouse=True)
def no_data_of_ones_own(monkeypatch):
    monkeypatch.delenv("INKDROP_DATA", raising=False)


@pytest.fixture
def hub_calls(monkeypatch) -> list[tuple[str, str]]:
    """What is asked of the hub, which answers with one grey image."""
    calls = []

    def load_hub(reference: str, split: str) -> ImageSet:
        calls.append((reference, split))
        return ImageSet(torch.zeros(1, 1, 4, 4, dtype=torch.uint8), None, split)

    monkeypatch.setattr(sources, "load_hub", load_hub)
    return calls


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


def refusal(source: str, *path: object) -> str:
    """The message with which the path is refused; it is one line."""
    with pytest.raises(InkdropError) as error:
        load_source(source, [str(part) for part in path])
    assert "\n" not in str(error.value)
    return str(error.value)


def test_every_source_is_a_choice_of_the_configuration_and_no_other():
    assert tuple(SOURCES) == config.SOURCES
    with pytest.raises(InkdropError, match=f"choose from {', '.join(SOURCES)}, own"):
        config.DataConfig(source="no such source")


def test_images_of_ones_own_have_to_be_passed():
    assert "pass them: train(config, source=" in refusal("own")


def test_an_unknown_source_is_told_the_nearest():
    message = refusal("minst")
    assert "did you mean 'mnist'? choose from digits, mnist, cifar10" in message


# Digits


def test_the_digits_are_those_of_scikit_learn():
    source = load_source("digits")
    assert source.test is None
    assert source.train.images.shape == (1797, 1, 8, 8)
    assert source.train.labels.tolist() == load_digits().target.tolist()
    assert source.train.classes == 10


def test_the_digits_levels_are_spread_over_the_whole_range():
    images = load_source("digits").train.images
    levels = [0, 16, 32, 48, 64, 80, 96, 112, 128, 143, 159, 175, 191, 207, 223, 239, 255]
    assert images.unique().tolist() == levels
    original = torch.from_numpy(load_digits().images).long()
    assert torch.equal(images[:, 0].long(), torch.tensor(levels)[original])


def test_the_digits_are_the_same_everywhere():
    known = "706d16867f1e6e6f6d7913defdca282aafab2abc4bb00f40864d837e27a6bd2b"
    assert load_source("digits").train.fingerprint == known


def test_the_digits_take_no_path(tmp_path):
    assert f"digits takes no path, got {tmp_path}" in refusal("digits", tmp_path)


# Points in the plane


@pytest.mark.parametrize("name", POINTS)
def test_points_are_drawn_for_training_and_testing(name):
    source = load_source(name)
    assert (len(source.train), len(source.test)) == (50_000, 10_000)
    assert source.train.shape == source.test.shape == (2,)
    assert source.train.fingerprint == load_source(name).train.fingerprint
    drawn = torch.cat([source.train.points, source.test.points, draw(name, 10_000)])
    # In float32 a few of 70,000 points coincide by chance; two draws from one address all would.
    assert len(drawn.unique(dim=0)) > 69_900


def test_points_take_no_path(tmp_path):
    assert f"points-rings takes no path, got {tmp_path}" in refusal("points-rings", tmp_path)


def test_points_come_from_a_formula():
    assert origin("points-gmm") == "its formula"


# MNIST


def test_mnist_from_a_folder_from_files_in_any_order_and_from_a_single_string(tmp_path):
    write_idx(tmp_path)
    files = sorted(str(file) for file in tmp_path.iterdir())
    folder = load_source("mnist", [str(tmp_path)])
    assert (len(folder.train), len(folder.test)) == (3, 2)
    for other in (files, files[::-1], str(tmp_path)):
        assert load_source("mnist", other).train.fingerprint == folder.train.fingerprint


@pytest.mark.parametrize("place", [".", "mnist/train-00000-of-00002.parquet"])
def test_mnist_from_parquet_in_the_layout_of_the_hub(tmp_path, place):
    write_parquet(tmp_path / "mnist/train-00001-of-00002.parquet", range(3, 5))
    write_parquet(tmp_path / "mnist/train-00000-of-00002.parquet", range(3))
    write_parquet(tmp_path / "mnist/test-00000-of-00001.parquet", range(5, 9))
    source = load_source("mnist", [str(tmp_path / place)])
    if place == ".":
        assert source.train.labels.tolist() == source.train.images[:, 0, 0, 0].tolist()
        assert source.train.labels.tolist() == [0, 1, 2, 3, 4]
        assert source.test.labels.tolist() == [5, 6, 7, 8]
    else:
        assert source.train.labels.tolist() == [0, 1, 2]
        assert source.test is None


def test_mnist_from_idx_and_parquet_at_once(tmp_path):
    write_idx(tmp_path)
    write_parquet(tmp_path / "train.parquet", range(3))
    assert "give the files of one kind" in refusal("mnist", tmp_path)


def test_mnist_from_an_empty_folder_or_a_missing_one(tmp_path):
    assert "expected train-images-idx3-ubyte" in refusal("mnist", tmp_path)
    assert f"no such file or folder: {tmp_path / 'no'}" in refusal("mnist", tmp_path / "no")


def test_a_tilde_is_the_home_folder(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    write_idx(tmp_path / "digits")
    assert len(load_source("mnist", ["~/digits"]).train) == 3


def test_paths_that_the_system_will_not_take():
    assert "cannot read" in refusal("mnist", "x" * 5000)
    assert "no home folder for ~nobody-at-all" in refusal("mnist", "~nobody-at-all/mnist")


# CIFAR-10


def test_cifar10_from_files_in_any_order(tmp_path):
    first = write_parquet(tmp_path / "train-0.parquet", range(3), "img")
    second = write_parquet(tmp_path / "train-1.parquet", range(3, 5), "img")
    test = write_parquet(tmp_path / "cifar10_test.parquet", range(5, 9), "img")
    for order in ([first, second, test], [test, second, first], [tmp_path]):
        source = load_source("cifar10", [str(file) for file in order])
        assert source.train.labels.tolist() == [0, 1, 2, 3, 4]
        assert source.test.labels.tolist() == [5, 6, 7, 8]


def test_cifar10_names_decide_and_must_be_clear(tmp_path):
    for name in ("latest.parquet", "train-test.parquet"):
        file = write_parquet(tmp_path / name, range(3))
        assert f"{file}: training or test images?" in refusal("cifar10", file)


def test_cifar10_without_training_images(tmp_path):
    write_parquet(tmp_path / "test.parquet", range(3))
    assert f"no training images in {tmp_path}" in refusal("cifar10", tmp_path)


def test_cifar10_from_what_is_no_parquet(tmp_path):
    assert f"no Parquet in {tmp_path}" in refusal("cifar10", tmp_path)
    (tmp_path / "train.bin").write_bytes(bytes(10))
    assert "no Parquet in" in refusal("cifar10", tmp_path / "train.bin")


def test_a_file_given_twice(tmp_path):
    file = write_parquet(tmp_path / "train.parquet", range(3))
    assert f"{file} is given twice" in refusal("cifar10", file, tmp_path)


def test_training_and_test_images_of_the_real_cifar10(data_dir, tmp_path):
    (tmp_path / "train.parquet").symlink_to(data_dir / "cifar10/test.parquet")
    source = load_source("cifar10", [str(tmp_path)])
    assert source.train.shape == (3, 32, 32)
    assert source.train.classes == 10


# Places of one's own


@pytest.mark.parametrize("source", ["mnist", "cifar10"])
def test_inkdrop_data_is_looked_in_first(tmp_path, monkeypatch, hub_calls, source):
    monkeypatch.setenv("INKDROP_DATA", str(tmp_path))
    write_parquet(tmp_path / source / "train.parquet", range(3))
    assert load_source(source).train.labels.tolist() == [0, 1, 2]
    assert hub_calls == []


def test_a_path_goes_before_inkdrop_data(tmp_path, monkeypatch):
    monkeypatch.setenv("INKDROP_DATA", str(tmp_path / "nowhere"))
    assert len(load_source("mnist", [str(write_idx(tmp_path))]).train) == 3


@pytest.mark.parametrize("source", ["mnist", "cifar10"])
def test_inkdrop_data_without_the_set_is_an_error_that_names_the_path(
    tmp_path, monkeypatch, hub_calls, source
):
    monkeypatch.setenv("INKDROP_DATA", str(tmp_path))
    message = refusal(source)
    assert f"INKDROP_DATA is {tmp_path}, but there is no {tmp_path / source}" in message
    assert hub_calls == []


@pytest.mark.parametrize(
    ("source", "reference"), [("mnist", "ylecun/mnist"), ("cifar10", "uoft-cs/cifar10")]
)
def test_without_a_place_of_its_own_a_set_comes_from_the_hub(
    monkeypatch, hub_calls, source, reference
):
    monkeypatch.setenv("INKDROP_DATA", "")
    assert load_source(source).test.name == "test"
    assert hub_calls == [(reference, "train"), (reference, "test")]


def test_the_origin_of_each_source_is_told(tmp_path, monkeypatch):
    assert origin("digits") == "scikit-learn"
    assert "the hub (ylecun/mnist)" in origin("mnist")
    assert origin("mnist", [str(tmp_path)]) == str(tmp_path)
    (tmp_path / "mnist").mkdir()
    monkeypatch.setenv("INKDROP_DATA", str(tmp_path))
    assert origin("mnist") == str(tmp_path / "mnist")
