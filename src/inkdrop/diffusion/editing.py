"""Editing images with a trained model: other answers of the denoiser, and other tables.

Nothing here samples by itself; `sample` runs all of it.

- A `Projected` denoiser knows measurements y = A x of the image: x̂₀ is replaced by the nearest
  image that has them, x̂₀ + A⁺(y - A x̂₀) (Wang et al. 2023, DDNM, Sec. 3.1). Where A picks pixels
  out, they go down the levels as q(x_{t-1}|x_t, x_0) of the true x_0, so that at each level they
  are drawn from q(x_t|x_0) (Lugmayr et al. 2022, Eq. 8a).
- `remaining` is a table from one of its timesteps on (Meng et al. 2022, SDEdit).
- `resampled` is a table that goes back up after a stretch, by the forward process, and through it
  again (Lugmayr et al. 2022, Sec. 4.2): it lets what is painted learn of what is known.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any, TypedDict, Unpack

import torch
from torch import Tensor
from torch.nn import functional as F

from ..conditions import count_of, mapped, rows_of
from ..errors import InkdropError, unknown_name
from ..ranges import warn_of_range
from .clipping import chosen_clip, clipped
from .denoiser import Denoiser, Estimate, Level, Output
from .guidance import Guidance, guided
from .samplers import (
    INVERTIBLE,
    build_table,
    initial_noise,
    invert,
    inverted_timesteps,
    sample,
)
from .schedule import NoiseSchedule, checked_count
from .solvers import SamplerTable

LUMA = (0.299, 0.587, 0.114)  # red, green and blue in a grey (ITU-R BT.601)

_AGREEMENT = 1e-6  # of a table's levels with its schedule's
_STEPS = 50  # of an edit that keeps measurements, where none are asked for
_ROUNDS, _LAST_ROUNDS = 8, 64  # that bring an estimate, and a result, into range


# Measurements


class Operator(ABC):
    """A linear measurement y = A x of images x (B, …), with its pseudo-inverse."""

    @abstractmethod
    def apply(self, x: Tensor) -> Tensor:
        """A x."""

    @abstractmethod
    def pseudo_inverse(self, y: Tensor) -> Tensor:
        """A⁺ y, the least image that measures y: A A⁺ y = y."""

    def projected(self, x: Tensor, y: Tensor) -> Tensor:
        """The image nearest to x that measures y: x + A⁺(y - A x)."""
        return x + self.pseudo_inverse(y - self.apply(x))


@dataclass(frozen=True, eq=False)
class Mask(Operator):
    """The numbers of x that are known; A x has zeros for the others.

    Attributes:
        known: bool, of a shape that broadcasts to x's.
    """

    known: Tensor

    def __post_init__(self) -> None:
        if self.known.dtype != torch.bool:
            raise InkdropError(f"a mask must be of type bool, got {self.known.dtype}")

    def apply(self, x: Tensor) -> Tensor:
        return torch.where(self.known.to(x.device), x, 0)

    def pseudo_inverse(self, y: Tensor) -> Tensor:
        return self.apply(y)

    def projected(self, x: Tensor, y: Tensor) -> Tensor:
        return torch.where(self.known.to(x.device), y, x)  # to the bit


@dataclass(frozen=True)
class Grey(Operator):
    """The weighted sum of an image's channels: (B, C, H, W) → (B, 1, H, W).

    Attributes:
        weights: one for each channel; by default red's, green's and blue's in a luma.
    """

    weights: tuple[float, ...] = LUMA

    def __post_init__(self) -> None:
        if not any(self.weights) or not all(map(math.isfinite, self.weights)):
            raise InkdropError(f"weights must be finite and not all zero, got {self.weights}")

    def apply(self, x: Tensor) -> Tensor:
        if x.ndim != 4 or x.shape[1] != len(self.weights):
            raise InkdropError(
                f"a grey of {len(self.weights)} channels needs images (B, {len(self.weights)}, H, "
                f"W), got {tuple(x.shape)}"
            )
        return (x * self._column(x)).sum(1, keepdim=True)

    def pseudo_inverse(self, y: Tensor) -> Tensor:
        if y.ndim != 4 or y.shape[1] != 1:
            raise InkdropError(f"greys must be (B, 1, H, W), got {tuple(y.shape)}")
        return y * (self._column(y) / sum(weight**2 for weight in self.weights))

    def _column(self, like: Tensor) -> Tensor:
        return like.new_tensor(self.weights).reshape(-1, 1, 1)


@dataclass(frozen=True)
class Average(Operator):
    """The means of squares of factor² pixels: (B, C, H, W) → (B, C, H/factor, W/factor)."""

    factor: int

    def __post_init__(self) -> None:
        checked_count("factor", self.factor)

    def apply(self, x: Tensor) -> Tensor:
        if x.ndim != 4 or x.shape[2] % self.factor or x.shape[3] % self.factor:
            raise InkdropError(
                f"an average over {self.factor}×{self.factor} pixels needs images (B, C, H, W) "
                f"whose height and width {self.factor} divides, got {tuple(x.shape)}"
            )
        return F.avg_pool2d(x, self.factor)

    def pseudo_inverse(self, y: Tensor) -> Tensor:
        return y.repeat_interleave(self.factor, 2).repeat_interleave(self.factor, 3)


class Projected(Denoiser):
    """A denoiser whose x̂₀ measures what is known; ε̂ is then what x_t says it is.

    Args:
        denoiser: any.
        operator: A.
        y: (B, …), the measurements of the B images it will be asked about.
        clip: what keeps x̂₀ in range before it is fitted, as for `sample`; "range" and "dynamic"
            make it keep both, range and measurements, as nearly as they allow.
    """

    def __init__(
        self, denoiser: Denoiser, operator: Operator, y: Tensor, clip: str | None = None
    ) -> None:
        super().__init__(
            denoiser.network,
            denoiser.schedule,
            denoiser.prediction,
            denoiser.shape,
            denoiser.learned_variance,
        )
        self.denoiser = denoiser
        self.operator = operator
        self.y = y
        self.clip = clip

    def respaced(self, kept_timesteps: Sequence[int]) -> Projected:
        """The same measurements of the respaced denoiser."""
        return Projected(self.denoiser.respaced(kept_timesteps), self.operator, self.y, self.clip)

    def _output(self, x_t: Tensor, level: Level, condition: Any) -> Output:
        return self.denoiser._output(x_t, level, condition)

    def _estimated(self, output: Output, x_t: Tensor, level: Level) -> Estimate:
        found = self.denoiser._estimated(output, x_t, level)
        y = self.y.to(x_t)
        x_start = self.operator.projected(clipped(found.x_start, self.clip), y)
        if self.clip is not None:
            x_start = _in_range(x_start, self.operator, y, _ROUNDS)
        noise = (x_t - level.alpha * x_start) / level.sigma
        return Estimate(x_start, noise, found.variance_fraction)


def _in_range(x: Tensor, operator: Operator, y: Tensor, rounds: int) -> Tensor:
    """The image brought into [-1, 1] and to its measurements by turns, which closes in on both."""
    for _ in range(rounds):
        x = operator.projected(x.clamp(-1, 1), y)
    return x


# Tables


def levels_reached(table: SamplerTable, schedule: NoiseSchedule) -> Tensor:
    """√ᾱ of the image after each of a table's K rows (K,), float64: 1 is the clean image.

    Read off the table alone: x_0 = 1 is put through it, with a denoiser that always answers it.
    """
    return torch.stack([state.signal[0] for state in _walk(table, schedule)[1:]])


def remaining(table: SamplerTable, schedule: NoiseSchedule, timestep: int) -> SamplerTable:
    """A table's rows from the first step at `timestep` or below on (Meng et al. 2022).

    Raises:
        InkdropError: if the table has no such step, or is not of this schedule.
    """
    states = _checked_walk(table, schedule)
    starts = [i for i in _step_starts(table) if table.timesteps[i] <= timestep]
    if not starts:
        raise InkdropError(
            f"no step of this table is at timestep {timestep} or below, the last is at "
            f"{table.timesteps[-1]}: give a larger one, or more steps"
        )
    first = starts[0]
    rows = [_row(table, i) for i in range(first, len(table))]
    rows[0] = rows[0].restarted(states[first])
    ranges = table.variance_range
    return _table(rows, None if ranges is None else ranges[first:])


def resampled(
    table: SamplerTable, schedule: NoiseSchedule, times: int, jump: int = 1
) -> SamplerTable:
    """A table whose stretches of `jump` steps are each gone through `times` times in all.

    After each time but the last the image is carried back up to where the stretch began, by the
    forward process: x_t = √(ᾱ_t/ᾱ_s) x_s + √(1-ᾱ_t/ᾱ_s) z, exactly q(x_t|x_s) (Lugmayr et al.
    2022, Sec. 4.2). That is part of the row that got there, so there are no rows but evaluations.
    What registers remember of a path that was left is put aside: a new path begins as any does,
    with a step of first order. The last step, to the clean image, is taken once.

    Args:
        table: any whose last row ends at the clean image, with a fixed variance.
        schedule: the one it was made for.
        times: 1 leaves the table as it is.
        jump: steps of a stretch; the first stretch may be shorter.

    Raises:
        InkdropError: for a learned variance, another schedule, or numbers below 1.
    """
    times, jump = checked_count("resamplings", times), checked_count("jump", jump)
    if times == 1:
        return table
    if table.variance_range is not None:
        raise InkdropError(
            "a learned variance cannot be resampled, because one row would draw noise of two "
            "kinds; choose ancestral, ancestral-beta or another sampler, or resamplings 1"
        )
    states = _checked_walk(table, schedule)
    starts = _step_starts(table)
    bounds = sorted({starts[0], *starts[::-1][::jump]})
    rows: list[_Row] = []
    for first, end in pairwise(bounds):
        back = schedule.respaced([table.timesteps[end], table.timesteps[first]])
        for time in range(times):
            stretch = [_row(table, i) for i in range(first, end)]
            if time > 0:
                stretch[0] = stretch[0].restarted(states[first])
            if time < times - 1:
                stretch[-1] = stretch[-1].carried_back(back)
            rows += stretch
    rows += [_row(table, i) for i in range(bounds[-1], len(table))]
    return _table(rows)


@dataclass(frozen=True)
class _Registers:
    """What is in the registers, u = signal x_0 + noise: (R,), and the noise's covariance (R, R)."""

    signal: Tensor
    covariance: Tensor


@dataclass(frozen=True)
class _Row:
    timestep: int
    M: Tensor
    v: Tensor
    s: Tensor

    def restarted(self, state: _Registers) -> _Row:
        """The row where only u₀ is known, and `state` is what the registers would have held.

        The others are what u₀ and x̂₀ make of them, had x̂₀ been the same all along:
        κ u₀ + (signal - κ signal₀) x̂₀, with κ their share of u₀'s noise.
        """
        share = state.covariance[:, 0] / state.covariance[0, 0]
        M = torch.zeros_like(self.M)
        M[:, 0] = self.M @ share
        v = self.v + self.M @ (state.signal - share * state.signal[0])
        return _Row(self.timestep, M, v, self.s)

    def carried_back(self, back: NoiseSchedule) -> _Row:
        """The row, then one forward step of a schedule of two timesteps, from 0 to 1."""
        kept, added = back.alphas[1].sqrt(), back.betas[1]
        M, v, s = self.M.clone(), self.v.clone(), self.s.clone()
        M[0] *= kept
        v[0] *= kept
        s[0] = (kept**2 * s[0] ** 2 + added).sqrt()
        return _Row(self.timestep, M, v, s)


def _row(table: SamplerTable, i: int) -> _Row:
    return _Row(table.timesteps[i], table.M[i], table.v[i], table.s[i])


def _table(rows: Sequence[_Row], variance_range: Tensor | None = None) -> SamplerTable:
    return SamplerTable(
        tuple(row.timestep for row in rows),
        torch.stack([row.M for row in rows]),
        torch.stack([row.v for row in rows]),
        torch.stack([row.s for row in rows]),
        variance_range,
    )


def _step_starts(table: SamplerTable) -> list[int]:
    """The rows that begin a step. One that stays at its level (heun's second) ends a step."""
    asked = table.timesteps
    return [i for i in range(len(asked)) if i + 1 == len(asked) or asked[i + 1] != asked[i]]


def _walk(table: SamplerTable, schedule: NoiseSchedule) -> list[_Registers]:
    """The registers before each row, and after the last, were every x̂₀ the true x_0."""
    first, registers = table.timesteps[0], table.M.shape[1]
    signal = torch.zeros(registers, dtype=torch.float64)
    covariance = torch.zeros(registers, registers, dtype=torch.float64)
    signal[0] = schedule.sqrt_alphas_cumprod[first]
    covariance[0, 0] = schedule.one_minus_alphas_cumprod[first]
    states = [_Registers(signal, covariance)]
    for M, v, s in zip(table.M, table.v, table.s, strict=True):
        signal = M @ signal + v
        covariance = M @ covariance @ M.T + torch.outer(s, s)
        states.append(_Registers(signal, covariance))
    return states


def _checked_walk(table: SamplerTable, schedule: NoiseSchedule) -> list[_Registers]:
    if max(table.timesteps) < schedule.timesteps:
        states = _walk(table, schedule)
        reached = torch.stack([state.signal[0] for state in states[1:]])
        expected = schedule.sqrt_alphas_cumprod[list(table.timesteps[1:])]
        expected = torch.cat([expected, torch.ones(1, dtype=torch.float64)])
        if (reached - expected).abs().max() < _AGREEMENT:
            return states
    raise InkdropError(
        "this table does not go through the schedule's noise levels to the clean image: give one "
        "that was made for this schedule"
    )


# Edits


class Sampling(TypedDict, total=False):
    """How an edit samples: what these mean, and which values they may have, `sample` says.

    `condition` holds one row for each image, `batch_size` counts results.
    """

    sampler: str
    steps: int | None
    evaluations: int | None
    timesteps: str | Sequence[int] | None
    eta: float | None
    order: int | None
    table: SamplerTable | None
    seed: int
    clip: str | None
    condition: Any
    guidance: float | Guidance | None
    batch_size: int | None
    first_index: int


def vary(
    denoiser: Denoiser,
    images: Tensor,
    strength: float = 0.6,
    *,
    timestep: int | None = None,
    n: int = 1,
    **sampling: Unpack[Sampling],
) -> Tensor:
    """Variations of images: noise is put on them, and taken off again (Meng et al. 2022, SDEdit).

    Args:
        images: (B, …), in [-1, 1].
        strength: where on the way to start, as a share of the T timesteps: near 0 nearly nothing
            changes, 1 starts from T-1, where nearly nothing is left of the image.
        timestep: the same as a timestep, instead; the sampler's first at or below it is taken.
        n: how many of each image.
        sampling: as for `sample`, condition with a row for each image.

    Returns:
        (B, n, …). Result j of image i is a pure function of the seed and of
        (first_index + i) n + j.

    Raises:
        InkdropError: for a strength outside (0, 1], or one below the sampler's last timestep.
    """
    warn_of_range(images)
    plan = _plan(denoiser, images, n, **sampling)
    schedule = denoiser.schedule
    if timestep is None:
        timestep = strength_timestep(strength, schedule)
        if timestep < plan.table.timesteps[-1]:
            raise InkdropError(
                f"strength {strength:g} is timestep {timestep}, but the sampler's last step is at "
                f"{plan.table.timesteps[-1]}: give more strength, or more steps"
            )
    table = remaining(plan.table, schedule, timestep)
    first = table.timesteps[0]
    noise = plan.noise(images)
    x = schedule.sqrt_alphas_cumprod[first].item() * images.repeat_interleave(n, 0)
    x = x + schedule.sqrt_one_minus_alphas_cumprod[first].item() * noise
    return plan.run(lambda rows: plan.denoiser, table, x)


def strength_timestep(strength: float, schedule: NoiseSchedule) -> int:
    """The timestep that a strength in (0, 1] stands for: 1 is T-1."""
    if not 0 < strength <= 1:
        raise InkdropError(f"strength must lie above 0 and up to 1, got {strength!r}")
    return max(0, round(strength * schedule.timesteps) - 1)


def inpaint(
    denoiser: Denoiser,
    images: Tensor,
    mask: Tensor,
    *,
    n: int = 1,
    resamplings: int = 10,
    jump: int = 1,
    **sampling: Unpack[Sampling],
) -> Tensor:
    """Paint what is masked, to go with the rest, which comes out to the bit (Lugmayr et al. 2022).

    Args:
        images: (B, …), in [-1, 1]; what they hold where they are masked does not matter.
        mask: bool, True where to paint: (H, W), or whatever broadcasts to images.
        n: how many of each image.
        resamplings: how often each stretch is gone through, 1 for once: see `resampled`.
        jump: steps of a stretch.
        sampling: as for `sample`, condition with a row for each image; the sampler is ancestral
            with 50 steps where none is named.

    Returns:
        (B, n, …), addressed as by `vary`.

    Raises:
        InkdropError: for a mask of another type or shape, or one with nothing to paint or all.
    """
    warn_of_range(images)
    if mask.dtype != torch.bool:
        raise InkdropError(f"mask must be bool, True where to paint, got {mask.dtype}")
    try:
        known = ~mask.to(images.device).expand_as(images)
    except RuntimeError:
        raise InkdropError(
            f"mask must broadcast to the images {tuple(images.shape)}, got {tuple(mask.shape)}"
        ) from None
    if known.all():
        raise InkdropError("the mask is False everywhere: there is nothing to paint")
    if not known.any():
        raise InkdropError("the mask is True everywhere, so nothing is known: sample instead")
    known = known.repeat_interleave(n, 0)
    return _restored(
        denoiser,
        lambda rows: Mask(known[rows]),
        torch.where(mask, 0, images),
        images,
        n,
        resamplings,
        jump,
        sampling,
    )


def restore(
    denoiser: Denoiser,
    operator: Operator,
    y: Tensor,
    *,
    n: int = 1,
    resamplings: int = 10,
    jump: int = 1,
    **sampling: Unpack[Sampling],
) -> Tensor:
    """Images x that the model knows and that measure y = A x (Wang et al. 2023, DDNM).

    In coordinates along A's rows and across them, it is `inpaint` of those across: what is true of
    one, resampling included, is true of the other.

    Args:
        operator: A: `Grey` to colourise, `Average` for a higher resolution, `Mask`, or your own.
        y: (B, …), measurements of images in [-1, 1].
        n: how many for each measurement.
        The rest is as for `inpaint`.

    Returns:
        (B, n, …), addressed as by `vary`; `operator.apply` of them is y, to rounding.
    """
    warn_of_range(y)
    like = operator.pseudo_inverse(y)
    if denoiser.shape is not None and tuple(like.shape[1:]) != denoiser.shape:
        raise InkdropError(
            f"these measurements are of examples {tuple(like.shape[1:])}, but the denoiser's are "
            f"{denoiser.shape}"
        )
    return _restored(denoiser, lambda rows: operator, y, like, n, resamplings, jump, sampling)


def _restored(
    denoiser: Denoiser,
    operator_of: Callable[[slice], Operator],
    y: Tensor,
    images: Tensor,
    n: int,
    resamplings: int,
    jump: int,
    sampling: Sampling,
) -> Tensor:
    if not {"sampler", "table"} & set(sampling):
        sampling["sampler"] = "ancestral"
        if not {"steps", "evaluations", "timesteps"} & set(sampling):
            sampling["steps"] = min(_STEPS, denoiser.schedule.timesteps)
    plan = _plan(denoiser, images, n, **sampling)
    table = resampled(plan.table, denoiser.schedule, resamplings, jump)
    first = table.timesteps[0]
    alpha = denoiser.schedule.sqrt_alphas_cumprod[first].item()
    sigma = denoiser.schedule.sqrt_one_minus_alphas_cumprod[first].item()
    noise = plan.noise(images)
    y = y.to(noise).repeat_interleave(n, 0)
    everything = operator_of(slice(None))
    # What is known starts from q(x_T|x_0), the rest from pure noise.
    x = noise + everything.pseudo_inverse(alpha * y + (sigma - 1) * everything.apply(noise))
    clip, plan.clip = plan.clip, None  # the projected denoiser's, which keeps y

    def known(rows: slice) -> Denoiser:
        return Projected(plan.denoiser, operator_of(rows), y[rows], clip)

    made = plan.run(known, table, x)
    flat = everything.projected(made.flatten(0, 1), y)
    if clip is not None:
        flat = _in_range(flat, everything, y, _LAST_ROUNDS)
    return flat.reshape(made.shape)


def reconstruct(
    denoiser: Denoiser,
    images: Tensor,
    sampler: str = "ddim",
    steps: int = 50,
    *,
    timesteps: str | Sequence[int] | None = None,
    order: int | None = None,
    condition: Any = None,
    guidance: float | Guidance | None = None,
    batch_size: int | None = None,
) -> Reconstruction:
    """Images inverted to noise and sampled back (Song et al. 2021, Sec. 5.4).

    Args:
        images: (B, …), in [-1, 1].
        The rest is as for `invert`; the way back goes through the same timesteps.
    """
    way = _Way.planned(denoiser, sampler, steps, timesteps, order, guidance, batch_size)
    latents = way.up(images, condition)
    found = way.down(latents, condition)
    error = (found - images.to(found)).flatten(1).square().mean(1).sqrt()
    return Reconstruction(latents, found, error)


def interpolate(
    denoiser: Denoiser,
    a: Tensor,
    b: Tensor,
    count: int = 9,
    sampler: str = "ddim",
    steps: int = 50,
    *,
    timesteps: str | Sequence[int] | None = None,
    order: int | None = None,
    condition: Any = None,
    guidance: float | Guidance | None = None,
    batch_size: int | None = None,
) -> Tensor:
    """The way from images a to images b, through the noise they are made from (`slerp`).

    Args:
        a, b: (B, …), in [-1, 1].
        count: images on each way, at least 2: the first and last are a and b, reconstructed.
        condition: with a row for each pair.
        The rest is as for `invert`.

    Returns:
        (B, count, …).
    """
    if a.shape != b.shape:
        raise InkdropError(f"a and b must be alike, got {tuple(a.shape)} and {tuple(b.shape)}")
    shares = _shares(count)
    way = _Way.planned(denoiser, sampler, steps, timesteps, order, guidance, batch_size)
    up_a, up_b = (way.up(end, condition) for end in (a, b))
    latents = torch.stack([slerp(up_a, up_b, share) for share in shares], 1)
    made = way.down(latents.flatten(0, 1), _repeated(condition, count))
    return made.reshape(latents.shape)


def interpolate_seeds(
    denoiser: Denoiser,
    seed_a: int,
    seed_b: int,
    count: int = 9,
    sampler: str = "ddim",
    steps: int | None = None,
    *,
    shape: tuple[int, ...] | None = None,
    timesteps: str | Sequence[int] | None = None,
    order: int | None = None,
    clip: str | None = "auto",
    condition: Any = None,
    guidance: float | Guidance | None = None,
    batch_size: int | None = None,
) -> Tensor:
    """The way from one seed's first sample to another's, through their noise (`slerp`).

    Args:
        count: images, at least 2; the first and last are what `sample` makes of the seeds.
        sampler: a deterministic one.
        condition: one row, for all of them.
        The rest is as for `sample`.

    Returns:
        (count, …).
    """
    if sampler not in INVERTIBLE:
        raise unknown_name("deterministic sampler", sampler, INVERTIBLE)
    shape = shape or denoiser.shape
    if shape is None:
        raise InkdropError("the shape of one example is not known: give shape=(C, H, W)")
    if count_of(condition) not in (None, 1):
        raise InkdropError(
            f"condition must hold one row, for the whole way, got {count_of(condition)}"
        )
    a, b = (initial_noise(1, shape, seed) for seed in (seed_a, seed_b))
    latents = torch.cat([slerp(a, b, share) for share in _shares(count)])
    return sample(
        denoiser if guidance is None else guided(denoiser, guidance),
        sampler=sampler,
        steps=steps,
        timesteps=timesteps,
        order=order,
        x_init=latents,
        clip=clip,
        condition=_repeated(condition, count),
        batch_size=batch_size,
    )


def slerp(a: Tensor, b: Tensor, share: float) -> Tensor:
    """Spherical interpolation from a (B, …) at share 0 to b at 1 (Shoemake 1985).

    Directions turn at an even rate, norms change at one: noise between noise has the norm of noise,
    which a straight line's middle has not.

    Raises:
        InkdropError: for opposite directions, between which every way is as short.
    """
    flat_a, flat_b = a.flatten(1), b.flatten(1)
    norm_a, norm_b = (flat.norm(dim=1, keepdim=True) for flat in (flat_a, flat_b))
    tiny = torch.finfo(a.dtype).tiny
    unit_a, unit_b = flat_a / norm_a.clamp(min=tiny), flat_b / norm_b.clamp(min=tiny)
    cosine = (unit_a * unit_b).sum(1, keepdim=True).clamp(-1, 1)
    angle = cosine.arccos()
    sine = angle.sin()
    near = sine < 4 * torch.finfo(a.dtype).eps ** 0.5  # where an arc is a line, to rounding
    if (near & (cosine < 0)).any():
        raise InkdropError("a and b point in opposite directions: no way between them is shortest")
    sine = torch.where(near, 1, sine)
    weight_a = torch.where(near, 1 - share, torch.sin((1 - share) * angle) / sine)
    weight_b = torch.where(near, share, torch.sin(share * angle) / sine)
    norm = (1 - share) * norm_a + share * norm_b
    between = norm * (weight_a * unit_a + weight_b * unit_b)
    shaped: Tensor = between.reshape(a.shape)
    return shaped


@dataclass(frozen=True, eq=False)
class Reconstruction:
    """What `reconstruct` found.

    Attributes:
        latents: (B, …), the noise at T-1.
        images: (B, …), what is sampled from it.
        error: (B,), the root mean square of what they miss the images by, on the scale [-1, 1].
    """

    latents: Tensor
    images: Tensor
    error: Tensor


# What the edits share


@dataclass
class _Plan:
    """The sampling of n results for each of B images."""

    denoiser: Denoiser
    table: SamplerTable
    n: int
    seed: int
    clip: str | None
    condition: Any
    batch_size: int
    first_index: int

    def noise(self, images: Tensor) -> Tensor:
        """The pure noise (B n, …) of the results, on the denoiser's device; float64 for float64."""
        count = len(images) * self.n
        noise = initial_noise(count, tuple(images.shape[1:]), self.seed, self.first_index * self.n)
        return noise.to(self.denoiser.device, images.dtype)

    def run(
        self, denoiser_of: Callable[[slice], Denoiser], table: SamplerTable, x: Tensor
    ) -> Tensor:
        """(B, n, …) from x (B n, …), each batch by the denoiser of its rows."""
        made = []
        for start in range(0, len(x), self.batch_size):
            rows = slice(start, start + self.batch_size)
            made.append(
                sample(
                    denoiser_of(rows),
                    table=table,
                    x_init=x[rows],
                    seed=self.seed,
                    clip=self.clip,
                    condition=rows_of(self.condition, rows),
                    first_index=self.first_index * self.n + start,
                )
            )
        return torch.cat(made).reshape(-1, self.n, *x.shape[1:])


def _plan(
    denoiser: Denoiser,
    images: Tensor,
    n: int,
    *,
    sampler: str = "ddim",
    steps: int | None = None,
    evaluations: int | None = None,
    timesteps: str | Sequence[int] | None = None,
    eta: float | None = None,
    order: int | None = None,
    table: SamplerTable | None = None,
    seed: int = 0,
    clip: str | None = "auto",
    condition: Any = None,
    guidance: float | Guidance | None = None,
    batch_size: int | None = None,
    first_index: int = 0,
) -> _Plan:
    n = checked_count("n", n)
    _check_images(denoiser, images)
    rows = count_of(condition)
    if rows not in (None, len(images)):
        raise InkdropError(f"condition holds {rows} rows, but there are {len(images)} images")
    if table is None:
        table = build_table(
            denoiser.schedule,
            sampler,
            steps,
            evaluations=evaluations,
            timesteps=timesteps,
            eta=eta,
            order=order,
        )
    elif any(value is not None for value in (steps, evaluations, timesteps, eta, order)):
        raise InkdropError(
            "give table, or steps, evaluations, timesteps, eta and order: a table has its own"
        )
    return _Plan(
        denoiser if guidance is None else guided(denoiser, guidance),
        table,
        n,
        seed,
        chosen_clip(clip, tuple(images.shape[1:])),
        _repeated(condition, n),
        len(images) * n if batch_size is None else checked_count("batch_size", batch_size),
        first_index,
    )


@dataclass(frozen=True)
class _Way:
    """A deterministic sampler, up to noise and down again, through the same timesteps."""

    denoiser: Denoiser
    sampler: str
    timesteps: list[int]
    order: int | None
    batch_size: int | None

    @classmethod
    def planned(
        cls,
        denoiser: Denoiser,
        sampler: str,
        steps: int,
        timesteps: str | Sequence[int] | None,
        order: int | None,
        guidance: float | Guidance | None,
        batch_size: int | None,
    ) -> _Way:
        visited = inverted_timesteps(denoiser.schedule, sampler, steps, timesteps)
        if guidance is not None:
            denoiser = guided(denoiser, guidance)
        return cls(denoiser, sampler, visited, order, batch_size)

    def up(self, images: Tensor, condition: Any) -> Tensor:
        _check_images(self.denoiser, images)
        return invert(
            self.denoiser,
            images,
            self.sampler,
            timesteps=self.timesteps,
            order=self.order,
            condition=condition,
            batch_size=self.batch_size,
        )

    def down(self, latents: Tensor, condition: Any) -> Tensor:
        return sample(
            self.denoiser,
            sampler=self.sampler,
            timesteps=self.timesteps,
            order=self.order,
            x_init=latents,
            clip=None,
            condition=condition,
            batch_size=self.batch_size,
        )


def _check_images(denoiser: Denoiser, images: Tensor) -> None:
    if not images.is_floating_point():
        raise InkdropError(
            f"images must be floating point in [-1, 1], got {images.dtype}; inkdrop.to_float makes "
            "them from uint8"
        )
    if denoiser.shape is not None and tuple(images.shape[1:]) != denoiser.shape:
        raise InkdropError(
            f"the model is of examples {denoiser.shape}, but these are {tuple(images.shape[1:])}"
        )
    if not len(images):
        raise InkdropError("there are no images: give at least one")


def _repeated(condition: Any, times: int) -> Any:
    return mapped(lambda part: part.repeat_interleave(times, 0), condition)


def _shares(count: int) -> list[float]:
    if checked_count("count", count) < 2:
        raise InkdropError(f"count must be at least 2, both ends, got {count}")
    return [i / (count - 1) for i in range(count)]
