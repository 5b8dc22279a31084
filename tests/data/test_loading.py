"""From what a person has to examples: found, checked, made one size, and nothing without a word."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from rich.console import Console
from stored_images import Encoded, encoded

from inkdrop.config import DataConfig
from inkdrop.data import loading
from inkdrop.data.images import ImageSet, Source
from inkdrop.data.loading import Loaded, load_data, load_own, load_source, look
from inkdrop.data.mapped import MappedImages
from inkdrop.data.points import PointSet
from inkdrop.data.stored.collection import Found
from inkdrop.data.streaming import StreamedImages
from inkdrop.errors import InkdropError

COLOURS = np.random.default_rng(1).integers(0, 256, (12, 5, 6, 3), dtype=np.uint8)
LABELS = [i // 6 for i in range(12)]


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.delenv("INKDROP_DATA", raising=False)
    monkeypatch.setenv("INKDROP_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    """COLOURS in two folders, which are their classes."""
    for i, pixels in enumerate(COLOURS):
        folder = tmp_path / "photos" / ("cats", "dogs")[LABELS[i]]
        folder.mkdir(parents=True, exist_ok=True)
        Image.fromarray(pixels).save(folder / f"{i:02}.png")
    return tmp_path / "photos"


def load(*path: Path, console: Console | None = None, **settings: Any) -> Loaded:
    return load_source(asked(*path, **settings), console)


def asked(*path: Path, **settings: Any) -> DataConfig:
    return DataConfig(source="files", path=tuple(map(str, path)), **settings)


def own(given: object, **settings: Any) -> Loaded:
    return load_own(given, DataConfig(source="own", **settings))


@pytest.fixture
def console() -> Console:
    return Console(record=True, width=20, force_terminal=False)


def channels_first(images: np.ndarray) -> torch.Tensor:
    return torch.from_numpy(images.transpose(0, 3, 1, 2).copy())


def test_a_folder_becomes_its_images_their_labels_and_names(photos: Path) -> None:
    loaded = load(photos)
    train = loaded.source.train
    assert isinstance(train, MappedImages)
    assert torch.equal(train.values, channels_first(COLOURS))
    assert train.labels is not None
    assert train.labels.tolist() == LABELS
    assert train.classes == 2
    assert loaded.source.test is None
    assert loaded.origin == str(photos)
    assert loaded.check is not None
    assert loaded.check.train.count == 12


def test_the_same_images_are_the_same_data_however_they_are_stored_or_kept(
    photos: Path, tmp_path: Path
) -> None:
    np.savez(tmp_path / "photos.npz", images=COLOURS, labels=np.array(LABELS))
    pairs = list(zip(COLOURS, LABELS, strict=True))
    labelled = ImageSet(channels_first(COLOURS), torch.tensor(LABELS), "mine")
    every = [load(photos), load(tmp_path / "photos.npz"), own(labelled), own(pairs)]
    every.append(load(tmp_path / "photos.npz", memory="mapped"))
    assert len({loaded.source.train.fingerprint for loaded in every}) == 1


def test_pixels_of_one_size_stay_in_memory_unless_they_are_to_be_mapped(tmp_path: Path) -> None:
    np.save(tmp_path / "images.npy", COLOURS)
    assert isinstance(load(tmp_path / "images.npy").source.train, ImageSet)
    for how in ({"memory": "mapped"}, {"size": (4,)}, {"channels": 1}):
        assert isinstance(load(tmp_path / "images.npy", **how).source.train, MappedImages)


def test_decoded_images_are_found_again_where_a_folder_moved(
    photos: Path, console: Console
) -> None:
    load(photos)
    moved = photos.rename(photos.with_name("elsewhere"))
    load(moved, console=console)
    assert "decoding" not in console.export_text()


def test_test_images_are_made_as_the_training_images_are(tmp_path: Path) -> None:
    for part, size in (("train", 8), ("test", 20)):
        for name in ("a", "b"):
            (tmp_path / "set" / part / name).mkdir(parents=True)
            for i in range(3):
                Image.new("RGB", (size, size), (i * 50, 9, 7)).save(
                    tmp_path / "set" / part / name / f"{i}.png"
                )
    source = load(tmp_path / "set").source
    assert source.test is not None
    assert source.train.shape == source.test.shape == (3, 8, 8)
    assert (len(source.train), len(source.test)) == (6, 6)


# What is said


def test_the_first_line_says_what_was_recognised_and_then_what_is_done(
    photos: Path, console: Console
) -> None:
    (photos / "notes.txt").write_text("to do")
    load(photos, console=console, size=(4,))
    first, note, done, *_ = console.export_text().splitlines()
    assert first == "photos: a folder of images, 12 images, 2 classes"
    assert "notes.txt" in note
    assert done == "  size 4×4, as asked; other shapes cropped to their middle; colour"


def test_every_conversion_is_said(tmp_path: Path, console: Console) -> None:
    picture = Image.fromarray(COLOURS[0])
    turned = Image.Exif()
    turned[0x112] = 6
    (tmp_path / "odd").mkdir()
    picture.save(tmp_path / "odd/turned.png", exif=turned)
    picture.quantize(4).save(tmp_path / "odd/palette.png")
    picture.convert("CMYK").save(tmp_path / "odd/print.jpg")
    Image.fromarray(COLOURS[0][..., 0].astype(np.uint16) * 257).save(tmp_path / "odd/deep.png")
    picture.save(
        tmp_path / "odd/moving.gif", save_all=True, append_images=[Image.fromarray(COLOURS[1])]
    )
    (tmp_path / "odd/empty.png").write_bytes(b"")
    load(tmp_path / "odd", console=console, bad_images="skip")
    text = console.export_text()
    for words in ("1 left out", "1 turned", "1 of several", "1 for print", "1 of 16 bits"):
        assert words in text
    assert "2 with a palette" in text  # a GIF has one too


def test_points_of_a_file_are_said_and_a_scale_that_is_hard_to_learn(
    tmp_path: Path, console: Console
) -> None:
    np.save(tmp_path / "far.npy", np.random.default_rng(0).normal(size=(50, 2)) * 100)
    loaded = load(tmp_path / "far.npy", console=console)
    assert isinstance(loaded.source.train, PointSet)
    first, second = console.export_text().splitlines()
    assert first == "far.npy: 50 points, 2 dimensions, no labels"
    assert "networks learn best near 1" in second


# What is refused


def test_bad_images_stop_it_and_the_first_is_named(photos: Path, console: Console) -> None:
    (photos / "cats/empty.png").write_bytes(b"")
    (photos / "dogs/text.png").write_text("no image")
    with pytest.raises(InkdropError, match=r"2 of 14 images cannot be used.*cats/empty\.png") as e:
        load(photos, console=console)
    assert "\n" not in str(e.value)
    assert "dogs/text.png" in console.export_text()


@pytest.mark.parametrize("streaming", [False, True])
def test_bad_images_are_left_out_and_known(photos: Path, streaming: bool) -> None:
    (photos / "cats/000-empty.png").write_bytes(b"")
    loaded = load(photos, bad_images="skip", streaming=streaming)
    assert torch.equal(loaded.source.train.values, channels_first(COLOURS))
    assert loaded.source.train.labels is not None
    assert loaded.source.train.labels.tolist() == LABELS
    assert loaded.check is not None
    assert [bad.place for bad in loaded.check.bad] == ["cats/000-empty.png"]


def test_a_wrong_background_is_told_before_any_image_is_looked_at(
    photos: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(loading, "check", None)
    with pytest.raises(InkdropError, match="unknown colour 'nocolour'"):
        load(photos, background="nocolour")


def test_points_and_the_digits_are_not_for_checking(tmp_path: Path) -> None:
    np.save(tmp_path / "points.npy", np.zeros((5, 2)))
    with pytest.raises(InkdropError, match=r"points\.npy.*with a preset such as points-gmm"):
        look(asked(tmp_path / "points.npy"))
    with pytest.raises(InkdropError, match=r"digits: images of 8×8, 1 channel need no check$"):
        look(DataConfig(source="digits"))


# Looking


def test_looking_tells_the_shape_and_the_count_without_decoding(photos: Path, cache: Path) -> None:
    (photos / "cats/empty.png").write_bytes(b"")
    seen = look(asked(photos, bad_images="skip", size=(4, 3)))
    assert seen.shape == (3, 4, 3)
    assert seen.train_count == 12
    assert not (cache / "images").exists()


# Streaming


def test_streamed_images_are_those_of_the_cache_and_keep_nothing(photos: Path, cache: Path) -> None:
    streamed = load(photos, streaming=True, size=(4,), fit="random-crop").source.train
    assert isinstance(streamed, StreamedImages)
    assert not (cache / "images").exists()
    kept = load(photos, size=(4,), fit="random-crop").source.train
    assert torch.equal(streamed.values, kept.values)
    assert (
        streamed.fingerprint
        == load(photos, streaming=True, size=(4,), fit="random-crop").source.train.fingerprint
        != load(photos, streaming=True).source.train.fingerprint
    )


def test_only_the_first_of_a_sequential_stream_are_checked(
    monkeypatch: pytest.MonkeyPatch, console: Console
) -> None:
    good = encoded(Image.fromarray(COLOURS[0]))
    stream = Encoded([good] * 256 + [b""] * 4, [0] * 260, "stream")
    stream.sequential = True
    monkeypatch.setattr(loading, "find", lambda data: Found(stream, None))
    loaded = load_source(DataConfig(source="files", path=("x",), streaming=True), console)
    assert loaded.check is not None
    assert loaded.check.train.count == 256
    assert len(loaded.source.train) == 260
    assert "first 256 images" in console.export_text()


# What is in Python


def test_arrays_and_tensors_in_any_order_of_axes() -> None:
    expected = channels_first(COLOURS)
    for given in (
        COLOURS,
        COLOURS.transpose(0, 3, 1, 2),
        expected,
        torch.from_numpy(COLOURS),
        (COLOURS / 255).astype(np.float32),
        [Image.fromarray(pixels) for pixels in COLOURS],
    ):
        assert torch.equal(own(given).source.train.values, expected)
    assert own(COLOURS[..., 0]).source.train.shape == (1, 5, 6)


def test_a_source_and_examples_are_taken_as_they_are() -> None:
    images = ImageSet(channels_first(COLOURS), None, "mine")
    source = Source(images, images)
    assert own(source).source is source
    assert own(images).source == Source(images, None)
    assert own(images).origin == "memory"


def test_an_array_of_two_axes_is_points() -> None:
    points = np.random.default_rng(0).normal(size=(20, 3))
    for given in (points, torch.from_numpy(points)):
        train = own(given).source.train
        assert isinstance(train, PointSet)
        assert torch.equal(train.points, torch.from_numpy(points).float())


class Squares(torch.utils.data.Dataset):  # type: ignore[type-arg]
    """A map-style data set of floats with labels."""

    def __len__(self) -> int:
        return len(COLOURS)

    def __getitem__(self, index: int) -> tuple[torch.Tensor, int]:
        if index >= len(COLOURS):
            raise IndexError
        return channels_first(COLOURS)[index].float() / 255, LABELS[index]


def test_a_data_set_of_torch_with_labels() -> None:
    train = own(Squares()).source.train
    assert torch.equal(train.values, channels_first(COLOURS))
    assert train.labels is not None
    assert train.labels.tolist() == LABELS


@pytest.mark.parametrize("given", [7, object(), iter([])], ids=["int", "object", "iterator"])
def test_what_is_no_set_is_refused(given: object) -> None:
    with pytest.raises(InkdropError, match=f"got {type(given).__name__}$"):
        own(given)


def test_a_pair_of_images_and_labels_is_a_labelled_set() -> None:
    images = torch.arange(2 * 12, dtype=torch.uint8).reshape(2, 1, 3, 4)
    for labels in (torch.tensor([4, 1]), np.array([4, 1])):  # 4 columns are not 4 channels
        loaded = load_own((images, labels), DataConfig())
        assert torch.equal(loaded.source.train.values, images)
        assert loaded.source.train.labels.tolist() == [4, 1]
    points = load_own((torch.randn(5, 2), torch.arange(5)), DataConfig()).source.train
    assert points.labels.tolist() == [0, 1, 2, 3, 4]


def test_data_is_loaded_by_its_name_or_path(photos: Path) -> None:
    assert len(load_data("digits").train) == 1797
    assert load_data(str(photos), size=8).train.shape[1:] == (8, 8)
    with pytest.raises(InkdropError, match="unknown field 'sise'"):
        load_data(str(photos), sise=(8,))
