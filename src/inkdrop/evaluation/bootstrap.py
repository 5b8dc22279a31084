"""Confidence intervals by drawing again from what was measured.

A metric of N samples has a value to expect at that N, and intervals are for that: they tell how far
another N samples (and as many other real images) would have led. Two ways, for two kinds of metric:

- `half_samples`, for metrics that look at neighbours or at all pairs: drawn *without* replacement,
  since a set that holds an image twice has a neighbour at distance zero. The mean of a random half
  differs from the mean of the whole with variance σ²/N, which is that of the whole itself, so the
  replicas need no rescaling (m out of n with m = n/2: Politis, Romano & Wolf 1999, Sec. 2.3).
- `mean_replicas`, for a metric whose linear part is known: the ordinary bootstrap of that part.

Replicas are centred on their own mean before they are laid around the value, so that a bias which
every replica has, as the bootstrap's of a Fréchet distance, does not move the interval.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray

from ..randomness import generator

Floats = NDArray[np.float64]
Mask = NDArray[np.bool_]


def half_samples(
    sizes: tuple[int, ...], replicas: int, seed: int, purpose: str
) -> Iterator[tuple[Mask, ...]]:
    """Random halves of several sets, as masks (N,), for each replica."""
    for replica in range(replicas):
        rng = generator(seed, purpose, replica)
        masks = []
        for size in sizes:
            mask = np.zeros(size, dtype=bool)
            mask[rng.permutation(size)[: size // 2]] = True
            masks.append(mask)
        yield tuple(masks)


def mean_replicas(x: Floats, replicas: int, seed: int, purpose: str) -> Floats:
    """The means (replicas,) of x (N,) drawn again with replacement."""
    draws = (generator(seed, purpose, replica) for replica in range(replicas))
    return np.array([x[rng.integers(len(x), size=len(x))].mean() for rng in draws])


def interval(
    value: float,
    replicas: Floats,
    confidence: float,
    lowest: float = -np.inf,
    highest: float = np.inf,
) -> tuple[float, float]:
    """The interval around a value from replicas of it, within what the metric can be."""
    tail = (1 - confidence) / 2
    spread = np.quantile(replicas - replicas.mean(), [tail, 1 - tail])
    low, high = np.clip(value + spread, lowest, highest)
    return float(low), float(high)
