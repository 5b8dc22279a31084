"""Samples as files: images or points, a picture of them, and the protocol they were made by."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Iterable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import torch
from rich.console import Console
from torch import Tensor

from .checkpoint import write_synced
from .console import progress_bar
from .data.pixels import to_picture, to_uint8
from .diffusion.denoiser import Denoiser
from .diffusion.samplers import sample_steps
from .diffusion.solvers import SamplerTable
from .errors import InkdropError
from .report import points
from .report.pictures import draw_trajectory, grid, record, save, write_gif
from .run import Run

_GRID_IMAGES = 64
_FILM_IMAGES = 16
_STRIP_IMAGES = 3
_SCATTER_POINTS = 10_000  # in the picture; samples.npy has all
_MARGIN = 32


@dataclass(frozen=True)
class Protocol:
    """How a folder of samples was made: enough to make it again."""

    run: str
    step: int
    weights: str
    sampler: str
    timesteps: list[int]
    eta: float | None
    order: int | None
    clip: str | None
    seed: int
    n: int


def write_samples(
    run: Run,
    *,
    n: int = 64,
    sampler: str = "ddim",
    steps: int | None = None,
    evaluations: int | None = None,
    timesteps: str | None = None,
    eta: float | None = None,
    order: int | None = None,
    clip: str | None = "auto",
    seed: int = 0,
    out: str | Path | None = None,
    weights: str = "ema",
    batch_size: int = 256,
    trajectory: bool = False,
    console: Console | None = None,
) -> Path:
    """Write n samples, a picture of them and samples.json; all of them appear at once or none.

    Images are PNG files, with grid.png. Anything else is samples.npy, (n, …) float32, with
    scatter.png for points in the plane.

    Args:
        out: a folder that does not exist or is empty. By default one in RUN/samples named after
            the sampler, steps, n and seed, which replaces what an earlier call left there.
        trajectory: also write how they came about: trajectory.png, with trajectory.gif for images
            and paths.png for points.
        timesteps: also "fitted", for a run that has been fitted.
        The rest is as for `sample`.

    Returns:
        The folder.

    Raises:
        InkdropError: for a wrong argument or a folder in use, before any work is done.
    """
    for name, value in (("n", n), ("batch_size", batch_size)):
        if value < 1:
            raise InkdropError(f"{name} must be at least 1, got {value}")
    images, plane = len(run.shape) == 3, run.shape == (2,)
    if trajectory and not (images or plane):
        raise InkdropError(
            "--trajectory draws images (C, H, W) and points in the plane (2,), but this run's "
            f"examples have the shape {run.shape}"
        )
    denoiser = run.load_denoiser(weights)
    table = run.table(
        sampler, steps, evaluations=evaluations, timesteps=timesteps, eta=eta, order=order
    )
    rule = {
        str(timesteps): timesteps is not None,
        f"eta{eta}": eta is not None,
        f"order{order}": order is not None,
        f"clip-{clip}": clip != "auto",
    }
    parts = [sampler, str(len(table)), *(part for part, given in rule.items() if given)]
    default = run.path / "samples" / "-".join([*parts, f"n{n}", f"seed{seed}"])
    folder = default if out is None else Path(out)
    if out is not None and folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise InkdropError(f"--out {folder} exists and is not empty; choose another folder")

    writing = folder.with_name(f".writing-{folder.name}")
    shutil.rmtree(writing, ignore_errors=True)
    writing.mkdir(parents=True)
    try:
        with progress_bar(console, "sampling", len(table) * n) as advance:
            batches = _batches(run, denoiser, table, clip, n, batch_size, seed, advance)
            if images:
                _write_images(batches, writing)
            else:
                _write_points(batches, writing, plane)
        if trajectory and images:
            count = min(n, _FILM_IMAGES)
            condition = run.cycled_classes(0, count)
            film = record(denoiser, count, seed=seed, table=table, clip=clip, condition=condition)
            strip = draw_trajectory(film.images(_STRIP_IMAGES))
            save(strip, writing / "trajectory.png", margin=_MARGIN)
            write_gif(film, writing / "trajectory.gif")
        elif trajectory:
            count = min(n, points.BEHIND)
            condition = run.cycled_classes(0, count)
            course = points.record(denoiser, count, seed=seed, table=table, condition=condition)
            save(points.draw_courses({"": course}), writing / "trajectory.png", margin=_MARGIN)
            save(points.draw_paths(course), writing / "paths.png", margin=_MARGIN)
        protocol = Protocol(
            str(run.path),
            run.step,
            weights,
            sampler,
            list(table.timesteps),
            eta,
            order,
            clip,
            seed,
            n,
        )
        write_synced(writing / "samples.json", json.dumps(asdict(protocol), indent=1).encode())
        if folder.exists():
            shutil.rmtree(folder)
        writing.rename(folder)
    finally:
        shutil.rmtree(writing, ignore_errors=True)
    return folder


def _batches(
    run: Run,
    denoiser: Denoiser,
    table: SamplerTable,
    clip: str | None,
    n: int,
    batch_size: int,
    seed: int,
    advance: Callable[[int], None],
) -> Iterator[Tensor]:
    """Samples 0 … n-1 of the seed, on the CPU, a batch at a time."""
    for first in range(0, n, batch_size):
        count = min(batch_size, n - first)
        states = sample_steps(
            denoiser,
            count,
            table=table,
            seed=seed,
            clip=clip,
            condition=run.cycled_classes(first, count),
            first_index=first,
        )
        for state in states:
            x = state.x
            advance(count)
        yield x.cpu()


def _write_images(batches: Iterable[Tensor], folder: Path) -> None:
    shown: list[Tensor] = []
    written = 0
    for x in batches:
        images = to_uint8(x)
        for i, image in enumerate(images, written):
            to_picture(image).save(folder / f"{i:06d}.png")
        if written < _GRID_IMAGES:
            shown.append(images)
        written += len(images)
    save(grid(torch.cat(shown)[:_GRID_IMAGES]), folder / "grid.png")


def _write_points(batches: Iterable[Tensor], folder: Path, plane: bool) -> None:
    x = torch.cat(list(batches)).float().numpy()
    np.save(folder / "samples.npy", x)
    if plane:
        save(points.scatter(x[:_SCATTER_POINTS]), folder / "scatter.png")
