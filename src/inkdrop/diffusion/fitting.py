"""Timesteps fitted to a model: the K at which its bound is least, or its sampling path truest.

Both are shortest paths from T-1 to the clean image, over costs that are measured once: then the
best timesteps for any K are found by dynamic programming.

The bound (Watson et al. 2021). With reverse steps of the posterior variance, the bound of a model
that visits t_1 < … < t_K = T-1 is

    L_T + D(t_1) + Σ_i ½ (SNR(t_{i-1}) - SNR(t_i)) MSE(t_i),

where MSE(t) is the error of x̂₀ at t, and D(t) the decoder's term when the clean image is decoded
from x̂₀ at t.

The path (after Chen et al. 2024). A deterministic sampler's own path in small steps is known; the
cost of one large step is its squared distance to that path, where it ends.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ..errors import InkdropError
from ..randomness import image_noise
from .clipping import chosen_clip, clipped
from .denoiser import Denoiser, evaluating
from .forward import q_sample
from .likelihood import Batches, Gather, all_here, batched
from .objectives import chosen_decoder, density_log_likelihood, discretised_log_likelihood
from .samplers import ddim, initial_noise, sample_steps
from .schedule import NoiseSchedule, checked_count, checked_timesteps
from .spacing import spaced_timesteps

_PATH_NODES = 125  # steps of a path that stands for the exact one
_SMALLEST_MSE = 1e-12  # of pixels that never change, whose decoder would have no width

Floats = NDArray[np.float64]


@dataclass(frozen=True)
class StepTerms:
    """What a step from t costs, measured at every t.

    Attributes:
        x_start_mse: (T,) the mean squared error of x̂₀, per dimension.
        decoder: (T,) nats per dimension: -log p(x_0 | x̂₀ at t), with the variance that fits best.
        examples: how many were measured.
    """

    x_start_mse: Floats
    decoder: Floats
    examples: int


def measure_terms(
    denoiser: Denoiser,
    images: Tensor | Batches,
    condition: Any = None,
    *,
    batch_size: int = 256,
    seed: int = 0,
    decoder: str = "auto",
    clip: str | None = "auto",
    progress: Callable[[int], None] | None = None,
    timesteps: range | None = None,
    gather: Gather = all_here,
) -> StepTerms:
    """Measure a model's terms at all T timesteps, each example with the same noise at every t.

    Takes T network inputs for each example; a few hundred examples are enough. The arguments are
    those of `bits_per_dim`, but all processes have all images and share the timesteps.

    Args:
        timesteps: those that this process measures, neighbours; all by default.
        gather: joins what all processes measured, in order.
    """
    batches = [
        (x, c, image_noise(tuple(x.shape[1:]), first, len(x), seed, "fit").to(x))
        for first, x, c in batched(denoiser, images, condition, batch_size)
    ]
    if not batches:
        raise InkdropError("there are no images to fit timesteps to")
    x_start = torch.cat([x for x, _, _ in batches])
    chosen = chosen_decoder(decoder, x_start)
    kept = chosen_clip(clip, tuple(x_start.shape[1:]))
    likelihood = discretised_log_likelihood if chosen == "pixels" else density_log_likelihood
    errors, decoding = [], []
    for t in range(denoiser.schedule.timesteps) if timesteps is None else timesteps:
        estimates = []
        for x, c, noise in batches:
            at = torch.full((len(x),), t, device=x.device)
            with torch.no_grad(), evaluating(denoiser.network):
                estimate = denoiser(q_sample(denoiser.schedule, x, at, noise), at, c)
            estimates.append(clipped(estimate.x_start, kept))
            if progress is not None:
                progress(len(x))
        estimated = torch.cat(estimates)
        error = ((estimated - x_start) ** 2).mean().clamp(min=_SMALLEST_MSE)
        errors.append(error.item())
        decoding.append(-likelihood(x_start, estimated, error.log()).mean().item())
    measured = gather(torch.tensor([errors, decoding], dtype=torch.float64).T).T.numpy()
    return StepTerms(measured[0], measured[1], len(x_start))


def bound_of(schedule: NoiseSchedule, terms: StepTerms, timesteps: Sequence[int]) -> float:
    """The bound in nats per dimension, less its prior, of a model that visits falling `timesteps`.

    The prior's term depends on the last timestep alone.
    """
    visited = checked_timesteps(timesteps, schedule.timesteps)[::-1]
    snr = schedule.snr.numpy()[visited]
    steps = (snr[:-1] - snr[1:]) / 2 * terms.x_start_mse[visited[1:]]
    return float(terms.decoder[visited[0]] + steps.sum())


def fit_timesteps(schedule: NoiseSchedule, terms: StepTerms, count: int) -> list[int]:
    """The `count` falling timesteps, T-1 the first, whose bound is least."""
    total = schedule.timesteps
    if len(terms.x_start_mse) != total:
        raise InkdropError(
            f"these terms were measured at {len(terms.x_start_mse)} timesteps, but the schedule "
            f"has {total}"
        )
    snr, mse = schedule.snr.numpy()[::-1], terms.x_start_mse[::-1]
    step = (snr[None, :] - snr[:, None]) / 2 * mse[:, None]
    path = _shortest_path(step, terms.decoder[::-1], count)
    return [total - 1 - i for i in path]


@dataclass(frozen=True)
class PathErrors:
    """What large steps along a sampler's path miss it by.

    Attributes:
        timesteps: (N,) falling, where the path is known, T-1 the first.
        step: (N, N) the mean squared error, per dimension, of a DDIM step from one to a later one.
        last: (N,) that of the last step, to the clean image.
        examples: how many paths were measured.
    """

    timesteps: tuple[int, ...]
    step: Floats
    last: Floats
    examples: int


def measure_path(
    denoiser: Denoiser,
    n: int = 128,
    *,
    condition: Any = None,
    batch_size: int | None = None,
    seed: int = 0,
    clip: str | None = "auto",
    progress: Callable[[int], None] | None = None,
) -> PathErrors:
    """Follow n DDIM paths in small steps, and measure what every larger step would miss.

    Takes 125 network inputs for each path (or T, if that is less), and keeps all of them in memory.
    The arguments are those of `sample`.
    """
    schedule = denoiser.schedule
    if denoiser.shape is None:
        raise InkdropError("the shape of one example is not known: give Denoiser(…, shape=…)")
    visited = spaced_timesteps(schedule, min(_PATH_NODES, schedule.timesteps))
    x_init = initial_noise(n, denoiser.shape, seed)
    states = sample_steps(
        denoiser,
        n,
        x_init=x_init,
        table=ddim(schedule, visited),
        clip=clip,
        condition=condition,
        batch_size=batch_size,
    )
    x, x_start = [x_init.to(denoiser.device).double()], []
    for state in states:
        x.append(state.x.double())
        x_start.append(state.x_start.double())
        if progress is not None:
            progress(len(state.x))
    size = len(visited)
    alpha = [*schedule.sqrt_alphas_cumprod[visited].tolist(), 1.0]
    sigma = [*schedule.sqrt_one_minus_alphas_cumprod[visited].tolist(), 0.0]
    error = np.full((size, size + 1), np.inf)
    for i in range(size):
        noise = (x[i] - alpha[i] * x_start[i]) / sigma[i]
        for j in range(i + 1, size + 1):
            reached = alpha[j] * x_start[i] + sigma[j] * noise
            error[i, j] = ((reached - x[j]) ** 2).mean().item()
    return PathErrors(tuple(visited), error[:, :size], error[:, size], n)


def fit_path(errors: PathErrors, count: int) -> list[int]:
    """The `count` falling timesteps, T-1 the first, whose steps miss the path least in all."""
    path = _shortest_path(errors.step, errors.last, count)
    return [errors.timesteps[i] for i in path]


def _shortest_path(step: Floats, last: Floats, count: int) -> list[int]:
    """`count` rising indices from 0, of least cost: (N, N) from row to column, (N,) to the end.

    Exact: O(count · N²).
    """
    size = len(last)
    if not 1 <= checked_count("steps", count) <= size:
        raise InkdropError(f"steps must lie between 1 and {size}, got {count}")
    forward = np.where(np.triu(np.ones((size, size), dtype=bool), 1), step, np.inf)
    best, followed_by = np.asarray(last, dtype=np.float64), []
    for _ in range(count - 1):
        through = forward + best[None, :]
        followed_by.append(through.argmin(1))
        best = through.min(1)
    path = [0]
    for after in reversed(followed_by):
        path.append(int(after[path[-1]]))
    return path
