"""What samples are measured by: features of images and their metrics, or points as they are."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from importlib.metadata import version
from importlib.util import find_spec
from typing import Any

import numpy as np
import torch
from rich.console import Console
from torch import Tensor
from torch.nn.functional import adaptive_avg_pool2d

from .classifying import find_classifier, load_classifier, train_classifier
from .console import say
from .data.examples import Examples
from .data.points import MIXTURES
from .errors import InkdropError, unknown_name
from .evaluation import extractors, figures
from .evaluation.extractors import Extractor
from .evaluation.features import FeatureSet
from .evaluation.figures import HALVES, HELD_OUT, Floors, MetricSettings
from .evaluation.measures import Measure, Modes, point_measures
from .evaluation.record import METRICS, POINT_METRICS, Figure
from .extracting import features_of
from .processes import Processes
from .randomness import generator
from .real_examples import RealExamples
from .run import Run
from .sharing import unique

EXTRACTORS = ("auto", "classifier", "inception", "dinov2", "pixels")
PIXELS, CLASSIFIER, INCEPTION, DINOV2 = "pixels", "classifier", "inception", "dinov2"
_FEW, _MANY = 2_000, 10_000  # samples where not given: for few features and for many
_MANY_FEATURES = 512
_POINTS = 5_000
_THUMBNAIL = 8  # places across and down
_MODE_METRICS = ("mode_weight_error", "far_from_modes")
_PACKAGES = {INCEPTION: "torch-fidelity", DINOV2: "transformers"}
_OTHER_WAY = {HALVES: "held-out halves", HELD_OUT: "held-out against train"}


@dataclass(frozen=True)
class Measuring:
    """What samples are measured by.

    Attributes:
        names: of the figures.
        extractor: of images; None for points.
        described: name, fingerprint and more of what makes features, for the protocol.
        settings: the constants of the metrics, for the protocol.
        usual: how many samples are taken where nobody says.
        own_classes: whether its logits are of the data's own classes.
        modes: of points, where they are known.
    """

    names: list[str]
    extractor: Extractor | None
    described: dict[str, Any]
    settings: dict[str, Any]
    usual: int
    own_classes: bool = False
    modes: Modes | None = None

    @property
    def width(self) -> int:
        """How many numbers an example becomes."""
        return int(self.described["features"])

    @property
    def classes(self) -> int | None:
        """How many logits there are; None for none."""
        return None if self.extractor is None else self.extractor.classes

    def of_samples(self, x: Tensor) -> FeatureSet:
        """The features of samples (B, …): images uint8, or points."""
        if self.extractor is not None:
            return self.extractor(x)
        return FeatureSet(x.cpu().numpy().astype(np.float32))

    def of_real(
        self, examples: Examples, processes: Processes, console: Console | None, what: str
    ) -> FeatureSet:
        """The features of real examples, from the cache where they are there."""
        if self.extractor is None:
            return FeatureSet(examples.values.numpy())
        return features_of(self.extractor, examples, processes, console, what=what)

    def figures(self, real: FeatureSet, samples: FeatureSet) -> dict[str, Figure]:
        """Figures of samples against real examples."""
        if self.extractor is not None:
            return figures.measure(self.names, real, samples)
        return {name: Figure(value) for name, value in self._points(real, samples).items()}

    def floors(
        self, real: FeatureSet, other: FeatureSet | None, samples: int, split: str
    ) -> Floors:
        """What real examples get in place of so many samples.

        Args:
            other: the other split, held against the first.
            split: which one the first is.
        """
        if self.extractor is not None:
            found = figures.floors(self.names, real, other, samples)
        else:
            found = self._floors_of_points(real, other, samples)
        if split == "train":
            return found
        renamed = _OTHER_WAY if split == "held-out" else {HALVES: "halves of the reference"}
        return Floors(
            {
                name: {renamed.get(pair, pair): value for pair, value in values.items()}
                for name, values in found.values.items()
            },
            {renamed.get(pair, pair): count for pair, count in found.images.items()},
            found.wanted,
        )

    def check(self, samples: int, real: int, asked: Sequence[str]) -> None:
        """Refuse so few examples that a figure which was asked for cannot be had."""
        for name in asked:
            why = self._refusal(name, samples, real)
            if why:
                raise InkdropError(
                    f"{name} cannot be had: {why}; change -n, or leave it out of --metrics"
                )

    def _refusal(self, name: str, samples: int, real: int) -> str:
        if self.extractor is None:
            return ""
        fewest = min(samples, real)
        if name == "frechet_distance":
            return figures.frechet_refusal(real, samples, self.width).removeprefix("refused: ")
        least = {
            "kernel_distance": 3,
            "inception_score": 2 * self.settings["splits"],
            **dict.fromkeys(("precision", "recall"), self.settings["neighbours"] + 1),
            **dict.fromkeys(("density", "coverage"), self.settings["density_neighbours"] + 1),
        }
        count = samples if name == "inception_score" else fewest
        if count >= least[name]:
            return ""
        return f"it needs at least {least[name]} images, got {count}"

    def _points(self, real: FeatureSet, samples: FeatureSet) -> dict[str, float]:
        """Of as many real points as there are samples: these take the square of their number."""
        count = min(len(real), max(len(samples), _POINTS))
        chosen = np.sort(generator(0, "real points").permutation(len(real))[:count])
        x, y = real.values[chosen].astype(np.float64), samples.values.astype(np.float64)
        return {
            name: measure.of(x, y)
            for name, measure in _measures(x, self.modes).items()
            if name in self.names
        }

    def _floors_of_points(self, real: FeatureSet, other: FeatureSet | None, samples: int) -> Floors:
        order = generator(0, "floor halves").permutation(len(real))
        half = len(real) // 2
        pairs = {HALVES: (real.take(order[half:]), real.take(order[: min(half, samples)]))}
        if other is not None:
            pairs[HELD_OUT] = (real, other.take(slice(samples)))
        values: dict[str, dict[str, float]] = {name: {} for name in self.names}
        for pair, (x, y) in pairs.items():
            for name, value in self._points(x, y).items():
                values[name][pair] = value
        return Floors(values, {pair: len(y) for pair, (_, y) in pairs.items()}, samples)


def check_extractor(run: Run, name: str) -> None:
    """Refuse an extractor that there is not, or that is not for this run's examples."""
    kind = name.partition(":")[0]
    if kind not in EXTRACTORS or (":" in name and (kind != DINOV2 or name == f"{DINOV2}:")):
        raise unknown_name("extractor", name, (*EXTRACTORS, f"{DINOV2}:PATH"))
    if len(run.shape) != 3 and name != "auto":
        raise InkdropError(
            f"the extractor {name} is for images, and this run makes points, which are measured as "
            "they are: leave it out"
        )


def check_metrics(run: Run, names: Sequence[str], extractor: str) -> None:
    """Refuse metrics that this run's samples cannot be measured by, as far as that is known."""
    if len(run.shape) == 3:
        for name in names:
            if name in POINT_METRICS:
                raise InkdropError(
                    f"{name} is for points, and this run makes images: choose from "
                    f"{', '.join(METRICS)}"
                )
        kind = extractor.partition(":")[0]
        figures.check_names(names, logits=kind in ("auto", CLASSIFIER, INCEPTION))
        return
    known = _names_for_points(_modes(run))
    for name in names:
        if name in METRICS:
            raise InkdropError(
                f"{name} is for images, and this run makes points: choose from {', '.join(known)}"
            )
        if name not in known:
            raise unknown_name("metric", name, known)


def measuring(
    run: Run,
    extractor: str,
    names: Sequence[str],
    real: RealExamples,
    processes: Processes,
    device: str,
    console: Console | None = None,
) -> Measuring:
    """What a run's samples are measured by; a classifier of its data is trained if need be.

    Raises:
        InkdropError: if the extractor cannot be had, or a metric not with it.
    """
    if len(run.shape) != 3:
        modes = _modes(run)
        described = {
            "name": "coordinates",
            "fingerprint": "coordinates",
            "preprocessing": "none",
            "features": run.shape[0],
            "classes": None,
        }
        chosen = list(names) or _names_for_points(modes)
        return Measuring(chosen, None, described, {"points": _POINTS}, _POINTS, modes=modes)
    made, more = _extractor(run, extractor, real, processes, device, console)
    made.check((run.shape[0], run.shape[1], run.shape[2]))
    figures.check_names(names, logits=made.classes is not None)
    return Measuring(
        list(names) or figures.default_names(made.classes is not None),
        made,
        {**made.described(), **more},
        MetricSettings().described(),
        _MANY if made.features >= _MANY_FEATURES else _FEW,
        own_classes=bool(more),
    )


def versions(extractor: str) -> dict[str, str]:
    """Of what figures come from."""
    from . import __version__

    packages = ["torch", "torchmetrics", "scikit-learn", "scipy", "numpy"]
    if extractor in _PACKAGES:
        packages.append(_PACKAGES[extractor])
    return {"inkdrop": __version__, **{package: version(package) for package in packages}}


def kept_extractor(data: str, device: str) -> Extractor | None:
    """The classifier that is kept of the images of this fingerprint, or None."""
    folder = find_classifier(data)
    return None if folder is None else _of_classifier(load_classifier(folder, device))


def cheap_extractor(shape: tuple[int, ...]) -> Extractor:
    """Pixels; of large images those of a thumbnail, of no more than 8×8 places."""
    places = min(shape[1], _THUMBNAIL), min(shape[2], _THUMBNAIL)
    if places == shape[1:]:
        return _pixels(shape)

    def of(images: Tensor) -> tuple[Tensor, None]:
        return adaptive_avg_pool2d(images.float(), places).flatten(1), None

    words = f"mean pixels, 0 … 255, of {places[0]}×{places[1]} places"
    fingerprint = hashlib.sha256(f"{words} of {shape}".encode()).hexdigest()
    features, device = shape[0] * places[0] * places[1], torch.device("cpu")
    whole = shape[0], shape[1], shape[2]
    return Extractor("thumbnails", fingerprint, words, features, None, device, whole, of)


def _extractor(
    run: Run,
    name: str,
    real: RealExamples,
    processes: Processes,
    device: str,
    console: Console | None,
) -> tuple[Extractor, dict[str, Any]]:
    """The extractor, and of a classifier of the data's own classes what to know of it."""
    kind, _, place = name.partition(":")
    if name == "auto":
        kind = _best(run, real)
    if kind == CLASSIFIER:
        with processes.one_here_first(unique("classifier")):
            made = _classifier(run, real, device, console if processes.first else None)
        return _of_classifier(made), {"accuracy": made.accuracy}
    if kind == INCEPTION:
        return extractors.inception(device=device), {}
    if kind == DINOV2:
        at = {"place": place} if place else {}
        return extractors.dinov2(**at, device=device), {}
    return _pixels(run.shape), {}


def _best(run: Run, real: RealExamples) -> str:
    """What "auto" stands for.

    Inception is made for photographs. Grey images, and colours where it is not installed, are seen
    best by a classifier of their own classes; images without classes as they are.
    """
    if run.shape[0] == 3 and find_spec("torch_fidelity") is not None:
        return INCEPTION
    known = find_classifier(run.fingerprint) is not None
    labelled = real.train is not None and (real.train.classes or 0) > 1
    if known or (labelled and real.held_out is not None):
        return CLASSIFIER
    return PIXELS


def _classifier(run: Run, real: RealExamples, device: str, console: Console | None) -> Any:
    """The classifier of the run's data, trained where none is kept yet."""
    folder = find_classifier(run.fingerprint)
    if folder is not None:
        return load_classifier(folder, device)
    if real.train is None or real.held_out is None:
        lacking = "training" if real.train is None else "held-out"
        raise InkdropError(
            f"a classifier needs the run's own {lacking} images: choose --extractor pixels, "
            "inception or dinov2"
        )
    if real.train.classes is None:
        raise InkdropError(
            f"{real.train.name} has no classes for a classifier: choose --extractor pixels, "
            "inception or dinov2"
        )
    say(console, "no classifier of these data is kept yet: one is trained, for all runs on them")
    return train_classifier(
        real.train,
        real.held_out,
        horizontal_flip=run.config.data.horizontal_flip,
        device=device,
        console=console,
    )


def _of_classifier(made: Any) -> Extractor:
    return extractors.classifier_extractor(
        made.network,
        fingerprint=made.fingerprint,
        features=made.network.head.in_features,
        classes=made.classes,
        shape=made.shape,
        device=next(made.network.parameters()).device,
    )


def _pixels(shape: tuple[int, ...]) -> Extractor:
    return extractors.pixels((shape[0], shape[1], shape[2]))


def _modes(run: Run) -> Modes | None:
    """The mixture that a run's points are drawn from, where it is known."""
    mixture = None if run.config.data.path else MIXTURES.get(run.config.data.source)
    return None if mixture is None else Modes(*mixture)


def _names_for_points(modes: Modes | None) -> list[str]:
    return [name for name in POINT_METRICS if modes is not None or name not in _MODE_METRICS]


def _measures(real: Any, modes: Modes | None) -> dict[str, Measure]:
    return point_measures(real, modes)
