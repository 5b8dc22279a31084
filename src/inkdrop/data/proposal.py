"""What inkdrop proposes to do with images as they were found: a pure function of their check."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from ..config import DataConfig
from ..console import counted
from ..errors import InkdropError
from .checked import Check, Part
from .facts import ANIMATED, CMYK, PALETTE, ROTATED, SIXTEEN_BIT, TRANSPARENT
from .transform import Transform, colour_name, parse_colour

_LONGEST = 64  # pixels that a network trains on in reasonable time without being asked for more
_SIDES = (8, 12, 16, 24, 32, 48, 64)
_SAME_ASPECT = 1.02  # widest over narrowest, of images that count as one shape
_LIGHT = 0.75  # luma from which on images hardly show on white
_WHITE, _BLACK = (255, 255, 255), (0, 0, 0)


@dataclass(frozen=True)
class Proposal:
    """What is done to every image, and why, a sentence each."""

    transform: Transform
    reasons: tuple[str, ...]


def propose(check: Check, data: DataConfig) -> Proposal:
    """What the configuration asks for; where it leaves something open, what suits the images.

    Raises:
        InkdropError: for a background that is no colour, or if not one image can be used.
    """
    for part in check.parts:
        if part.usable == 0:
            raise InkdropError(
                f"{part.name}: not one of {part.count:,} images can be used (the first: "
                f"{part.bad[0].place}: {part.bad[0].reason})"
            )
    parts = check.parts
    (height, width), why_size = _size(check.train, data)
    channels, why_channels = _channels(parts, data)
    background, why_background = _background(parts, data, channels)
    transform = Transform(height, width, channels, data.fit, background)
    smaller = sum(_enlarged(part, transform) for part in parts)
    reasons = [
        why_size,
        *_shape_note(parts, transform),
        *([counted(smaller, "smaller image") + " enlarged"] if smaller else []),
        why_channels,
        *([why_background] if why_background else []),
    ]
    return Proposal(transform, tuple(reasons))


_CONVERTED = {
    ROTATED: "turned upright, as EXIF says",
    ANIMATED: "of several frames: the first is used",
    PALETTE: "with a palette: its colours are used",
    CMYK: "for print (CMYK): made RGB",
    SIXTEEN_BIT: "of 16 bits: brought to 8",
}


def converted(check: Check) -> list[str]:
    """What happens to some of the images whatever is asked for, in words; with how many."""
    counts = {flag: sum(part.flagged(flag) for part in check.parts) for flag in _CONVERTED}
    said = [f"{n:,} {_CONVERTED[flag]}" for flag, n in counts.items() if n]
    bad = len(check.bad)
    return [*([f"{bad:,} left out, which cannot be used"] if bad else []), *said]


def _size(part: Part, data: DataConfig) -> tuple[tuple[int, int], str]:
    if data.size:
        height, width = data.size * (2 if len(data.size) == 1 else 1)
        return (height, width), f"{_named(height, width)}, as asked"
    widths, heights = zip(*(_sides(size) for size in part.sizes), strict=True)
    if part.distinct_sizes == 1:
        height, width = heights[0], widths[0]
        if max(height, width) <= _LONGEST:
            return (height, width), f"{_named(height, width)}, as they are"
    narrowest, middle, widest = part.aspect
    if widest <= narrowest * _SAME_ASPECT:
        longest = min(_LONGEST, _fitting(part.middle_side * max(middle, 1 / middle)))
        height = longest if middle <= 1 else max(1, round(longest / middle))
        width = longest if middle >= 1 else max(1, round(longest * middle))
    else:
        height = width = _fitting(part.middle_side)
    return (height, width), f"{_named(height, width)}, unless another is asked for"


def _enlarged(part: Part, transform: Transform) -> int:
    """How many images are; by their shorter sides where not all sizes are known."""
    height, width = transform.height, transform.width
    if len(part.sizes) < part.distinct_sizes:
        return sum(n for side, n in part.shorter_sides.items() if side < min(height, width))
    scale = min if transform.fit == "pad" else max
    return sum(
        n
        for (wide, high), n in ((_sides(size), n) for size, n in part.sizes.items())
        if scale(height / high, width / wide) > 1
    )


def _named(height: int, width: int) -> str:
    return f"size {height}×{width}" + (" (height×width)" if height != width else "")


def _fitting(side: float) -> int:
    """The largest usual side that is no larger."""
    return max((usual for usual in _SIDES if usual <= side), default=max(1, int(side)))


def _sides(size: str) -> tuple[int, int]:
    width, height = size.split("×")
    return int(width), int(height)


def _shape_note(parts: Sequence[Part], transform: Transform) -> list[str]:
    narrowest = min(part.aspect[0] for part in parts)
    widest = max(part.aspect[2] for part in parts)
    target = transform.width / transform.height
    if narrowest * _SAME_ASPECT >= target and widest <= target * _SAME_ASPECT:
        return []
    around = "nothing" if transform.channels == 4 else colour_name(transform.background)
    does = {
        "crop": "other shapes cropped to their middle",
        "random-crop": "other shapes cropped at a random place",
        "pad": f"other shapes padded with {around}",
        "stretch": "other shapes stretched",
    }
    return [does[transform.fit]]


def _channels(parts: Sequence[Part], data: DataConfig) -> tuple[int, str]:
    names = {1: "grey", 3: "colour", 4: "colour with transparency"}
    coloured = sum(part.coloured for part in parts)
    usable = sum(part.count - len(part.bad) for part in parts)
    if data.channels is not None:
        lost = coloured if data.channels == 1 else 0
        note = f" ({counted(lost, 'image')} had colour)" if lost else ""
        return data.channels, f"{names[data.channels]}, as asked{note}"
    if coloured == 0:
        stored = sum(n for part in parts for mode, n in part.modes.items() if mode not in _GREY)
        note = f" ({stored:,} of {usable:,} images are stored as colour, but have none)"
        return 1, "grey" + (note if stored else "")
    without = usable - coloured
    return 3, "colour" + (f" ({without:,} of {usable:,} images have none)" if without else "")


_GREY = ("L", "1", "I;16", "I;16B", "I;16L", "I", "LA", "La")


def _background(
    parts: Sequence[Part], data: DataConfig, channels: int
) -> tuple[tuple[int, int, int], str]:
    transparent = sum(part.flagged(TRANSPARENT) for part in parts)
    needed = (transparent and channels < 4) or data.fit == "pad"
    if data.background != "auto":
        colour = parse_colour(data.background)
        what = f"{counted(transparent, 'transparent image')} on {data.background}, as asked"
        return colour, what if transparent and channels < 4 else ""
    lumas = [part.visible_luma for part in parts if part.visible_luma is not None]
    light = bool(lumas) and lumas[0] > _LIGHT
    colour = _BLACK if light else _WHITE
    if not needed or not transparent:
        return colour, ""
    why = "black, since they are light" if light else "white"
    return colour, f"{counted(transparent, 'transparent image')} on {why}"
