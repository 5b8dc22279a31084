"""Precision, recall, density and coverage: who lies among whom.

A set's manifold is the union of balls around its members, each as wide as the distance to its k-th
nearest other member. Precision and recall: Kynkäänniemi et al. 2019, Eq. 1-2. Density and coverage:
Naeem et al. 2020, Eq. 3-5. A ball holds its border.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from .bootstrap import Mask
from .features import Floats32

Floats = NDArray[np.float64]
Indices = NDArray[np.int32]

DEPTH = (
    24  # nearest others that are kept of each: among a random half of them are 5 as good as surely
)
_CHUNK_BYTES = 2**26


def squared_distances(a: Floats, b: Floats) -> Iterator[tuple[int, Floats]]:
    """The squared Euclidean distances from some rows of a (N, D) to all of b (M, D), in turn.

    By a matrix product, with the common mean taken out: good to about 1e-13 of the squared norms.

    Yields:
        (first row, (rows, M)).
    """
    middle = b.mean(0)
    a, b = a - middle, b - middle
    norms_a, norms_b = (a**2).sum(1), (b**2).sum(1)
    rows = max(1, _CHUNK_BYTES // 8 // len(b))
    for start in range(0, len(a), rows):
        squared = a[start : start + rows] @ b.T
        squared *= -2
        squared += norms_a[start : start + rows, None]
        squared += norms_b
        yield start, squared.clip(min=0, out=squared)


@dataclass(frozen=True, eq=False)
class Balls:
    """The balls around one set's members, and who of another set comes near them.

    Attributes:
        near: (N, K) each member's nearest other members; `reach` (N, K) their squared distances.
        centre, visitor, squared: (P,) every pair of a member and a visitor no farther from it
            than its K-th other member, and their squared distance.
        visitors: how many visitors there are.
    """

    near: Indices
    reach: Floats
    centre: Indices
    visitor: Indices
    squared: Floats
    visitors: int

    @classmethod
    def of(cls, members: Floats, visitors: Floats) -> Balls:
        """Around members (N, D) for visitors (M, D). Of all distances only the least are kept."""
        depth = min(DEPTH, len(members) - 1)
        near = np.empty((len(members), depth), dtype=np.int32)
        reach = np.empty((len(members), depth))
        for start, squared in squared_distances(members, members):
            rows = np.arange(len(squared))
            squared[rows, start + rows] = np.inf  # itself, and not others in its place
            nearest = np.argpartition(squared, depth - 1, axis=1)[:, :depth]
            found = np.take_along_axis(squared, nearest, axis=1)
            order = found.argsort(axis=1)
            near[start : start + len(rows)] = np.take_along_axis(nearest, order, axis=1)
            reach[start : start + len(rows)] = np.take_along_axis(found, order, axis=1)
        # Distances that are equal differ by rounding, which must not put a twin outside.
        reach *= 1 + 1e-9
        reach += 1e-12 * float(members.var(0).sum())
        pairs = []
        for start, squared in squared_distances(members, visitors):
            centre, visitor = np.nonzero(squared <= reach[start : start + len(squared), -1:])
            pairs.append(
                (
                    (centre + start).astype(np.int32),
                    visitor.astype(np.int32),
                    squared[centre, visitor],
                )
            )
        centres, guests, distances = (np.concatenate(each) for each in zip(*pairs, strict=True))
        return cls(near, reach, centres, guests, distances, len(visitors))

    def inside(self, k: int, members: Mask | None = None, visitors: Mask | None = None) -> Mask:
        """Which pairs (P,) have the visitor in the member's ball, as wide as the k-th other.

        Args:
            members, visitors: the parts of the sets that take part; by default all.
        """
        if members is None:
            radii = self.reach[:, k - 1]
            taken = np.ones(len(self.centre), dtype=bool)
        else:
            present = members[self.near]
            last = self.reach.shape[1] - 1
            rank = present.cumsum(axis=1, dtype=np.int16)
            kth = np.where(rank[:, -1] >= k, (rank >= k).argmax(axis=1), last)
            radii = self.reach[np.arange(len(kth)), kth]
            taken = members[self.centre]
        if visitors is not None:
            taken = taken & visitors[self.visitor]
        return taken & (self.squared <= radii[self.centre])


@dataclass(frozen=True, eq=False)
class Neighbourhood:
    """Two sets' neighbours, from which any part of the sets can be measured again."""

    real: Balls
    samples: Balls

    @classmethod
    def of(cls, real: Floats32, samples: Floats32) -> Neighbourhood:
        """Of real features (N, D) and samples' (M, D), more than one each."""
        a, b = real.astype(np.float64), samples.astype(np.float64)
        return cls(Balls.of(a, b), Balls.of(b, a))

    def measure(
        self,
        k: int,
        density_k: int,
        real: Mask | None = None,
        samples: Mask | None = None,
    ) -> dict[str, float]:
        """Precision and recall with k neighbours, density and coverage with `density_k`.

        Args:
            real, samples: the parts that take part, as masks; by default all.
        """
        reals = self.samples.visitors if real is None else int(real.sum())
        fakes = self.real.visitors if samples is None else int(samples.sum())
        precise = self.real.inside(k, real, samples)
        recalled = self.samples.inside(k, samples, real)
        dense = self.real.inside(density_k, real, samples)
        return {
            "precision": _distinct(self.real.visitor[precise], self.real.visitors) / fakes,
            "recall": _distinct(self.samples.visitor[recalled], self.samples.visitors) / reals,
            "density": float(dense.sum()) / (density_k * fakes),
            "coverage": _distinct(self.real.centre[dense], len(self.real.near)) / reals,
        }


def _distinct(indices: Indices, count: int) -> int:
    seen = np.zeros(count, dtype=bool)
    seen[indices] = True
    return int(seen.sum())
