"""What one pass over images tells: their sizes and forms, what is wrong or odd, their moments.

Nothing here imports torch: it runs in worker processes.
"""

from __future__ import annotations

import hashlib
import math
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import cache
from time import perf_counter
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from PIL import ExifTags, Image

from .decode import BadImage, decode, hush_pillow
from .stored.collection import Arrays, Collection, Item
from .transform import Transform

# What can be odd about an image that can be used all the same.
ANIMATED, CMYK, PALETTE, SIXTEEN_BIT = "animated", "CMYK", "palette", "16-bit"
TRANSPARENT, ROTATED = "transparent", "rotated"
WRONG_NAME, CONSTANT = "wrong name", "near-constant"

EXAMPLES = 20  # of each that are kept
DIGEST = 16  # bytes

_NEARLY = 4  # of 255: the widest range of values in a channel that counts as constant
_ONE = 64  # 1.0 is 2^64 in the sums: integers, which add up to the same in any order
_BAND = 1 << 20  # pixels whose sums of products a float64 holds exactly
_CHUNK = 1 << 22  # bytes of pixels worked on at once
_TELL = 64  # images that pass between reports of progress
_LEVELS = np.stack([np.arange(256), np.arange(256) ** 2], axis=1)
_FULL = (1, 255, 255**2, 255**3, 255**4)
_LUMA = (299, 587, 114)  # thousandths
_HAS_EXIF = {"exif", "Raw profile type exif", "xmp", "XML:com.adobe.xmp"}
_BITS_PER_SAMPLE = 258  # TIFF's tag
_TURNED = (5, 6, 7, 8)  # EXIF orientations that swap width and height


@dataclass(frozen=True)
class Bad:
    """An image that cannot be used: which, what it is called, what is wrong."""

    index: int
    place: str
    kind: str
    reason: str


@dataclass(frozen=True)
class Where:
    """An image: which, and what it is called."""

    index: int
    place: str


@dataclass(frozen=True)
class Size:
    """An image's size, upright, and what it is called."""

    width: int
    height: int
    place: str


class Moments(NamedTuple):
    """Sums over images of each one's averages over its pixels, in units of 2^-64.

    With v a pixel's value and a its opacity, both 0 … 1, on a background b the sum of the values
    is va + b·(1-a), that of their squares (va)² + 2b·va(1-a) + b²·(1-a)².
    """

    first: tuple[int, ...]  # va, of red, green, blue
    second: tuple[int, ...]  # (va)²
    cross: tuple[int, ...]  # va(1-a)
    clear: int  # 1-a
    clear_squared: int  # (1-a)²

    def plus(self, other: Moments) -> Moments:
        """Those of both."""
        return Moments(
            _added(self.first, other.first),
            _added(self.second, other.second),
            _added(self.cross, other.cross),
            self.clear + other.clear,
            self.clear_squared + other.clear_squared,
        )


_NONE = (0, 0, 0)
_NO_MOMENTS = Moments(_NONE, _NONE, _NONE, 0, 0)


@dataclass
class Facts:
    """What images in a row tell. Facts of the next ones are added with `add`.

    Attributes:
        count: the images looked at, bad ones among them.
        bad: those that cannot be used; what follows is about all others.
        digests: 16 bytes an image, the bad ones' too: the same for the same visible pixels.
        sizes: how many there are of each (width, height), upright.
        modes, formats, depths: how many are stored in each of Pillow's modes, file formats
            ("pixels" for arrays) and bits per channel.
        flags: how many are odd in each way.
        examples: the first 20 of those.
        coloured: how many are not grey, whatever they are stored as.
        moments: sums for means and standard deviations.
        luma, visible: the sum of the visible pixels' mean luma over transparent images of which
            something is visible, in units of 2^-64, and the number of these.
        smallest, largest: by their pixels; the first of equals.
    """

    count: int = 0
    bad: list[Bad] = field(default_factory=list)
    digests: bytearray = field(default_factory=bytearray)
    sizes: Counter[tuple[int, int]] = field(default_factory=Counter)
    modes: Counter[str] = field(default_factory=Counter)
    formats: Counter[str] = field(default_factory=Counter)
    depths: Counter[int] = field(default_factory=Counter)
    flags: Counter[str] = field(default_factory=Counter)
    examples: dict[str, list[Where]] = field(default_factory=dict)
    coloured: int = 0
    moments: Moments = _NO_MOMENTS
    luma: int = 0
    visible: int = 0
    smallest: Size | None = None
    largest: Size | None = None

    def add(self, other: Facts) -> None:
        """Take in the facts of the images that follow."""
        self.count += other.count
        self.bad += other.bad
        self.digests += other.digests
        self.sizes.update(other.sizes)
        self.modes.update(other.modes)
        self.formats.update(other.formats)
        self.depths.update(other.depths)
        self.flags.update(other.flags)
        for flag, examples in other.examples.items():
            known = self.examples.setdefault(flag, [])
            known += examples[: EXAMPLES - len(known)]
        self.coloured += other.coloured
        self.moments = self.moments.plus(other.moments)
        self.luma += other.luma
        self.visible += other.visible
        for size in (other.smallest, other.largest):
            if size is not None:
                self._add_size(size)

    def _add_size(self, size: Size) -> None:
        if self.smallest is None or _pixels(size) < _pixels(self.smallest):
            self.smallest = size
        if self.largest is None or _pixels(size) > _pixels(self.largest):
            self.largest = size

    def _flag(self, flag: str, where: Where) -> None:
        self.flags[flag] += 1
        known = self.examples.setdefault(flag, [])
        if len(known) < EXAMPLES:
            known.append(where)


def examine(
    collection: Collection,
    start: int,
    stop: int,
    *,
    advance: Callable[[int], None] = lambda _: None,
    seconds: float = math.inf,
) -> Facts:
    """The facts of images start … stop - 1; each is decoded once.

    Args:
        advance: is told, now and then, of how many more have been looked at.
        seconds: when to end early; `Facts.count` says how far it came.
    """
    if isinstance(collection, Arrays) and _plain(collection):
        return _of_arrays(collection, start, stop, advance)
    facts = Facts()
    told = 0
    until = perf_counter() + seconds
    for index, item in enumerate(collection.read(start, stop), start):
        facts.count += 1
        try:
            image = decode(item)
        except BadImage as bad:
            facts.bad.append(Bad(index, item.place, bad.kind, bad.reason))
            facts.digests += _digest(f"{bad.kind}: {bad.reason}", b"")
        else:
            _add_image(facts, Where(index, item.place), item, image)
        if facts.count % _TELL == 0:
            advance(_TELL)
            told += _TELL
        if perf_counter() > until:
            break
    advance(facts.count - told)
    return facts


# One image


class _Seen(NamedTuple):
    """What the visible pixels of one image tell."""

    moments: Moments
    coloured: bool
    constant: bool
    luma: int | None = None  # of what is visible of a transparent image


def _add_image(facts: Facts, where: Where, item: Item, image: Image.Image) -> None:
    orientation = _orientation(image)
    width, height = image.size if orientation not in _TURNED else image.size[::-1]
    depth = _depth(item, image)
    stored = image.format or "pixels"
    visible = _visible(image, orientation)
    pixels = visible.tobytes()
    seen = _see(visible, pixels)

    facts.digests += _digest(_header(visible.mode, visible.size), pixels)
    facts.sizes[width, height] += 1
    facts.modes[image.mode] += 1
    facts.formats[stored] += 1
    facts.depths[depth] += 1
    facts.coloured += seen.coloured
    facts.moments = facts.moments.plus(seen.moments)
    if seen.luma is not None:
        facts.luma += seen.luma
        facts.visible += 1
    facts._add_size(Size(width, height, where.place))

    # Last, since a GIF forgets its pixels when it looks for a second frame.
    if stored != "MPO" and _has_frames(image):
        facts._flag(ANIMATED, where)
    if image.mode == "CMYK":
        facts._flag(CMYK, where)
    if image.mode in ("P", "PA"):
        facts._flag(PALETTE, where)
    if depth == 16:
        facts._flag(SIXTEEN_BIT, where)
    if visible.mode == "RGBA":
        facts._flag(TRANSPARENT, where)
    if orientation != 1:
        facts._flag(ROTATED, where)
    if _named_wrongly(where.place, stored):
        facts._flag(WRONG_NAME, where)
    if seen.constant:
        facts._flag(CONSTANT, where)


def _visible(image: Image.Image, orientation: int) -> Image.Image:
    """The image, upright, as L, RGB or 16-bit grey; as RGBA if some of it really is transparent."""
    plain = orientation == 1
    clear = image.has_transparency_data
    if plain and not clear and (image.mode in ("L", "RGB") or _is_deep(image)):
        return image
    if clear:
        whole = image if plain and image.mode == "RGBA" else _shown(image, 4)
        if whole.getchannel("A").getextrema() != (255, 255):
            return whole
    grey = image.mode.startswith(("L", "I", "1")) and image.mode != "LAB"
    return _shown(image, 1 if grey else 3)


def _shown(image: Image.Image, channels: int) -> Image.Image:
    """As it is trained on when its size is kept."""
    width, height = image.size if _orientation(image) not in _TURNED else image.size[::-1]
    pixels = Transform(height, width, channels)(image)
    shown = pixels[0] if channels == 1 else pixels.transpose(1, 2, 0)
    return Image.fromarray(np.ascontiguousarray(shown))


def _is_deep(image: Image.Image) -> bool:
    return image.mode == "I" or image.mode.startswith("I;16")


def _see(visible: Image.Image, pixels: bytes) -> _Seen:
    if visible.mode == "RGBA":
        return _see_transparent(visible)
    if _is_deep(visible):
        return _see_deep(visible)
    channels = len(visible.mode) if visible.mode == "RGB" else 1
    levels = np.fromiter(visible.histogram(), np.int64, 256 * channels).reshape(channels, 256)
    sums = (levels @ _LEVELS).tolist()
    count = visible.width * visible.height
    grey = channels == 1 or (
        sums[0] == sums[1] == sums[2] and pixels[0::3] == pixels[1::3] == pixels[2::3]
    )
    constant = all(_nearly(s, ss, count) for s, ss in sums) and all(
        _range(channel) <= _NEARLY for channel in levels
    )
    return _Seen(_opaque(sums, count, 255), not grey, constant)


def _see_deep(visible: Image.Image) -> _Seen:
    values = np.asarray(visible).astype(np.int64)
    sums = [[int(values.sum()), int((values * values).sum())]]
    constant = int(values.max() - values.min()) <= _NEARLY * 257
    return _Seen(_opaque(sums, values.size, 65535), False, constant)


def _see_transparent(visible: Image.Image) -> _Seen:
    rows = np.asarray(visible).reshape(-1, 4)
    products = [[0] * 5 for _ in range(5)]
    for start in range(0, len(rows), _BAND):
        band = rows[start : start + _BAND].astype(np.float64)
        alpha = band[:, 3:]
        terms = np.concatenate([band[:, :3] * alpha, 255 - alpha, np.ones_like(alpha)], axis=1)
        more = (terms.T @ terms).astype(np.int64).tolist()
        products = [
            [x + y for x, y in zip(*row, strict=True)] for row in zip(products, more, strict=True)
        ]
    count = len(rows)
    shown, clear = [row[4] for row in products[:3]], products[3][4]
    squares = [products[x][x] for x in range(4)]

    def mean(total: int, power: int) -> int:
        return (total << _ONE) // (count * _FULL[power])

    moments = Moments(
        tuple(mean(s, 2) for s in shown),
        tuple(mean(s, 4) for s in squares[:3]),
        tuple(mean(row[3], 3) for row in products[:3]),
        mean(clear, 1),
        mean(squares[3], 2),
    )
    # Σ(x - y)² = Σx² - 2Σxy + Σy²: nought if the two channels are the same.
    coloured = any(squares[x] - 2 * products[x][y] + squares[y] != 0 for x, y in ((0, 1), (1, 2)))
    constant = _nearly(clear, squares[3], count) and _constant_over_alpha(rows)
    opacity = 255 * count - clear
    luma = None
    if opacity:
        weighed: int = sum(w * x for w, x in zip(_LUMA, shown, strict=True))
        luma = (weighed << _ONE) // (1000 * 255 * opacity)
    return _Seen(moments, coloured, constant, luma)


def _constant_over_alpha(rows: NDArray[np.uint8]) -> bool:
    alpha = rows[:, 3:].astype(np.float32)
    shown = rows[:, :3] * (alpha / 255)
    return all(np.ptp(values, axis=0).max() <= _NEARLY for values in (alpha, shown))


def _opaque(sums: Sequence[Sequence[int]], count: int, full: int) -> Moments:
    """Of an image's Σv and Σv² per channel; grey ones count as red, green and blue alike."""
    first = tuple((s << _ONE) // (count * full) for s, _ in sums)
    second = tuple((ss << _ONE) // (count * full**2) for _, ss in sums)
    copies = 3 // len(sums)
    return Moments(first * copies, second * copies, _NONE, 0, 0)


def _nearly(total: int, squares: int, count: int) -> bool:
    """Whether values can lie within a range of 4: then their variance is 4 at most."""
    return count * squares - total * total <= _NEARLY * count * count


def _range(levels: NDArray[np.int64]) -> int:
    used = np.flatnonzero(levels)
    return int(used[-1] - used[0])


def _orientation(image: Image.Image) -> int:
    if image.format != "TIFF" and _HAS_EXIF.isdisjoint(image.info):
        return 1
    try:
        hush_pillow()
        found = image.getexif().get(ExifTags.Base.Orientation, 1)
    except Exception:  # Pillow raises whatever a broken header leads it to
        return 1
    return found if found in range(1, 9) else 1


def _depth(item: Item, image: Image.Image) -> int:
    """Bits per channel, as they are stored."""
    if not isinstance(item.content, bytes):
        return 16 if item.content is not None and item.content.dtype == np.uint16 else 8
    if image.mode == "1":
        return 1
    if image.format == "PNG":
        return 16 if item.content[24] == 16 else 8  # of the header chunk, always the first
    if image.format == "TIFF":
        bits = getattr(image, "tag_v2", {}).get(_BITS_PER_SAMPLE, (8,))
        return max(8, *bits) if isinstance(bits, tuple) else 8
    return 16 if _is_deep(image) else 8


def _has_frames(image: Image.Image) -> bool:
    try:
        return bool(getattr(image, "is_animated", False))
    except Exception:  # what follows the first frame may be anything
        return False


def _named_wrongly(place: str, stored: str) -> bool:
    meant = _formats().get(place[place.rfind(".") :].lower())
    return meant is not None and stored != "pixels" and meant != {"MPO": "JPEG"}.get(stored, stored)


@cache
def _formats() -> dict[str, str]:
    """File name endings and what they stand for."""
    return {
        ending: {"MPO": "JPEG"}.get(f, f) for ending, f in Image.registered_extensions().items()
    }


# Arrays, whole blocks at once


def _plain(arrays: Arrays) -> bool:
    shape = arrays.pixels.shape
    return arrays.pixels.dtype == np.uint8 and (len(shape) == 3 or shape[3] in (1, 3))


def _of_arrays(arrays: Arrays, start: int, stop: int, advance: Callable[[int], None]) -> Facts:
    facts = Facts()
    stop = min(stop, len(arrays))
    step = max(1, _CHUNK * len(arrays) // max(1, arrays.pixels.nbytes))
    for first in range(start, stop, step):
        block = _of_block(arrays, first, min(first + step, stop))
        facts.add(block)
        advance(block.count)
    return facts


def _of_block(arrays: Arrays, start: int, stop: int) -> Facts:
    pixels = np.ascontiguousarray(arrays.pixels[start:stop])
    count, height, width = pixels.shape[:3]
    flat = pixels.reshape(count, height * width, -1)
    mode = "RGB" if flat.shape[2] == 3 else "L"
    values = flat.astype(np.float64)
    sums = np.stack([values.sum(axis=1), np.einsum("npc,npc->nc", values, values)], axis=2)
    ranges = (flat.max(axis=1) - flat.min(axis=1)).max(axis=1)
    header = _header(mode, (width, height))

    facts = Facts(count)
    for image, totals in zip(flat, sums.astype(np.int64).tolist(), strict=True):
        facts.digests += _digest(header, image.data)
        facts.moments = facts.moments.plus(_opaque(totals, height * width, 255))
    facts.sizes[width, height] = facts.modes[mode] = count
    facts.formats["pixels"] = facts.depths[8] = count
    if mode == "RGB":
        red, green, blue = np.moveaxis(flat, 2, 0)
        facts.coloured = int(((red != green) | (green != blue)).any(axis=1).sum())
    for i in np.flatnonzero(ranges <= _NEARLY):
        facts._flag(CONSTANT, _where(arrays, start + int(i)))
    facts._add_size(Size(width, height, _where(arrays, start).place))
    return facts


def _where(arrays: Arrays, index: int) -> Where:
    return Where(index, next(arrays.read(index, index + 1)).place)


# Shared


def _header(mode: str, size: tuple[int, int]) -> str:
    return f"{mode} {size[0]}×{size[1]}"


def _digest(header: str, pixels: bytes | memoryview) -> bytes:
    digest = hashlib.blake2b(header.encode(errors="replace"), digest_size=DIGEST)
    digest.update(pixels)
    return digest.digest()


def _pixels(size: Size) -> int:
    return size.width * size.height


def _added(a: tuple[int, ...], b: tuple[int, ...]) -> tuple[int, ...]:
    return a if b is _NONE else tuple(x + y for x, y in zip(a, b, strict=True))
