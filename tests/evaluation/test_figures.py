"""Metrics of features against closed forms, brute force, torchmetrics and scikit-learn."""

import warnings
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from sklearn.neighbors import NearestNeighbors
from torchmetrics.image.kid import KernelInceptionDistance

from inkdrop.errors import InkdropError
from inkdrop.evaluation import features as features_module
from inkdrop.evaluation import kernel, neighbours
from inkdrop.evaluation.distances import (
    frechet_bias,
    frechet_distance,
    frechet_influence,
    frechet_of_moments,
    moments,
)
from inkdrop.evaluation.features import FeatureSet
from inkdrop.evaluation.figures import (
    HALVES,
    HELD_OUT,
    MetricSettings,
    _torchmetrics_frechet,
    check_names,
    default_names,
    floors,
    measure,
    with_floors,
)
from inkdrop.evaluation.kernel import kernel_distance
from inkdrop.evaluation.neighbours import Neighbourhood
from inkdrop.evaluation.record import METRICS

QUICK = MetricSettings(replicas=20, splits=2)


def gaussian(seed: int, count: int, features: int = 4, classes: int | None = None) -> FeatureSet:
    rng = np.random.default_rng(seed)
    values = rng.standard_normal((count, features)).astype(np.float32)
    logits = None
    if classes:
        logits = (3 * rng.standard_normal((count, classes))).astype(np.float32)
    return FeatureSet(values, logits)


def exact(seed: int, mean: np.ndarray, root: np.ndarray, count: int = 300) -> FeatureSet:
    """Features whose mean and unbiased covariance root rootᵀ are as exact as float32 allows."""
    x = np.random.default_rng(seed).standard_normal((count, len(mean)))
    x -= x.mean(0)
    x = x @ np.linalg.inv(np.linalg.cholesky(np.cov(x, rowvar=False))).T
    return FeatureSet((x @ root.T + mean).astype(np.float32))


def test_a_frechet_distance_of_known_gaussians_is_known_to_a_millionth() -> None:
    # Rotated together, so that the covariances commute: Σ (√λ_a - √λ_b)² and the squared move.
    rotation = np.linalg.qr(np.random.default_rng(0).standard_normal((5, 5)))[0]
    deviations = np.array([[1.0, 2.0, 3.0, 0.5, 4.0], [2.0, 2.0, 1.0, 1.5, 1.0]])
    a, b = (
        exact(seed, np.full(5, float(seed)), rotation * each)
        for seed, each in enumerate(deviations)
    )
    expected = 5 + ((deviations[0] - deviations[1]) ** 2).sum()
    figure = measure(["frechet_distance"], a, b, settings=QUICK)["frechet_distance"]
    assert figure.value == pytest.approx(expected, rel=1e-6)
    assert frechet_distance(a.values, b.values) == pytest.approx(expected, rel=1e-6)


def test_the_covariance_is_of_features_not_of_images() -> None:
    # As many images as features, so that the wrong axis has a covariance of the right shape.
    rng = np.random.default_rng(0)
    x = rng.standard_normal((6, 6)) * np.arange(1, 7)
    assert moments(x).covariance == pytest.approx(np.cov(x.T, bias=False))
    twice = np.concatenate([x, x])
    assert frechet_distance(x, twice * 2) > 1


@pytest.mark.parametrize("offset", [0, 1000])
def test_our_frechet_distance_is_torchmetrics(offset: float) -> None:
    rng = np.random.default_rng(0)
    mixing = rng.standard_normal((2, 30, 30)) * np.logspace(0, -3, 30)
    sets = [
        FeatureSet((rng.standard_normal((400, 30)) @ mix + offset + i).astype(np.float32))
        for i, mix in enumerate(mixing)
    ]
    ours = frechet_distance(sets[0].values, sets[1].values)
    assert ours == pytest.approx(_torchmetrics_frechet(*sets), rel=1e-6)


def test_the_same_set_is_at_no_distance_and_wholly_within_itself() -> None:
    x = gaussian(0, 300, classes=5)
    x = FeatureSet(
        np.concatenate([x.values, x.values[:20]]), np.concatenate([x.logits, x.logits[:20]])
    )
    found = measure(default_names(True), x, x, settings=QUICK)
    assert found["frechet_distance"].value == pytest.approx(0, abs=1e-6)
    assert found["kernel_distance"].value <= 0  # unbiased: an image's pair with itself counts once
    assert [found[name].value for name in ("precision", "recall", "coverage")] == [1, 1, 1]
    assert found["density"].value == pytest.approx(1.2, rel=0.01)  # k others and itself


def test_order_and_chunks_change_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    names = [name for name in METRICS if name != "inception_score"]
    real, samples = gaussian(0, 300), gaussian(1, 200)
    before = measure(names, real, samples, settings=QUICK)
    rng = np.random.default_rng(2)
    real, samples = (each.take(rng.permutation(len(each))) for each in (real, samples))
    for module in (kernel, neighbours):
        monkeypatch.setattr(module, "_CHUNK_BYTES", 20_000)
    monkeypatch.setattr(features_module.chunks, "__defaults__", (1000,))
    after = measure(names, real, samples, settings=QUICK)
    for name in names:
        assert after[name].value == pytest.approx(before[name].value, rel=1e-9), name


def test_features_on_disk_are_measured_as_in_memory(tmp_path: Path) -> None:
    real, samples = gaussian(0, 100), gaussian(1, 90)
    on_disk = np.memmap(tmp_path / "values", np.float32, "w+", shape=real.values.shape)
    on_disk[:] = real.values
    names = default_names(False)
    there = measure(names, FeatureSet(on_disk), samples, settings=QUICK, seed=3)
    assert there == measure(names, real, samples, settings=QUICK, seed=3)


def test_the_kernel_distance_is_torchmetrics_over_all_pairs() -> None:
    a, b = gaussian(0, 80).values, gaussian(1, 80).values + np.float32(0.3)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        metric = KernelInceptionDistance(torch.nn.Identity(), subsets=1, subset_size=80)
    metric.update(torch.from_numpy(a).double(), real=True)
    metric.update(torch.from_numpy(b).double(), real=False)
    assert kernel_distance(a, b)[0] == pytest.approx(metric.compute()[0].item(), rel=1e-9)


@pytest.mark.parametrize("move", [0, 0.5])
def test_the_kernel_distances_standard_error_is_its_spread_over_repetitions(move: float) -> None:
    rng = np.random.default_rng(0)
    found = np.array(
        [
            kernel_distance(rng.standard_normal((60, 3)) + move, rng.standard_normal((90, 3)))
            for _ in range(400)
        ]
    )
    # Rather too wide than too narrow; the jackknife alone is 1.41 times too wide without a move.
    assert 0.9 < np.sqrt((found[:, 1] ** 2).mean()) / found[:, 0].std() < 1.2
    if move == 0:
        assert abs(found[:, 0].mean()) < 4 * found[:, 0].std() / 20  # unbiased


def brute_force(real: np.ndarray, fake: np.ndarray, k: int, density_k: int) -> dict[str, float]:
    """The papers' definitions, word by word."""

    def radius(x: np.ndarray, i: int, k: int) -> float:
        return float(np.sort([np.linalg.norm(x[i] - x[j]) for j in range(len(x)) if j != i])[k - 1])

    def in_manifold(point: np.ndarray, x: np.ndarray) -> bool:
        return any(np.linalg.norm(point - x[i]) <= radius(x, i, k) for i in range(len(x)))

    inside = [
        [np.linalg.norm(y - real[i]) <= radius(real, i, density_k) for i in range(len(real))]
        for y in fake
    ]
    return {
        "precision": float(np.mean([in_manifold(y, real) for y in fake])),
        "recall": float(np.mean([in_manifold(x, fake) for x in real])),
        "density": float(np.sum(inside)) / (density_k * len(fake)),
        "coverage": float(np.mean(np.any(inside, axis=0))),
    }


def test_precision_recall_density_and_coverage_are_the_papers() -> None:
    rng = np.random.default_rng(0)
    real, fake = rng.standard_normal((30, 2)), 1.3 * rng.standard_normal((24, 2)) + 0.4
    found = Neighbourhood.of(real.astype(np.float32), fake.astype(np.float32))
    whole = brute_force(real, fake, 3, 5)
    assert found.measure(3, 5) == pytest.approx(whole)
    assert 0 < whole["recall"] < 1
    assert whole["precision"] < 1
    # And of any part, which is what the intervals are made of.
    some, few = np.arange(30) % 2 == 0, np.arange(24) % 3 > 0
    part = brute_force(real[some], fake[few], 3, 5)
    assert found.measure(3, 5, some, few) == pytest.approx(part)


def test_neighbours_are_scikit_learns() -> None:
    x = gaussian(0, 400, 8).values.astype(np.float64) + 100
    distances, indices = NearestNeighbors(n_neighbors=neighbours.DEPTH).fit(x).kneighbors()
    balls = neighbours.Balls.of(x, x[:5])
    assert (balls.near == indices).all()
    assert np.sqrt(balls.reach) == pytest.approx(distances, rel=1e-8)


def test_the_inception_score_runs_from_one_to_the_number_of_classes() -> None:
    sure = 50 * np.eye(4, dtype=np.float32)[np.arange(400) % 4]
    x = gaussian(0, 400)
    for logits, expected in ((sure, 4), (sure * 0, 1), (sure[:1].repeat(400, 0), 1)):
        figure = measure(
            ["inception_score"], x, FeatureSet(x.values, logits), settings=MetricSettings(splits=1)
        )["inception_score"]
        assert figure.value == pytest.approx(expected, rel=1e-3)


def test_a_bad_generator_ranks_below_a_good_one_by_every_metric() -> None:
    rng = np.random.default_rng(0)
    centres = 4 * np.eye(6)

    def clusters(count: int, modes: int, noise: float) -> FeatureSet:
        which = rng.integers(modes, size=count)
        x = centres[which] + noise * rng.standard_normal((count, 6))
        return FeatureSet(x.astype(np.float32), (3 * x / noise).astype(np.float32))

    real, good = clusters(600, 6, 0.5), clusters(400, 6, 0.5)
    bad = clusters(400, 3, 1.5)
    names = default_names(True)
    better, worse = (measure(names, real, each, settings=QUICK) for each in (good, bad))
    for name in names:
        sign = 1 if METRICS[name].higher_is_better else -1
        assert sign * better[name].value > sign * worse[name].value, name


def test_the_derivative_of_the_frechet_distance_is_what_leaving_one_out_changes() -> None:
    rng = np.random.default_rng(0)
    a, b = rng.standard_normal((200, 4)) * [1, 2, 3, 1] + 0.5, rng.standard_normal((150, 4))
    whole_a, whole_b = moments(a), moments(b)
    whole = frechet_of_moments(whole_a, whole_b)
    slope, by_a, by_b = frechet_influence(whole_a, whole_b)

    def predicted(x: np.ndarray, mean: np.ndarray, slope: np.ndarray, by: np.ndarray) -> np.ndarray:
        away = x - mean
        return away @ slope + np.einsum("ni,ij,nj->n", away, by, away)

    left_a = [frechet_of_moments(moments(np.delete(a, i, 0)), whole_b) for i in range(200)]
    left_b = [frechet_of_moments(whole_a, moments(np.delete(b, i, 0))) for i in range(150)]
    for left, expected in (
        (left_a, predicted(a, whole_a.mean, slope, by_a)),
        (left_b, predicted(b, whole_b.mean, -slope, by_b)),
    ):
        felt = len(left) * (whole - np.array(left))
        assert np.corrcoef(felt, expected)[0, 1] > 0.999
        assert felt.std() == pytest.approx(expected.std(), rel=0.05)


def coverage_of(
    name: str, draw: Callable[[np.random.Generator], tuple[FeatureSet, FeatureSet]], times: int
) -> tuple[float, float]:
    """How often an interval holds the value to expect, and its width over the right one."""
    rng = np.random.default_rng(0)
    settings = MetricSettings(replicas=60)
    found = [
        measure([name], *draw(rng), settings=settings, seed=seed)[name] for seed in range(times)
    ]
    values = np.array([figure.value for figure in found])
    expected = values.mean()
    held = np.mean([figure.low <= expected <= figure.high for figure in found])
    width = np.mean([figure.high - figure.low for figure in found])
    return float(held), float(width / (2 * 1.96 * values.std()))


@pytest.mark.parametrize(
    ("name", "features", "count", "times"),
    [("frechet_distance", 16, 100, 150), ("precision", 4, 120, 80), ("coverage", 4, 120, 80)],
)
def test_an_interval_holds_what_is_to_be_expected_of_as_many_images(
    name: str, features: int, count: int, times: int
) -> None:
    scale = np.linspace(1, 0.3, features)

    def draw(rng: np.random.Generator) -> tuple[FeatureSet, FeatureSet]:
        real, fake = (rng.standard_normal((count, features)) * scale for _ in range(2))
        return FeatureSet(real.astype(np.float32)), FeatureSet(
            (fake * 1.2 + 0.2).astype(np.float32)
        )

    held, width = coverage_of(name, draw, times)
    assert held > 0.88  # 95% meant; the share of 80 is known to 2.4%
    assert 0.8 < width < 1.35


def test_the_bias_that_few_images_give_a_frechet_distance_is_the_foretold_one() -> None:
    rng = np.random.default_rng(0)
    scale = np.linspace(1, 0.2, 8)
    draw = lambda count: rng.standard_normal((count, 8)) * scale  # noqa: E731
    found = [frechet_distance(draw(150), draw(300)) for _ in range(150)]
    truth = moments(draw(20_000))
    assert np.mean(found) == pytest.approx(frechet_bias(truth, 150, 300), rel=0.08)


@pytest.mark.parametrize("count", [2, 8])
def test_a_frechet_distance_of_no_more_images_than_features_is_refused(count: int) -> None:
    many, few = gaussian(0, 100, 8), gaussian(1, count, 8)
    for real, samples, what in ((many, few, "samples"), (few, many, "real images")):
        figure = measure(["frechet_distance"], real, samples)["frechet_distance"]
        assert figure.value is figure.low is None
        assert f"refused: {count} {what}" in figure.note
        assert "better 80" in figure.note


def test_a_frechet_distance_of_few_images_tells_the_bias_and_one_of_many_does_not() -> None:
    real = gaussian(0, 100, 8)
    for count, labelled in ((9, True), (79, True), (80, False)):
        samples = gaussian(1, count, 8)
        figure = measure(["frechet_distance"], real, samples, settings=QUICK)["frechet_distance"]
        assert ("biased" in figure.note) == labelled
        assert figure.low <= figure.value <= figure.high


def test_more_images_than_the_limit_are_looked_at_in_part_and_that_is_said() -> None:
    # Sorted by kind: the first 100 alone would have no coverage.
    real = FeatureSet(np.repeat(np.eye(4, dtype=np.float32) * 20, 100, 0) + gaussian(0, 400).values)
    settings = MetricSettings(limit=100, replicas=5)
    found = measure(["coverage", "kernel_distance"], real, real, settings=settings)
    assert found["coverage"].value > 0.5
    for figure in found.values():
        assert "from 100 of 400 real images and 100 of 400 samples" in figure.note


def test_floors_are_what_real_images_get() -> None:
    names = default_names(True)
    train, held_out = gaussian(0, 500, classes=4), gaussian(1, 100, classes=4)
    found = floors(names, train, held_out, 250, settings=QUICK)
    assert found.images == {HALVES: 250, HELD_OUT: 100}
    figures = measure(names, train, gaussian(2, 250, classes=4), settings=QUICK)
    for name, figure in with_floors(figures, found).items():
        assert set(figure.floor) == {HALVES, HELD_OUT}
        assert "“train against held-out” is of 100 images, not 250" in figure.note
        assert "halves" not in figure.note
        better = name in ("frechet_distance", "inception_score", "coverage")
        assert ("better of as many" in figure.note) == better
        assert figure.value == figures[name].value
    assert found.values["frechet_distance"][HALVES] == pytest.approx(
        frechet_bias(moments(train.values), 250, 250), rel=0.7
    )
    assert found == floors(names, train, held_out, 250, settings=QUICK)


def test_floors_without_held_out_images_are_of_halves_alone() -> None:
    found = floors(["precision"], gaussian(0, 60), None, 100, settings=QUICK)
    assert found.images == {HALVES: 30}
    assert set(found.values["precision"]) == {HALVES}


def test_what_cannot_be_measured_is_refused_in_one_line() -> None:
    real = gaussian(0, 50)
    for names, samples, match in (
        (["fid"], real, "unknown metric 'fid'"),
        (["precision"], gaussian(0, 50, 5), "4 features and samples 5"),
        (["precision"], real.take(slice(1)), "at least 2 samples, got 1"),
        (["precision"], FeatureSet(real.values * np.nan), "features of samples hold numbers"),
    ):
        with pytest.raises(InkdropError, match=match) as refusal:
            measure(names, real, samples)
        assert "\n" not in str(refusal.value)
    with pytest.raises(InkdropError, match="needs an extractor with classes"):
        check_names(["inception_score"], logits=False)
    with pytest.raises(InkdropError, match="replicas must be at least 1"):
        MetricSettings(replicas=0)


@pytest.mark.parametrize("count", [2, 3, 4, 6, 11])
def test_very_few_images_give_figures_or_a_reason(count: int) -> None:
    real, samples = gaussian(0, count, 1, classes=3), gaussian(1, count, 1, classes=3)
    for figure in measure(default_names(True), real, samples, settings=QUICK).values():
        assert figure.value is not None or figure.note


def test_global_random_state_is_left_alone() -> None:
    torch.manual_seed(0)
    before = torch.get_rng_state()
    x = gaussian(0, 60, classes=3)
    assert measure(default_names(True), x, x, settings=QUICK, seed=1) == measure(
        default_names(True), x, x, settings=QUICK, seed=1
    )
    assert torch.equal(before, torch.get_rng_state())
