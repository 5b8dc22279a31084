"""The commands' options, and their parser: tyro's, with its messages made one line."""

from __future__ import annotations

import contextlib
import io
import re
from dataclasses import dataclass
from itertools import chain
from typing import Annotated, Literal, TypeVar

import tyro

from .config import Config
from .errors import InkdropError

Options = TypeVar("Options")


@dataclass
class TrainOptions:
    """Options of `inkdrop train`."""

    config: Annotated[Config, tyro.conf.arg(name="")]
    out: str | None = None
    """The run folder; runs/PRESET where not given."""
    data: tuple[str, ...] = ()
    """The images: a folder, an archive or files of any kind; hf:NAME for a set of the hub; or the
    name of a known set. The preset's own place where not given."""
    bad_images: str | None = None
    """What happens when some cannot be used: stop, the default, or skip."""
    steps: int | None = None
    """Optimizer steps, instead of the preset's."""
    batch_size: str | None = None
    """Images of one optimizer step, instead of the preset's; auto keeps those, and finds the
    largest part of them that the device can compute at once."""
    deterministic: bool = False
    """Only operations that repeat bit for bit: on a GPU slower, by how much is said."""
    on_nonfinite: str | None = None
    """After a loss or gradient that is not finite: stop, the default, skip that step, or
    rollback to the last checkpoint and take other data from there."""
    evaluate_every: int | None = None
    """Steps between evaluations of some samples, whose least Fréchet distance is then the best
    checkpoint; none where not given."""
    resume: str = "auto"
    """auto goes on with the run in the folder; never refuses a folder that holds one."""


@dataclass
class DataCheckOptions:
    """Options of `inkdrop data check`."""

    json: bool = False
    """Print what was found as JSON, and nothing else."""
    out: str | None = None
    """The folder for check.json and contact-sheet.png; checks/NAME where not given."""
    size: tuple[int, ...] = ()
    """The side, or height and width, to bring images to; proposed where not given."""
    channels: Literal[1, 3, 4] | None = None
    """1 for grey, 3 for colour, 4 to keep transparency; proposed where not given."""
    fit: str = "crop"
    """crop, random-crop, pad or stretch."""
    background: str = "auto"
    """The colour beneath transparency and around padding."""
    preset: str = "folder"
    """What to estimate memory and time for."""
    trial: bool = True
    """Time ten steps of training for that."""
    refresh: bool = False
    """Look at every image again, though they have not changed since the last check."""
    streaming: bool = False
    """A set of the hub: look at the first images only, and fetch no more."""
    workers: int | None = None
    """Processes that decode; one a core where not given."""


@dataclass
class DataCacheOptions:
    """Options of `inkdrop data cache`."""

    clear: bool = False
    """Delete all of it."""


@dataclass
class SampleOptions:
    """Options of `inkdrop sample`."""

    n: Annotated[int | None, tyro.conf.arg(aliases=("-n",))] = None
    """How many images or points; 64 where not given, or eight of each class with --class all."""
    classes: Annotated[tuple[str, ...], tyro.conf.arg(name="class")] = ()
    """What they are told, by name or number, in turn; all for every class from each noise, a
    column of the grid to each; none to tell none. All classes in turn where not given."""
    vector: tuple[float, ...] = ()
    """What they are told, for a run that is told vectors; those of training examples where not
    given."""
    guidance: float | None = None
    """How far to draw them towards that: 1 is not at all, 2 is usual, more is bolder and more
    alike; for runs that were trained with label dropout."""
    guidance_interval: tuple[int, int] | None = None
    """The timesteps to guide at, lowest and highest; all where not given."""
    guidance_rescale: float | None = None
    """0 … 1: how much of the contrast that guidance adds to take back; 0.7 is usual."""
    classifier_guidance: float | None = None
    """How far a classifier draws them towards the class, also for runs that are told none; see
    inkdrop classifier train."""
    classifier: str | None = None
    """Its folder; the one trained on the run's data where not given."""
    sampler: str = "ddim"
    """ddim, ancestral, ancestral-beta, ancestral-learned, dpm-solver++, unipc or heun."""
    steps: int | None = None
    """How many timesteps are visited; the sampler's own number where not given."""
    evaluations: int | None = None
    """The same in network evaluations: a step of heun takes two."""
    timesteps: str | None = None
    """Which: trailing, leading, linspace, quadratic, log-snr, karras, after inkdrop fit also
    fitted or fitted-path, or a falling list such as 999,700,400; the sampler's own where not
    given."""
    eta: float | None = None
    """ddim: from 0, deterministic, to 1, ancestral."""
    order: int | None = None
    """dpm-solver++, unipc: 1, 2 or 3."""
    clip: str = "auto"
    """What keeps estimates in range: range, dynamic or none; auto is range for images."""
    seed: int = 0
    """Names the samples: sample i of a seed is always the same."""
    out: str | None = None
    """A new folder for them; one inside RUN/samples where not given."""
    weights: str = "ema"
    """ema (averaged) or raw."""
    checkpoint: str = "newest"
    """newest, best (the lowest held-out loss), or a step that one was kept of."""
    batch_size: int = 256
    """How many are computed at once."""
    precision: str = "float32"
    """float32, or bfloat16 or float16, which are faster on a GPU and round more."""
    compile: bool = False
    """Compile the network first, which takes a minute and pays for thousands of images."""
    trajectory: bool = False
    """Also draw how they came about: trajectory.png, and trajectory.gif or paths.png."""
    device: str = "auto"
    """auto, cpu, cuda or mps."""


@dataclass
class EvaluateOptions:
    """Options of `inkdrop evaluate`."""

    metrics: tuple[str, ...] = ()
    """Which figures: for images frechet_distance, kernel_distance, inception_score, precision,
    recall, density, coverage; all where not given."""
    data: tuple[str, ...] = ()
    """Other real images to hold samples against: a folder, an archive or the name of a known set;
    or where the run's own data lie now."""
    reference: str = "train"
    """Which of the real images: train, as is usual, or held-out."""
    n: Annotated[int | None, tyro.conf.arg(aliases=("-n",))] = None
    """How many samples; what a few minutes are enough for where not given."""
    extractor: str = "auto"
    """What features are: classifier (of the data's own classes), inception, dinov2, dinov2:PATH or
    pixels; auto is the best that is there."""
    sampler: str = "ddim"
    """As for inkdrop sample."""
    steps: int | None = None
    """How many timesteps are visited; the sampler's own number where not given."""
    evaluations: tuple[int, ...] = ()
    """The same in network evaluations; several make a sweep."""
    timesteps: str | None = None
    """Which: as for inkdrop sample."""
    eta: float | None = None
    """ddim: from 0, deterministic, to 1, ancestral."""
    order: int | None = None
    """dpm-solver++, unipc: 1, 2 or 3."""
    clip: str = "auto"
    """What keeps estimates in range: range, dynamic or none; auto is range for images."""
    classes: Annotated[tuple[str, ...], tyro.conf.arg(name="class")] = ()
    """What samples are told, by name or number, in turn; all classes where not given."""
    vector: tuple[float, ...] = ()
    """What they are told, for a run that is told vectors; those of training examples where not
    given."""
    guidance: tuple[float, ...] = ()
    """How far to draw them towards that, as for inkdrop sample; several make a sweep."""
    guidance_interval: tuple[int, int] | None = None
    """The timesteps to guide at, lowest and highest; all where not given."""
    guidance_rescale: float | None = None
    """0 … 1: how much of the contrast that guidance adds to take back."""
    likelihood: bool = False
    """Also bits per dimension, of training and held-out examples side by side."""
    memorisation: bool = True
    """Look for copies of training examples among the samples."""
    seed: int = 0
    """Names the samples: sample i of a seed is always the same."""
    weights: str = "ema"
    """ema (averaged) or raw."""
    checkpoint: str = "newest"
    """newest, best (see inkdrop train --evaluate-every), or a step that one was kept of."""
    batch_size: int = 256
    """How many are computed at once."""
    device: str = "auto"
    """auto, cpu, cuda or mps."""


@dataclass
class ClassifierOptions:
    """Options of `inkdrop classifier train`."""

    data: tuple[str, ...] = ()
    """Where the images lie, if not in the preset's own place or where the run found them."""
    out: str | None = None
    """A folder for the classifier; the one in the cache, where inkdrop evaluate finds it, where
    not given."""
    epochs: int | None = None
    """Passes over the images; what suits their number where not given."""
    seed: int = 0
    """Names every draw."""
    refresh: bool = False
    """Train again, and replace the one that is kept."""
    device: str = "auto"
    """auto, cpu, cuda or mps."""


@dataclass
class EditOptions:
    """Options of `inkdrop edit`."""

    n: Annotated[int | None, tyro.conf.arg(aliases=("-n",))] = None
    """How many results for each image, 4 where not given; of interpolate how many images, 9."""
    strength: float | None = None
    """vary: how much may change, from 0 to 1; 0.6 where not given."""
    mask: str | None = None
    """inpaint: an image of the run's size, white where to paint and black where to keep."""
    box: tuple[int, int, int, int] | None = None
    """inpaint: where to paint instead, LEFT TOP RIGHT BOTTOM in pixels, without RIGHT and BOTTOM
    themselves."""
    seeds: tuple[int, int] | None = None
    """interpolate: between the samples of two seeds, instead of two images."""
    factor: int | None = None
    """upscale: how many times smaller what is given is; 2 where not given."""
    resamplings: int | None = None
    """inpaint, colourise, upscale: how often each step is taken, so that what is made goes with
    what is known; 10 where not given, 1 is quick."""
    jump: int | None = None
    """How many steps are taken again together; 1 where not given."""
    classes: Annotated[tuple[str, ...], tyro.conf.arg(name="class")] = ()
    """What the images are, by name or number, in turn; none to tell none. Held-out images' own
    where not given."""
    vector: tuple[float, ...] = ()
    """What they are told, for a run that is told vectors; as for --class where not given."""
    guidance: float | None = None
    """How far to draw results towards that, as for inkdrop sample."""
    guidance_interval: tuple[int, int] | None = None
    """The timesteps to guide at, lowest and highest; all where not given."""
    guidance_rescale: float | None = None
    """0 … 1: how much of the contrast that guidance adds to take back."""
    classifier_guidance: float | None = None
    """How far a classifier draws them towards the class, as for inkdrop sample."""
    classifier: str | None = None
    """Its folder; the one trained on the run's data where not given."""
    fit: str | None = None
    """How images of another size are made to fit: crop, pad or stretch; as the run's own were where
    not given."""
    sampler: str | None = None
    """As for inkdrop sample; ancestral for inpaint, colourise and upscale, else ddim, where not
    given."""
    steps: int | None = None
    """How many timesteps are visited; 50, or the sampler's own number, where not given."""
    evaluations: int | None = None
    """The same in network evaluations, before any step is taken again."""
    timesteps: str | None = None
    """Which: as for inkdrop sample."""
    eta: float | None = None
    """ddim: from 0, deterministic, to 1, ancestral."""
    order: int | None = None
    """dpm-solver++, unipc: 1, 2 or 3."""
    clip: str | None = None
    """What keeps estimates in range: range, dynamic or none; range where not given."""
    seed: int = 0
    """Names the results."""
    out: str | None = None
    """A new folder for them; one inside RUN/edits where not given."""
    data: tuple[str, ...] = ()
    """For held-out images: where the run's data lies, if not where training found it."""
    weights: str = "ema"
    """ema (averaged) or raw."""
    checkpoint: str = "newest"
    """newest, best (the lowest held-out loss), or a step that one was kept of."""
    batch_size: int = 256
    """How many are computed at once."""
    device: str = "auto"
    """auto, cpu, cuda or mps."""


@dataclass
class CompareOptions:
    """Options of `inkdrop compare`."""

    out: str | None = None
    """The folder for the tables and pictures; comparison, beside the runs, where not given."""
    n: Annotated[int | None, tyro.conf.arg(aliases=("-n",))] = None
    """How many examples each run generates; 5,000 points or 500 images where not given."""
    sampler: str = "ddim"
    """The sampler of all runs, as for inkdrop sample."""
    steps: int | None = None
    """Network evaluations; the sampler's own number where not given."""
    seed: int = 0
    """Names the examples."""
    device: str = "auto"
    """auto, cpu, cuda or mps."""


@dataclass
class LikelihoodOptions:
    """Options of `inkdrop likelihood`."""

    split: str = "held-out"
    """held-out (the test set, or what training set aside) or train."""
    data: tuple[str, ...] = ()
    """Where the data lies, if not where training found it."""
    n: Annotated[int | None, tyro.conf.arg(aliases=("-n",))] = None
    """The first n examples; all where not given."""
    terms: int | None = None
    """KL terms asked of each example, an unbiased estimate; as many as 250,000 network inputs allow
    where not given."""
    steps: int | None = None
    """Steps of the reverse process; every timestep where not given."""
    timesteps: str | None = None
    """Which, when steps are given: as for inkdrop sample."""
    variance: str | None = None
    """Of the reverse steps: posterior, beta or learned; the configuration's where not given."""
    clip: str = "auto"
    """What keeps estimates in range: range, dynamic or none; auto is range for images."""
    weights: str = "ema"
    """ema (averaged) or raw."""
    checkpoint: str = "newest"
    """newest, best (the lowest held-out loss), or a step that one was kept of."""
    seed: int = 0
    """Names the noise."""
    batch_size: int = 256
    """How many network inputs are computed at once."""
    ode: bool = False
    """Also the probability-flow ODE's likelihood (the extra ode)."""
    divergence: str = "hutchinson"
    """Of the ODE: hutchinson or exact."""
    probes: int = 1
    """Hutchinson's random directions for each example."""
    device: str = "auto"
    """auto, cpu, cuda or mps."""


@dataclass
class FitOptions:
    """Options of `inkdrop fit`."""

    split: str = "train"
    """train or held-out."""
    data: tuple[str, ...] = ()
    """Where the data lies, if not where training found it."""
    n: Annotated[int, tyro.conf.arg(aliases=("-n",))] = 256
    """How many examples to measure."""
    weights: str = "ema"
    """ema (averaged) or raw."""
    checkpoint: str = "newest"
    """newest, best (the lowest held-out loss), or a step that one was kept of."""
    seed: int = 0
    """Names the noise."""
    batch_size: int = 256
    """How many network inputs are computed at once."""
    device: str = "auto"
    """auto, cpu, cuda or mps."""


@dataclass
class DoctorOptions:
    """Options of `inkdrop doctor`."""

    json: bool = False
    """Print what was found as JSON, and nothing else."""
    data: tuple[str, ...] = ()
    """RUN: where its data lies, if not where training found it."""
    trial: bool = True
    """Time a few steps of training."""
    device: str = "auto"
    """auto, cpu, cuda or mps."""


@dataclass
class NoOptions:
    """A command without options."""


def parse(
    kind: type[Options], arguments: list[str], program: str, description: str, default: Options
) -> Options:
    """The options that `arguments` give, on top of `default`; `--help` prints them and exits."""
    markers = (tyro.conf.AvoidSubcommands, tyro.conf.HelptextFromCommentsOff)
    complaint = io.StringIO()
    try:
        with contextlib.redirect_stderr(complaint):
            return tyro.cli(
                kind,
                prog=program,
                description=description,
                args=arguments,
                default=default,
                config=markers,
            )
    except SystemExit as leaving:
        if not leaving.code:
            raise
        raise _one_line(complaint.getvalue(), program) from None


def _one_line(box: str, program: str) -> InkdropError:
    """What tyro drew in a box, or without UTF-8 under a title, as one sentence."""
    sections: list[list[str]] = [[]]
    for line in (line.strip(" │") for line in box.splitlines()):
        if line.startswith(("╭", "╰")) or (line and set(line) <= {"─", "-"}):
            sections.append([])
        elif line:
            sections[-1].append(line)
    said = " ".join(sections[1]) if len(sections) > 1 else ""
    said = re.sub(r"^Error parsing (config\S*: )?", "", said)
    if not_a_number := _not_a_number(said, " ".join(chain(*sections[2:]))):
        return InkdropError(f"{not_a_number} ({program} --help)")
    missing = re.match(r"Missing value for argument '(.*?)'. Expected (\d+)", said)
    if missing:
        many = "a value" if missing[2] == "1" else f"{missing[2]} values"
        return InkdropError(f"{missing[1]} needs {many} ({program} --help)")
    said = re.sub(r"\. Expected one of \((.*)\)\.", _in_order, said)
    stray = re.match(r"Unrecognized options: ([^-]\S*?)(,|$)", said)
    if stray:
        return InkdropError(
            f"unexpected {stray[1]!r}: only options follow options ({program} --help)"
        )
    unknown = re.match(r"Unrecognized options: (-\S*?)(,|$)", said)
    if unknown:
        nearest = re.search(r"Perhaps you meant: (--[\w.-]+)", " ".join(chain(*sections[2:])))
        hint = f": did you mean {nearest[1]}?" if nearest else ";"
        return InkdropError(f"unknown option {unknown[1]}{hint} {program} --help lists them all")
    return InkdropError(f"{said or 'the options cannot be read'} ({program} --help)")


def _not_a_number(said: str, help_text: str) -> str | None:
    """What an option takes and was given, where it takes numbers and was given something else."""
    option = re.match(r"(-\S+): [^;]*?(\[.*?\]|'.*')", said)
    shown = re.search(r"^Argument helptext: -\S+ ((?:[{[|\] }.]|None|INT|FLOAT)+)", help_text)
    kinds = re.findall("INT|FLOAT", shown[1]) if shown else []
    if option is None or shown is None or not kinds:
        return None
    kind = "whole number" if kinds[0] == "INT" else "number"
    many = f"{kind}s" if "..." in shown[1] else f"{len(kinds)} {kind}s"
    got = " ".join(re.findall("'(.*?)'", option[2]))
    name = option[1].split("/")[0]
    return f"{name} takes {f'a {kind}' if len(kinds) == 1 else many}, got {got}"


def _in_order(choices: re.Match[str]) -> str:
    """tyro's choices, which it lists in another order every time."""
    named = sorted(choice.strip(" '") for choice in choices[1].split(","))
    return f"; choose from {', '.join(name for name in named if name != 'None')}"
