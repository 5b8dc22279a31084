"""The plots of benchmarks, in the look of inkdrop's reports.

with figure(RESULTS / "name.png") as (fig, ax):
    ax.plot(x, y)
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import matplotlib
from cycler import cycler
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from inkdrop.report import style

DOTS_PER_INCH = 150
_SERIES = 6
_LOOK = {
    "font.family": style.FONT,
    "mathtext.fontset": style.MATH_FONT,
    "font.size": 11,
    "axes.titlesize": 12,
    "axes.titlelocation": "left",
    "text.color": style.INK,
    "axes.titlecolor": style.INK,
    "axes.labelcolor": style.INK,
    "axes.edgecolor": style.FAINT,
    "axes.spines.left": False,
    "axes.spines.right": False,
    "axes.spines.top": False,
    "axes.axisbelow": True,
    "axes.grid": True,
    "axes.grid.axis": "y",
    "grid.color": style.RULE,
    "xtick.color": style.FAINT,
    "ytick.color": style.FAINT,
    "xtick.labelcolor": style.MUTED,
    "ytick.labelcolor": style.MUTED,
    "ytick.major.size": 0,
    "ytick.minor.size": 0,
    "xtick.minor.size": 0,
    "legend.frameon": False,
    "lines.markersize": 4,
}


@contextmanager
def figure(
    path: Path, width: float = 7, height: float = 4, rows: int = 1, columns: int = 1
) -> Iterator[tuple[Figure, Any]]:
    """A figure of width × height inches and its axes, written to `path` as PNG on exit.

    Axes of several rows or columns come as an array (rows, columns).
    """
    looks = style.series(_SERIES)
    lines = cycler(**{name: [look[name] for look in looks] for name in looks[0]})
    with matplotlib.rc_context({**_LOOK, "axes.prop_cycle": lines}):
        fig = Figure(figsize=(width, height), layout="constrained", facecolor=style.PAPER)
        FigureCanvasAgg(fig)
        axes = fig.subplots(rows, columns, squeeze=False)
        yield fig, axes if axes.size > 1 else axes[0, 0]
        path.parent.mkdir(parents=True, exist_ok=True)
        fig.savefig(path, dpi=DOTS_PER_INCH)
