"""Timesteps may be drawn in any way, as long as the weights make up for it."""

from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from inkdrop.diffusion.timestep_sampling import (
    HISTORY,
    TIMESTEP_SAMPLERS,
    LossAware,
    Stratified,
    TimestepSampler,
    timestep_sampler,
)
from inkdrop.errors import InkdropError


class Offset:
    """A generator whose one uniform draw is given."""

    def __init__(self, value):
        self.value = value

    def random(self):
        return self.value


def warmed_up(timesteps, scale, seed=0):
    """A loss-aware sampler that has seen each t HISTORY times, with losses around scale (T,)."""
    sampler = LossAware(timesteps)
    losses = np.random.default_rng(seed).normal(scale, 0.1 * np.abs(scale), (HISTORY, timesteps))
    for row in losses:
        sampler.observe(np.arange(timesteps), row)
    return sampler, losses


def expectation(sampler, count, f):
    """E[mean of weight f(t)], by exact integration over the offset of the strata."""
    p = sampler.probabilities() if isinstance(sampler, LossAware) else np.ones(sampler.timesteps)
    edges = np.concatenate([[0], p.cumsum() / p.sum()])
    breaks = np.unique(np.concatenate([[0, 1], (edges * count) % 1]))
    total = 0.0
    for low, high in pairwise(breaks):
        draw = sampler.draw(count, Offset((low + high) / 2))
        total += (high - low) * (draw.weight * f[draw.t]).mean()
    return total


sizes = st.tuples(st.integers(1, 60), st.integers(1, 40), st.integers(0, 1000))


@given(sizes)
def test_stratified_draws_average_to_the_mean_over_all_timesteps(size):
    timesteps, count, seed = size
    f = np.random.default_rng(seed).normal(size=timesteps)
    sampler = Stratified(timesteps)
    assert expectation(sampler, count, f) == pytest.approx(f.mean(), rel=1e-11, abs=1e-12)
    assert expectation(sampler, count, np.ones(timesteps)) == pytest.approx(1, rel=1e-12)


@given(sizes)
def test_loss_aware_draws_weighted_average_to_the_mean_over_all_timesteps(size):
    timesteps, count, seed = size
    random = np.random.default_rng(seed)
    f, scale = random.normal(size=timesteps), np.exp(3 * random.normal(size=timesteps))
    sampler, _ = warmed_up(timesteps, scale, seed)
    assert expectation(sampler, count, f) == pytest.approx(f.mean(), rel=1e-9, abs=1e-9)
    assert expectation(sampler, count, np.ones(timesteps)) == pytest.approx(1, rel=1e-9)


def test_uniform_draws_are_uniform_independent_and_of_weight_one():
    draw = TimestepSampler(50).draw(200_000, np.random.default_rng(0))
    counts = np.bincount(draw.t, minlength=50)
    assert len(counts) == 50
    assert 20 < ((counts - 4000) ** 2 / 4000).sum() < 90  # chi-square of 49 degrees of freedom
    pairs = np.corrcoef(draw.t[:-1], draw.t[1:])[0, 1]
    assert abs(pairs) < 4 / 200_000**0.5
    assert (draw.weight == 1).all()


@given(st.integers(1, 300), st.integers(1, 300), st.integers(0, 1000))
def test_stratified_draws_are_one_from_each_equal_part(timesteps, count, seed):
    draw = Stratified(timesteps).draw(count, np.random.default_rng(seed))
    assert draw.t.dtype == np.int64
    assert (draw.weight == 1).all()
    part = np.arange(count)
    assert (draw.t >= np.floor(part * timesteps / count - 1e-9)).all()
    assert (draw.t <= np.ceil((part + 1) * timesteps / count + 1e-9) - 1).all()
    if count == timesteps:
        assert draw.t.tolist() == list(range(timesteps))


def test_the_last_offset_of_all_stays_inside_the_schedule():
    nearly = np.nextafter(1, 0)
    for timesteps, count in ((1, 1), (1000, 1), (1000, 7), (1000, 128), (3, 1000)):
        assert Stratified(timesteps).draw(count, Offset(nearly)).t.max() == timesteps - 1
        sampler, _ = warmed_up(timesteps, np.linspace(1, 0.01, timesteps))
        assert sampler.draw(count, Offset(nearly)).t.max() == timesteps - 1
        assert sampler.draw(count, Offset(0.0)).t.min() == 0


def variance(sampler, f, batches=2000, count=16):
    """Of a batch's mean of weight f(t)."""
    random = np.random.default_rng(0)
    draws = (sampler.draw(count, random) for _ in range(batches))
    return np.var([(draw.weight * f[draw.t]).mean() for draw in draws])


def test_stratified_and_loss_aware_batches_vary_less():
    f = 1 / np.arange(1, 201)  # as the terms of a bound
    uniform = variance(TimestepSampler(200), f)
    assert variance(Stratified(200), f) < 0.7 * uniform
    sampler, _ = warmed_up(200, f)
    assert variance(sampler, f) < uniform / 50
    smooth = np.sin(np.arange(200) / 30)
    assert variance(Stratified(200), smooth) < variance(TimestepSampler(200), smooth) / 50


def test_loss_aware_probabilities_are_the_root_mean_squares_of_the_last_ten_losses():
    """Nichol & Dhariwal 2021, Sec. 3.3, with a thousandth of the draws uniform as in their code."""
    sampler, _ = warmed_up(6, np.full(6, 7.0))
    random, seen = np.random.default_rng(1), [[] for _ in range(6)]
    for _ in range(30):
        t, losses = random.integers(6, size=9), random.normal(size=9)
        sampler.observe(t, losses)
        for timestep, loss in zip(t, losses, strict=True):
            seen[timestep].append(loss)
    assert min(map(len, seen)) >= 10
    size = np.array([np.sqrt(np.mean(np.square(losses[-10:]))) for losses in seen])
    expected = 0.999 * size / size.sum() + 0.001 / 6
    np.testing.assert_allclose(sampler.probabilities(), expected, rtol=1e-12)
    assert sampler.probabilities().sum() == pytest.approx(1, abs=1e-14)
    draw = sampler.draw(1000, np.random.default_rng(0))
    np.testing.assert_allclose(draw.weight, 1 / (6 * expected[draw.t]), rtol=1e-12)
    np.testing.assert_allclose(np.bincount(draw.t) / 1000, expected, atol=0.0011)


def test_loss_aware_draws_are_uniform_until_every_timestep_was_seen_ten_times():
    sampler = LossAware(5)
    for seen in range(HISTORY):
        assert (sampler.probabilities() == 0.2).all()
        assert (sampler.draw(10, np.random.default_rng(0)).weight == 1).all()
        sampler.observe(np.arange(5), np.arange(5.0) + 1)
        sampler.observe(np.array([0]), np.array([100.0]))
        assert seen < HISTORY
    assert (sampler.probabilities() != 0.2).all()


@pytest.mark.parametrize("loss", [0.0, np.nan, np.inf])
def test_losses_that_say_nothing_leave_the_draws_uniform(loss):
    sampler, _ = warmed_up(4, np.ones(4))
    for t in range(4) if loss == 0 else [2]:
        sampler.observe(np.full(HISTORY, t), np.full(HISTORY, loss))
    assert (sampler.probabilities() == 0.25).all()
    sampler.observe(np.full(HISTORY, 2), np.full(HISTORY, 5.0))
    assert sampler.probabilities()[2] > 0.5


def test_a_timestep_of_no_loss_is_not_forgotten():
    sampler, _ = warmed_up(4, np.array([1.0, 0, 1, 1]))
    assert sampler.probabilities()[1] == pytest.approx(0.001 / 4)


@pytest.mark.parametrize("name", sorted(TIMESTEP_SAMPLERS))
def test_a_draw_is_a_pure_function_of_the_generator_and_of_what_was_observed(name):
    one, two = timestep_sampler(name, 30), timestep_sampler(name, 30)
    history = np.random.default_rng(3)
    for step in range(100):
        t, losses = np.arange(30), history.normal(size=30)
        one.observe(t, losses)
        two.observe(t, losses)
        if step in (3, 50):  # a checkpoint between, that must not look like one
            state = two.state()
            two = timestep_sampler(name, 30)
            two.restore(state)
        a, b = (sampler.draw(20, np.random.default_rng(step)) for sampler in (one, two))
        assert a.t.tolist() == b.t.tolist()
        assert a.weight.tolist() == b.weight.tolist()


def test_a_state_that_was_kept_does_not_change_with_what_is_observed_later():
    sampler, _ = warmed_up(4, np.ones(4))
    state = sampler.state()
    kept = {name: value.copy() for name, value in state.items()}
    other = LossAware(4)
    other.restore(state)
    for observer in (sampler, other):
        observer.observe(np.arange(4), np.full(4, 9.0))
    for name, value in kept.items():
        assert (state[name] == value).all()


def test_an_unknown_name_is_told_the_nearest():
    with pytest.raises(InkdropError, match="'stratifed': did you mean 'stratified'"):
        timestep_sampler("stratifed", 10)
