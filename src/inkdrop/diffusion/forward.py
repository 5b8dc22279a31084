"""The forward process: images dissolving into noise, in closed form."""

from __future__ import annotations

from typing import NamedTuple

from torch import Tensor

from .schedule import NoiseSchedule


class Gaussian(NamedTuple):
    """An isotropic Gaussian for each example: mean (B, …), variance broadcastable to it."""

    mean: Tensor
    variance: Tensor


def q_marginal(schedule: NoiseSchedule, x_start: Tensor, t: Tensor) -> Gaussian:
    """q(x_t | x_0) = N(√ᾱ_t x_0, (1-ᾱ_t) I) (Ho et al. 2020, Eq. 4). x_start (B, …), t (B,)."""
    sigma = schedule.lookup("sqrt_one_minus_alphas_cumprod", t, x_start)
    return Gaussian(schedule.lookup("sqrt_alphas_cumprod", t, x_start) * x_start, sigma**2)


def q_sample(schedule: NoiseSchedule, x_start: Tensor, t: Tensor, noise: Tensor) -> Tensor:
    """x_t = √ᾱ_t x_0 + √(1-ᾱ_t) ε (Ho et al. 2020, Eq. 4). x_start, noise (B, …), t (B,)."""
    return (
        schedule.lookup("sqrt_alphas_cumprod", t, x_start) * x_start
        + schedule.lookup("sqrt_one_minus_alphas_cumprod", t, x_start) * noise
    )


def q_step(schedule: NoiseSchedule, x_prev: Tensor, t: Tensor) -> Gaussian:
    """q(x_t | x_{t-1}) = N(√(1-β_t) x_{t-1}, β_t I) (Ho et al. 2020, Eq. 2).

    At t = 0, x_prev is x_0.
    """
    return Gaussian(
        schedule.lookup("alphas", t, x_prev).sqrt() * x_prev, schedule.lookup("betas", t, x_prev)
    )


def q_posterior(schedule: NoiseSchedule, x_start: Tensor, x_t: Tensor, t: Tensor) -> Gaussian:
    """q(x_{t-1} | x_t, x_0) (Ho et al. 2020, Eq. 6-7). x_start, x_t (B, …), t (B,).

    At t = 0 what comes before is the clean image itself: mean x_start, variance 0.
    """
    mean = (
        schedule.lookup("posterior_mean_coef_x_start", t, x_t) * x_start
        + schedule.lookup("posterior_mean_coef_x_t", t, x_t) * x_t
    )
    return Gaussian(mean, schedule.lookup("posterior_variance", t, x_t))
