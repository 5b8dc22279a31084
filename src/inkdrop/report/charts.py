"""Charts of a run's metrics and of its noise schedule."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib.artist import Artist
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Patch
from matplotlib.ticker import MaxNLocator, NullLocator
from numpy.typing import NDArray

from ..diffusion.likelihood import BitsPerDim
from ..diffusion.schedule import TERMINAL_SIGNAL, NoiseSchedule
from ..metrics import TIMESTEP_BINS
from . import style

RECENT = 10  # rows of metrics that the latest training loss is the mean of

_WIDTH = 460
_HEIGHT = 316
_EDGE, _LEFT, _RIGHT, _BOTTOM = 2, 52, 26, 50  # margins: of titles, then of the axes
_TITLE_ROOM = 66
_FIGURES_ROOM = 24  # for a line of figures under a title
_HEADING, _PANEL_TITLE_ROOM, _PANEL_HEIGHT = 14, 54, 124
_NARROW = 374  # a panel's width beside others

# From which ratio of largest to smallest value an axis is logarithmic.
_LOG_CURVE = 2.5  # what matters of a loss is its tail, which the first steps would press flat
_LOG_BARS = 8.0  # bars of about the same size are better seen whole
_LOG_BETAS = 1000.0  # a linear schedule has 200, and is drawn as the straight line it is
_DOTS = 40  # measurements that are marked one by one, at most
_SMOOTHING = 20  # the moving average spans one in so many of the rows

_LOSS_UNITS = {
    "simple": "mean squared error of the {prediction}",
    "weighted-noise": "squared error of the noise as the bound weighs it, nats per dimension",
    "variational-bound": "a term of the bound, nats per dimension",
    "hybrid": "mean squared error of the {prediction}, and a little of the bound",
    "min-snr": "squared error of the noise with min-SNR weights",
    "p2": "squared error of the noise with P2 weights",
}
_PREDICTIONS = {"x_start": "clean example"}

Metrics = Sequence[dict[str, Any]]
Floats = NDArray[np.float64]


def loss_curve(metrics: Metrics, unit: str = "mean squared error") -> Figure:
    """Training loss (each row, and smoothed) and held-out loss against the optimizer step.

    Args:
        metrics: rows of metrics.jsonl.
        unit: of the loss.
    """
    steps, losses = _series(metrics, "loss")
    held_out_steps, held_out = _series(metrics, "held_out_loss")
    figure, axes = _chart("Loss")
    if not len(losses) and not len(held_out):
        return _without_data(figure, axes)
    smooth = smoothed(losses)
    logarithmic = _value_axis(axes, [*losses, *held_out], _LOG_CURVE)
    _small(figure, _EDGE, 38, _unit(unit, logarithmic))
    axes.plot(steps, losses, color=style.WASH, linewidth=1)
    axes.plot(steps, smooth, color=style.INK, linewidth=2, marker="o" if len(steps) == 1 else "")
    dots: dict[str, Any] = {
        "marker": "o" if len(held_out) <= _DOTS else "",
        "markersize": 5,
        "markeredgecolor": style.PAPER,
    }
    axes.plot(held_out_steps, held_out, color=style.ACCENT, linewidth=1.5, clip_on=False, **dots)
    _count_axis(axes, max([*steps, *held_out_steps]))
    _axis_labels(figure, "optimizer step")
    marks: dict[str, Artist] = {}
    if len(losses):
        marks["training"] = Line2D([], [], color=style.INK, linewidth=2)
    if len(held_out):
        marks["held out"] = Line2D([], [], color=style.ACCENT, linewidth=1.5, **dots)
    _legend(figure, marks)
    return figure


def loss_by_timestep(
    metrics: Metrics, timesteps: int | None = None, unit: str = "mean squared error"
) -> Figure:
    """The latest loss by how noisy the images were: ten bins, each a tenth of the schedule.

    Args:
        metrics: rows of metrics.jsonl.
        timesteps: T, to name the bins by their timesteps; by tenths of T where it is not given.
        unit: of the loss.
    """
    training = _bin_means(metrics, "loss_by_timestep", RECENT)
    held_out = _bin_means(metrics, "held_out_loss_by_timestep", 1)
    known = [loss for loss in (*training, *held_out) if math.isfinite(loss)]
    figure, axes = _chart("Loss by timestep")
    if not known:
        return _without_data(figure, axes)
    logarithmic = _value_axis(axes, known, _LOG_BARS, from_zero=True)
    _small(figure, _EDGE, 38, _unit(unit, logarithmic))
    floor = axes.get_ylim()[0]
    bins = np.arange(TIMESTEP_BINS)
    axes.bar(bins + 0.5, training - floor, 0.8, bottom=floor, color=style.WASH)
    axes.hlines(held_out, bins + 0.1, bins + 0.9, color=style.ACCENT, linewidth=2.5)
    axes.set_xlim(0, TIMESTEP_BINS)
    edges = range(0, TIMESTEP_BINS + 1, 2)
    labels = [_bin_edge(i, timesteps) for i in edges]
    axes.set_xticks(edges, labels, math_fontfamily=style.MATH_FONT)
    _axis_labels(figure, "timestep $t$", "nearly clean", "nearly all noise")
    marks: dict[str, Artist] = {}
    if np.isfinite(training).any():
        marks["training"] = Patch(color=style.WASH)
    if np.isfinite(held_out).any():
        marks["held out"] = Line2D([], [], color=style.ACCENT, linewidth=2.5)
    _legend(figure, marks)
    return figure


def noise_schedule(
    schedule: NoiseSchedule, side_by_side: bool = False, signal: str = "image"
) -> Figure:
    """The schedule against t: β_t, the amplitudes of image and noise in x_t, and the log-SNR.

    Three panels, one beneath the other or `side_by_side`.

    Args:
        signal: what is noised, in a word.
    """
    across, down = (3, 1) if side_by_side else (1, 3)
    panel_width = _NARROW if side_by_side else _WIDTH
    panel_height = _PANEL_TITLE_ROOM + _PANEL_HEIGHT
    width, height = across * panel_width, _HEADING + down * panel_height + _BOTTOM
    figure = style.new_figure(width, height)
    _title(figure, "Noise schedule")
    t = np.arange(schedule.timesteps)
    places = [(i % across * panel_width, _HEADING + i // across * panel_height) for i in range(3)]

    def panel(index: int, title: str) -> Axes:
        left, top = places[index]
        right, bottom = width - left - panel_width, height - top - panel_height
        style.add_text(figure, left + _EDGE, top + _PANEL_TITLE_ROOM - 18, title, va="baseline")
        axes = style.add_axes(figure, left + _LEFT, bottom, right + _RIGHT, top + _PANEL_TITLE_ROOM)
        _count_axis(axes, schedule.timesteps - 1)
        lowest = bottom == _BOTTOM
        axes.tick_params(axis="x", labelbottom=lowest)
        if lowest:
            _axis_labels(
                figure,
                "timestep $t$",
                "nearly clean",
                "nearly all noise",
                (left, left + panel_width),
            )
        return axes

    def curve(axes: Axes, values: Any, color: str = style.INK) -> None:
        marker = "o" if schedule.timesteps == 1 else ""
        axes.plot(t, values, color=color, linewidth=2, marker=marker, clip_on=False)

    betas = schedule.betas.numpy()
    axes = panel(0, r"noise added at a step: its variance $\beta_t$")
    _value_axis(axes, betas, _LOG_BETAS, from_zero=True)
    curve(axes, betas)

    axes = panel(1, r"amplitudes in $x_t$")
    axes.set_ylim(0, 1)
    _value_ticks(axes, [0, 0.5, 1])
    curve(axes, schedule.sqrt_one_minus_alphas_cumprod.numpy(), style.ACCENT)
    curve(axes, schedule.sqrt_alphas_cumprod.numpy())
    _mark_terminal(axes, schedule)
    _legend(
        figure,
        {
            rf"{signal} $\sqrt{{\bar{{\alpha}}_t}}$": Line2D([], [], color=style.INK, linewidth=2),
            r"noise $\sqrt{1-\bar{\alpha}_t}$": Line2D([], [], color=style.ACCENT, linewidth=2),
        },
        right=places[1][0] + panel_width - _RIGHT,
        top=places[1][1] + _PANEL_TITLE_ROOM - 33,
    )

    log_snr = schedule.log_snr.numpy()
    axes = panel(2, r"log-SNR, $\ln\,\bar{\alpha}_t/(1-\bar{\alpha}_t)$")
    _value_axis(axes, [*log_snr, 0.0], math.inf)
    axes.axhline(0, color=style.FAINT, linewidth=1)
    _note(axes, f"as much {signal} as noise", (1, 0), (0, 5), xycoords=("axes fraction", "data"))
    curve(axes, log_snr)
    return figure


def loss_unit(objective: str, prediction: str) -> str:
    """What a loss is measured in, by the names of the objective and of what is predicted."""
    unit = _LOSS_UNITS.get(objective, f"the {objective} objective")
    return unit.format(prediction=_PREDICTIONS.get(prediction, prediction))


def losses_compared(metrics: Mapping[str, Metrics], units: Mapping[str, str]) -> Figure:
    """The losses of several runs against the optimizer step, a panel for each unit.

    Held-out losses where all runs have one, else the moving averages of their training losses.

    Args:
        metrics: rows of metrics.jsonl by the runs' names.
        units: of each run's loss.
    """
    curves = {name: _series(rows, "held_out_loss") for name, rows in metrics.items()}
    title = "Held-out loss"
    if not all(len(losses) for _, losses in curves.values()):
        training = {name: _series(rows, "loss") for name, rows in metrics.items()}
        curves = {name: (steps, smoothed(losses)) for name, (steps, losses) in training.items()}
        title = "Training loss"
    looks = dict(zip(curves, style.series(len(curves)), strict=True))
    panels = list(dict.fromkeys(units.values()))
    across = min(2, len(panels))
    down = math.ceil(len(panels) / across)
    width = across * _WIDTH
    lines = style.legend_lines(curves, width)
    head, pitch = 30 + lines * style.LINE, _PANEL_TITLE_ROOM + _HEIGHT - _TITLE_ROOM
    figure = style.new_figure(width, head + down * pitch)
    _title(figure, title)
    marks: dict[str, Artist] = {
        name: Line2D([], [], linewidth=2, **look) for name, look in looks.items()
    }
    _legend(figure, marks, width - _RIGHT, 28, lines)
    for i, unit in enumerate(panels):
        shown = {name: curves[name] for name in curves if units[name] == unit}
        left, top = i % across * _WIDTH, head + i // across * pitch
        bottom = (down - 1 - i // across) * pitch + _BOTTOM
        axes = style.add_axes(
            figure, left + _LEFT, bottom, width - left - _WIDTH + _RIGHT, top + _PANEL_TITLE_ROOM
        )
        values = [loss for _, losses in shown.values() for loss in losses]
        if not values:
            _without_data(figure, axes)
            continue
        logarithmic = _value_axis(axes, values, _LOG_CURVE)
        _small(figure, left + _EDGE, top + _PANEL_TITLE_ROOM - 18, _unit(unit, logarithmic))
        for name, (steps, losses) in shown.items():
            marker = "o" if len(steps) == 1 else ""
            axes.plot(steps, losses, linewidth=2, marker=marker, **looks[name])
        _count_axis(axes, max(step for steps, _ in shown.values() for step in steps))
        middle, y = left + (_LEFT + _WIDTH - _RIGHT) / 2, top + pitch - 7
        style.add_text(figure, middle, y, "optimizer step", ha="center", va="baseline")
    return figure


def likelihood_terms(bound: BitsPerDim) -> Figure:
    """Where the bits are: the bound's terms by t, and the error of the noise they come from."""
    figure = style.new_figure(2 * _WIDTH, _HEIGHT + _FIGURES_ROOM)
    _title(figure, f"Likelihood: {bound.total:.3f} bits per dimension or fewer")
    parts = {
        "prior": bound.prior,
        "steps": bound.per_timestep.sum().item(),
        "decoder": bound.decoder,
    }
    summed = " + ".join(f"{name} {number(round(value, 3))}" for name, value in parts.items())
    error = number(float(f"{bound.standard_error:.2g}"))
    _small(figure, _EDGE, 38, f"{summed}; standard error {error}")
    asked = bound.asked.double()
    # Where only some timesteps were asked of each example, the mean over those that were.
    terms = (bound.per_timestep * asked[1:].mean() / asked).numpy()
    step, mse = "a step’s term, bits per dimension", "mean squared error of the noise"
    for left, label, values, log_from in (
        (0, step, np.append(np.nan, terms[1:]), _LOG_CURVE),
        (_WIDTH, mse, bound.noise_mse.numpy(), math.inf),
    ):
        right = _RIGHT + (_WIDTH - left)
        axes = style.add_axes(figure, left + _LEFT, _BOTTOM, right, _TITLE_ROOM + _FIGURES_ROOM)
        known = np.flatnonzero(np.isfinite(values) & (values > 0))
        if not len(known):
            axes.set_axis_off()
            continue
        logarithmic = _value_axis(axes, values[known], log_from, from_zero=True)
        _small(figure, left + _EDGE, 38 + _FIGURES_ROOM, _unit(label, logarithmic))
        axes.plot(known, values[known], color=style.INK, linewidth=1.5)
        _count_axis(axes, len(values) - 1)
        _axis_labels(
            figure, "timestep $t$", "nearly clean", "nearly all noise", (left, left + _WIDTH)
        )
    return figure


def smoothed(values: Floats) -> Floats:
    """A moving average over one in twenty of the values, and as long as they are.

    Its window opens gradually, so that the steep fall at the start is not blurred.
    """
    i = np.arange(len(values))
    half = np.minimum(math.ceil(len(values) / _SMOOTHING / 2), i // 4)
    first, last = i - half, np.minimum(i + half, len(values) - 1)
    sums = np.concatenate([[0.0], np.cumsum(values)])
    mean: Floats = (sums[last + 1] - sums[first]) / (last + 1 - first)
    return mean


def latest_loss(metrics: Metrics, name: str = "loss", rows: int = RECENT) -> float | None:
    """The mean of the last `rows` values of a loss, or None where there is none."""
    _, losses = _series(metrics, name)
    return float(losses[-rows:].mean()) if len(losses) else None


def number(value: float) -> str:
    """A number as an axis shows it, short and in matplotlib's notation: 0.05, 20,000, 2·10⁻⁵."""
    size = abs(value)
    if value and not 1e-3 <= size < 1e6:
        mantissa, exponent = f"{value:.3e}".split("e")
        factor = "" if float(mantissa) == 1 else rf"{float(mantissa):g}\cdot"
        return f"${factor}10^{{{int(exponent)}}}$"
    return (f"{value:,.0f}" if size >= 1000 else f"{value:.4g}").replace("-", "−")


def _chart(title: str) -> tuple[Figure, Axes]:
    figure = style.new_figure(_WIDTH, _HEIGHT)
    _title(figure, title)
    return figure, style.add_axes(figure, _LEFT, _BOTTOM, _RIGHT, _TITLE_ROOM)


def _title(figure: Figure, title: str) -> None:
    style.add_text(figure, _EDGE, 17, title, va="baseline", fontsize=17, fontweight="bold")


def _without_data(figure: Figure, axes: Axes) -> Figure:
    axes.set_axis_off()
    axes.text(0.5, 0.5, "no data yet", ha="center", transform=axes.transAxes, **style.text_style())
    return figure


def _value_axis(
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
        _value_ticks(axes, _log_ticks(low, high))
    else:
        margin = 0.08 * (high - low) or 0.1 * abs(high) or 1.0
        low, high = 0.0 if from_zero else low - margin, high + margin
        axes.set_ylim(low, high)
        _value_ticks(axes, _linear_ticks(low, high))
    return logarithmic


def _value_ticks(axes: Axes, ticks: Sequence[float]) -> None:
    labels = [number(tick) for tick in ticks]
    axes.set_yticks(ticks, labels, math_fontfamily=style.MATH_FONT)


def _linear_ticks(low: float, high: float, at_most: int = 5) -> list[float]:
    ticks = MaxNLocator(at_most, steps=[1, 2, 5, 10]).tick_values(low, high)
    return [float(tick) for tick in ticks if low <= tick <= high]


def _log_ticks(low: float, high: float, at_most: int = 7) -> list[float]:
    """As many of the digits of each power of ten as there is room for; or every second power …"""
    powers = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
    digits = (range(1, 10), (1, 2, 3, 5), (1, 2, 5))
    choices = [[m * 10.0**p for p in powers for m in some] for some in digits]
    choices += [[10.0**p for p in powers if p % stride == 0] for stride in (1, 2, 5, 10, 50)]
    inside = [[tick for tick in ticks if low <= tick <= high] for ticks in choices]
    return next((ticks for ticks in inside if len(ticks) <= at_most), inside[-1])


def _count_axis(axes: Axes, largest: float) -> None:
    largest = max(1.0, largest)
    axes.set_xlim(0, largest)
    ticks = [tick for tick in _linear_ticks(0, largest) if tick == int(tick)]
    axes.set_xticks(ticks, [f"{tick:,.0f}" for tick in ticks])


def _axis_labels(
    figure: Figure,
    label: str,
    low: str = "",
    high: str = "",
    panel: tuple[float, float] = (0, _WIDTH),
) -> None:
    """The label of the horizontal axis of a panel, and what the axis' two ends mean."""
    y = figure.get_size_inches()[1] * style.POINTS_PER_INCH - 7
    left, right = panel[0] + _LEFT, panel[1] - _RIGHT
    style.add_text(figure, (left + right) / 2, y, label, ha="center", va="baseline")
    _small(figure, left, y, low)
    _small(figure, right, y, high, ha="right")


def _small(figure: Figure, x: float, y: float, text: str, ha: str = "left") -> None:
    style.add_text(
        figure, x, y, text, ha=ha, va="baseline", fontsize=style.SMALL_SIZE, color=style.MUTED
    )


def _note(
    axes: Axes, text: str, point: tuple[float, float], offset: tuple[float, float], **how: Any
) -> None:
    """A remark that ends above a point of the axes."""
    how = {"color": style.MUTED, **how}
    axes.annotate(
        text,
        point,
        offset,
        textcoords="offset points",
        ha="right",
        **{**style.text_style(), "fontsize": style.SMALL_SIZE, **how},
    )


def _legend(
    figure: Figure,
    marks: dict[str, Artist],
    right: float = _WIDTH - _RIGHT,
    top: float = 5,
    lines: int = 1,
) -> None:
    style.add_legend(figure, marks, right, top, lines)


def _mark_terminal(axes: Axes, schedule: NoiseSchedule) -> None:
    """Say what is left of the image at the end, loudly where that is more than it should be."""
    last = schedule.alphas_cumprod[-1].item()
    point = (schedule.timesteps - 1, schedule.sqrt_alphas_cumprod[-1].item())
    too_much = last > TERMINAL_SIGNAL
    color = style.ACCENT if too_much else style.INK
    axes.plot(
        *point,
        marker="o",
        markersize=7,
        color=color,
        markeredgecolor=style.PAPER,
        clip_on=False,
        zorder=3,
    )
    text = rf"$\bar{{\alpha}}$ = {number(float(f'{last:.2g}'))} at the end"
    # Under the falling curve, where no line passes.
    under = int((schedule.sqrt_alphas_cumprod >= 0.2).sum()) - 1
    _note(axes, f"signal is left: {text}" if too_much else text, (under, 0), (-8, 6), color=color)


def _series(metrics: Metrics, name: str) -> tuple[Floats, Floats]:
    """Steps and values of the rows that have a finite value of that name."""
    pairs = [(row["step"], row[name]) for row in metrics if row.get(name) is not None]
    pairs = [(step, value) for step, value in pairs if math.isfinite(value)]
    columns = np.array(pairs, dtype=np.float64).reshape(-1, 2)
    return columns[:, 0], columns[:, 1]


def _bin_means(metrics: Metrics, name: str, rows: int) -> Floats:
    """Mean of the last `rows` rows in each bin, NaN for a bin that none of them has."""
    latest = [row[name] for row in metrics if row.get(name)][-rows:]
    values = np.array(latest, dtype=np.float64).reshape(-1, TIMESTEP_BINS)
    known = np.isfinite(values)
    count = known.sum(0)
    total = np.where(known, values, 0.0).sum(0)
    means: Floats = np.where(count > 0, total / np.maximum(count, 1), np.nan)
    return means


def _bin_edge(index: int, timesteps: int | None) -> str:
    """The first timestep of a bin, or T behind the last."""
    if timesteps is not None:
        return f"{math.ceil(index * timesteps / TIMESTEP_BINS):,}"
    share = index / TIMESTEP_BINS
    return {0.0: "0", 1.0: "$T$"}.get(share, f"{share:g} $T$")


def _unit(unit: str, logarithmic: bool) -> str:
    return f"{unit}, logarithmic scale" if logarithmic else unit
