"""What a run's likelihood is and which timesteps suit it, measured on its data."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console
from rich.table import Table
from torch import Tensor

from .checkpoint import FORMAT_VERSION, replace_synced
from .console import progress_bar, say
from .data.examples import Examples, to_x_start
from .diffusion.denoiser import Denoiser
from .diffusion.fitting import (
    StepTerms,
    bound_of,
    fit_timesteps,
    measure_path,
    measure_terms,
)
from .diffusion.likelihood import BitsPerDim, bits_per_dim, ode_likelihood
from .diffusion.objectives import chosen_variance
from .diffusion.schedule import NoiseSchedule, checked_count
from .diffusion.spacing import SPACINGS, spaced_timesteps
from .errors import InkdropError
from .metrics import TIMESTEP_BINS, bin_label, timestep_bin
from .processes import current
from .randomness import generator
from .report.charts import likelihood_terms
from .report.pictures import save
from .run import FITTED_FILE, Run, write_fitted
from .sharing import check_same_step, gathering, idle_note, own_examples, unique

LIKELIHOOD_FILE = "likelihood.json"
SPLITS = ("held-out", "train")
_INPUTS = 250_000  # network inputs that a likelihood takes, where it is not told how many
_PATHS, _PATH_NUMBERS = 128, 2**20  # that a fit follows; fewer where examples are large
_EXAMPLES_OF_BOTH, _INPUTS_OF_BOTH = 512, 50_000  # of each split, where the two are compared
_NO_CHANCE = 2.0  # standard errors between them
_COMPARED = (5, 10, 20, 50)  # numbers of steps that a fit is shown for
_MARGIN = 32


def write_likelihood(
    run: Run,
    *,
    split: str = "held-out",
    data: tuple[str, ...] = (),
    n: int | None = None,
    terms: int | None = None,
    steps: int | None = None,
    timesteps: str | None = None,
    variance: str | None = None,
    clip: str = "auto",
    weights: str = "ema",
    seed: int = 0,
    batch_size: int = 256,
    ode: bool = False,
    divergence: str = "hutchinson",
    probes: int = 1,
    console: Console | None = None,
) -> Path:
    """Measure the bound (and the ODE's likelihood), and write RUN/likelihood.json and its picture.

    The processes of a job share the batches; the figures are those of one process, to the bit.

    Args:
        split: "held-out" is the test set, or what training set aside; or "train".
        data: where the data lies, if not where training found it.
        n: the first n examples; all by default.
        terms: KL terms asked of each example, an unbiased estimate; by default all, where that
            takes at most 250,000 network inputs, or as many as that allows.
        steps: of the reverse process, instead of every timestep, spaced as `timesteps` says.
        ode: also the probability-flow ODE's likelihood.
        The rest is as for `bits_per_dim` and `ode_likelihood`.

    Returns:
        The JSON file.
    """
    processes = current()
    check_same_step(processes, run)
    examples = _examples(run, split, data, n)
    own = own_examples(processes, len(examples), batch_size)
    denoiser = run.load_denoiser(weights)
    full = denoiser
    if steps is not None:
        denoiser = denoiser.respaced(run.table("ddim", steps, timesteps=timesteps).timesteps[::-1])
    elif timesteps is not None:
        raise InkdropError(f"timesteps {timesteps} needs steps, the number of them")
    variance = chosen_variance(denoiser, variance or run.config.variance)
    total = denoiser.schedule.timesteps
    if terms is None and len(examples) * total > _INPUTS:
        terms = max(1, min(total - 1, _INPUTS // len(examples)))
    asked = total if terms is None else terms + 1
    if note := idle_note(processes, len(examples), batch_size):
        say(console, note)
    with progress_bar(console, "bound", len(own) * asked) as advance:
        bound = bits_per_dim(
            denoiser,
            _batches(run, examples, own, batch_size),
            terms=terms,
            batch_size=batch_size,
            seed=seed,
            variance=variance,
            clip=clip,
            progress=advance,
            first_index=own.start,
            gather=gathering(processes),
        )
    content: dict[str, Any] = {
        "format_version": FORMAT_VERSION,
        "step": run.step,
        "weights": weights,
        "split": split,
        "examples": len(examples),
        "data": examples.fingerprint,
        "seed": seed,
        "timesteps": denoiser.schedule.network_timesteps.tolist(),
        "terms": total - 1 if terms is None else terms,
        "variance": variance,
        "clip": clip,
        "bits_per_dim": bound.total,
        "standard_error": _known(bound.standard_error),
        "prior": bound.prior,
        "decoder": bound.decoder,
        "per_timestep": bound.per_timestep.tolist(),
        "noise_mse": [_known(value) for value in bound.noise_mse.tolist()],
    }
    if ode:
        content["ode"] = _ode_figures(
            full, run, examples, divergence, probes, batch_size, seed, console
        )
    file = run.path / LIKELIHOOD_FILE
    if processes.first:
        picture = likelihood_terms(bound)
        save(picture, run.path / "pictures" / "likelihood.png", margin=_MARGIN)
        replace_synced(file, json.dumps(content, indent=1).encode())
    processes.wait_for_all(unique("likelihood written"))
    if console is not None:
        console.print(_likelihood_table(bound, total, content))
    return file


def _ode_figures(
    denoiser: Denoiser,
    run: Run,
    examples: Examples,
    divergence: str,
    probes: int,
    batch_size: int,
    seed: int,
    console: Console | None,
) -> dict[str, Any]:
    processes = current()
    own = own_examples(processes, len(examples), batch_size)
    with progress_bar(console, "probability-flow ODE", None) as advance:
        found = ode_likelihood(
            denoiser,
            _batches(run, examples, own, batch_size),
            divergence=divergence,
            probes=probes,
            batch_size=batch_size,
            seed=seed,
            progress=advance,
            first_index=own.start,
            gather=gathering(processes),
        )
    return {
        "bits_per_dim": found.bits_per_dim,
        "standard_error": _known(found.standard_error),
        "divergence": divergence,
        "probes": probes if divergence == "hutchinson" else None,
        "evaluations_per_example": found.evaluations / len(examples),
    }


def likelihoods(
    run: Run,
    denoiser: Denoiser,
    train: Examples | None,
    held_out: Examples | None,
    seed: int,
    batch_size: int,
    console: Console | None,
) -> dict[str, Any]:
    """The bound of some training and held-out examples, and whether the two differ.

    An estimate with a few KL terms of each example; `write_likelihood` has more to say. The
    processes share the batches.

    Returns:
        {"train": …, "held-out": …} as far as there are such examples, each with "bits_per_dim",
        "standard_error" and "examples"; "terms" of each example; and "verdict", a sentence.
    """
    processes = current()
    terms = max(1, min(denoiser.schedule.timesteps - 1, _INPUTS_OF_BOTH // _EXAMPLES_OF_BOTH))
    found: dict[str, Any] = {}
    for split, whole in (("train", train), ("held-out", held_out)):
        if whole is None:
            continue
        chosen = generator(0, "likelihood examples").permutation(len(whole))[:_EXAMPLES_OF_BOTH]
        examples = whole.take(np.sort(chosen))
        own = own_examples(processes, len(examples), batch_size)
        with progress_bar(console, f"bits/dim, {split}", len(own) * (terms + 1)) as advance:
            bound = bits_per_dim(
                denoiser,
                _batches(run, examples, own, batch_size),
                terms=terms,
                batch_size=batch_size,
                seed=seed,
                variance=chosen_variance(denoiser, run.config.variance),
                progress=advance,
                first_index=own.start,
                gather=gathering(processes),
            )
        found[split] = {
            "bits_per_dim": bound.total,
            "standard_error": _known(bound.standard_error),
            "examples": len(examples),
        }
    return {**found, "terms": terms, "verdict": _verdict(found)}


def _verdict(found: dict[str, Any]) -> str:
    """Whether training examples are likelier than held-out ones, in a sentence."""
    if len(found) < 2:
        return "nothing is held out, so that over-fitting cannot be seen"
    gap = found["held-out"]["bits_per_dim"] - found["train"]["bits_per_dim"]
    errors = [found[split]["standard_error"] or math.inf for split in found]
    chance = _NO_CHANCE * math.hypot(*errors)
    if gap > chance:
        return (
            f"over-fitted: held-out examples take {gap:.3f} bits/dim more than training examples, "
            f"and chance would explain {chance:.3f}"
        )
    return (
        f"no over-fitting seen: held-out and training examples differ by {abs(gap):.3f} bits/dim, "
        f"which chance explains up to {chance:.3f}"
    )


def write_fit(
    run: Run,
    *,
    split: str = "train",
    data: tuple[str, ...] = (),
    n: int = 256,
    weights: str = "ema",
    seed: int = 0,
    batch_size: int = 256,
    console: Console | None = None,
) -> Path:
    """Measure what a step from each timestep costs, and write RUN/timesteps.json.

    From it `--timesteps fitted` (by the bound, for ancestral sampling and likelihood) and
    `--timesteps fitted-path` (by a deterministic sampler's path) find the best timesteps for any
    number of steps. The arguments are those of `write_likelihood`. The processes of a job share the
    timesteps; the first follows the paths, a small part of the work.
    """
    processes = current()
    check_same_step(processes, run)
    examples = _examples(run, split, data, n)
    checked_count("batch_size", batch_size)
    denoiser = run.load_denoiser(weights)
    schedule = denoiser.schedule
    timesteps = processes.share(schedule.timesteps)
    with progress_bar(console, "measuring", len(examples) * len(timesteps)) as advance:
        terms = measure_terms(
            denoiser,
            _batches(run, examples, range(len(examples)), batch_size),
            batch_size=batch_size,
            seed=seed,
            progress=advance,
            timesteps=timesteps,
            gather=gathering(processes),
        )
    if processes.first:
        paths = max(4, min(_PATHS, _PATH_NUMBERS // math.prod(run.shape)))
        with progress_bar(console, "following paths", None) as advance:
            errors = measure_path(
                denoiser,
                paths,
                condition=run.conditions(0, paths),
                batch_size=batch_size,
                seed=seed,
                progress=advance,
            )
        protocol = {"weights": weights, "split": split, "data": examples.fingerprint, "seed": seed}
        write_fitted(run, terms, errors, protocol)
        if console is not None:
            console.print("bound in bits per dimension, less its prior:")
            console.print(_fits_table(schedule, terms))
    processes.wait_for_all(unique("fit written"))
    return run.path / FITTED_FILE


def _fits_table(schedule: NoiseSchedule, terms: StepTerms) -> Table:
    table = Table("steps", "fitted", "best fixed", "", "fitted timesteps", box=None)
    for count in (count for count in _COMPARED if count <= schedule.timesteps):
        fitted = fit_timesteps(schedule, terms, count)
        bounds = {
            name: bound_of(schedule, terms, spaced_timesteps(schedule, count, name))
            for name in SPACINGS
        }
        best = min(bounds, key=lambda name: bounds[name])
        shown = ", ".join(map(str, fitted[:10])) + (", …" if count > 10 else "")
        values = (bound_of(schedule, terms, fitted), bounds[best])
        bits = (f"{value / math.log(2):.4f}" for value in values)
        table.add_row(str(count), *bits, best, shown)
    return table


def _examples(run: Run, split: str, data: tuple[str, ...], n: int | None) -> Examples:
    if split not in SPLITS:
        raise InkdropError(f"split must be held-out or train, got {split!r}")
    if n is not None and n < 1:
        raise InkdropError(f"n must be at least 1, got {n}")
    with current().one_here_first(unique("data")):  # which may decode them into the cache
        source, train, held_out = run.load_data(data)
    chosen = train if split == "train" else source.test or held_out
    if chosen is None:
        raise InkdropError(f"{run.path} has no held-out {train.noun}s; choose --split train")
    return chosen if n is None else chosen.take(range(min(n, len(chosen))))


def _batches(
    run: Run, examples: Examples, own: range, batch_size: int
) -> Iterator[tuple[Tensor, Tensor | None]]:
    """x_start and classes, a batch at a time: the set itself stays as it is kept."""
    told = run.config.told is not None
    for i in range(own.start, own.stop, batch_size):
        rows = slice(i, min(i + batch_size, own.stop))
        labels = examples.labels[rows] if told and examples.labels is not None else None
        yield to_x_start(examples.values[rows]), labels


def _likelihood_table(bound: BitsPerDim, total: int, content: dict[str, Any]) -> Table:
    table = Table("term", "bits/dim", box=None)
    table.columns[1].justify = "right"
    table.add_row("prior", f"{bound.prior:.4f}")
    bins = np.zeros(TIMESTEP_BINS)
    for t, value in enumerate(bound.per_timestep.tolist()):
        bins[timestep_bin(t, total)] += value
    for i in reversed(range(min(TIMESTEP_BINS, total))):
        table.add_row(f"t = {bin_label(i, total)}", f"{bins[i]:.4f}")
    table.add_row("decoder", f"{bound.decoder:.4f}")
    table.add_row("[bold]bound", f"[bold]{bound.total:.4f} ± {bound.standard_error:.4f}")
    if "ode" in content:
        found = content["ode"]
        error = found["standard_error"]
        table.add_row(
            "ODE", f"{found['bits_per_dim']:.4f} ± {math.nan if error is None else error:.4f}"
        )
    return table


def _known(value: float) -> float | None:
    """JSON has no NaN."""
    return value if math.isfinite(value) else None
