"""Points in the plane follow the distributions they are named after."""

import dataclasses
import math

import numpy as np
import pytest
import torch

from inkdrop.data.images import ImageSet, Source
from inkdrop.data.points import MIXTURES, POINTS, RADII, SQUARE, PointSet, dial, draw, draw_told
from inkdrop.errors import InkdropError


def point_set(**changes: object) -> PointSet:
    fields = {
        "points": torch.arange(10, dtype=torch.float32).reshape(5, 2),
        "labels": torch.tensor([0, 2, 1, 2, 0]),
        "name": "five",
    }
    return PointSet(**{**fields, **changes})


# Sets of points


def test_length_shape_classes_and_values():
    points = point_set()
    assert (len(points), points.shape, points.classes) == (5, (2,), 3)
    assert points.values is points.points
    assert point_set(labels=None).classes is None


def test_the_size_is_told_in_words():
    assert point_set().size == "2 dimensions"
    assert point_set(points=torch.zeros(5, 1)).size == "1 dimension"


def test_a_point_set_is_frozen():
    with pytest.raises(dataclasses.FrozenInstanceError):
        point_set().name = "other"


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"points": torch.zeros(5, 2, dtype=torch.float64)}, "float32, got torch.float64"),
        ({"points": torch.zeros(5)}, "shape (N, dimensions), got (5,)"),
        ({"points": torch.zeros(5, 1, 2)}, "got (5, 1, 2)"),
        ({"points": torch.zeros(0, 2)}, "at least one point"),
        ({"points": torch.zeros(5, 0)}, "at least one dimension"),
        ({"points": torch.tensor([[0.0, 1], [0, math.nan]])}, "point 1 is [0.0, nan]"),
        ({"points": torch.tensor([[math.inf, 1.0]])}, "point 0 is [inf, 1.0]"),
        ({"labels": torch.tensor([0, 1])}, "shape (5,), one for each point, got (2,)"),
        ({"labels": torch.zeros(5)}, "vectors and must have shape (5, numbers)"),
        ({"labels": torch.zeros(5).half()}, "classes or float32 vectors, got torch.float16"),
        ({"labels": torch.full((5, 2), math.inf)}, "0 is [inf, inf]"),
        ({"labels": torch.tensor([0, 1, 2, -1, 0])}, "label 3 is -1"),
    ],
)
def test_what_is_no_point_set_is_refused_in_one_line(changes, message):
    with pytest.raises(InkdropError) as error:
        point_set(**changes)
    assert message in str(error.value)
    assert str(error.value).startswith("five: ")
    assert "\n" not in str(error.value)


def test_take_gives_points_and_labels_in_the_order_asked_for():
    taken = point_set().take([4, 1, 1])
    assert isinstance(taken, PointSet)
    assert taken.points.tolist() == [[8, 9], [2, 3], [2, 3]]
    assert taken.labels.tolist() == [0, 2, 2]
    assert taken.name == "five"


def test_take_refuses_what_is_no_index():
    with pytest.raises(InkdropError, match="index 5 is outside 0 … 4"):
        point_set().take([5])


def test_the_fingerprint_is_a_fixed_number():
    # Runs compare theirs with one written down long ago, so it must never change.
    known = "3ff89761cf0a7af97df67586b42fee925800a9c5e4f4d78a045d2c57655d2fdd"
    assert point_set().fingerprint == known


def test_the_fingerprint_tells_points_labels_shapes_and_order_apart():
    points = point_set()
    moved = points.points.clone()
    moved[4, 1] += 1e-6
    variations = [
        points,
        point_set(points=moved),
        point_set(points=points.points.reshape(10, 1), labels=None),
        point_set(labels=torch.tensor([0, 2, 1, 2, 1])),
        point_set(labels=None),
        points.take([1, 0, 2, 3, 4]),
        points.take([0, 1, 2, 3]),
    ]
    assert len({variation.fingerprint for variation in variations}) == len(variations)


def test_points_and_images_do_not_mix():
    images = ImageSet(torch.zeros(1, 1, 4, 4, dtype=torch.uint8), None, "images")
    with pytest.raises(InkdropError, match=r"images has images of shape \(1, 4, 4\), but five of"):
        Source(point_set(), images)


# Draws


@pytest.mark.parametrize("name", POINTS)
def test_a_draw_is_named_by_its_address(name):
    points = draw(name, 50)
    assert (points.shape, points.dtype) == ((50, 2), torch.float32)
    assert torch.equal(draw(name, 50), points)
    for other in (draw(name, 50, seed=1), draw(name, 50, purpose="other")):
        assert not (other == points).any()


@pytest.mark.parametrize("name", POINTS)
def test_a_draw_leaves_the_global_random_state_alone(name):
    np.random.seed(0)
    before = np.random.get_state()[1].copy()
    draw(name, 5)
    assert (np.random.get_state()[1] == before).all()


@pytest.mark.parametrize("name", POINTS)
def test_the_mean_is_zero_and_the_standard_deviation_between_a_half_and_one(name):
    points = draw(name, 40_000)
    standard_error = points.std(0) / 200
    assert (points.mean(0).abs() < 4 * standard_error).all()
    assert (points.std(0) > 0.5).all()
    assert (points.std(0) < 1).all()


@pytest.mark.parametrize("name", POINTS)
def test_the_points_are_independent_of_their_neighbours_in_the_draw(name):
    points = draw(name, 40_000).numpy()
    for axis in range(2):
        assert abs(np.corrcoef(points[:-1, axis], points[1:, axis])[0, 1]) < 0.02


def test_an_unknown_distribution_is_told_the_nearest():
    with pytest.raises(InkdropError, match="did you mean 'points-two-moons'"):
        draw("two-moons", 5)


def test_no_points_cannot_be_drawn():
    with pytest.raises(InkdropError, match="n must be at least 1, got 0"):
        draw("points-rings", 0)


# Each distribution


def test_the_mixture_is_a_mixture_of_different_and_separate_modes():
    means, covariances, weights = MIXTURES["points-gmm"]
    assert weights.sum() == pytest.approx(1)
    assert weights @ means == pytest.approx(np.zeros(2), abs=1e-12)
    assert len(set(weights)) == len(weights) == 7
    assert (covariances == covariances.transpose(0, 2, 1)).all()
    for i in range(7):
        for j in range(i):
            apart = means[i] - means[j]
            direction = apart / np.linalg.norm(apart)
            spread = sum(math.sqrt(direction @ covariances[k] @ direction) for k in (i, j))
            assert np.linalg.norm(apart) > 3 * spread


def test_points_gmm_has_the_moments_of_its_mixture():
    means, covariances, weights = MIXTURES["points-gmm"]
    points = draw("points-gmm", 100_000).double().numpy()
    offsets = points[:, None] - means
    squares = np.einsum("nki,kij,nkj->nk", offsets, np.linalg.inv(covariances), offsets)
    densities = weights / np.sqrt(np.linalg.det(covariances)) * np.exp(-squares / 2)
    mode = densities.argmax(axis=1)
    for k, weight in enumerate(weights):
        mine = points[mode == k]
        count = len(mine)
        assert count / len(points) == pytest.approx(weight, abs=0.006)
        error = np.sqrt(np.diag(covariances[k]) / count)
        assert (np.abs(mine.mean(axis=0) - means[k]) < 5 * error).all()
        scale = np.sqrt(np.outer(*[np.diag(covariances[k])] * 2))
        assert (np.abs(np.cov(mine.T) - covariances[k]) < 0.08 * scale).all()


def test_the_checkerboard_is_even_on_its_dark_squares_and_empty_elsewhere():
    squares = (draw("points-checkerboard", 40_000) / SQUARE).floor().long()
    column, row = squares.T
    assert ((column + row) % 2 == 0).all()
    assert squares.min() == -2
    assert squares.max() == 1
    _, counts = squares.unique(dim=0, return_counts=True)
    assert len(counts) == 8
    assert ((counts - 5000).abs() < 300).all()


def test_the_rings_lie_at_their_radii_and_are_equally_dense():
    radius = draw("points-rings", 40_000).norm(dim=1)
    distance = (radius[:, None] - torch.tensor(RADII)).abs()
    nearest, ring = distance.min(dim=1)
    assert (nearest < 0.05 * 5).all()
    assert nearest.square().mean().sqrt() == pytest.approx(0.05, rel=0.05)
    share = ring.bincount() / len(ring)
    assert share.tolist() == pytest.approx([r / sum(RADII) for r in RADII], abs=0.01)


def test_the_moons_lie_on_their_half_circles():
    points = draw("points-two-moons", 40_000) / 1.1
    centre, end = torch.tensor([0.5, 0.25]), torch.tensor([1.0, 0.0])
    distances = []
    for moon in (points + centre, centre - points):  # each as the upper half of the unit circle
        to_circle = (moon.norm(dim=1) - 1).abs()
        to_ends = torch.minimum((moon - end).norm(dim=1), (moon + end).norm(dim=1))
        distances.append(torch.where(moon[:, 1] > 0, to_circle, to_ends))
    nearest, moon = torch.stack(distances, dim=1).min(dim=1)
    assert nearest.max() < 0.3
    assert nearest.square().mean().sqrt() == pytest.approx(0.06 / 1.1, rel=0.05)
    assert moon.float().mean() == pytest.approx(0.5, abs=0.01)


def test_the_swiss_roll_turns_outwards_once_and_a_half():
    points = draw("points-swiss-roll", 40_000) * 9 + torch.tensor([2, 2 / (3 * math.pi)])
    radius, angle = points.norm(dim=1), torch.atan2(points[:, 1], points[:, 0])
    turns = (radius - angle) / (2 * math.pi)  # on the spiral, radius = angle + 2π k
    assert (turns - turns.round()).abs().mean() * 2 * math.pi < 0.5
    assert radius.min() > 1.5 * math.pi - 3
    assert radius.max() < 4.5 * math.pi + 3


# Vectors, and points that are told one


def test_labels_may_be_vectors():
    vectors = torch.arange(15, dtype=torch.float32).reshape(5, 3)
    points = point_set(labels=vectors)
    assert (points.vector, points.classes) == (3, None)
    assert point_set().vector is point_set(labels=None).vector is None
    taken = points.take([3, 1])
    assert torch.equal(taken.labels, vectors[[3, 1]])
    assert torch.equal(points.labels_at([2]), vectors[2:3])
    images = ImageSet(torch.zeros(5, 1, 2, 2, dtype=torch.uint8), vectors, "told")
    assert images.vector == 3


def test_the_fingerprint_tells_vectors_from_each_other_and_from_classes():
    vectors = torch.tensor([[0.0], [2], [1], [2], [0]])
    prints = [
        point_set(labels=labels).fingerprint
        for labels in (None, vectors[:, 0].long(), vectors, vectors + 1, vectors.repeat(1, 2))
    ]
    assert len(set(prints)) == 5
    assert point_set(labels=vectors.clone()).fingerprint == prints[2]


def test_the_dial_is_told_its_angle_and_turns_with_it():
    points, told = draw_told("points-dial", 60_000)
    assert torch.equal(points, draw("points-dial", 60_000))
    assert told.shape == (60_000, 2)
    torch.testing.assert_close(told.norm(dim=1), torch.ones(60_000))
    angle = torch.atan2(told[:, 1], told[:, 0]).double()
    for centre in (-3.0, -0.5, 1.2):
        near = (angle - centre).abs() < 0.03
        found = points[near].double().numpy()
        means, covariances, weights = dial(centre)
        mean = weights @ means
        spread = means - mean
        covariance = np.einsum("k,kij->ij", weights, covariances) + (
            np.einsum("k,ki,kj->ij", weights, spread, spread)
        )
        np.testing.assert_allclose(found.mean(axis=0), mean, atol=0.1)
        np.testing.assert_allclose(np.cov(found.T), covariance, atol=0.08)
    assert draw_told("points-gmm", 3)[1] is None


def test_the_hand_of_the_dial_points_at_its_angle():
    means, covariances, weights = dial(math.pi / 2)
    np.testing.assert_allclose(means[:, 0], 0, atol=1e-12)
    assert means[0, 1] > means[1, 1] > 0 > means[2, 1]
    assert weights.sum() == pytest.approx(1)
    assert covariances[0, 1, 1] > covariances[0, 0, 0]  # along the hand
    assert covariances[2, 1, 1] < covariances[2, 0, 0]  # its tail, across it
