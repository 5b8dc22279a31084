"""Training objectives: one loss per example, reduced by whoever asks."""

from __future__ import annotations

from torch import Tensor

from ..errors import InkdropError
from .denoiser import Denoiser
from .forward import q_sample
from .prediction import Pair, from_pair


def simple(
    denoiser: Denoiser,
    x_start: Tensor,
    t: Tensor,
    noise: Tensor,
    condition: Tensor | None = None,
) -> Tensor:
    """L_simple: the squared error of the network's own prediction, averaged over dimensions.

    Ho et al. 2020, Eq. 14, for a network that predicts noise; for one that predicts x_start or
    velocity the target is that.

    Args:
        x_start, noise: (B, …). t: (B,) integers. condition: as the network takes it.

    Returns:
        (B,) losses.

    Raises:
        InkdropError: for shapes that do not fit together, or t outside 0 … T-1.
    """
    if noise.shape != x_start.shape:
        raise InkdropError(
            f"noise has shape {tuple(noise.shape)}, but x_start {tuple(x_start.shape)}"
        )
    schedule = denoiser.schedule
    x_t = q_sample(schedule, x_start, t, noise)
    target = from_pair(
        denoiser.prediction,
        Pair(x_start, noise),
        schedule.lookup("sqrt_alphas_cumprod", t, x_start),
        schedule.lookup("sqrt_one_minus_alphas_cumprod", t, x_start),
    )
    error = denoiser.predict(x_t, t, condition) - target
    return (error**2).flatten(1).mean(1)
