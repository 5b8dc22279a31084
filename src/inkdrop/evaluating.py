"""How good a run's samples are: figures against real examples, with the protocol they came by."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from time import perf_counter
from typing import Any, TypeVar

import numpy as np
import torch
from numpy.typing import NDArray
from rich.console import Console
from torch import Tensor

from .console import progress_bar, say
from .copies import Copies
from .data.examples import Examples
from .data.pixels import to_uint8
from .diffusion.clipping import chosen_clip
from .diffusion.denoiser import Denoiser
from .diffusion.guidance import Guided
from .diffusion.samplers import sample, sample_steps
from .diffusion.solvers import SamplerTable
from .errors import InkdropError
from .evaluation.classes import class_figures
from .evaluation.features import FeatureSet
from .evaluation.figures import Floors, with_floors
from .evaluation.record import Evaluation, Protocol, check_keeps, keep_evaluation
from .extracting import collected, gathered
from .measuring import Measuring, check_extractor, check_metrics, measuring, versions
from .processes import Processes, current
from .randomness import generator
from .real_examples import RealExamples, real_examples
from .report.neighbours import draw_pairs
from .report.pictures import save
from .run import Run, Told, load
from .scoring import likelihoods
from .sharing import check_same_step, gathering, idle_note, own_examples, unique
from .steering import steering
from .telling import say_evaluation, say_sweep

_PAIRS_DRAWN, _MARGIN = 12, 32
_UNEVEN = 0.2  # of a class's even share, from where on samples are told classes as they occur

T = TypeVar("T")

Conditions = Callable[[int, int], Tensor | None]
"""What images first … first + count - 1 are told."""


@dataclass(frozen=True)
class _Way:
    """One way to sample, of a sweep of several."""

    table: SamplerTable
    denoiser: Denoiser  # guided, where samples are

    @property
    def guidance(self) -> dict[str, Any] | None:
        """Of samples, for the protocol."""
        return asdict(self.denoiser.guidance) if isinstance(self.denoiser, Guided) else None


@dataclass(frozen=True)
class _Work:
    """What the evaluations of a sweep share.

    Attributes:
        told: what samples are told, in words.
        classes: (n,) what each was told, where these are classes.
    """

    run: Run
    conditions: Conditions
    told: str
    classes: NDArray[np.int64] | None
    n: int
    sampler: str
    eta: float | None
    order: int | None
    seed: int
    clip: str | None
    weights: str
    batch_size: int
    processes: Processes
    console: Console | None


def evaluate(run: Run | str | Path, **options: Any) -> Evaluation | list[Evaluation]:
    """Hold samples of a run against real examples: Fréchet distance, precision, copies and more.

    What is found is kept in RUN/evaluation.json; the same protocol again adds to it, or replaces.

    Args:
        run: the run, or its folder.
        options: those of `write_evaluations`. Several `evaluations` or `guidance` make a sweep.

    Returns:
        The evaluation; for a sweep, all of them in order.
    """
    opened = run if isinstance(run, Run) else load(run)
    found = write_evaluations(opened, **options)
    swept = any(isinstance(options.get(name), Sequence) for name in ("evaluations", "guidance"))
    return found if swept else found[0]


def write_evaluations(
    run: Run,
    *,
    metrics: Sequence[str] = (),
    data: Sequence[str] = (),
    source: Any = None,
    reference: str = "train",
    n: int | None = None,
    extractor: str = "auto",
    sampler: str = "ddim",
    steps: int | None = None,
    evaluations: int | Sequence[int] | None = None,
    timesteps: str | Sequence[int] | None = None,
    eta: float | None = None,
    order: int | None = None,
    clip: str | None = "auto",
    classes: Sequence[str | int] = (),
    vector: Sequence[float] = (),
    guidance: float | Sequence[float] | None = None,
    guidance_interval: Sequence[int] | None = None,
    guidance_rescale: float | None = None,
    likelihood: bool = False,
    memorisation: bool = True,
    seed: int = 0,
    weights: str = "ema",
    batch_size: int = 256,
    command: str | None = None,
    console: Console | None = None,
) -> list[Evaluation]:
    """Evaluate a run in every way that is asked for, and keep what is found in RUN/evaluation.json.

    Samples become features a batch at a time, and no more than a batch of them is held. The
    processes of a job share the batches; the figures are those of one process, to the bit.

    Args:
        metrics: names in `evaluation.record.METRICS`, for points in `POINT_METRICS`; by default all
            that the extractor allows.
        data: other real examples, brought to the size of the run's; or where its own lie now.
        source: the run's data, where they are the user's own.
        reference: hold samples against "train", as is usual, or "held-out" examples.
        n: how many samples; by default 2,000 images where features are few and 10,000 where they
            are many, or 5,000 points, and no more than there are real ones.
        extractor: what features of images are: "classifier" (of the data's own classes),
            "inception", "dinov2", "dinov2:PATH", "pixels", or "auto".
        evaluations, guidance: one of each, or several for a sweep.
        classes, vector: what samples are told; the real examples are of these classes too. By
            default all classes take turns, or come as often as in the data, where these are uneven.
        guidance_interval, guidance_rescale: of all guided samples, see `Guidance`.
        likelihood: also the bits per dimension of training and held-out examples.
        memorisation: look for copies of training examples among the samples.
        command: what was typed.
        The rest is as for `sample`.

    Raises:
        InkdropError: for a wrong argument, before any work is done.
    """
    began = perf_counter()
    processes = current()
    check_same_step(processes, run)
    for name, value, least in (("n", n, 2), ("batch_size", batch_size, 1)):
        if value is not None and value < least:
            raise InkdropError(f"{name} must be at least {least}, got {value}")
    check_keeps(run.path)
    check_extractor(run, extractor)
    check_metrics(run, metrics, extractor)
    tables = _tables(run, sampler, steps, evaluations, timesteps, eta, order)
    scales = _listed(guidance)
    if len(set(scales)) < len(scales):
        raise InkdropError(f"a guidance is given twice: {' '.join(map(str, scales))}")
    kept_clip = chosen_clip(clip, run.shape)
    if tuple(classes) == ("all",):
        raise InkdropError("samples are told all classes in turn anyway: leave --class all out")
    steered = [
        steering(
            run,
            weights,
            classes=classes,
            vector=vector,
            guidance=scale,
            guidance_interval=guidance_interval,
            guidance_rescale=guidance_rescale,
        )
        for scale in scales
    ]
    ways = [_Way(table, each.denoiser) for each in steered for table in tables]
    told = steered[0].told
    real = real_examples(run, data, source, reference, told, console)
    device = str(steered[0].denoiser.device)
    by = measuring(run, extractor, metrics, real, processes, device, console)
    count = min(by.usual, len(real.reference)) if n is None else n
    by.check(count, len(real.reference), metrics)

    features = by.of_real(real.reference, processes, console, "real images")
    other = None
    if real.other is not None:
        other = by.of_real(real.other, processes, console, "other real images")
    floors = processes.on_first(lambda: by.floors(features, other, count, real.split))
    conditions, in_words = _conditions(run, told, real)
    work = _Work(
        run,
        conditions,
        in_words,
        _classes_told(run, conditions, count),
        count,
        sampler,
        eta,
        order,
        seed,
        kept_clip,
        weights,
        batch_size,
        processes,
        console,
    )
    if note := idle_note(processes, count, batch_size):
        say(console, note)
    shared = {"real examples": perf_counter() - began}
    bits = None
    if likelihood:
        started = perf_counter()
        plain = run.load_denoiser(weights)  # the bound is of the model, not of its guidance
        bits = likelihoods(run, plain, real.train, real.held_out, seed, batch_size, console)
        shared["likelihood"] = perf_counter() - started
    found = []
    with tempfile.TemporaryDirectory(prefix="inkdrop-") as folder:
        copies = None
        if memorisation and len(run.shape) == 3:
            if real.train is None or real.held_out is None:
                say(console, "copies cannot be told without the run's own held-out images")
            else:
                flips, place = run.config.data.horizontal_flip, Path(folder)
                copies = Copies.of(
                    real.train, real.held_out, by, count, flips, processes, place, console
                )
        for way in ways:
            evaluation = _evaluated(work, way, by, real, features, floors, copies)
            seconds = {**shared, **evaluation.seconds}
            evaluation = replace(evaluation, likelihood=bits, seconds=seconds, command=command)
            found.append(evaluation)
            if processes.first:
                keep_evaluation(run.path, evaluation)
        if copies is not None and real.train is not None and processes.first:
            _draw_pairs(work, ways[-1], found[-1], copies, real.train)
    processes.wait_for_all(unique("evaluated"))
    if console is not None and processes.first:
        if len(found) > 1:
            say_sweep(console, run, found)
        else:
            say_evaluation(console, run, found[0])
    return found


def _tables(
    run: Run,
    sampler: str,
    steps: int | None,
    evaluations: int | Sequence[int] | None,
    timesteps: str | Sequence[int] | None,
    eta: float | None,
    order: int | None,
) -> list[SamplerTable]:
    """A table for each number of evaluations."""
    counts = _listed(evaluations)
    tables = [
        run.table(sampler, steps, evaluations=count, timesteps=timesteps, eta=eta, order=order)
        for count in counts
    ]
    lengths = [len(table) for table in tables]
    if len(set(lengths)) < len(lengths):
        raise InkdropError(
            f"evaluations {' '.join(map(str, counts))} are not all different: {sampler} comes to "
            f"{', '.join(map(str, lengths))}"
        )
    return tables


def _listed(given: T | Sequence[T] | None) -> Sequence[T | None]:
    """One or several as several; of none one, which is not given."""
    if isinstance(given, Sequence):
        return given or [None]
    return [given]


def _conditions(run: Run, told: Told | None, real: RealExamples) -> tuple[Conditions, str]:
    """What samples are told, and that in words."""
    if run.config.told is None:
        return (lambda first, count: None), "nothing"
    if told is not None and told != Told():
        what = told.vector or told.classes
        words = what if isinstance(what, str) else " ".join(f"{value:g}" for value in what or ())
        kind = "vector" if told.vector is not None else "class"
        return (lambda first, count: run.conditions(first, count, told)), f"{kind} {words}"
    if run.config.told == "vector":
        return run.conditions, "vectors of training examples in turn"
    labels = real.reference.labels
    assert run.config.network is not None
    classes = run.config.network.classes or 1
    if real.split != "given" and labels is not None and labels.ndim == 1:
        share = torch.bincount(labels, minlength=classes) / len(labels)
        if float((share * classes - 1).abs().max()) > _UNEVEN:
            order = torch.from_numpy(generator(0, "told classes").permutation(len(labels)))

            def as_they_occur(first: int, count: int) -> Tensor:
                return labels[order[torch.arange(first, first + count) % len(order)]]

            return as_they_occur, "classes as often as they occur"
    return run.conditions, "classes in turn"


def _classes_told(run: Run, conditions: Conditions, n: int) -> NDArray[np.int64] | None:
    if run.config.told != "classes":
        return None
    told = conditions(0, n)
    return None if told is None or bool((told < 0).any()) else told.numpy()


def _evaluated(
    work: _Work,
    way: _Way,
    by: Measuring,
    real: RealExamples,
    features: FeatureSet,
    floors: Floors,
    copies: Copies | None,
) -> Evaluation:
    """One evaluation, on every process; what the caller knows better is still missing."""
    began = perf_counter()
    made, pixels = _sampled(work, way, by, copies.wanted if copies is not None else 0)
    sampled = perf_counter()

    def judged() -> Evaluation:
        figures = with_floors(by.figures(features, made), floors)
        classes = accuracy = coverage = None
        labels = real.reference.labels
        if by.own_classes and labels is not None and labels.ndim == 1:
            assert by.classes is not None
            report = class_figures(made, work.classes, features, labels.numpy(), by.classes)
            classes, accuracy, coverage = report.classes, report.accuracy, report.coverage
        measured = perf_counter()
        memorised = None if copies is None else copies.judged(made, pixels)
        return Evaluation(
            _protocol(work, way, by, real),
            figures,
            classes,
            accuracy,
            coverage,
            memorised,
            seconds={
                "samples": sampled - began,
                "figures": measured - sampled,
                **({} if copies is None else {"memorisation": perf_counter() - measured}),
            },
        )

    return work.processes.on_first(judged)


def _sampled(
    work: _Work, way: _Way, by: Measuring, kept: int
) -> tuple[FeatureSet, NDArray[np.uint8]]:
    """The features of all samples, and the pixels (kept, D) of the first ones, on every process."""
    run, own = work.run, own_examples(work.processes, work.n, work.batch_size)
    numbers = int(np.prod(run.shape))
    few = range(own.start, max(own.start, min(own.stop, kept)))
    pixels = np.empty((len(few), numbers), np.uint8)

    def batches(advance: Callable[[int], None]) -> Iterator[Tensor]:
        for first in range(own.start, own.stop, work.batch_size):
            count = min(work.batch_size, own.stop - first)
            for state in sample_steps(
                way.denoiser,
                count,
                table=way.table,
                seed=work.seed,
                clip=work.clip,
                condition=work.conditions(first, count),
                first_index=first,
            ):
                x = state.x
                advance(count)
            if len(run.shape) != 3:
                yield x
                continue
            images = to_uint8(x)
            rows = images[: max(0, few.stop - first)].flatten(1).cpu().numpy()
            pixels[first - few.start :][: len(rows)] = rows
            yield images

    label = f"sampling, {len(way.table)} evaluations each"
    with progress_bar(work.console, label, len(way.table) * len(own)) as advance:
        made = collected(by.of_samples, batches(advance), len(own), by.width, by.classes)
    shared = gathering(work.processes)(torch.from_numpy(pixels)).numpy() if kept else pixels
    return gathered(made, work.processes), shared


def _draw_pairs(
    work: _Work, way: _Way, evaluation: Evaluation, copies: Copies, train: Examples
) -> None:
    """The samples nearest to training examples, made again, above these."""
    assert evaluation.memorisation is not None
    pairs = evaluation.memorisation.nearest[0].pairs[:_PAIRS_DRAWN]
    samples, nearest = [], []
    for index, example, _ in pairs:
        x = sample(
            way.denoiser,
            1,
            table=way.table,
            seed=work.seed,
            clip=work.clip,
            condition=work.conditions(index, 1),
            first_index=index,
        )
        samples.append(to_uint8(x)[0].cpu())
        nearest.append(copies.picture(example, train, samples[-1]))
    distances = [distance for _, _, distance in pairs]
    picture = draw_pairs(torch.stack(samples), torch.stack(nearest), distances)
    save(picture, work.run.path / "pictures" / "nearest.png", margin=_MARGIN)


def _protocol(work: _Work, way: _Way, by: Measuring, real: RealExamples) -> Protocol:
    reference = {
        "name": real.reference.name,
        "split": real.split,
        "fingerprint": real.reference.fingerprint,
        "count": len(real.reference),
    }
    return Protocol(
        step=work.run.step,
        weights=work.weights,
        sampler=work.sampler,
        timesteps=list(way.table.timesteps),
        eta=work.eta,
        order=work.order,
        clip=work.clip,
        guidance=way.guidance,
        condition=work.told,
        samples=work.n,
        seed=work.seed,
        reference=reference,
        extractor=by.described,
        settings=by.settings,
        versions=versions(by.described["name"]),
    )
