"""Pictures of points in the plane: where they lie, how they came there, and what moved them.

Points come in as (N, 2), tensors or arrays. Those that are not finite or outside the frame cannot
be drawn; pictures of samples say how many they are.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from matplotlib.artist import Artist
from matplotlib.axes import Axes
from matplotlib.collections import LineCollection
from matplotlib.colors import LinearSegmentedColormap
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Patch
from numpy.typing import ArrayLike
from PIL import Image
from torch import Tensor

from ..diffusion.denoiser import Denoiser
from ..diffusion.samplers import build_table, ddim, initial_noise, sample_steps
from ..diffusion.schedule import NoiseSchedule
from ..diffusion.solvers import SamplerTable
from ..errors import InkdropError
from ..randomness import normal
from . import plane, style
from .plane import Floats, Frame

WIDTH, WIDE = 460, 920  # of a picture in half a page, and across it
NARROW = 400  # and on a phone

_GAP = 12  # between panels
_HEAD, _FOOT = 30, 24  # room for a line of text above and beneath a panel
_ROW_LABEL = 25
_TICK_ROOM = 46
_SMALLEST_PANEL = 190

_SHARE, _PROCESS_SHARE = 0.998, 0.985  # of the points along an axis that a frame is fitted to
_FRAME_MARGIN = 0.08
_FIELD = 17  # arrows along a side
_INSIDE = 0.995  # of the points of a moment, the region in which arrows are dark
_FIELD_NOISE = (2.0, 1.0, 0.5, 0.2)  # noise to signal at the moments whose field is shown
_WAYS = 64  # paths in a picture
_FRAMES, _SHADES = 33, 16  # of a film
BEHIND = 2000  # points whose density is drawn beneath


def frame_of(*sets: ArrayLike, share: float = _SHARE) -> Frame:
    """The square that nearly all of the points lie in, with a margin: limits for pictures.

    Args:
        share: of the points, along each axis.
    """
    points = np.concatenate([plane.finite(plane.in_plane(points)) for points in sets])
    if not len(points):
        return (-1.0, 1.0), (-1.0, 1.0)
    tail = (1 - share) / 2
    low, high = np.quantile(points, [tail, 1 - tail], axis=0)
    half = (1 + 2 * _FRAME_MARGIN) * max(high - low) / 2 or 1.0
    (x, y) = (low + high) / 2
    return (float(x - half), float(x + half)), (float(y - half), float(y + half))


def scatter(points: ArrayLike, limits: Frame | None = None, width: int = WIDTH) -> Figure:
    """Points (N, 2) as dots over contours of their density.

    Args:
        limits: what is shown, ((x low, x high), (y low, y high)); by default `frame_of` the points.
        width: CSS pixels.
    """
    x = plane.in_plane(points)
    limits = limits or frame_of(x)
    side = width - _TICK_ROOM - _GAP
    figure = style.new_figure(width, side + 2 * _FOOT)
    axes = plane.panel(figure, _TICK_ROOM, _FOOT / 2, side, limits)
    plane.add_ticks(axes)
    plane.draw_density(axes, x, limits)
    plane.draw_dots(axes, x)
    plane.say_outside(figure, x, limits, width - _GAP, _FOOT / 2 + side + 18)
    return figure


def beside(
    real: ArrayLike,
    sets: Mapping[str, ArrayLike],
    limits: Frame | None = None,
    width: int = WIDE,
) -> Figure:
    """Real points and sets of generated ones, each in a panel of the same limits.

    Args:
        real: (N, 2).
        sets: generated points (M, 2) by their names.
        limits: by default `frame_of` the real points, whatever else was generated.
        width: CSS pixels.
    """
    shown = {name: plane.in_plane(points) for name, points in {"real": real, **sets}.items()}
    limits = limits or frame_of(shown["real"])
    columns = min(len(shown), max(1, (width + _GAP) // (_SMALLEST_PANEL + _GAP)))
    rows = math.ceil(len(shown) / columns)
    columns = math.ceil(len(shown) / rows)
    side = min((width + _GAP) / columns - _GAP, 0.5 * WIDE)
    foot = _FOOT if any(plane.count_outside(x, limits) for x in shown.values()) else 2
    pitch = side + _HEAD + foot
    figure = style.new_figure(columns * (side + _GAP) - _GAP, rows * pitch)
    for i, (name, x) in enumerate(shown.items()):
        left, top = i % columns * (side + _GAP), i // columns * pitch + _HEAD
        axes = plane.panel(figure, left, top, side, limits)
        plane.draw_density(axes, x, limits)
        plane.draw_dots(axes, x, style.INK if i else style.MUTED)
        if i:
            plane.draw_outline(axes, shown["real"], limits)
        style.add_text(figure, left + 1, top - 9, name, va="baseline")
        plane.say_outside(figure, x, limits, left + side, top + side + 17)
    return figure


def marginals(real: ArrayLike, sets: Mapping[str, ArrayLike], width: int = WIDE) -> Figure:
    """The density along each axis: real points filled, generated ones as lines.

    Args:
        real: (N, 2).
        sets: generated points (M, 2) by their names.
        width: CSS pixels; the two panels stand one above the other in a narrow picture.
    """
    truth = plane.in_plane(real)
    known = {name: plane.in_plane(points) for name, points in sets.items()}
    limits = frame_of(truth)
    across = 2 if width > WIDTH else 1
    lines = style.legend_lines(["real", *known], width)
    panel, height = (width + 2 * _GAP) / across - 2 * _GAP, 190
    legend_room = 12 + lines * style.LINE
    figure = style.new_figure(width, legend_room + 2 // across * (height + 44))
    for axis in range(2):
        left = axis % across * (panel + 2 * _GAP)
        top = legend_room + axis // across * (height + 44)
        bottom = figure.get_size_inches()[1] * style.POINTS_PER_INCH - top - height
        axes = style.add_axes(figure, left + 1, bottom, width - left - panel + 1, top)
        axes.grid(visible=False)
        axes.set_yticks([])
        axes.set_xlim(limits[axis])
        places, density = plane.profile(truth[:, axis], limits[axis])
        axes.fill_between(places, density, color=style.WASH, linewidth=0)
        highest = density.max()
        for points, look in zip(known.values(), style.series(len(known)), strict=True):
            density = plane.profile(points[:, axis], limits[axis])[1]
            axes.plot(places, density, linewidth=2, **look)
            highest = max(highest, density.max())
        axes.set_ylim(0, 1.06 * highest or 1)
        plane.add_x_ticks(axes)
        style.add_text(figure, left + panel / 2, top + height + 38, f"$x_{axis + 1}$", ha="center")
    marks: dict[str, Artist] = {"real": Patch(color=style.WASH)}
    for name, look in zip(known, style.series(len(known)), strict=True):
        marks[name] = Line2D([], [], linewidth=2, **look)
    style.add_legend(figure, marks, width, 5, lines)
    return figure


@dataclass(frozen=True)
class Course:
    """Moments of the reverse process of n points.

    Attributes:
        x: (M, n, 2) float64; the last are the finished points.
        timesteps: the M - 1 timesteps that the network was asked at, at the others.
        noise: (M,), the amplitude √(1-ᾱ) of the noise in x; 0 at the last moment.
    """

    x: Floats
    timesteps: tuple[int, ...]
    noise: Floats

    def moments(self, count: int) -> Course:
        """At most `count` moments between which equally much noise goes; both ends among them."""
        if count < 2:
            raise InkdropError(
                f"columns must be at least 2, the first moment and the last, got {count}"
            )
        wanted = np.linspace(self.noise[0], 0, count)
        kept = sorted({int(abs(self.noise - level).argmin()) for level in wanted})
        return Course(self.x[kept], tuple(self.timesteps[i] for i in kept[:-1]), self.noise[kept])

    def first(self, n: int) -> Course:
        """The first n points only."""
        return Course(self.x[:, :n], self.timesteps, self.noise)

    @property
    def heads(self) -> list[str]:
        """What to write above each moment."""
        return [*(f"$t$ = {t:,}" for t in self.timesteps), "done"]


def record(
    denoiser: Denoiser,
    n: int,
    sampler: str = "ddim",
    steps: int | None = None,
    seed: int = 0,
    *,
    table: SamplerTable | None = None,
    condition: Tensor | None = None,
    batch_size: int | None = None,
    x_init: Tensor | None = None,
) -> Course:
    """Sample points 0 … n-1 of a seed and keep all moments; the arguments are those of `sample`.

    Raises:
        InkdropError: if the denoiser does not know that its examples are points (2,).
    """
    if denoiser.shape != (2,):
        raise InkdropError(
            "pictures of points need points in the plane, shape (2,), but the denoiser's shape is "
            f"{denoiser.shape}"
        )
    if table is None:
        table = build_table(denoiser.schedule, sampler, steps)
    if x_init is None:
        x_init = initial_noise(n, denoiser.shape, seed)
    moments = [x_init.double().numpy()]
    states = sample_steps(
        denoiser,
        n,
        seed=seed,
        table=table,
        x_init=x_init,
        condition=condition,
        batch_size=batch_size,
    )
    moments += [state.x.double().cpu().numpy() for state in states]
    noise = denoiser.schedule.sqrt_one_minus_alphas_cumprod[list(table.timesteps)].numpy()
    return Course(np.stack(moments), table.timesteps, np.append(noise, 0.0))


def reverse_steps(
    sets: Mapping[str, Denoiser],
    columns: int = 6,
    *,
    n: int = 1000,
    sampler: str = "ddim",
    steps: int | None = None,
    seed: int = 0,
    width: int = WIDE,
) -> Figure:
    """From noise to points: a row for each model, a column for each moment of sampling.

    Args:
        sets: the models by their names; all start from the same noise.
        columns: the moments, at least 2, between which equally much noise goes.
        n: points in a panel. The rest is as for `sample`.
        width: CSS pixels.
    """
    courses = {name: record(d, n, sampler, steps, seed) for name, d in sets.items()}
    return draw_courses(courses, columns, width)


def draw_courses(courses: Mapping[str, Course], columns: int = 6, width: int = WIDE) -> Figure:
    """`reverse_steps` of what was recorded; the name of a single row may be empty."""
    shown = {name: course.moments(columns) for name, course in courses.items()}
    return draw_rows([(name, c.heads, list(c.x)) for name, c in shown.items()], width)


def forward_steps(
    schedule: NoiseSchedule, real: ArrayLike, columns: int = 6, seed: int = 0, width: int = WIDE
) -> Figure:
    """From points to noise: real ones, and what the forward process makes of them (Ho Eq. 4).

    Args:
        real: (N, 2).
        columns: the moments, at least 2, between which equally much noise comes.
        seed: names the noise, which is one for all moments.
        width: CSS pixels.
    """
    x = plane.in_plane(real)
    noise = normal(x.shape, seed, "forward strip").double().numpy()
    signal, amplitude = schedule.sqrt_alphas_cumprod, schedule.sqrt_one_minus_alphas_cumprod
    levels = np.linspace(0, amplitude[-1].item(), columns)[1:]
    t = sorted({int(abs(amplitude.numpy() - level).argmin()) for level in levels})
    moments = [signal[i].item() * x + amplitude[i].item() * noise for i in t]
    return draw_rows([("", ["clean", *(f"$t$ = {i:,}" for i in t)], [x, *moments])], width)


Panels = tuple[str, Sequence[str], Sequence[Floats]]


def draw_rows(rows: Sequence[Panels], width: int, limits: Frame | None = None) -> Figure:
    """Rows of panels of one frame: (name, what to write above each panel, its points)."""
    if limits is None:
        # The smallest of the rows': a model that throws points far off must not blur the others.
        frames = [frame_of(*panels, share=_PROCESS_SHARE) for _, _, panels in rows]
        limits = min(frames, key=lambda frame: frame[0][1] - frame[0][0])
    side = (width + _GAP) / max(len(panels) for _, _, panels in rows) - _GAP
    one_head = all(heads == rows[0][1] for _, heads, _ in rows)
    name_room = _ROW_LABEL if any(name for name, _, _ in rows) else 0
    pitch = name_room + (0 if one_head else _HEAD) + side + _GAP
    first = _HEAD if one_head else 0
    figure = style.new_figure(width, first + len(rows) * pitch - _GAP + 1)
    for row, (name, heads, panels) in enumerate(rows):
        top = first + row * pitch
        style.add_text(figure, 1, top + 16, name, va="baseline", fontweight="bold")
        top += pitch - side - _GAP
        for i, (head, x) in enumerate(zip(heads, panels, strict=True)):
            left = i * (side + _GAP)
            plane.draw_dots(plane.panel(figure, left, top, side, limits), x)
            if not one_head or row == 0:
                y = _HEAD - 9 if one_head else top - 9
                how = {"ha": "center", "va": "baseline"}
                style.add_text(figure, left + side / 2, y, head, **how)
    return figure


def film(course: Course, frames: int = _FRAMES) -> list[Image.Image]:
    """Frames of the points on their way, half a page wide, for `pictures.write_film`."""
    shown = course.moments(frames)
    limits = frame_of(shown.x[0], shown.x[-1], share=_PROCESS_SHARE)
    drawn = []
    for x, head in zip(shown.x, shown.heads, strict=True):
        figure = style.new_figure(WIDTH, _HEAD + WIDTH)
        plane.draw_dots(plane.panel(figure, 0, _HEAD, WIDTH, limits), x)
        style.add_text(figure, WIDTH / 2, _HEAD - 9, head, ha="center", va="baseline")
        image = style.to_image(figure).reduce(style.DENSITY)
        drawn.append(image.quantize(_SHADES, dither=Image.Dither.NONE))
    return drawn


def paths(
    denoiser: Denoiser,
    n: int = _WAYS,
    sampler: str = "ddim",
    steps: int | None = None,
    seed: int = 0,
    *,
    limits: Frame | None = None,
    width: int = WIDTH,
) -> Figure:
    """The ways of points 0 … n-1 of a seed from noise to where they end, over the ends' density.

    With a deterministic sampler such as ddim they are the flow lines of one vector field that
    changes with time. The arguments are those of `sample`; width is in CSS pixels.
    """
    course = record(denoiser, max(n, BEHIND), sampler, steps, seed)
    return draw_paths(course, n, limits, width)


def draw_paths(
    course: Course, n: int = _WAYS, limits: Frame | None = None, width: int = WIDTH
) -> Figure:
    """`paths` of what was recorded: the ways of the first n, the density of all."""
    limits = limits or frame_of(course.x[0, :n], course.x[-1, :n])
    figure = style.new_figure(width, width + _HEAD)
    axes = plane.panel(figure, 0, _HEAD, width, limits)
    plane.draw_density(axes, course.x[-1], limits)
    ways = course.x[:, :n].transpose(1, 0, 2)
    segments = np.stack([ways[:, :-1], ways[:, 1:]], axis=2)
    fading = LinearSegmentedColormap.from_list("way", [style.FAINT, style.MUTED, style.INK])
    colors = fading(np.linspace(0, 1, segments.shape[1]))
    axes.add_collection(
        LineCollection(
            list(segments.reshape(-1, 2, 2)),
            colors=np.tile(colors, (len(ways), 1)),
            linewidths=0.9,
            capstyle="round",
        )
    )
    start: dict[str, Any] = {
        "marker": "o",
        "markersize": 4.5,
        "color": style.PAPER,
        "markeredgecolor": style.FAINT,
        "markeredgewidth": 1.2,
        "linestyle": "",
    }
    end: dict[str, Any] = {
        "marker": "o",
        "markersize": 5,
        "color": style.ACCENT,
        "markeredgecolor": style.PAPER,
        "markeredgewidth": 0.7,
        "linestyle": "",
    }
    axes.plot(*ways[:, 0].T, **start)
    axes.plot(*ways[:, -1].T, **end)
    marks: dict[str, Artist] = {
        "pure noise": Line2D([], [], **start),
        "finished": Line2D([], [], **end),
    }
    style.add_legend(figure, marks, width, 4)
    return figure


def vector_field(
    denoiser: Denoiser,
    timesteps: Sequence[int] | None = None,
    *,
    n: int = 4000,
    seed: int = 0,
    width: int = WIDE,
) -> Figure:
    """Where the denoiser wants points to go: x̂₀ - x_t on a grid, over the density of x_t.

    Arrows point at x̂₀ and are longer where it is farther, on a scale of each panel's own. They are
    dark where sampling passes, and pale where it hardly ever does.

    Args:
        timesteps: falling, a panel for each; by default four with ever less noise.
        n: points sampled (by ddim, through the timesteps) for the density.
        width: CSS pixels.
    """
    total = denoiser.schedule.timesteps
    if timesteps is None:
        timesteps = telling_timesteps(denoiser.schedule)
    spaced = build_table(denoiser.schedule, "ddim", min(50, total)).timesteps
    table = ddim(denoiser.schedule, sorted({*timesteps, *spaced}, reverse=True))
    return draw_field(denoiser, record(denoiser, n, seed=seed, table=table), timesteps, width)


def draw_field(
    denoiser: Denoiser, course: Course, timesteps: Sequence[int], width: int = WIDE
) -> Figure:
    """`vector_field` over what was recorded, at its moments nearest to the timesteps."""
    at = [int(abs(np.array(course.timesteps) - t).argmin()) for t in timesteps]
    limits = frame_of(*course.x[at], share=_PROCESS_SHARE)
    side = (width + _GAP) / len(at) - _GAP
    figure = style.new_figure(width, _HEAD + side + 1)
    for i, moment in enumerate(at):
        left = i * (side + _GAP)
        axes = plane.panel(figure, left, _HEAD, side, limits)
        density = plane.draw_density(axes, course.x[moment], limits)
        _draw_arrows(axes, denoiser, course.timesteps[moment], limits, density)
        how = {"ha": "center", "va": "baseline"}
        style.add_text(figure, left + side / 2, _HEAD - 9, course.heads[moment], **how)
    return figure


def telling_timesteps(schedule: NoiseSchedule) -> list[int]:
    """Falling timesteps, from far more noise than signal to far less."""
    noise = -schedule.log_snr.numpy() / 2
    return sorted({int(abs(noise - math.log(r)).argmin()) for r in _FIELD_NOISE}, reverse=True)


def _draw_arrows(axes: Axes, denoiser: Denoiser, t: int, limits: Frame, density: Floats) -> None:
    places = [low + (np.arange(_FIELD) + 0.5) / _FIELD * (high - low) for low, high in limits]
    x = np.stack(np.meshgrid(*places), axis=-1).reshape(-1, 2)
    with torch.no_grad():
        asked = torch.from_numpy(x).float().to(denoiser.device)
        toward = denoiser(asked, t).x_start.double().cpu().numpy() - x
    length = np.linalg.norm(toward, axis=1, keepdims=True).clip(min=1e-9)
    pitch = (limits[0][1] - limits[0][0]) / _FIELD
    cells = ((x - [low for low, _ in limits]) / pitch * (plane.CELLS / _FIELD)).astype(int)
    inside = density[cells[:, 0], cells[:, 1]] >= plane.levels_of(density, (_INSIDE,))[0]
    # Long arrows end where the next begins.
    typical = np.median(length[inside]) if inside.any() else pitch
    arrows = toward / length * pitch * np.tanh(length / typical)
    axes.quiver(
        *x.T,
        *arrows.T,
        color=[style.INK if here else style.WASH for here in inside],
        angles="xy",
        scale_units="xy",
        scale=1,
        pivot="mid",
        units="dots",
        width=1.1 * style.DENSITY,
        headwidth=3.6,
        headlength=4,
        headaxislength=3.6,
    )
