"""What comes out of a Transform is what went in, made to fit."""

import struct
import subprocess
import sys
import zlib

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from stored_images import encoded

from inkdrop.data.decode import decode
from inkdrop.data.stored.collection import Item
from inkdrop.data.transform import FITS, Transform, parse_colour
from inkdrop.errors import InkdropError

WHITE, BLACK = (255, 255, 255), (0, 0, 0)


def drawn(rng_seed: int, height: int, width: int, mode: str) -> Image.Image:
    rng = np.random.default_rng(rng_seed)
    bands = {"1": 0, "L": 0, "I;16": 0, "P": 0, "LA": 2, "RGB": 3, "RGBA": 4}[mode]
    shape = (height, width, bands) if bands else (height, width)
    if mode == "1":
        return Image.fromarray(rng.integers(0, 2, shape).astype(bool))
    if mode == "I;16":
        return Image.fromarray(rng.integers(0, 65536, shape, dtype=np.uint16))
    image = Image.fromarray(rng.integers(0, 256, shape, dtype=np.uint8))
    if mode == "P":
        image.putpalette(rng.integers(0, 256, 768, dtype=np.uint8).tobytes())
    return image


EXACT = [
    *[("PNG", mode, {}) for mode in ("1", "L", "I;16", "P", "LA", "RGB", "RGBA")],
    *[("BMP", mode, {}) for mode in ("1", "L", "P", "RGB")],
    *[("TIFF", mode, {}) for mode in ("1", "L", "I;16", "P", "LA", "RGB", "RGBA")],
    *[("TIFF", mode, {"compression": "tiff_lzw"}) for mode in ("L", "I;16", "RGB", "RGBA")],
    *[("WEBP", mode, {"lossless": True, "exact": True}) for mode in ("RGB", "RGBA")],
    *[("PPM", mode, {}) for mode in ("1", "L", "I;16", "RGB")],
    *[("GIF", mode, {}) for mode in ("L", "P")],
]


@given(
    st.sampled_from(EXACT),
    st.integers(1, 40),
    st.integers(1, 40),
    st.integers(0, 1 << 30),
    st.sampled_from(FITS),
)
def test_an_image_that_fits_comes_back_bit_for_bit(stored, height, width, seed, fit):
    format_, mode, options = stored
    image = drawn(seed, height, width, mode)
    channels = {"RGB": 3, "P": 3, "RGBA": 4, "LA": 4}.get(mode, 1)
    pixels = Transform(height, width, channels, fit)(
        decode(Item("here", encoded(image, format_, **options)))
    )
    if mode == "I;16":
        expected = np.round(np.asarray(image) / 257)
    else:
        expected = np.asarray(image.convert({1: "L", 3: "RGB", 4: "RGBA"}[channels]))
    assert pixels.dtype == np.uint8
    assert pixels.flags.c_contiguous
    assert pixels.flags.writeable
    assert np.array_equal(pixels, expected.reshape(height, width, channels).transpose(2, 0, 1))


@given(st.integers(8, 40), st.integers(8, 40), st.sampled_from([("L", 1), ("RGB", 3)]))
def test_a_jpeg_comes_back_about_the_same(height, width, kind):
    mode, channels = kind
    smooth = np.add.outer(np.arange(height), np.arange(width)).astype(np.uint8) * 3
    image = Image.fromarray(smooth).convert(mode)
    stored = decode(Item("here", encoded(image, "JPEG", quality=95, subsampling=0)))
    assert np.abs(Transform(height, width, channels)(stored)[0].astype(int) - smooth).max() <= 8


@given(
    st.sampled_from(EXACT),
    st.tuples(*[st.integers(1, 60)] * 4),
    st.sampled_from([1, 3, 4]),
    st.sampled_from(FITS),
    st.tuples(*[st.floats(0, 1)] * 2),
)
def test_every_image_is_made_to_fit(stored, sizes, channels, fit, place):
    format_, mode, options = stored
    height, width, new_height, new_width = sizes
    content = encoded(drawn(0, height, width, mode), format_, **options)
    image = decode(Item("here", content))
    transform = Transform(new_height, new_width, channels, fit)
    pixels = transform(image, place)
    assert pixels.shape == (channels, new_height, new_width)
    same = (height, width, mode) == (new_height, new_width, {1: "L", 3: "RGB", 4: "RGBA"}[channels])
    if same:
        assert transform.changes(width, height, image.mode) == []


# Geometry


@pytest.mark.parametrize("fit", FITS)
@pytest.mark.parametrize("size", [(40, 40), (80, 40), (40, 80), (81, 40)])
def test_a_square_in_the_middle_stays_there(fit, size):
    width, height = size
    image = Image.new("L", size, 0)
    image.paste(255, (width // 2 - 8, height // 2 - 8, width - width // 2 + 8, height // 2 + 8))
    pixels = Transform(20, 20, 1, fit, BLACK)(image)[0].astype(float)
    assert pixels.max() > 200
    assert np.allclose(pixels, pixels[::-1], atol=2)
    assert np.allclose(pixels, pixels[:, ::-1], atol=2)


def test_a_crop_cuts_off_the_longer_sides():
    image = Image.new("RGB", (80, 40), (200, 0, 0))
    image.paste((0, 200, 0), (20, 0, 60, 40))
    inner = Transform(40, 40, 3)(image)
    assert (inner.reshape(3, -1).T == (0, 200, 0)).all()
    smaller = Transform(10, 10, 3)(image)
    assert np.abs(smaller[1].astype(int)[:, 1:-1] - 200).max() <= 4


def test_a_crop_without_scaling_keeps_pixels_bit_for_bit():
    image = drawn(1, 30, 20, "RGB")
    pixels = Transform(20, 20, 3)(image)
    assert np.array_equal(pixels, np.asarray(image)[5:25].transpose(2, 0, 1))


def test_a_crop_goes_where_it_is_told():
    image = drawn(1, 10, 14, "L")
    stored = np.asarray(image)
    transform = Transform(10, 10, 1, "random-crop")
    for left in range(5):
        for place in (left / 5, (left + 0.99) / 5):
            assert np.array_equal(transform(image, (place, 0.7))[0], stored[:, left : left + 10])
    assert np.array_equal(transform(image, (1.0, 1.0))[0], stored[:, 4:])


def test_a_scaled_crop_goes_where_it_is_told():
    image = Image.new("L", (80, 40), 0)
    image.paste(255, (40, 0, 80, 40))
    transform = Transform(10, 10, 1, "random-crop")
    assert transform(image, (0.0, 0.5)).max() < 60
    assert (transform(image, (1.0, 0.5))[0, :, 1:] > 195).all()


def test_padding_fills_what_is_over():
    image = Image.new("RGB", (40, 20), (9, 99, 199))
    pixels = Transform(20, 20, 3, "pad", (1, 2, 3))(image).transpose(1, 2, 0)
    assert (pixels[5:15] == (9, 99, 199)).all()
    assert (pixels[:5] == (1, 2, 3)).all()
    assert (pixels[15:] == (1, 2, 3)).all()


def test_padding_of_four_channels_is_transparent():
    pixels = Transform(20, 20, 4, "pad")(Image.new("RGB", (20, 10), (9, 99, 199)))
    assert (pixels[3, :5] == 0).all()
    assert (pixels[3, 5:15] == 255).all()


def test_scaling_down_averages():
    board = np.indices((64, 64)).sum(0) % 2 * 255
    pixels = Transform(8, 8, 1)(Image.fromarray(board.astype(np.uint8)))
    assert np.abs(pixels.astype(int) - 127).max() <= 4


def test_the_thinnest_image_is_made_to_fit():
    for fit in FITS:
        assert (Transform(8, 8, 1, fit, BLACK)(Image.new("L", (1, 900), 77)).max()) == 77


# Orientation

TURNED = {  # where the corners "ab / cd" of what is stored come to lie
    1: "abcd",
    2: "badc",
    3: "dcba",
    4: "cdab",
    5: "acbd",
    6: "cadb",
    7: "dbca",
    8: "bdac",
}


@pytest.mark.parametrize("format_", ["JPEG", "PNG", "TIFF", "WEBP"])
@pytest.mark.parametrize("orientation", range(1, 9))
def test_images_are_turned_as_their_exif_data_say(format_, orientation):
    corners = dict(zip("abcd", [30, 100, 170, 240], strict=True))
    image = Image.new("L", (64, 32))
    for i, level in enumerate(corners.values()):
        image.paste(level, (i % 2 * 32, i // 2 * 16, i % 2 * 32 + 32, i // 2 * 16 + 16))
    exif = Image.Exif()
    exif[0x0112] = orientation
    stored = decode(Item("here", encoded(image, format_, exif=exif)))
    width, height = (64, 32) if orientation < 5 else (32, 64)
    pixels = Transform(height, width, 1, "crop")(stored)[0].astype(int)
    expected = [corners[corner] for corner in TURNED[orientation]]
    found = [pixels[8, 8], pixels[8, -8], pixels[-8, 8], pixels[-8, -8]]
    assert np.allclose(found, expected, atol=4)


def test_damaged_exif_data_turn_nothing():
    image = drawn(3, 12, 10, "RGB")
    for exif in (
        b"Exif\0\0",
        b"Exif\0\0II*\0\xff\xff\xff\xff",
        b"Exif\0\0MM\0*\0\0\0\x08\0\x09\x01",
    ):
        stored = decode(Item("here", encoded(image, "PNG", exif=exif)))
        assert np.array_equal(Transform(12, 10, 3)(stored), np.asarray(image).transpose(2, 0, 1))


# Colours


def test_16_bits_are_rounded_to_8():
    levels = np.arange(65536, dtype=np.uint16).reshape(256, 256)
    expected = np.round(levels.astype(np.float64) * 255 / 65535)
    for image in (Image.fromarray(levels), Image.fromarray(levels.astype(np.int32))):
        pixels = Transform(256, 256, 1)(image)[0]
        assert np.array_equal(pixels, expected)
    assert (expected[0, 0], expected.flat[257 * 99], expected[-1, -1]) == (0, 99, 255)


@pytest.mark.parametrize("background", [WHITE, BLACK, (10, 20, 30)])
def test_transparent_pixels_show_the_background(background):
    image = Image.new("RGBA", (4, 1), (200, 100, 0, 255))
    image.putpixel((1, 0), (200, 100, 0, 0))
    image.putpixel((2, 0), (200, 100, 0, 51))
    pixels = Transform(1, 4, 3, background=background)(image)[:, 0].T
    assert pixels[0].tolist() == [200, 100, 0]
    assert pixels[1].tolist() == list(background)
    mixed = [0.2 * a + 0.8 * b for a, b in zip((200, 100, 0), background, strict=True)]
    assert np.allclose(pixels[2], mixed, atol=1)
    grey = Transform(1, 4, 1, background=background)(image)[0, 0, 1]
    assert grey == Image.new("RGB", (1, 1), background).convert("L").getpixel((0, 0))


@pytest.mark.parametrize(
    ("mode", "clear"), [("L", 40), ("RGB", (40, 40, 40)), ("P", 40), ("P", b"\xff" * 40 + b"\0")]
)
def test_one_transparent_colour_shows_the_background(mode, clear):
    image = Image.new(mode, (2, 1), (40, 40, 40) if mode == "RGB" else 40)
    if mode == "P":
        image.putpalette([level for level in range(256) for _ in range(3)])
    image.putpixel((1, 0), (90, 90, 90) if mode == "RGB" else 90)
    stored = decode(Item("here", encoded(image, "PNG", transparency=clear)))
    for channels in (1, 3):
        assert Transform(1, 2, channels)(stored)[0, 0].tolist() == [255, 90]
    assert Transform(1, 2, 4)(stored)[3, 0].tolist() == [0, 255]


def test_a_transparent_level_of_16_bits_is_told_from_its_neighbours():
    image = Image.fromarray(np.array([[1000, 1001]], dtype=np.uint16))
    stored = decode(Item("here", encoded(image, "PNG", transparency=1000)))
    assert Transform(1, 2, 1)(stored)[0, 0].tolist() == [255, 4]


def test_a_transparent_colour_of_16_bits_is_seen_in_the_8_that_are_left():
    def chunk(name: bytes, content: bytes) -> bytes:
        crc = zlib.crc32(name + content).to_bytes(4, "big")
        return len(content).to_bytes(4, "big") + name + content + crc

    clear, seen = struct.pack(">3H", 1000, 2000, 3000), struct.pack(">3H", 40000, 5000, 600)
    content = (
        b"\x89PNG\r\n\x1a\n"
        + chunk(b"IHDR", struct.pack(">2I5B", 2, 1, 16, 2, 0, 0, 0))
        + chunk(b"tRNS", clear)
        + chunk(b"IDAT", zlib.compress(b"\0" + clear + seen))
        + chunk(b"IEND", b"")
    )
    pixels = Transform(1, 2, 3)(decode(Item("here", content)))
    assert pixels[:, 0, 0].tolist() == [255, 255, 255]
    assert np.abs(pixels[:, 0, 1] - np.array([40000, 5000, 600]) / 257).max() <= 1


def test_hidden_colours_do_not_come_through_when_scaled():
    image = Image.new("RGBA", (64, 64), (0, 0, 0, 0))
    image.paste((250, 200, 150, 255), (16, 16, 48, 48))
    pixels = Transform(13, 13, 4)(image)
    seen = pixels[3] > 60
    assert seen.any()
    assert (pixels[3] < 255).any()
    for band, level in enumerate((250, 200, 150)):
        assert pixels[band][seen].min() >= level - 6  # no dark fringe
    on_white = Transform(13, 13, 3)(
        Image.merge("RGBA", [*Image.new("RGB", (64, 64), WHITE).split(), image.getchannel("A")])
    )
    assert (on_white >= 254).all()


def test_grey_and_colour_become_each_other():
    colour = Image.new("RGB", (2, 2), (255, 0, 0))
    assert (Transform(2, 2, 1)(colour) == 76).all()  # 0.299 · 255
    assert (Transform(2, 2, 3)(Image.new("L", (2, 2), 77)) == 77).all()
    assert Transform(1, 1, 4)(Image.new("L", (1, 1), 77)).ravel().tolist() == [77, 77, 77, 255]


@pytest.mark.parametrize("mode", ["CMYK", "YCbCr", "HSV", "LAB"])
def test_other_spaces_of_colour_become_rgb(mode):
    image = drawn(2, 4, 4, "RGB").convert(mode)
    expected = np.asarray(image.convert("RGB")).transpose(2, 0, 1)
    assert np.array_equal(Transform(4, 4, 3)(image), expected)
    assert Transform(4, 4, 3).changes(4, 4, mode) == [f"{mode} made RGB"]


# In words


@pytest.mark.parametrize(
    ("fit", "steps"),
    [
        ("crop", ["resized 640×480 → 85×64", "cropped to 64×64"]),
        ("pad", ["resized 640×480 → 64×48", "padded to 64×64"]),
        ("stretch", ["resized 640×480 → 64×64"]),
    ],
)
def test_changes_of_size_are_told(fit, steps):
    assert Transform(64, 64, 3, fit).changes(640, 480, "RGB") == steps


@pytest.mark.parametrize(
    ("channels", "mode", "steps"),
    [
        (3, "RGB", []),
        (1, "L", []),
        (1, "1", []),
        (4, "RGBA", []),
        (3, "P", []),
        (3, "L", ["grey made RGB"]),
        (1, "RGB", ["colours made grey"]),
        (3, "RGBA", ["transparency on white"]),
        (1, "LA", ["transparency on white"]),
        (1, "I;16", ["16 bits scaled to 8"]),
        (4, "L", ["grey made RGBA", "an opaque alpha channel added"]),
    ],
)
def test_changes_of_colour_are_told(channels, mode, steps):
    assert Transform(8, 8, channels).changes(8, 8, mode) == steps


def test_cropping_alone_is_told():
    assert Transform(20, 20, 3).changes(20, 30, "RGB") == ["cropped to 20×20"]


def test_the_key_names_all_that_matters_and_nothing_else():
    transforms = [
        Transform(h, w, c, fit, background)
        for h in (8, 9)
        for w in (8, 9)
        for c in (1, 3)
        for fit in FITS
        for background in (WHITE, BLACK)
    ]
    assert len({transform.key for transform in transforms}) == len(transforms)
    assert Transform(8, 8, 4).key == Transform(8, 8, 4, background=BLACK).key
    assert Transform(8, 9, 3).key == "transform 1: 3x8x9 crop on 255,255,255"


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ((0, 8, 3), "images of 0×8 pixels: both must be at least 1"),
        ((8, 8, 2), "2 channels: choose 1 (grey), 3 (RGB) or 4 (RGBA)"),
        ((8, 8, 3, "corp"), "unknown fit 'corp': did you mean 'crop'?"),
        ((8, 8, 3, "crop", (0, 0, 256)), "background (0, 0, 256)"),
    ],
)
def test_what_is_not_allowed_is_named(fields, message):
    with pytest.raises(InkdropError) as caught:
        Transform(*fields)
    assert message in str(caught.value)


@pytest.mark.parametrize(
    ("text", "colour"),
    [("white", WHITE), ("black", BLACK), ("#0a141e", (10, 20, 30)), ("10, 20,30", (10, 20, 30))],
)
def test_colours_are_read(text, colour):
    assert parse_colour(text) == colour


@pytest.mark.parametrize("text", ["", "whit", "#12345", "1,2", "1,2,256", "-1,2,3", "a,b,c"])
def test_what_is_no_colour_is_named(text):
    with pytest.raises(InkdropError, match="unknown colour") as caught:
        parse_colour(text)
    assert repr(text) in str(caught.value)


def test_no_torch_is_needed():
    code = "import inkdrop.data.transform, inkdrop.data.cache_worker, sys; print(*sys.modules)"
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert "inkdrop.data.cache_worker" in run.stdout.split()
    assert "torch" not in run.stdout.split()
