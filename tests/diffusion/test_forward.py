"""The forward process: steps compose to the closed form, and Bayes' rule gives the posterior."""

import pytest
import torch

from inkdrop.diffusion.forward import q_marginal, q_posterior, q_sample, q_step
from inkdrop.diffusion.schedule import NoiseSchedule
from inkdrop.errors import InkdropError

SCHEDULES = [NoiseSchedule.linear(), NoiseSchedule.cosine(), NoiseSchedule.sigmoid(50)]


def images(*shape, seed=0):
    return torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def at(t, examples=2):
    return torch.full((examples,), t)


def normal_density(x, mean, variance):
    return torch.exp(-((x - mean) ** 2) / (2 * variance)) / (2 * torch.pi * variance).sqrt()


@pytest.mark.parametrize("schedule", SCHEDULES, ids=repr)
def test_single_steps_compose_to_the_closed_form(schedule):
    x_start = images(2, 3, 4, 5)
    mean, variance = x_start, torch.zeros(2, 1, 1, 1, dtype=torch.float64)
    for t in range(schedule.timesteps):
        step = q_step(schedule, mean, at(t))
        variance = (1 - schedule.betas[t]) * variance + step.variance
        mean = step.mean
        closed = q_marginal(schedule, x_start, at(t))
        torch.testing.assert_close(mean, closed.mean, rtol=1e-12, atol=1e-12)
        torch.testing.assert_close(variance, closed.variance, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("schedule", SCHEDULES, ids=repr)
def test_a_sample_is_the_marginal_mean_plus_its_deviation_times_the_noise(schedule):
    x_start, noise = images(3, 2, 4), images(3, 2, 4, seed=1)
    t = torch.tensor([0, 7, schedule.timesteps - 1])
    marginal = q_marginal(schedule, x_start, t)
    torch.testing.assert_close(
        q_sample(schedule, x_start, t, noise),
        marginal.mean + marginal.variance.sqrt() * noise,
        rtol=1e-12,
        atol=1e-12,
    )
    assert marginal.variance.flatten().tolist() == pytest.approx(
        (1 - schedule.alphas_cumprod[t]).tolist(), rel=1e-11
    )


def test_each_example_has_its_own_timestep():
    schedule, x_start, noise = SCHEDULES[0], images(3, 2, 2), images(3, 2, 2, seed=1)
    t = torch.tensor([999, 0, 500])
    together = q_sample(schedule, x_start, t, noise)
    for i in range(3):
        one = slice(i, i + 1)
        alone = q_sample(schedule, x_start[one], t[one], noise[one])
        assert torch.equal(together[one], alone)


@pytest.mark.parametrize("t", [1, 2, 10, 25, 48, 49])
def test_the_posterior_is_what_bayes_rule_gives_on_a_grid(t):
    """q(x_{t-1} | x_t, x_0) ∝ q(x_t | x_{t-1}) q(x_{t-1} | x_0), integrated numerically."""
    schedule = NoiseSchedule.sigmoid(50)
    x_start = torch.tensor([[0.7], [-1.0]], dtype=torch.float64)
    x_t = torch.tensor([[-0.4], [1.5]], dtype=torch.float64)
    formula = q_posterior(schedule, x_start, x_t, at(t))

    width = 14 * formula.variance.sqrt().max()
    grid = formula.mean + torch.linspace(-1, 1, 20_001, dtype=torch.float64) * width  # (2, grid)
    step = q_step(schedule, grid, at(t))
    before = q_marginal(schedule, x_start, at(t - 1))
    weight = normal_density(x_t, step.mean, step.variance) * normal_density(
        grid, before.mean, before.variance
    )
    weight /= weight.sum(1, keepdim=True)
    mean = (weight * grid).sum(1, keepdim=True)
    variance = (weight * (grid - mean) ** 2).sum(1, keepdim=True)
    torch.testing.assert_close(formula.mean, mean, rtol=0, atol=1e-10)
    torch.testing.assert_close(formula.variance, variance, rtol=1e-9, atol=1e-10)


@pytest.mark.parametrize("schedule", SCHEDULES, ids=repr)
def test_before_the_first_timestep_is_the_clean_image(schedule):
    x_start, x_t = images(2, 3), images(2, 3, seed=1)
    posterior = q_posterior(schedule, x_start, x_t, at(0))
    torch.testing.assert_close(posterior.mean, x_start, rtol=1e-15, atol=0)
    assert (posterior.variance == 0).all()
    step, marginal = q_step(schedule, x_start, at(0)), q_marginal(schedule, x_start, at(0))
    torch.testing.assert_close(step.mean, marginal.mean, rtol=1e-14, atol=0)
    torch.testing.assert_close(step.variance, marginal.variance, rtol=1e-12, atol=0)


def test_float32_images_stay_float32():
    schedule, x = SCHEDULES[0], images(2, 3).float()
    assert q_sample(schedule, x, at(5), x).dtype == torch.float32
    for gaussian in (
        q_marginal(schedule, x, at(5)),
        q_step(schedule, x, at(5)),
        q_posterior(schedule, x, x, at(5)),
    ):
        assert gaussian.mean.dtype == gaussian.variance.dtype == torch.float32


@pytest.mark.parametrize("t", [-1, 1000, 0.5])
def test_a_timestep_outside_the_schedule_is_an_error_and_does_not_wrap_around(t):
    schedule, x = SCHEDULES[0], images(2, 3)
    for call in (
        lambda t: q_sample(schedule, x, t, x),
        lambda t: q_marginal(schedule, x, t),
        lambda t: q_step(schedule, x, t),
        lambda t: q_posterior(schedule, x, x, t),
    ):
        with pytest.raises(InkdropError, match="t must"):
            call(torch.tensor([t, t]))
