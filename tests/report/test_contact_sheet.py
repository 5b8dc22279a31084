"""The sheet shows the pixels that are trained on, and what is odd."""

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from inkdrop.data.check import check
from inkdrop.data.stored.collection import Arrays, Found
from inkdrop.data.stored.recognise import recognise
from inkdrop.data.transform import Transform
from inkdrop.report.contact_sheet import contact_sheet

RANDOM = np.random.default_rng(0)


@pytest.fixture(autouse=True)
def _cache(tmp_path, monkeypatch):
    monkeypatch.setenv("INKDROP_CACHE", str(tmp_path / "cache"))


def arrays(count: int, *shape: int, labels: int = 0, names: tuple[str, ...] = ()) -> Arrays:
    pixels = RANDOM.integers(0, 256, (count, *shape), dtype=np.uint8)
    of = np.arange(count) % labels if labels else None
    return Arrays(pixels, of, "set", "an array", class_names=names)


def sheet(collection: Arrays, transform: Transform | None) -> Image.Image:
    found = Found(collection, None)
    return contact_sheet(found, check(found), transform)


def holds(picture: Image.Image, pixels: np.ndarray, factor: int) -> bool:
    """Whether the picture shows an image (H, W, 3), every pixel a square of factor × factor."""
    wanted = pixels.repeat(factor, 0).repeat(factor, 1).astype(np.uint8)
    all_ = np.asarray(picture)
    height, width = wanted.shape[:2]
    rows = all_.shape[0] - height + 1, all_.shape[1] - width + 1
    tops, lefts = np.nonzero((all_[: rows[0], : rows[1]] == wanted[0, 0]).all(axis=2))
    return any(
        np.array_equal(all_[y : y + height, x : x + width], wanted)
        for y, x in zip(tops, lefts, strict=True)
    )


def test_it_shows_the_pixels_that_are_trained_on():
    images = arrays(5, 32, 32, 3)
    picture = sheet(images, Transform(32, 32, 3))
    for image in images.pixels:
        assert holds(picture, image, 4)


def test_grey_images_are_shown_in_grey():
    images = arrays(3, 28, 28)
    picture = sheet(images, Transform(28, 28, 1))
    assert holds(picture, np.stack([images.pixels[2]] * 3, axis=2), 4)


def test_every_class_has_a_row():
    few = sheet(arrays(40, 8, 8, labels=2), Transform(8, 8, 1))
    more = sheet(arrays(40, 8, 8, labels=8), Transform(8, 8, 1))
    assert more.height > few.height + 5 * 128


def test_it_is_spread_over_the_whole_set():
    images = arrays(500, 16, 16, 3)
    picture = sheet(images, Transform(16, 16, 3))
    assert holds(picture, images.pixels[0], 8)
    assert holds(picture, images.pixels[499], 8)


@pytest.mark.parametrize("shape", [(1, 1), (1, 200), (300, 2), (3, 5, 3), (7, 7, 4)])
def test_images_of_any_shape_can_be_shown(shape):
    assert sheet(arrays(3, *shape), None).width > 0
    assert sheet(arrays(3, *shape), Transform(2, 90, 4, "pad")).width > 0


def test_names_in_any_script_are_shown_without_a_warning():
    names = ("$x$", "猫", "a very long name of a class that has no end", "кот")
    assert sheet(arrays(8, 8, 8, labels=4, names=names), None).height > 0


def test_what_is_odd_makes_it_longer(tmp_path: Path):
    folder = tmp_path / "images"
    folder.mkdir()
    for i in range(6):
        pixels = RANDOM.integers(0, 256, (16, 16, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(folder / f"{i}.png")
    transform = Transform(16, 16, 3)
    found = recognise([folder])
    plain = contact_sheet(found, check(found), transform)
    (folder / "6.png").write_bytes((folder / "0.png").read_bytes())
    (folder / "7.png").write_bytes(b"no image")
    Image.new("RGB", (16, 16), (9, 99, 199)).save(folder / "8.png")
    found = recognise([folder])
    known = check(found)
    odd = contact_sheet(found, known, transform)
    assert odd.height > plain.height + 400
    assert holds(odd, np.full((16, 16, 3), (9, 99, 199)), 10)
    assert np.array_equal(odd, contact_sheet(found, known, transform))
