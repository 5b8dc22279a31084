"""Whether a model gives every mode of a mixture its due."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike

from ..errors import InkdropError
from .distances import Floats

OUTSIDE = 1e-3  # of each Gaussian's own points lie outside the ellipse that counts as near it


@dataclass(frozen=True)
class ModeWeights:
    """How points fall to the modes of a Gaussian mixture.

    Attributes:
        shares: (K,), the share of the points that are most probably of each mode; they sum to 1.
        error: the total variation distance ½ Σ |share - weight|: 0 where all modes have their
            due, and the share of points that would have to change their mode.
        far: the share of the points that are outside every mode's ellipse (of `OUTSIDE`).
    """

    shares: Floats
    error: float
    far: float


def mode_weight_error(
    points: ArrayLike, means: ArrayLike, covariances: ArrayLike, weights: ArrayLike
) -> ModeWeights:
    """Assign points to their most probable mode and hold the shares against the weights.

    The weights are also the true shares as far as the modes do not overlap.

    Args:
        points: (N, D).
        means: (K, D).
        covariances: (K, D, D).
        weights: (K,), of any sum.
    """
    from scipy.stats import chi2

    x, mean, covariance, weight = (
        np.asarray(given, dtype=np.float64) for given in (points, means, covariances, weights)
    )
    if not (
        x.ndim == mean.ndim == 2
        and len(x) > 0
        and x.shape[1:] == mean.shape[1:]
        and covariance.shape == (*mean.shape, mean.shape[1])
        and weight.shape == mean.shape[:1]
    ):
        raise InkdropError(
            "mode weights need points (N, D), means (K, D), covariances (K, D, D) and weights "
            f"(K,), got {x.shape}, {mean.shape}, {covariance.shape} and {weight.shape}"
        )
    weight = weight / weight.sum()
    roots = np.linalg.cholesky(covariance)
    # (K, D, N), in which every mode is a unit Gaussian.
    unit = np.linalg.solve(roots, (x - mean[:, None]).transpose(0, 2, 1))
    squared = (unit**2).sum(1)
    log_volume = np.log(np.diagonal(roots, axis1=1, axis2=2)).sum(1)
    with np.errstate(divide="ignore"):  # a mode of weight 0 has no points
        score = np.log(weight)[:, None] - log_volume[:, None] - squared / 2
    shares = np.bincount(score.argmax(0), minlength=len(mean)) / len(x)
    far = (squared > chi2.isf(OUTSIDE, x.shape[1])).all(0).mean()
    return ModeWeights(shares, float(abs(shares - weight).sum() / 2), float(far))
