"""Samples as files: numbered images, a grid, and the protocol they were made by."""

from __future__ import annotations

import json
import shutil
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn
from torch import Tensor

from .checkpoint import write_synced
from .data.pixels import to_picture, to_uint8
from .diffusion.samplers import build_table, sample_steps
from .errors import InkdropError
from .report.pictures import draw_trajectory, grid, record, save, write_gif
from .run import Run

_GRID_IMAGES = 64
_FILM_IMAGES = 16
_STRIP_IMAGES = 3
_MARGIN = 32


@dataclass(frozen=True)
class Protocol:
    """How a folder of samples was made: enough to make it again."""

    run: str
    step: int
    weights: str
    sampler: str
    timesteps: list[int]
    seed: int
    n: int


def write_samples(
    run: Run,
    *,
    n: int = 64,
    sampler: str = "ddim",
    steps: int | None = None,
    seed: int = 0,
    out: str | Path | None = None,
    weights: str = "ema",
    batch_size: int = 256,
    trajectory: bool = False,
    console: Console | None = None,
) -> Path:
    """Write n PNG files, grid.png and samples.json; all of them appear at once or none.

    Args:
        out: a folder that does not exist or is empty. By default one in RUN/samples named after
            the sampler, steps, n and seed, which replaces what an earlier call left there.
        trajectory: also write trajectory.png (x_t over its x̂₀) and trajectory.gif.
        The rest is as for `sample`.

    Returns:
        The folder.

    Raises:
        InkdropError: for a wrong argument or a folder in use, before any work is done.
    """
    for name, value in (("n", n), ("batch_size", batch_size)):
        if value < 1:
            raise InkdropError(f"{name} must be at least 1, got {value}")
    denoiser = run.load_denoiser(weights)
    table = build_table(denoiser.schedule, sampler, steps)
    default = run.path / "samples" / f"{sampler}-{len(table)}-n{n}-seed{seed}"
    folder = default if out is None else Path(out)
    if out is not None and folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise InkdropError(f"--out {folder} exists and is not empty; choose another folder")

    writing = folder.with_name(f".writing-{folder.name}")
    shutil.rmtree(writing, ignore_errors=True)
    writing.mkdir(parents=True)
    try:
        shown: list[Tensor] = []
        with _progress(console, len(table) * -(-n // batch_size)) as progress:
            for first in range(0, n, batch_size):
                count = min(batch_size, n - first)
                states = sample_steps(
                    denoiser,
                    count,
                    table=table,
                    seed=seed,
                    condition=run.cycled_classes(first, count),
                    first_index=first,
                )
                for state in states:
                    x = state.x
                    progress.advance(progress.task_ids[0])
                images = to_uint8(x.cpu())
                for i, image in enumerate(images, first):
                    to_picture(image).save(writing / f"{i:06d}.png")
                if first < _GRID_IMAGES:
                    shown.append(images)
        save(grid(torch.cat(shown)[:_GRID_IMAGES]), writing / "grid.png")
        if trajectory:
            count = min(n, _FILM_IMAGES)
            film = record(
                denoiser, count, sampler, steps, seed, condition=run.cycled_classes(0, count)
            )
            strip = draw_trajectory(film.images(_STRIP_IMAGES))
            save(strip, writing / "trajectory.png", margin=_MARGIN)
            write_gif(film, writing / "trajectory.gif")
        protocol = Protocol(
            str(run.path), run.step, weights, sampler, list(table.timesteps), seed, n
        )
        write_synced(writing / "samples.json", json.dumps(asdict(protocol), indent=1).encode())
        if folder.exists():
            shutil.rmtree(folder)
        writing.rename(folder)
    finally:
        shutil.rmtree(writing, ignore_errors=True)
    return folder


def _progress(console: Console | None, total: int) -> Progress:
    progress = Progress(
        TextColumn("[bold]sampling"),
        BarColumn(),
        TextColumn("{task.percentage:3.0f}%"),
        TimeRemainingColumn(),
        console=console,
        disable=console is None or not console.is_terminal,
    )
    progress.add_task("", total=total)
    return progress
