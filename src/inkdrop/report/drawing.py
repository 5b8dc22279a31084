"""What charts are made of: titles, axes, ticks, numbers and remarks, in one look."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
from matplotlib.artist import Artist
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator, NullLocator
from numpy.typing import NDArray

from . import style

WIDTH = 460  # CSS pixels: half a page, and a phone's whole screen
HEIGHT = 316
EDGE, LEFT, RIGHT, BOTTOM = 2, 52, 26, 50  # margins: of titles, then of the axes
TITLE_ROOM = 66

Floats = NDArray[np.float64]


def number(value: float) -> str:
    """A number as an axis shows it, short and in matplotlib's notation: 0.05, 20,000, 2·10⁻⁵."""
    size = abs(value)
    if value and not 1e-3 <= size < 1e6:
        mantissa, exponent = f"{value:.3e}".split("e")
        factor = "" if float(mantissa) == 1 else rf"{float(mantissa):g}\cdot"
        return f"${factor}10^{{{int(exponent)}}}$"
    return (f"{value:,.0f}" if size >= 1000 else f"{value:.4g}").replace("-", "−")


def chart(name: str, height: float = HEIGHT, left: float = LEFT) -> tuple[Figure, Axes]:
    """A figure as wide as half a page, with its title and one panel."""
    figure = style.new_figure(WIDTH, height)
    title(figure, name)
    return figure, style.add_axes(figure, left, BOTTOM, RIGHT, TITLE_ROOM)


def panel(left: float, right: float) -> tuple[float, float, float, float]:
    """A chart's panel from `left` to `right` CSS pixels, as matplotlib has it."""
    height = HEIGHT - TITLE_ROOM - BOTTOM
    return left / WIDTH, BOTTOM / HEIGHT, (right - left) / WIDTH, height / HEIGHT


def title(figure: Figure, text: str) -> None:
    style.add_text(figure, EDGE, 17, text, va="baseline", fontsize=17, fontweight="bold")


def without_data(figure: Figure, axes: Axes) -> Figure:
    axes.set_axis_off()
    axes.text(0.5, 0.5, "no data yet", ha="center", transform=axes.transAxes, **style.text_style())
    return figure


def value_axis(
    axes: Axes,
    values: Sequence[float] | Floats,
    log_from: float,
    *,
    from_zero: bool = False,
) -> bool:
    """Limits and ticks that hold `values`; logarithmic, then True, where they span very much."""
    low, high = float(min(values)), float(max(values))
    logarithmic = low > 0 and high / low > log_from
    if logarithmic:
        low, high = low * 0.8, high * 1.15
        axes.set_yscale("log")
        axes.set_ylim(low, high)
        axes.yaxis.set_minor_locator(NullLocator())
        value_ticks(axes, log_ticks(low, high))
    else:
        margin = 0.08 * (high - low) or 0.1 * abs(high) or 1.0
        low, high = 0.0 if from_zero else low - margin, high + margin
        axes.set_ylim(low, high)
        value_ticks(axes, linear_ticks(low, high))
    return logarithmic


def value_ticks(axes: Axes, ticks: Sequence[float]) -> None:
    labels = [number(tick) for tick in ticks]
    axes.set_yticks(ticks, labels, math_fontfamily=style.MATH_FONT)


def ticks(low: float, high: float, logarithmic: bool) -> list[float]:
    """Round numbers from low to high, a handful."""
    return log_ticks(low, high) if logarithmic else linear_ticks(low, high)


def linear_ticks(low: float, high: float, at_most: int = 5) -> list[float]:
    ticks = MaxNLocator(at_most, steps=[1, 2, 5, 10]).tick_values(low, high)
    return [float(tick) for tick in ticks if low <= tick <= high]


def log_ticks(low: float, high: float, at_most: int = 7) -> list[float]:
    """As many of the digits of each power of ten as there is room for; or every second power …"""
    powers = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
    digits = (range(1, 10), (1, 2, 3, 5), (1, 2, 5))
    choices = [[m * 10.0**p for p in powers for m in some] for some in digits]
    choices += [[10.0**p for p in powers if p % stride == 0] for stride in (1, 2, 5, 10, 50)]
    inside = [[tick for tick in ticks if low <= tick <= high] for ticks in choices]
    return next((ticks for ticks in inside if len(ticks) <= at_most), inside[-1])


def count_axis(axes: Axes, largest: float) -> None:
    largest = max(1.0, largest)
    axes.set_xlim(0, largest)
    ticks = [tick for tick in linear_ticks(0, largest) if tick == int(tick)]
    axes.set_xticks(ticks, [f"{tick:,.0f}" for tick in ticks])


def axis_labels(
    figure: Figure,
    label: str,
    low: str = "",
    high: str = "",
    panel: tuple[float, float] = (0, WIDTH),
) -> None:
    """The label of the horizontal axis of a panel, and what the axis' two ends mean."""
    y = figure.get_size_inches()[1] * style.POINTS_PER_INCH - 7
    left, right = panel[0] + LEFT, panel[1] - RIGHT
    style.add_text(figure, (left + right) / 2, y, label, ha="center", va="baseline")
    small(figure, left, y, low)
    small(figure, right, y, high, ha="right")


def small(figure: Figure, x: float, y: float, text: str, ha: str = "left") -> None:
    style.add_text(
        figure, x, y, text, ha=ha, va="baseline", fontsize=style.SMALL_SIZE, color=style.MUTED
    )


def note(
    axes: Axes, text: str, point: tuple[float, float], offset: tuple[float, float], **how: Any
) -> None:
    """A remark that ends above a point of the axes."""
    how = {"color": style.MUTED, "ha": "right", **how}
    axes.annotate(
        text,
        point,
        offset,
        textcoords="offset points",
        **{**style.text_style(), "fontsize": style.SMALL_SIZE, **how},
    )


def legend(
    figure: Figure,
    marks: dict[str, Artist],
    right: float = WIDTH - RIGHT,
    top: float = 5,
    lines: int = 1,
) -> None:
    style.add_legend(figure, marks, right, top, lines)
