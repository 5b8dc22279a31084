"""What evaluations found, and how: RUN/evaluation.json."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

from filelock import FileLock

from ..checkpoint import FORMAT_VERSION, check_version, replace_synced
from ..errors import InkdropError

EVALUATION_FILE = "evaluation.json"
_LOCK = ".evaluation.lock"  # of who adds to it


@dataclass(frozen=True)
class Metric:
    """A figure's name for people, what it says, and which way it is better."""

    label: str
    meaning: str
    higher_is_better: bool = False


METRICS: dict[str, Metric] = {  # of images; those of points are below
    "frechet_distance": Metric(
        "Fréchet distance", "of the Gaussians fitted to both sets of features, squared"
    ),
    "kernel_distance": Metric(
        "kernel distance",
        "squared maximum mean discrepancy with a cubic kernel, about zero for sets of one kind",
    ),
    "inception_score": Metric(
        "Inception score", "how surely and how evenly the images fall to classes", True
    ),
    "precision": Metric("precision", "the share of samples that lie among real images", True),
    "recall": Metric("recall", "the share of real images that lie among samples", True),
    "density": Metric("density", "how crowded with real images the places of samples are", True),
    "coverage": Metric("coverage", "the share of real images that have a sample near by", True),
}

POINT_METRICS: dict[str, Metric] = {
    "sliced_wasserstein": Metric(
        "sliced Wasserstein distance", "how far points have to be carried, seen from random sides"
    ),
    "energy_distance": Metric(
        "energy distance",
        "how much farther samples are from real points than each from their own kind",
    ),
    "mmd": Metric(
        "squared MMD",
        "how well a Gaussian kernel tells the two apart, about zero for sets of one kind",
    ),
    "mode_weight_error": Metric(
        "error of mode weights",
        "the share of points that would have to change their mode to give each its due",
    ),
    "far_from_modes": Metric("far from every mode", "the share of points near no mode"),
}


@dataclass(frozen=True)
class Protocol:
    """How figures were measured: enough to measure them again, and to know what compares.

    Attributes:
        step: of the checkpoint.
        weights: "ema" or "raw".
        sampler: its name; `timesteps` has one entry for each network evaluation.
        guidance: scale, interval and rescale; None without guidance.
        condition: what the samples were told, in words; "nothing" for an unconditional run.
        samples: how many were generated, the first of `seed`.
        reference: name, split, fingerprint and count of the real images.
        extractor: name, fingerprint, preprocessing and number of features.
        settings: the constants of the metrics.
        versions: of inkdrop and the libraries that the figures come from.
    """

    step: int
    weights: str
    sampler: str
    timesteps: list[int]
    eta: float | None
    order: int | None
    clip: str | None
    guidance: dict[str, Any] | None
    condition: str
    samples: int
    seed: int
    reference: dict[str, Any]
    extractor: dict[str, Any]
    settings: dict[str, Any]
    versions: dict[str, str]

    @property
    def evaluations(self) -> int:
        """Network evaluations of one sample (a guided one asks for two examples each time)."""
        return len(self.timesteps)

    def differences(self, other: Protocol) -> list[str]:
        """The names of the fields in which another protocol differs, versions among them."""
        mine, others = asdict(self), asdict(other)
        return [name for name in mine if mine[name] != others[name]]


@dataclass(frozen=True)
class Figure:
    """A measured number.

    Attributes:
        value: None where it was refused; `note` says why.
        low, high: the bootstrap's interval, of `settings["confidence"]`.
        standard_error: where the metric has one.
        floor: what real images get in place of samples, as many of them, by what was held against
            what: "train halves" and "train against held-out".
        note: what to know before quoting it.
    """

    value: float | None
    low: float | None = None
    high: float | None = None
    standard_error: float | None = None
    floor: dict[str, float] = field(default_factory=dict)
    note: str = ""


@dataclass(frozen=True)
class ClassFigures:
    """One class's figures, as the classifier sees it.

    Attributes:
        share: of the samples that the classifier takes for this class.
        reference_share: of the real images that have this label.
        accuracy: of the samples that were told this class, the share the classifier agrees on;
            None where samples were told nothing.
        frechet_distance: of this class's samples to this class's real images; None where there
            are too few.
    """

    label: int
    share: float
    reference_share: float
    accuracy: float | None = None
    frechet_distance: float | None = None


@dataclass(frozen=True)
class Nearest:
    """Distances to the nearest training example, in one space ("pixels" or "features").

    Attributes:
        samples, held_out: their percentiles 0, 1 … 100, of samples and of held-out examples.
        ratio: the samples' median over the held-out examples'.
        closer: the share of samples nearer to a training example than 99% of held-out ones are;
            0.01 is what an honest model gets.
        p_value: of the rank-sum test that samples are no nearer than held-out examples.
        pairs: the closest: (sample's index of the seed, training example's index, distance).
    """

    space: str
    samples: list[float]
    held_out: list[float]
    ratio: float
    closer: float
    p_value: float
    pairs: list[tuple[int, int, float]]


@dataclass(frozen=True)
class Memorisation:
    """Whether samples are copies of training examples.

    Attributes:
        verdict: "none seen", "suspected" or "copies".
        evidence: one sentence with the numbers that it rests on.
    """

    verdict: str
    evidence: str
    nearest: list[Nearest]


@dataclass(frozen=True)
class Evaluation:
    """One evaluation of a run.

    Attributes:
        figures: by the names in `METRICS`.
        classes: per class, where the extractor is a classifier of the data's own classes.
        accuracy: of samples that were told a class, the share on which the classifier agrees.
        class_coverage: the share of classes that samples give at least a tenth of their due.
        likelihood: {"train": …, "held-out": …}, each with "bits_per_dim", "standard_error" and
            "examples" ("held-out" is missing where nothing was held out), "terms", how many KL
            terms each example was asked, and "verdict", in a sentence; None where it was not
            measured.
        seconds: what each part took.
        command: what was typed, or None.
    """

    protocol: Protocol
    figures: dict[str, Figure]
    classes: list[ClassFigures] | None = None
    accuracy: float | None = None
    class_coverage: float | None = None
    memorisation: Memorisation | None = None
    likelihood: dict[str, Any] | None = None
    seconds: dict[str, float] = field(default_factory=dict)
    command: str | None = None


def read_evaluations(folder: Path) -> list[Evaluation]:
    """The evaluations of a run folder, oldest first; none where there is no file.

    Raises:
        InkdropError: if the file is damaged or of a newer version.
    """
    file = folder / EVALUATION_FILE
    if not file.exists():
        return []
    try:
        content = json.loads(file.read_bytes())
        if not isinstance(content, dict):
            raise TypeError
        check_version(file, content)
        return [_evaluation(each) for each in content["evaluations"]]
    except (ValueError, KeyError, TypeError) as error:
        if isinstance(error, InkdropError):
            raise
        raise InkdropError(
            f"{file} is damaged: it holds no evaluations; delete it and evaluate again"
        ) from None


def check_keeps(folder: Path) -> None:
    """Refuse a run folder that could not keep an evaluation, before any is made.

    Raises:
        InkdropError: as `read_evaluations`, or if nothing can be written there.
    """
    read_evaluations(folder)
    if not os.access(folder, os.W_OK):
        raise InkdropError(
            f"cannot write into {folder}, where the evaluation is to be kept: copy the run to a "
            "folder of your own"
        )


def keep_evaluation(folder: Path, evaluation: Evaluation) -> Path:
    """Add an evaluation to the run's file, or to what the same protocol found there before.

    What was measured again is replaced; what was left out this time stays.
    """
    file = folder / EVALUATION_FILE
    with FileLock(folder / _LOCK):  # others may evaluate the run meanwhile
        kept = []
        for each in read_evaluations(folder):
            if each.protocol.differences(evaluation.protocol):
                kept.append(each)
            else:
                evaluation = _joined(each, evaluation)
        content = {
            "format_version": FORMAT_VERSION,
            "evaluations": [asdict(each) for each in [*kept, evaluation]],
        }
        replace_synced(file, json.dumps(content, indent=1, allow_nan=False).encode())
    return file


def _joined(before: Evaluation, now: Evaluation) -> Evaluation:
    parts = ("classes", "accuracy", "class_coverage", "memorisation", "likelihood", "command")
    known = {name: getattr(now, name) for name in parts}
    return replace(
        before,
        **{name: value for name, value in known.items() if value is not None},
        figures=before.figures | now.figures,
        seconds=before.seconds | now.seconds,
    )


def extractor_in_words(name: str) -> str:
    """What features are made by: "128 features of …"."""
    words = {
        "classifier": "a classifier of these classes",
        "coordinates": "points as they are",
        "pixels": "images as they are",
    }
    return words.get(name, name)


def notes(figures: Mapping[str, Figure]) -> list[tuple[tuple[str, ...], str]]:
    """What to know before quoting figures, each said once: the figures' names, and the note."""
    told: dict[str, list[str]] = {}
    for name, figure in figures.items():
        for part in filter(None, figure.note.split("; ")):
            told.setdefault(part, []).append(name)
    return [(tuple(names), note) for note, names in told.items()]


def families(evaluations: Sequence[Evaluation], varying: str) -> list[list[Evaluation]]:
    """Evaluations that differ in nothing but `varying`, in groups of two and more.

    Args:
        varying: "timesteps" (quality against evaluations), "guidance" or "step".
    """
    groups: list[list[Evaluation]] = []
    for evaluation in evaluations:
        for group in groups:
            if set(group[0].protocol.differences(evaluation.protocol)) <= {varying}:
                group.append(evaluation)
                break
        else:
            groups.append([evaluation])
    return [group for group in groups if len(group) > 1]


def _evaluation(content: Mapping[str, Any]) -> Evaluation:
    memorisation = content["memorisation"]
    classes = content["classes"]
    return Evaluation(
        **{
            **content,
            "protocol": Protocol(**content["protocol"]),
            "figures": {name: Figure(**each) for name, each in content["figures"].items()},
            "classes": None if classes is None else [ClassFigures(**each) for each in classes],
            "memorisation": None
            if memorisation is None
            else Memorisation(
                memorisation["verdict"],
                memorisation["evidence"],
                [
                    Nearest(**{**each, "pairs": [tuple(pair) for pair in each["pairs"]]})
                    for each in memorisation["nearest"]
                ],
            ),
        }
    )
