"""Figures per class, of samples whose classes are known."""

import numpy as np
import pytest

from inkdrop.errors import InkdropError
from inkdrop.evaluation.classes import class_figures
from inkdrop.evaluation.distances import frechet_distance
from inkdrop.evaluation.features import FeatureSet


def of_classes(classes: list[int], seed: int = 0) -> FeatureSet:
    """Features around each class's own place, and a classifier's logits that are sure of it."""
    rng = np.random.default_rng(seed)
    values = np.array(classes)[:, None] * 10 + rng.standard_normal((len(classes), 2))
    logits = np.eye(4)[classes] * 5 - rng.random((len(classes), 4))
    return FeatureSet(values.astype(np.float32), logits.astype(np.float32))


LABELS = np.array([0] * 50 + [1] * 30 + [2] * 20)
REAL = of_classes(LABELS.tolist())


def test_shares_are_held_against_the_real_images() -> None:
    found = class_figures(of_classes([0] * 60 + [1] * 38 + [2, 3]), None, REAL, LABELS, 4)
    assert [each.label for each in found.classes] == [0, 1, 2, 3]
    assert [each.share for each in found.classes] == [0.6, 0.38, 0.01, 0.01]
    assert [each.reference_share for each in found.classes] == [0.5, 0.3, 0.2, 0]
    assert found.accuracy is None
    assert all(each.accuracy is None for each in found.classes)


@pytest.mark.parametrize(("twos", "coverage"), [(0, 2 / 3), (1, 2 / 3), (2, 1)])
def test_a_class_is_covered_by_a_tenth_of_its_due(twos: int, coverage: float) -> None:
    samples = of_classes([0] * 60 + [1] * (40 - twos) + [2] * twos)
    found = class_figures(samples, None, REAL, LABELS, 4)
    assert found.coverage == pytest.approx(coverage)  # class 3 has no real image to be covered


def test_accuracy_is_of_what_samples_were_told() -> None:
    seen = [0] * 10 + [1] * 10 + [2] * 5
    told = np.array([0] * 8 + [1] * 12 + [-1] * 5)  # the last ones were told nothing
    found = class_figures(of_classes(seen), told, REAL, LABELS, 4)
    assert found.accuracy == pytest.approx(18 / 20)
    assert [each.accuracy for each in found.classes] == [1, pytest.approx(10 / 12), None, None]


def test_a_classs_distance_is_of_its_own_images_where_there_are_enough() -> None:
    samples = of_classes([0] * 10 + [1] * 10 + [2] * 2 + [3] * 10, seed=1)
    found = class_figures(samples, None, REAL, LABELS, 4)
    of = [each.frechet_distance for each in found.classes]
    assert of[0] == pytest.approx(frechet_distance(REAL.values[:50], samples.values[:10]))
    assert of[1] == pytest.approx(frechet_distance(REAL.values[50:80], samples.values[10:20]))
    assert of[2:] == [None, None]


def test_what_does_not_fit_is_refused() -> None:
    samples = of_classes([0] * 5)
    for given, match in (
        ((FeatureSet(samples.values), None, REAL, LABELS, 4), "logits of 4 classes, got none"),
        ((samples, None, REAL, LABELS, 3), "logits of 3 classes, got 4"),
        ((samples, None, REAL, LABELS[1:], 4), "as many labels, got 99"),
        ((samples, np.zeros(4, int), REAL, LABELS, 4), "got 100 and 4"),
    ):
        with pytest.raises(InkdropError, match=match):
            class_figures(*given)
