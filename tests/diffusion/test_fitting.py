"""Fitted timesteps: the best path through the timesteps, by the model's own terms."""

import itertools
import math
import warnings

import numpy as np
import pytest
import torch

from inkdrop.diffusion.fitting import (
    PathErrors,
    StepTerms,
    bound_of,
    fit_path,
    fit_timesteps,
    measure_path,
    measure_terms,
)
from inkdrop.diffusion.likelihood import bits_per_dim
from inkdrop.diffusion.oracle import GaussianMixture
from inkdrop.diffusion.samplers import ddim, initial_noise, sample, sample_steps
from inkdrop.diffusion.schedule import NoiseSchedule, ScheduleWarning
from inkdrop.diffusion.spacing import SPACINGS, spaced_timesteps
from inkdrop.errors import InkdropError

MIXTURE = GaussianMixture(
    means=[[0.8, 0.3], [-0.6, -0.5]],
    covariances=[[[0.1, 0.05], [0.05, 0.08]], [[0.05, 0.0], [0.0, 0.3]]],
    weights=[0.4, 0.6],
)
SCHEDULE = NoiseSchedule.linear(200)


@pytest.fixture(scope="module")
def terms() -> StepTerms:
    return measure_terms(MIXTURE.denoiser(SCHEDULE), MIXTURE.sample(400), batch_size=150)


def random_terms(total: int, seed: int) -> StepTerms:
    draws = np.random.default_rng(seed)
    return StepTerms(draws.random(total), draws.normal(size=total), 1)


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("count", [1, 2, 3, 5, 8])
def test_the_fitted_timesteps_are_the_best_of_all(seed: int, count: int) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ScheduleWarning)
        schedule = NoiseSchedule.linear(8, 0.1, 0.4)
    terms = random_terms(8, seed)
    every_path = itertools.combinations(range(6, -1, -1), count - 1)
    best = min(bound_of(schedule, terms, [7, *path]) for path in every_path)
    fitted = fit_timesteps(schedule, terms, count)
    assert len(fitted) == count
    assert bound_of(schedule, terms, fitted) == pytest.approx(best, abs=1e-12)


def test_no_fixed_choice_has_a_lower_bound(terms: StepTerms) -> None:
    for count in (1, 2, 5, 10, 20, 50, 200):
        fitted = bound_of(SCHEDULE, terms, fit_timesteps(SCHEDULE, terms, count))
        for name in SPACINGS:
            if name == "leading":  # does not start at T-1, so that its bound is of something else
                continue
            fixed = bound_of(SCHEDULE, terms, spaced_timesteps(SCHEDULE, count, name))
            assert fitted <= fixed + 1e-12


def test_more_steps_have_a_lower_bound(terms: StepTerms) -> None:
    bounds = [
        bound_of(SCHEDULE, terms, fit_timesteps(SCHEDULE, terms, count))
        for count in (1, 2, 3, 5, 10, 20)
    ]
    assert bounds == sorted(bounds, reverse=True)


def test_the_terms_of_the_oracle_are_its_posterior_variances(terms: StepTerms) -> None:
    best = MIXTURE.best_loss(SCHEDULE, t=[0, 50, 199], n=4000)
    for t, noise_error in zip(best.timesteps.tolist(), best.value.tolist(), strict=True):
        assert terms.x_start_mse[t] == pytest.approx(noise_error / SCHEDULE.snr[t].item(), rel=0.15)


def test_a_decoders_term_is_that_of_the_variance_that_fits_best(terms: StepTerms) -> None:
    # A Gaussian's -log density with its own variance is ½ (1 + log 2πσ²), whatever it decodes.
    expected = (1 + np.log(2 * math.pi * terms.x_start_mse)) / 2
    np.testing.assert_allclose(terms.decoder, expected, rtol=0, atol=1e-12)


def test_the_bound_of_timesteps_is_the_respaced_models_own(terms: StepTerms) -> None:
    timesteps = [199, 120, 60, 20, 4]
    denoiser = MIXTURE.denoiser(SCHEDULE).respaced(timesteps[::-1])
    exact = bits_per_dim(denoiser, MIXTURE.sample(4000, seed=1))
    steps = (bound_of(SCHEDULE, terms, timesteps) - terms.decoder[4]) / math.log(2)
    assert steps == pytest.approx(exact.per_timestep.sum().item(), rel=0.1)


def test_measuring_does_not_depend_on_the_batch() -> None:
    x = MIXTURE.sample(20)
    denoiser = MIXTURE.denoiser(NoiseSchedule.cosine(10))
    whole, parts = (measure_terms(denoiser, x, batch_size=size) for size in (20, 7))
    np.testing.assert_allclose(whole.x_start_mse, parts.x_start_mse, rtol=1e-12)
    np.testing.assert_allclose(whole.decoder, parts.decoder, rtol=1e-12)
    assert whole.examples == 20


@pytest.mark.parametrize("count", [1, 2, 3, 5, 9])
def test_the_fitted_path_is_the_best_of_all(count: int) -> None:
    draws = np.random.default_rng(count)
    errors = PathErrors(tuple(range(80, -1, -10)), draws.random((9, 9)), draws.random(9), 1)

    def cost(path: tuple[int, ...]) -> float:
        steps = sum(errors.step[a, b] for a, b in itertools.pairwise(path))
        return float(steps + errors.last[path[-1]])

    paths = [(0, *rest) for rest in itertools.combinations(range(1, 9), count - 1)]
    best = min(paths, key=cost)
    assert fit_path(errors, count) == [errors.timesteps[i] for i in best]


def test_a_steps_error_is_what_a_ddim_step_misses_the_path_by() -> None:
    denoiser = MIXTURE.denoiser(SCHEDULE)
    errors = measure_path(denoiser, 30, seed=2)
    assert errors.timesteps == tuple(spaced_timesteps(SCHEDULE, 125))
    x = initial_noise(30, (2,), 2)
    states = list(sample_steps(denoiser, x_init=x, table=ddim(SCHEDULE, errors.timesteps)))
    for i, j in ((0, 1), (0, 60), (40, 90), (123, 124)):
        start = x if i == 0 else states[i - 1].x
        # One large step: the first row of a table that visits only these two.
        table = ddim(SCHEDULE, [errors.timesteps[i], errors.timesteps[j]])
        reached = next(sample_steps(denoiser, x_init=start.double(), table=table)).x
        missed = ((reached - states[j - 1].x) ** 2).mean().item()
        assert errors.step[i, j] == pytest.approx(missed, rel=1e-3, abs=1e-12)
    assert errors.step[0, 1] < 1e-10  # the path's own step
    missed = ((states[60].x_start - states[-1].x) ** 2).mean().item()
    assert errors.last[60] == pytest.approx(missed, rel=1e-5)


def test_fitted_paths_sample_nearer_to_the_path_than_even_steps() -> None:
    schedule = NoiseSchedule.cosine(400)
    denoiser = MIXTURE.denoiser(schedule)
    errors = measure_path(denoiser, 64)
    x = initial_noise(200, (2,), seed=9).double()
    exact = sample(denoiser, x_init=x, sampler="ddim", steps=400)
    for count in (5, 10, 20):
        missed = [
            ((sample(denoiser, x_init=x, timesteps=timesteps) - exact) ** 2).mean().item()
            for timesteps in (fit_path(errors, count), spaced_timesteps(schedule, count))
        ]
        assert missed[0] < missed[1]


def test_a_mistake_is_named_in_one_line(terms: StepTerms) -> None:
    with pytest.raises(InkdropError, match="between 1 and 200, got 201"):
        fit_timesteps(SCHEDULE, terms, 201)
    with pytest.raises(InkdropError, match="at 200 timesteps, but the schedule has 100"):
        fit_timesteps(NoiseSchedule.linear(100), terms, 5)
    with pytest.raises(InkdropError, match="no images"):
        measure_terms(MIXTURE.denoiser(SCHEDULE), torch.empty(0, 2, dtype=torch.float64))
