"""What samples are told, and how far they are drawn towards it."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from .acceleration import accelerated
from .classifying import TrainedClassifier, find_classifier, load_classifier
from .diffusion.denoiser import Denoiser
from .diffusion.guidance import Guidance, classifier_guided, guided, through_x_start
from .diffusion.samplers import initial_noise
from .errors import InkdropError
from .run import Run, Told

_ROWS = 8  # of a grid with a column for each class
_COLUMNS = 16  # most classes that have one
_NUMBERS_NAMED = 4  # of a vector, in the name of a folder


@dataclass(frozen=True)
class Steering:
    """What the samples of a run are told and how they are guided: checked, and ready to be used.

    Attributes:
        denoiser: the run's, guided where that is asked for.
        facts: what was asked for, for a protocol.
        words: the same for the name of a folder; none where nothing was.
    """

    run: Run
    denoiser: Denoiser
    told: Told | None
    classifier: TrainedClassifier | None
    facts: dict[str, Any]
    words: tuple[str, ...]

    def condition(self, first: int, count: int) -> Tensor | None:
        """What images first … first + count - 1 are told."""
        if self.told is None and (self.classifier is None or self.run.config.told):
            return self.run.conditions(first, count)
        return (self.told or Told()).of(self.run.config, first, count, self._classes)

    def noise(self, first: int, count: int, seed: int) -> Tensor | None:
        """What they start from, (count, …), where that is not each its own noise.

        With class all the K images of a row start from the noise of one: row r from that of image
        r.
        """
        if not self.all_of_each_row:
            return None
        rows = torch.arange(first, first + count) // len(self.turns)
        low = int(rows[0])
        noise = initial_noise(int(rows[-1]) - low + 1, self.run.shape, seed, low)
        return noise[rows - low]

    @property
    def all_of_each_row(self) -> bool:
        """Whether every class is made from every noise."""
        return self.told is not None and self.told.classes == "all"

    @property
    def turns(self) -> tuple[int, ...]:
        """The classes that images are told in turn."""
        if self.run.config.told == "vector" or not (self.told or self._classes):
            return ()
        return (self.told or Told()).turns(self.run.config, self._classes)

    @property
    def usual_count(self) -> int:
        """How many samples where it is not said: 64, or eight of each class."""
        return _ROWS * len(self.turns) if self.all_of_each_row else _ROWS * _ROWS

    @property
    def columns(self) -> int | None:
        """Columns of a grid, a class to each where there are not too many; None for any."""
        return len(self.turns) if 1 < len(self.turns) <= _COLUMNS else None

    @property
    def _classes(self) -> int | None:
        own = self.run.config.network.classes if self.run.config.network else None
        return own or (None if self.classifier is None else self.classifier.classes)


def steering(
    run: Run,
    weights: str = "ema",
    *,
    classes: Sequence[str | int] = (),
    vector: Sequence[float] = (),
    guidance: float | None = None,
    guidance_interval: Sequence[int] | None = None,
    guidance_rescale: float | None = None,
    classifier_guidance: float | None = None,
    classifier: str | Path | None = None,
    precision: str = "float32",
    compile: bool = False,
) -> Steering:
    """Check what is asked for, and make the denoiser that does it.

    Args:
        classes: names or numbers, taken in turn; "all" for every class from each noise, "none" to
            tell none. By default all take turns.
        vector: for a run that is told vectors; by default those it keeps of its training examples.
        guidance: the scale of classifier-free guidance, see `diffusion.guidance.Guidance`.
        guidance_interval: the timesteps to guide at, low and high.
        guidance_rescale: how much of the standard deviation to put back, 0 … 1.
        classifier_guidance: the scale of a classifier's gradient.
        classifier: the classifier's folder; by default the one that was trained on the run's data.
        precision, compile: how the network is computed, see `acceleration.accelerated`.

    Raises:
        InkdropError: for a mistake in any of it.
    """
    told = run.told(classes, vector)
    interval = None if guidance_interval is None else tuple(guidance_interval)
    _check(told, guidance, interval, guidance_rescale, classifier_guidance, classifier)
    chosen = None
    if classifier_guidance is not None:
        chosen = _classifier(run, classifier)
        if told is None and run.config.told == "vector":
            raise InkdropError("a classifier guides towards classes, but this run is told vectors")
    if told is not None:
        told.check(run.config, None if chosen is None else chosen.classes)
    if guidance is not None and run.config.told is None:
        raise InkdropError(
            "this run is told no class or vector, so that there is nothing to guide it towards: "
            "train one with --conditional, or guide it with --classifier-guidance"
        )
    made = None
    if guidance is not None:
        made = Guidance(guidance, interval, guidance_rescale or 0.0)  # type: ignore[arg-type]
    denoiser = accelerated(run.load_denoiser(weights), precision, compile)
    if made is not None:
        denoiser = guided(denoiser, made)
    elif classifier_guidance is not None:
        assert chosen is not None
        denoiser = _towards(run, denoiser, chosen, classifier_guidance, interval)
    facts = {
        "classes": told.classes if told else None,
        "vector": told.vector if told else None,
        "guidance": guidance,
        "guidance_interval": interval,
        "guidance_rescale": guidance_rescale,
        "classifier_guidance": classifier_guidance,
        "classifier": None if chosen is None else chosen.fingerprint,
    }
    found = Steering(run, denoiser, told, chosen, facts, tuple(_words(facts)))
    if guidance is not None:
        denoiser.check(found.condition(0, 1))  # type: ignore[attr-defined]
    return found


def _check(
    told: Told | None,
    guidance: float | None,
    interval: tuple[int, ...] | None,
    rescale: float | None,
    classifier_guidance: float | None,
    classifier: str | Path | None,
) -> None:
    if guidance is not None and classifier_guidance is not None:
        raise InkdropError("give --guidance or --classifier-guidance, not both")
    if guidance is None and rescale is not None:
        raise InkdropError("--guidance-rescale has nothing to rescale: give --guidance too")
    if guidance is None and classifier_guidance is None and interval is not None:
        raise InkdropError(
            "--guidance-interval says where to guide, but not how far: give --guidance too"
        )
    if classifier is not None and classifier_guidance is None:
        raise InkdropError("--classifier is not used: give --classifier-guidance too")
    guides = guidance is not None or classifier_guidance is not None
    if guides and told is not None and told.classes == "none":
        raise InkdropError("--class none leaves nothing to guide towards: leave the guidance out")


def _classifier(run: Run, path: str | Path | None) -> TrainedClassifier:
    """The classifier at a path, or of the run's data, which must be of images like the run's."""
    if len(run.shape) != 3:
        raise InkdropError(
            f"classifiers are of images (C, H, W), but this run's examples have the shape "
            f"{run.shape}"
        )
    found = find_classifier(run.fingerprint) if path is None else Path(path)
    if found is None:
        raise InkdropError(
            f"there is no classifier of the images that {run.path} was trained on: "
            f"`inkdrop classifier train {run.path}` trains one, or give --classifier"
        )
    classifier = load_classifier(found, run.device)
    if classifier.shape != run.shape:
        raise InkdropError(
            f"{found} is a classifier of images {classifier.shape}, but {run.path} makes "
            f"{run.shape}"
        )
    own = run.config.network.classes if run.config.network else None
    if own is not None and own > classifier.classes:
        raise InkdropError(
            f"{found} knows {classifier.classes} classes, but {run.path} has {own}: they must be "
            "of the same data"
        )
    return classifier


def _towards(
    run: Run,
    denoiser: Denoiser,
    classifier: TrainedClassifier,
    scale: float,
    interval: tuple[int, ...] | None,
) -> Denoiser:
    """A denoiser drawn by a classifier of the images it has in mind.

    A run that is told classes is told them too; its classifier judges what it makes untold.
    """
    if run.config.told is not None and not run.config.label_dropout:
        raise InkdropError(
            "a classifier judges what a network makes untold, but this run was trained without "
            "label dropout: train one with --label-dropout 0.1, or without --conditional"
        )
    return classifier_guided(
        denoiser,
        through_x_start(denoiser, classifier.network),
        scale,
        tell=run.config.told is not None,
        interval=interval,  # type: ignore[arg-type]
    )


def _words(facts: dict[str, Any]) -> list[str]:
    words = []
    if isinstance(facts["classes"], str):
        words.append(f"class-{facts['classes']}")
    elif facts["classes"] is not None:
        words.append("class" + ",".join(map(str, facts["classes"])))
    if facts["vector"] is not None:
        numbers = ",".join(f"{value:g}" for value in facts["vector"])
        if len(facts["vector"]) > _NUMBERS_NAMED:
            numbers = "-" + hashlib.sha256(numbers.encode()).hexdigest()[:12]
        words.append(f"vector{numbers}")
    if facts["guidance"] is not None:
        words.append(f"guidance{facts['guidance']:g}")
    if facts["classifier_guidance"] is not None:
        words.append(f"classifier{facts['classifier_guidance']:g}-{facts['classifier'][:8]}")
    if facts["guidance_interval"] is not None:
        words.append("from{}to{}".format(*facts["guidance_interval"]))
    if facts["guidance_rescale"] is not None:
        words.append(f"rescale{facts['guidance_rescale']:g}")
    return words
