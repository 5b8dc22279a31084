"""What is measured of generated examples, and of true ones in their place."""

import numpy as np
import pytest

from inkdrop.evaluation import measures
from inkdrop.evaluation.measures import (
    Modes,
    floor,
    image_measures,
    in_short,
    point_measures,
    score,
)

RNG = np.random.default_rng(0)
REAL, OTHER = RNG.standard_normal((2, 200, 2))
UNIT = Modes(np.zeros((1, 2)), np.eye(2)[None], np.ones(1))


def test_points_have_mode_weights_only_where_the_mixture_is_known() -> None:
    plain, known = point_measures(REAL), point_measures(REAL, UNIT)
    assert set(known) - set(plain) == {"mode_weight_error", "far_from_modes"}
    found = score(known, REAL, OTHER + 50)
    assert found["far_from_modes"] == 1
    assert found["mode_weight_error"] == 0
    assert found["sliced_wasserstein"] > 10


def test_all_sets_are_measured_with_the_bandwidth_of_the_real_ones() -> None:
    found = point_measures(REAL)["mmd"].of(REAL, 3 * OTHER)
    h = measures.median_distance(REAL)
    assert found == measures.mmd(REAL, 3 * OTHER, bandwidth=h)


def test_images_are_measured_with_their_nearest_neighbours() -> None:
    found = score(image_measures(), REAL, REAL)
    assert set(found) == {
        "frechet_distance",
        "sliced_wasserstein",
        "energy_distance",
        "nearest_ratio",
    }
    assert found["nearest_ratio"] == 0  # copies
    assert score(image_measures(), REAL, OTHER)["nearest_ratio"] == pytest.approx(1, abs=0.2)


def test_the_floor_is_the_mean_over_pairs_of_true_sets() -> None:
    only = {"energy_distance": point_measures(REAL)["energy_distance"]}
    parts = RNG.standard_normal((3, 2, 50, 2))
    expected = np.mean([score(only, a, b)["energy_distance"] for a, b in parts])
    assert floor(only, [(a, b) for a, b in parts]) == {"energy_distance": pytest.approx(expected)}


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (0, "0"),
        (0.01974, "0.0197"),
        (-0.5, "−0.5"),
        (12.345, "12.3"),
        (4321.9, "4,322"),
        (2.08e-5, "2.08·10⁻⁵"),
        (-2.394e-5, "−2.39·10⁻⁵"),
        (3.21e7, "3.21·10⁷"),
    ],
)
def test_numbers_are_told_in_three_digits(value: float, text: str) -> None:
    assert in_short(value) == text
