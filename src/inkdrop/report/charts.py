"""Charts of a run's metrics and of its noise schedule."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib.artist import Artist
from matplotlib.axes import Axes
from matplotlib.colors import LinearSegmentedColormap, LogNorm
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Patch
from matplotlib.ticker import NullLocator
from numpy.typing import NDArray

from ..diffusion.likelihood import BitsPerDim
from ..diffusion.schedule import TERMINAL_SIGNAL, NoiseSchedule
from ..metrics import TIMESTEP_BINS
from . import drawing, style

RECENT = 10  # rows of metrics that the latest training loss is the mean of

_FIGURES_ROOM = 24  # for a line of figures under a title
_HEADING, _PANEL_TITLE_ROOM, _PANEL_HEIGHT = 14, 54, 124
_NARROW = 374  # a panel's width beside others

# From which ratio of largest to smallest value an axis is logarithmic.
_LOG_CURVE = 2.5  # what matters of a loss is its tail, which the first steps would press flat
_LOG_BARS = 8.0  # bars of about the same size are better seen whole
_LOG_BETAS = 1000.0  # a linear schedule has 200, and is drawn as the straight line it is
_DOTS = 40  # measurements that are marked one by one, at most
_COLUMNS = 60  # of a map, and means over neighbours that a curve is drawn through
_SHADES = ("#F2F4F7", style.WASH, style.MUTED, style.INK)  # of a map, as even in grey
_BAR_ROOM = 58  # for the scale beside a map
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
    figure, axes = drawing.chart("Loss")
    if not len(losses) and not len(held_out):
        return drawing.without_data(figure, axes)
    smooth = smoothed(losses)
    logarithmic = drawing.value_axis(axes, [*losses, *held_out], _LOG_CURVE)
    drawing.small(figure, drawing.EDGE, 38, _unit(unit, logarithmic))
    axes.plot(steps, losses, color=style.WASH, linewidth=1)
    axes.plot(steps, smooth, color=style.INK, linewidth=2, marker="o" if len(steps) == 1 else "")
    dots: dict[str, Any] = {
        "marker": "o" if len(held_out) <= _DOTS else "",
        "markersize": 5,
        "markeredgecolor": style.PAPER,
    }
    axes.plot(held_out_steps, held_out, color=style.ACCENT, linewidth=1.5, clip_on=False, **dots)
    drawing.count_axis(axes, max([*steps, *held_out_steps]))
    drawing.axis_labels(figure, "optimizer step")
    marks: dict[str, Artist] = {}
    if len(losses):
        marks["training"] = Line2D([], [], color=style.INK, linewidth=2)
    if len(held_out):
        marks["held out"] = Line2D([], [], color=style.ACCENT, linewidth=1.5, **dots)
    drawing.legend(figure, marks)
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
    figure, axes = drawing.chart("Loss by timestep")
    if not known:
        return drawing.without_data(figure, axes)
    logarithmic = drawing.value_axis(axes, known, _LOG_BARS, from_zero=True)
    drawing.small(figure, drawing.EDGE, 38, _unit(unit, logarithmic))
    floor = axes.get_ylim()[0]
    bins = np.arange(TIMESTEP_BINS)
    axes.bar(bins + 0.5, training - floor, 0.8, bottom=floor, color=style.WASH)
    axes.hlines(held_out, bins + 0.1, bins + 0.9, color=style.ACCENT, linewidth=2.5)
    axes.set_xlim(0, TIMESTEP_BINS)
    edges = range(0, TIMESTEP_BINS + 1, 2)
    labels = [_bin_edge(i, timesteps) for i in edges]
    axes.set_xticks(edges, labels, math_fontfamily=style.MATH_FONT)
    drawing.axis_labels(figure, "timestep $t$", "nearly clean", "nearly all noise")
    marks: dict[str, Artist] = {}
    if np.isfinite(training).any():
        marks["training"] = Patch(color=style.WASH)
    if np.isfinite(held_out).any():
        marks["held out"] = Line2D([], [], color=style.ACCENT, linewidth=2.5)
    drawing.legend(figure, marks)
    return figure


def loss_map(
    metrics: Metrics, timesteps: int | None = None, unit: str = "mean squared error"
) -> Figure:
    """The training loss of each bin of timesteps over training: the darker, the larger.

    The arguments are those of `loss_by_timestep`.
    """
    rows = [row for row in metrics if row.get("loss_by_timestep")]
    steps = np.array([row["step"] for row in rows], dtype=np.float64)
    losses = np.array([row["loss_by_timestep"] for row in rows], dtype=np.float64)
    figure, axes = drawing.chart("Loss by timestep, over training")
    known = losses[np.isfinite(losses) & (losses > 0)]
    if not len(known):
        return drawing.without_data(figure, axes)
    columns = np.array_split(np.arange(len(rows)), min(_COLUMNS, len(rows)))
    means = np.stack([_known_mean(losses[column]) for column in columns], axis=1)
    edges = np.array([0.0, *(steps[column[-1]] for column in columns)])
    seen = means[np.isfinite(means) & (means > 0)]
    low, high = float(seen.min()), float(seen.max())
    logarithmic = high / low > _LOG_CURVE
    scale: dict[str, Any] = (
        {"norm": LogNorm(low, high)} if logarithmic else {"vmin": 0, "vmax": high}
    )
    drawing.small(figure, drawing.EDGE, 38, _unit(unit, logarithmic))
    shades = LinearSegmentedColormap.from_list("loss", _SHADES)
    axes.grid(visible=False)
    axes.set_facecolor(style.PAPER)
    room = drawing.WIDTH - _BAR_ROOM
    axes.set_position(drawing.panel(drawing.LEFT, room))
    heat = axes.pcolormesh(edges, np.arange(TIMESTEP_BINS + 1), means, cmap=shades, **scale)
    drawing.count_axis(axes, edges[-1])
    ends = range(0, TIMESTEP_BINS + 1, 2)
    axes.set_yticks(ends, [_bin_edge(i, timesteps) for i in ends], math_fontfamily=style.MATH_FONT)
    bar = figure.add_axes(drawing.panel(room + 12, room + 22))
    ticks = drawing.ticks(low, high, logarithmic)
    figure.colorbar(heat, cax=bar, ticks=ticks).outline.set_visible(False)
    bar.yaxis.set_minor_locator(NullLocator())
    bar.set_yticks(ticks, [drawing.number(tick) for tick in ticks])
    bar.tick_params(length=0, pad=4, labelsize=style.SMALL_SIZE, labelcolor=style.MUTED)
    for label in bar.get_yticklabels():
        label.set_fontfamily(style.FONT)
        label.set_math_fontfamily(style.MATH_FONT)
    drawing.axis_labels(figure, "optimizer step", panel=(0, room + drawing.RIGHT))
    drawing.small(figure, drawing.LEFT, 58, "timestep $t$ upwards, nearly clean at the foot")
    return figure


def quality_in_training(metrics: Metrics) -> Figure:
    """The Fréchet distance that training measured, with the best step marked.

    Rows that were measured in another way (extractor, number of samples) are another line.
    """
    rows = [row for row in metrics if row.get("frechet_distance") is not None]
    ways = list(dict.fromkeys(measured_in_training(row) for row in rows))
    curves = {
        way: _series([r for r in rows if measured_in_training(r) == way], "frechet_distance")
        for way in ways
    }
    curves = {way: curve for way, curve in curves.items() if len(curve[0])}
    figure, axes = drawing.chart("Fréchet distance, over training")
    if not curves:
        return drawing.without_data(figure, axes)
    values = [value for _, curve in curves.values() for value in curve]
    logarithmic = drawing.value_axis(axes, values, _LOG_CURVE)
    several = len(curves) > 1
    what = "one line for each way of measuring" if several else next(iter(curves))
    drawing.small(figure, drawing.EDGE, 38, _unit(what, logarithmic))
    marks: dict[str, Artist] = {}
    for (way, (steps, distances)), look in zip(
        curves.items(), style.series(len(curves)), strict=True
    ):
        dot = "o" if len(steps) <= _DOTS else ""
        axes.plot(steps, distances, linewidth=2, marker=dot, markersize=4, clip_on=False, **look)
        best = int(distances.argmin())
        how = {"marker": "o", "markersize": 9, "markeredgewidth": 2, "linestyle": ""}
        ring = {**how, "markerfacecolor": style.PAPER, "markeredgecolor": look["color"]}
        axes.plot(steps[best], distances[best], zorder=3, clip_on=False, **ring)
        found = f"{drawing.number(float(f'{distances[best]:.3g}'))} at step {steps[best]:,.0f}"
        if several:
            marks[f"{way}: best {found}"] = Line2D([], [], linewidth=2, **look)
        else:
            marks[f"best {found}"] = Line2D([], [], **ring)
    drawing.count_axis(axes, max(steps[-1] for steps, _ in curves.values()))
    drawing.axis_labels(figure, "optimizer step")
    drawing.legend(figure, marks, top=46 if several else 5, lines=len(marks))
    return figure


def measured_in_training(row: Mapping[str, Any]) -> str:
    """How a row's Fréchet distance was measured, in words."""
    extractor = row.get("extractor")
    name = extractor.get("name") if isinstance(extractor, Mapping) else extractor
    count = row.get("evaluation_samples")
    said = [f"{count:,} samples" if count else "", f"features of {name}" if name else ""]
    return ", ".join(part for part in said if part) or "Fréchet distance"


def bound_by_timestep(terms: Sequence[float], averaged: bool) -> Figure:
    """The bound's KL terms against t, in bits per dimension.

    Args:
        terms: (T,), of t = 0 … T-1; the first is not drawn, for the decoder stands there.
        averaged: whether to draw means over neighbouring timesteps, where not each was asked of
            each example.
    """
    figure, axes = drawing.chart("Where the bits are")
    values = np.array(terms, dtype=np.float64)
    t = np.arange(len(values))
    if averaged:
        parts = np.array_split(t[1:], min(_COLUMNS, max(1, len(values) - 1)))
        t = np.array([float(part.mean()) for part in parts])
        values = np.array([float(values[part].mean()) for part in parts])
    known = np.isfinite(values) & (values > 0) & (t >= 1)
    if not known.any():
        return drawing.without_data(figure, axes)
    logarithmic = drawing.value_axis(axes, values[known], _LOG_CURVE, from_zero=True)
    means = ", means" if averaged else ""
    unit = f"a step’s term{means}, bits per dimension"
    drawing.small(figure, drawing.EDGE, 38, _unit(unit, logarithmic))
    floor = axes.get_ylim()[0]
    axes.fill_between(t[known], floor, values[known], color=style.RULE, linewidth=0)
    marker = "o" if known.sum() == 1 else ""
    axes.plot(t[known], values[known], color=style.INK, linewidth=1.5, marker=marker)
    drawing.count_axis(axes, len(terms) - 1)
    drawing.axis_labels(figure, "timestep $t$", "nearly clean", "nearly all noise")
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
    panel_width = _NARROW if side_by_side else drawing.WIDTH
    panel_height = _PANEL_TITLE_ROOM + _PANEL_HEIGHT
    width, height = across * panel_width, _HEADING + down * panel_height + drawing.BOTTOM
    figure = style.new_figure(width, height)
    drawing.title(figure, "Noise schedule")
    t = np.arange(schedule.timesteps)
    places = [(i % across * panel_width, _HEADING + i // across * panel_height) for i in range(3)]

    def panel(index: int, title: str) -> Axes:
        left, top = places[index]
        right, bottom = width - left - panel_width, height - top - panel_height
        style.add_text(
            figure, left + drawing.EDGE, top + _PANEL_TITLE_ROOM - 18, title, va="baseline"
        )
        axes = style.add_axes(
            figure, left + drawing.LEFT, bottom, right + drawing.RIGHT, top + _PANEL_TITLE_ROOM
        )
        drawing.count_axis(axes, schedule.timesteps - 1)
        lowest = bottom == drawing.BOTTOM
        axes.tick_params(axis="x", labelbottom=lowest)
        if lowest:
            drawing.axis_labels(
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
    drawing.value_axis(axes, betas, _LOG_BETAS, from_zero=True)
    curve(axes, betas)

    axes = panel(1, r"amplitudes in $x_t$")
    axes.set_ylim(0, 1)
    drawing.value_ticks(axes, [0, 0.5, 1])
    curve(axes, schedule.sqrt_one_minus_alphas_cumprod.numpy(), style.ACCENT)
    curve(axes, schedule.sqrt_alphas_cumprod.numpy())
    _mark_terminal(axes, schedule)
    drawing.legend(
        figure,
        {
            rf"{signal} $\sqrt{{\bar{{\alpha}}_t}}$": Line2D([], [], color=style.INK, linewidth=2),
            r"noise $\sqrt{1-\bar{\alpha}_t}$": Line2D([], [], color=style.ACCENT, linewidth=2),
        },
        right=places[1][0] + panel_width - drawing.RIGHT,
        top=places[1][1] + _PANEL_TITLE_ROOM - 33,
    )

    log_snr = schedule.log_snr.numpy()
    axes = panel(2, r"log-SNR, $\ln\,\bar{\alpha}_t/(1-\bar{\alpha}_t)$")
    drawing.value_axis(axes, [*log_snr, 0.0], math.inf)
    axes.axhline(0, color=style.FAINT, linewidth=1)
    drawing.note(
        axes, f"as much {signal} as noise", (1, 0), (0, 5), xycoords=("axes fraction", "data")
    )
    curve(axes, log_snr)
    return figure


def loss_unit(objective: str, prediction: str) -> str:
    """What a loss is measured in, by the names of the objective and of what is predicted."""
    unit = _LOSS_UNITS.get(objective, f"the {objective} objective")
    return unit.format(prediction=_PREDICTIONS.get(prediction, prediction))


def losses_compared(
    metrics: Mapping[str, Metrics], units: Mapping[str, str], across: int = 2
) -> Figure:
    """The losses of several runs against the optimizer step, a panel for each unit.

    Held-out losses where all runs have one, else the moving averages of their training losses.

    Args:
        metrics: rows of metrics.jsonl by the runs' names.
        units: of each run's loss.
        across: panels in a row.
    """
    curves = {name: _series(rows, "held_out_loss") for name, rows in metrics.items()}
    title = "Held-out loss"
    if not all(len(losses) for _, losses in curves.values()):
        training = {name: _series(rows, "loss") for name, rows in metrics.items()}
        curves = {name: (steps, smoothed(losses)) for name, (steps, losses) in training.items()}
        title = "Training loss"
    looks = dict(zip(curves, style.series(len(curves)), strict=True))
    panels = list(dict.fromkeys(units.values()))
    across = min(across, len(panels))
    down = math.ceil(len(panels) / across)
    width = across * drawing.WIDTH
    lines = style.legend_lines(curves, width)
    head, pitch = 30 + lines * style.LINE, _PANEL_TITLE_ROOM + drawing.HEIGHT - drawing.TITLE_ROOM
    figure = style.new_figure(width, head + down * pitch)
    drawing.title(figure, title)
    marks: dict[str, Artist] = {
        name: Line2D([], [], linewidth=2, **look) for name, look in looks.items()
    }
    drawing.legend(figure, marks, width - drawing.RIGHT, 28, lines)
    for i, unit in enumerate(panels):
        shown = {name: curves[name] for name in curves if units[name] == unit}
        left, top = i % across * drawing.WIDTH, head + i // across * pitch
        bottom = (down - 1 - i // across) * pitch + drawing.BOTTOM
        axes = style.add_axes(
            figure,
            left + drawing.LEFT,
            bottom,
            width - left - drawing.WIDTH + drawing.RIGHT,
            top + _PANEL_TITLE_ROOM,
        )
        values = [loss for _, losses in shown.values() for loss in losses]
        if not values:
            drawing.without_data(figure, axes)
            continue
        logarithmic = drawing.value_axis(axes, values, _LOG_CURVE)
        drawing.small(
            figure, left + drawing.EDGE, top + _PANEL_TITLE_ROOM - 18, _unit(unit, logarithmic)
        )
        for name, (steps, losses) in shown.items():
            marker = "o" if len(steps) == 1 else ""
            axes.plot(steps, losses, linewidth=2, marker=marker, **looks[name])
        drawing.count_axis(axes, max(step for steps, _ in shown.values() for step in steps))
        middle, y = left + (drawing.LEFT + drawing.WIDTH - drawing.RIGHT) / 2, top + pitch - 7
        style.add_text(figure, middle, y, "optimizer step", ha="center", va="baseline")
    return figure


def likelihood_terms(bound: BitsPerDim) -> Figure:
    """Where the bits are: the bound's terms by t, and the error of the noise they come from."""
    figure = style.new_figure(2 * drawing.WIDTH, drawing.HEIGHT + _FIGURES_ROOM)
    drawing.title(figure, f"Likelihood: {bound.total:.3f} bits per dimension or fewer")
    parts = {
        "prior": bound.prior,
        "steps": bound.per_timestep.sum().item(),
        "decoder": bound.decoder,
    }
    summed = " + ".join(
        f"{name} {drawing.number(round(value, 3))}" for name, value in parts.items()
    )
    error = drawing.number(float(f"{bound.standard_error:.2g}"))
    drawing.small(figure, drawing.EDGE, 38, f"{summed}; standard error {error}")
    asked = bound.asked.double()
    # Where only some timesteps were asked of each example, the mean over those that were.
    terms = (bound.per_timestep * asked[1:].mean() / asked).numpy()
    step, mse = "a step’s term, bits per dimension", "mean squared error of the noise"
    for left, label, values, log_from in (
        (0, step, np.append(np.nan, terms[1:]), _LOG_CURVE),
        (drawing.WIDTH, mse, bound.noise_mse.numpy(), math.inf),
    ):
        right = drawing.RIGHT + (drawing.WIDTH - left)
        axes = style.add_axes(
            figure, left + drawing.LEFT, drawing.BOTTOM, right, drawing.TITLE_ROOM + _FIGURES_ROOM
        )
        known = np.flatnonzero(np.isfinite(values) & (values > 0))
        if not len(known):
            axes.set_axis_off()
            continue
        logarithmic = drawing.value_axis(axes, values[known], log_from, from_zero=True)
        drawing.small(figure, left + drawing.EDGE, 38 + _FIGURES_ROOM, _unit(label, logarithmic))
        axes.plot(known, values[known], color=style.INK, linewidth=1.5)
        drawing.count_axis(axes, len(values) - 1)
        drawing.axis_labels(
            figure, "timestep $t$", "nearly clean", "nearly all noise", (left, left + drawing.WIDTH)
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
    text = rf"$\bar{{\alpha}}$ = {drawing.number(float(f'{last:.2g}'))} at the end"
    # Under the falling curve, where no line passes.
    under = int((schedule.sqrt_alphas_cumprod >= 0.2).sum()) - 1
    drawing.note(
        axes, f"signal is left: {text}" if too_much else text, (under, 0), (-8, 6), color=color
    )


def _series(metrics: Metrics, name: str) -> tuple[Floats, Floats]:
    """Steps and values of the rows that have a finite value of that name."""
    pairs = [(row["step"], row[name]) for row in metrics if row.get(name) is not None]
    pairs = [(step, value) for step, value in pairs if math.isfinite(value)]
    columns = np.array(pairs, dtype=np.float64).reshape(-1, 2)
    return columns[:, 0], columns[:, 1]


def _known_mean(losses: Floats) -> Floats:
    """The mean over rows (R, bins) of what is finite, NaN where nothing is."""
    known = np.isfinite(losses)
    count = known.sum(0)
    total = np.where(known, losses, 0.0).sum(0)
    means: Floats = np.where(count > 0, total / np.maximum(count, 1), np.nan)
    return means


def _bin_means(metrics: Metrics, name: str, rows: int) -> Floats:
    """Mean of the last `rows` rows in each bin, NaN for a bin that none of them has."""
    latest = [row[name] for row in metrics if row.get(name)][-rows:]
    values = np.array(latest, dtype=np.float64).reshape(-1, TIMESTEP_BINS)
    return _known_mean(values)


def _bin_edge(index: int, timesteps: int | None) -> str:
    """The first timestep of a bin, or T behind the last."""
    if timesteps is not None:
        return f"{math.ceil(index * timesteps / TIMESTEP_BINS):,}"
    share = index / TIMESTEP_BINS
    return {0.0: "0", 1.0: "$T$"}.get(share, f"{share:g} $T$")


def _unit(unit: str, logarithmic: bool) -> str:
    return f"{unit}, logarithmic scale" if logarithmic else unit
