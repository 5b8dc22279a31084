"""A check in words: what a person reads on the terminal."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING

from ..console import say
from ..errors import InkdropError
from .checked import Check, Flag, Part
from .facts import (
    ANIMATED,
    CMYK,
    CONSTANT,
    EXAMPLES,
    PALETTE,
    ROTATED,
    SIXTEEN_BIT,
    TRANSPARENT,
    WRONG_NAME,
    Size,
)

if TYPE_CHECKING:
    from rich.console import Console

_LABEL = 12  # letters before the text of a line
_SHOWN = 3  # examples of each kind of oddity
_BAD_SHOWN = 5
_BARS = 20  # classes that are shown as bars
_BAR = 24  # letters of the longest
_EIGHTHS = " ▏▎▍▌▋▊▉█"

# What each oddity means for training.
_ODD = {
    TRANSPARENT: "with transparent pixels, shown on a background",
    ROTATED: "turned upright as their EXIF data say",
    ANIMATED: "of several frames, of which the first is used",
    PALETTE: "with a palette, made RGB",
    CMYK: "for print (CMYK), made RGB: colours may shift",
    SIXTEEN_BIT: "of 16 bits, brought to 8",
    CONSTANT: "of nearly one colour",
    WRONG_NAME: "named as another format than they are",
}


def lines(check: Check, proposal: Sequence[str] = ()) -> list[str]:
    """What was found, aligned for a terminal, and then what is proposed."""
    text: list[str] = []
    names = ("training images", "test images") if check.test is not None else ("images",)
    for part, name in zip(check.parts, names, strict=True):
        text += ["", f"{part.count:,} {name}", *_of_part(part)]
    if check.test is not None:
        text += ["", *_leaks(check)]
    if proposal:
        text += ["", "proposed", *(f"  {line}" for line in proposal)]
    return text[1:]


def stop_for_bad(check: Check, console: Console | None = None) -> None:
    """Refuse a set some of whose images cannot be used; the first twenty are named.

    Raises:
        InkdropError: how many there are, of which kinds, and what to do.
    """
    bad = check.bad
    if not bad:
        return
    for one in bad[:EXAMPLES]:
        say(console, f"  {one.place}: {one.reason}")
    if len(bad) > EXAMPLES:
        say(console, f"  … and {len(bad) - EXAMPLES:,} more")
    kinds = _counted(Counter(one.kind for one in bad))
    total = sum(part.count for part in check.parts)
    raise InkdropError(
        f"{len(bad):,} of {total:,} images cannot be used ({kinds}; the first: {bad[0].place}: "
        f"{bad[0].reason}); mend or remove them, or leave them out with --bad-images skip"
    )


def _counted(counts: Mapping[str, int]) -> str:
    """ "4 truncated, 3 unreadable": the most common first."""
    ranked = sorted(counts.items(), key=lambda entry: -entry[1])
    return ", ".join(f"{n:,} {name}" for name, n in ranked)


# One part


def _of_part(part: Part) -> list[str]:
    if part.usable == 0:
        return _bad(part)
    return [
        *_line("size", _sizes(part)),
        *_line("stored as", _stored(part)),
        *_line("colour", _colour(part)),
        *_line("pixels", _pixels(part)),
        *_classes(part),
        *_bad(part),
        *_odd(part),
        *_duplicates(part),
    ]


def _line(label: str, text: str) -> list[str]:
    return [f"  {label:<{_LABEL}}{text}"]


def _under(texts: Iterable[str]) -> list[str]:
    return [f"  {'':<{_LABEL}}{text}" for text in texts]


def _sizes(part: Part) -> str:
    if part.distinct_sizes == 1:
        return f"{next(iter(part.sizes))}, all of them"
    assert part.smallest is not None
    assert part.largest is not None
    common, n = next(iter(part.sizes.items()))
    return (
        f"{_size(part.smallest)} … {_size(part.largest)}, {part.distinct_sizes:,} sizes, most "
        f"often {common} ({_share(n, part.usable)}); shorter side {part.middle_side} "
        f"and width : height {part.aspect[1]:.2f} in the middle"
    )


def _size(size: Size) -> str:
    return f"{size.width}×{size.height}"


def _stored(part: Part) -> str:
    depths = {f"{depth} bits" if depth > 1 else "1 bit": n for depth, n in part.depths.items()}
    return "; ".join(_kinds(counts, part.usable) for counts in (part.formats, part.modes, depths))


def _kinds(counts: Mapping[str, int], total: int) -> str:
    if len(counts) == 1:
        return next(iter(counts))
    return ", ".join(f"{name} {_share(n, total)}" for name, n in counts.items())


def _colour(part: Part) -> str:
    grey = part.usable - part.coloured
    if grey == 0:
        return "all in colour"
    stored = any(mode not in ("L", "1", "I", "LA", "La") for mode in part.modes)
    if part.coloured == 0:
        return "all grey" + (", though some are stored as colours" if stored else "")
    return f"{part.coloured:,} in colour, {grey:,} grey"


def _pixels(part: Part) -> str:
    known = part.statistics()
    alike = part.coloured == 0

    def values(levels: Sequence[float]) -> str:
        return " ".join(f"{level:.3f}" for level in levels[: 1 if alike else 3])

    beneath = ", on white" if part.flagged(TRANSPARENT) else ""
    return (
        f"mean {values(known.mean)}, std {values(known.std)} of full scale{beneath}; "
        f"σ_data {known.sigma_data:.3f}"
    )


def _classes(part: Part) -> list[str]:
    if part.classes is None:
        return _line("classes", "no labels")
    counts = part.classes
    low, high = min(counts), max(counts)
    if low == high:
        balance = f"{low:,} images each"
    else:
        balance = f"{low:,} … {high:,} images each"
        balance += f", the largest {high / low:.1f} times the smallest" if low else ""
        empty = sum(n == 0 for n in counts)
        balance += f", {empty:,} without any" if empty else ""
    text = _line("classes", f"{len(counts):,}, {balance}")
    if len(counts) <= _BARS and (low < high or part.class_names):
        names = part.class_names or tuple(map(str, range(len(counts))))
        short = [name if len(name) <= 20 else f"{name[:19]}…" for name in names]
        if low == high:
            return text + _under([", ".join(short)])
        widths = max(map(len, short)), len(f"{high:,}")
        text += _under(
            f"{name:<{widths[0]}} {n:>{widths[1]},} {_bar(n / max(1, high))}".rstrip()
            for name, n in zip(short, counts, strict=True)
        )
    return text


def _bar(share: float) -> str:
    eighths = round(share * _BAR * 8)
    return "█" * (eighths // 8) + _EIGHTHS[eighths % 8].strip()


def _bad(part: Part) -> list[str]:
    if not part.bad:
        return _line("unusable", "none")
    kinds = Counter(bad.kind for bad in part.bad)
    text = _line("unusable", f"{len(part.bad):,}: {_counted(kinds)}")
    text += _under(f"{bad.place}: {bad.reason}" for bad in part.bad[:_BAD_SHOWN])
    if len(part.bad) > _BAD_SHOWN:
        text += _under([f"… and {len(part.bad) - _BAD_SHOWN:,} more"])
    return text


def _odd(part: Part) -> list[str]:
    odd = [(flag, part.flags[flag]) for flag in _ODD if flag in part.flags]
    if not odd:
        return []
    width = max(len(f"{flagged.count:,}") for _, flagged in odd)
    said = [f"{f.count:>{width},} {_ODD[flag]}{_such_as(f, part.usable)}" for flag, f in odd]
    return [*_line("odd", said[0]), *_under(said[1:])]


def _such_as(flagged: Flag, total: int) -> str:
    if flagged.count == total:
        return ""
    places = [where.place for where in flagged.examples[:_SHOWN]]
    return f": {', '.join(places)}" + (" …" if flagged.count > len(places) else "")


def _duplicates(part: Part) -> list[str]:
    if not part.duplicates:
        return _line("twice", "none")
    verb = "repeats" if part.duplicates == 1 else "repeat"
    text = _line("twice", f"{part.duplicates:,} {verb} an earlier image")
    text += _under(
        " = ".join(where.place for where in group[:_SHOWN]) + (" …" if len(group) > _SHOWN else "")
        for group in part.duplicate_groups[:_SHOWN]
    )
    return text


def _leaks(check: Check) -> list[str]:
    if not check.leaks:
        return ["no test image is among the training images"]
    verb = "image is" if check.leaks == 1 else "images are"
    pairs = [f"  {test.place} = {train.place}" for train, test in check.leak_pairs[:_SHOWN]]
    return [
        f"{check.leaks:,} test {verb} also among the training images: what is measured on them "
        "is too good",
        *pairs,
        *(["  …"] if check.leaks > len(pairs) else []),
    ]


def _share(n: int, total: int) -> str:
    share = n / total
    return f"{share:.0%}" if 0.01 <= share <= 0.99 else f"{n:,}"
