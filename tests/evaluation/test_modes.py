"""Mode weights of mixtures that are plain to see."""

import numpy as np
import pytest

from inkdrop.errors import InkdropError
from inkdrop.evaluation.modes import mode_weight_error

MEANS = np.array([[0.0, 0.0], [10.0, 0.0], [0.0, 10.0]])
COVARIANCES = np.stack([np.eye(2)] * 3)


def test_points_go_to_their_mode_and_the_error_is_the_total_variation() -> None:
    points = MEANS[[0, 0, 0, 1]] + 0.1
    found = mode_weight_error(points, MEANS, COVARIANCES, [0.5, 0.25, 0.25])
    assert found.shares.tolist() == [0.75, 0.25, 0]
    assert found.error == pytest.approx(0.25)
    assert found.far == 0
    assert mode_weight_error(points, MEANS, COVARIANCES, [6, 2, 0]).error == 0


def test_the_most_probable_mode_need_not_be_the_nearest() -> None:
    wide = np.stack([np.eye(2), 25 * np.eye(2), np.eye(2)])
    assert mode_weight_error([[4.0, 0]], MEANS, wide, [1, 1, 1]).shares.tolist() == [0, 1, 0]
    # Where both Gaussians are alike, the weights decide.
    assert mode_weight_error([[5.1, 0]], MEANS, COVARIANCES, [9, 1, 1]).shares[0] == 1


def test_far_is_outside_every_modes_ellipse() -> None:
    long = np.stack([np.diag([100.0, 1.0]), np.eye(2), np.eye(2)])
    points = np.array([[-30.0, 0], [0, -30], [0, -3]])
    assert mode_weight_error(points, MEANS, long, [1, 1, 1]).far == pytest.approx(1 / 3)


@pytest.mark.parametrize("dimension", [1, 2, 5])
def test_true_points_are_at_their_floor(dimension: int) -> None:
    rng = np.random.default_rng(0)
    means = np.stack([np.full(dimension, -20.0), np.full(dimension, 20.0)])
    covariances = np.stack([np.eye(dimension), np.eye(dimension) + 0.5])
    chosen = rng.random(20_000) < 0.3
    points = np.where(
        chosen[:, None],
        rng.multivariate_normal(means[0], covariances[0], 20_000),
        rng.multivariate_normal(means[1], covariances[1], 20_000),
    )
    found = mode_weight_error(points, means, covariances, [0.3, 0.7])
    assert found.error == pytest.approx(0, abs=0.01)
    assert found.far == pytest.approx(1e-3, abs=7e-4)


@pytest.mark.parametrize(
    ("points", "weights"), [((5, 3), (3,)), ((5,), (3,)), ((0, 2), (3,)), ((5, 2), (2,))]
)
def test_shapes_that_do_not_fit_are_refused(
    points: tuple[int, ...], weights: tuple[int, ...]
) -> None:
    with pytest.raises(InkdropError, match="mode weights need points"):
        mode_weight_error(np.zeros(points), MEANS, COVARIANCES, np.ones(weights))
