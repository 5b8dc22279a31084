"""What the report of a run of images shows of them."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

from ..diffusion.denoiser import Denoiser
from ..run import Run
from . import conditional, pictures
from .inline import Picture, inline, keep

_SAMPLES = 64
_SAMPLE_PIXELS = 64 * 64 * 64  # of all samples together: fewer of them where they are large
_FILM_PIXELS = 16 * 32 * 32
_STRIP_SAMPLES = 3
_WIDE_STRIP, _NARROW_STRIP = (9, 800), (6, 400)  # columns and width, for screens and for phones
_TILE = 96  # twice the size shown, for dense screens


def parts(run: Run, denoiser: Denoiser, sampler: str, seed: int, folder: Path) -> dict[str, Any]:
    """What images.html needs; the pictures are also written to the folder."""
    classes = getattr(run.config.network, "classes", None)
    columns, count = sheet(run.shape, classes)
    conditions = conditional.chosen(run)
    recorded = pictures.record(
        denoiser,
        count,
        sampler,
        seed=seed,
        condition=run.conditions(0, count),
        batch_size=run.config.training.batch_size,
        moments=pictures.FRAMES,
    )
    film = recorded.images(film_count(run.shape))
    strip = recorded.images(min(_STRIP_SAMPLES, count))
    pictures.write_gif(film, folder / "denoising.gif")

    drawn: dict[str, Picture] = {"samples": pictures.grid(recorded.x[-1], columns, _TILE)}
    if conditions is not None:
        drawn["conditional"] = conditional.image_grid(run, denoiser, conditions, sampler, seed)
        if conditional.can_be_guided(denoiser, conditions.told):
            guided = conditional.image_grid(
                run, denoiser, conditions, sampler, seed, conditional.GUIDANCE
            )
            drawn["guided"] = guided
    narrow: dict[str, Picture] = {}
    for kind, (moments, width) in ((drawn, _WIDE_STRIP), (narrow, _NARROW_STRIP)):
        kind["reverse"] = pictures.draw_trajectory(strip, moments, width)
        if run.example is not None:
            schedule = denoiser.schedule
            kind["forward"] = pictures.forward_strip(schedule, run.example, seed, moments, width)
    return {
        "pictures": {
            "forward": None,
            "conditional": None,
            "guided": None,
            **keep(folder, drawn, narrow),
        },
        "told": told(run, columns),
        "conditions": conditions,
        "guidance": f"{conditional.GUIDANCE:g}",
        "film": inline((folder / "denoising.gif").read_bytes()),
        "film_end": inline(pictures.png(pictures.grid(film.x[-1]))),
        "sample_count": count,
        "columns": columns,
        "film_count": film.x.shape[1],
        "strip_count": strip.x.shape[1],
    }


def sheet(shape: tuple[int, ...], classes: int | None) -> tuple[int, int]:
    """Columns and number of samples: a class to a column where there are not too many."""
    count = max(4, min(_SAMPLES, _SAMPLE_PIXELS // math.prod(shape[1:])))
    if classes is not None and 1 < classes <= 16:
        return classes, classes * max(1, count // classes)
    side = math.isqrt(count)
    return side, side * side


def told(run: Run, columns: int | None = None) -> str:
    """What the samples of a run are told, in a sentence; empty where it is nothing.

    Args:
        columns: samples in a row of a picture.
    """
    if run.config.told == "vector":
        return "Each was told the vector of a training example."
    if run.config.told != "classes" or run.config.network is None:
        return ""
    classes = run.config.network.classes or 1
    said = f"Each was told its class, 0 to {classes - 1} in turn"
    return f"{said}, so that a column holds one class." if columns == classes else f"{said}."


def film_count(shape: tuple[int, ...]) -> int:
    """1, 4, 9 or 16 images, so that the film stays near a megabyte."""
    return math.isqrt(max(1, min(16, _FILM_PIXELS // math.prod(shape[1:])))) ** 2
