"""Samplers as tables, and the one loop that runs any of them.

A table has one row for each network evaluation. With u a handful of registers, u₀ the image the
network is asked about, row i is

    x̂₀ = denoiser(u₀, tᵢ);   u ← Mᵢ u + vᵢ x̂₀ + sᵢ z,   z ~ N(0, I)

so a sampler is numbers, computed once in float64 from the schedule and the chosen timesteps.

    table           order   evaluations of K timesteps   source
    ancestral       –       K                            Ho et al. 2020, Algorithm 2
    ddim            1       K                            Song et al. 2021, Eq. 12
    dpm_solver_pp   1 … 3   K                            Lu et al. 2022b, multistep
    unipc           2 … 4   K                            Zhao et al. 2023, B₂(h)
    heun            2       2K - 1                       Karras et al. 2022, Algorithm 1
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor

from ..conditions import count_of, rows_of, to_device
from ..errors import InkdropError, unknown_name
from ..randomness import image_noise
from ..ranges import warn_of_range
from .clipping import chosen_clip, clipped
from .denoiser import Denoiser, Estimate, evaluating
from .guidance import Guidance, Guided, guided
from .schedule import NoiseSchedule, checked_count, checked_timesteps
from .solvers import SamplerTable, heun_table, levels_at, multistep_table
from .spacing import spaced_timesteps

INVERTIBLE = ("ddim", "dpm-solver++", "unipc", "heun")


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
    not_drawn = (1 - eta**2) * kept.posterior_variance / kept.one_minus_alphas_cumprod
    m = (kept.posterior_mean_coef_x_t**2 + not_drawn).sqrt()
    v = kept.alphas_cumprod_prev.sqrt() - m * kept.sqrt_alphas_cumprod
    return _one_register(visited, m, v, sigma)


def ancestral(
    schedule: NoiseSchedule, timesteps: Sequence[int] | Tensor, variance: str = "posterior"
) -> SamplerTable:
    """DDPM's own sampler (Ho et al. 2020, Algorithm 2), on any falling list of timesteps.

    Args:
        variance: "posterior" (β̃_t) or "beta" (β_t), Ho's two fixed choices (Sec. 3.2), or
            "learned", in between as the denoiser says (Nichol & Dhariwal 2021, Eq. 15). No noise is
            added by the last row.
    """
    visited = checked_timesteps(timesteps, schedule.timesteps)
    kept = schedule.respaced(visited[::-1])
    sigma, variance_range = kept.posterior_variance.sqrt(), None
    if variance == "beta":
        sigma = kept.betas.sqrt()
        sigma[0] = 0
    elif variance == "learned":
        variance_range = (kept.log_betas - kept.log_posterior_variance_clipped) / 2
    elif variance != "posterior":
        raise unknown_name("variance", variance, ("posterior", "beta", "learned"))
    return _one_register(
        visited,
        kept.posterior_mean_coef_x_t,
        kept.posterior_mean_coef_x_start,
        sigma,
        variance_range,
    )


def dpm_solver_pp(
    schedule: NoiseSchedule, timesteps: Sequence[int] | Tensor, order: int | None = None
) -> SamplerTable:
    """DPM-Solver++, multistep, in data prediction (Lu et al. 2022b).

    Order 1 is DDIM, order 2 their 2M (Algorithm 2). Order 3 integrates the parabola through three
    estimates exactly; the widespread third-order update halves that parabola's curvature, which
    makes it second order. The first rows, which have no past, and the last ones, into the clean
    image, are of lower order.

    Args:
        timesteps: any falling list; the last row ends at the clean image.
        order: 1, 2 or 3, at most the number of timesteps; 2 by default (1 for one timestep).
    """
    visited = checked_timesteps(timesteps, schedule.timesteps)
    return multistep_table(
        levels_at(schedule, visited, to_image=True), visited, order, corrector=False
    )


def unipc(
    schedule: NoiseSchedule,
    timesteps: Sequence[int] | Tensor,
    order: int | None = None,
    corrector: bool = True,
) -> SamplerTable:
    """UniPC, multistep, with B₂(h) in data prediction (Zhao et al. 2023).

    The corrector uses each estimate once more, for the step that led to it, at no evaluation of its
    own, and raises the order by one (their Theorem 3.1). Without it, orders 1 and 2 are DDIM and
    DPM-Solver++'s.

    Args:
        timesteps: any falling list; the last row ends at the clean image.
        order: of the predictor: 1, 2 or 3, at most the number of timesteps; 2 by default (1 for
            one timestep).
        corrector: whether to correct.
    """
    visited = checked_timesteps(timesteps, schedule.timesteps)
    return multistep_table(levels_at(schedule, visited, to_image=True), visited, order, corrector)


def heun(schedule: NoiseSchedule, timesteps: Sequence[int] | Tensor) -> SamplerTable:
    """EDM's deterministic sampler: Heun's method in x/α against σ/α (Karras et al. 2022, Alg. 1).

    Two evaluations for each timestep but the last, from which an Euler step reaches the image:
    2K - 1 rows for K timesteps.

    Args:
        timesteps: any falling list; the last row ends at the clean image.
    """
    visited = checked_timesteps(timesteps, schedule.timesteps)
    return heun_table(levels_at(schedule, visited, to_image=True), visited)


def inversion(
    schedule: NoiseSchedule,
    timesteps: Sequence[int] | Tensor,
    sampler: str = "ddim",
    order: int | None = None,
) -> SamplerTable:
    """A deterministic sampler run backwards: from an image at the last of `timesteps` to noise.

    The same rules, solved from low noise to high, undo a sampler up to its order of accuracy.
    DDIM's is the inversion of Song et al. 2021, Sec. 4.3. A clean image stands for the one at the
    least noise, so let `timesteps` end at or near 0.

    Args:
        timesteps: a falling list of at least 2, as the sampler was given; the network is asked at
            all but the first (by heun at that one too).
        sampler: "ddim", "dpm-solver++", "unipc" or "heun".
        order: as for those.
    """
    visited = checked_timesteps(timesteps, schedule.timesteps)[::-1]
    if len(visited) < 2:
        raise InkdropError("an inversion needs at least 2 timesteps: where it starts and ends")
    if sampler not in INVERTIBLE:
        raise unknown_name("deterministic sampler", sampler, INVERTIBLE)
    _checked_options(sampler, {"order": order}, SAMPLERS[sampler].options)
    levels = levels_at(schedule, visited, to_image=False)
    if sampler == "heun":
        return heun_table(levels, visited)
    order = 1 if sampler == "ddim" else order
    return multistep_table(levels, visited, order, corrector=sampler == "unipc")


@dataclass(frozen=True)
class Sampler:
    """A sampler by name.

    Attributes:
        table: makes its table.
        default_steps: the steps it takes where none are asked for; None for every timestep.
        options: what else its table can be told.
        evaluations_per_step: network evaluations of a step (but for the last one, which needs one).
        spacing: of its timesteps, where none is asked for.
    """

    table: Callable[..., SamplerTable]
    default_steps: int | None
    options: tuple[str, ...] = ()
    evaluations_per_step: int = 1
    spacing: str = "trailing"

    def steps(self, evaluations: int) -> int:
        """The most steps that `evaluations` network evaluations are enough for."""
        return (evaluations - 1) // self.evaluations_per_step + 1


SAMPLERS: dict[str, Sampler] = {
    "ddim": Sampler(ddim, 50, ("eta",)),
    "ancestral": Sampler(ancestral, None),
    "ancestral-beta": Sampler(partial(ancestral, variance="beta"), None),
    "ancestral-learned": Sampler(partial(ancestral, variance="learned"), None),
    "dpm-solver++": Sampler(dpm_solver_pp, 20, ("order",)),
    "unipc": Sampler(unipc, 20, ("order",)),
    # Its second half-step overshoots by the ratio of noise levels, which trailing makes large.
    "heun": Sampler(heun, 18, evaluations_per_step=2, spacing="log-snr"),
}


def build_table(
    schedule: NoiseSchedule,
    sampler: str = "ddim",
    steps: int | None = None,
    *,
    evaluations: int | None = None,
    timesteps: str | Sequence[int] | None = None,
    eta: float | None = None,
    order: int | None = None,
) -> SamplerTable:
    """The table of a named sampler.

    Args:
        sampler: a name in `SAMPLERS`.
        steps: how many timesteps are visited; None takes the sampler's own number (at most T).
        evaluations: the same in network evaluations: as many steps as they are enough for.
        timesteps: how they are spaced (a name in `SPACINGS`), or a falling list of them; by default
            the sampler's own spacing.
        eta: of ddim, 0 … 1.
        order: of dpm-solver++ and unipc, 1 … 3.

    Raises:
        InkdropError: for an unknown name, an option that the sampler does not have, or a number
            out of range.
    """
    if sampler not in SAMPLERS:
        raise unknown_name("sampler", sampler, SAMPLERS)
    known = SAMPLERS[sampler]
    given = {"eta": eta, "order": order}
    options = _checked_options(sampler, given, known.options)
    if timesteps is None:
        timesteps = known.spacing
    if not isinstance(timesteps, str):
        if not isinstance(timesteps, Iterable):
            raise InkdropError(
                "timesteps must be the name of a spacing or a falling list, got "
                f"{timesteps!r}; how many there are is steps"
            )
        if steps is not None or evaluations is not None:
            raise InkdropError("a list of timesteps has its own steps: leave steps and evaluations")
        return known.table(schedule, list(timesteps), **options)
    steps = step_count(schedule, sampler, steps, evaluations)
    return known.table(schedule, spaced_timesteps(schedule, steps, timesteps), **options)


def step_count(
    schedule: NoiseSchedule, sampler: str, steps: int | None, evaluations: int | None
) -> int:
    """How many timesteps `steps`, `evaluations` or neither of them mean; see `build_table`."""
    if sampler not in SAMPLERS:
        raise unknown_name("sampler", sampler, SAMPLERS)
    known = SAMPLERS[sampler]
    if steps is not None and evaluations is not None:
        raise InkdropError(
            f"give steps or evaluations, not both (got {steps} and {evaluations}); a step of "
            f"{sampler} takes {known.evaluations_per_step}"
        )
    if evaluations is not None:
        return known.steps(checked_count("evaluations", evaluations))
    if steps is not None:
        return steps
    return min(known.default_steps or schedule.timesteps, schedule.timesteps)


def _checked_options(
    sampler: str, given: dict[str, float | None], known: tuple[str, ...]
) -> dict[str, float]:
    options = {name: value for name, value in given.items() if value is not None}
    for name, value in options.items():
        if name not in known:
            takers = [other for other, taker in SAMPLERS.items() if name in taker.options]
            raise InkdropError(
                f"{sampler} has no {name} (got {value!r}): leave it out, it is an option of "
                f"{' and '.join(takers)}"
            )
    return options


def initial_noise(n: int, shape: tuple[int, ...], seed: int, first_index: int = 0) -> Tensor:
    """The pure noise (n, *shape) that `sample` starts images first_index … from, float32."""
    return image_noise(shape, first_index, n, seed, "sample start")


def inversion_spacing(sampler: str) -> str:
    """The spacing that suits a deterministic sampler both ways: it ends at timestep 0.

    Raises:
        InkdropError: for another sampler.
    """
    if sampler not in INVERTIBLE:
        raise unknown_name("deterministic sampler", sampler, INVERTIBLE)
    own = SAMPLERS[sampler].spacing
    return "linspace" if own == "trailing" else own


def inverted_timesteps(
    schedule: NoiseSchedule, sampler: str, steps: int, timesteps: str | Sequence[int] | None
) -> list[int]:
    """The falling timesteps that `invert` visits."""
    if timesteps is None:
        timesteps = inversion_spacing(sampler)
    if isinstance(timesteps, str):
        return spaced_timesteps(schedule, steps, timesteps)
    return list(timesteps)


def invert(
    denoiser: Denoiser,
    x: Tensor,
    sampler: str = "ddim",
    steps: int = 50,
    *,
    timesteps: str | Sequence[int] | None = None,
    order: int | None = None,
    clip: str | None = None,
    condition: Any = None,
    guidance: float | Guidance | None = None,
    batch_size: int | None = None,
) -> Tensor:
    """The noise at T-1 that a deterministic sampler would make x from: sampling, back in time.

    Args:
        x: (n, …), clean examples; images in [-1, 1].
        sampler: "ddim", "dpm-solver++", "unipc" or "heun".
        steps: how many timesteps are visited, T-1 and where x is put among them.
        timesteps: their spacing, or a falling list of them; best one that ends at 0. By default
            that of `inversion_spacing`.
        clip: of x̂₀; by default none, so that nothing is lost on the way.
        The rest is as for `sample`.

    Returns:
        (n, …); `sample(denoiser, x_init=…, timesteps=…, clip=None)` with the same sampler and
        timesteps leads back to x, at the order of the solver.
    """
    warn_of_range(x)
    timesteps = inverted_timesteps(denoiser.schedule, sampler, steps, timesteps)
    table = inversion(denoiser.schedule, timesteps, sampler, order)
    return sample(
        denoiser,
        table=table,
        x_init=x,
        clip=clip,
        condition=condition,
        guidance=guidance,
        batch_size=batch_size,
    )


def sample_steps(
    denoiser: Denoiser,
    n: int | None = None,
    sampler: str = "ddim",
    steps: int | None = None,
    seed: int = 0,
    *,
    shape: tuple[int, ...] | None = None,
    evaluations: int | None = None,
    timesteps: str | Sequence[int] | None = None,
    eta: float | None = None,
    order: int | None = None,
    table: SamplerTable | None = None,
    x_init: Tensor | None = None,
    clip: str | None = "auto",
    condition: Any = None,
    guidance: float | Guidance | None = None,
    batch_size: int | None = None,
    first_index: int = 0,
) -> Iterator[State]:
    """Generate `n` examples, yielding the state after each network evaluation.

    The arguments are those of `sample`.
    """
    if table is not None and any(
        given is not None for given in (steps, evaluations, timesteps, eta, order)
    ):
        raise InkdropError(
            "give table, or steps, evaluations, timesteps, eta and order: a table has its own"
        )
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
    if table.variance_range is not None and not denoiser.learned_variance:
        raise InkdropError(
            "this table samples with a learned variance, but the network learns none; choose "
            "ancestral or ancestral-beta"
        )
    if x_init is not None:
        if shape is not None and tuple(shape) != x_init.shape[1:]:
            raise InkdropError(f"x_init holds {tuple(x_init.shape[1:])}, but shape is {shape}")
        shape = tuple(x_init.shape[1:])
    shape = shape or denoiser.shape
    if shape is None:
        raise InkdropError("the shape of one example is not known: give shape=(C, H, W)")
    told = count_of(condition)
    if n is None:
        n = len(x_init) if x_init is not None else 64 if told is None else told
    n = checked_count("n", n)
    if x_init is not None and len(x_init) != n:
        raise InkdropError(f"x_init holds {len(x_init)} examples, but n is {n}")
    if told is not None and told != n:
        raise InkdropError(f"condition holds {told} examples, but n is {n}")
    if guidance is not None:
        denoiser = guided(denoiser, guidance)
    if isinstance(denoiser, Guided):
        denoiser.check(condition)
    batch_size = checked_count("batch_size", n if batch_size is None else batch_size)
    clip = chosen_clip(clip, shape)
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
    evaluations: int | None = None,
    timesteps: str | Sequence[int] | None = None,
    eta: float | None = None,
    order: int | None = None,
    table: SamplerTable | None = None,
    x_init: Tensor | None = None,
    clip: str | None = "auto",
    condition: Any = None,
    guidance: float | Guidance | None = None,
    batch_size: int | None = None,
    first_index: int = 0,
) -> Tensor:
    """Generate `n` examples.

    Args:
        n: how many; 64, or as many as x_init or condition holds.
        sampler: a name in `SAMPLERS`.
        steps: how many timesteps are visited; by default as many as `SAMPLERS` says.
        seed: names the images: image i of a seed starts from the same noise and is given the same
            noise on the way, whatever n, batch_size or the device.
        shape: of one example, when the denoiser does not know it.
        evaluations: network evaluations, instead of steps; a step of heun takes two.
        timesteps: their spacing, a name in `SPACINGS`, or a falling list of them; the sampler's own
            spacing by default.
        eta: of ddim, from 0 (deterministic, the default) to 1 (ancestral).
        order: of dpm-solver++ and unipc, 1 … 3; 2 by default.
        table: a `SamplerTable` to run instead of a named sampler.
        x_init: (n, …), where to start instead of pure noise; its dtype is computed in.
        clip: what keeps x̂₀ in range: "range" clips to [-1, 1], "dynamic" is Imagen's dynamic
            thresholding, None leaves it. "auto" is "range" for images, whose shape is (C, H, W),
            and None for anything else.
        condition: given to the network: a tensor (n, …), or a NamedTuple of such.
        guidance: how far each example is drawn towards its condition: a scale (1 is the plain
            conditional estimate) or a `Guidance`; see `guidance.guided`.
        batch_size: how many examples the network is given at once; all by default. Guidance gives
            it each of them twice.
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
        evaluations=evaluations,
        timesteps=timesteps,
        eta=eta,
        order=order,
        table=table,
        x_init=x_init,
        clip=clip,
        condition=condition,
        guidance=guidance,
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
    condition: Any,
    batch_size: int,
    seed: int,
    first_index: int,
) -> Iterator[State]:
    condition = to_device(condition, x.device)
    registers = [x, *[torch.zeros_like(x)] * (table.M.shape[1] - 1)]
    ranges = [None] * len(table) if table.variance_range is None else table.variance_range.tolist()
    rows = zip(
        table.timesteps,
        table.M.tolist(),
        table.v.tolist(),
        table.s.tolist(),
        ranges,
        strict=True,
    )
    for step, (timestep, m, v, s, variance_range) in enumerate(rows):
        with torch.no_grad(), evaluating(denoiser.network):
            estimate = _estimate(denoiser, registers[0], timestep, condition, batch_size)
            x_start = clipped(estimate.x_start, clip)
            terms = [*registers, x_start]
            weights = [[*row, weight] for row, weight in zip(m, v, strict=True)]
            if any(s):
                z = image_noise(x.shape[1:], first_index, len(x), seed, "sample step", step).to(x)
                if variance_range is not None:
                    assert estimate.variance_fraction is not None
                    z *= torch.exp(variance_range * estimate.variance_fraction)
                terms.append(z)
                weights = [[*row, weight] for row, weight in zip(weights, s, strict=True)]
            registers = [_weighted_sum(row, terms) for row in weights]
        yield State(registers[0], x_start, timestep)


def _estimate(
    denoiser: Denoiser, x: Tensor, timestep: int, condition: Any, batch_size: int
) -> Estimate:
    """The estimate of all of x, made batch_size examples at a time."""
    batches = [slice(i, i + batch_size) for i in range(0, len(x), batch_size)]
    parts = [denoiser(x[rows], timestep, rows_of(condition, rows)) for rows in batches]
    if len(parts) == 1:
        return parts[0]
    fractions = [part.variance_fraction for part in parts if part.variance_fraction is not None]
    return Estimate(
        torch.cat([part.x_start for part in parts]),
        torch.cat([part.noise for part in parts]),
        torch.cat(fractions) if fractions else None,
    )


def _weighted_sum(weights: Sequence[float], terms: Sequence[Tensor]) -> Tensor:
    used = [(w, term) for w, term in zip(weights, terms, strict=True) if w]
    if not used:
        return torch.zeros_like(terms[0])
    (first, total), *others = used
    if others or first != 1:  # a register that is only handed on needs no copy
        total = total * first
    for weight, term in others:
        total.add_(term, alpha=weight)
    return total


def _one_register(
    visited: list[int], m: Tensor, v: Tensor, s: Tensor, variance_range: Tensor | None = None
) -> SamplerTable:
    """Rows from coefficients (K,) that rise with the timesteps, which were visited falling."""
    return SamplerTable(
        tuple(visited),
        m.flip(0).reshape(-1, 1, 1),
        v.flip(0).reshape(-1, 1),
        s.flip(0).reshape(-1, 1),
        None if variance_range is None else variance_range.flip(0),
    )
