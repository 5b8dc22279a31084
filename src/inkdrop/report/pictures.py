"""Pictures of images: grids, the way from noise to image and back, and the film of it.

Images come in as uint8 (N, C, H, W) and are enlarged by whole factors, so that every pixel of a
picture is a pixel of an image.
"""

from __future__ import annotations

import io
import math
from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from matplotlib.figure import Figure
from numpy.typing import NDArray
from PIL import Image, ImageOps
from torch import Tensor

from ..checkpoint import replace_synced
from ..data.pixels import to_float, to_uint8
from ..diffusion.denoiser import Denoiser
from ..diffusion.forward import q_sample
from ..diffusion.samplers import State, build_table, initial_noise, sample_steps
from ..diffusion.schedule import NoiseSchedule
from ..diffusion.solvers import SamplerTable
from ..diffusion.spacing import spaced_timesteps
from ..errors import InkdropError
from ..randomness import normal
from . import style

TILE = 48  # pixels that a small image's side is enlarged to, at least
_GAP = 1 / 24  # of a tile's shorter side
_WHITE = 255

STRIP_WIDTH = 640  # CSS pixels that a strip's tiles are enlarged to fill
_STRIP_GAP = 4
_GROUP_GAP = 20
_ROW_LABELS = 48
WORD_LABELS = 66
_COLUMN_LABEL = 44
_HEAD, _FOOT = 30, 26

FRAMES = 51  # of a film, at most
_FRAME_MS, _FIRST_FRAME_MS, _LAST_FRAME_MS = 70, 500, 1500

Pixels = NDArray[np.uint8]


def save(picture: Figure | Image.Image, path: str | Path, margin: int = 0) -> None:
    """Write a picture as a PNG file, whole or not at all; its folder is made if need be.

    Args:
        margin: white pixels around it, for a picture that will not stand on a page of ours.
    """
    if margin:
        image = style.to_image(picture) if isinstance(picture, Figure) else picture
        picture = ImageOps.expand(image, margin, "white")
    Path(path).parent.mkdir(parents=True, exist_ok=True)
    replace_synced(Path(path), png(picture))


def png(picture: Figure | Image.Image) -> bytes:
    """A picture as PNG, without metadata: the same bytes each time."""
    image = style.to_image(picture) if isinstance(picture, Figure) else picture
    file = io.BytesIO()
    image.save(file, "PNG")
    return file.getvalue()


def grid(images: Tensor, columns: int | None = None, tile: int = TILE) -> Image.Image:
    """A sheet of images with thin white gaps.

    Args:
        images: uint8 (N, C, H, W), N at least 1. The first three channels are shown as colours;
            where there are fewer, the first is shown in grey.
        columns: images in a row; about as many as rows by default.
        tile: how large the images are shown, in pixels, at least.

    Raises:
        InkdropError: if `images` are not uint8 images.
    """
    pixels = _pixels(images)
    side = math.sqrt(pixels.shape[1] * pixels.shape[2])
    tiles = _enlarge(pixels, math.ceil(tile / side))
    count, height, width = tiles.shape[:3]
    gap = max(2, round(_GAP * min(height, width)))
    columns = columns or math.ceil(math.sqrt(count))
    rows = math.ceil(count / columns)
    sheet = np.full(
        (
            rows * (height + gap) - gap,
            min(columns, count) * (width + gap) - gap,
            *tiles.shape[3:],
        ),
        _WHITE,
        np.uint8,
    )
    for i, shown in enumerate(tiles):
        top, left = (i // columns) * (height + gap), (i % columns) * (width + gap)
        sheet[top : top + height, left : left + width] = shown
    return Image.fromarray(sheet)


@dataclass(frozen=True)
class Trajectory:
    """Moments on the way from pure noise to finished images, as pixels.

    Attributes:
        x: (M, n, C, H, W) uint8, the images at each moment; the last are the finished ones.
        x_start: (M, n, C, H, W) uint8, the estimate x̂₀ made from them; at the last moment, where
            nothing is left to estimate, the one that was made last.
        timesteps: the M - 1 timesteps that the estimates were made at.
    """

    x: Tensor
    x_start: Tensor
    timesteps: tuple[int, ...]

    def moments(self, count: int) -> Trajectory:
        """At most `count` of the moments, evenly spaced, the first and the last among them."""
        kept = evenly(len(self.x), count)
        return Trajectory(
            self.x[kept], self.x_start[kept], tuple(self.timesteps[i] for i in kept[:-1])
        )

    def images(self, count: int) -> Trajectory:
        """The first `count` images only."""
        return Trajectory(self.x[:, :count], self.x_start[:, :count], self.timesteps)


def trajectory(
    x_init: Tensor, states: Iterable[State], kept: Collection[int] | None = None
) -> Trajectory:
    """Record the states of `sample_steps` that started from x_init (n, C, H, W).

    Args:
        kept: the moments to keep, 0 being x_init; all by default. The last is kept in any case.

    Raises:
        InkdropError: if there are no states, or one holds values that are not finite.
    """
    x = x_init
    images, estimates, timesteps = [], [], []
    state = None
    for moment, state in enumerate(states):
        if kept is None or moment in kept:
            images.append(to_uint8(x.cpu()))
            estimates.append(to_uint8(state.x_start.cpu()))
            timesteps.append(state.timestep)
        x = state.x
    if state is None:
        raise InkdropError("there are no states to record")
    images.append(to_uint8(x.cpu()))
    estimates.append(to_uint8(state.x_start.cpu()))
    return Trajectory(torch.stack(images), torch.stack(estimates), tuple(timesteps))


def record(
    denoiser: Denoiser,
    n: int,
    sampler: str = "ddim",
    steps: int | None = None,
    seed: int = 0,
    *,
    condition: Tensor | None = None,
    table: SamplerTable | None = None,
    clip: str | None = "auto",
    batch_size: int | None = None,
    moments: int | None = None,
    x_init: Tensor | None = None,
) -> Trajectory:
    """Sample images 0 … n-1 of a seed and record all moments, or `moments` of them.

    The other arguments are those of `sample`, and so are the images.

    Raises:
        InkdropError: if the denoiser does not know that its examples are images (C, H, W).
    """
    if denoiser.shape is None or len(denoiser.shape) != 3:
        raise InkdropError(
            f"pictures need images (C, H, W), but the denoiser's shape is {denoiser.shape}"
        )
    table = table or build_table(denoiser.schedule, sampler, steps)
    if x_init is None:
        x_init = initial_noise(n, denoiser.shape, seed)
    states = sample_steps(
        denoiser,
        n,
        seed=seed,
        table=table,
        x_init=x_init,
        clip=clip,
        condition=condition,
        batch_size=batch_size,
    )
    kept = None if moments is None else set(evenly(len(table) + 1, moments))
    return trajectory(x_init, states, kept)


def reverse_strip(
    denoiser: Denoiser,
    n: int = 4,
    sampler: str = "ddim",
    steps: int | None = None,
    seed: int = 0,
    columns: int = 9,
    *,
    condition: Tensor | None = None,
) -> Image.Image:
    """From noise to image: `draw_trajectory` of images 0 … n-1 of a seed.

    The arguments are those of `sample`; `columns` is the number of moments.
    """
    recorded = record(denoiser, n, sampler, steps, seed, condition=condition, moments=columns)
    return draw_trajectory(recorded, columns)


def draw_trajectory(
    recorded: Trajectory, columns: int = 9, width: int = STRIP_WIDTH
) -> Image.Image:
    """From noise to image, two rows for each image: x_t, and the estimate x̂₀ made from it.

    Args:
        columns: the moments shown, at least 2, evenly spaced; the last is the finished image.
        width: about the width, in CSS pixels; large images make a wider picture.
    """
    shown = recorded.moments(columns)
    rows = [row for i in range(shown.x.shape[1]) for row in (shown.x[:, i], shown.x_start[:, i])]
    return strip(
        rows,
        row_labels=["$x_t$", r"$\hat{x}_0$"] * shown.x.shape[1],
        strip_width=width,
        heads=("$t$", [*map(str, shown.timesteps), "done"]),
        group=2,
    )


def forward_strip(
    schedule: NoiseSchedule,
    image: Tensor,
    seed: int = 0,
    columns: int = 8,
    width: int = STRIP_WIDTH,
) -> Image.Image:
    """From image to noise: one image, clean and then at evenly spaced t, with one noise for all.

    Ho et al. 2020, Eq. 4. Beneath is what is left of the image's amplitude, √ᾱ_t.

    Args:
        image: uint8 (C, H, W).
        columns: at least 2, the clean image among them.
        width: about the width, in CSS pixels; large images make a wider picture.
    """
    count = min(_with_both_ends(columns) - 1, schedule.timesteps)
    t = torch.tensor(spaced_timesteps(schedule, count)[::-1])
    x_start = to_float(image).expand(count, *image.shape)
    noise = normal(tuple(image.shape), seed, "forward strip").expand_as(x_start)
    x_t = to_uint8(q_sample(schedule, x_start, t, noise))
    signal = schedule.sqrt_alphas_cumprod[t].tolist()
    return strip(
        [torch.cat([image[None], x_t])],
        row_labels=["$x_t$"],
        strip_width=width,
        heads=("$t$", ["clean", *map(str, t.tolist())]),
        feet=("signal", ["100%", *(_percent(share) for share in signal)]),
    )


def denoising_gif(
    denoiser: Denoiser,
    path: str | Path,
    n: int = 16,
    sampler: str = "ddim",
    steps: int | None = None,
    seed: int = 0,
    *,
    condition: Tensor | None = None,
) -> None:
    """The film of images 0 … n-1 of a seed, from noise to image: `write_gif` of it.

    The arguments are those of `sample`.
    """
    recorded = record(denoiser, n, sampler, steps, seed, condition=condition, moments=FRAMES)
    write_gif(recorded, path)


def write_gif(recorded: Trajectory, path: str | Path, columns: int | None = None) -> None:
    """Write an endless GIF of the images as a grid, which rests on the finished ones.

    The last frame's greys are exact; colours are reduced to the 256 that GIF has room for.
    """
    frames = [grid(x, columns) for x in recorded.moments(FRAMES).x]
    write_film(
        _in_one_palette(frames) if frames[-1].mode == "RGB" else _coarse_at_first(frames), path
    )


def write_film(frames: Sequence[Image.Image], path: str | Path, frame_ms: int = _FRAME_MS) -> None:
    """Write frames as an endless GIF that rests a little on the first and longer on the last."""
    durations = [frame_ms] * len(frames)
    durations[0], durations[-1] = _FIRST_FRAME_MS, _LAST_FRAME_MS
    file = io.BytesIO()
    frames[0].save(file, "GIF", save_all=True, append_images=frames[1:], duration=durations, loop=0)
    replace_synced(Path(path), file.getvalue())


def _in_one_palette(frames: list[Image.Image]) -> list[Image.Image]:
    """Colours chosen mostly for the finished images: nobody sees a shade missing from noise."""
    width, height = frames[-1].size
    chosen = [frames[-1], frames[-1], frames[2 * len(frames) // 3], frames[0]]
    sheet = Image.new("RGB", (width, height * len(chosen)))
    for i, frame in enumerate(chosen):
        sheet.paste(frame, (0, i * height))
    palette = sheet.quantize(256, Image.Quantize.MEDIANCUT)
    return [frame.quantize(palette=palette, dither=Image.Dither.NONE) for frame in frames]


def _coarse_at_first(frames: list[Image.Image]) -> list[Image.Image]:
    """32 greys until the images emerge, which makes the file half as large."""
    noisy = len(frames) * 2 // 3
    coarse = [(level & 0xF8) | level >> 5 for level in range(256)]
    return [frame.point(coarse) for frame in frames[:noisy]] + frames[noisy:]


Line = tuple[str, Sequence[str]]  # what a line of text tells, and its text for each column


def strip(
    rows: Sequence[Tensor],
    row_labels: Sequence[str],
    strip_width: int,
    heads: Line | None = None,
    feet: Line | None = None,
    group: int = 1,
    label_width: int = _ROW_LABELS,
) -> Image.Image:
    """Rows of images with a line of text above and one beneath.

    Args:
        rows: uint8 (columns, C, H, W) each.
        row_labels: one for each row, at its left.
        strip_width: about the width, in CSS pixels; large images make a wider picture.
        group: rows that stand close together, before a wider gap.
        label_width: room for the labels, in CSS pixels.
    """
    columns = len(rows[0])
    height, width = rows[0].shape[-2:]
    room = (strip_width - label_width) / columns - _STRIP_GAP
    factor = max(1, int(style.DENSITY * min(room / width, 1.5 * room / height)))
    tiles = [_enlarge(_pixels(row), factor) for row in rows]
    height, width = height * factor, width * factor
    gap = style.DENSITY * _STRIP_GAP
    # Large images make a large picture, which is shown smaller: its text grows with it.
    wide = columns * (width + gap) / style.DENSITY + label_width
    scale = max(1.0, wide / strip_width)

    def px(length: float) -> int:
        return round(style.DENSITY * scale * length)

    pitch = max(width + gap, style.DENSITY * _COLUMN_LABEL)
    head = px(_HEAD) if heads else 0
    lefts = [px(label_width) + i * pitch + (pitch - width) // 2 for i in range(columns)]
    tops = [
        head + i * (height + gap) + i // group * (px(_GROUP_GAP) - gap) for i in range(len(rows))
    ]
    bottom = tops[-1] + height
    size = (px(label_width) + columns * pitch, bottom + (px(_FOOT) if feet else 0))

    figure = style.new_figure(size[0] / style.DENSITY, size[1] / style.DENSITY)

    def write(line: Line, baseline: int, color: str) -> None:
        how = {"va": "baseline", "color": color, "fontsize": style.TEXT_SIZE * scale}
        y = baseline / style.DENSITY
        style.add_text(figure, scale, y, line[0], **how)
        for left, text in zip(lefts, line[1], strict=True):
            style.add_text(figure, (left + width / 2) / style.DENSITY, y, text, ha="center", **how)

    if heads:
        write(heads, px(_HEAD - 9), style.INK)
    for top, text in zip(tops, row_labels, strict=True):
        how = {"va": "center", "fontsize": style.TEXT_SIZE * scale}
        style.add_text(figure, scale, (top + height / 2) / style.DENSITY, text, **how)
    if feet:
        write(feet, bottom + px(_FOOT - 7), style.MUTED)

    picture = style.to_image(figure)
    for top, row in zip(tops, tiles, strict=True):
        for left, tile in zip(lefts, row, strict=True):
            picture.paste(Image.fromarray(tile), (left, top))
    return picture


def _pixels(images: Tensor) -> Pixels:
    """uint8 (N, C, H, W) as (N, H, W) greys or (N, H, W, 3) colours."""
    if images.dtype != torch.uint8 or images.ndim != 4 or 0 in images.shape:
        raise InkdropError(
            f"a picture needs uint8 images (N, C, H, W), got {images.dtype} {tuple(images.shape)}"
        )
    channels = images.permute(0, 2, 3, 1).cpu().numpy()
    return channels[..., :3] if channels.shape[-1] >= 3 else channels[..., 0]


def _enlarge(pixels: Pixels, factor: int) -> Pixels:
    return pixels.repeat(factor, axis=1).repeat(factor, axis=2)


def evenly(total: int, count: int) -> list[int]:
    """`count` of the indices 0 … total-1, evenly spaced with both ends, or all there are."""
    if _with_both_ends(count) >= total:
        return list(range(total))
    return [round(i * (total - 1) / (count - 1)) for i in range(count)]


def _with_both_ends(count: int) -> int:
    if count < 2:
        raise InkdropError(
            f"a strip or film needs at least 2 moments, its first and its last, got {count}"
        )
    return count


def _percent(share: float) -> str:
    tenths = 0.0005 <= share < 0.0095
    return f"{share:.1%}" if tenths else f"{share:.0%}"
