"""Samplers as tables, and the one loop that runs any of them.

A table has one row for each network evaluation. With u a handful of registers, u₀ the image the
network is asked about, row i is

    x̂₀ = denoiser(u₀, tᵢ);   u ← Mᵢ u + vᵢ x̂₀ + sᵢ z,   z ~ N(0, I)

so a sampler is numbers, computed once in float64 from the schedule and the chosen timesteps.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from ..errors import InkdropError, unknown_name
from ..randomness import image_noise
from .denoiser import Denoiser
from .schedule import NoiseSchedule, checked_count, checked_timesteps

CLIPS = ("auto", "range", "dynamic")
DYNAMIC_QUANTILE = 0.995  # Saharia et al. 2022 (Imagen), App. E


@dataclass(frozen=True, eq=False)
class SamplerTable:
    """K network evaluations over R registers, all coefficients float64.

    Attributes:
        timesteps: the K timesteps the network is asked at.
        M: (K, R, R), what each register takes from the registers.
        v: (K, R), what it takes from x̂₀.
        s: (K, R), what it takes from fresh unit noise.
    """

    timesteps: tuple[int, ...]
    M: Tensor
    v: Tensor
    s: Tensor

    def __post_init__(self) -> None:
        rows, registers = len(self.timesteps), self.M.shape[-1]
        shapes = tuple(map(tuple, (self.M.shape, self.v.shape, self.s.shape)))
        fitting = ((rows, registers, registers), (rows, registers), (rows, registers))
        if not rows or shapes != fitting:
            raise InkdropError(
                "a table needs K timesteps, M (K, R, R), v (K, R) and s (K, R), "
                f"got {rows}, {', '.join(map(str, shapes))}"
            )

    def __len__(self) -> int:
        return len(self.timesteps)


@dataclass(frozen=True)
class State:
    """Where sampling stands after a row.

    Attributes:
        x: (n, …), the image after the row; after the last row, the sample.
        x_start: (n, …), the x̂₀ that the row used, after clipping.
        timestep: the timestep the network was asked at.
    """

    x: Tensor
    x_start: Tensor
    timestep: int


def spaced_timesteps(total: int, count: int) -> list[int]:
    """`count` falling timesteps out of `total`, evenly spaced and starting from the noisiest.

    The "trailing" spacing of Lin et al. 2024, Table 2: sampling starts at T-1, where pure noise is
    what training saw.
    """
    if not 1 <= checked_count("steps", count) <= total:
        raise InkdropError(
            f"steps must lie between 1 and the schedule's {total} timesteps, got {count}"
        )
    return [total - 1 - (i * total) // count for i in range(count)]


def ddim(
    schedule: NoiseSchedule, timesteps: Sequence[int] | Tensor, eta: float = 0.0
) -> SamplerTable:
    """DDIM (Song et al. 2021, Eq. 12 and 16); eta = 0 is deterministic, eta = 1 is ancestral.

    Args:
        timesteps: any falling list; the last row ends at the clean image.
    """
    if not 0 <= eta <= 1:
        raise InkdropError(f"eta must lie between 0 and 1, got {eta!r}")
    visited = checked_timesteps(timesteps, schedule.timesteps)
    kept = schedule.respaced(visited[::-1])
    sigma = eta * kept.posterior_variance.sqrt()
    # m² = (1 - ᾱ_{t-1} - σ²) / (1 - ᾱ_t), where 1 - ᾱ_{t-1} is β̃_t and what x_t brings to the
    # posterior: written as this sum, nothing cancels.
    not_drawn = (1 - eta**2) * kept.posterior_variance / kept.sqrt_one_minus_alphas_cumprod**2
    m = (kept.posterior_mean_coef_x_t**2 + not_drawn).sqrt()
    v = kept.alphas_cumprod_prev.sqrt() - m * kept.sqrt_alphas_cumprod
    return _one_register(visited, m, v, sigma)


def ancestral(
    schedule: NoiseSchedule, timesteps: Sequence[int] | Tensor, variance: str = "posterior"
) -> SamplerTable:
    """DDPM's own sampler (Ho et al. 2020, Algorithm 2), on any falling list of timesteps.

    Args:
        variance: "posterior" (β̃_t) or "beta" (β_t), Ho's two fixed choices (Sec. 3.2). No noise
            is added by the last row with either.
    """
    visited = checked_timesteps(timesteps, schedule.timesteps)
    kept = schedule.respaced(visited[::-1])
    if variance == "posterior":
        sigma = kept.posterior_variance.sqrt()
    elif variance == "beta":
        sigma = kept.betas.sqrt()
        sigma[0] = 0
    else:
        raise unknown_name("variance", variance, ("posterior", "beta"))
    return _one_register(
        visited, kept.posterior_mean_coef_x_t, kept.posterior_mean_coef_x_start, sigma
    )


@dataclass(frozen=True)
class Sampler:
    """A sampler by name: its table, and the steps it takes where none are asked for."""

    table: Callable[[NoiseSchedule, Sequence[int]], SamplerTable]
    default_steps: int | None  # None: every timestep of the schedule


SAMPLERS: dict[str, Sampler] = {
    "ddim": Sampler(ddim, 50),
    "ancestral": Sampler(ancestral, None),
    "ancestral-beta": Sampler(
        lambda schedule, timesteps: ancestral(schedule, timesteps, variance="beta"),
        None,
    ),
}


def build_table(
    schedule: NoiseSchedule, sampler: str = "ddim", steps: int | None = None
) -> SamplerTable:
    """The table of a named sampler with evenly spaced timesteps.

    Args:
        steps: network evaluations; None takes the sampler's own number (at most T).
    """
    if sampler not in SAMPLERS:
        raise unknown_name("sampler", sampler, SAMPLERS)
    known = SAMPLERS[sampler]
    if steps is None:
        steps = min(known.default_steps or schedule.timesteps, schedule.timesteps)
    return known.table(schedule, spaced_timesteps(schedule.timesteps, steps))


def initial_noise(n: int, shape: tuple[int, ...], seed: int, first_index: int = 0) -> Tensor:
    """The pure noise (n, *shape) that `sample` starts images first_index … from, float32."""
    return image_noise(shape, first_index, n, seed, "sample start")


def sample_steps(
    denoiser: Denoiser,
    n: int | None = None,
    sampler: str = "ddim",
    steps: int | None = None,
    seed: int = 0,
    *,
    shape: tuple[int, ...] | None = None,
    table: SamplerTable | None = None,
    x_init: Tensor | None = None,
    clip: str | None = "auto",
    condition: Tensor | None = None,
    batch_size: int | None = None,
    first_index: int = 0,
) -> Iterator[State]:
    """Generate `n` examples, yielding the state after each network evaluation.

    The arguments are those of `sample`.
    """
    if table is not None and steps is not None:
        raise InkdropError("give either table or steps, not both: a table has its own steps")
    if clip is not None and clip not in CLIPS:
        raise unknown_name("clip", str(clip), [*CLIPS, "None"])
    if table is None:
        table = build_table(denoiser.schedule, sampler, steps)
    if x_init is not None:
        if shape is not None and tuple(shape) != x_init.shape[1:]:
            raise InkdropError(f"x_init holds {tuple(x_init.shape[1:])}, but shape is {shape}")
        shape = tuple(x_init.shape[1:])
    shape = shape or denoiser.shape
    if shape is None:
        raise InkdropError("the shape of one example is not known: give shape=(C, H, W)")
    if n is None:
        given = x_init if x_init is not None else condition
        n = 64 if given is None else len(given)
    n = checked_count("n", n)
    if x_init is not None and len(x_init) != n:
        raise InkdropError(f"x_init holds {len(x_init)} examples, but n is {n}")
    if condition is not None and len(condition) != n:
        raise InkdropError(f"condition holds {len(condition)} examples, but n is {n}")
    batch_size = checked_count("batch_size", n if batch_size is None else batch_size)
    if clip == "auto":
        clip = "range" if len(shape) == 3 else None
    x = initial_noise(n, shape, seed, first_index) if x_init is None else x_init
    return _run(
        denoiser, table, x.to(denoiser.device), clip, condition, batch_size, seed, first_index
    )


def sample(
    denoiser: Denoiser,
    n: int | None = None,
    sampler: str = "ddim",
    steps: int | None = None,
    seed: int = 0,
    *,
    shape: tuple[int, ...] | None = None,
    table: SamplerTable | None = None,
    x_init: Tensor | None = None,
    clip: str | None = "auto",
    condition: Tensor | None = None,
    batch_size: int | None = None,
    first_index: int = 0,
) -> Tensor:
    """Generate `n` examples.

    Args:
        n: how many; 64, or as many as x_init or condition holds.
        sampler: a name in `SAMPLERS`.
        steps: network evaluations; by default 50 for ddim and every timestep for ancestral.
        seed: names the images: image i of a seed starts from the same noise and is given the same
            noise on the way, whatever n, batch_size or the device.
        shape: of one example, when the denoiser does not know it.
        table: a `SamplerTable` to run instead of a named sampler.
        x_init: (n, …), where to start instead of pure noise; its dtype is computed in.
        clip: what keeps x̂₀ in range: "range" clips to [-1, 1], "dynamic" is Imagen's dynamic
            thresholding, None leaves it. "auto" is "range" for images, whose shape is (C, H, W),
            and None for anything else.
        condition: (n, …), given to the network.
        batch_size: how many examples the network is given at once; all by default.
        first_index: the index of the first image, to make images i … i+n-1 of a seed.

    Returns:
        (n, *shape), in [-1, 1] for images, on the network's device.

    Raises:
        InkdropError: for an unknown sampler, steps outside 1 … T, or n below 1.
    """
    states = sample_steps(
        denoiser,
        n,
        sampler,
        steps,
        seed,
        shape=shape,
        table=table,
        x_init=x_init,
        clip=clip,
        condition=condition,
        batch_size=batch_size,
        first_index=first_index,
    )
    for state in states:  # noqa: B007 - only the last one is wanted
        pass
    return state.x


def _run(
    denoiser: Denoiser,
    table: SamplerTable,
    x: Tensor,
    clip: str | None,
    condition: Tensor | None,
    batch_size: int,
    seed: int,
    first_index: int,
) -> Iterator[State]:
    if condition is not None:
        condition = condition.to(x.device)
    registers = [x, *[torch.zeros_like(x)] * (table.M.shape[1] - 1)]
    rows = zip(table.timesteps, table.M.tolist(), table.v.tolist(), table.s.tolist(), strict=True)
    for step, (timestep, m, v, s) in enumerate(rows):
        with torch.no_grad(), _evaluating(denoiser.network):
            x_start = torch.cat(
                [
                    denoiser(
                        registers[0][i : i + batch_size],
                        timestep,
                        None if condition is None else condition[i : i + batch_size],
                    ).x_start
                    for i in range(0, len(x), batch_size)
                ]
            )
            x_start = _clipped(x_start, clip)
            terms = [*registers, x_start]
            weights = [[*row, weight] for row, weight in zip(m, v, strict=True)]
            if any(s):
                z = image_noise(x.shape[1:], first_index, len(x), seed, "sample step", step)
                terms.append(z.to(x))
                weights = [[*row, weight] for row, weight in zip(weights, s, strict=True)]
            registers = [_weighted_sum(row, terms) for row in weights]
        yield State(registers[0], x_start, timestep)


def _weighted_sum(weights: Sequence[float], terms: Sequence[Tensor]) -> Tensor:
    total: Tensor | None = None
    for weight, term in zip(weights, terms, strict=True):
        if weight:
            total = weight * term if total is None else total.add_(term, alpha=weight)
    return torch.zeros_like(terms[0]) if total is None else total


def _clipped(x_start: Tensor, clip: str | None) -> Tensor:
    if clip == "range":
        return x_start.clamp(-1, 1)
    if clip == "dynamic":
        # torch.quantile refuses tensors of more than 16 million elements; a sort does not.
        size = x_start.abs().flatten(1).sort(1).values
        limit = size[:, math.ceil(DYNAMIC_QUANTILE * size.shape[1]) - 1].clamp(min=1)
        limit = limit.reshape(-1, *[1] * (x_start.ndim - 1))
        return x_start.clamp(-limit, limit) / limit
    return x_start


@contextmanager
def _evaluating(network: nn.Module) -> Iterator[None]:
    """Dropout and the like are off inside, and as they were outside, each module by itself."""
    training = [module for module in network.modules() if module.training]
    network.eval()
    try:
        yield
    finally:
        for module in training:
            module.training = True


def _one_register(visited: list[int], m: Tensor, v: Tensor, s: Tensor) -> SamplerTable:
    """Rows from coefficients (K,) that rise with the timesteps, which were visited falling."""
    return SamplerTable(
        tuple(visited),
        m.flip(0).reshape(-1, 1, 1),
        v.flip(0).reshape(-1, 1),
        s.flip(0).reshape(-1, 1),
    )
