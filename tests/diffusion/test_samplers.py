"""Samplers are tables: compared as numbers, then run against exact answers."""

import itertools
import math
import random
import warnings
from decimal import Decimal, localcontext

import numpy as np
import pytest
import torch
from hypothesis import assume, example, given
from hypothesis import strategies as st
from torch import nn

from inkdrop.config import UNetConfig
from inkdrop.diffusion.denoiser import Denoiser
from inkdrop.diffusion.oracle import GaussianMixture
from inkdrop.diffusion.samplers import (
    INVERTIBLE,
    SAMPLERS,
    SamplerTable,
    ancestral,
    build_table,
    ddim,
    initial_noise,
    invert,
    inverted_timesteps,
    sample,
    sample_steps,
    unipc,
)
from inkdrop.diffusion.schedule import NoiseSchedule, ScheduleWarning
from inkdrop.diffusion.spacing import SPACINGS, spaced_timesteps
from inkdrop.errors import InkdropError
from inkdrop.networks.unet import UNet
from inkdrop.randomness import image_noise, torch_seeded

LINEAR = NoiseSchedule.linear()
COSINE = NoiseSchedule.cosine(200)
LONG_COSINE = NoiseSchedule.cosine(4000)
with warnings.catch_warnings():
    warnings.simplefilter("ignore", ScheduleWarning)
    SIGNAL_LEFT = NoiseSchedule.linear(300, 1e-4, 0.02)
    ONE_STEP = NoiseSchedule.from_betas([0.9])
SCHEDULES = [LINEAR, COSINE, LONG_COSINE, SIGNAL_LEFT, ONE_STEP]

#: Every named sampler, and every order of those that have one.
RULES = [
    *((name, {}) for name in sorted(SAMPLERS)),
    *((name, {"order": order}) for name in ("dpm-solver++", "unipc") for order in (1, 3)),
    ("ddim", {"eta": 0.5}),
]
LEARNED = "ancestral-learned"


def rules(*, learned=True):
    chosen = [rule for rule in RULES if learned or rule[0] != LEARNED]
    ids = [" ".join([name, *map(str, options.values())]) for name, options in chosen]
    return pytest.mark.parametrize(("name", "options"), chosen, ids=ids)


@st.composite
def visits(draw):
    """A schedule and any falling list of its timesteps."""
    schedule = draw(st.sampled_from(SCHEDULES))
    steps = draw(st.sets(st.integers(0, schedule.timesteps - 1), min_size=1, max_size=30))
    return schedule, sorted(steps, reverse=True)


def coefficients(table):
    assert table.M.shape == (len(table), 1, 1)
    assert table.v.shape == table.s.shape == (len(table), 1)
    for values in (table.M, table.v, table.s):
        assert values.dtype == torch.float64
    return table.M.flatten(), table.v.flatten(), table.s.flatten()


def assert_same_table(actual, expected, tolerance=1e-12):
    assert actual.timesteps == expected.timesteps
    for ours, theirs in zip(coefficients(actual), coefficients(expected), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=0, atol=tolerance)


def normal(*shape, seed=0):
    return torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


class Told(nn.Module):
    """A network whose x̂₀ is given by a function of what it is asked."""

    def __init__(self, answer, dropout=0.0, learned=False):
        super().__init__()
        self.answer = answer
        self.learned = learned
        self.dropout = nn.Dropout(dropout)
        self.frozen = nn.Dropout(0.5)
        self.frozen.eval()
        self.weight = nn.Parameter(torch.ones((), dtype=torch.float64))
        self.seen = []

    def forward(self, x, t, condition):
        modes = self.training, self.dropout.training, self.frozen.training
        self.seen.append((x, t, condition, modes, torch.is_grad_enabled()))
        answer = self.dropout(self.weight * self.answer(x, t, condition))
        return torch.cat([answer, torch.cos(x.to(answer))], dim=1) if self.learned else answer


def told(answer, schedule=LINEAR, shape=None, dropout=0.0, learned=False):
    network = Told(answer, dropout, learned)
    return Denoiser(network, schedule, "x_start", shape=shape, learned_variance=learned)


# Tables ------------------------------------------------------------------------------------------


@given(visits())
@example((LONG_COSINE, [3999, 1]))
@example((LINEAR, [999, 0]))
def test_ddim_with_eta_one_is_ancestral(visit):
    schedule, timesteps = visit
    assert_same_table(ddim(schedule, timesteps, eta=1.0), ancestral(schedule, timesteps))


def textbook_ddim(schedule, timesteps, eta):
    """Song et al. 2021, Eq. 12 and 16, in 60 decimal digits; rows of (M, v, s)."""
    with localcontext() as context:
        context.prec = 60
        alphas_cumprod, product = [], Decimal(1)
        for beta in schedule.betas.tolist():
            product *= 1 - Decimal(beta)
            alphas_cumprod.append(product)
        rows, eta = [], Decimal(eta)
        for i, t in enumerate(timesteps):
            now = alphas_cumprod[t]
            before = alphas_cumprod[timesteps[i + 1]] if i + 1 < len(timesteps) else Decimal(1)
            sigma = eta * ((1 - before) / (1 - now)).sqrt() * (1 - now / before).sqrt()
            # x_prev = √ᾱ_prev x̂₀ + √(1-ᾱ_prev-σ²) ε̂ + σ z, with ε̂ = (x_t - √ᾱ_t x̂₀) / √(1-ᾱ_t)
            direction = max(1 - before - sigma**2, Decimal(0)).sqrt()
            m = direction / (1 - now).sqrt()
            v = before.sqrt() - direction * now.sqrt() / (1 - now).sqrt()
            rows.append((float(m), float(v), float(sigma)))
    return torch.tensor(rows, dtype=torch.float64).unbind(1)


@pytest.mark.parametrize("eta", [0.0, 0.3, 1.0])
@pytest.mark.parametrize(
    ("schedule", "timesteps"),
    [
        (LINEAR, [999, 0]),
        (LINEAR, [998, 997, 996, 500, 20, 3, 1]),
        (LINEAR, [0]),
        (LONG_COSINE, [3999, 1]),
        (COSINE, list(range(199, -1, -1))),
        (SIGNAL_LEFT, [250, 30]),
    ],
    ids=str,
)
def test_ddim_is_the_textbooks_formula(schedule, timesteps, eta):
    table = ddim(schedule, timesteps, eta)
    assert table.timesteps == tuple(timesteps)
    expected = textbook_ddim(schedule, timesteps, eta)
    for ours, theirs in zip(coefficients(table), expected, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-12)


@pytest.mark.parametrize("schedule", SCHEDULES, ids=repr)
def test_ancestral_over_every_timestep_is_the_posterior(schedule):
    table = ancestral(schedule, range(schedule.timesteps - 1, -1, -1))
    m, v, s = (values.flip(0) for values in coefficients(table))
    torch.testing.assert_close(m, schedule.posterior_mean_coef_x_t, rtol=0, atol=1e-12)
    torch.testing.assert_close(v, schedule.posterior_mean_coef_x_start, rtol=0, atol=1e-12)
    torch.testing.assert_close(s**2, schedule.posterior_variance, rtol=0, atol=1e-12)


@given(visits())
def test_ancestral_beta_adds_sqrt_beta_except_at_the_end(visit):
    schedule, timesteps = visit
    table = ancestral(schedule, timesteps, variance="beta")
    assert torch.equal(table.M, ancestral(schedule, timesteps).M)
    assert torch.equal(table.v, ancestral(schedule, timesteps).v)
    signal = schedule.alphas_cumprod[timesteps]
    expected = (1 - signal[:-1] / signal[1:]).sqrt()
    torch.testing.assert_close(table.s[:-1, 0], expected, rtol=0, atol=1e-12)
    assert table.s[-1] == 0


@given(visits(), st.sampled_from(["ancestral", "beta", 0.0, 0.5, 1.0]))
@example((LINEAR, [999]), "beta")
@example((LINEAR, [500]), 1.0)
@example((LINEAR, [7, 3]), "beta")
def test_the_last_row_ends_at_the_clean_image_without_noise(visit, rule):
    schedule, timesteps = visit
    if rule == "ancestral":
        table = ancestral(schedule, timesteps)
    elif rule == "beta":
        table = ancestral(schedule, timesteps, variance="beta")
    else:
        table = ddim(schedule, timesteps, eta=rule)
    assert table.M[-1] == 0
    assert table.v[-1].item() == pytest.approx(1, abs=1e-15)
    assert table.s[-1] == 0
    assert len(table) == len(timesteps)


@given(visits(), st.floats(0, 1))
def test_every_row_carries_the_marginals_from_one_timestep_to_the_next(visit, eta):
    """From the true x_0, a row takes q(x_t | x_0) to q(x_s | x_0), whatever η."""
    schedule, timesteps = visit
    m, v, s = coefficients(ddim(schedule, timesteps, eta))
    signal = schedule.alphas_cumprod[timesteps]
    after = torch.cat([signal[1:], signal.new_ones(1)])
    torch.testing.assert_close(m * signal.sqrt() + v, after.sqrt(), rtol=0, atol=1e-12)
    torch.testing.assert_close(m**2 * (1 - signal) + s**2, 1 - after, rtol=0, atol=1e-12)


@given(st.sampled_from(RULES), st.sampled_from(SCHEDULES), st.data())
def test_every_named_sampler_ends_at_the_clean_image(rule, schedule, data):
    name, options = rule
    least = options.get("order", 1)
    assume(schedule.timesteps >= least)
    steps = data.draw(st.none() | st.integers(least, schedule.timesteps))
    spacing = data.draw(st.sampled_from(sorted(SPACINGS)))
    table = build_table(schedule, name, steps, timesteps=spacing, **options)
    visited = min(SAMPLERS[name].default_steps or schedule.timesteps, schedule.timesteps)
    visited = visited if steps is None else steps
    assert len(table) == (2 * visited - 1 if name == "heun" else visited)
    asked = sorted(set(table.timesteps), reverse=True)
    assert asked == spaced_timesteps(schedule, visited, spacing)
    assert (table.M[-1, 0] == 0).all()
    assert table.v[-1, 0].item() == pytest.approx(1, abs=1e-15)
    assert (table.s[-1] == 0).all()


def test_the_named_samplers_are_their_rules():
    every = range(999, -1, -1)
    assert_same_table(build_table(LINEAR, "ancestral"), ancestral(LINEAR, every), 0)
    assert_same_table(build_table(LINEAR, "ancestral-beta"), ancestral(LINEAR, every, "beta"), 0)
    assert_same_table(build_table(LINEAR), ddim(LINEAR, range(999, -1, -20)), 0)
    listed = build_table(LINEAR, "ddim", timesteps=[900, 3], eta=0.3)
    assert_same_table(listed, ddim(LINEAR, [900, 3], 0.3), 0)
    third = build_table(LINEAR, "unipc", timesteps=[900, 40, 3], order=3)
    assert torch.equal(third.M, unipc(LINEAR, [900, 40, 3], 3).M)


@given(st.sampled_from(sorted(SAMPLERS)), st.integers(1, 150))
@example("heun", 1)
@example("heun", 2)
@example("heun", 3)
def test_evaluations_are_as_many_steps_as_they_are_enough_for(name, evaluations):
    rows = len(build_table(COSINE, name, evaluations=evaluations))
    assert rows <= evaluations
    steps = SAMPLERS[name].steps(evaluations)
    assert rows == len(build_table(COSINE, name, steps))
    assert len(build_table(COSINE, name, steps + 1)) > evaluations


def test_a_learned_variance_lies_between_the_two_fixed_ones():
    """Its fraction 0 is β̃ and 1 is β (Nichol & Dhariwal 2021, Eq. 15)."""
    for schedule, timesteps in ((LINEAR, range(999, -1, -1)), (COSINE, [199, 80, 79, 3])):
        learned = ancestral(schedule, timesteps, "learned")
        low, high = (ancestral(schedule, timesteps, kind) for kind in ("posterior", "beta"))
        assert torch.equal(learned.M, low.M)
        assert torch.equal(learned.v, low.v)
        assert torch.equal(learned.s, low.s)
        made = learned.s[:, 0] * learned.variance_range.exp()
        torch.testing.assert_close(made, high.s[:, 0], rtol=1e-12, atol=0)


@given(visits())
def test_a_table_over_a_respaced_schedule_is_the_table_over_those_timesteps(visit):
    schedule, timesteps = visit
    respaced = schedule.respaced(timesteps[::-1])
    every = range(len(timesteps) - 1, -1, -1)
    for rule in (ancestral, ddim):
        theirs, ours = rule(respaced, every), rule(schedule, timesteps)
        for a, b in zip(coefficients(theirs), coefficients(ours), strict=True):
            torch.testing.assert_close(a, b, rtol=0, atol=1e-15)


@pytest.mark.parametrize(
    "timesteps",
    [(9, 4, 0), range(9, -1, -4), torch.tensor([9, 4, 0]), np.array([9, 4, 0]), iter([9, 4, 0])],
    ids=lambda t: type(t).__name__,
)
def test_timesteps_may_be_any_kind_of_list(timesteps):
    table = ddim(LINEAR, timesteps)
    assert len(table) == len(table.M) == 3
    assert all(type(t) is int for t in table.timesteps)


def test_making_a_table_leaves_the_schedule_alone():
    schedule = NoiseSchedule.linear()
    build_table(schedule, "ancestral-beta")
    table = ancestral(schedule, range(999, -1, -1))
    table.M.zero_()
    assert torch.equal(schedule.betas, LINEAR.betas)
    assert torch.equal(schedule.posterior_mean_coef_x_t, LINEAR.posterior_mean_coef_x_t)


# Exact answers -----------------------------------------------------------------------------------


def propagated(table, schedule, mean, variance, scales=None):
    """Mean and variance of what a table makes of N(0, 1), with the perfect denoiser of a Gaussian.

    There x̂₀ = gain x_t + offset, so that each row is a linear map of the registers.

    Args:
        scales: (K, D), what the noise of each row and dimension is scaled by.
    """
    signal = (1 - schedule.betas).cumprod(0)
    registers, dimensions = table.M.shape[1], len(mean)
    first = torch.zeros(registers).double()
    first[0] = 1
    means = torch.zeros(dimensions, registers).double()
    covariances = torch.outer(first, first).repeat(dimensions, 1, 1)
    for i, t in enumerate(table.timesteps):
        gain = signal[t].sqrt() * variance / (signal[t] * variance + 1 - signal[t])
        offset = mean - gain * signal[t].sqrt() * mean
        row = table.M[i] + gain[:, None, None] * torch.outer(table.v[i], first)
        noise = torch.outer(table.s[i], table.s[i]).expand(dimensions, -1, -1)
        if scales is not None:
            noise = noise * scales[i][:, None, None] ** 2
        means = (row @ means[..., None])[..., 0] + offset[:, None] * table.v[i]
        covariances = row @ covariances @ row.mT + noise
    return means[:, 0], covariances[:, 0, 0]


@rules(learned=False)
def test_samples_have_exactly_the_mean_and_variance_that_the_table_predicts(
    gaussian, target, name, options
):
    table = build_table(COSINE, name, 20, **options)
    mean, variance = propagated(table, COSINE, *target)
    n = 20_000
    x = sample(gaussian(COSINE), n, table=table, seed=1).double()
    assert ((x.mean(0) - mean).abs() < 4 * (variance / n).sqrt()).all()
    assert ((x.var(0) / variance - 1).abs() < 4 * math.sqrt(2 / n)).all()


@pytest.mark.parametrize("steps", [50, 1000])
@pytest.mark.parametrize("name", ["ancestral", "ancestral-beta"])
def test_ancestral_sampling_over_every_timestep_has_the_variance_of_its_recursion(
    gaussian, target, name, steps
):
    schedule = NoiseSchedule.linear(steps)
    table = build_table(schedule, name)
    mean, variance = propagated(table, schedule, *target)
    # Examples of 100 independent copies: noise is drawn by the example.
    copies = [values.repeat(100) for values in target]
    denoiser = gaussian(schedule, mean=copies[0], variance=copies[1])
    x = sample(denoiser, 80, table=table, seed=2).double().reshape(-1, 3)
    n = len(x)
    assert n == 8000
    assert len(table) == steps
    assert ((x.mean(0) - mean).abs() < 4 * (variance / n).sqrt()).all()
    assert ((x.var(0) / variance - 1).abs() < 4 * math.sqrt(2 / n)).all()
    # The data's own variance, the closer the more steps.
    far = (variance / target[1] - 1).abs().max()
    assert far < {50: 0.6, 1000: 0.05}[steps]


def test_with_the_best_learned_variance_each_step_has_the_right_one(target):
    """For a Gaussian the reverse step is known: by Bayes' rule its precision is that of x_{t-1}
    and α_t/β_t together, and then samples have the data's variance in however few steps.
    """
    mean, variance = target
    for schedule in (NoiseSchedule.cosine(50), NoiseSchedule.linear(25)):
        data = GaussianMixture(mean[None], variance.diag()[None], [1.0])
        denoiser = data.denoiser(schedule, learned_variance=True)
        table = build_table(schedule, LEARNED)
        scales = torch.ones(len(table), 3).double()
        for i, t in enumerate(table.timesteps[:-1]):
            fraction = denoiser(torch.zeros(1, 3).double(), t).variance_fraction[0]
            scales[i] = torch.exp(table.variance_range[i] * fraction)
            before = schedule.alphas_cumprod[t - 1]
            precision = 1 / (before * variance + 1 - before)
            precision = precision + schedule.alphas[t] / schedule.betas[t]
            torch.testing.assert_close(
                (table.s[i] * scales[i]) ** 2, 1 / precision, rtol=1e-9, atol=0
            )
        made_mean, made = propagated(table, schedule, mean, variance, scales)
        # The last row, without noise, leaves what is known of x_0 at t = 0.
        left = schedule.alphas_cumprod[0]
        start = schedule.alphas_cumprod[-1].item()  # the start is N(0, 1), not quite q(x_T)
        expected = left * variance**2 / (left * variance + 1 - left)
        torch.testing.assert_close(made, expected, rtol=20 * start + 1e-9, atol=0)
        n = 4000
        x = sample(denoiser, n, table=table, seed=5).double()
        assert ((x.mean(0) - made_mean).abs() < 4 * (made / n).sqrt()).all()
        assert ((x.var(0) / made - 1).abs() < 4 * math.sqrt(2 / n)).all()


def test_the_ancestral_variances_close_in_on_the_datas_from_below_and_above(target):
    """β̃ is right for a point and β for white noise; any data is between (Ho et al., Sec. 3.2)."""
    mean, variance = target
    errors = {"posterior": [], "beta": []}
    for steps in (250, 500, 1000, 2000):
        schedule = NoiseSchedule.linear(steps)
        for kind, collected in errors.items():
            table = ancestral(schedule, range(steps - 1, -1, -1), kind)
            made_mean, made_variance = propagated(table, schedule, mean, variance)
            torch.testing.assert_close(made_mean, mean, rtol=0, atol=1e-4)
            collected.append((made_variance / variance - 1)[:2])  # those smaller than 1
    lower, upper = torch.stack(errors["posterior"]), torch.stack(errors["beta"])
    assert (lower < 0).all()
    assert (upper > 0).all()
    assert (lower[-1].abs() < 0.02).all()
    assert (upper[-1].abs() < 0.01).all()
    for error in (lower, upper):
        ratios = error[:-1] / error[1:]
        assert ((ratios > 1.7) & (ratios < 2.2)).all()


def test_a_white_target_is_left_as_it_is_by_ancestral_beta():
    """For N(0, 1), variance β is exact: every row keeps mean 0 and variance 1 but for the last."""
    table = ancestral(LINEAR, range(999, -1, -1), "beta")
    mean, variance = propagated(table, LINEAR, *torch.tensor([[0.0], [1.0]]).double())
    assert mean.item() == 0
    assert variance.item() == pytest.approx(1 - LINEAR.betas[0].item(), rel=1e-9)


@pytest.mark.parametrize("kind", ["noise", "x_start", "velocity", "score"])
@pytest.mark.parametrize("timesteps", [[999, 700, 699, 100, 3], [640], list(range(999, -1, -9))])
def test_ddim_from_a_given_start_is_exact_linear_algebra(gaussian, target, kind, timesteps):
    mean, variance = target
    x_init = normal(4, 3)
    made = sample(gaussian(LINEAR, kind), table=ddim(LINEAR, timesteps), x_init=x_init)

    signal = [*(1 - LINEAR.betas).cumprod(0)[timesteps].tolist(), 1.0]
    x = x_init
    for now, after in itertools.pairwise(signal):
        # √ᾱ x̂₀ + √(1-ᾱ) ε̂ for the perfect x̂₀ and ε̂ is one affine map of x.
        spread = now * variance + 1 - now
        residual = x - math.sqrt(now) * mean
        x_start = mean + math.sqrt(now) * variance / spread * residual
        noise = math.sqrt(1 - now) / spread * residual
        x = math.sqrt(after) * x_start + math.sqrt(1 - after) * noise
    torch.testing.assert_close(made, x, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("make", [NoiseSchedule.linear, NoiseSchedule.cosine])
def test_ddim_converges_to_the_probability_flow_at_first_order(gaussian, target, make):
    """For a Gaussian the flow scales each coordinate by the ratio of marginal deviations."""
    mean, variance = target
    schedule = make(4096)
    signal = schedule.alphas_cumprod[-1]
    x_init = normal(1, 3)
    exact = mean + (variance / (signal * variance + 1 - signal)).sqrt() * (
        x_init - signal.sqrt() * mean
    )
    errors = [
        (sample(gaussian(schedule), steps=steps, x_init=x_init) - exact).abs().max().item()
        for steps in (32, 64, 128, 256)
    ]
    slopes = [math.log2(a / b) for a, b in itertools.pairwise(errors)]
    assert all(0.9 < slope < 1.1 for slope in slopes), slopes
    assert errors[-1] < 0.02


@pytest.mark.parametrize("first_weight", [0.7, 1.0, 0.0])
def test_any_table_of_several_registers_is_run_as_written(first_weight):
    """u ← M u + v x̂₀ + s z with the registers after the first starting at zero."""
    rows, registers = 4, 3
    weights = normal(rows, registers, registers)
    weights[:, :, 0] = first_weight
    table = SamplerTable(
        (9, 5, 4, 0),
        weights,
        normal(rows, registers, seed=1),
        normal(rows, registers, seed=2),
    )
    denoiser = told(lambda x, t, condition: torch.sin(x) + t.reshape(-1, 1))
    x_init = normal(5, 2)
    states = list(sample_steps(denoiser, table=table, x_init=x_init, seed=8, first_index=3))

    u = torch.stack([x_init, *[torch.zeros_like(x_init)] * (registers - 1)])
    for i, state in enumerate(states):
        x_start = torch.sin(u[0]) + table.timesteps[i]
        z = image_noise((2,), 3, 5, 8, "sample step", i).double()
        u = (
            torch.einsum("rq,qnd->rnd", table.M[i], u)
            + table.v[i, :, None, None] * x_start
            + table.s[i, :, None, None] * z
        )
        torch.testing.assert_close(state.x, u[0], rtol=1e-12, atol=1e-12)
        torch.testing.assert_close(state.x_start, x_start, rtol=1e-12, atol=1e-12)
        assert state.timestep == table.timesteps[i]
    assert torch.equal(x_init, normal(5, 2))


def test_a_register_may_take_one_term_at_any_weight_or_none():
    M = torch.zeros(3, 2, 2).double()
    M[:, 0, 0], M[0, 1, 0], M[1, 1, 1] = 0.5, -3.0, 1.0
    table = SamplerTable((9, 5, 0), M, torch.zeros(3, 2).double(), torch.zeros(3, 2).double())
    M[2, 0] = torch.tensor([0.0, 2.0])  # the last row looks at the other register alone
    x_init = normal(4, 2)
    made = [state.x for state in sample_steps(told(lambda x, t, c: x), table=table, x_init=x_init)]
    for x, factor in zip(made, (0.5, 0.25, -6.0), strict=True):
        assert torch.equal(x, factor * x_init)


@rules()
def test_a_named_samplers_table_is_run_as_written(name, options):
    """The loop shares registers that are only handed on; in the open, each has its own memory."""
    denoiser = told(lambda x, t, c: torch.sin(2 * x), COSINE, learned=name == LEARNED)
    table, x_init = build_table(COSINE, name, 6, **options), normal(5, 2)
    states = list(sample_steps(denoiser, table=table, x_init=x_init, seed=8))
    u = torch.stack([x_init, *[torch.zeros_like(x_init)] * (table.M.shape[1] - 1)])
    for i, state in enumerate(states):
        x, x_start = u[0], torch.sin(2 * u[0])
        z = image_noise((2,), 0, 5, 8, "sample step", i).double()
        if name == LEARNED:
            z *= torch.exp(table.variance_range[i] * (torch.cos(x) + 1) / 2)
        u = (
            torch.einsum("rq,qnd->rnd", table.M[i], u)
            + table.v[i, :, None, None] * x_start
            + table.s[i, :, None, None] * z
        )
        torch.testing.assert_close(state.x, u[0], rtol=1e-9, atol=1e-9)


def test_ancestral_sampling_is_algorithm_2():
    """Ho et al. 2020, Algorithm 2, line by line, from the same noise."""
    schedule = NoiseSchedule.linear(40)

    def answer(x, t, condition):
        return torch.tanh(x) * (1 + t.reshape(-1, 1) / 40)

    network = Told(answer)
    x = initial_noise(3, (4,), seed=5).double()
    made = sample(Denoiser(network, schedule), sampler="ancestral", seed=5, x_init=x)
    for step, t in enumerate(range(39, -1, -1)):
        beta, signal = schedule.betas[t], (1 - schedule.betas[: t + 1]).prod()
        before = (1 - schedule.betas[:t]).prod()
        noise = answer(x, torch.full((3,), t), None)
        x = (x - beta / (1 - signal).sqrt() * noise) / (1 - beta).sqrt()
        if t > 0:
            z = image_noise((4,), 0, 3, 5, "sample step", step).double()
            x = x + (beta * (1 - before) / (1 - signal)).sqrt() * z
    torch.testing.assert_close(made, x, rtol=1e-9, atol=1e-9)


# A seed names its images -------------------------------------------------------------------------


@rules()
@given(first=st.integers(0, 40), count=st.integers(1, 30), batch_size=st.none() | st.integers(1, 9))
@example(first=0, count=1, batch_size=None)
@example(first=15, count=2, batch_size=1)
def test_image_i_of_a_seed_is_the_same_however_it_is_made(name, options, first, count, batch_size):
    # An elementwise network, so that the batch it is in can change no rounding.
    learned = name == LEARNED
    denoiser = told(lambda x, t, c: torch.tanh(x * 2), COSINE, shape=(3,), learned=learned)
    arguments = {"sampler": name, "steps": 4, "seed": 7, **options}
    everything = sample(denoiser, 70, **arguments)
    part = sample(denoiser, count, batch_size=batch_size, first_index=first, **arguments)
    assert torch.equal(part, everything[first : first + count])


def test_another_seed_makes_other_images():
    denoiser = told(lambda x, t, condition: x, COSINE, shape=(3,))
    made = [sample(denoiser, 2, "ancestral", 5, seed=seed) for seed in (0, 1, 2**32)]
    assert not (made[0] == made[1]).any()
    assert not (made[0] == made[2]).any()


def test_the_noise_on_the_way_differs_from_step_to_step_and_from_the_start():
    zero = told(lambda x, t, condition: 0 * x, COSINE, shape=(50,))
    rows = 3
    table = SamplerTable(
        (2, 1, 0),
        torch.zeros(rows, 1, 1).double(),
        torch.zeros(rows, 1).double(),
        torch.ones(rows, 1).double(),
    )
    noises = [state.x for state in sample_steps(zero, 2, table=table)]
    noises.append(initial_noise(2, (50,), 0))
    for i, a in enumerate(noises):
        for b in noises[i + 1 :]:
            assert not (a == b).any()


def test_images_of_a_unet_depend_on_their_batch_by_rounding_only():
    with torch_seeded(0, "test"):
        network = UNet(UNetConfig(channels=8, multipliers=(1, 2), blocks=1), 1, (8, 8))
        for parameter in network.parameters():
            nn.init.normal_(parameter, std=0.1)
    denoiser = Denoiser(network, LINEAR, shape=(1, 8, 8))
    everything = sample(denoiser, 6, "ancestral", 4, seed=3)
    part = sample(denoiser, 3, "ancestral", 4, seed=3, first_index=2, batch_size=2)
    torch.testing.assert_close(part, everything[2:5], rtol=0, atol=1e-5)
    assert everything.abs().max() <= 1


def test_each_example_keeps_its_condition_in_any_batch():
    denoiser = told(lambda x, t, condition: condition[:, None].expand_as(x), COSINE, shape=(2,))
    condition = torch.arange(7.0)
    for batch_size in (None, 1, 3, 7, 100):
        made = sample(denoiser, 7, steps=2, condition=condition, batch_size=batch_size)
        assert torch.equal(made, condition[:, None].expand(7, 2))


@pytest.mark.parametrize("batch_size", [1, 2, 5, 9])
def test_the_network_is_given_at_most_batch_size_examples(batch_size):
    denoiser = told(lambda x, t, condition: x, COSINE, shape=(2,))
    sample(denoiser, 5, steps=1, batch_size=batch_size)
    given_at_once = [len(x) for x, *_ in denoiser.network.seen]
    assert sum(given_at_once) == 5
    assert max(given_at_once) == min(batch_size, 5)


# What comes back ---------------------------------------------------------------------------------


@rules()
def test_the_sample_is_the_last_state(name, options):
    denoiser = told(lambda x, t, c: torch.sin(x), COSINE, shape=(3,), learned=name == LEARNED)
    states = list(sample_steps(denoiser, 3, name, 5, seed=2, **options))
    visited = spaced_timesteps(COSINE, 5, SAMPLERS[name].spacing)
    asked = [t for t in visited for _ in range(2)][1:] if name == "heun" else visited
    assert [state.timestep for state in states] == asked
    assert [int(t[0]) for _, t, *_ in denoiser.network.seen] == asked
    assert all(state.x.shape == state.x_start.shape == (3, 3) for state in states)
    assert torch.equal(states[-1].x, states[-1].x_start)
    assert torch.equal(states[-1].x, sample(denoiser, 3, name, 5, seed=2, **options))


def test_the_network_is_asked_about_the_state_it_left(gaussian):
    denoiser = told(lambda x, t, condition: 0.5 * x, COSINE, shape=(2,))
    states = list(sample_steps(denoiser, 3, steps=4))
    asked = [x.float() for x, *_ in denoiser.network.seen]
    assert torch.equal(asked[0], initial_noise(3, (2,), 0))
    for state, x in zip(states, asked[1:], strict=False):
        assert torch.equal(state.x, x)


@rules()
@pytest.mark.parametrize("answer", [lambda x, t, c: 0.5 * x, lambda x, t, c: x])
@pytest.mark.parametrize("clip", [None, "range", "dynamic"])
def test_states_stay_as_they_were_yielded(name, options, answer, clip):
    """Registers that are only handed on are not copied, so nothing may change them in place."""
    denoiser = told(answer, COSINE, shape=(2,), learned=name == LEARNED)
    start = normal(3, 2)
    kept, copies = [], []
    for state in sample_steps(denoiser, 3, name, 6, x_init=start, clip=clip, **options):
        kept.append(state)
        copies.append((state.x.clone(), state.x_start.clone()))
    for state, (x, x_start) in zip(kept, copies, strict=True):
        assert torch.equal(state.x, x)
        assert torch.equal(state.x_start, x_start)
    assert torch.equal(start, normal(3, 2))


@rules(learned=False)
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
def test_the_dtype_is_the_starts(gaussian, dtype, name, options):
    start = normal(2, 3).to(dtype)
    for state in sample_steps(gaussian(COSINE), None, name, 3, x_init=start, **options):
        assert state.x.dtype == state.x_start.dtype == dtype
    assert torch.equal(start, normal(2, 3).to(dtype))


def test_pure_noise_is_float32_and_named_by_the_seed():
    assert initial_noise(2, (3,), 0).dtype == torch.float32
    assert torch.equal(initial_noise(5, (3,), 4, 30), initial_noise(40, (3,), 4)[30:35])


def test_n_is_64_or_as_many_as_there_are_to_start_from(gaussian):
    assert sample(gaussian(COSINE), steps=1).shape == (64, 3)
    assert sample(gaussian(COSINE), steps=1, x_init=normal(5, 3)).shape == (5, 3)


def test_the_shape_is_the_starts_the_callers_or_the_denoisers():
    denoiser = told(lambda x, t, condition: x, COSINE)
    assert sample(denoiser, 2, steps=1, shape=(3, 5, 7)).shape == (2, 3, 5, 7)
    denoiser.shape = (4,)
    assert sample(denoiser, 2, steps=1).shape == (2, 4)
    assert sample(denoiser, 2, steps=1, shape=(5,)).shape == (2, 5)
    assert sample(denoiser, steps=1, x_init=normal(2, 6)).shape == (2, 6)


# Clipping ----------------------------------------------------------------------------------------


def clipped(values, clip):
    """What a one-row table makes of x̂₀ = values (n, …)."""
    denoiser = told(lambda x, t, condition: values, COSINE)
    return sample(denoiser, steps=1, x_init=torch.zeros_like(values), clip=clip)


def test_clipping_to_the_range():
    values = torch.tensor([[-3.0, -1.0, 0.5, 1.5]]).double()
    assert clipped(values, "range").tolist() == [[-1, -1, 0.5, 1]]
    assert torch.equal(clipped(values, None), values)


def test_auto_clips_images_and_nothing_else():
    values = torch.full((1, 3, 2, 2), 2.0).double()
    assert (clipped(values, "auto") == 1).all()
    assert (clipped(values.flatten(1), "auto") == 2).all()


def test_dynamic_clipping_divides_by_the_quantile_of_each_example():
    """99.5 % of 200 values are 199: the largest is clipped to the one before it."""
    large = torch.full((200,), 0.5).double()
    large[3], large[7], large[11] = -8.0, 4.0, 2.0
    small = torch.full((200,), 0.5).double()
    small[5] = 7.0
    made = clipped(torch.stack([large, small]).reshape(2, 2, 10, 10), "dynamic").reshape(2, 200)
    expected = torch.full((2, 200), 0.125).double()
    expected[0, 3], expected[0, 7], expected[0, 11] = -1.0, 1.0, 0.5
    expected[1] = 0.5  # a quantile below 1 stretches nothing: the range is clipped to
    expected[1, 5] = 1.0
    assert torch.equal(made, expected)


def test_what_is_clipped_is_what_the_row_uses():
    denoiser = told(lambda x, t, condition: 5 + 0 * x, COSINE)
    table = ddim(COSINE, [150, 50])
    x_init = normal(2, 3)
    first, last = sample_steps(denoiser, table=table, x_init=x_init, clip="range")
    assert (first.x_start == 1).all()
    torch.testing.assert_close(first.x, table.M[0, 0, 0] * x_init + table.v[0], rtol=1e-14, atol=0)
    assert (last.x == 1).all()


# Manners -----------------------------------------------------------------------------------------


def test_dropout_is_off_while_sampling_and_each_module_is_put_back():
    denoiser = told(lambda x, t, condition: torch.ones_like(x), COSINE, shape=(50,), dropout=0.5)
    network = denoiser.network
    for _ in sample_steps(denoiser, 2, steps=3):
        # Between the rows the network is its owner's.
        assert (network.training, network.dropout.training, network.frozen.training) == (1, 1, 0)
    assert [modes for *_, modes, _ in network.seen] == [(False, False, False)] * 3
    assert (sample(denoiser, 2, steps=3) == 1).all()

    network.eval()
    network.dropout.train()
    assert (sample(denoiser, 2, steps=3) == 1).all()
    assert (network.training, network.dropout.training) == (False, True)


def test_the_network_is_put_back_after_an_error():
    def fail(x, t, condition):
        raise RuntimeError("stop")

    denoiser = told(fail, COSINE, shape=(2,))
    with pytest.raises(RuntimeError, match="stop"):
        sample(denoiser, 2, steps=3)
    assert denoiser.network.training
    assert not denoiser.network.frozen.training


def test_sampling_records_no_gradient_and_leaves_the_mode_alone():
    denoiser = told(lambda x, t, condition: x, COSINE)
    start = normal(2, 3).requires_grad_()
    for state in sample_steps(denoiser, steps=3, x_init=start):
        assert not state.x.requires_grad
        assert not state.x_start.requires_grad
        assert torch.is_grad_enabled()
    assert not any(grad for *_, grad in denoiser.network.seen)


def test_sampling_uses_no_global_random_state(gaussian):
    before = torch.get_rng_state(), np.random.get_state()[1].copy(), random.getstate()
    first = sample(gaussian(COSINE), 3, "ancestral", 5)
    torch.manual_seed(123)
    torch.set_rng_state(before[0])
    np.random.set_state(("MT19937", before[1], *np.random.get_state()[2:]))
    assert torch.equal(sample(gaussian(COSINE), 3, "ancestral", 5), first)
    assert torch.equal(torch.get_rng_state(), before[0])
    assert np.array_equal(np.random.get_state()[1], before[1])
    assert random.getstate() == before[2]


def test_a_table_remembers_nothing_between_runs(gaussian):
    table, start = ancestral(COSINE, [150, 70, 3]), normal(2, 3)
    first = sample(gaussian(COSINE), table=table, x_init=start)
    assert torch.equal(sample(gaussian(COSINE), table=table, x_init=start), first)
    generators = [sample_steps(gaussian(COSINE), table=table, x_init=start) for _ in range(2)]
    for together in zip(*generators, strict=True):
        assert torch.equal(together[0].x, together[1].x)


# Mistakes ----------------------------------------------------------------------------------------


DENOISER = told(lambda x, t, condition: x, COSINE, shape=(2,))


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: sample(DENOISER, 2, steps=201), "between 1 and the schedule's 200 .* got 201"),
        (lambda: sample(DENOISER, 2, steps=0), "steps must .* got 0"),
        (lambda: sample(DENOISER, 2, steps=-5), "steps must .* got -5"),
        (lambda: sample(DENOISER, 2, steps=2.5), "steps must be a whole number .* got 2.5"),
        (lambda: sample(DENOISER, 0), "n must be .* got 0"),
        (lambda: sample(DENOISER, -1), "n must be .* got -1"),
        (lambda: sample(DENOISER, 2.0), "n must be .* got 2.0"),
        (lambda: sample(DENOISER, 2, batch_size=0), "batch_size must be .* got 0"),
        (lambda: sample(DENOISER, 2, "dimm"), "sampler 'dimm': did you mean 'ddim'. .*ancestral"),
        (lambda: sample(DENOISER, 2, "euler"), "sampler 'euler': .*choose from ddim, ancestral"),
        (lambda: sample(DENOISER, 2, clip="rnge"), "clip 'rnge': did you mean 'range'"),
        (lambda: sample(DENOISER, 2, clip=True), "unknown clip 'True'"),
        (lambda: ddim(COSINE, [3, 1], eta=1.1), "eta must lie between 0 and 1, got 1.1"),
        (lambda: ddim(COSINE, [3, 1], eta=-0.1), "eta must lie between 0 and 1, got -0.1"),
        (lambda: ddim(COSINE, [3, 1], eta=math.nan), "eta must .* got nan"),
        (lambda: ancestral(COSINE, [3, 1], "betas"), "variance 'betas': did you mean 'beta'"),
        (lambda: ddim(COSINE, [3, 3]), "strictly fall, but index 1 goes from 3 to 3"),
        (lambda: ddim(COSINE, [1, 3]), "strictly fall, but index 1 goes from 1 to 3"),
        (lambda: ancestral(COSINE, [200, 3]), "timestep 200 at index 0 is outside 0 … 199"),
        (lambda: ancestral(COSINE, [3, -1]), "timestep -1 at index 1 is outside 0 … 199"),
        (lambda: ddim(COSINE, []), "list of timesteps is empty"),
        (lambda: ddim(COSINE, [3.5, 1]), "whole numbers, but index 0 is 3.5"),
        (
            lambda: sample(DENOISER, 2, steps=3, table=ddim(COSINE, [3, 1])),
            "give table, or steps, .* and order: a table has its own",
        ),
        (
            lambda: sample(DENOISER, 2, timesteps="karras", table=ddim(COSINE, [3, 1])),
            "give table, or steps",
        ),
        (
            lambda: sample(DENOISER, 2, timesteps=[3, 2], table=ddim(COSINE, [3, 1])),
            "give table, or steps",
        ),
        (
            lambda: sample(DENOISER, 2, steps=3, evaluations=5),
            "steps or evaluations, not both .got 3 and 5.; a step of ddim takes 1",
        ),
        (lambda: sample(DENOISER, 2, evaluations=0), "evaluations must .* got 0"),
        (lambda: sample(DENOISER, 2, evaluations=201), "between 1 and .* 200 .* got 201"),
        (lambda: sample(DENOISER, 2, steps=2, timesteps=[9, 3]), "list of timesteps has its own"),
        (
            lambda: sample(DENOISER, 2, evaluations=2, timesteps=[9, 3]),
            "list of timesteps has its own",
        ),
        (lambda: sample(DENOISER, 2, timesteps=[]), "list of timesteps is empty"),
        (lambda: sample(DENOISER, 2, timesteps=50), "spacing or a falling list, got 50; .* steps"),
        (lambda: sample(DENOISER, 2, timesteps="trailling"), "did you mean 'trailing'"),
        (lambda: sample(DENOISER, 2, timesteps="fitted"), "fitted timesteps belong to a run"),
        (
            lambda: sample(DENOISER, 2, "unipc", eta=0.5),
            "unipc has no eta .got 0.5.: leave it out, it is an option of ddim",
        ),
        (
            lambda: sample(DENOISER, 2, order=2),
            r"ddim has no order .*option of dpm-solver\+\+ and unipc",
        ),
        (lambda: sample(DENOISER, 2, "ancestral", eta=1), "ancestral has no eta"),
        (lambda: sample(DENOISER, 2, "heun", order=2), "heun has no order"),
        (lambda: sample(DENOISER, 2, "unipc", order=4), "order must be 1, 2 or 3, got 4"),
        (lambda: sample(DENOISER, 2, "unipc", 2, order=3), "order 3 needs at least 3 steps, got 2"),
        (lambda: sample(DENOISER, 2, eta=1.5), "eta must lie between 0 and 1, got 1.5"),
        (
            lambda: sample(DENOISER, 2, LEARNED, 1),
            "learned variance, but the network learns none; choose ancestral or",
        ),
        (
            lambda: SamplerTable(
                (1,), *(torch.zeros(1, *[1] * n) for n in (2, 1, 1)), torch.zeros(2)
            ),
            r"variance_range .1,., got .2,.",
        ),
        (lambda: sample(told(lambda x, t, c: x)), r"shape .* not known: give shape=\(C, H, W\)"),
        (lambda: sample(DENOISER, 3, x_init=normal(2, 2)), "x_init holds 2 examples, but n is 3"),
        (
            lambda: sample(DENOISER, shape=(3,), x_init=normal(2, 2)),
            r"x_init holds \(2,\), but shape is \(3,\)",
        ),
        (
            lambda: sample(DENOISER, 3, condition=torch.zeros(2)),
            "condition holds 2 examples, but n is 3",
        ),
        (
            lambda: SamplerTable((), torch.zeros(0, 1, 1), torch.zeros(0, 1), torch.zeros(0, 1)),
            "K timesteps",
        ),
        (
            lambda: SamplerTable((1,), torch.zeros(1, 1), torch.zeros(1, 1), torch.zeros(1, 1)),
            r"M \(K, R, R\)",
        ),
    ],
)
def test_a_mistake_is_named_in_one_line(call, message):
    with pytest.raises(InkdropError, match=message) as error:
        call()
    assert "\n" not in str(error.value)


def test_a_mistake_is_named_when_asked_and_not_at_the_first_state():
    with pytest.raises(InkdropError, match="unknown sampler"):
        sample_steps(DENOISER, 2, "dimm")
    with pytest.raises(InkdropError, match="learned variance"):
        sample_steps(DENOISER, 2, LEARNED)


def test_heun_spaces_its_steps_in_log_snr_and_stays_sane_on_a_cosine_schedule():
    schedule = NoiseSchedule.cosine(1000)
    assert build_table(schedule, "heun", 18).timesteps[0] == 999
    assert list(dict.fromkeys(build_table(schedule, "heun", 18).timesteps)) == spaced_timesteps(
        schedule, 18, "log-snr"
    )
    exact = GaussianMixture([[0.5, -0.5], [-0.5, 0.5]], [torch.eye(2) * 0.05] * 2, [0.5, 0.5])
    noise = normal(200, 2)
    fine, coarse = (
        sample(exact.denoiser(schedule), sampler="heun", steps=steps, x_init=noise)
        for steps in (300, 18)
    )
    assert (fine - coarse).square().mean().sqrt() < 0.1


@pytest.mark.parametrize("sampler", INVERTIBLE)
def test_an_inversion_ends_at_the_least_noise_where_no_timesteps_are_named(sampler):
    schedule = NoiseSchedule.cosine(1000)
    exact = GaussianMixture([[0.5, -0.5], [-0.5, 0.5]], [torch.eye(2) * 0.05] * 2, [0.5, 0.5])
    x = exact.sample(20)
    visited = inverted_timesteps(schedule, sampler, 50, None)
    assert (visited[0], visited[-1]) == (999, 0)
    noise = invert(exact.denoiser(schedule), x, sampler, 50)
    back = sample(exact.denoiser(schedule), sampler=sampler, timesteps=visited, x_init=noise)
    # heun is unstable between the evenly spaced timesteps that suit the others.
    assert (back - x).square().mean().sqrt() < 0.1


@pytest.mark.parametrize(
    ("sampler", "order"), [("ddim", None), ("dpm-solver++", 2), ("unipc", 3), ("heun", None)]
)
def test_inverting_and_sampling_again_leads_back(sampler, order):
    schedule = NoiseSchedule.linear(1000)
    exact = GaussianMixture([[0.5, -0.5], [-0.5, 0.5]], [torch.eye(2) * 0.05] * 2, [0.5, 0.5])
    denoiser = exact.denoiser(schedule)
    x = exact.sample(100)
    timesteps = spaced_timesteps(schedule, 500, "linspace")
    noise = invert(denoiser, x, sampler, timesteps=timesteps, order=order)
    assert abs(noise.mean()) < 0.3
    assert 0.8 < noise.std() < 1.2
    back = sample(
        denoiser, sampler=sampler, timesteps=timesteps, order=order, x_init=noise, clip=None
    )
    assert (back - x).square().mean().sqrt() < 0.02
