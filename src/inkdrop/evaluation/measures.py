"""The numbers that are told of generated examples, and what true examples would get."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike

from .distances import (
    Floats,
    energy_distance,
    frechet_distance,
    median_distance,
    mmd,
    nearest_distances,
    sliced_wasserstein,
)
from .modes import OUTSIDE, ModeWeights, mode_weight_error


class Modes(NamedTuple):
    """A Gaussian mixture: means (K, D), covariances (K, D, D), weights (K,)."""

    means: ArrayLike
    covariances: ArrayLike
    weights: ArrayLike


_SUPERSCRIPTS = str.maketrans("-0123456789", "⁻⁰¹²³⁴⁵⁶⁷⁸⁹")


@dataclass(frozen=True)
class Measure:
    """A number for generated examples.

    Attributes:
        label: what it is called.
        meaning: what it says, for someone who meets it for the first time.
        of: takes real examples (N, D) and generated ones (M, D).
    """

    label: str
    meaning: str
    of: Callable[[Floats, Floats], float]


def point_measures(real: Floats, modes: Modes | None = None) -> dict[str, Measure]:
    """The measures of points, by name.

    Args:
        real: (N, D), whose spread sets the bandwidth of the MMD.
        modes: the mixture that the data is drawn from, where it is known.
    """
    measures = {
        "sliced_wasserstein": Measure(
            "sliced Wasserstein distance",
            "how far points have to be carried, on the mean, seen from random sides",
            sliced_wasserstein,
        ),
        "energy_distance": Measure(
            "energy distance",
            "how much farther generated points are from real ones than each from their own kind",
            energy_distance,
        ),
        "mmd": Measure(
            "squared MMD",
            "how well a Gaussian kernel as wide as the real points’ median distance tells the two "
            "apart; about zero where it cannot",
            partial(mmd, bandwidth=median_distance(real)),
        ),
    }
    if modes is not None:
        known = modes

        def weights(generated: Floats) -> ModeWeights:
            return mode_weight_error(generated, *known)

        measures["mode_weight_error"] = Measure(
            "error of mode weights",
            "the share of points that would have to change their mode to give each its due",
            lambda _, generated: weights(generated).error,
        )
        measures["far_from_modes"] = Measure(
            "far from every mode",
            f"the share of points outside all ellipses that hold all but {OUTSIDE:.1%} of a mode",
            lambda _, generated: weights(generated).far,
        )
    return measures


def image_measures() -> dict[str, Measure]:
    """The measures of images as vectors of their pixels, 0 … 255, by name."""
    return {
        "frechet_distance": Measure(
            "Fréchet distance of pixels",
            "of the Gaussians fitted to pixels of 0 … 255, squared; not the FID of Inception "
            "features",
            frechet_distance,
        ),
        "sliced_wasserstein": Measure(
            "sliced Wasserstein distance",
            "how far images have to be carried, on the mean, seen from random sides",
            sliced_wasserstein,
        ),
        "energy_distance": Measure(
            "energy distance",
            "how much farther generated images are from real ones than each from their own kind",
            energy_distance,
        ),
        "nearest_ratio": Measure(
            "nearest-neighbour ratio",
            "the median distance to the nearest real image over that between real ones: far below "
            "the real row means copies",
            nearest_ratio,
        ),
    }


def nearest_ratio(real: Floats, generated: Floats) -> float:
    """The median distance of generated examples to the nearest real one, over that of real ones."""
    between = np.median(nearest_distances(real))
    return float(np.median(nearest_distances(generated, real)) / between)


def score(measures: Mapping[str, Measure], real: Floats, generated: Floats) -> dict[str, float]:
    """Every measure of generated examples (M, D) against real ones (N, D)."""
    return {name: measure.of(real, generated) for name, measure in measures.items()}


def floor(
    measures: Mapping[str, Measure], pairs: Iterable[tuple[Floats, Floats]]
) -> dict[str, float]:
    """What true examples get: the mean of `score` over pairs of sets that are both real.

    So would the examples of a perfect model, as many of them.
    """
    scores = [score(measures, real, other) for real, other in pairs]
    return {name: float(np.mean([each[name] for each in scores])) for name in measures}


def in_short(value: float) -> str:
    """A measured number in three digits: 0.0197, −2.39·10⁻⁵."""
    if value and not 1e-4 <= abs(value) < 1e5:
        mantissa, exponent = f"{value:.2e}".split("e")
        power = str(int(exponent)).translate(_SUPERSCRIPTS)
        return f"{mantissa}·10{power}".replace("-", "−")
    return (f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.3g}").replace("-", "−")
