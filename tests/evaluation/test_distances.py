"""Distances against closed forms."""

from collections.abc import Callable

import numpy as np
import pytest
import torch
from scipy import stats
from scipy.linalg import sqrtm

from inkdrop.errors import InkdropError
from inkdrop.evaluation import distances
from inkdrop.evaluation.distances import (
    energy_distance,
    frechet_distance,
    median_distance,
    mmd,
    nearest_distances,
    sliced_wasserstein,
)

ALL = (frechet_distance, sliced_wasserstein, energy_distance, mmd)


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


@pytest.mark.parametrize("distance", ALL)
@pytest.mark.parametrize("shape", [(0, 3), (5, 4), (5,), (5, 3, 1)])
def test_sets_that_cannot_be_compared_are_refused(
    distance: Callable[..., float], shape: tuple[int, ...]
) -> None:
    with pytest.raises(InkdropError, match="needs two sets") as refusal:
        distance(np.zeros(shape), np.zeros((5, 3)))
    assert str(shape) in str(refusal.value)
    assert "\n" not in str(refusal.value)


@pytest.mark.parametrize("distance", [frechet_distance, mmd])
def test_one_example_has_no_spread(distance: Callable[..., float]) -> None:
    with pytest.raises(InkdropError, match="at least 2"):
        distance(np.zeros((1, 3)), np.zeros((5, 3)))


@pytest.mark.parametrize("distance", ALL)
def test_numbers_that_are_not_finite_are_refused(distance: Callable[..., float]) -> None:
    with pytest.raises(InkdropError, match="finite numbers, got nan"):
        distance(np.ones((2, 1)), np.array([[1.0], [np.nan]]))


@pytest.mark.parametrize("distance", ALL)
def test_a_distance_knows_neither_order_nor_sides_and_takes_tensors(
    distance: Callable[..., float],
) -> None:
    rng = np.random.default_rng(0)
    a, b = rng.standard_normal((60, 3)), rng.standard_normal((40, 3)) + 1
    expected = distance(a, b)
    assert distance(b, a) == pytest.approx(expected, rel=1e-9)
    assert distance(rng.permutation(a), rng.permutation(b)) == pytest.approx(expected, rel=1e-9)
    assert distance(torch.from_numpy(a), torch.from_numpy(b)) == expected


@pytest.mark.parametrize("distance", [sliced_wasserstein, energy_distance])
def test_a_set_is_at_no_distance_from_itself(distance: Callable[..., float]) -> None:
    x = np.random.default_rng(0).standard_normal((50, 3))
    assert distance(x, x) == pytest.approx(0, abs=1e-12)


def test_sliced_wasserstein_of_a_moved_set_is_the_mean_length_of_the_moves_shadow() -> None:
    x = np.random.default_rng(0).standard_normal((50, 2))
    # E|cos φ| = 2/π
    found = sliced_wasserstein(x, x + np.array([3, 4]), projections=4000)
    assert found == pytest.approx(5 * 2 / np.pi, rel=0.02)


def test_sliced_wasserstein_on_the_line_is_the_mean_difference_of_the_sorted_sets() -> None:
    rng = np.random.default_rng(0)
    a, b = rng.standard_normal((50, 1)), rng.standard_normal((50, 1)) * 3
    expected = abs(np.sort(a, axis=0) - np.sort(b, axis=0)).mean()
    assert sliced_wasserstein(a, b) == pytest.approx(expected)
    assert sliced_wasserstein(a, np.concatenate([b, b])) == pytest.approx(expected)


def test_the_directions_are_the_seeds() -> None:
    a, b = np.random.default_rng(0).standard_normal((2, 20, 3))
    assert sliced_wasserstein(a, b) == sliced_wasserstein(a, b, seed=0)
    assert sliced_wasserstein(a, b) != sliced_wasserstein(a, b, seed=1)
    with pytest.raises(InkdropError, match="projections must be at least 1, got 0"):
        sliced_wasserstein(a, b, projections=0)


def test_energy_distance_of_two_gaussians_on_the_line_is_the_closed_form() -> None:
    def mean_size(mean: float, sd: float) -> float:
        """E|Z| for Z ~ N(mean, sd²)."""
        z = mean / sd
        return 2 * sd * stats.norm.pdf(z) + mean * (2 * stats.norm.cdf(z) - 1)

    # 2,000 quantiles of each stand for the distributions.
    quantiles = (np.arange(2000) + 0.5)[:, None] / 2000
    a, b = stats.norm.ppf(quantiles), stats.norm.ppf(quantiles, 1.5, 2.0)
    expected = (
        2 * mean_size(1.5, np.hypot(1, 2)) - mean_size(0, np.sqrt(2)) - mean_size(0, np.sqrt(8))
    )
    assert energy_distance(a, b) == pytest.approx(expected, rel=2e-3)


def test_energy_distance_on_the_line_is_the_square_of_scipys() -> None:
    rng = np.random.default_rng(0)
    a, b = rng.standard_normal(70), rng.exponential(size=90)
    expected = stats.energy_distance(a, b) ** 2
    assert energy_distance(a[:, None], b[:, None]) == pytest.approx(expected)


def test_mmd_of_two_gaussians_is_the_closed_form() -> None:
    rng = np.random.default_rng(0)
    h, shift = 1.3, np.array([1.0, 0.5])
    a_cov, b_cov = np.array([[1, 0.6], [0.6, 1]]), np.diag([0.25, 2.0])

    def likeness(covariance: np.ndarray, between: np.ndarray) -> float:
        """E k(X, Y) where X - Y ~ N(between, covariance)."""
        wide = covariance + h**2 * np.eye(2)
        size = np.sqrt(np.linalg.det(wide / h**2))
        return float(np.exp(-between @ np.linalg.solve(wide, between) / 2) / size)

    nothing = np.zeros(2)
    expected = likeness(2 * a_cov, nothing) + likeness(2 * b_cov, nothing)
    expected -= 2 * likeness(a_cov + b_cov, shift)
    a = rng.multivariate_normal(shift, a_cov, 4000)
    b = rng.multivariate_normal(nothing, b_cov, 4000)
    assert mmd(a, b, bandwidth=h) == pytest.approx(expected, rel=0.05)


def test_mmd_counts_every_pair_but_an_example_with_itself() -> None:
    a, b = np.array([[0.0], [1]]), np.array([[0.0], [2], [2]])
    kernel = {0: 1.0, 1: np.exp(-1 / 8), 2: np.exp(-4 / 8)}
    within_b = (2 * kernel[2] + kernel[0]) / 3
    between = (kernel[0] + kernel[2] * 2 + kernel[1] * 3) / 6
    expected = kernel[1] + within_b - 2 * between
    assert mmd(a, b, bandwidth=2) == pytest.approx(expected)


def test_mmd_of_two_sets_of_one_distribution_is_zero_on_average() -> None:
    rng = np.random.default_rng(0)
    found = [mmd(*rng.standard_normal((2, 40, 2)), bandwidth=1) for _ in range(400)]
    assert abs(np.mean(found)) < 3 * np.std(found) / 20
    assert min(found) < 0


def test_the_bandwidth_is_the_median_distance_unless_given() -> None:
    rng = np.random.default_rng(0)
    a, b = rng.standard_normal((2, 30, 2))
    assert mmd(a, b) == mmd(a, b, bandwidth=median_distance(np.concatenate([a, b])))
    assert median_distance(np.array([[0.0], [1], [5]])) == 4
    assert median_distance(rng.standard_normal((9000, 1))) == pytest.approx(
        np.sqrt(2) * stats.norm.ppf(0.75), rel=0.05
    )
    with pytest.raises(InkdropError, match="the bandwidth must be a positive number, got 0"):
        mmd(np.ones((2, 2)), np.ones((2, 2)))


def test_the_distances_are_the_same_in_small_chunks(monkeypatch: pytest.MonkeyPatch) -> None:
    a, b = np.random.default_rng(0).standard_normal((2, 50, 3))
    whole = energy_distance(a, b), mmd(a, b)
    monkeypatch.setattr(distances, "_CHUNK_BYTES", 50 * 8 * 7)  # seven rows, and one at the end
    assert (energy_distance(a, b), mmd(a, b)) == pytest.approx(whole)


def test_nearest_distances_with_and_without_a_second_set() -> None:
    a = np.array([[0.0, 0], [3, 4], [3, 5]])
    assert nearest_distances(a).tolist() == [5, 1, 1]
    assert nearest_distances(a, np.array([[0.0, 1]])).tolist() == pytest.approx(
        [1, np.hypot(3, 3), 5]
    )
