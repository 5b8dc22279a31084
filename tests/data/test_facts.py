"""One pass over images tells their forms, their faults and their exact moments."""

import struct
import subprocess
import sys
import zlib
from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from stored_images import Encoded, encoded

from inkdrop.data import facts as names
from inkdrop.data.decode import EMPTY, HUGE, TRUNCATED, UNREADABLE
from inkdrop.data.facts import Facts, examine
from inkdrop.data.stored.collection import Arrays, Collection, Item

RANDOM = np.random.default_rng(0)
ONE = 2**64


class Named(Encoded):
    """Encoded files, and pixels, under names of their own."""

    def __init__(self, *items: tuple[str, object]) -> None:
        super().__init__([b""] * len(items), None)
        self.items = [Item(place, content) for place, content in items]

    def read(self, start, stop):
        yield from self.items[start:stop]


def pixels(*shape: int) -> np.ndarray:
    return RANDOM.integers(0, 256, shape, dtype=np.uint8)


def picture(mode: str = "RGB", width: int = 12, height: int = 8) -> Image.Image:
    channels = {"L": (), "RGB": (3,), "RGBA": (4,)}[mode]
    return Image.fromarray(pixels(height, width, *channels))


def facts_of(content: object, place: str = "here") -> Facts:
    return examine(Named((place, content)), 0, 1)


def flags(content: object, place: str = "here") -> set[str]:
    return set(facts_of(content, place).flags)


def deep_rgb() -> bytes:
    """A PNG of 16 bits per channel, which Pillow cannot write."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        end = struct.pack(">I", zlib.crc32(kind + data))
        return struct.pack(">I", len(data)) + kind + data + end

    rows = b"".join(b"\0" + pixels(24).tobytes() for _ in range(4))
    header = chunk(b"IHDR", struct.pack(">IIBBBBB", 4, 4, 16, 2, 0, 0, 0))
    return b"\x89PNG\r\n\x1a\n" + header + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b"")


# What is odd


def test_an_ordinary_image_has_no_flags():
    facts = facts_of(encoded(picture(), "JPEG"), "a/b.jpeg")
    assert facts.flags == {}
    assert facts.sizes == {(12, 8): 1}
    assert (facts.modes, facts.formats, facts.depths) == ({"RGB": 1}, {"JPEG": 1}, {8: 1})
    assert facts.coloured == 1


@pytest.mark.parametrize("format_", ["GIF", "PNG", "WEBP", "TIFF"])
def test_an_image_of_several_frames_is_animated(format_):
    frames = [picture() for _ in range(3)]
    several = encoded(frames[0], format_, save_all=True, append_images=frames[1:])
    assert names.ANIMATED in flags(several)
    assert names.ANIMATED not in flags(encoded(frames[0], format_))


def test_cmyk_is_flagged_and_has_the_colours_of_its_rgb():
    image = picture().convert("CMYK")
    facts = facts_of(encoded(image, "TIFF"))
    assert set(facts.flags) == {names.CMYK}
    assert_moments(facts, [np.asarray(image.convert("RGB"))])


def test_a_palette_is_flagged():
    assert flags(encoded(picture().quantize(16))) == {names.PALETTE}


def test_two_palettes_of_the_same_indices_are_different_images():
    image = picture().quantize(16)
    other = image.copy()
    other.putpalette([255 - level for level in image.getpalette()])
    assert facts_of(encoded(image)).digests != facts_of(encoded(other)).digests


@pytest.mark.parametrize(
    "content",
    [
        encoded(Image.fromarray(np.arange(96, dtype=np.uint16).reshape(8, 12) * 600)),
        encoded(Image.fromarray(np.arange(96, dtype=np.uint16).reshape(8, 12) * 600), "TIFF"),
        np.arange(96, dtype=np.uint16).reshape(8, 12) * 600,
        deep_rgb(),
    ],
    ids=["PNG", "TIFF", "pixels", "RGB PNG"],
)
def test_16_bits_are_flagged(content):
    facts = facts_of(content)
    assert set(facts.flags) == {names.SIXTEEN_BIT}
    assert facts.depths == {16: 1}


def test_one_bit_is_told():
    facts = facts_of(encoded(picture("L").convert("1")))
    assert facts.depths == {1: 1}
    assert facts.coloured == 0


def test_only_real_transparency_is_flagged():
    image = picture("RGBA")
    assert flags(encoded(image)) == {names.TRANSPARENT}
    image.putalpha(255)
    assert flags(encoded(image)) == set()
    assert facts_of(encoded(image)).modes == {"RGBA": 1}


def test_a_transparent_colour_counts_where_it_occurs():
    image = picture()
    there, nowhere = image.getpixel((3, 3)), (1, 2, 3)
    assert flags(encoded(image, transparency=there)) == {names.TRANSPARENT}
    assert flags(encoded(image, transparency=nowhere)) == set()


def test_a_turned_image_has_its_upright_size():
    exif = Image.Exif()
    exif[0x0112] = 6
    facts = facts_of(encoded(picture(width=12, height=8), "JPEG", exif=exif))
    assert set(facts.flags) == {names.ROTATED}
    assert facts.sizes == {(8, 12): 1}


def test_a_turned_image_equals_the_upright_one():
    upright = picture()
    exif = Image.Exif()
    exif[0x0112] = 6
    turned = encoded(upright.transpose(Image.Transpose.ROTATE_90), exif=exif)
    assert facts_of(turned).digests == facts_of(encoded(upright)).digests


def test_an_opaque_alpha_channel_makes_no_other_image():
    image = picture()
    assert facts_of(encoded(image.convert("RGBA"))).digests == facts_of(encoded(image)).digests


@pytest.mark.parametrize(
    ("place", "format_", "wrong"),
    [
        ("a.png", "JPEG", True),
        ("a.JPG", "PNG", True),
        ("a.gif", "WEBP", True),
        ("a.PNG", "PNG", False),
        ("a.jpe", "JPEG", False),
        ("a.jpg", "MPO", False),
        ("a.tif", "TIFF", False),
        ("a.bin", "PNG", False),
        ("train.parquet, row 12", "JPEG", False),
    ],
)
def test_a_name_that_says_another_format_is_wrong(place, format_, wrong):
    assert (names.WRONG_NAME in flags(encoded(picture(), format_), place)) == wrong


@pytest.mark.parametrize(("spread", "constant"), [(0, True), (4, True), (5, False)])
@pytest.mark.parametrize("mode", ["L", "RGB", "I;16", "array"])
def test_an_image_of_one_colour_is_near_constant(mode, spread, constant):
    values = np.full((8, 8), 100, np.uint8)
    values[0, 0] += spread
    if mode == "array":
        facts = examine(Arrays(values[None], None, "a", "an array"), 0, 1)
    elif mode == "I;16":
        facts = facts_of(encoded(Image.fromarray(values.astype(np.uint16) * 257)))
    else:
        facts = facts_of(encoded(Image.fromarray(values).convert(mode)))
    assert (names.CONSTANT in facts.flags) == constant


def test_a_shape_of_one_colour_on_nothing_is_not_constant():
    shape = np.full((8, 8, 4), 90, np.uint8)
    assert flags(encoded(Image.fromarray(shape))) == {names.TRANSPARENT, names.CONSTANT}
    shape[2:5, 2:5, 3] = 255
    assert flags(encoded(Image.fromarray(shape))) == {names.TRANSPARENT}


def test_an_image_that_is_nowhere_visible_is_near_constant():
    hidden = pixels(8, 8, 4)
    hidden[..., 3] = 0
    facts = facts_of(encoded(Image.fromarray(hidden)))
    assert set(facts.flags) == {names.TRANSPARENT, names.CONSTANT}
    assert (facts.coloured, facts.visible) == (0, 0)


def test_grey_stored_as_colour_is_grey():
    grey = picture("L")
    assert facts_of(encoded(grey.convert("RGB"))).coloured == 0
    assert facts_of(encoded(grey.convert("RGBA"))).coloured == 0
    mixed = np.asarray(grey.convert("RGB")).copy()
    mixed[0, 0], mixed[0, 1] = (9, 8, 7), (7, 8, 9)  # channels of the same sum
    mixed[0, 2], mixed[0, 3] = (8, 9, 7), (8, 7, 9)
    assert facts_of(mixed).coloured == 1


# What cannot be used


@pytest.mark.parametrize(
    ("content", "kind"),
    [
        (b"", EMPTY),
        (b"no image", UNREADABLE),
        (encoded(picture("RGB", 99, 99))[:2000], TRUNCATED),
        (None, UNREADABLE),
    ],
    ids=["empty", "text", "cut off", "missing"],
)
def test_a_bad_image_is_named_and_the_others_count(content, kind):
    good = encoded(picture())
    facts = examine(Named(("a.png", good), ("b.png", content), ("c.png", good)), 0, 3)
    (bad,) = facts.bad
    assert (bad.index, bad.place, bad.kind) == (1, "b.png", kind)
    assert bad.reason
    assert facts.count == 3
    assert sum(facts.sizes.values()) == 2
    assert len(facts.digests) == 3 * names.DIGEST


def test_an_image_too_large_is_named(monkeypatch):
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 50)
    (bad,) = facts_of(encoded(picture())).bad
    assert bad.kind == HUGE


# Moments


def assert_moments(facts: Facts, images: list[np.ndarray], full: int = 255) -> None:
    """Means over images of means and mean squares of opaque ones."""
    scaled = [
        image.reshape(-1, image.shape[2] if image.ndim == 3 else 1) / full for image in images
    ]
    first = np.mean([image.mean(axis=0) for image in scaled], axis=0)
    second = np.mean([(image**2).mean(axis=0) for image in scaled], axis=0)
    count = len(images) * ONE
    np.testing.assert_allclose(np.array([m / count for m in facts.moments.first]), first, 1e-12)
    np.testing.assert_allclose(np.array([m / count for m in facts.moments.second]), second, 1e-12)
    assert facts.moments.clear == facts.moments.clear_squared == 0


def test_moments_are_those_of_the_pixels():
    images = [pixels(7, 5, 3), pixels(20, 30, 3), pixels(1, 1, 3)]
    files = Named(
        *((f"{i}.png", encoded(Image.fromarray(image))) for i, image in enumerate(images))
    )
    assert_moments(examine(files, 0, 3), images)


def test_grey_counts_as_three_equal_channels():
    image = pixels(9, 9)
    assert_moments(facts_of(image), [np.stack([image] * 3, axis=2)])


def test_16_bits_are_scaled():
    image = RANDOM.integers(0, 65536, (9, 9), dtype=np.uint16)
    facts = facts_of(encoded(Image.fromarray(image)))
    assert_moments(facts, [np.stack([image] * 3, axis=2)], full=65535)


def test_the_luma_is_that_of_what_is_visible():
    image = np.zeros((2, 2, 4), np.uint8)
    image[0] = (255, 255, 255, 255)
    image[1] = (90, 90, 90, 0)
    facts = facts_of(encoded(Image.fromarray(image)))
    assert facts.luma / ONE == pytest.approx(1, abs=1e-15)


# Any cut gives the same


def many() -> Collection:
    files = [
        encoded(picture()),
        encoded(picture("RGBA")),
        b"",
        encoded(picture("L", 5, 5), "JPEG"),
        encoded(picture().quantize(4)),
        encoded(Image.new("RGB", (3, 2))),
    ]
    return Encoded([files[i % 6] for i in range(40)], None)


ENCODED = many()
ARRAYS = Arrays(pixels(40, 3, 5, 3) // 254, None, "arrays", "an array")


@pytest.mark.parametrize("collection", [ENCODED, ARRAYS], ids=["files", "arrays"])
@given(cuts=st.sets(st.integers(1, 39)))
def test_any_cut_into_blocks_gives_the_same_facts(collection, cuts):
    whole = examine(collection, 0, 40)
    edges = [0, *sorted(cuts), 40]
    added = Facts()
    for start, stop in pairwise(edges):
        added.add(examine(collection, start, stop))
    assert added == whole


@pytest.mark.parametrize("shape", [(30, 6, 4), (30, 6, 4, 1), (30, 6, 4, 3)])
def test_arrays_are_seen_as_their_images_are(shape):
    values = pixels(*shape)
    values[3] = 7
    values[4] = values[4][..., :1] if len(shape) == 4 else values[4]  # grey as colours
    arrays = Arrays(values, None, "set", "an array")
    items = Named(*((item.place, item.content) for item in arrays.read(0, 30)))
    assert examine(arrays, 2, 29) == examine(items, 2, 29)


def test_an_array_and_a_file_of_the_same_pixels_are_equal():
    image = pixels(8, 8, 3)
    arrays = Arrays(image[None], None, "set", "an array")
    assert examine(arrays, 0, 1).digests == facts_of(encoded(Image.fromarray(image))).digests


def test_progress_is_told_of_every_image():
    told: list[int] = []
    examine(Encoded([encoded(picture())] * 150, None), 0, 150, advance=told.append)
    assert sum(told) == 150


def test_it_ends_early_when_asked():
    assert examine(ENCODED, 0, 40, seconds=0).count == 1


def test_looking_at_images_does_not_import_torch():
    code = "import sys, inkdrop.data.facts; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
