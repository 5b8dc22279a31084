"""Distances between sets of feature vectors (pixels are features too)."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from ..errors import InkdropError

Floats = NDArray[np.float64]


def frechet_distance(a: Floats, b: Floats) -> float:
    """The squared Fréchet distance of the Gaussians fitted to two sets, in squared feature units.

    ‖μ_a - μ_b‖² + tr(Σ_a + Σ_b - 2 (Σ_a Σ_b)^½) (Dowson & Landau 1982; Heusel et al. 2017), with
    the unbiased covariance over examples.

    Args:
        a, b: (N, D) and (M, D), at least two examples each.
    """
    if a.ndim != 2 or b.ndim != 2 or a.shape[1] != b.shape[1] or min(len(a), len(b)) < 2:
        raise InkdropError(
            f"a Fréchet distance needs two sets (N, D) of at least two examples with the same D, "
            f"got {a.shape} and {b.shape}"
        )
    a, b = a.astype(np.float64), b.astype(np.float64)
    covariance_a, covariance_b = np.cov(a, rowvar=False), np.cov(b, rowvar=False)
    covariance_a, covariance_b = np.atleast_2d(covariance_a), np.atleast_2d(covariance_b)
    # tr (Σ_a Σ_b)^½ from the symmetric √Σ_a Σ_b √Σ_a, whose eigenvalues are real.
    values, vectors = np.linalg.eigh(covariance_a)
    root = vectors * np.sqrt(values.clip(min=0)) @ vectors.T
    overlap = np.sqrt(np.linalg.eigvalsh(root @ covariance_b @ root).clip(min=0)).sum()
    shift = ((a.mean(0) - b.mean(0)) ** 2).sum()
    return float(shift + np.trace(covariance_a) + np.trace(covariance_b) - 2 * overlap)


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
