"""From an item as it is stored to a Pillow image, or a named reason why not.

Nothing here imports torch: it runs in worker processes.
"""

from __future__ import annotations

import functools
import io
import re
import threading
import warnings
from collections.abc import Mapping
from typing import Any

import numpy as np
from PIL import Image, ImageFile, TiffImagePlugin, UnidentifiedImageError

from .stored.collection import Item, Pixels

# What can be wrong with an image that cannot be used.
EMPTY, UNREADABLE, TRUNCATED, HUGE = "zero bytes", "unreadable", "truncated", "too large"

# What is made of pixels and read by Pillow itself, the most common first; not formats that run
# other programs (EPS, WMF), nor films.
FORMATS = (
    *("JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF", "PPM", "AVIF", "JPEG2000", "ICNS", "ICO", "CUR"),
    *("DIB", "QOI", "DDS", "PSD", "SGI", "SUN", "MSP", "XBM", "XPM", "PCX", "TGA"),
)


class BadImage(Exception):
    """An image that cannot be used.

    Attributes:
        kind: EMPTY, UNREADABLE, TRUNCATED or HUGE.
        reason: what is wrong, in a few words.
    """

    def __init__(self, kind: str, reason: str) -> None:
        super().__init__(kind, reason)
        self.kind = kind
        self.reason = reason


def decode(item: Item) -> Image.Image:
    """The image, decoded in full (the first frame of several), in the mode it is stored in.

    The orientation in its EXIF data is not applied yet; `info` is kept. Grey of 16 bits stays so;
    colour of 16 bits becomes 8: pixels are rounded, but of PNG and TIFF files Pillow drops the low
    byte itself, which is at most one level off.

    Raises:
        BadImage: if it cannot be read, is cut off, has pixels without a fixed range, or is a file
            with more pixels than Pillow's own limit (`Image.MAX_IMAGE_PIXELS`), in which case it
            is not decoded.
    """
    if item.content is None or item.fault:
        raise BadImage(UNREADABLE, item.fault or "cannot be read")
    if isinstance(item.content, np.ndarray):
        return _from_pixels(item.content)
    if not item.content:
        raise BadImage(EMPTY, "the file is empty")
    hush_pillow()
    with _whole_files_only:
        try:
            image = _opened(item.content)
        except BadImage:
            raise
        except Exception as error:  # Pillow's decoders raise nearly anything
            raise _fault(item.content, error) from None
    _check_range(image)
    return image


def hush_pillow() -> None:
    """Keep Pillow's warnings to itself: a filter before all others, put back where it was lost.

    Not with `catch_warnings`, which threads cannot use at the same time.
    """
    if not warnings.filters or warnings.filters[0] != _QUIET:
        warnings.filterwarnings("ignore", module=_QUIET_MODULES)


_QUIET_MODULES = r"PIL\b"
_QUIET = ("ignore", None, Warning, re.compile(_QUIET_MODULES), 0)


class _WholeFilesOnly:
    """While any thread is within it, Pillow does not fill in what files lack."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._inside = 0
        self._before = False

    def __enter__(self) -> None:
        with self._lock:
            if self._inside == 0:
                self._before = ImageFile.LOAD_TRUNCATED_IMAGES
                ImageFile.LOAD_TRUNCATED_IMAGES = False
            self._inside += 1

    def __exit__(self, *_: object) -> None:
        with self._lock:
            self._inside -= 1
            if self._inside == 0:
                ImageFile.LOAD_TRUNCATED_IMAGES = self._before


_whole_files_only = _WholeFilesOnly()


@functools.cache
def _formats() -> tuple[str, ...]:
    """Those of `FORMATS` that this Pillow reads."""
    Image.init()
    return tuple(name for name in FORMATS if name in Image.OPEN)


def _opened(content: bytes) -> Image.Image:
    image = Image.open(io.BytesIO(content), formats=_formats())
    width, height = image.size
    limit = Image.MAX_IMAGE_PIXELS
    if limit is not None and width * height > limit:
        raise BadImage(HUGE, f"{width}×{height}, more than Pillow's limit of {limit:,} pixels")
    image.load()
    if image.mode in ("P", "PA") and image.palette is None:  # lost by Pillow's reader of ICNS
        raise BadImage(UNREADABLE, "its palette is missing: convert it to PNG first")
    # OpenJPEG may take a stream that breaks off for a complete one; no other bytes read ff d9.
    if image.format == "JPEG2000" and b"\xff\xd9" not in content:
        raise BadImage(TRUNCATED, "cut off")
    return image


def _from_pixels(pixels: Pixels) -> Image.Image:
    shape = pixels.shape
    if pixels.ndim == 3 and shape[2] == 1:
        pixels = pixels[:, :, 0]
    colour = pixels.ndim == 3 and shape[2] in (3, 4)
    if (pixels.ndim != 2 and not colour) or 0 in shape:
        raise BadImage(UNREADABLE, f"pixels of shape {shape} are no image")
    if pixels.dtype.kind != "u" or pixels.dtype.itemsize > 2:
        raise _no_range(str(pixels.dtype))
    if colour and pixels.dtype.itemsize == 2:
        pixels = scaled_to_8_bits(pixels)
    return Image.fromarray(np.ascontiguousarray(pixels, dtype=pixels.dtype.newbyteorder("=")))


def scaled_to_8_bits(pixels: Pixels) -> Pixels:
    """Values 0 … 65535 as uint8: round(v·255/65535)."""
    return ((pixels.astype(np.uint32) + 128) // 257).astype(np.uint8)  # v/257, never halfway


def _check_range(image: Image.Image) -> None:
    if image.mode == "F":
        raise _no_range("float32")
    if image.mode == "I":
        low, high = image.getextrema()
        if not 0 <= low <= high <= 65535:  # type: ignore[operator]
            raise _no_range("int32")
    if image.mode.startswith("I;16") and image.format == "TIFF":
        _check_tags(image.tag_v2)  # type: ignore[attr-defined]


def _check_tags(tags: Mapping[int, Any]) -> None:
    """Refuse what Pillow reads without bringing it to the range 0 … 65535."""
    if tags.get(TiffImagePlugin.BITSPERSAMPLE, (16,)) != (16,):
        raise _no_range(f"uint{tags[TiffImagePlugin.BITSPERSAMPLE][0]}")
    if tags.get(TiffImagePlugin.PHOTOMETRIC_INTERPRETATION) == 0:
        raise BadImage(UNREADABLE, "16 bits with 0 for white: convert to 0 for black first")


def _no_range(type_: str) -> BadImage:
    return BadImage(
        UNREADABLE,
        f"pixels of type {type_} have no fixed range: convert to 8 or 16 bits first",
    )


def _fault(content: bytes, error: Exception) -> BadImage:
    if isinstance(error, Image.DecompressionBombError):
        return BadImage(HUGE, f"more than Pillow's limit of {Image.MAX_IMAGE_PIXELS:,} pixels")
    if isinstance(error, MemoryError):
        return BadImage(UNREADABLE, "there is not enough memory to decode it")
    message = (str(error).splitlines() or [""])[0][:100]
    if _CUT_OFF.search(message) or _ends_early(content):
        return BadImage(TRUNCATED, "cut off")
    if isinstance(error, UnidentifiedImageError):
        look = next((name for start, name in _LOOKS if start.match(content)), None)
        return BadImage(UNREADABLE, look or "not an image, or damaged at its beginning")
    return BadImage(UNREADABLE, f"damaged ({message or type(error).__name__})")


_CUT_OFF = re.compile(
    "truncated|not enough image data|reached eof|expected to read|incomplete|broken data stream",
    re.IGNORECASE,
)


def _ends_early(content: bytes) -> bool:
    """Whether an image that cannot be read lacks its end, as far as its format tells."""
    if content.startswith(b"\x89PNG"):
        return b"IEND" not in content
    if content.startswith(b"\xff\xd8\xff"):
        return b"\xff\xd9" not in content
    if content.startswith(b"GIF8"):
        return not content.rstrip(b"\0").endswith(b";")
    if content.startswith(b"RIFF"):
        return len(content) < 8 + int.from_bytes(content[4:8], "little")
    if content.startswith((b"II*\0", b"MM\0*")):
        order = "little" if content.startswith(b"II") else "big"
        return len(content) <= int.from_bytes(content[4:8], order)  # type: ignore[arg-type]
    return False


_LOOKS = tuple(
    (re.compile(start, re.DOTALL | re.IGNORECASE), name)
    for start, name in (
        (rb"version https://git-lfs", "a Git LFS pointer: fetch the file with git lfs pull"),
        (rb"\s*(<\?xml.{0,500})?<svg", "an SVG drawing: turn it into pixels first"),
        (rb"\s*<(!doctype|html)", "a web page, perhaps the error page of a download"),
        (rb"%PDF", "a PDF document: turn it into pixels first"),
        (rb"%!PS", "a PostScript document: turn it into pixels first"),
        (rb"....ftyp(hei|mif1|msf1)", "a HEIF image: convert it to JPEG or PNG first"),
        (rb"....ftyp(?!avi)|RIFF....AVI|\x1aE\xdf\xa3", "a film"),
        (rb"PK\x03\x04", "a zip archive"),
    )
)
