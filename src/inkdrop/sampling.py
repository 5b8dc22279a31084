"""Samples as files: images or points, a picture of them, and the protocol they were made by."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path

import numpy as np
import torch
from rich.console import Console
from torch import Tensor

from .checkpoint import write_synced
from .console import progress_bar, say
from .data.pixels import to_picture, to_uint8
from .diffusion.samplers import sample_steps
from .diffusion.solvers import SamplerTable
from .errors import InkdropError
from .folders import check_unused, make_empty, remove, replace, writing_place
from .processes import current
from .report import points
from .report.pictures import draw_trajectory, grid, record, save, write_gif
from .run import Run
from .sharing import check_same_step, first_does, gathering, idle_note, own_examples, unique
from .steering import Steering, steering

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
    classes: tuple[int, ...] | str | None = None
    vector: tuple[float, ...] | None = None
    guidance: float | None = None
    guidance_interval: tuple[int, int] | None = None
    guidance_rescale: float | None = None
    classifier_guidance: float | None = None
    classifier: str | None = None
    precision: str = "float32"


def write_samples(
    run: Run,
    *,
    n: int | None = None,
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
    classes: Sequence[str | int] = (),
    vector: Sequence[float] = (),
    guidance: float | None = None,
    guidance_interval: Sequence[int] | None = None,
    guidance_rescale: float | None = None,
    classifier_guidance: float | None = None,
    classifier: str | Path | None = None,
    precision: str = "float32",
    compile: bool = False,
    console: Console | None = None,
) -> Path:
    """Write n samples, a picture of them and samples.json; all of them appear at once or none.

    The processes of a job share the batches, and make the samples of one process, to the bit. They
    write into one folder, on a disk that all of them see.

    Images are PNG files, with grid.png, a column to each class where they take turns. Anything else
    is samples.npy, (n, …) float32, with scatter.png for points in the plane.

    Args:
        n: how many; 64 by default, or eight of each class where all are made from each noise.
        out: a folder that does not exist or is empty. By default one in RUN/samples named after
            the sampler, steps, n and seed, which replaces what an earlier call left there.
        trajectory: also write how they came about: trajectory.png, with trajectory.gif for images
            and paths.png for points.
        timesteps: also "fitted", for a run that has been fitted.
        classes … classifier: what they are told and how they are guided, see `steering`.
        precision, compile: how the network is computed, see `acceleration.accelerated`.
        The rest is as for `sample`.

    Returns:
        The folder.

    Raises:
        InkdropError: for a wrong argument or a folder in use, before any work is done.
    """
    for name, value in (("n", n), ("batch_size", batch_size)):
        if value is not None and value < 1:
            raise InkdropError(f"{name} must be at least 1, got {value}")
    images, plane = len(run.shape) == 3, run.shape == (2,)
    if trajectory and not (images or plane):
        raise InkdropError(
            "--trajectory draws images (C, H, W) and points in the plane (2,), but this run's "
            f"examples have the shape {run.shape}"
        )
    table = run.table(
        sampler, steps, evaluations=evaluations, timesteps=timesteps, eta=eta, order=order
    )
    steered = steering(
        run,
        weights,
        classes=classes,
        vector=vector,
        guidance=guidance,
        guidance_interval=guidance_interval,
        guidance_rescale=guidance_rescale,
        classifier_guidance=classifier_guidance,
        classifier=classifier,
        precision=precision,
        compile=compile,
    )
    n = steered.usual_count if n is None else n
    rule = {
        str(timesteps): timesteps is not None,
        f"eta{eta}": eta is not None,
        f"order{order}": order is not None,
        f"clip-{clip}": clip != "auto",
        precision: precision != "float32",
    }
    parts = [sampler, str(len(table)), *(part for part, given in rule.items() if given)]
    parts += steered.words
    default = run.path / "samples" / "-".join([*parts, f"n{n}", f"seed{seed}"])
    folder = default if out is None else Path(out)
    processes = current()
    check_same_step(processes, run)
    writing = writing_place(folder)
    first_does(processes, partial(_prepare, folder, writing, chosen=out is not None))
    try:
        if not writing.is_dir():
            raise InkdropError(
                f"process {processes.rank} cannot see {writing}, which the first one made: the "
                "samples need a disk that all machines share; choose it with --out"
            )
        if note := idle_note(processes, n, batch_size):
            say(console, note)
        own = own_examples(processes, n, batch_size)
        with progress_bar(console, "sampling", len(table) * len(own)) as advance:
            batches = _batches(steered, table, clip, own, batch_size, seed, advance)
            if images:
                shown = _shown(steered.columns)
                made = _images_written(batches, own, run.shape, writing, shown)
            else:
                made = torch.cat([torch.zeros(0, *run.shape), *batches]).float()
        made = gathering(processes)(made)  # what the picture shows of images; all points
        if processes.first:
            if images:
                save(grid(made, steered.columns), writing / "grid.png")
            else:
                np.save(writing / "samples.npy", made.numpy())
            if plane:
                save(points.scatter(made[:_SCATTER_POINTS]), writing / "scatter.png")
            if trajectory and images:
                _draw_film(steered, table, clip, n, seed, writing)
            elif trajectory:
                _draw_course(steered, table, n, seed, writing)
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
                **steered.facts,
                precision=precision,
            )
            write_synced(writing / "samples.json", json.dumps(asdict(protocol), indent=1).encode())
            replace(folder, writing)
        processes.wait_for_all(unique("samples written"))
    finally:
        if processes.first:
            remove(writing)
    return folder


def _prepare(folder: Path, writing: Path, chosen: bool) -> None:
    """Make the place to write in, unless the folder is one that was chosen and is in use."""
    if chosen:
        check_unused(folder)
    make_empty(writing)


def _batches(
    steered: Steering,
    table: SamplerTable,
    clip: str | None,
    own: range,
    batch_size: int,
    seed: int,
    advance: Callable[[int], None],
) -> Iterator[Tensor]:
    """The samples of the seed that are this process's own, on the CPU, a batch at a time."""
    for first in range(own.start, own.stop, batch_size):
        count = min(batch_size, own.stop - first)
        states = sample_steps(
            steered.denoiser,
            count,
            table=table,
            seed=seed,
            x_init=steered.noise(first, count, seed),
            clip=clip,
            condition=steered.condition(first, count),
            first_index=first,
        )
        for state in states:
            x = state.x
            advance(count)
        yield x.cpu()


def _shown(columns: int | None) -> int:
    """How many images a grid shows: 64, or whole rows of a column for each class."""
    return _GRID_IMAGES if columns is None else columns * max(8, -(-_GRID_IMAGES // columns))


def _images_written(
    batches: Iterable[Tensor], own: range, shape: tuple[int, ...], folder: Path, most: int
) -> Tensor:
    """Write this process's own images; those of them that the grid shows, uint8 (n, C, H, W)."""
    shown, written = [torch.zeros(0, *shape, dtype=torch.uint8)], own.start
    for x in batches:
        images = to_uint8(x)
        for i, image in enumerate(images, written):
            to_picture(image).save(folder / f"{i:06d}.png")
        shown.append(images[: max(0, most - written)])
        written += len(images)
    return torch.cat(shown)


def _draw_film(
    steered: Steering,
    table: SamplerTable,
    clip: str | None,
    n: int,
    seed: int,
    folder: Path,
) -> None:
    count = min(n, _FILM_IMAGES)
    film = record(
        steered.denoiser,
        count,
        seed=seed,
        table=table,
        clip=clip,
        condition=steered.condition(0, count),
        x_init=steered.noise(0, count, seed),
    )
    strip = draw_trajectory(film.images(_STRIP_IMAGES))
    save(strip, folder / "trajectory.png", margin=_MARGIN)
    write_gif(film, folder / "trajectory.gif")


def _draw_course(steered: Steering, table: SamplerTable, n: int, seed: int, folder: Path) -> None:
    count = min(n, points.BEHIND)
    course = points.record(
        steered.denoiser,
        count,
        seed=seed,
        table=table,
        condition=steered.condition(0, count),
        x_init=steered.noise(0, count, seed),
    )
    save(points.draw_courses({"": course}), folder / "trajectory.png", margin=_MARGIN)
    save(points.draw_paths(course), folder / "paths.png", margin=_MARGIN)
