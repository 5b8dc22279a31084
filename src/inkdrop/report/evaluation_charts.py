"""Charts of what `inkdrop evaluate` found."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from itertools import cycle
from typing import Any

import numpy as np
from matplotlib.artist import Artist
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Patch

from ..evaluation import record
from ..evaluation.record import METRICS, ClassFigures, Evaluation, Nearest
from . import drawing, style

_ROW, _LABEL_ROOM, _LINE_ROOM = 80, 24, 34  # of one metric: its name, its dot, the rest for ticks
_INSET = 18
_PANEL, _PANEL_HEAD = 124, 54
_CLASSES = 20  # drawn, at most
_CLASS_ROW, _CLASS_ROOM = 21, 40
_SHARES = ("precision", "recall", "coverage")
_LOG_VALUES = 4.0
_FLOOR: dict[str, Any] = {"color": style.MUTED, "linewidth": 1.75}
_FLOOR_DASHES: tuple[Any, ...] = ((0, (4, 2)), (0, (1, 1.5)), "-")


def intervals(figures: Mapping[str, record.Figure]) -> Figure | None:
    """Each figure as a dot on a scale of its own, with its interval and the floor of real images.

    None where there is nothing to draw.
    """
    shown = {name: found for name, found in figures.items() if found.value is not None}
    if not shown:
        return None
    kinds = list(dict.fromkeys(kind for figure in shown.values() for kind in figure.floor))
    dashes = dict(zip(kinds, cycle(_FLOOR_DASHES), strict=False))
    marks: dict[str, Artist] = {"samples, with interval": _dot_mark()}
    marks |= {f"real, {kind}": Line2D([], [], linestyle=dashes[kind], **_FLOOR) for kind in kinds}
    lines = style.legend_lines(marks, drawing.WIDTH)
    head = lines * style.LINE + 10
    height = head + len(shown) * _ROW
    figure = style.new_figure(drawing.WIDTH, height)
    drawing.legend(figure, marks, lines=lines)
    for i, (name, found) in enumerate(shown.items()):
        top = head + i * _ROW
        metric = METRICS.get(name)
        style.add_text(
            figure,
            drawing.EDGE,
            top + 15,
            metric.label if metric else name.replace("_", " "),
            va="baseline",
        )
        if metric:
            better = "more is better →" if metric.higher_is_better else "← less is better"
            drawing.small(figure, drawing.WIDTH - drawing.EDGE, top + 15, better, ha="right")
        bottom = height - top - _LABEL_ROOM - _LINE_ROOM
        axes = style.add_axes(figure, _INSET, bottom, _INSET, top + _LABEL_ROOM)
        _scale(axes, name, found)
        for kind, value in found.floor.items():
            axes.plot([value, value], [0, 1], linestyle=dashes[kind], clip_on=False, **_FLOOR)
        if found.low is not None and found.high is not None:
            axes.plot([found.low, found.high], [0.5, 0.5], color=style.INK, linewidth=2.5)
            for end in (found.low, found.high):
                axes.plot([end, end], [0.3, 0.7], color=style.INK, linewidth=1.5)
        axes.plot([found.value or 0.0], [0.5], clip_on=False, **_dot())
    return figure


def quality(
    groups: Mapping[str, Sequence[Evaluation]], metric: str = "frechet_distance"
) -> Figure | None:
    """A figure of samples against the network evaluations that each of them took.

    Args:
        groups: evaluations that differ in their timesteps only, by what tells the groups apart.
    """
    known = {
        name: sorted(_measured(group, metric), key=lambda e: e.protocol.evaluations)
        for name, group in groups.items()
    }
    known = {name: group for name, group in known.items() if group}
    if not known:
        return None
    every = [e for group in known.values() for e in group]
    counts = sorted({e.protocol.evaluations for e in every})
    marks = _line_marks(known) | _floor_marks(every, metric)
    extra = max(0, style.legend_lines(marks, drawing.WIDTH) - 1) * style.LINE
    figure = style.new_figure(drawing.WIDTH, drawing.HEIGHT + extra)
    drawing.title(figure, f"{_title(metric)} against evaluations")
    axes = style.add_axes(
        figure, drawing.LEFT, drawing.BOTTOM, drawing.RIGHT, drawing.TITLE_ROOM + extra + 8
    )
    values = _draw_floors(axes, every, metric)
    for group, look in zip(known.values(), _looks(len(known)), strict=True):
        x = [e.protocol.evaluations for e in group]
        values += _draw_line(axes, x, [e.figures[metric] for e in group], look)
    logarithmic = drawing.value_axis(axes, values, _LOG_VALUES)
    axes.set_xscale("log")
    margin = 1.15 if len(counts) > 1 else 2
    axes.set_xlim(counts[0] / margin, counts[-1] * margin)
    _count_ticks(axes, counts)
    if logarithmic:
        drawing.small(figure, drawing.EDGE, 38, "logarithmic scales")
    drawing.axis_labels(figure, "network evaluations of a sample")
    drawing.legend(figure, marks, top=46, lines=style.legend_lines(marks, drawing.WIDTH))
    return figure


def guidance(groups: Mapping[str, Sequence[Evaluation]]) -> Figure | None:
    """Accuracy and Fréchet distance against the guidance scale, a panel for each that is known.

    Args:
        groups: evaluations that differ in their guidance only, by what tells the groups apart.
    """
    panels = [
        name
        for name in ("accuracy", "frechet_distance")
        if any(_value(e, name) is not None for group in groups.values() for e in group)
    ]
    if not panels:
        return None
    every = [e for group in groups.values() for e in group]
    scales = sorted({guidance_scale(e) for e in every})
    marks = _line_marks(groups) if len(groups) > 1 else {}
    marks |= _floor_marks(every, "frechet_distance")
    lines = style.legend_lines(marks, drawing.WIDTH)
    head = 30 + lines * style.LINE
    height = head + len(panels) * (_PANEL + _PANEL_HEAD) + drawing.BOTTOM
    figure = style.new_figure(drawing.WIDTH, height)
    drawing.title(figure, "Guidance")
    for i, metric in enumerate(panels):
        top = head + i * (_PANEL + _PANEL_HEAD) + _PANEL_HEAD
        axes = style.add_axes(figure, drawing.LEFT, height - top - _PANEL, drawing.RIGHT, top)
        values = _draw_floors(axes, every, metric)
        for group, look in zip(groups.values(), _looks(len(groups)), strict=True):
            known = [e for e in group if _value(e, metric) is not None]
            known = sorted(known, key=guidance_scale)
            found = [
                record.Figure(e.accuracy) if metric == "accuracy" else e.figures[metric]
                for e in known
            ]
            values += _draw_line(axes, [guidance_scale(e) for e in known], found, look)
        if metric == "accuracy":
            said = "share of samples that the classifier agrees on"
            axes.set_ylim(-0.04, 1.04)
            axes.set_yticks([0, 0.25, 0.5, 0.75, 1], ["0%", "25%", "50%", "75%", "100%"])
        else:
            logarithmic = drawing.value_axis(axes, values, _LOG_VALUES)
            said = _title(metric) + (", logarithmic scale" if logarithmic else "")
        drawing.small(figure, drawing.EDGE, top - 14, said)
        margin = 0.06 * (scales[-1] - scales[0]) or 0.5
        axes.set_xlim(scales[0] - margin, scales[-1] + margin)
        ticks = drawing.linear_ticks(scales[0], scales[-1]) if len(scales) > 8 else scales
        axes.set_xticks(ticks, [drawing.number(tick) for tick in ticks])
        axes.tick_params(axis="x", labelbottom=i == len(panels) - 1)
    drawing.axis_labels(figure, "guidance scale; 1 is told, but not guided")
    if marks:
        drawing.legend(figure, marks, top=28, lines=lines)
    return figure


def guidance_scale(evaluation: Evaluation) -> float:
    """The scale that samples were guided with; 1 without guidance."""
    told = evaluation.protocol.guidance
    return 1.0 if told is None else float(told.get("scale", 1.0))


def classes(found: Sequence[ClassFigures]) -> Figure:
    """Each class's share of the samples beside its due, and how often the classifier agrees.

    Of many classes, those that are furthest from their due.
    """
    shown = telling_classes(found)
    told = any(c.accuracy is not None for c in shown)
    head = 90
    height = head + len(shown) * _CLASS_ROW + 34
    figure = style.new_figure(drawing.WIDTH, height)
    drawing.title(figure, "By class")
    said = "as the classifier sees the samples"
    if len(shown) < len(found):
        said = f"the {len(shown)} of {len(found)} classes that are furthest from their due"
    drawing.small(figure, drawing.EDGE, 38, said)
    middle = drawing.WIDTH * (0.58 if told else 1)
    places = np.arange(len(shown)) + 0.5
    panels = [("share of the samples", float(_CLASS_ROOM), middle - drawing.RIGHT)]
    if told:
        panels.append(("accuracy", middle + 6, float(drawing.WIDTH - drawing.RIGHT)))
    for i, (title, left, right) in enumerate(panels):
        axes = style.add_axes(figure, left, 30, drawing.WIDTH - right, head)
        axes.grid(visible=False)
        axes.grid(axis="x", color=style.RULE, linewidth=1)
        axes.set_ylim(len(shown), 0)
        axes.set_yticks(places, [str(c.label) for c in shown] if i == 0 else [""] * len(shown))
        if i == 0:
            shares = [c.share for c in shown]
            dues = [c.reference_share for c in shown]
            axes.barh(places, shares, 0.66, color=style.WASH)
            axes.vlines(dues, places - 0.42, places + 0.42, color=style.ACCENT, linewidth=2.5)
            axes.set_xlim(0, 1.08 * max(*shares, *dues, 1e-9))
        else:
            rates = [math.nan if c.accuracy is None else c.accuracy for c in shown]
            axes.barh(places, rates, 0.66, color=style.MUTED)
            axes.set_xlim(0, 1)
        ticks = drawing.linear_ticks(*axes.get_xlim(), at_most=4 if i == 0 else 2)
        axes.set_xticks(ticks, [_percent(tick) for tick in ticks])
        drawing.small(figure, left, head - 10, title)
    drawing.legend(
        figure,
        {
            "samples": Patch(color=style.WASH),
            "real": Line2D([], [], color=style.ACCENT, linewidth=2.5),
        },
    )
    return figure


def telling_classes(found: Sequence[ClassFigures]) -> list[ClassFigures]:
    """The classes that a page shows: all, or of many those that are furthest from their due."""
    far = sorted(found, key=lambda c: abs(c.share - c.reference_share), reverse=True)
    return sorted(far[:_CLASSES], key=lambda c: c.label)


def nearest_distances(found: Nearest) -> Figure:
    """How far samples and held-out examples are from the nearest training example."""
    figure, axes = drawing.chart(f"Distance to training, in {found.space}")
    samples, held_out = np.array(found.samples), np.array(found.held_out)
    percent = np.linspace(0, 100, len(samples))
    threshold = float(np.interp(1, np.linspace(0, 100, len(held_out)), held_out))
    axes.axvspan(0, threshold, color=style.RULE, linewidth=0)
    looks: dict[str, dict[str, Any]] = {
        "held out": {"color": style.ACCENT, "linestyle": (0, (4, 1.5))},
        "samples": {"color": style.INK},
    }
    axes.plot(held_out, np.linspace(0, 100, len(held_out)), linewidth=2, **looks["held out"])
    axes.plot(samples, percent, linewidth=2, clip_on=False, **looks["samples"])
    axes.set_ylim(0, 100)
    axes.set_yticks([0, 25, 50, 75, 100], ["0%", "25%", "50%", "75%", "100%"])
    right = 1.03 * max(float(samples[-1]), float(held_out[-1]), 1e-9)
    axes.set_xlim(0, right)
    ticks = drawing.linear_ticks(0, right)
    axes.set_xticks(ticks, [drawing.number(t) for t in ticks], math_fontfamily=style.MATH_FONT)
    drawing.small(figure, drawing.EDGE, 38, "share of examples that are at least so near")
    drawing.axis_labels(figure, "distance to the nearest training example", "copies")
    drawing.legend(
        figure, {name: Line2D([], [], linewidth=2, **look) for name, look in looks.items()}
    )
    return figure


def _title(metric: str) -> str:
    label = METRICS[metric].label if metric in METRICS else metric.replace("_", " ")
    return label[:1].upper() + label[1:]


def _value(evaluation: Evaluation, metric: str) -> float | None:
    if metric == "accuracy":
        return evaluation.accuracy
    figure = evaluation.figures.get(metric)
    return None if figure is None else figure.value


def _measured(group: Sequence[Evaluation], metric: str) -> list[Evaluation]:
    return [e for e in group if _value(e, metric) is not None]


def _dot() -> dict[str, Any]:
    return {
        "marker": "o",
        "markersize": 9,
        "color": style.INK,
        "markeredgecolor": style.PAPER,
        "markeredgewidth": 1.5,
        "linestyle": "",
        "zorder": 4,
    }


def _dot_mark() -> Line2D:
    return Line2D([], [], **{**_dot(), "linestyle": "-", "linewidth": 2})


def _scale(axes: Axes, name: str, found: record.Figure) -> None:
    """A horizontal scale that holds a figure, its interval and its floors, with a few ticks."""
    held = [found.value, found.low, found.high, *found.floor.values()]
    known = [value for value in held if value is not None]
    low, high = min(known), max(known)
    if name in _SHARES and low >= 0 and high <= 1:
        low, high = 0.0, 1.0
    elif name != "inception_score":
        low, high = min(0.0, low), max(0.0, high)
    margin = 0.04 * (high - low) or 0.5
    # What ends at a natural bound ends there.
    low, high = low - (margin if low else 0), high + (margin if high not in (0, 1) else 0)
    axes.set_xlim(low, high if high > low else low + 1)
    axes.set_ylim(0, 1)
    axes.grid(visible=False)
    axes.set_yticks([])
    ticks = drawing.linear_ticks(*axes.get_xlim())
    axes.set_xticks(ticks, [drawing.number(t) for t in ticks], math_fontfamily=style.MATH_FONT)


def _draw_line(
    axes: Axes, x: Sequence[float], found: Sequence[record.Figure], look: Mapping[str, Any]
) -> list[float]:
    """A line through figures with their intervals; all values that it reaches."""
    values = [figure.value for figure in found if figure.value is not None]
    axes.plot(x, values, clip_on=False, **look)
    reached = list(values)
    for place, figure in zip(x, found, strict=True):
        if figure.low is not None and figure.high is not None:
            axes.vlines(place, figure.low, figure.high, color=look["color"], linewidth=1.5)
            reached += [figure.low, figure.high]
    return reached


def _floors(every: Sequence[Evaluation], metric: str) -> dict[str, float]:
    """What real images get, by what was held against what; the latest where there are several."""
    floors: dict[str, float] = {}
    for evaluation in every:
        if metric in evaluation.figures:
            floors |= evaluation.figures[metric].floor
    return floors


def _draw_floors(axes: Axes, every: Sequence[Evaluation], metric: str) -> list[float]:
    """A horizontal line for each floor; their values."""
    floors = _floors(every, metric)
    for value, dashes in zip(floors.values(), cycle(_FLOOR_DASHES), strict=False):
        axes.axhline(value, linestyle=dashes, **_FLOOR)
    return list(floors.values())


def _floor_marks(every: Sequence[Evaluation], metric: str) -> dict[str, Artist]:
    kinds = zip(_floors(every, metric), cycle(_FLOOR_DASHES), strict=False)
    return {f"real, {kind}": Line2D([], [], linestyle=dashes, **_FLOOR) for kind, dashes in kinds}


def _line_marks(groups: Mapping[str, Any]) -> dict[str, Artist]:
    looks = zip(groups, _looks(len(groups)), strict=True)
    return {name: Line2D([], [], **look) for name, look in looks}


def _looks(count: int) -> list[dict[str, Any]]:
    """Lines that are told apart by their markers too."""
    return [
        {**look, "linewidth": 2, "marker": marker, "markersize": 5.5}
        for look, marker in zip(style.series(count), cycle("os^Dv"), strict=False)
    ]


def _count_ticks(axes: Axes, counts: Sequence[int]) -> None:
    """A tick for each count, but for those whose labels would touch."""
    kept: list[int] = []
    for count in counts:
        if not kept or count / kept[-1] > (counts[-1] / counts[0]) ** (1 / 9):
            kept.append(count)
    axes.set_xticks(kept, [f"{count:,}" for count in kept])
    axes.minorticks_off()


def _percent(share: float) -> str:
    return f"{100 * share:.3g}%"
