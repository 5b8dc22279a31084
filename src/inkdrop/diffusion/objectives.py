"""Training objectives: one loss per example, reduced by whoever asks.

All are means over an example's dimensions, so that they do not grow with the image. With ε̂ the
network's noise, SNR = ᾱ_t / (1-ᾱ_t), and a loss written as w ‖ε - ε̂‖² / D:

    simple             w = 1, on the network's own prediction         Ho et al. 2020, Eq. 14
    weighted_noise     w = β_t² / (2σ_t² α_t (1-ᾱ_t))                 Ho et al. 2020, Eq. 12
    min_snr            w = min(SNR, γ) / SNR                          Hang et al. 2023, Sec. 3.4
    p2                 w = 1 / (k + SNR)^γ                            Choi et al. 2022
    snr_weighted       w = any function of SNR
    variational_bound  the terms L_0 … L_{T-1} of the bound           Ho et al. 2020, Eq. 5, 13
    hybrid             simple + λ T variational_bound                 Nichol & Dhariwal 2021, Eq. 16
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, Protocol

import torch
from torch import Tensor

from ..errors import InkdropError, unknown_name
from .clipping import chosen_clip, clipped
from .denoiser import Denoiser, Estimate, Output
from .forward import q_sample
from .prediction import Pair, from_pair
from .schedule import NoiseSchedule

VARIANCES = ("posterior", "beta", "learned")
DECODERS = ("auto", "pixels", "density")
MIN_SNR_GAMMA = 5.0  # Hang et al. 2023's default
P2_GAMMA, P2_K = 1.0, 1.0  # Choi et al. 2022
BOUND_WEIGHT = 0.001  # λ of Nichol & Dhariwal 2021, Sec. 3.1
# The schedule's name of ‖ε - ε̂‖² / (error of the network's own prediction); None for 1.
NOISE_ERROR_FACTORS = {
    "noise": None,
    "x_start": "snr",
    "velocity": "alphas_cumprod",
    "score": "one_minus_alphas_cumprod",
}
_HALF_LEVEL = 1 / 255  # of the 256 levels in [-1, 1], which lie 2/255 apart
_OFF_LEVEL = 0.25  # levels by which a pixel may be off, for those rounded to half precision
_RANGE_SLACK = 1e-4  # beyond [-1, 1], for pixels rounded to half precision on their way


class Objective(Protocol):
    """Losses (B,) of a denoiser at (x_start, t, noise)."""

    def __call__(
        self,
        denoiser: Denoiser,
        x_start: Tensor,
        t: Tensor,
        noise: Tensor,
        condition: Any = None,
    ) -> Tensor: ...


def simple(
    denoiser: Denoiser,
    x_start: Tensor,
    t: Tensor,
    noise: Tensor,
    condition: Any = None,
) -> Tensor:
    """L_simple: the squared error of the network's own prediction, averaged over dimensions.

    Ho et al. 2020, Eq. 14, for a network that predicts noise; for one that predicts x_start,
    velocity or score the target is that.

    Args:
        x_start, noise: (B, …). t: (B,) integers. condition: as the network takes it.

    Returns:
        (B,) losses.

    Raises:
        InkdropError: for shapes that do not fit together, or t outside 0 … T-1.
    """
    _, output = _asked(denoiser, x_start, t, noise, condition)
    return _own_error(denoiser, output, x_start, t, noise)


def weighted_noise(
    denoiser: Denoiser,
    x_start: Tensor,
    t: Tensor,
    noise: Tensor,
    condition: Any = None,
    *,
    variance: str = "posterior",
) -> Tensor:
    """The ε error as the bound weighs it: β_t² / (2σ_t² α_t (1-ᾱ_t)) ‖ε - ε̂‖².

    Ho et al. 2020, Eq. 12. At t ≥ 1 this is the term L_t of the bound, in nats per dimension (for
    σ_t² = β_t less what no network can change). At t = 0, where β̃_t is zero, σ_t² is β̃_1 as in
    Ho's code.

    Args:
        variance: σ_t², "posterior" (β̃_t) or "beta" (β_t).
        The rest is as for `simple`.
    """
    if variance not in ("posterior", "beta"):
        raise unknown_name("variance", variance, ("posterior", "beta"))
    _, output = _asked(denoiser, x_start, t, noise, condition)
    weight = denoiser.schedule.lookup(f"bound_weight_{variance}", t, x_start).flatten()
    return weight * _noise_error(denoiser, output, x_start, t, noise)


def min_snr(
    denoiser: Denoiser,
    x_start: Tensor,
    t: Tensor,
    noise: Tensor,
    condition: Any = None,
    *,
    gamma: float = MIN_SNR_GAMMA,
) -> Tensor:
    """min(SNR, γ)/SNR ‖ε - ε̂‖², which is min(SNR, γ) ‖x_0 - x̂_0‖² (Hang et al. 2023, Sec. 3.4)."""
    objective = snr_weighted(lambda snr: min_snr_weight(snr, gamma))
    return objective(denoiser, x_start, t, noise, condition)


def p2(
    denoiser: Denoiser,
    x_start: Tensor,
    t: Tensor,
    noise: Tensor,
    condition: Any = None,
    *,
    gamma: float = P2_GAMMA,
    k: float = P2_K,
) -> Tensor:
    """‖ε - ε̂‖² / (k + SNR)^γ: perception prioritised (Choi et al. 2022)."""
    objective = snr_weighted(lambda snr: p2_weight(snr, gamma, k))
    return objective(denoiser, x_start, t, noise, condition)


def snr_weighted(weight: Callable[[Tensor], Tensor]) -> Objective:
    """The objective weight(SNR) ‖ε - ε̂‖² / D, for one's own function of the SNR.

    Args:
        weight: from float64 SNRs (B,) to finite weights (B,) of at least 0.
    """

    def objective(
        denoiser: Denoiser,
        x_start: Tensor,
        t: Tensor,
        noise: Tensor,
        condition: Any = None,
    ) -> Tensor:
        _, output = _asked(denoiser, x_start, t, noise, condition)
        # The weights of all T timesteps, so that no step of training can meet a bad one first.
        weights = torch.as_tensor(weight(denoiser.schedule.snr))
        if weights.shape != denoiser.schedule.snr.shape:
            raise InkdropError(
                f"the weighting was given {denoiser.schedule.timesteps} SNRs and returned shape "
                f"{tuple(weights.shape)}; it must return one weight for each"
            )
        if not (weights.isfinite() & (weights >= 0)).all():
            raise InkdropError("the weighting must return finite weights of at least 0")
        weights = weights.to(x_start.dtype).to(x_start.device)[t.long()]
        return weights * _noise_error(denoiser, output, x_start, t, noise)

    return objective


def min_snr_weight(snr: Tensor, gamma: float) -> Tensor:
    """min(SNR, γ)/SNR, what `min_snr` weighs ‖ε - ε̂‖² with."""
    if not gamma > 0:
        raise InkdropError(f"min-SNR's gamma must be above 0, got {gamma!r}")
    return snr.clamp(max=gamma) / snr


def p2_weight(snr: Tensor, gamma: float, k: float) -> Tensor:
    """1/(k + SNR)^γ, what `p2` weighs ‖ε - ε̂‖² with."""
    if not gamma >= 0 or not k > 0:
        raise InkdropError(f"P2 needs gamma of at least 0 and k above 0, got {gamma!r} and {k!r}")
    weight: Tensor = (k + snr) ** -gamma
    return weight


def variational_bound(
    denoiser: Denoiser,
    x_start: Tensor,
    t: Tensor,
    noise: Tensor,
    condition: Any = None,
    *,
    variance: str | None = None,
    decoder: str = "auto",
    clip: str | None = None,
) -> Tensor:
    """The term of the variational bound at t, in nats per dimension (Ho et al. 2020, Eq. 3 and 5).

    For t ≥ 1 it is KL(q(x_{t-1}|x_t,x_0) ‖ p(x_{t-1}|x_t)), for t = 0 the decoder's
    -log p(x_0|x_1). With t uniform over 0 … T-1, T times its mean, plus `prior_term`, is an
    unbiased estimate of the whole bound on -log p(x_0).

    Args:
        variance: of the reverse steps: "posterior" (β̃_t), "beta" (β_t) or "learned"; by default
            learned where the denoiser learns one, else posterior.
        decoder: "pixels" gives each of 256 levels in [-1, 1] its probability (Eq. 13), "density"
            is the Gaussian density; "auto" is pixels for images (C, H, W).
        clip: what keeps x̂₀ in range, as for `sample`.
        The rest is as for `simple`.

    Raises:
        InkdropError: for a learned variance of a denoiser that has none, or pixels outside
            [-1, 1]; and as `simple`.
    """
    x_t, output = _asked(denoiser, x_start, t, noise, condition)
    return _bound(denoiser, output, x_start, x_t, t, variance, decoder, clip)


def hybrid(
    denoiser: Denoiser,
    x_start: Tensor,
    t: Tensor,
    noise: Tensor,
    condition: Any = None,
    *,
    bound_weight: float = BOUND_WEIGHT,
    decoder: str = "auto",
) -> Tensor:
    """L_simple + λ T L_t: simple teaches the mean, the bound the variance alone.

    Nichol & Dhariwal 2021, Eq. 16 with the mean's gradient stopped in the bound. For denoisers that
    learn a variance.
    """
    x_t, output = _asked(denoiser, x_start, t, noise, condition)
    stopped = Output(output.prediction.detach(), output.variance_fraction)
    bound = _bound(denoiser, stopped, x_start, x_t, t, "learned", decoder, None)
    loss = _own_error(denoiser, output, x_start, t, noise)
    return loss + bound_weight * denoiser.schedule.timesteps * bound


def prior_term(schedule: NoiseSchedule, x_start: Tensor) -> Tensor:
    """L_T = KL(q(x_T|x_0) ‖ N(0, I)) (B,), in nats per dimension (Ho et al. 2020, Eq. 5)."""
    last = torch.full((len(x_start),), schedule.timesteps - 1, device=x_start.device)
    alpha = schedule.lookup("sqrt_alphas_cumprod", last, x_start)
    # ½ (σ² + α² x² - 1 - ln σ²), where σ² - 1 = -α² nearly cancels against the logarithm.
    kl = (alpha**2 * (x_start**2 - 1) - torch.log1p(-(alpha**2))) / 2
    return kl.flatten(1).mean(1)


def discretised_log_likelihood(x: Tensor, mean: Tensor, log_variance: Tensor) -> Tensor:
    """log probability of the pixel level x under a Gaussian, the exact integral over its bin.

    Ho et al. 2020, Eq. 13: bins of width 2/255 around 256 levels in [-1, 1]; the outermost two
    extend to ±∞, so that the probabilities sum to 1.

    Args:
        x, mean, log_variance: of shapes that broadcast. x: the centres of bins.
    """
    inverse_sigma = torch.exp(-log_variance / 2)
    upper = (x - mean + _HALF_LEVEL) * inverse_sigma
    lower = (x - mean - _HALF_LEVEL) * inverse_sigma
    # In the left tail, where log Φ is exact: a bin right of the mean is mirrored.
    mirrored = x > mean
    high = torch.where(mirrored, -lower, upper)
    low = torch.where(mirrored, -upper, lower)
    log_high = _log_ndtr(high)
    # Below 0 even for a mean so far off that both ends of the bin round to one number.
    fall = (_log_ndtr(low) - log_high).clamp(max=-torch.finfo(x.dtype).eps)
    inside = log_high + _log1mexp(fall)
    at_bottom = x < -1 + _HALF_LEVEL
    at_top = x > 1 - _HALF_LEVEL
    outermost = _log_ndtr(torch.where(at_bottom, upper, -lower))
    return torch.where(at_bottom | at_top, outermost, inside)


def density_log_likelihood(x: Tensor, mean: Tensor, log_variance: Tensor) -> Tensor:
    """log N(x; mean, exp(log_variance)), elementwise."""
    squared = (x - mean) ** 2 * torch.exp(-log_variance)
    return -(squared + log_variance + math.log(2 * math.pi)) / 2


def chosen_variance(denoiser: Denoiser, variance: str | None) -> str:
    """The variance of the reverse steps that is meant, or an error."""
    if variance is None:
        return "learned" if denoiser.learned_variance else "posterior"
    if variance not in VARIANCES:
        raise unknown_name("variance", variance, VARIANCES)
    if variance == "learned" and not denoiser.learned_variance:
        raise InkdropError(
            "a learned variance is asked of a network that learns none: train one with "
            "variance = learned, or choose posterior or beta"
        )
    return variance


def chosen_decoder(decoder: str, x_start: Tensor) -> str:
    """The decoder that is meant for x_start (B, …), or an error."""
    if decoder not in DECODERS:
        raise unknown_name("decoder", decoder, DECODERS)
    if decoder == "auto":
        decoder = "pixels" if x_start.ndim == 4 else "density"
    # Looking at values makes the host wait for an accelerator, and breaks a compiled graph.
    on_host = x_start.device.type == "cpu" and not torch.compiler.is_compiling()
    if decoder == "pixels" and on_host:
        check_pixels(x_start)
    return decoder


def check_pixels(x_start: Tensor) -> None:
    """An error for pixels outside [-1, 1], or that look like those of images in [0, 1]."""
    if not x_start.numel():
        return
    low, high = x_start.min().item(), x_start.max().item()
    if not -1 - _RANGE_SLACK <= low <= high <= 1 + _RANGE_SLACK:
        raise InkdropError(
            f"the likelihood of pixels needs images in [-1, 1], got values in [{low:.4g}, "
            f"{high:.4g}]; inkdrop.to_float makes them from uint8"
        )
    level = (x_start + 1) / (2 * _HALF_LEVEL)
    if low >= 0 and ((level - level.round()).abs() > _OFF_LEVEL).any():
        raise InkdropError(
            "the likelihood of pixels is that of 256 levels from -1 to 1, but these images hold "
            "values between them and none below 0, as images in [0, 1] do; inkdrop.to_float makes "
            "them from uint8"
        )


def bound_of_estimate(
    denoiser: Denoiser,
    estimate: Estimate,
    x_start: Tensor,
    t: Tensor,
    variance: str,
    decoder: str,
    clip: str | None,
) -> Tensor:
    """The terms (B,) of the bound that an estimate at t amounts to, in nats per dimension.

    Args:
        variance, decoder, clip: already chosen, by `chosen_variance`, `chosen_decoder` and
            `chosen_clip`.
    """
    schedule, estimated = denoiser.schedule, clipped(estimate.x_start, clip)
    log_posterior = schedule.lookup("log_posterior_variance_clipped", t, x_start)
    if variance == "posterior":
        log_variance = log_posterior
    elif variance == "beta":
        log_variance = schedule.lookup("log_betas", t, x_start)
    else:
        assert estimate.variance_fraction is not None
        log_beta = schedule.lookup("log_betas", t, x_start)
        log_variance = log_posterior + estimate.variance_fraction * (log_beta - log_posterior)

    # Of the posterior means only x_0's part differs; at t = 0 its weight is 1 and the mean is x̂₀.
    shift = schedule.lookup("posterior_mean_coef_x_start", t, x_start) * (x_start - estimated)
    ratio = log_posterior - log_variance
    kl = (torch.expm1(ratio) - ratio + shift**2 * torch.exp(-log_variance)) / 2
    likelihood = discretised_log_likelihood if decoder == "pixels" else density_log_likelihood
    at_zero = (t == 0).to(x_start.device).reshape(-1, *[1] * (x_start.ndim - 1))
    # Elsewhere a mean that is far off could overflow, and its gradient reach the sum as NaN.
    mean = torch.where(at_zero, estimated, x_start)
    decoding = -likelihood(x_start, mean, log_variance)
    return torch.where(at_zero, decoding, kl).flatten(1).mean(1)


def _bound(
    denoiser: Denoiser,
    output: Output,
    x_start: Tensor,
    x_t: Tensor,
    t: Tensor,
    variance: str | None,
    decoder: str,
    clip: str | None,
) -> Tensor:
    variance = chosen_variance(denoiser, variance)
    decoder = chosen_decoder(decoder, x_start)
    clip = chosen_clip(clip, tuple(x_start.shape[1:]))
    estimate = denoiser.estimate(output, x_t, t)
    return bound_of_estimate(denoiser, estimate, x_start, t, variance, decoder, clip)


def _asked(
    denoiser: Denoiser, x_start: Tensor, t: Tensor, noise: Tensor, condition: Any
) -> tuple[Tensor, Output]:
    """x_t, and what the network says of it."""
    if noise.shape != x_start.shape:
        raise InkdropError(
            f"noise has shape {tuple(noise.shape)}, but x_start {tuple(x_start.shape)}"
        )
    x_t = q_sample(denoiser.schedule, x_start, t, noise)
    return x_t, denoiser.ask(x_t, t, condition)


def _own_error(
    denoiser: Denoiser, output: Output, x_start: Tensor, t: Tensor, noise: Tensor
) -> Tensor:
    """The mean squared error (B,) of what the network predicts."""
    target = from_pair(
        denoiser.prediction,
        Pair(x_start, noise),
        denoiser.schedule.lookup("sqrt_alphas_cumprod", t, x_start),
        denoiser.schedule.lookup("sqrt_one_minus_alphas_cumprod", t, x_start),
    )
    return ((output.prediction - target) ** 2).flatten(1).mean(1)


def _noise_error(
    denoiser: Denoiser, output: Output, x_start: Tensor, t: Tensor, noise: Tensor
) -> Tensor:
    """‖ε - ε̂‖² / D (B,), from the network's own error: they differ by a function of ᾱ_t alone."""
    error = _own_error(denoiser, output, x_start, t, noise)
    factor = NOISE_ERROR_FACTORS[denoiser.prediction]
    if factor is None:
        return error
    return denoiser.schedule.lookup(factor, t, x_start).flatten() * error


def _log_ndtr(x: Tensor) -> Tensor:
    """log Φ(x), whose gradient is right in the left tail too.

    That of torch.special.log_ndtr subtracts x²/2 from log Φ there, which leaves nothing of it: in
    float32 it is 956 for 1000 at x = -1000, and 0 at -10⁶.
    """
    left = x < -1
    z = x / math.sqrt(2)
    tail, body = torch.where(left, z, -1.0), torch.where(left, 0.0, z)
    return torch.where(
        left,
        torch.log(torch.special.erfcx(-tail) / 2) - tail**2,
        torch.log1p(-torch.special.erfc(body) / 2),
    )


def _log1mexp(x: Tensor) -> Tensor:
    """log(1 - e^x) for x < 0, exact at both ends (Mächler 2012)."""
    near = x > -math.log(2)
    return torch.where(
        near,
        torch.log(-torch.expm1(torch.where(near, x, -1.0))),
        torch.log1p(-torch.exp(torch.where(near, -1.0, x))),
    )
