"""Distances between sets of feature vectors (pixels are features too)."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from ..errors import InkdropError
from .features import chunks

Floats = NDArray[np.float64]

_CHUNK_BYTES = 2**26  # of a table of distances that is held at once
_MEDIAN_OF = 1000  # examples whose distances the median heuristic looks at


def frechet_distance(a: ArrayLike, b: ArrayLike) -> float:
    """The squared Fréchet distance of the Gaussians fitted to two sets, in squared feature units.

    ‖μ_a - μ_b‖² + tr(Σ_a + Σ_b - 2 (Σ_a Σ_b)^½) (Dowson & Landau 1982; Heusel et al. 2017), with
    the unbiased covariance over examples.

    Args:
        a, b: (N, D) and (M, D), at least two examples each.
    """
    a, b = _pair("a Fréchet distance", a, b, at_least=2)
    return frechet_of_moments(moments(a), moments(b))


@dataclass(frozen=True, eq=False)
class Moments:
    """A set's count, mean (D,) and unbiased covariance (D, D) over its examples."""

    count: int
    mean: Floats
    covariance: Floats

    def root(self) -> Floats:
        """The symmetric square root (D, D) of the covariance."""
        values, vectors = np.linalg.eigh(self.covariance)
        root: Floats = vectors * np.sqrt(values.clip(min=0)) @ vectors.T
        return root


def moments(x: NDArray[Any]) -> Moments:
    """The moments of x (N, D), a chunk of it at a time: x can be a `np.memmap` of any length.

    Raises:
        InkdropError: if there are fewer than two examples, or numbers that are not finite.
    """
    if x.ndim != 2 or len(x) < 2:
        raise InkdropError(f"a covariance needs at least 2 examples (N, D), got {x.shape}")
    mean = sum(chunk.sum(0) for chunk in chunks(x)) / len(x)
    if not np.isfinite(mean).all():
        raise InkdropError("a covariance needs finite numbers, got some that are not")
    scatter = np.zeros((x.shape[1], x.shape[1]))
    for chunk in chunks(x):
        centred = chunk - mean
        scatter += centred.T @ centred
    return Moments(len(x), mean, scatter / (len(x) - 1))


def frechet_of_moments(a: Moments, b: Moments) -> float:
    """The squared Fréchet distance of two Gaussians; see `frechet_distance`."""
    # tr (Σ_a Σ_b)^½ is the sum of the singular values of √Σ_a √Σ_b. The square roots of the
    # product's eigenvalues are the same, but keep only half the digits of the small ones.
    overlap = np.linalg.svd(a.root() @ b.root(), compute_uv=False).sum()
    shift = ((a.mean - b.mean) ** 2).sum()
    return float(shift + np.trace(a.covariance) + np.trace(b.covariance) - 2 * overlap)


def frechet_bias(real: Moments, a: int, b: int) -> float:
    """What two sets of a and b examples of one Gaussian are apart on the mean, to first order.

    (1/a + 1/b) (tr Σ + ½ Σ_ij λ_i λ_j (1 + δ_ij)/(λ_i + λ_j)), of the eigenvalues λ of `real`'s
    covariance Σ: what the means' errors add, and what the covariances' do by the second
    derivative of the Bures distance. For equal eigenvalues tr Σ (1/a + 1/b)(D + 5)/4: it grows
    with the number of features, and is why Fréchet distances of different N do not compare.
    """
    values = np.linalg.eigvalsh(real.covariance).clip(min=0)
    sums = values[:, None] + values
    pairs = np.divide(np.outer(values, values), sums, out=np.zeros_like(sums), where=sums > 0)
    spread = pairs.sum() + np.trace(pairs)
    return float((1 / a + 1 / b) * (values.sum() + spread / 2))


def frechet_influence(a: Moments, b: Moments) -> tuple[Floats, Floats, Floats]:
    """The derivatives of the Fréchet distance by μ_a (D,), by Σ_a and by Σ_b (D, D).

    By μ_a it is 2 (μ_a - μ_b), and by μ_b the negative; by Σ_a it is I - T, where T is the linear
    map that carries the one centred Gaussian to the other (Takatsu 2011), on the directions in
    which both have any spread.
    """
    root_a, root_b = a.root(), b.root()
    eye = np.eye(len(a.mean))
    return (
        2 * (a.mean - b.mean),
        eye - _transport(root_b, a.covariance),
        eye - _transport(root_a, b.covariance),
    )


def _transport(root: Floats, covariance: Floats) -> Floats:
    """R (R Σ R)^-½ R, of the target's root R and the source's covariance Σ."""
    values, vectors = np.linalg.eigh(root @ covariance @ root)
    seen = values > values[-1] * len(values) * np.finfo(np.float64).eps * 10
    kept = root @ vectors[:, seen]
    transport: Floats = kept / np.sqrt(values[seen]) @ kept.T
    return transport


def nearest_distances(a: Floats, b: Floats | None = None) -> Floats:
    """The Euclidean distance (N,) from each of `a` to its nearest in `b`.

    Without `b`, to the nearest other one of `a`.
    """
    from sklearn.neighbors import NearestNeighbors

    if b is None:
        distances, _ = NearestNeighbors(n_neighbors=1).fit(a).kneighbors()
    else:
        distances, _ = NearestNeighbors(n_neighbors=1).fit(b).kneighbors(a)
    return np.asarray(distances[:, 0], dtype=np.float64)


def sliced_wasserstein(a: ArrayLike, b: ArrayLike, projections: int = 128, seed: int = 0) -> float:
    """The sliced Wasserstein-1 distance of two sets, in feature units.

    The mean over random directions θ of the earth mover's distance between the sets' projections
    ⟨θ, x⟩, each of which sorting solves exactly (Rabin et al. 2011; Bonneel et al. 2015). It is
    zero for equal sets, and E|⟨θ, d⟩| between a set and itself moved by d.

    Args:
        a, b: (N, D) and (M, D).
        projections: how many directions; where D is 1 there is but one.
        seed: names the directions.
    """
    from scipy.stats import wasserstein_distance

    a, b = _pair("a sliced Wasserstein distance", a, b)
    if projections < 1:
        raise InkdropError(f"projections must be at least 1, got {projections}")
    directions = np.random.default_rng(seed).standard_normal((projections, a.shape[1]))
    directions /= np.linalg.norm(directions, axis=1, keepdims=True)
    if a.shape[1] == 1:
        directions = np.ones((1, 1))
    return float(np.mean([wasserstein_distance(a @ way, b @ way) for way in directions]))


def energy_distance(a: ArrayLike, b: ArrayLike) -> float:
    """The energy distance of two sets, 2 E‖X-Y‖ - E‖X-X′‖ - E‖Y-Y′‖, in feature units.

    Székely & Rizzo 2013, Eq. 6.1: the V-statistic, with every pair counted, an example and itself
    among them. So it is never negative and zero for equal sets, and two true sets are a little
    apart. (In one dimension it is the square of `scipy.stats.energy_distance`.)

    Args:
        a, b: (N, D) and (M, D).
    """
    a, b = _pair("an energy distance", a, b)
    between = _pair_sum(a, b, np.sqrt) / (len(a) * len(b))
    within_a = _pair_sum(a, a, np.sqrt) / len(a) ** 2
    within_b = _pair_sum(b, b, np.sqrt) / len(b) ** 2
    return float(2 * between - within_a - within_b)


def mmd(a: ArrayLike, b: ArrayLike, bandwidth: float | None = None) -> float:
    """The squared maximum mean discrepancy of two sets, without unit.

    The unbiased estimate of Gretton et al. 2012, Eq. 3, for the kernel exp(-‖x-y‖² / 2h²): zero on
    average for sets of one distribution, so that it can be negative.

    Args:
        a, b: (N, D) and (M, D), at least two examples each.
        bandwidth: h; by default `median_distance` of all examples. Give one h to all comparisons
            that are to be compared.
    """
    a, b = _pair("an MMD", a, b, at_least=2)
    h = median_distance(np.concatenate([a, b])) if bandwidth is None else bandwidth
    if not h > 0:
        raise InkdropError(
            f"the bandwidth must be a positive number, got {h:g}: sets of one point each have no "
            "median distance, give bandwidth=…"
        )

    def kernel(squared: Floats) -> Floats:
        similarity: Floats = np.exp(squared / (-2 * h**2))
        return similarity

    between = _pair_sum(a, b, kernel) / (len(a) * len(b))
    # An example is like itself, kernel 1: these pairs are left out.
    within_a = (_pair_sum(a, a, kernel) - len(a)) / (len(a) * (len(a) - 1))
    within_b = (_pair_sum(b, b, kernel) - len(b)) / (len(b) * (len(b) - 1))
    return float(within_a + within_b - 2 * between)


def median_distance(x: ArrayLike) -> float:
    """The median Euclidean distance between two examples of x (N, D), the usual MMD bandwidth.

    Of a larger set, 1,000 examples evenly spaced in it are looked at.
    """
    from scipy.spatial.distance import pdist

    x, _ = _pair("a median distance", x, x, at_least=2)
    some = np.linspace(0, len(x) - 1, min(len(x), _MEDIAN_OF)).round().astype(int)
    return float(np.median(pdist(x[some])))


def _pair(what: str, a: ArrayLike, b: ArrayLike, at_least: int = 1) -> tuple[Floats, Floats]:
    """Both sets as float64 (N, D) and (M, D), or the complaint that they cannot be compared."""
    a, b = np.asarray(a, dtype=np.float64), np.asarray(b, dtype=np.float64)
    fitting = a.ndim == b.ndim == 2 and a.shape[1] == b.shape[1] > 0
    if not fitting or min(len(a), len(b)) < at_least:
        raise InkdropError(
            f"{what} needs two sets (N, D) of at least {at_least} with the same D, got "
            f"{a.shape} and {b.shape}"
        )
    for x in (a, b):
        if not np.isfinite(x).all():
            raise InkdropError(f"{what} needs finite numbers, got {x[~np.isfinite(x)][0]}")
    return a, b


def _pair_sum(a: Floats, b: Floats, of: Callable[[Floats], Floats]) -> float:
    """The sum of a function of the squared distances of all pairs, a chunk of them at a time."""
    return float(sum(of(squared).sum() for squared in _squared_distances(a, b)))


def _squared_distances(a: Floats, b: Floats) -> Iterator[Floats]:
    from scipy.spatial.distance import cdist

    rows = max(1, _CHUNK_BYTES // b.itemsize // len(b))
    for i in range(0, len(a), rows):
        yield cdist(a[i : i + rows], b, "sqeuclidean")
