"""Points in the plane: data that trains in seconds and whose truth is known."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import ClassVar, NamedTuple, Self

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ..errors import InkdropError, unknown_name
from ..randomness import generator
from .examples import Examples

Floats = NDArray[np.float64]


@dataclass(frozen=True, eq=False)
class PointSet(Examples):
    """Points and, if there are any, their labels. The tensors are not to be written to.

    Attributes:
        points: (N, D) float32, finite; best with a standard deviation near one.
        labels: classes (N,) int64, 0 or more, or vectors (N, V) float32, finite; None for points
            without labels.
        name: what messages call the set.

    Raises:
        InkdropError: if a tensor has another type or shape, there is no point, or a coordinate is
            not a finite number.
    """

    noun: ClassVar[str] = "point"
    points: Tensor
    labels: Tensor | None
    name: str

    def __post_init__(self) -> None:
        _check_points(self.points, self.name)
        self._check_labels()

    @property
    def values(self) -> Tensor:
        """The points, (N, D) float32."""
        return self.points

    @property
    def size(self) -> str:
        """The dimensions in words."""
        (dimensions,) = self.shape
        return f"{dimensions} dimension{'s' if dimensions > 1 else ''}"

    def _taken(self, index: Tensor) -> Self:
        return type(self)(self.at(index), self.labels_at(index), self.name)


class Mixture(NamedTuple):
    """A Gaussian mixture: means (K, D), covariances (K, D, D) and weights (K,) that sum to one."""

    means: Floats
    covariances: Floats
    weights: Floats


def draw(name: str, n: int, seed: int = 0, purpose: str = "points") -> Tensor:
    """n independent points in the plane, (n, 2) float32, of a distribution known by name.

    Every distribution has mean zero and a standard deviation of 0.5 … 1 along both axes.

        points-gmm            seven Gaussians of different weights and shapes, see `MIXTURES`
        points-swiss-roll     a spiral with noise across it
        points-checkerboard   the eight dark squares of a board of 4×4
        points-two-moons      two interlocked half circles
        points-rings          three concentric rings
        points-dial           the hand of a dial at any angle, see `dial`

    Args:
        seed, purpose: the address of the draw, see `inkdrop.randomness`.

    Raises:
        InkdropError: if the name is unknown or n is less than 1.
    """
    return draw_told(name, n, seed, purpose)[0]


def draw_told(
    name: str, n: int, seed: int = 0, purpose: str = "points"
) -> tuple[Tensor, Tensor | None]:
    """The points of `draw`, and the vectors (n, V) float32 that are told of them, if any are.

    Of points-dial the vectors are (cos θ, sin θ), θ the angle at which the hand stood.
    """
    if name not in _DRAWS:
        raise unknown_name("distribution of points", name, _DRAWS)
    if n < 1:
        raise InkdropError(f"n must be at least 1, got {n}")
    drawn = _DRAWS[name](n, generator(seed, f"{purpose}: {name}"))
    points, vectors = drawn if isinstance(drawn, tuple) else (drawn, None)
    told = None if vectors is None else torch.from_numpy(vectors.astype(np.float32))
    return torch.from_numpy(points.astype(np.float32)), told


def dial(angle: float) -> Mixture:
    """The points of points-dial given an angle in radians: a hand of three modes that points there.

    Two lie along the hand; the third is its tail, across it.
    """
    means, covariances, weights = _HAND
    turn = _turned(np.array([angle]))[0]
    return Mixture(means @ turn.T, turn @ covariances @ turn.T, weights)


def _turned(angles: Floats) -> Floats:
    """The rotations (n, 2, 2) by angles (n,) in radians."""
    cosine, sine = np.cos(angles), np.sin(angles)
    rotations: Floats = np.stack([np.stack([cosine, -sine], 1), np.stack([sine, cosine], 1)], 1)
    return rotations


Mode = tuple[float, float, float, float, float, float]


def _mixture(*modes: Mode) -> Mixture:
    """From modes as those of `_as_given`, moved to have mean zero."""
    means, covariances, weights = _as_given(*modes)
    return Mixture(means - weights @ means, covariances, weights)


def _as_given(*modes: Mode) -> Mixture:
    """From modes (weight, x, y, length, width, angle in degrees)."""
    weights, x, y, length, width, angle = np.array(modes, dtype=np.float64).T
    weights = weights / weights.sum()
    means = np.stack([x, y], axis=1)
    cosine, sine = np.cos(np.radians(angle)), np.sin(np.radians(angle))
    along = length[:, None] * np.stack([cosine, sine], axis=1)
    across = width[:, None] * np.stack([-sine, cosine], axis=1)
    covariances = along[:, :, None] * along[:, None, :] + across[:, :, None] * across[:, None, :]
    return Mixture(means, covariances, weights)


_HAND = _as_given(  # of the dial, at angle 0
    (0.45, 1.25, 0, 0.20, 0.07, 0),
    (0.35, 0.55, 0, 0.16, 0.07, 0),
    (0.20, -0.45, 0, 0.28, 0.07, 90),
)

MIXTURES: dict[str, Mixture] = {
    "points-gmm": _mixture(
        (0.22, -0.95, 0.70, 0.20, 0.08, 35),
        (0.18, 1.00, 0.75, 0.18, 0.10, -40),
        (0.16, 0.10, 0.05, 0.13, 0.13, 0),
        (0.14, -1.15, -0.55, 0.18, 0.07, 100),
        (0.12, 1.20, -0.40, 0.20, 0.07, 75),
        (0.10, -0.20, -1.20, 0.22, 0.07, -10),
        (0.08, 0.10, 1.35, 0.12, 0.06, 0),
    )
}


def _gmm(n: int, draws: np.random.Generator) -> Floats:
    return _of_mixture(MIXTURES["points-gmm"], n, draws)


def _dial(n: int, draws: np.random.Generator) -> tuple[Floats, Floats]:
    angles = 2 * math.pi * draws.random(n)
    points: Floats = np.einsum("nij,nj->ni", _turned(angles), _of_mixture(_HAND, n, draws))
    return points, np.stack([np.cos(angles), np.sin(angles)], axis=1)


def _of_mixture(mixture: Mixture, n: int, draws: np.random.Generator) -> Floats:
    means, covariances, weights = mixture
    mode = draws.choice(len(weights), size=n, p=weights)
    factors = np.linalg.cholesky(covariances)
    noise = draws.standard_normal((n, 2))
    points: Floats = means[mode] + np.einsum("nij,nj->ni", factors[mode], noise)
    return points


def _swiss_roll(n: int, draws: np.random.Generator) -> Floats:
    from sklearn.datasets import make_swiss_roll

    # The legacy generator that scikit-learn asks for, on the stream of this address.
    state = np.random.RandomState(draws.bit_generator)
    roll, _ = make_swiss_roll(n, noise=0.5, random_state=state)
    mean = np.array([2, 2 / (3 * math.pi)])  # of (t cos t, t sin t), t uniform on 3π/2 … 9π/2
    points: Floats = (roll[:, [0, 2]] - mean) / 9
    return points


def _checkerboard(n: int, draws: np.random.Generator) -> Floats:
    column = draws.integers(-2, 2, size=n)
    row = 2 * draws.integers(-1, 1, size=n) + column % 2  # dark where column + row is even
    return SQUARE * (np.stack([column, row], axis=1) + draws.random((n, 2)))


# scikit-learn's make_moons and make_circles space their points evenly; these are independent.


def _two_moons(n: int, draws: np.random.Generator) -> Floats:
    angle, side = math.pi * draws.random(n), draws.choice([-1, 1], size=n)
    moons = np.stack([side * (np.cos(angle) - 0.5), side * (np.sin(angle) - 0.25)], axis=1)
    return 1.1 * moons + 0.06 * draws.standard_normal((n, 2))


def _rings(n: int, draws: np.random.Generator) -> Floats:
    radii = np.array(RADII)
    angle, ring = 2 * math.pi * draws.random(n), draws.choice(3, size=n, p=radii / radii.sum())
    circles: Floats = radii[ring, None] * np.stack([np.cos(angle), np.sin(angle)], axis=1)
    return circles + 0.05 * draws.standard_normal((n, 2))


SQUARE = 0.75  # the side of a square of the checkerboard
RADII = (0.4, 0.85, 1.3)  # of the rings, which are equally dense

_DRAWS: dict[str, Callable[[int, np.random.Generator], Floats | tuple[Floats, Floats]]] = {
    "points-gmm": _gmm,
    "points-swiss-roll": _swiss_roll,
    "points-checkerboard": _checkerboard,
    "points-two-moons": _two_moons,
    "points-rings": _rings,
    "points-dial": _dial,
}
POINTS = tuple(_DRAWS)


def _check_points(points: Tensor, name: str) -> None:
    if points.dtype != torch.float32:
        raise InkdropError(f"{name}: points must be float32, got {points.dtype}")
    if points.ndim != 2:
        raise InkdropError(
            f"{name}: points must have shape (N, dimensions), got {tuple(points.shape)}"
        )
    if points.numel() == 0:
        raise InkdropError(
            f"{name}: at least one point of at least one dimension is needed, got shape "
            f"{tuple(points.shape)}"
        )
    bad = ~points.isfinite().all(dim=1)
    if bad.any():
        first = int(bad.nonzero()[0])
        raise InkdropError(
            f"{name}: coordinates must be finite, but point {first} is {points[first].tolist()}"
        )
