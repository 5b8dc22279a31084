"""The kernel distance (Bińkowski et al. 2018) with an honest standard error."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from .features import Floats32

Floats = NDArray[np.float64]

_CHUNK_BYTES = 2**26


@dataclass(frozen=True, eq=False)
class _Sums:
    """What is needed of a kernel's table (N, M): its row and column sums, and its squares' sum."""

    rows: Floats
    columns: Floats
    squares: float

    @property
    def total(self) -> float:
        return float(self.rows.sum())

    def interaction(self, pairs: int) -> float:
        """The variance of k(x, y) that is neither x's nor y's, over this many pairs."""
        mean = self.total / pairs
        by_row, by_column = (
            (len(sums) * sums / pairs - mean) ** 2 for sums in (self.rows, self.columns)
        )
        return max(0.0, float(self.squares / pairs - mean**2 - by_row.mean() - by_column.mean()))


def kernel_distance(a: Floats32, b: Floats32) -> tuple[float, float]:
    """The squared maximum mean discrepancy with the kernel (⟨x, y⟩/D + 1)³, and its error.

    The unbiased estimate from every pair, which the mean over random subsets only approximates: it
    depends neither on an order nor on a seed.

    The standard error is the jackknife's over both sets, less what it counts twice. By Efron &
    Stein 1981 the jackknife holds the variance of each example's own effect once and that of each
    pair's joint effect twice; the latter is all there is between sets of one kind, where the
    jackknife alone is too wide by √2. The joint effects' variance has a plain estimate, from the
    kernel less its row and column means.

    Args:
        a, b: features (N, D) and (M, D), at least three each.

    Returns:
        (distance, standard error), without unit.
    """
    x, y = a.astype(np.float64), b.astype(np.float64)
    n, m = len(x), len(y)
    within_x, within_y, between = _sums(x, x), _sums(y, y), _sums(x, y)
    mean_x, mean_y = within_x.total / (n * (n - 1)), within_y.total / (m * (m - 1))
    mean_between = between.total / (n * m)
    value = mean_x + mean_y - 2 * mean_between
    variance = _jackknife(within_x, between.rows, m) + _jackknife(within_y, between.columns, n)
    joint = (
        2 * within_x.interaction(n * (n - 1)) / (n * (n - 1))
        + 2 * within_y.interaction(m * (m - 1)) / (m * (m - 1))
        + 4 * between.interaction(n * m) / (n * m)
    )
    return float(value), float(np.sqrt(max(variance - joint, joint)))


def _jackknife(within: _Sums, across: Floats, others: int) -> float:
    """The jackknife's variance from leaving out each member of one set in turn."""
    n = len(across)
    own = (within.total - 2 * within.rows) / ((n - 1) * (n - 2))
    cross = (across.sum() - across) / ((n - 1) * others)
    left_out = own - 2 * cross
    return float((n - 1) * left_out.var())


def _sums(x: Floats, y: Floats) -> _Sums:
    """Of the kernel between all of x and y, a set and itself without each member's own."""
    rows = max(1, _CHUNK_BYTES // 8 // len(y))
    row_sums, column_sums, squares = np.empty(len(x)), np.zeros(len(y)), 0.0
    for start in range(0, len(x), rows):
        kernel = x[start : start + rows] @ y.T
        kernel /= x.shape[1]
        kernel += 1
        kernel *= kernel * kernel
        if x is y:
            place = np.arange(len(kernel))
            kernel[place, start + place] = 0
        row_sums[start : start + rows] = kernel.sum(1)
        column_sums += kernel.sum(0)
        squares += float(np.vdot(kernel, kernel))
    return _Sums(row_sums, column_sums, squares)
