"""The look of every picture, chart and page: one palette, one typeface, one unit of length.

Lengths are CSS pixels. Pictures are drawn at twice that, so that they stay crisp on dense screens
and in print.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np
from matplotlib.artist import Artist
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.text import Text
from PIL import Image

# Ink and one warm accent: told apart by the colour-blind, and by lightness alone in greyscale.
INK = "#16213A"
MUTED = "#5B6478"
FAINT = "#A9B0BF"
RULE = "#E4E7ED"
WASH = "#C3C9D6"
PAPER = "#FFFFFF"
ACCENT = "#BF4E22"

# Lines of a chart that compares: told apart by lightness and dashes too.
_SERIES = (
    (INK, "-"),
    (ACCENT, "-"),
    ("#4A90A4", "-"),
    ("#C99A2E", (0, (5, 1.5))),
    ("#7A5C99", (0, (2, 1.2))),
    (MUTED, (0, (1, 1))),
)

LINE = 22.0  # of a legend
_MARK_WIDTH, _LETTER_WIDTH = 36.0, 7.5
DENSITY = 2  # device pixels per CSS pixel
TEXT_SIZE = 15.0
SMALL_SIZE = 13.5

# The faces of scientific print, which matplotlib brings along: the same picture on every machine,
# and formulas that match the words around them.
FONT = "STIXGeneral"
MATH_FONT = "stix"

POINTS_PER_INCH = 72  # a figure's inch is 72 CSS pixels, so that one point is one CSS pixel


def new_figure(width: float, height: float) -> Figure:
    """An empty figure of width × height CSS pixels, drawn by Agg without pyplot's global state."""
    figure = Figure(
        figsize=(width / POINTS_PER_INCH, height / POINTS_PER_INCH),
        dpi=DENSITY * POINTS_PER_INCH,
        facecolor=PAPER,
    )
    FigureCanvasAgg(figure)
    return figure


def add_axes(figure: Figure, left: float, bottom: float, right: float, top: float) -> Axes:
    """Styled axes; the arguments are margins to the figure's edges in CSS pixels."""
    width, height = figure.get_size_inches() * POINTS_PER_INCH
    axes = figure.add_axes(
        (
            left / width,
            bottom / height,
            (width - left - right) / width,
            (height - bottom - top) / height,
        )
    )
    axes.set_axisbelow(True)
    axes.grid(axis="y", color=RULE, linewidth=1)
    axes.spines[["left", "right", "top"]].set_visible(False)
    axes.spines["bottom"].set(color=FAINT, linewidth=1)
    axes.tick_params(
        which="both",
        length=0,
        pad=6,
        labelsize=SMALL_SIZE,
        labelcolor=MUTED,
        labelfontfamily=FONT,
    )
    axes.tick_params(axis="x", which="major", length=4, width=1, color=FAINT, pad=4)
    return axes


def add_text(figure: Figure, x: float, y: float, text: str, **how: Any) -> Text:
    """Text at (x, y) CSS pixels from the figure's top left corner; `how` is matplotlib's."""
    width, height = figure.get_size_inches() * POINTS_PER_INCH
    return figure.text(x / width, 1 - y / height, text, **{**text_style(), **how})


def add_legend(
    figure: Figure, marks: Mapping[str, Artist], right: float, top: float, lines: int = 1
) -> None:
    """A legend with its top right corner at CSS pixels (right, top)."""
    width, height = figure.get_size_inches() * POINTS_PER_INCH
    legend = figure.legend(
        list(marks.values()),
        list(marks),
        loc="upper right",
        bbox_to_anchor=(right / width, 1 - top / height),
        ncols=math.ceil(len(marks) / lines),
        frameon=False,
        borderpad=0,
        borderaxespad=0,
        handlelength=1.1,
        handletextpad=0.4,
        columnspacing=1.0,
        labelcolor=INK,
        prop={"family": FONT, "size": TEXT_SIZE},
    )
    for text in legend.get_texts():
        text.set_math_fontfamily(MATH_FONT)


def legend_lines(names: Iterable[str], width: float) -> int:
    """About how many lines of `LINE` pixels a legend needs."""
    return math.ceil(sum(_MARK_WIDTH + _LETTER_WIDTH * len(name) for name in names) / width)


def series(count: int) -> list[dict[str, Any]]:
    """Colour and dashes of `count` lines, as matplotlib's properties."""
    looks = [_SERIES[i % len(_SERIES)] for i in range(count)]
    return [{"color": color, "linestyle": dashes} for color, dashes in looks]


def text_style() -> dict[str, Any]:
    """matplotlib's properties of ordinary text."""
    return {
        "fontfamily": FONT,
        "math_fontfamily": MATH_FONT,
        "fontsize": TEXT_SIZE,
        "color": INK,
    }


def to_image(figure: Figure) -> Image.Image:
    """The figure's pixels, RGB."""
    canvas = FigureCanvasAgg(figure)
    canvas.draw()  # type: ignore[no-untyped-call]
    pixels = np.asarray(canvas.buffer_rgba())  # type: ignore[no-untyped-call]
    return Image.fromarray(pixels[..., :3])
