"""What is known of a set of images once every one of them has been looked at."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any, NamedTuple

from ..errors import InkdropError
from .facts import Bad, Size, Where

FORMAT_VERSION = 1  # changes whenever the same images give another check


class Statistics(NamedTuple):
    """Mean and standard deviation of red, green and blue on the scale 0 … 1, and of all values.

    Attributes:
        sigma_data: the standard deviation over all pixels and channels on the network's scale,
            [-1, 1].
    """

    mean: tuple[float, float, float]
    std: tuple[float, float, float]
    sigma_data: float


@dataclass(frozen=True)
class Averages:
    """Averages over images of their averages over pixels, scale 0 … 1: see `facts.Moments`."""

    first: tuple[float, float, float]
    second: tuple[float, float, float]
    cross: tuple[float, float, float]
    clear: float
    clear_squared: float


@dataclass(frozen=True)
class Flag:
    """How many images are odd in one way, and the first twenty of them."""

    count: int
    examples: tuple[Where, ...]


@dataclass(frozen=True)
class Part:
    """What is known of the training or the test images. All but `count` is about usable ones.

    Attributes:
        name: the collection's.
        count: how many there are, bad ones among them.
        bad: those that cannot be used, all of them.
        sizes: how many there are of each "width×height", upright; the 50 most common.
        distinct_sizes: how many different ones there are.
        shorter_sides: how many images have a shorter side of so many pixels.
        aspect: width over height: smallest, median, largest; zeros where nothing is usable.
        smallest, largest: by pixels.
        modes, formats, depths: how many are stored so: Pillow's modes, file formats ("pixels" for
            arrays), bits per channel.
        flags: what is odd, by the names in `facts`; only what there is.
        coloured: how many are not grey, whatever they are stored as.
        classes: how many there are of each; None without labels.
        class_names: of the collection.
        duplicates: how many repeat an earlier one.
        duplicate_groups: the first twenty groups of equal images, of each the first six.
        averages: what `statistics` is computed from; None where nothing is usable.
        visible_luma: the mean luma (0 … 1) of the visible pixels of transparent images.
        content: a digest (hex) of all visible pixels, labels and class names, in order.
    """

    name: str
    count: int
    bad: tuple[Bad, ...]
    sizes: dict[str, int]
    distinct_sizes: int
    shorter_sides: dict[int, int]
    aspect: tuple[float, float, float]
    smallest: Size | None
    largest: Size | None
    modes: dict[str, int]
    formats: dict[str, int]
    depths: dict[int, int]
    flags: dict[str, Flag]
    coloured: int
    classes: tuple[int, ...] | None
    class_names: tuple[str, ...]
    duplicates: int
    duplicate_groups: tuple[tuple[Where, ...], ...]
    averages: Averages | None
    visible_luma: float | None
    content: str

    @property
    def usable(self) -> int:
        """How many are not bad."""
        return self.count - len(self.bad)

    @property
    def middle_side(self) -> int:
        """The median of the usable images' shorter sides; 0 where there is none."""
        left = sum(self.shorter_sides.values()) / 2
        for side in sorted(self.shorter_sides):
            left -= self.shorter_sides[side]
            if left <= 0:
                return side
        return 0

    @cached_property
    def skipped(self) -> frozenset[int]:
        """The indices of the bad ones."""
        return frozenset(bad.index for bad in self.bad)

    def flagged(self, flag: str) -> int:
        """How many images are odd in that way."""
        return self.flags[flag].count if flag in self.flags else 0

    def statistics(self, background: tuple[int, int, int] = (255, 255, 255)) -> Statistics:
        """Of the images as they are stored, transparent ones on `background` (0 … 255).

        Every image counts alike, whatever its size.

        Raises:
            InkdropError: if not one image is usable.
        """
        if self.averages is None:
            raise InkdropError(f"{self.name}: not one of {self.count:,} images can be used")
        known = self.averages
        means, squares = [], []
        for channel, level in enumerate(background):
            b = level / 255
            means.append(known.first[channel] + b * known.clear)
            squares.append(
                known.second[channel] + 2 * b * known.cross[channel] + b**2 * known.clear_squared
            )
        stds = [math.sqrt(max(0.0, s - m * m)) for m, s in zip(means, squares, strict=True)]
        whole = sum(squares) / 3 - (sum(means) / 3) ** 2
        return Statistics(three(means), three(stds), 2 * math.sqrt(max(0.0, whole)))


@dataclass(frozen=True)
class Check:
    """What is known of a set of images.

    Attributes:
        format_version: `FORMAT_VERSION` when it was made.
        name, kind, notes: of the collections.
        train, test: the parts; None without test images.
        leaks: how many test images are also among the training images.
        leak_pairs: the first twenty, (training image, test image) each.
        seconds: how long it took.
    """

    format_version: int
    name: str
    kind: str
    notes: tuple[str, ...]
    train: Part
    test: Part | None
    leaks: int
    leak_pairs: tuple[tuple[Where, Where], ...]
    seconds: float

    @property
    def parts(self) -> tuple[Part, ...]:
        """The training and, if there are any, the test images."""
        return (self.train,) if self.test is None else (self.train, self.test)

    @property
    def bad(self) -> list[Bad]:
        """The bad images of both parts."""
        return [bad for part in self.parts for bad in part.bad]

    @property
    def content(self) -> str:
        """A digest (hex) of the content of both parts."""
        return hashlib.sha256(" ".join(part.content for part in self.parts).encode()).hexdigest()

    def to_json(self) -> dict[str, Any]:
        """All of it as `json` can write it; `from_json` reads it."""
        from pydantic import TypeAdapter

        made: dict[str, Any] = TypeAdapter(Check).dump_python(self, mode="json")
        return made

    @staticmethod
    def from_json(known: Mapping[str, Any]) -> Check:
        """What `to_json` made, also after it was written and read.

        Raises:
            ValueError: if it is anything else.
        """
        from pydantic import TypeAdapter

        return TypeAdapter(Check).validate_python(known)


def three(values: Iterable[float]) -> tuple[float, float, float]:
    """Red, green and blue."""
    red, green, blue = values
    return red, green, blue
