"""Augmentation of a batch of images: a pure function of (seed, step) and the place in the batch."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from ..errors import InkdropError, unknown_name
from ..randomness import generator
from .pixels import to_float

PADDINGS = ("edge", "reflect", "zero")
NON_LEAKING_LABELS = 9

_GRID_SAMPLE = {"edge": "border", "reflect": "reflection", "zero": "zeros"}
_SCALE = 0.2  # Karras et al. 2022, App. F.2: a size changes by 2^(0.2 n), n standard normal
_TRANSLATION = 0.125  # of the image's height and width, for n = 1
_LOBES = 3  # of the Lanczos filters
_MARGIN = 2 * _LOBES - 1  # half pixels around an image that its outermost pixels are filtered from
_POINTS_AT_ONCE = 2**22  # sampled half pixels held in memory: some 200 MB for RGB


class Draws(NamedTuple):
    """What is done to each image of a batch of B.

    Attributes:
        offsets: (B, 2) int64, the pixels by which each image is moved up and to the left.
        flips: (B,) bool, whether it is mirrored.
        angles: (B,) degrees by which it is turned counter-clockwise.
        labels: (B, 9) what `affine` does to it besides; zeros where that is nothing.
    """

    offsets: NDArray[np.int64]
    flips: NDArray[np.bool_]
    angles: NDArray[np.float64]
    labels: NDArray[np.float64]

    @property
    def mapped(self) -> NDArray[np.bool_]:
        """(B,), whether the labels say more than flips."""
        return np.asarray(self.labels[:, 2:].any(axis=1))

    @property
    def resampled(self) -> NDArray[np.bool_]:
        """(B,), whether more is done than flips and shifts, which keep pixels as they are."""
        return np.asarray(self.mapped | (self.angles != 0))

    def of(self, rows: slice) -> Draws:
        """What is done to some of the images."""
        return Draws(self.offsets[rows], self.flips[rows], self.angles[rows], self.labels[rows])


@dataclass(frozen=True)
class Augmentation:
    """How images are varied in training.

    A flip, a shift and a rotation make more images that are taken for data. What `non_leaking`
    does is told to the network instead, which then samples images like those of the set: the
    geometric set of Karras et al. 2022, App. F.2. Half of all images are mirrored, and each with
    the given probability, mirrored top to bottom, scaled, turned by any angle, stretched along one
    direction and squeezed across it, and moved by a fraction of their size.

    Attributes:
        horizontal_flip: mirror half of the images.
        shift: move each by up to this many pixels each way.
        padding: what a shift and a rotation bring in: "edge" repeats the outermost pixels,
            "reflect" mirrors the image, outermost pixels included, "zero" is black. What is
            non-leaking always mirrors.
        rotation: turn each by up to this many degrees each way.
        non_leaking: probability of each transformation that is told; 0: none, not even the flip.

    Raises:
        InkdropError: for a value that is not allowed.
    """

    horizontal_flip: bool = False
    shift: int = 0
    padding: str = "edge"
    rotation: float = 0.0
    non_leaking: float = 0.0

    def __post_init__(self) -> None:
        if self.padding not in PADDINGS:
            raise unknown_name("padding", self.padding, PADDINGS)
        if self.shift < 0:
            raise InkdropError(f"shift must be 0 or more pixels, got {self.shift}")
        if not 0 <= self.rotation <= 180:
            raise InkdropError(f"rotation must be from 0 to 180 degrees, got {self.rotation}")
        if not 0 <= self.non_leaking <= 1:
            raise InkdropError(
                f"non_leaking must be a probability from 0 to 1, got {self.non_leaking}; "
                "0.12 and 0.15 are usual"
            )

    @property
    def active(self) -> bool:
        """Whether anything is done to any image."""
        return bool(self.horizontal_flip or self.shift or self.rotation or self.non_leaking)

    @property
    def labels(self) -> int:
        """The numbers a network is told of each image: 9, or 0 if nothing is non-leaking."""
        return NON_LEAKING_LABELS if self.non_leaking else 0

    def draw(self, batch: int, seed: int, step: int) -> Draws:
        """What is done to the `batch` images of a step; a process takes its own rows of it."""
        draws = generator(seed, "augmentation", step)
        offsets = draws.integers(-self.shift, self.shift + 1, size=(2, batch))
        flips = draws.random(batch) < (0.5 if self.horizontal_flip else 0)
        turns = generator(seed, "augmentation: rotation", step).uniform(-1, 1, batch)
        labels = np.zeros((batch, NON_LEAKING_LABELS))
        if self.non_leaking:
            told = generator(seed, "augmentation: non-leaking", step)
            labels = _drawn_labels(told, batch, self.non_leaking)
        return Draws(offsets.T, flips, self.rotation * turns, labels)

    def apply(self, images: Tensor, draws: Draws) -> tuple[Tensor, Tensor | None]:
        """Augmented images, and what a network is told of them.

        Flips and shifts are exact; an image that nothing else is done to keeps its pixel levels.
        All else is one affine map and one resampling of each image, clamped to [-1, 1], which the
        filters overshoot at sharp edges. An image's result does not depend on the others.

        Args:
            images: (B, C, H, W) uint8, on any device.
            draws: for these B images.

        Returns:
            (B, C, H, W) float32 in [-1, 1], and (B, 9) float32 labels; None where there are none.

        Raises:
            InkdropError: if images are not uint8, or not as many as the draws.
        """
        if len(images) != len(draws.flips):
            raise InkdropError(
                f"augmentation was drawn for {len(draws.flips)} images, but there are {len(images)}"
            )
        if not self.active:
            return to_float(images), None
        x_start = to_float(self._moved(images, draws))
        for rows, padding in self._resampled(draws):
            height, width = images.shape[-2:]
            forward = affine(draws.labels[rows], height, width, draws.angles[rows])
            index = torch.from_numpy(rows).to(images.device)
            # Zero is black here, and grey in [-1, 1].
            resampled = resample(x_start[index] + 1, _inverse(forward), padding)
            x_start[index] = resampled.clamp(0, 2) - 1
        if not self.labels:
            return x_start, None
        return x_start, torch.from_numpy(draws.labels.astype(np.float32)).to(images.device)

    def _resampled(self, draws: Draws) -> Iterator[tuple[NDArray[np.int64], str]]:
        """The images that flips and shifts are not all of, by what lies around them."""
        turned = draws.resampled & ~draws.mapped
        for padding in PADDINGS:
            wanted = (turned & (padding == self.padding)) | (draws.mapped & (padding == "reflect"))
            if wanted.any():
                yield np.flatnonzero(wanted), padding

    def _moved(self, images: Tensor, draws: Draws) -> Tensor:
        """The flips and shifts, exactly; flips that are told only where no more is done."""
        batch, channels, height, width = images.shape
        mirrored, upside_down = ((draws.labels[:, i] != 0) & ~draws.resampled for i in (0, 1))
        rows, above = _source(np.arange(height) + draws.offsets[:, :1], height, self.padding)
        columns, beside = _source(np.arange(width) + draws.offsets[:, 1:], width, self.padding)
        vertical, horizontal = upside_down[:, None], (draws.flips ^ mirrored)[:, None]
        rows, above = (np.where(vertical, a[:, ::-1], a) for a in (rows, above))
        columns, beside = (np.where(horizontal, a[:, ::-1], a) for a in (columns, beside))
        pixels = torch.from_numpy(
            (rows[:, :, None] * width + columns[:, None]).reshape(batch, 1, -1)
        )
        index = pixels.to(images.device).expand(-1, channels, -1)
        moved = images.flatten(2).gather(2, index).view(images.shape)
        if above.all() and beside.all():
            return moved
        shown = torch.from_numpy(above[:, :, None] & beside[:, None])
        return moved * shown.to(images.device)[:, None]


def affine(
    labels: NDArray[np.float64],
    height: int,
    width: int,
    angles: NDArray[np.float64] | float = 0.0,
) -> NDArray[np.float64]:
    """Where the labels of `non_leaking` send the points of an image, after turning it by `angles`.

    The nine labels, zeros if nothing is done, and what they do, in this order:

    - 0, 1: 1 if mirrored left to right, top to bottom;
    - 2: n, scaled by 2^(0.2 n);
    - 3, 4: cos a - 1 and sin a, turned by a counter-clockwise;
    - 5, 6: n cos 2d and n sin 2d, stretched by 2^(0.2 n) along the direction d and squeezed by as
      much across it. (The paper has d for 2d, which tells a stretch along d and a squeeze along
      d + π alike.);
    - 7, 8: moved by so many eighths of the width to the right, of the height down.

    Args:
        labels: (B, 9).
        height, width: of the image, in pixels.
        angles: (B,) degrees counter-clockwise.

    Returns:
        (B, 2, 3): from (x, y, 1) to (x, y), in pixels to the right of the image's centre and below.
    """
    mirrors, n, cosine, sine, stretch, moves = np.split(labels, [2, 3, 4, 5, 7], axis=1)
    turn = np.radians(np.broadcast_to(angles, len(labels)))[:, None]
    linear = _turned(np.cos(turn), np.sin(turn))
    linear = (1 - 2 * mirrors)[:, :, None] * linear
    linear = 2 ** (_SCALE * n)[:, :, None] * linear
    linear = _turned(1 + cosine, sine) @ linear
    linear = _stretched(stretch) @ linear
    moved = _TRANSLATION * moves * (width, height)
    return np.concatenate([linear, moved[:, :, None]], axis=2)


def resample(images: Tensor, inverse: NDArray[np.float64], padding: str) -> Tensor:
    """Affine maps of images, antialiased.

    Sampled from twice the resolution at twice the resolution (bicubic), with Lanczos filters on the
    way up and down: next to no aliasing where nothing shrinks to less than 0.4. Not clamped.

    Args:
        images: (B, C, H, W) floats.
        inverse: (B, 2, 3), where in the image each point of the result comes from: from (x, y, 1)
            to (x, y) in pixels from the centre.
        padding: what is around an image: edge, reflect or zero.
    """
    height, width = images.shape[-2:]
    at_once = max(1, _POINTS_AT_ONCE // ((2 * height + 9) * (2 * width + 9)))
    parts = []
    for first in range(0, len(images), at_once):
        these = slice(first, first + at_once)
        # Not every version of torch that will do has bicubic sampling for Apple's GPUs.
        fine = images[these].cpu() if images.device.type == "mps" else images[these]
        fine = _doubled(_doubled(fine, padding).mT, padding).mT.contiguous()
        grid = _grid(inverse[these], height, width).to(fine.device)
        points = F.grid_sample(fine, grid, "bicubic", _GRID_SAMPLE[padding], align_corners=False)
        parts.append(_halved(_halved(points).mT).mT)
    return torch.cat(parts).to(images.device)


def _drawn_labels(draws: np.random.Generator, batch: int, p: float) -> NDArray[np.float64]:
    mirrors = draws.random((batch, 2)) < 0.5
    scale, stretch, right, down = draws.standard_normal((batch, 4)).T
    angle, twice_direction = draws.uniform(-math.pi, math.pi, (batch, 2)).T
    done = draws.random((batch, 5)) < p
    upside_down, scaled, turned, stretched, moved = done.T
    return np.stack(
        [
            mirrors[:, 0],
            mirrors[:, 1] & upside_down,
            scale * scaled,
            (np.cos(angle) - 1) * turned,
            np.sin(angle) * turned,
            stretch * np.cos(twice_direction) * stretched,
            stretch * np.sin(twice_direction) * stretched,
            right * moved,
            down * moved,
        ],
        axis=1,
    )


def _turned(cosine: NDArray[np.float64], sine: NDArray[np.float64]) -> NDArray[np.float64]:
    """(B, 1) each → (B, 2, 2), counter-clockwise to the eye: y points down."""
    return np.concatenate([cosine, sine, -sine, cosine], axis=1).reshape(-1, 2, 2)


def _stretched(told: NDArray[np.float64]) -> NDArray[np.float64]:
    """(B, 2) → (B, 2, 2): the exponential of the symmetric matrix ((u, v), (v, -u)) ln 2^0.2."""
    # Directions are counter-clockwise to the eye too, so that v has the other sign.
    u, v = _SCALE * math.log(2) * told[:, 0], -_SCALE * math.log(2) * told[:, 1]
    size = np.hypot(u, v)
    ratio = np.sinh(size) / np.where(size == 0, 1, size)
    matrix = np.stack([u, v, v, -u], axis=1) * ratio[:, None]
    return matrix.reshape(-1, 2, 2) + np.cosh(size)[:, None, None] * np.eye(2)


def _inverse(forward: NDArray[np.float64]) -> NDArray[np.float64]:
    linear = np.linalg.inv(forward[:, :, :2])
    return np.concatenate([linear, -linear @ forward[:, :, 2:]], axis=2)


def _source(
    positions: NDArray[np.int64], size: int, padding: str
) -> tuple[NDArray[np.int64], NDArray[np.bool_]]:
    """The pixels 0 … size - 1 that stand at positions inside and outside, and which are to show."""
    if padding == "reflect":
        around = positions % (2 * size)
        return np.minimum(around, 2 * size - 1 - around), np.ones_like(around, dtype=bool)
    inside = np.clip(positions, 0, size - 1)
    return inside, (inside == positions) | (padding != "zero")


def _grid(inverse: NDArray[np.float64], height: int, width: int) -> Tensor:
    """(B, 2 H + 10, 2 W + 10, 2) places in the images, whose edges are -1 and 1, to sample at."""
    across, along = (
        torch.arange(-_MARGIN, 2 * side + _MARGIN, dtype=torch.float32) / 2 + 0.25 - side / 2
        for side in (width, height)
    )
    scaled = inverse * 2 / np.array([width, height])[:, None]
    x, y, one = torch.from_numpy(scaled.astype(np.float32)).unbind(2)  # each (B, 2)
    x, y, one = (a[:, None, None, :] for a in (x, y, one))
    return x * across[:, None] + y * along[:, None, None] + one


def _lanczos(distances: NDArray[np.floating[Any]]) -> list[float]:
    weights = np.sinc(distances) * np.sinc(distances / _LOBES)
    return [float(weight) for weight in weights / weights.sum()]


_BEFORE = _lanczos(np.arange(-_LOBES, _LOBES) + 0.25)  # a quarter pixel before a pixel
_HALVING = _lanczos(np.arange(-2 * _LOBES + 0.5, 2 * _LOBES) / 2)


def _doubled(images: Tensor, padding: str) -> Tensor:
    """Twice the width: two samples for each pixel, a quarter of it to either side of its centre."""
    width = images.shape[-1]
    index, shown = _source(np.arange(-_LOBES, width + _LOBES), width, padding)
    padded = images[..., torch.from_numpy(index).to(images.device)]
    if not shown.all():
        padded = padded * torch.from_numpy(shown).to(images.device)
    before = _weighed([padded[..., k : k + width] for k in range(2 * _LOBES)], _BEFORE)
    after = _weighed([padded[..., k + 1 : k + 1 + width] for k in range(2 * _LOBES)], _BEFORE[::-1])
    return torch.stack([before, after], dim=-1).flatten(-2)


def _halved(points: Tensor) -> Tensor:
    """Half the width, less the margins."""
    width = points.shape[-1] - 2 * _MARGIN
    return _weighed([points[..., k : k + width : 2] for k in range(4 * _LOBES)], _HALVING)


def _weighed(parts: list[Tensor], weights: list[float]) -> Tensor:
    # A product and a sum at a time: how a matrix product rounds depends on the size of the batch.
    total = parts[0] * weights[0]
    for part, weight in zip(parts[1:], weights[1:], strict=True):
        total += part * weight
    return total
