"""Every image is decoded, or refused by a name for what is wrong."""

import io
import struct
import threading
import warnings
import zlib

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image, ImageFile
from stored_images import encoded

from inkdrop.data.decode import EMPTY, HUGE, TRUNCATED, UNREADABLE, BadImage, decode
from inkdrop.data.stored.collection import Item
from inkdrop.data.transform import Transform

PIXELS = np.random.default_rng(0).integers(0, 256, (20, 23, 3), dtype=np.uint8)
PICTURE = Image.fromarray(PIXELS)
WHOLE = ("PNG", "GIF", "BMP", "TIFF", "WEBP", "PPM", "AVIF", "JPEG2000", "TGA", "PCX", "QOI")


def fault(content: object) -> BadImage:
    with pytest.raises(BadImage) as caught:
        decode(Item("here", content))
    assert "\n" not in caught.value.reason
    return caught.value


def decoded_or_kind(content: bytes) -> Image.Image | str:
    try:
        return decode(Item("here", content))
    except BadImage as bad:
        return bad.kind


def test_pixels_come_as_they_are_stored():
    image = decode(Item("here", encoded(PICTURE)))
    assert image.mode == "RGB"
    assert np.array_equal(np.asarray(image), PIXELS)


@pytest.mark.parametrize("format_", [*WHOLE, "JPEG", "ICO", "DDS", "SGI", "DIB", "MPO"])
def test_common_formats_are_read(format_):
    assert decode(Item("here", encoded(PICTURE.resize((16, 16)), format_))).size == (16, 16)


def test_the_first_frame_of_several_is_taken():
    first, second = Image.new("L", (4, 4), 10), Image.new("L", (4, 4), 200)
    content = encoded(first, "GIF", save_all=True, append_images=[second])
    assert np.asarray(decode(Item("here", content)).convert("L")).max() == 10


# What is wrong


def test_a_file_of_zero_bytes_is_named():
    assert fault(b"").kind == EMPTY


def test_a_fault_of_reading_is_passed_on():
    with pytest.raises(BadImage) as caught:
        decode(Item("here", None, "no permission"))
    assert (caught.value.kind, caught.value.reason) == (UNREADABLE, "no permission")


def test_bytes_that_are_no_image_are_named():
    assert (fault(b"hello, world").kind, fault(b"\0" * 500).kind) == (UNREADABLE, UNREADABLE)


@pytest.mark.parametrize(
    ("content", "look"),
    [
        (b"<!DOCTYPE html><p>404</p>", "web page"),
        (b"version https://git-lfs.github.com/spec/v1\n", "Git LFS pointer"),
        (b'<?xml version="1.0"?>\n<svg width="1">', "SVG"),
        (b"%PDF-1.7 ", "PDF"),
        (b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n", "PostScript"),
        (b"\0\0\0\x18ftypheic\0\0\0\0", "HEIF"),
        (b"\0\0\0\x18ftypmp42\0\0\0\0", "film"),
    ],
)
def test_what_is_taken_for_an_image_is_named(content, look):
    assert fault(content).kind == UNREADABLE
    assert look in fault(content).reason


def test_an_image_without_its_palette_is_named():
    png = encoded(Image.new("P", (128, 128)))
    icon = b"ic07" + struct.pack(">I", len(png) + 8) + png
    content = b"icns" + struct.pack(">I", len(icon) + 8) + icon
    assert (fault(content).kind, "its palette is missing" in fault(content).reason) == (
        UNREADABLE,
        True,
    )


@pytest.mark.parametrize("format_", [*WHOLE, "JPEG"])
def test_a_file_cut_in_half_is_truncated(format_):
    content = encoded(PICTURE, format_)
    cut = content[: len(content) * 3 // 4]
    assert fault(cut).kind == TRUNCATED


@given(st.sampled_from([*WHOLE, "JPEG"]), st.floats(0, 1, exclude_max=True))
def test_a_cut_file_never_gives_other_pixels(format_, part):
    content = encoded(PICTURE, format_)
    whole = np.asarray(decode(Item("here", content)))
    cut = decoded_or_kind(content[: int(part * len(content))])
    if isinstance(cut, str):
        assert cut in (EMPTY, TRUNCATED, UNREADABLE)
    else:
        assert np.array_equal(np.asarray(cut), whole)  # only what follows the pixels is missing


@given(
    st.sampled_from([*WHOLE, "JPEG"]),
    st.lists(st.tuples(st.integers(0, 1 << 16), st.integers(1, 255)), min_size=1, max_size=5),
)
def test_damaged_bytes_are_decoded_or_refused_but_nothing_else(format_, flips):
    content = bytearray(encoded(PICTURE, format_))
    for position, mask in flips:
        content[position % min(len(content), 300)] ^= mask
    image = decoded_or_kind(bytes(content))
    if isinstance(image, str):
        assert image in (TRUNCATED, UNREADABLE, HUGE)
    else:
        assert Transform(5, 5, 3)(image).shape == (3, 5, 5)


@given(st.binary(max_size=60))
def test_any_bytes_are_decoded_or_refused(content):
    image = decoded_or_kind(content)
    assert isinstance(image, Image.Image) or image in (EMPTY, TRUNCATED, UNREADABLE, HUGE)


def test_missing_pixels_are_not_filled_in_whatever_the_process_has_set(monkeypatch):
    monkeypatch.setattr(ImageFile, "LOAD_TRUNCATED_IMAGES", True)
    content = encoded(PICTURE, "JPEG")
    assert fault(content[: len(content) * 3 // 4]).kind == TRUNCATED
    assert ImageFile.LOAD_TRUNCATED_IMAGES is True


def test_threads_do_not_change_what_is_refused(monkeypatch):
    monkeypatch.setattr(ImageFile, "LOAD_TRUNCATED_IMAGES", True)
    content = encoded(PICTURE.resize((200, 200)), "JPEG")
    kinds = []

    def refuse() -> None:
        for _ in range(50):
            kinds.append(fault(content[:-200]).kind)

    threads = [threading.Thread(target=refuse) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert kinds == [TRUNCATED] * 200
    assert ImageFile.LOAD_TRUNCATED_IMAGES is True


@pytest.mark.parametrize("limit", [459, 200])
def test_an_image_beyond_pillows_limit_is_not_decoded(monkeypatch, limit):
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", limit)
    monkeypatch.setattr(ImageFile.ImageFile, "load", None)
    assert fault(encoded(PICTURE)).kind == HUGE


def test_an_image_of_just_the_limit_is_decoded(monkeypatch):
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 460)
    assert decode(Item("here", encoded(PICTURE))).size == (23, 20)


def test_warnings_of_pillow_are_neither_shown_nor_errors(recwarn):
    chunk = b"acTL" + bytes(8)  # an animation of no frames
    chunk = (8).to_bytes(4, "big") + chunk + zlib.crc32(chunk).to_bytes(4, "big")
    content = encoded(PICTURE)
    content = content[:33] + chunk + content[33:]
    with pytest.warns(UserWarning, match="Invalid APNG"):
        Image.open(io.BytesIO(content))
    for action in ("error", "always"):
        warnings.simplefilter(action)
        assert np.array_equal(np.asarray(decode(Item("here", content))), PIXELS)
    assert not recwarn.list


# Pixels without a range


def test_floating_point_pixels_are_refused():
    reason = fault(encoded(Image.new("F", (3, 3), 0.5), "TIFF")).reason
    assert reason == "pixels of type float32 have no fixed range: convert to 8 or 16 bits first"
    assert "float64" in fault(np.zeros((3, 3))).reason


@pytest.mark.parametrize("level", [-1, 65536])
def test_whole_numbers_beyond_16_bits_are_refused(level):
    assert "int32" in fault(encoded(Image.new("I", (3, 3), level), "TIFF")).reason


def test_whole_numbers_within_16_bits_are_read():
    content = encoded(Image.new("I", (3, 3), 65535), "TIFF")
    assert decode(Item("here", content)).getpixel((0, 0)) == 65535


@pytest.mark.parametrize("shape", [(0, 4), (4, 4, 2), (4,), (2, 4, 4, 3)])
def test_arrays_that_are_no_image_are_refused(shape):
    assert str(shape) in fault(np.zeros(shape, np.uint8)).reason


# Arrays


@pytest.mark.parametrize(
    ("shape", "mode"), [((4, 5), "L"), ((4, 5, 1), "L"), ((4, 5, 3), "RGB"), ((4, 5, 4), "RGBA")]
)
def test_arrays_of_8_bits_are_kept(shape, mode):
    pixels = np.random.default_rng(0).integers(0, 256, shape, dtype=np.uint8)
    image = decode(Item("here", pixels))
    assert image.mode == mode
    assert np.array_equal(np.asarray(image), pixels.reshape(np.asarray(image).shape))
    turned = decode(Item("here", pixels[::-1, ::-1]))
    assert np.array_equal(np.asarray(turned), np.asarray(image)[::-1, ::-1])


@pytest.mark.parametrize("order", ["<", ">"])
def test_grey_arrays_of_16_bits_stay_so(order):
    pixels = np.array([[0, 257, 40000], [1, 256, 65535]], dtype=f"{order}u2")
    image = decode(Item("here", pixels))
    assert image.mode == "I;16"
    assert np.array_equal(np.asarray(image), pixels)


def test_colour_arrays_of_16_bits_are_rounded_to_8():
    levels = np.arange(65536, dtype=np.uint16)
    pixels = np.stack([levels] * 3, axis=-1).reshape(256, 256, 3)
    expected = np.round(levels.astype(np.float64) * 255 / 65535)
    assert np.array_equal(np.asarray(decode(Item("here", pixels)))[..., 1].ravel(), expected)
