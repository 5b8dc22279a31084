"""What classes samples fall to, as a classifier sees them."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from ..errors import InkdropError
from .distances import frechet_of_moments, moments
from .features import FeatureSet
from .figures import frechet_refusal
from .record import ClassFigures

_DUE = 10  # a class is covered where it has at least a tenth of its share among real images

Labels = NDArray[np.integer]


@dataclass(frozen=True)
class ClassReport:
    """Figures per class, and of all classes.

    Attributes:
        classes: of every class, in order.
        accuracy: of samples that were told a class, the share on which the classifier agrees.
        coverage: the share of the real images' classes that get at least a tenth of their due.
    """

    classes: list[ClassFigures]
    accuracy: float | None
    coverage: float


def class_figures(
    samples: FeatureSet,
    told: Labels | None,
    real: FeatureSet,
    labels: Labels,
    classes: int,
) -> ClassReport:
    """What classes the samples are of, against the real images' labels.

    A class's Fréchet distance is of the samples that were told it, or, where they were told
    nothing, of those that the classifier takes for it.

    Args:
        samples: with the logits (N, K) of a classifier of the data's own classes.
        told: (N,) the class that each sample was told, or None; a negative one was told nothing.
        real: the real images' features.
        labels: (M,) their classes, 0 … classes - 1.

    Raises:
        InkdropError: if there are no logits, or the numbers do not fit.
    """
    logits = samples.logits
    if logits is None or logits.shape[1] != classes:
        raise InkdropError(
            f"figures per class need logits of {classes} classes, got "
            f"{'none' if logits is None else logits.shape[1]}"
        )
    if len(labels) != len(real) or (told is not None and len(told) != len(samples)):
        raise InkdropError(
            f"{len(real)} real images and {len(samples)} samples need as many labels, got "
            f"{len(labels)} and {'none' if told is None else len(told)}"
        )
    seen = np.asarray(logits).argmax(1)
    found, due = (np.bincount(each, minlength=classes) for each in (seen, labels))
    figures = []
    for label in range(classes):
        mine = seen == label if told is None else np.asarray(told) == label
        agreed = None
        if told is not None and mine.any():
            agreed = float((seen[mine] == label).mean())
        figures.append(
            ClassFigures(
                label=label,
                share=float(found[label] / len(seen)),
                reference_share=float(due[label] / len(labels)),
                accuracy=agreed,
                frechet_distance=_frechet(samples, mine, real, np.asarray(labels) == label),
            )
        )
    accuracy = None
    if told is not None and (np.asarray(told) >= 0).any():
        asked = np.asarray(told) >= 0
        accuracy = float((seen == told)[asked].mean())
    there = due > 0
    covered = _DUE * found[there] * len(labels) >= due[there] * len(seen)
    return ClassReport(figures, accuracy, float(covered.mean()))


def _frechet(
    samples: FeatureSet, mine: NDArray[np.bool_], real: FeatureSet, theirs: NDArray[np.bool_]
) -> float | None:
    """Of one class's features; None where there are too few of either."""
    if frechet_refusal(int(theirs.sum()), int(mine.sum()), real.features):
        return None
    distance = frechet_of_moments(
        moments(np.asarray(real.values[theirs])), moments(np.asarray(samples.values[mine]))
    )
    return max(0.0, distance)
