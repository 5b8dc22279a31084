"""Distances against closed forms."""

import numpy as np
import pytest
from scipy.linalg import sqrtm

from inkdrop.errors import InkdropError
from inkdrop.evaluation.distances import frechet_distance, nearest_distances


def with_moments(rng: np.random.Generator, mean: np.ndarray, covariance: np.ndarray) -> np.ndarray:
    """A sample whose mean and covariance are exactly these."""
    x = rng.standard_normal((200, len(mean)))
    x -= x.mean(0)
    x = x @ np.linalg.inv(np.linalg.cholesky(np.cov(x, rowvar=False))).T
    return x @ np.linalg.cholesky(covariance).T + mean


def test_frechet_distance_is_the_closed_form_for_full_covariances() -> None:
    rng = np.random.default_rng(0)
    means = rng.standard_normal((2, 4))
    roots = rng.standard_normal((2, 4, 4))
    a, b = roots @ roots.transpose(0, 2, 1) + np.eye(4)
    expected = (
        ((means[0] - means[1]) ** 2).sum() + np.trace(a + b) - 2 * np.trace(sqrtm(a @ b)).real
    )
    found = frechet_distance(with_moments(rng, means[0], a), with_moments(rng, means[1], b))
    assert found == pytest.approx(expected, rel=1e-9)


def test_frechet_distance_of_a_set_to_itself_is_zero_also_when_its_covariance_is_singular() -> None:
    x = np.random.default_rng(0).standard_normal((50, 3))
    x = np.concatenate([x, x[:, :1] * 2, np.zeros((50, 1))], axis=1)
    assert frechet_distance(x, x) == pytest.approx(0, abs=1e-9)


def test_frechet_distance_of_a_moved_set_is_the_squared_move() -> None:
    x = np.random.default_rng(0).standard_normal((50, 3))
    assert frechet_distance(x, x + np.array([3, 4, 0])) == pytest.approx(25)


@pytest.mark.parametrize("shape", [(1, 3), (5, 4), (5,)])
def test_frechet_distance_refuses_sets_that_cannot_be_compared(shape: tuple[int, ...]) -> None:
    with pytest.raises(InkdropError, match="needs two sets"):
        frechet_distance(np.zeros(shape), np.zeros((5, 3)))


def test_nearest_distances_with_and_without_a_second_set() -> None:
    a = np.array([[0.0, 0], [3, 4], [3, 5]])
    assert nearest_distances(a).tolist() == [5, 1, 1]
    assert nearest_distances(a, np.array([[0.0, 1]])).tolist() == pytest.approx(
        [1, np.hypot(3, 3), 5]
    )
