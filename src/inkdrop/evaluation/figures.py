"""The figures of samples against real images: values, intervals, floors, and what to beware of."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any, Literal

import numpy as np
import torch

from ..errors import InkdropError, unknown_name
from ..randomness import generator, torch_seeded
from .bootstrap import Floats, half_samples, interval, mean_replicas
from .distances import Moments, frechet_bias, frechet_influence, moments
from .features import FeatureSet, Floats32, chunks
from .kernel import kernel_distance
from .neighbours import Neighbourhood
from .record import METRICS, Figure

_BY_NEIGHBOURS = ("precision", "recall", "density", "coverage")
_BETTER_OF_MORE = ("frechet_distance", "inception_score", "coverage")  # whatever the images are
_FEW = 1000  # images below which balls around neighbours are wide and figures flatter
_WELL_ABOVE = 10  # times D images below which a Fréchet distance is mostly of its bias
_NO_WIDGETS = "IProgress not found"  # of tqdm, which torchmetrics imports, in notebooks
HALVES, HELD_OUT = "train halves", "train against held-out"


@dataclass(frozen=True)
class MetricSettings:
    """The constants of the metrics.

    Attributes:
        confidence: of the intervals.
        replicas: of the bootstrap.
        limit: images of a set that the metrics by pairs and neighbours look at, drawn at random.
        neighbours: k of precision and recall.
        density_neighbours: k of density and coverage.
        splits: of the Inception score.
    """

    confidence: float = 0.95
    replicas: int = 400
    limit: int = 10_000
    neighbours: int = 3
    density_neighbours: int = 5
    splits: int = 10

    def __post_init__(self) -> None:
        if not 0 < self.confidence < 1:
            raise InkdropError(f"confidence must be between 0 and 1, got {self.confidence:g}")
        for name in ("replicas", "limit", "neighbours", "density_neighbours", "splits"):
            if getattr(self, name) < 1:
                raise InkdropError(f"{name} must be at least 1, got {getattr(self, name)}")

    def described(self) -> dict[str, Any]:
        """The constants, and in words what they are used for."""
        return {
            **asdict(self),
            "covariance": "unbiased",
            "kernel": "(⟨x, y⟩/D + 1)³, every pair; standard error by a corrected jackknife",
            "intervals": "for the value to expect of as many images: bootstrap of the linear part "
            "(Fréchet distance), random halves (neighbours, Inception score), normal (kernel "
            "distance)",
        }


@dataclass(frozen=True)
class Floors:
    """What real images get in place of samples.

    Attributes:
        values: by metric, then by what was held against what.
        images: by what was held against what: how many stood in for samples.
        wanted: how many samples there are.
    """

    values: dict[str, dict[str, float]]
    images: dict[str, int]
    wanted: int


def default_names(logits: bool) -> list[str]:
    """All metrics that features with or without logits allow."""
    return [name for name in METRICS if logits or name != "inception_score"]


def check_names(names: Sequence[str], *, logits: bool) -> None:
    """Refuse names of no metric, and the Inception score of features without classes.

    Raises:
        InkdropError: if one cannot be measured.
    """
    for name in names:
        if name not in METRICS:
            raise unknown_name("metric", name, METRICS)
    if "inception_score" in names and not logits:
        raise InkdropError(
            "the Inception score needs an extractor with classes, which this one has not: take "
            "the classifier or inception, or leave inception_score out"
        )


def measure(
    names: Sequence[str],
    real: FeatureSet,
    samples: FeatureSet,
    *,
    settings: MetricSettings | None = None,
    seed: int = 0,
) -> dict[str, Figure]:
    """Figures of samples (N, D) against real images (M, D), by the names in `METRICS`.

    None depends on the order of the images, but for the draws of splits and halves, and of
    `settings.limit` images from more.

    Args:
        names: which, in any order.
        seed: names the draws of the bootstrap, the splits and the subsets.

    Raises:
        InkdropError: for an unknown name, sets that do not fit together, or features that are not
            finite.
    """
    return _measure(names, real, samples, settings or MetricSettings(), seed, intervals=True)


def floors(
    names: Sequence[str],
    train: FeatureSet,
    held_out: FeatureSet | None,
    samples: int,
    *,
    settings: MetricSettings | None = None,
    seed: int = 0,
) -> Floors:
    """What as many real images as there are samples get in place of them.

    "train halves": a random half of the training images is the reference, the other half stands
    in for samples; "train against held-out": held-out images do, against all training images.
    A perfect model's samples would get about the latter. At most `samples` images stand in.

    Raises:
        InkdropError: as `measure` does.
    """
    settings = settings or MetricSettings()
    order = generator(seed, "floor halves").permutation(len(train))
    half = len(train) // 2
    pairs = {HALVES: (train.take(np.sort(order[half:])), train.take(_first(order[:half], samples)))}
    if held_out is not None and len(held_out):
        stand_ins = generator(seed, "floor held-out").permutation(len(held_out))
        pairs[HELD_OUT] = (train, held_out.take(_first(stand_ins, samples)))
    values: dict[str, dict[str, float]] = {name: {} for name in names}
    for pair, (real, stand_in) in pairs.items():
        figures = _measure(names, real, stand_in, settings, seed, intervals=False)
        for name, figure in figures.items():
            if figure.value is not None:
                values[name][pair] = figure.value
    return Floors(values, {pair: len(each) for pair, (_, each) in pairs.items()}, samples)


def with_floors(figures: Mapping[str, Figure], floors: Floors) -> dict[str, Figure]:
    """The figures with their floors, and a word where a floor is of fewer images than samples."""
    result = {}
    for name, figure in figures.items():
        found = floors.values.get(name, {})
        notes = [figure.note] if figure.note else []
        notes += [
            f"the floor “{pair}” is of {floors.images[pair]:,} images, not {floors.wanted:,}"
            + (", and would be better of as many" if name in _BETTER_OF_MORE else "")
            for pair in found
            if floors.images[pair] < floors.wanted
        ]
        result[name] = replace(figure, floor=dict(found), note="; ".join(notes))
    return result


def _first(order: Any, count: int) -> Any:
    return np.sort(order[:count])


def _measure(
    names: Sequence[str],
    real: FeatureSet,
    samples: FeatureSet,
    settings: MetricSettings,
    seed: int,
    intervals: bool,
) -> dict[str, Figure]:
    check_names(names, logits=True)
    if real.features != samples.features:
        raise InkdropError(
            f"real images have {real.features} features and samples {samples.features}: both must "
            "come from the same extractor"
        )
    for what, features in (("real images", real), ("samples", samples)):
        if len(features) < 2:
            raise InkdropError(f"figures need at least 2 {what}, got {len(features)}")
        if not all(np.isfinite(chunk).all() for chunk in chunks(features.values)):
            raise InkdropError(f"the features of {what} hold numbers that are not finite")
    work = _Work(real, samples, settings, seed, intervals)
    by_name: dict[str, Callable[[], Figure]] = {
        "frechet_distance": work.frechet,
        "kernel_distance": work.kernel,
        "inception_score": work.inception,
    }
    figures = {name: by_name[name]() for name in by_name if name in names}
    if set(names) & set(_BY_NEIGHBOURS):
        figures |= work.neighbours()
    return {name: figures[name] for name in names}


@dataclass(frozen=True)
class _Work:
    """Two sets, and how each metric becomes a figure of them."""

    real: FeatureSet
    samples: FeatureSet
    settings: MetricSettings
    seed: int
    intervals: bool

    def frechet(self) -> Figure:
        refusal = frechet_refusal(len(self.real), len(self.samples), self.real.features)
        if refusal:
            return Figure(None, note=refusal)
        value = max(0.0, _torchmetrics_frechet(self.real, self.samples))
        if not self.intervals:
            return Figure(value)
        real, samples = moments(self.real.values), moments(self.samples.values)
        by_mean, by_samples, by_real = frechet_influence(samples, real)
        replicas = np.full(self.settings.replicas, value)
        for x, of, slope, curvature, purpose in (
            (self.samples, samples, by_mean, by_samples, "bootstrap samples"),
            (self.real, real, -by_mean, by_real, "bootstrap real images"),
        ):
            added = _influence(x.values, of, slope, curvature)
            replicas += mean_replicas(added, self.settings.replicas, self.seed, purpose)
        low, high = interval(value, replicas, self.settings.confidence, lowest=0)
        return Figure(value, low, high, note=frechet_caution(real, len(self.samples)))

    def kernel(self) -> Figure:
        real, samples = self._limited()
        if min(len(real), len(samples)) < 3:
            return Figure(None, note="a kernel distance needs at least 3 images of each kind")
        value, error = kernel_distance(samples.values, real.values)
        if not self.intervals:
            return Figure(value)
        width = error * _normal_quantile(self.settings.confidence)
        return Figure(value, value - width, value + width, error, note=self._limits())

    def inception(self) -> Figure:
        logits, classes = self.samples.logits, self.samples.classes
        if logits is None or classes is None:
            return Figure(None, note="the extractor has no classes, which an Inception score needs")
        splits = self.settings.splits
        if len(logits) < 2 * splits:
            return Figure(
                None, note=f"{splits} splits need at least {2 * splits} samples, got {len(logits)}"
            )
        with torch_seeded(self.seed, "Inception score"):
            value, spread = _torchmetrics_inception(logits, splits)
        # The mean over n samples in place of their expectation costs (K-1)/2n nats at most.
        shortfall = (classes - 1) / (2 * (len(logits) // splits))
        note = ""
        if shortfall > 0.01:
            note = (
                f"up to {min(1, shortfall):.0%} low: splits of {len(logits) // splits:,} samples "
                f"are few for {classes:,} classes"
            )
        if not self.intervals:
            return Figure(value, note=note)
        gain = _information(logits)
        masks = half_samples((len(logits),), self.settings.replicas, self.seed, "halves of logits")
        replicas = np.array([gain(mask) for (mask,) in masks])
        low, high = interval(value, replicas, self.settings.confidence, 1, classes)
        error = spread / splits**0.5 if splits > 1 else None
        return Figure(value, low, high, error, note=note)

    def neighbours(self) -> dict[str, Figure]:
        real, samples = self._limited()
        k, density_k = self.settings.neighbours, self.settings.density_neighbours
        fewest = min(len(real), len(samples))
        if fewest <= max(k, density_k):
            note = f"{fewest} images have no {max(k, density_k)} nearest others"
            return {name: Figure(None, note=note) for name in _BY_NEIGHBOURS}
        found = Neighbourhood.of(real.values, samples.values)
        values = found.measure(k, density_k)
        notes = [self._limits()] if self._limits() else []
        if fewest < _FEW:
            notes.append(
                f"of {fewest:,} images balls are wide: compare it with figures of as many alone"
            )
        note = "; ".join(notes)
        if not self.intervals or fewest < 4 * max(k, density_k):
            return {name: Figure(value, note=note) for name, value in values.items()}
        replicas = [
            found.measure(k, density_k, *masks)
            for masks in half_samples(
                (len(real), len(samples)), self.settings.replicas, self.seed, "halves of features"
            )
        ]
        figures = {}
        for name, value in values.items():
            highest = np.inf if name == "density" else 1.0
            column = np.array([replica[name] for replica in replicas])
            low, high = interval(value, column, self.settings.confidence, 0, highest)
            figures[name] = Figure(value, low, high, note=note)
        return figures

    def _limited(self) -> tuple[FeatureSet, FeatureSet]:
        return (
            _some(self.real, self.settings.limit, self.seed, "limit of real images"),
            _some(self.samples, self.settings.limit, self.seed, "limit of samples"),
        )

    def _limits(self) -> str:
        limit = self.settings.limit
        cut = [
            f"{limit:,} of {len(features):,} {what}"
            for what, features in (("real images", self.real), ("samples", self.samples))
            if len(features) > limit
        ]
        return f"from {' and '.join(cut)}" if cut else ""


def frechet_refusal(real: int, samples: int, features: int) -> str:
    """Why there is no Fréchet distance of so few images; empty where there is one.

    The covariance of N ≤ D examples has no spread in some directions, whatever the images are.
    """
    fewest, what = min((samples, "samples"), (real, "real images"))
    if fewest > features:
        return ""
    return (
        f"refused: {fewest:,} {what} cannot show how {features:,} features vary together; take "
        f"more than {features:,}, better {_WELL_ABOVE * features:,}, or the kernel distance"
    )


def frechet_caution(real: Moments, samples: int) -> str:
    """What to know of a Fréchet distance of few images; empty from 10 for each feature."""
    features = len(real.mean)
    fewest, what = min((samples, "samples"), (real.count, "real images"))
    if fewest >= _WELL_ABOVE * features:
        return ""
    bias = frechet_bias(real, real.count, samples)
    return (
        f"biased: {fewest:,} {what} are few for {features:,} features, and as many new real "
        f"images would get about {bias:.3g}"
    )


def _some(features: FeatureSet, limit: int, seed: int, purpose: str) -> FeatureSet:
    """At most `limit` of a set, at random: sets can be sorted by class."""
    if len(features) <= limit:
        return features
    return features.take(_first(generator(seed, purpose).permutation(len(features)), limit))


def _influence(x: Floats32, of: Moments, slope: Floats, curvature: Floats) -> Floats:
    """What each of x (N, D) adds to a distance by the mean and by the covariance, (N,)."""
    parts = []
    for chunk in chunks(x):
        centred = chunk - of.mean
        parts.append(centred @ slope + ((centred @ curvature) * centred).sum(1))
    return np.concatenate(parts)


class _PassThrough(torch.nn.Module):
    """In place of a network: what comes in are features already."""

    def __init__(self, features: int) -> None:
        super().__init__()
        self.num_features = features

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x


def _torchmetrics_frechet(real: FeatureSet, samples: FeatureSet) -> float:
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", _NO_WIDGETS)
        from torchmetrics.image.fid import FrechetInceptionDistance

    # Whoever calls has gathered the features: other processes are not to be waited for.
    network = _PassThrough(real.features)
    metric = FrechetInceptionDistance(network, sync_on_compute=False).set_dtype(torch.float64)
    # Moved so that the mean is near zero: it sums products, of which a far mean leaves few digits.
    middle = np.asarray(real.values[:1000], dtype=np.float64).mean(0)
    sides: tuple[tuple[FeatureSet, Literal[True, False]], ...] = ((real, True), (samples, False))
    for features, is_real in sides:
        for chunk in chunks(features.values):
            metric.update(torch.from_numpy(chunk - middle), real=is_real)
    return float(metric.compute())


def _torchmetrics_inception(logits: Floats32, splits: int) -> tuple[float, float]:
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", _NO_WIDGETS)
        from torchmetrics.image.inception import InceptionScore

        warnings.filterwarnings("ignore", "Metric `InceptionScore` will save", UserWarning)
        warnings.filterwarnings("ignore", "std\\(\\): degrees of freedom", UserWarning)
        metric = InceptionScore(_PassThrough(logits.shape[1]), splits=splits, sync_on_compute=False)
    for chunk in chunks(logits):
        metric.update(torch.from_numpy(chunk))  # float64, in which no probability becomes zero
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "std\\(\\): degrees of freedom", UserWarning)
        mean, spread = metric.compute()
    return float(mean), float(spread)


def _information(logits: Floats32) -> Callable[[Any], float]:
    """The Inception score of any part of the samples, as one split."""
    from scipy.special import log_softmax, xlogy

    probabilities, certainty = [], []
    for chunk in chunks(logits):
        logs = log_softmax(chunk, axis=1)
        probability = np.exp(logs)
        probabilities.append(probability.astype(np.float32))
        certainty.append((probability * logs).sum(1))
    p, known = np.concatenate(probabilities), np.concatenate(certainty)

    def gain(mask: Any) -> float:
        mean = p[mask].mean(0, dtype=np.float64)
        return float(np.exp(known[mask].mean() - xlogy(mean, mean).sum()))

    return gain


def _normal_quantile(confidence: float) -> float:
    from statistics import NormalDist

    return NormalDist().inv_cdf((1 + confidence) / 2)
