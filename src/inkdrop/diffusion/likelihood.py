"""The likelihood of data under a model: the variational bound term by term, and the ODE's.

In bits per dimension, so that sets of different sizes compare. An average over a data set carries
its standard error, over examples and over all that was drawn for them.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ..conditions import count_of, mapped, rows_of, to_device
from ..errors import InkdropError, unknown_name
from ..randomness import generator, image_noise
from ..ranges import warn_of_range
from .clipping import chosen_clip
from .denoiser import Denoiser, evaluating
from .forward import q_sample
from .objectives import bound_of_estimate, check_pixels, chosen_decoder, chosen_variance, prior_term
from .schedule import checked_count

_LN2 = math.log(2)
_BLOCK = 16  # examples whose timesteps are drawn together; part of what a seed means
_NO_ROWS = torch.zeros(0, dtype=torch.float64)
LEVEL_BITS = math.log2(127.5)  # pixel levels lie 2/255 apart: what that adds to a density's bits

Batches = Iterable[tuple[Tensor, Any]]
Gather = Callable[[Tensor], Tensor]


def all_here(rows: Tensor) -> Tensor:
    """The `gather` of one process."""
    return rows


@dataclass(frozen=True)
class BitsPerDim:
    """The variational bound on -log₂ p(x_0) of a data set, in bits per dimension.

    Attributes:
        total: prior + per_timestep.sum() + decoder.
        standard_error: of total, over examples (and the timesteps drawn for each).
        prior: L_T (Ho et al. 2020, Eq. 5).
        per_timestep: (T,) float64, the KL terms L_t at t = 1 … T-1; zero at t = 0, where the
            decoder stands.
        decoder: L_0, the reconstruction term.
        noise_mse: (T,), the mean squared error of ε̂ at t; NaN where it was not asked.
        asked: (T,) int64, how many examples each t was asked for.
        examples: how many there are.
    """

    total: float
    standard_error: float
    prior: float
    per_timestep: Tensor
    decoder: float
    noise_mse: Tensor
    asked: Tensor
    examples: int


@dataclass(frozen=True)
class OdeLikelihood:
    """The likelihood by the probability-flow ODE, at the first noise level.

    Attributes:
        bits_per_dim: the mean over examples; for pixels, of data with uniform noise inside each
            level, so that it bounds the discrete data's.
        standard_error: of it, over examples and the probes of each.
        log_density: (N,) float64 nats, log p of x at the first noise level.
        evaluations: of the network, for all examples together.
    """

    bits_per_dim: float
    standard_error: float
    log_density: Tensor
    evaluations: int


def bits_per_dim(
    denoiser: Denoiser,
    images: Tensor | Batches,
    condition: Any = None,
    *,
    terms: int | None = None,
    batch_size: int = 256,
    seed: int = 0,
    variance: str | None = None,
    decoder: str = "auto",
    clip: str | None = "auto",
    progress: Callable[[int], None] | None = None,
    first_index: int = 0,
    gather: Gather = all_here,
) -> BitsPerDim:
    """The variational bound, term by term (Ho et al. 2020, Eq. 3, 5 and 13).

    Args:
        images: (N, …) in [-1, 1], or batches of (images, condition or None) for a set that does
            not fit in memory. Points are (N, D), of any size.
        condition: given to the network: a tensor (N, …), or a NamedTuple of such; with batches it
            comes in them.
        terms: how many of the KL terms are asked of each example, spread evenly with an offset
            of its own: an unbiased estimate. All by default.
        batch_size: network inputs at once.
        seed: names the noise (and the timesteps): the figure is a pure function of it.
        variance: of the reverse steps: "posterior", "beta" or "learned"; by default learned where
            the denoiser learns one, else posterior.
        decoder: "pixels" (256 levels) or "density"; "auto" is pixels for images (C, H, W).
        clip: of x̂₀, as for `sample`: by default images' are clipped, as when they are sampled.
        progress: called with the number of network inputs done, after each batch.
        first_index: the index of the first image, where these are a part of a set.
        gather: joins the rows (n, …) of all parts in their order, where each part is another
            process's; none may hold part of a batch. Then every process finds the figures of the
            whole set, to the bit those that one process would find.

    Raises:
        InkdropError: for images outside [-1, 1] or of another shape than the denoiser's, or a
            learned variance of a denoiser that has none.
    """
    variance = chosen_variance(denoiser, variance)
    total = denoiser.schedule.timesteps
    if terms is not None and not 1 <= checked_count("terms", terms) < total:
        raise InkdropError(
            f"terms must lie between 1 and {total - 1}, the number of KL terms, got {terms}"
        )
    sums = _Sums(total)
    for first, x, c in batched(denoiser, images, condition, batch_size, first_index):
        sums.begin_batch()
        chosen = _decoder_of(decoder, x)
        kept = chosen_clip(clip, tuple(x.shape[1:]))
        sums.priors.append(prior_term(denoiser.schedule, x).cpu())
        t, weight = _draws(total, len(x), terms, seed, first)
        bound = torch.zeros(len(x), dtype=torch.float64)
        at_once = max(1, batch_size // len(x))
        for start in range(0, t.shape[1], at_once):
            columns = range(start, min(start + at_once, t.shape[1]))
            noise = torch.cat(
                [image_noise(tuple(x.shape[1:]), first, len(x), seed, "bound", k) for k in columns]
            ).to(x)
            here = t[:, columns].T.flatten()
            repeated = _tiled(x, len(columns))
            told = mapped(partial(_tiled, times=len(columns)), c)
            with torch.no_grad(), evaluating(denoiser.network):
                at = here.to(x.device)
                estimate = denoiser(q_sample(denoiser.schedule, repeated, at, noise), at, told)
                error = ((estimate.noise - noise) ** 2).flatten(1).mean(1).cpu().double()
                loss = bound_of_estimate(denoiser, estimate, repeated, at, variance, chosen, kept)
            loss = loss.cpu().double()
            loss[here > 0] *= weight
            sums.add(here, loss, error)
            bound += loss.reshape(len(columns), -1).sum(0)
            if progress is not None:
                progress(len(here))
        sums.terms.append(bound)
    return sums.result(gather)


def ode_likelihood(
    denoiser: Denoiser,
    images: Tensor | Batches,
    condition: Any = None,
    *,
    divergence: str = "hutchinson",
    probes: int = 1,
    tolerance: float = 1e-5,
    batch_size: int = 256,
    seed: int = 0,
    decoder: str = "auto",
    progress: Callable[[int], None] | None = None,
    first_index: int = 0,
    gather: Gather = all_here,
) -> OdeLikelihood:
    """log p by the probability-flow ODE and the change of variables (Song et al. 2021b, App. D.2).

    The model is what the ODE makes of N(0, I) at the last timestep by the first, t = 0: a density,
    which is evaluated at the images as they are. t is real-valued on the way, so the network must
    take such t, as inkdrop's do. Solved by torchdiffeq's dopri5; needs the extra `ode`.

    Args:
        images: as for `bits_per_dim`; pixels are given uniform noise inside their level.
        divergence: "hutchinson" (Rademacher probes, unbiased), or "exact", a backward pass for each
            dimension.
        probes: of each example.
        tolerance: relative and absolute, of the solver.
        The rest is as for `bits_per_dim`.
    """
    if divergence not in ("hutchinson", "exact"):
        raise unknown_name("divergence", divergence, ("hutchinson", "exact"))
    if not tolerance > 0:
        raise InkdropError(f"tolerance must be above 0, got {tolerance!r}")
    if denoiser.schedule.timesteps < 2:
        raise InkdropError("the ODE runs between timesteps, but this schedule has only one")
    repeats = checked_count("probes", probes) if divergence == "hutchinson" else 1
    densities, bits, evaluations = [_NO_ROWS], [_NO_ROWS], 0
    for first, x, c in batched(denoiser, images, condition, batch_size, first_index):
        shape, size, level_bits = tuple(x.shape[1:]), x[0].numel(), 0.0
        if _decoder_of(decoder, x) == "pixels":
            level_bits = LEVEL_BITS
            uniform = torch.special.ndtr(
                image_noise(shape, first, len(x), seed, "dequantisation").to(x)
            )
            x = x + (uniform - 0.5) * (2 / 255)
        found = torch.zeros(len(x), dtype=torch.float64)
        for probe in range(repeats):
            if divergence == "exact":
                axes = torch.eye(size, dtype=x.dtype, device=x.device)
                directions = axes.reshape(size, 1, *shape).expand(size, *x.shape)
            else:
                z = image_noise(shape, first, len(x), seed, "ode probe", probe)
                directions = torch.where(z < 0, -1.0, 1.0).to(x)[None]
            log_density, asked = _solved(denoiser, x, c, directions, tolerance)
            found += log_density.cpu().double() / repeats
            evaluations += asked
            if progress is not None:
                progress(asked)
        densities.append(found)
        bits.append(-found / (size * _LN2) + level_bits)
    log_density, per_example = gather(torch.cat(densities)), gather(torch.cat(bits))
    evaluations = int(gather(torch.tensor([evaluations])).sum())
    if not len(log_density):
        raise InkdropError("there are no images to take the likelihood of")
    return OdeLikelihood(
        per_example.mean().item(), _standard_error(per_example), log_density, evaluations
    )


def _solved(
    denoiser: Denoiser, x: Tensor, condition: Any, directions: Tensor, tolerance: float
) -> tuple[Tensor, int]:
    """log p (B,) of x, with the divergence seen along `directions`; and the network's inputs."""
    try:
        from torchdiffeq import odeint
    except ImportError:
        raise InkdropError(
            "the ODE likelihood needs torchdiffeq: pip install 'inkdrop[ode]'"
        ) from None
    evaluations = 0

    def flow(t: Tensor, state: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor]:
        nonlocal evaluations
        evaluations += len(x)
        return _flow(denoiser, state[0], t, condition, directions)

    span = torch.tensor([0.0, denoiser.schedule.timesteps - 1]).to(x)
    start = (x, torch.zeros(len(x), dtype=x.dtype, device=x.device))
    with evaluating(denoiser.network):
        ends, changes = odeint(flow, start, span, rtol=tolerance, atol=tolerance, method="dopri5")
    normal = -(ends[-1] ** 2 + math.log(2 * math.pi)).flatten(1).sum(1) / 2
    return (normal + changes[-1]).detach(), evaluations


def _flow(
    denoiser: Denoiser, x: Tensor, t: Tensor, condition: Any, directions: Tensor
) -> tuple[Tensor, Tensor]:
    """dx/dt of the probability flow (as x), and its divergence (B,) seen along `directions`.

    With λ = ½ log SNR: dx/dλ = σ² x - σ ε̂ (Song et al. 2021b, Eq. 13; Lu et al. 2022, Eq. 2.7).
    """
    log_snr, slope = denoiser.schedule.log_snr_between(t)
    sigma = (-log_snr).sigmoid().sqrt().to(x)
    half_slope = (slope / 2).to(x)
    with torch.enable_grad():
        x = x.detach().requires_grad_()
        noise = denoiser.between(x, t, condition).noise
        trace = torch.zeros(len(x), dtype=x.dtype, device=x.device)
        for i, direction in enumerate(directions):
            (pulled,) = torch.autograd.grad(
                noise, x, direction, retain_graph=i + 1 < len(directions)
            )
            trace = trace + (pulled * direction).flatten(1).sum(1)
    size = x[0].numel()
    velocity = half_slope * (sigma**2 * x - sigma * noise)
    return velocity.detach(), (half_slope * (sigma**2 * size - sigma * trace)).detach()


class _Sums:
    """What gathers: three rows of T numbers for each batch, and one number for each example.

    Batches are added up at the end, in their order on however many processes.
    """

    def __init__(self, timesteps: int) -> None:
        self.empty = torch.zeros(3, timesteps, dtype=torch.float64)
        self.batches: list[Tensor] = []
        self.terms = [_NO_ROWS]
        self.priors = [_NO_ROWS]

    def begin_batch(self) -> None:
        self.batches.append(self.empty.clone())

    def add(self, t: Tensor, loss: Tensor, error: Tensor) -> None:
        self.batches[-1].index_add_(1, t, torch.stack([loss, error, torch.ones_like(loss)]))

    def result(self, gather: Gather) -> BitsPerDim:
        prior = gather(torch.cat(self.priors)) / _LN2
        terms = gather(torch.cat(self.terms)) / _LN2
        loss, error, asked = gather(torch.stack([self.empty, *self.batches])[1:]).sum(0)
        if not len(terms):
            raise InkdropError("there are no images to take the likelihood of")
        per_timestep = loss / (len(terms) * _LN2)
        decoder = per_timestep[0].item()
        per_timestep[0] = 0
        return BitsPerDim(
            total=(prior + terms).mean().item(),
            standard_error=_standard_error(prior + terms),
            prior=prior.mean().item(),
            per_timestep=per_timestep,
            decoder=decoder,
            noise_mse=error / asked,
            asked=asked.long(),
            examples=len(terms),
        )


def _draws(
    total: int, count: int, terms: int | None, seed: int, first: int
) -> tuple[Tensor, float]:
    """The timesteps (B, K) asked of examples first …, 0 among them, and what the others weigh."""
    if terms is None:
        return torch.arange(total).expand(count, total), 1.0
    blocks = range(first // _BLOCK, (first + count - 1) // _BLOCK + 1)
    offsets = [generator(seed, "bound timesteps", 0, block).random(_BLOCK) for block in blocks]
    start = first - blocks[0] * _BLOCK
    offset = np.concatenate(offsets)[start : start + count, None]
    strata = (np.arange(terms) + offset) / terms
    t = 1 + (strata * (total - 1)).astype(np.int64).clip(max=total - 2)
    zero = np.zeros((count, 1), dtype=np.int64)
    return torch.from_numpy(np.concatenate([zero, t], axis=1)), (total - 1) / terms


def batched(
    denoiser: Denoiser,
    images: Tensor | Batches,
    condition: Any,
    batch_size: int,
    first_index: int = 0,
) -> Iterator[tuple[int, Tensor, Any]]:
    """(index of the first, images, condition) on the device, in the best precision it has."""
    size = checked_count("batch_size", batch_size)
    if isinstance(images, Tensor):
        given: Batches = _split(images, condition, size)
    else:
        if condition is not None:
            raise InkdropError("batches of images bring their condition with them")
        given = (part for x, c in images for part in _split(x, c, size))
    device, first = denoiser.device, first_index
    precision = torch.float32 if device.type == "mps" else torch.float64
    for x, c in given:
        if not x.is_floating_point():
            raise InkdropError(
                f"the likelihood needs images in [-1, 1], got {x.dtype}; inkdrop.to_float makes "
                "them from uint8"
            )
        if denoiser.shape is not None and tuple(x.shape[1:]) != denoiser.shape:
            raise InkdropError(
                f"the model is of examples {denoiser.shape}, but these are {tuple(x.shape[1:])}"
            )
        if not x.isfinite().all():
            raise InkdropError("the likelihood needs finite values, but these hold NaN or infinity")
        yield first, x.to(device, precision), to_device(c, device)
        first += len(x)


def _decoder_of(decoder: str, x: Tensor) -> str:
    """`chosen_decoder`, with a look at pixels on an accelerator too."""
    chosen = chosen_decoder(decoder, x)
    if chosen == "pixels":
        check_pixels(x)
    else:
        warn_of_range(x, stacklevel=3)
    return chosen


def _split(x: Tensor, condition: Any, size: int) -> Batches:
    told = count_of(condition)
    if told not in (None, len(x)):
        raise InkdropError(f"condition holds {told}, but there are {len(x)}")
    for i in range(0, len(x), size):
        rows = slice(i, i + size)
        yield x[rows], rows_of(condition, rows)


def _tiled(values: Tensor, times: int) -> Tensor:
    """(B, …) one after the other, (times B, …)."""
    return values.repeat(times, *[1] * (values.ndim - 1))


def _standard_error(values: Tensor) -> float:
    return float(values.std() / math.sqrt(len(values))) if len(values) > 1 else math.nan
