"""The verdict on copies, of sets whose verdict is known."""

import numpy as np
import pytest
from sklearn.datasets import load_digits
from sklearn.neighbors import NearestNeighbors

from inkdrop.errors import InkdropError
from inkdrop.evaluation import memorisation
from inkdrop.evaluation.memorisation import judge, nearest, nearest_of
from inkdrop.evaluation.record import Memorisation

IMAGES = np.random.default_rng(0).permutation(load_digits().data).astype(np.float32)
TRAIN, HELD_OUT, OTHERS = IMAGES[:1000], IMAGES[1000:1300], IMAGES[1300:1700]


def verdict(samples: np.ndarray, held_out: np.ndarray = HELD_OUT) -> Memorisation:
    found = nearest(samples, TRAIN, held_out, "pixels")
    return judge([found], samples=len(samples), held_out=len(held_out))


@pytest.mark.parametrize("count", [50, 400])
def test_training_images_are_copies(count: int) -> None:
    found = verdict(TRAIN[:count])
    assert found.verdict == "copies"
    assert f"{count} of {count} samples" in found.evidence
    assert found.nearest[0].ratio == 0
    assert found.nearest[0].p_value < 1e-6


@pytest.mark.parametrize("blur", [0, 0.5])
def test_one_copy_in_twenty_is_found(blur: float) -> None:
    samples = OTHERS.copy()
    samples[::20] = TRAIN[:20] + blur * np.random.default_rng(1).standard_normal((20, 64))
    found = verdict(samples)
    assert found.verdict == "copies"
    closest = found.nearest[0].pairs[:20]
    assert {(sample, train) for sample, train, _ in closest} == {(20 * i, i) for i in range(20)}


def test_a_single_copy_is_suspected() -> None:
    samples = OTHERS.copy()
    samples[7] = TRAIN[3]
    found = verdict(samples)
    assert found.verdict == "suspected"
    assert "1 of 400 samples" in found.evidence
    assert found.nearest[0].pairs[0] == (7, 3, 0.0)


def test_images_never_trained_on_are_no_copies() -> None:
    found = verdict(OTHERS)
    assert found.verdict == "none seen"
    assert found.nearest[0].ratio == pytest.approx(1, abs=0.1)
    assert found.nearest[0].closer == pytest.approx(0.01, abs=0.02)


def test_true_images_are_hardly_ever_accused() -> None:
    rng = np.random.default_rng(0)
    accused = 0
    for _ in range(60):
        order = rng.permutation(IMAGES)
        train, held_out, samples = order[:900], order[900:1100], order[1100:]
        found = judge(
            [nearest(samples, train, held_out, "pixels")],
            samples=len(samples),
            held_out=len(held_out),
        )
        assert found.verdict != "copies"
        accused += found.verdict == "suspected"
    assert accused <= 2


def test_noise_is_far_from_everything_and_no_copy() -> None:
    found = verdict(np.random.default_rng(0).uniform(0, 16, (300, 64)).astype(np.float32))
    assert found.verdict == "none seen"
    assert found.nearest[0].ratio > 1.5
    assert found.nearest[0].closer == 0


def test_the_space_that_speaks_loudest_decides() -> None:
    innocent, guilty = (
        nearest(x, TRAIN, HELD_OUT, space)
        for x, space in ((OTHERS, "pixels"), (TRAIN[:400], "features"))
    )
    found = judge([innocent, guilty], samples=400, held_out=300)
    assert found.verdict == "copies"
    assert found.evidence.startswith("In features")


def test_duplicates_between_training_and_held_out_images_excuse_as_many_samples() -> None:
    held_out, samples = HELD_OUT.copy(), OTHERS.copy()
    held_out[:30], samples[:40] = TRAIN[:30], TRAIN[:40]
    assert verdict(samples, held_out).verdict == "none seen"
    assert verdict(TRAIN[:400], held_out).verdict == "copies"


def test_the_median_speaks_where_few_images_are_held_out() -> None:
    samples = (TRAIN[:200] + OTHERS[:200]) / 2  # neither copies nor honest
    assert verdict(0.8 * TRAIN[:200] + 0.2 * OTHERS[:200], HELD_OUT[:5]).verdict == "suspected"
    assert verdict(OTHERS, HELD_OUT[:5]).verdict == "none seen"
    assert verdict(samples, HELD_OUT).nearest[0].ratio > 0.7


def test_few_held_out_images_are_mentioned() -> None:
    assert "20 held-out examples are few" in verdict(OTHERS, HELD_OUT[:20]).evidence


@pytest.mark.parametrize("kind", [np.float32, np.uint8])
def test_neighbours_are_scikit_learns_in_any_chunks(
    kind: type, monkeypatch: pytest.MonkeyPatch
) -> None:
    samples, train = (x.astype(kind) for x in (OTHERS, TRAIN))
    monkeypatch.setattr(memorisation, "_CHUNK_BYTES", 64 * 300)
    distances, indices = nearest_of(samples, train)
    expected, _ = NearestNeighbors(n_neighbors=1).fit(TRAIN).kneighbors(OTHERS)
    assert distances == pytest.approx(expected[:, 0], rel=1e-6)
    named = np.linalg.norm(OTHERS - TRAIN[indices], axis=1)
    assert distances == pytest.approx(named, rel=1e-6)


def test_a_copy_far_from_the_origin_is_at_distance_zero() -> None:
    train = TRAIN + np.float32(4000)
    assert (nearest_of(train[:50], train)[0] == 0).all()


def test_sets_that_do_not_fit_are_refused() -> None:
    with pytest.raises(InkdropError, match=r"of one D, got \(400, 64\), \(1000, 64\), \(300, 63\)"):
        nearest(OTHERS, TRAIN, HELD_OUT[:, 1:], "pixels")
    with pytest.raises(InkdropError, match="at least one space"):
        judge([], samples=1, held_out=1)
