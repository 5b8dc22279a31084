"""What is wrong with a run: each finding with its evidence, and how to mend it.

Every check is a function of `_Evidence`, which measures each thing once and only when it is asked
for. Thresholds are set so that a sound run passes all of them.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property, partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from .build import build_denoiser, build_schedule
from .checkpoint import Damaged, read_checkpoint, read_manifest
from .data.examples import Examples, to_x_start
from .data.streaming import StreamedImages
from .diffusion import objectives
from .diffusion.denoiser import Denoiser
from .diffusion.prediction import Pair, from_pair
from .diffusion.samplers import sample
from .diffusion.schedule import ScheduleWarning
from .environment import package_version
from .errors import InkdropError
from .evaluation.distances import Floats, nearest_distances
from .randomness import generator, normal, torch_seeded
from .run import Run, RunData

IMAGES, POINTS, STEPS = 32, 512, 25  # samples that are looked at, and their DDIM steps
_REFERENCE, _MEASURED, _CHUNK = 1024, 256, 4096
_FEW_ROWS = 20  # lines of metrics below which nothing is said of their course

BLANK = 0.15  # share of the data's spread below which samples are blank or all alike
WILD = 2.0  # times the data's spread
UNCORRELATED = 0.5  # share of the data's correlation between neighbouring pixels
SHIFTED, STANDARD_ERRORS = 0.15, 4.0  # of a channel's mean, in [-1, 1]; both are needed
UNLEARNT, UNLEARNT_POINTS = 0.9, 0.97  # share of the loss of who knows only the data's mean
COPIED = 0.5  # share of the distance that unseen examples have to the nearest training example
WORSE = 1.1  # times the raw weights' loss
ROSE = 2.0  # times the least loss before
EXPLODED = 3.0  # times the loss of who knows only the data's mean
FALLING = 0.2  # share of the loss lost between the third and the last quarter of the steps
OVERFITTED = 1.3  # times the least held-out loss
UNMOVED, TRAILING = 0.005, 0.05  # of the weights: from where they started, and the averaged ones


@dataclass(frozen=True)
class Finding:
    """What one check found.

    Attributes:
        name: what was looked at.
        ok: whether it is well; None where it could not be told.
        evidence: the numbers that say so, or why it could not be told.
        mend: what to do; empty where nothing is wrong.
    """

    name: str
    ok: bool | None
    evidence: str
    mend: str = ""


def diagnose(
    run: Run, *, data: Sequence[str] = (), source: Any = None, checkpoints: bool = True
) -> list[Finding]:
    """Look at a run's checkpoints, metrics, weights and a few samples for what usually goes wrong.

    The samples are 32 images or 512 points of seed 0, by 25 steps of DDIM with averaged weights.
    What needs data that cannot be had is said not to be known.

    Args:
        data, source: the run's data, as for `Run.load_data`.
        checkpoints: read all of them, to hold them against their hashes.
    """
    seen = _Evidence(run, data, source)
    findings = [check_checkpoints(run.path / "checkpoints")] if checkpoints else []
    checks = _CHECKS | (_OF_IMAGES if len(run.shape) == 3 else _OF_POINTS) | _LAST
    for name, check in checks.items():
        try:
            finding = check(seen)
        except _Unknown as unknown:
            finding = _unknown(str(unknown))
        findings.append(Finding(name, finding.ok, finding.evidence, finding.mend))
    return findings


def check_checkpoints(folder: Path) -> Finding:
    """Hold every checkpoint in RUN/checkpoints against the sizes and hashes written with it."""
    name = "checkpoints"
    whole, damaged = [], []
    for path in sorted(folder.glob("step-*")):
        try:
            files = read_manifest(path)["files"]
            read_checkpoint(path, tuple(dict.fromkeys(_part(file) for file in files)))
            whole.append(path.name)
        except Damaged as error:
            damaged.append(f"{path.name}: {error.what}")
        except InkdropError as error:  # not ours, or of a newer version: training refuses it too
            return Finding(name, False, str(error), "move it away, or use what wrote it")
    aside = [path.name for path in sorted(folder.glob("damaged-*"))]
    if damaged:
        return Finding(
            name,
            False,
            f"{len(damaged)} of {len(damaged) + len(whole)} damaged: {'; '.join(damaged)}",
            "give the run's train command again: it goes on from the newest whole one"
            if whole
            else "none is whole: train again in a new --out folder",
        )
    if aside:
        return Finding(
            name,
            False,
            f"{', '.join(aside)} set aside as damaged; {len(whole)} whole",
            "training has gone on without it; look at the disk, then delete "
            f"{folder / aside[0] if len(aside) == 1 else folder / 'damaged-*'}",
        )
    return Finding(name, True, f"{len(whole)} whole, the newest {whole[-1]}" if whole else "none")


class _Unknown(Exception):
    """Why something cannot be told."""


@dataclass
class _Evidence:
    """What the checks look at. Its properties raise `_Unknown` where there is nothing to see."""

    run: Run
    data_path: Sequence[str]
    data_source: Any

    @cached_property
    def _data(self) -> RunData | str:
        try:
            return self.run.load_data(self.data_path, self.data_source)
        except (InkdropError, OSError) as error:
            return str(error)

    @property
    def data(self) -> RunData:
        if isinstance(self._data, str):
            raise _Unknown(f"not checked without the run's data: {self._data}")
        return self._data

    @cached_property
    def reference(self) -> Tensor:
        """Some training examples (N, …), float32."""
        train = self.data.train
        count = min(len(train), _REFERENCE)
        chosen = np.arange(count)
        if not isinstance(train, StreamedImages):
            chosen = np.sort(generator(0, "diagnosis").permutation(len(train))[:count])
        return to_x_start(train.at(chosen)).float()

    @cached_property
    def _denoisers(self) -> dict[str, Denoiser] | str:
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore", ScheduleWarning)  # a finding of its own
                return {name: self.run.load_denoiser(name) for name in ("ema", "raw")}
        except InkdropError as error:
            return str(error)

    def denoiser(self, weights: str) -> Denoiser:
        if isinstance(self._denoisers, str):
            raise _Unknown(f"not checked without the weights: {self._denoisers}")
        return self._denoisers[weights]

    def samples(self, weights: str) -> Tensor:
        """A few samples (N, …), on the CPU."""
        run = self.run
        denoiser = self.denoiser(weights)
        n = IMAGES if len(run.shape) == 3 else POINTS
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", ScheduleWarning)
            table = run.table("ddim", min(STEPS, denoiser.schedule.timesteps))
        condition = run.conditions(0, n)
        made = sample(denoiser, n, table=table, seed=0, condition=condition)
        return made.float().cpu()

    @cached_property
    def averaged_samples(self) -> Tensor:
        made = self.samples("ema")
        if not made.isfinite().all():
            raise _Unknown("not checked: the samples are not finite")
        return made

    @cached_property
    def losses(self) -> dict[str, Tensor]:
        """L_simple (B,) of examples that were held out, or else of training examples.

        Of the averaged weights, the raw ones, and of who knows but the data's mean: the same
        timesteps and noise for all.
        """
        train, held_out = self.data.train, self.data.held_out
        chosen: Examples = train if held_out is None else held_out
        rows = range(min(_MEASURED, len(chosen)))
        x_start = to_x_start(chosen.at(rows)).float()
        schedule, count = self.denoiser("ema").schedule, len(x_start)
        t = torch.arange(count) * schedule.timesteps // count
        noise = normal(tuple(x_start.shape), 0, "held-out noise")
        condition = chosen.labels_at(rows) if self.run.config.told else None
        found = {}
        for weights in ("ema", "raw"):
            denoiser = self.denoiser(weights)
            place = partial(torch.Tensor.to, device=denoiser.device)
            with torch.no_grad():
                told = None if condition is None else place(condition)
                loss = objectives.simple(denoiser, place(x_start), place(t), place(noise), told)
            found[weights] = loss.double().cpu()
        # Targets are linear in x_start and noise.
        centred = Pair(x_start - self.reference.mean(0), noise)
        alpha = schedule.lookup("sqrt_alphas_cumprod", t, x_start)
        sigma = schedule.lookup("sqrt_one_minus_alphas_cumprod", t, x_start)
        target = from_pair(self.run.config.prediction, centred, alpha, sigma)
        found["mean"] = (target**2).flatten(1).mean(1).double()
        return found

    @cached_property
    def moved(self) -> dict[str, float]:
        """How far the averaged and raw weights are from the initial ones, over their length."""
        config = self.run.config
        if config.network is None:
            raise _Unknown("not checked: the initial weights of one's own network are not known")
        with torch_seeded(config.seed, "initial weights"), warnings.catch_warnings():
            warnings.simplefilter("ignore", ScheduleWarning)
            start = _flat(build_denoiser(config, self.run.shape))
        length = start.norm()
        return {
            name: float((_flat(self.denoiser(name)) - start).norm() / length)
            for name in ("ema", "raw")
        }

    @cached_property
    def rows(self) -> list[dict[str, Any]]:
        """The metrics' lines that have a loss."""
        found = [row for row in self.run.metrics if "loss" in row]
        if not found:
            raise _Unknown("metrics.jsonl has no loss")
        return found

    def course(self, key: str) -> Floats:
        """A metric over all lines that have it."""
        values = [row[key] for row in self.run.metrics if row.get(key) is not None]
        return np.array(values, dtype=np.float64)

    @property
    def steps(self) -> int | None:
        """How many steps are to be done; None where epochs of unknown data say so."""
        training = self.run.config.training
        if training.steps is not None or training.epochs is None:
            return training.steps
        if isinstance(self._data, str):
            return None
        return max(1, math.ceil(training.epochs * len(self._data.train) / training.batch_size))

    @property
    def finished(self) -> bool:
        return self.steps is not None and self.run.step >= self.steps

    def aside(self, wrong: Callable[[Tensor], bool]) -> str:
        """Whether the raw weights do better, where the averaged ones' samples are wrong."""
        made = self.samples("raw")
        if made.isfinite().all() and not wrong(made):
            return (
                f"the raw weights' samples are not so: inkdrop sample {self.run.path} "
                "--weights raw, and see the averaged weights' decay (--training.ema-decay)"
            )
        return ""


def _versions(seen: _Evidence) -> Finding:
    sessions = seen.run.environment["sessions"]
    if not sessions:
        return _unknown("environment.json is missing")
    wrote = sessions[-1].get("versions", {})
    other = [
        f"{name} {wrote[name]}, here {here}"
        for name in ("inkdrop", "torch")
        if wrote.get(name) and (here := package_version(name)) != wrote[name]
    ]
    if other:
        return _unknown(
            f"trained with {'; '.join(other)}: it goes on, but not bit for bit as it would have"
        )
    return _well(", ".join(f"{name} {wrote.get(name)}" for name in ("inkdrop", "torch")))


def _length(seen: _Evidence) -> Finding:
    step, total = seen.run.step, seen.steps
    if total is None:
        return _unknown(f"{step:,} steps are done; how many epochs take, only the data tells")
    if step < total:
        return _unknown(f"{step:,} of {total:,} steps are done; its train command goes on")
    loss = seen.course("loss")
    said = f"all {total:,} steps are done"
    if len(loss) < _FEW_ROWS:
        return _well(said)
    quarters = [float(np.median(part)) for part in np.array_split(loss, 4)]
    fell = 1 - quarters[3] / quarters[2]
    said += f"; the last quarter's loss is {quarters[3]:.3g}, the third's {quarters[2]:.3g}"
    if fell > FALLING:
        return _wrong(
            f"{said}: it still fell by {fell:.0%}",
            "train for longer in a new --out folder (--steps), or raise --training.learning-rate "
            f"(now {seen.run.config.training.learning_rate:g})",
        )
    return _well(said)


def _metrics(seen: _Evidence) -> Finding:
    for row in seen.rows:
        for key in ("loss", "gradient_norm"):
            value = row.get(key, 0.0)
            if not isinstance(value, int | float) or not math.isfinite(value):
                return _wrong(
                    f"{key} is {value} in step {row['step']:,}",
                    "train again in a new --out folder with a lower --training.learning-rate, or "
                    "with --training.precision float32",
                )
    return _well(f"{len(seen.rows)} lines, all finite, up to step {seen.rows[-1]['step']:,}")


def _data(seen: _Evidence) -> Finding:
    train, held_out = seen.data.train, seen.data.held_out
    count = 0 if held_out is None else len(held_out)
    return _well(f"{train.name}: {len(train):,} {train.noun}s and {count:,} held out")


def _schedule(seen: _Evidence) -> Finding:
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always", ScheduleWarning)
        schedule = build_schedule(seen.run.config.schedule)
    last = schedule.alphas_cumprod[-1].item()
    said = [w for w in caught if issubclass(w.category, ScheduleWarning)]
    evidence = f"ᾱ at the end is {last:.2g}, {100 * math.sqrt(last):.2g}% of the amplitude"
    if said:
        return _wrong(
            f"{evidence}, but samples start from pure noise"
            if math.sqrt(last) > 0.01
            else str(said[0].message),
            "train again with more --schedule.timesteps, a larger --schedule.beta-end, or "
            "--schedule.kind cosine",
        )
    return _well(evidence)


def _learnt(seen: _Evidence) -> Finding:
    losses = {name: values.mean().item() for name, values in seen.losses.items()}
    best = min(losses["ema"], losses["raw"])
    share = best / losses["mean"]
    evidence = (
        f"loss {best:.3g}, {share:.0%} of the {losses['mean']:.3g} that knowing only the data's "
        "mean gives"
    )
    # Of points as wide as the noise there is little to know but their fine structure.
    if share > (UNLEARNT if len(seen.run.shape) == 3 else UNLEARNT_POINTS):
        training = seen.run.config.training
        return _wrong(
            evidence + f", after {seen.run.step:,} steps",
            "let it train on"
            if not seen.finished
            else "train for longer (--steps), with another --training.learning-rate (now "
            f"{training.learning_rate:g}), or with a larger network",
        )
    return _well(evidence)


def _learning_rate(seen: _Evidence) -> Finding:
    loss, norms = seen.course("loss"), seen.course("gradient_norm")
    if not len(loss):
        raise _Unknown("metrics.jsonl has no loss")
    training = seen.run.config.training
    rate = f"--training.learning-rate (now {training.learning_rate:g})"
    lower = f"train again with a lower {rate}, or longer --training.warmup-steps"
    start = loss[0]
    if seen.run.config.objective == "simple" and not isinstance(seen._data, str):
        start = seen.losses["mean"].mean().item()
    highest = loss.max()
    if highest > EXPLODED * start:
        return _wrong(
            f"the loss was {highest:.3g} at its highest, where {start:.3g} takes no learning", lower
        )
    smooth = _running_median(loss, max(3, len(loss) // 20))
    if len(loss) >= _FEW_ROWS and smooth[-1] > ROSE * smooth.min():
        return _wrong(
            f"the loss rose to {smooth[-1]:.3g} from {smooth.min():.3g} where it was least", lower
        )
    if seen.run.step >= 10:
        try:
            moved = seen.moved["raw"]
        except _Unknown:
            moved = math.inf
        if moved < UNMOVED:
            return _wrong(
                f"{seen.run.step:,} steps moved the weights by {moved:.2g} of their length",
                f"train again with a higher {rate}",
            )
    clip = training.gradient_clip
    clipped = f", clipped in {(norms > clip).mean():.0%} of the lines" if clip else ""
    norm = f"; gradient norm {np.median(norms):.2g}{clipped}" if len(norms) else ""
    return _well(f"loss {loss[0]:.3g} → {smooth[-1]:.3g}, at most {highest:.3g}{norm}")


def _held_out(seen: _Evidence) -> Finding:
    rows = [row for row in seen.run.metrics if row.get("held_out_loss") is not None]
    if not rows:
        return _unknown("no held-out loss was measured")
    least = min(rows, key=lambda row: float(row["held_out_loss"]))
    last = rows[-1]
    evidence = (
        f"{last['held_out_loss']:.3g} at last, {least['held_out_loss']:.3g} at its least in step "
        f"{least['step']:,}"
    )
    if last["held_out_loss"] > OVERFITTED * least["held_out_loss"]:
        return _wrong(
            evidence,
            f"the network learns its examples by heart: train for about {least['step']:,} steps, "
            "with more data, a smaller network or --network.dropout",
        )
    return _well(evidence)


def _averaged(seen: _Evidence) -> Finding:
    training = seen.run.config.training
    try:
        moved = seen.moved
    except _Unknown:
        moved = {}
    mend = (
        f"inkdrop sample {seen.run.path} --weights raw; train with a lower --training.ema-decay "
        f"(now {training.ema_decay:g}, for {seen.run.step:,} steps)"
    )
    if moved and moved["ema"] < TRAILING * moved["raw"]:
        return _wrong(
            f"the averaged weights moved by {moved['ema']:.2g} of the initial ones' length, the "
            f"raw ones by {moved['raw']:.2g}",
            mend,
        )
    averaged, raw = seen.losses["ema"], seen.losses["raw"]
    more = averaged - raw
    sure = more.mean() > STANDARD_ERRORS * more.std() / math.sqrt(len(more))
    evidence = f"loss {averaged.mean():.3g} averaged, {raw.mean():.3g} raw"
    if averaged.mean() > WORSE * raw.mean() and sure:
        return _wrong(evidence, mend)
    return _well(evidence)


def _finite(seen: _Evidence) -> Finding:
    made = seen.samples("ema")
    bad = int((~made.isfinite()).flatten(1).any(1).sum())
    if bad:
        return _wrong(
            f"{bad} of {len(made)} samples are not finite",
            seen.aside(lambda made: False)
            or "the weights are broken: go back to an older checkpoint, or train again",
        )
    seen.__dict__["averaged_samples"] = made
    return _well(f"{len(made)} samples of {STEPS} steps of DDIM, seed 0")


def _blank(seen: _Evidence) -> Finding:
    made, data = seen.averaged_samples, seen.reference
    images = len(seen.run.shape) == 3

    def within(x: Tensor) -> float:
        return x.flatten(1).std(1).median().item()

    def between(x: Tensor) -> float:
        return x.std(0).mean().item() if len(x) > 1 else 0.0

    def too_small(x: Tensor) -> bool:
        blank = images and within(x) < BLANK * within(data)
        return blank or between(x) < BLANK * between(data)

    if between(data) == 0:
        raise _Unknown("not checked: the training examples are all the same")
    evidence = f"they differ by {between(made):.2g}, the data by {between(data):.2g}"
    if images:
        evidence = (
            f"pixels of a sample spread by {within(made):.2g}, of the data by {within(data):.2g}; "
            f"{evidence}"
        )
    if too_small(made):
        if images and within(made) < BLANK * within(data):
            level = made.mean().item()
            kind = "black" if level < -0.9 else "white" if level > 0.9 else "of one shade"
            evidence = f"samples are {kind}: {evidence}"
        else:
            evidence = f"samples are all alike: {evidence}"
        return _wrong(evidence, seen.aside(too_small) or _broken(seen))
    return _well(evidence)


def _noisy(seen: _Evidence) -> Finding:
    if min(seen.run.shape[1:]) < 2:
        raise _Unknown("not checked: images one pixel wide have no neighbours")
    made, data = seen.averaged_samples, seen.reference
    usual = _neighbours(data)
    found = _neighbours(made)
    evidence = f"neighbouring pixels correlate by {found:.2f}, the data's by {usual:.2f}"
    if usual < 0.2:
        raise _Unknown(f"not checked: the data itself looks like noise ({evidence})")
    if found < UNCORRELATED * usual:
        return _wrong(
            f"samples are noise: {evidence}",
            seen.aside(lambda x: _neighbours(x) < UNCORRELATED * usual) or _broken(seen),
        )
    return _well(evidence)


def _tinted(seen: _Evidence) -> Finding:
    made, data = seen.averaged_samples, seen.reference
    dims = tuple(range(2, made.ndim))
    means = made.mean((0, *dims)), data.mean((0, *dims))
    spreads = made.std((0, *dims)), data.std((0, *dims))

    def shifted(x: Tensor) -> Tensor:
        each = x.mean(dims) if dims else x
        usual = data.mean(dims) if dims else data
        error = (usual.var(0) * (1 / len(x) + 1 / len(data))).sqrt()
        away = (each.mean(0) - usual.mean(0)).abs()
        # A standard deviation of points is about one, of images' pixels half of that.
        return (away > SHIFTED) & (away > STANDARD_ERRORS * error)

    def wrong(x: Tensor) -> bool:
        ratio = x.std((0, *dims)) / spreads[1].clamp(min=1e-6)
        return bool(shifted(x).any() or (ratio > WILD).any())

    evidence = (
        f"means {_listed(means[0])}, the data's {_listed(means[1])}; spreads "
        f"{_listed(spreads[0])}, the data's {_listed(spreads[1])}"
    )
    if wrong(made):
        return _wrong(f"samples are off: {evidence}", seen.aside(wrong) or _broken(seen))
    return _well(evidence)


def _memorised(seen: _Evidence) -> Finding:
    train, held_out = seen.data.train, seen.data.held_out
    if isinstance(train, StreamedImages):
        raise _Unknown("not checked: images are streamed, and all would have to be read")
    if held_out is not None:
        unseen = to_x_start(held_out.at(range(min(POINTS, len(held_out)))))
        usual, of = _nearest(unseen, train), "of held-out ones"
    else:
        few = to_x_start(train.at(range(min(_CHUNK, len(train)))))
        if len(few) < 2:
            raise _Unknown("not checked: there is but one training example")
        usual, of = nearest_distances(_rows(few)), "between training examples"
    found = np.median(_nearest(seen.averaged_samples, train))
    if np.median(usual) == 0:
        raise _Unknown("not checked: half of the data lies twice in it")
    ratio = float(found / np.median(usual))
    evidence = (
        f"the nearest training {train.noun} is at {found:.3g} from a sample, where it is "
        f"{np.median(usual):.3g} {of}: ratio {ratio:.2f}"
    )
    if ratio < COPIED:
        return _wrong(
            f"samples are copies: {evidence}",
            f"{len(train):,} {train.noun}s are few for so long a training: fewer --steps, more "
            "data, a smaller network or --network.dropout",
        )
    return _well(evidence)


_CHECKS: dict[str, Callable[[_Evidence], Finding]] = {
    "versions": _versions,
    "steps": _length,
    "metrics": _metrics,
    "data": _data,
    "schedule": _schedule,
    "learning": _learnt,
    "learning rate": _learning_rate,
    "held-out loss": _held_out,
    "averaged weights": _averaged,
    "samples": _finite,
    "variety": _blank,
}
_OF_IMAGES = {"noise": _noisy, "colour": _tinted}
_OF_POINTS = {"place and spread": _tinted}
_LAST = {"memorisation": _memorised}


def _broken(seen: _Evidence) -> str:
    """What to do where samples are wrong, with raw weights too."""
    if not seen.finished:
        return "let it train on, and look again"
    losses = {name: values.mean().item() for name, values in seen.losses.items()}
    if losses["ema"] > UNLEARNT * losses["mean"]:
        return "the network has not learnt: see the findings on learning"
    return (
        "train for longer or with a lower --training.learning-rate; if the loss is good, see that "
        "the images are as they should be: inkdrop data check"
    )


def _well(evidence: str) -> Finding:
    return Finding("", True, evidence)


def _wrong(evidence: str, mend: str) -> Finding:
    return Finding("", False, evidence, mend)


def _unknown(evidence: str) -> Finding:
    return Finding("", None, evidence)


def _part(file: str) -> str:
    """The part of a checkpoint that a file of its manifest belongs to."""
    return file.partition("/")[0].removesuffix(".safetensors")


def _flat(denoiser: Denoiser) -> Tensor:
    parameters = denoiser.network.parameters()
    return torch.cat([p.detach().flatten().cpu() for p in parameters]).double()


def _rows(x: Tensor) -> Floats:
    return x.flatten(1).double().numpy()


def _nearest(x: Tensor, train: Examples) -> Floats:
    """The distance (N,) from each of x (N, …) to its nearest training example."""
    rows = _rows(x)
    least = np.full(len(rows), np.inf)
    for i in range(0, len(train), _CHUNK):
        chunk = to_x_start(train.at(range(i, min(i + _CHUNK, len(train)))))
        least = np.minimum(least, nearest_distances(rows, _rows(chunk)))
    return least


def _neighbours(x: Tensor) -> float:
    """The correlation of pixels (N, C, H, W) with those beside and below, within images."""
    x = x - x.mean((2, 3), keepdim=True)
    variance = x.square().mean()
    beside = (x[..., 1:] - x[..., :-1]).square().mean()
    below = (x[..., 1:, :] - x[..., :-1, :]).square().mean()
    return float(1 - (beside + below) / (4 * variance)) if variance > 0 else 1.0


def _running_median(values: Floats, width: int) -> NDArray[np.float64]:
    width = min(width, len(values))
    windows = np.lib.stride_tricks.sliding_window_view(values, width)
    return np.asarray(np.median(windows, axis=1), dtype=np.float64)


def _listed(values: Tensor) -> str:
    return ", ".join(f"{value:.2f}" for value in values.tolist()).replace("-", "−")
