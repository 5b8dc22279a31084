"""What the condition changes: the same noise under every class, or under a few vectors."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from PIL import Image
from torch import Tensor

from ..data.pixels import to_uint8
from ..diffusion.denoiser import Denoiser
from ..diffusion.samplers import initial_noise, sample
from ..errors import InkdropError
from ..run import Run
from . import pictures, points
from .truth import as_rows

GUIDANCE = 2.0  # of the second picture, where the network can be guided

_COLUMNS = 10  # classes or vectors, at most
_ROWS = 4
_PIXELS = 40 * 64 * 64  # of all images together: fewer of them where they are large
_ANGLES, _POINTS = 4, 800
_SHOWN_NUMBERS = 3  # of a vector


@dataclass(frozen=True)
class Conditions:
    """What samples are told, a column for each.

    Attributes:
        told: (K,) classes or (K, V) vectors.
        kind: "class" or "vector".
        names: of the columns.
        every: whether these are all there are.
    """

    told: Tensor
    kind: str
    names: list[str]
    every: bool


def chosen(run: Run, columns: int = _COLUMNS) -> Conditions | None:
    """The classes (or some of them, evenly spaced), or a few vectors; None without a condition."""
    told = run.config.told
    if told == "classes":
        assert run.config.network is not None
        total = run.config.network.classes or 1
        kept = pictures.evenly(total, columns) if total > 1 else [0]
        names = [str(label) for label in kept]
        return Conditions(torch.tensor(kept), "class", names, len(kept) == total)
    if told == "vector":
        vectors = run.vectors
        if _are_directions(vectors):
            angles = torch.arange(_ANGLES) * (2 * math.pi / _ANGLES)
            around = torch.stack([angles.cos(), angles.sin()], dim=1)
            names = [f"{360 * i // _ANGLES}°" for i in range(_ANGLES)]
            return Conditions(around, "vector", names, every=False)
        few = vectors[pictures.evenly(len(vectors), min(columns, _ANGLES))]
        return Conditions(few, "vector", [_in_short(v.tolist()) for v in few], every=False)
    return None


def can_be_guided(denoiser: Denoiser, told: Tensor) -> bool:
    """Whether the network knows what stands for no condition."""
    null_condition = getattr(denoiser.network, "null_condition", None)
    if not callable(null_condition):
        return False
    try:
        null_condition(told)
    except InkdropError:
        return False
    return True


def grid_rows(shape: Sequence[int], columns: int) -> int:
    """Rows of a grid: fewer where images are large."""
    return max(1, min(_ROWS, _PIXELS // (columns * math.prod(shape[1:]))))


def image_grid(
    run: Run,
    denoiser: Denoiser,
    conditions: Conditions,
    sampler: str,
    seed: int,
    guidance: float | None = None,
    width: int = points.WIDTH,
) -> Image.Image:
    """Images: a column for each condition, a row for each noise, which is one across the row.

    Args:
        guidance: the scale; None for none.
        width: about the width, in CSS pixels.
    """
    count = len(conditions.told)
    rows = grid_rows(run.shape, count)
    x_init = initial_noise(rows, run.shape, seed).repeat_interleave(count, dim=0)
    made = to_uint8(
        sample(
            denoiser,
            rows * count,
            sampler,
            seed=seed,
            x_init=x_init,
            condition=conditions.told.repeat(rows, *[1] * (conditions.told.ndim - 1)),
            guidance=guidance,
            batch_size=run.config.training.batch_size,
        ).cpu()
    )
    return pictures.strip(
        list(made.reshape(rows, count, *run.shape)),
        row_labels=[f"noise {row}" for row in range(rows)],
        strip_width=width,
        heads=(conditions.kind, conditions.names),
        group=rows,
        label_width=pictures.WORD_LABELS,
    )


def point_rows(
    denoiser: Denoiser,
    conditions: Conditions,
    sampler: str,
    seed: int,
    guidances: Sequence[float | None],
) -> list[points.Panels]:
    """Points for `points.draw_rows`: a panel for each condition, a row for each guidance.

    All start from the same noise.
    """
    rows: list[points.Panels] = []
    heads = [f"class {name}" if conditions.kind == "class" else name for name in conditions.names]
    x_init = initial_noise(_POINTS, (2,), seed)
    for guidance in guidances:
        panels = [
            as_rows(
                sample(
                    denoiser,
                    _POINTS,
                    sampler,
                    seed=seed,
                    x_init=x_init,
                    condition=told.expand(_POINTS, *told.shape),
                    guidance=guidance,
                )
            )
            for told in conditions.told
        ]
        name = "" if len(guidances) == 1 else "told" if guidance is None else "guided"
        rows.append((name, heads, panels))
    return rows


def _are_directions(vectors: Tensor) -> bool:
    """Whether vectors are points of the unit circle, and so stand for angles."""
    return vectors.shape[1] == 2 and bool((vectors.norm(dim=1) - 1).abs().max() < 1e-3)


def _in_short(numbers: Sequence[float]) -> str:
    shown = ", ".join(f"{number:.2g}" for number in numbers[:_SHOWN_NUMBERS])
    return shown.replace("-", "−") + (", …" if len(numbers) > _SHOWN_NUMBERS else "")
