"""A square panel of the plane: its frame, dots in it, and their density."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator
from numpy.typing import ArrayLike, NDArray
from torch import Tensor

from ..errors import InkdropError
from . import style

# A density is a histogram, smoothed as far as its noise asks for: more where points are few.
CELLS = 128
_BANDWIDTH, _BANDWIDTH_AT = 0.017, 2000  # of the frame's side, for so many points
_REGIONS = (0.95, 0.75, 0.5, 0.25)  # of the points inside each contour
_REGION_COLORS = ("#F0F2F6", "#E3E7EE", "#D2D8E3", "#BDC5D4")
_BINS = 240  # of a marginal

Floats = NDArray[np.float64]
Frame = tuple[tuple[float, float], tuple[float, float]]  # (low, high) of both axes


def panel(figure: Figure, left: float, top: float, side: float, limits: Frame) -> Axes:
    """A square with a fine border and nothing else, its corner at CSS pixels (left, top)."""
    width, height = figure.get_size_inches() * style.POINTS_PER_INCH
    axes = style.add_axes(
        figure, left + 1, height - top - side + 1, width - left - side + 1, top + 1
    )
    axes.grid(visible=False)
    axes.set_xlim(limits[0])
    axes.set_ylim(limits[1])
    axes.set_aspect("equal", adjustable="box")
    axes.set_xticks([])
    axes.set_yticks([])
    axes.spines[:].set(visible=True, color=style.RULE, linewidth=1)
    return axes


def add_ticks(axes: Axes) -> None:
    """A handful of numbers along both axes."""
    add_x_ticks(axes)
    axes.yaxis.set_major_locator(MaxNLocator(5, steps=[1, 2, 5, 10]))
    axes.tick_params(axis="y", length=4, width=1, color=style.FAINT, pad=4)


def add_x_ticks(axes: Axes) -> None:
    """A handful of numbers along the horizontal axis."""
    axes.xaxis.set_major_locator(MaxNLocator(5, steps=[1, 2, 5, 10]))


def draw_dots(axes: Axes, x: Floats, color: str = style.INK) -> None:
    """Dots that grow fainter and smaller the more they are."""
    side = axes.get_window_extent().width / style.DENSITY
    crowd = len(x) / side**2 * 60  # 1 for 2,000 dots in a panel of 350 pixels
    size = float(np.clip(2.6 / max(crowd, 1e-9) ** 0.25, 1.2, 4))
    alpha = float(np.clip(0.6 / max(crowd, 1e-9) ** 0.5, 0.15, 0.8))
    first, second = finite(x).T
    axes.scatter(first, second, s=size**2, color=color, alpha=alpha, linewidths=0)


def draw_density(axes: Axes, x: Floats, limits: Frame) -> Floats:
    """Filled contours of the density; returns it on its grid (x, y)."""
    density = _density(x, limits)
    levels = levels_of(density, _REGIONS)
    if levels[0] > 0 and all(low < high for low, high in pairwise(levels)):
        levels.append(1.01 * density.max())
        axes.contourf(*_centres(limits), density.T, levels=levels, colors=_REGION_COLORS)
    return density


def draw_outline(axes: Axes, x: Floats, limits: Frame) -> None:
    """A line around where nearly all of the points lie."""
    density = _density(x, limits)
    levels = levels_of(density, _REGIONS[:1])
    if levels[0] > 0:
        how: dict[str, Any] = {"colors": style.ACCENT, "linewidths": 1}
        axes.contour(*_centres(limits), density.T, levels=levels, **how)


def _centres(limits: Frame) -> list[Floats]:
    """The middles of the density's cells along both axes."""
    return [low + (np.arange(CELLS) + 0.5) / CELLS * (high - low) for low, high in limits]


def _density(x: Floats, limits: Frame) -> Floats:
    """A smoothed histogram (x, y) of the points inside the limits, of sum 1 at most."""
    from scipy.ndimage import gaussian_filter

    x = finite(x)
    counts, _, _ = np.histogram2d(x[:, 0], x[:, 1], bins=CELLS, range=np.array(limits))
    bandwidth = CELLS * _BANDWIDTH * (_BANDWIDTH_AT / max(len(x), 1)) ** (1 / 6)
    smooth: Floats = gaussian_filter(counts / max(len(x), 1), bandwidth, mode="constant")
    return smooth


def levels_of(density: Floats, shares: Sequence[float]) -> list[float]:
    """The densities above which the given shares of the points lie, the densest places first."""
    falling = np.sort(density, axis=None)[::-1]
    inside = np.cumsum(falling)
    return [float(falling[np.searchsorted(inside, share * inside[-1])]) for share in shares]


def profile(values: Floats, limits: tuple[float, float]) -> tuple[Floats, Floats]:
    """Places along an axis and the smoothed density there."""
    from scipy.ndimage import gaussian_filter1d

    values = values[np.isfinite(values)]
    counts, edges = np.histogram(values, bins=_BINS, range=limits)
    bandwidth = _BINS * _BANDWIDTH * (_BANDWIDTH_AT / max(len(values), 1)) ** (1 / 5)
    density = gaussian_filter1d(counts / max(len(values), 1), bandwidth, mode="constant")
    return (edges[:-1] + edges[1:]) / 2, density * _BINS / (limits[1] - limits[0])


def say_outside(figure: Figure, x: Floats, limits: Frame, right: float, y: float) -> None:
    """Say how many points a panel does not show, if any, up to CSS pixels (right, y)."""
    count = count_outside(x, limits)
    if count:
        text = f"{count:,} of {len(x):,} lie outside"
        style.add_text(
            figure,
            right,
            y,
            text,
            ha="right",
            va="baseline",
            fontsize=style.SMALL_SIZE,
            color=style.MUTED,
        )


def count_outside(x: Floats, limits: Frame) -> int:
    """How many points are not in the frame."""
    low, high = np.array(limits).T
    return int((~((x >= low) & (x <= high)).all(1)).sum())


def in_plane(points: ArrayLike) -> Floats:
    """Points (N, 2), tensors on any device among them, as float64."""
    if isinstance(points, Tensor):
        points = points.detach().cpu()
    x = np.asarray(points, dtype=np.float64)
    if x.ndim != 2 or x.shape[1] != 2 or not len(x):
        raise InkdropError(f"pictures of points need points in the plane (N, 2), got {x.shape}")
    return x


def finite(x: Floats) -> Floats:
    """The points whose coordinates are all numbers."""
    return x[np.isfinite(x).all(1)]
