"""The least loss at a timestep, where the variance of x_0 given x_t is known.

The best estimate is the posterior mean, and what it leaves is the posterior's variance V (B, D).
With L = log of the reverse step's variance and c the weight of x_0 in its mean, a term of the bound
is ½ (β̃/e^L - 1 - ln β̃ + L + c² V/e^L): least for e^L = β̃ + c² V.
"""

from __future__ import annotations

import math
from collections.abc import Mapping

import torch
from torch import Tensor

from ..errors import InkdropError, unknown_name
from .objectives import (
    BOUND_WEIGHT,
    MIN_SNR_GAMMA,
    NOISE_ERROR_FACTORS,
    P2_GAMMA,
    P2_K,
    VARIANCES,
    min_snr_weight,
    p2_weight,
)
from .prediction import PREDICTIONS
from .schedule import NoiseSchedule

PARAMETERS: dict[str, tuple[str, ...]] = {
    "simple": (),
    "weighted_noise": (),
    "min_snr": ("gamma",),
    "p2": ("gamma", "k"),
    "variational_bound": (),
    "hybrid": ("bound_weight",),
}  # of the objectives whose least loss is known


def least_loss(
    schedule: NoiseSchedule,
    objective: str,
    prediction: str,
    variance: str,
    t: int,
    posterior_variance: Tensor,
    **parameters: float,
) -> Tensor:
    """The least loss (B,) at t, for the variances (B, D) of x_0 given x_t.

    The other arguments are those of `GaussianMixture.best_loss`.
    """
    _check(objective, prediction, variance, parameters)
    snr = schedule.snr[t]
    noise_error = snr * posterior_variance.mean(1)
    factor = NOISE_ERROR_FACTORS[prediction]
    own_error = noise_error if factor is None else noise_error / getattr(schedule, factor)[t]
    if objective == "simple":
        return own_error
    if objective == "weighted_noise":
        weights: Tensor = getattr(schedule, f"bound_weight_{variance}")
        return weights[t] * noise_error
    if objective == "min_snr":
        return min_snr_weight(snr, parameters.get("gamma", MIN_SNR_GAMMA)) * noise_error
    if objective == "p2":
        gamma, k = parameters.get("gamma", P2_GAMMA), parameters.get("k", P2_K)
        return p2_weight(snr, gamma, k) * noise_error
    if objective == "variational_bound":
        return _least_bound(schedule, variance, t, posterior_variance)
    if objective == "hybrid":
        scale = parameters.get("bound_weight", BOUND_WEIGHT) * schedule.timesteps
        return own_error + scale * _least_bound(schedule, "learned", t, posterior_variance)
    raise AssertionError(objective)


def _check(objective: str, prediction: str, variance: str, parameters: Mapping[str, float]) -> None:
    if objective not in PARAMETERS:
        raise unknown_name("objective", objective, PARAMETERS)
    if prediction not in PREDICTIONS:
        raise unknown_name("prediction", prediction, PREDICTIONS)
    variances = VARIANCES[:2] if objective == "weighted_noise" else VARIANCES
    if variance not in variances:
        raise unknown_name("variance", variance, variances)
    allowed = PARAMETERS[objective]
    for name in parameters:
        if name not in allowed:
            raise InkdropError(
                f"the objective {objective} has no parameter {name!r}: it has "
                f"{', '.join(allowed) or 'none'}"
            )


def best_variance_fraction(
    schedule: NoiseSchedule, t: Tensor | int, posterior_variance: Tensor
) -> Tensor:
    """Where the best learned variance lies between β̃_t (0) and β_t (1), in their logarithms.

    t: one for all, or (B, 1). Returns (B, D), as posterior_variance.
    """
    low = schedule.log_posterior_variance_clipped[t]
    span = schedule.log_betas[t] - low
    best = _best_log_variance(schedule, t, posterior_variance)
    fraction: Tensor = (best - low) / torch.where(span == 0, 1.0, span)
    return fraction


def _best_log_variance(
    schedule: NoiseSchedule, t: Tensor | int, posterior_variance: Tensor
) -> Tensor:
    # At t = 0, where the decoder stands, the coefficient is 1 and β̃_t zero.
    coefficient = schedule.posterior_mean_coef_x_start[t]
    best = (schedule.posterior_variance[t] + coefficient**2 * posterior_variance).log()
    low = schedule.log_posterior_variance_clipped[t]
    # Where β̃_t and β_t are one number, as for T = 1, there is nothing to learn between them.
    return torch.where(schedule.log_betas[t] == low, low, best)


def _least_bound(
    schedule: NoiseSchedule, variance: str, t: int, posterior_variance: Tensor
) -> Tensor:
    log_variance = {
        "posterior": lambda: schedule.log_posterior_variance_clipped[t],
        "beta": lambda: schedule.log_betas[t],
        "learned": lambda: _best_log_variance(schedule, t, posterior_variance),
    }[variance]()
    if t == 0:
        terms = posterior_variance * torch.exp(-log_variance) + log_variance + math.log(2 * math.pi)
    else:
        ratio = schedule.log_posterior_variance_clipped[t] - log_variance
        squared = schedule.posterior_mean_coef_x_start[t] ** 2 * posterior_variance
        terms = torch.expm1(ratio) - ratio + squared * torch.exp(-log_variance)
    return terms.mean(1) / 2
