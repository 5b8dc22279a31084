"""Deterministic solvers, compared as numbers with each other and with plain textbook loops."""

import itertools
import math
import warnings

import numpy as np
import pytest
import torch
from hypothesis import assume, example, given
from hypothesis import strategies as st
from torch import nn

from inkdrop.diffusion.denoiser import Denoiser
from inkdrop.diffusion.samplers import (
    INVERTIBLE,
    build_table,
    ddim,
    dpm_solver_pp,
    heun,
    inversion,
    sample,
    sample_steps,
    unipc,
)
from inkdrop.diffusion.schedule import NoiseSchedule, ScheduleWarning
from inkdrop.errors import InkdropError

LINEAR = NoiseSchedule.linear()
COSINE = NoiseSchedule.cosine(200)
LONG_COSINE = NoiseSchedule.cosine(4000)


def warned(make):
    """A schedule that warns of the signal it leaves, as it should."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ScheduleWarning)
        return make()


ONE_STEP = warned(lambda: NoiseSchedule.from_betas([0.9]))
SIGNAL_LEFT = warned(lambda: NoiseSchedule.linear(300, 1e-4, 0.02))
SCHEDULES = [LINEAR, COSINE, LONG_COSINE, SIGNAL_LEFT, ONE_STEP]

UNEVEN = [995, 990, 800, 620, 610, 430, 200, 120, 100, 12, 5]


@st.composite
def visits(draw, least=1):
    """A schedule and any falling list of its timesteps."""
    schedule = draw(st.sampled_from(SCHEDULES))
    assume(schedule.timesteps >= least)
    steps = draw(st.sets(st.integers(0, schedule.timesteps - 1), min_size=least, max_size=30))
    return schedule, sorted(steps, reverse=True)


def assert_same_table(actual, expected, tolerance=1e-12):
    assert actual.timesteps == expected.timesteps
    for name in ("M", "v", "s"):
        ours, theirs = getattr(actual, name), getattr(expected, name)
        assert ours.dtype == torch.float64
        torch.testing.assert_close(ours, theirs, rtol=0, atol=tolerance)


def bent(x, t):
    """An x̂₀ that is nonlinear in x and t."""
    return np.tanh(1.5 * x + 0.3) * (0.4 + t / 1500) + 0.3 * np.cos(2 * x + t / 300)


class Bent(nn.Module):
    def forward(self, x, t, condition):
        return torch.from_numpy(bent(x.numpy(), t.reshape(-1, 1).double().numpy()))


START = np.random.default_rng(0).standard_normal((6, 3))


def made(table):
    """What a table makes of START, state by state."""
    denoiser = Denoiser(Bent(), LINEAR, "x_start")
    return list(sample_steps(denoiser, table=table, x_init=torch.from_numpy(START)))


def levels(schedule, timesteps):
    """Plain lists of α, σ and λ = log(α/σ) at timesteps, from the betas."""
    log = np.cumsum(np.log1p(-schedule.betas.numpy()))[list(timesteps)]
    alpha, sigma = np.exp(log / 2), np.sqrt(-np.expm1(log))
    return alpha.tolist(), sigma.tolist(), np.log(alpha / sigma).tolist()


# Equal tables ------------------------------------------------------------------------------------


@given(visits())
@example((LONG_COSINE, [3999, 1]))
@example((ONE_STEP, [0]))
@example((LINEAR, [999, 998, 0]))
def test_every_first_order_solver_is_ddim(visit):
    schedule, timesteps = visit
    expected = ddim(schedule, timesteps)
    assert_same_table(dpm_solver_pp(schedule, timesteps, 1), expected)
    assert_same_table(unipc(schedule, timesteps, 1, corrector=False), expected)


@given(visits(least=3), st.sampled_from([2, 3]))
def test_unipc_without_its_corrector_is_dpm_solver_pp(visit, order):
    schedule, timesteps = visit
    ours = unipc(schedule, timesteps, order, corrector=False)
    assert_same_table(ours, dpm_solver_pp(schedule, timesteps, order))


@given(visits(least=2), st.data())
def test_order_2_is_the_default(visit, data):
    schedule, timesteps = visit
    for rule in (dpm_solver_pp, unipc):
        assert_same_table(rule(schedule, timesteps), rule(schedule, timesteps, 2), 0)
        assert_same_table(rule(schedule, timesteps[:1]), rule(schedule, timesteps[:1], 1), 0)


def solvers(schedule, timesteps):
    for order in range(1, min(3, len(timesteps)) + 1):
        yield dpm_solver_pp(schedule, timesteps, order)
        yield unipc(schedule, timesteps, order)
    yield heun(schedule, timesteps)
    yield ddim(schedule, timesteps)


@given(visits())
@example((LONG_COSINE, [3999]))
@example((ONE_STEP, [0]))
@example((COSINE, [199, 198]))
@example((COSINE, [2, 1, 0]))
def test_every_table_ends_at_the_clean_image_of_its_last_row(visit):
    schedule, timesteps = visit
    for table in solvers(schedule, timesteps):
        assert (table.M[-1, 0] == 0).all()
        assert table.v[-1, 0].item() == pytest.approx(1, abs=1e-15)
        assert (table.s == 0).all()
        assert table.timesteps[-1] == timesteps[-1]
        assert table.M.isfinite().all()
        assert table.v.isfinite().all()


@given(visits())
@example((LINEAR, [999, 998, 997, 500, 2, 1, 0]))
@example((LONG_COSINE, [3999, 3000, 3]))
def test_where_the_estimate_never_changes_each_row_is_exact(visit):
    """x_t = α x_0 + σ ε, and x̂₀ = x_0 throughout: each row must end on α' x_0 + σ' ε.

    Uneven steps, a first ᾱ with another factor, a table of another schedule: all would miss.
    """
    schedule, timesteps = visit
    alpha, sigma, _ = levels(schedule, timesteps)
    at = {t: (alpha[i], sigma[i]) for i, t in enumerate(timesteps)}
    x_start, noise = 0.7, -1.3
    for table in solvers(schedule, timesteps):
        u = np.zeros(table.M.shape[1])
        u[0] = alpha[0] * x_start + sigma[0] * noise
        # What Heun's rows add and take away again may be large.
        tolerance = 1e-12 * max(1.0, table.v.abs().max().item())
        for i, t in enumerate(table.timesteps):
            a, s = at[t]
            assert u[0] == pytest.approx(a * x_start + s * noise, abs=tolerance)
            u = table.M[i].numpy() @ u + table.v[i].numpy() * x_start
        assert u[0] == pytest.approx(x_start, abs=1e-15)


@given(visits(least=2), st.sampled_from(INVERTIBLE))
@example((LONG_COSINE, [3999, 0]), "unipc")
def test_an_inversion_ends_at_its_first_timestep(visit, name):
    schedule, timesteps = visit
    table = inversion(schedule, timesteps, name)
    alpha, sigma, _ = levels(schedule, timesteps)
    u = np.zeros(table.M.shape[1])
    u[0] = alpha[-1] * 0.7 - sigma[-1] * 1.3
    for i in range(len(table)):
        u = table.M[i].numpy() @ u + table.v[i].numpy() * 0.7
    tolerance = 1e-11 * max(1.0, table.v.abs().max().item(), table.M.abs().max().item())
    assert u[0] == pytest.approx(alpha[0] * 0.7 - sigma[0] * 1.3, abs=tolerance)
    asked = list(table.timesteps)
    assert asked[0] == timesteps[-1]
    assert asked == sorted(asked)
    # Heun's method asks at both ends of a step, any other at the one that it starts from.
    assert (timesteps[0] in asked) == (name == "heun")
    assert len(table) == (len(timesteps) - 1) * (2 if name == "heun" else 1)
    assert (table.s == 0).all()


def test_inversion_by_ddim_is_song_et_als_formula():
    """x_s/√ᾱ_s - x_t/√ᾱ_t = (√(1/ᾱ_s - 1) - √(1/ᾱ_t - 1)) ε̂ (Song et al. 2021, Sec. 4.3)."""
    timesteps = [990, 500, 40, 3]
    alpha, sigma, _ = levels(LINEAR, timesteps[::-1])
    x = START
    for i in range(3):
        x_start = bent(x, timesteps[::-1][i])
        noise = (x - alpha[i] * x_start) / sigma[i]
        scaled = x / alpha[i] + (sigma[i + 1] / alpha[i + 1] - sigma[i] / alpha[i]) * noise
        x = alpha[i + 1] * scaled
    np.testing.assert_allclose(made(inversion(LINEAR, timesteps))[-1].x, x, rtol=1e-11, atol=1e-11)


# Textbook loops ----------------------------------------------------------------------------------


GRIDS = [UNEVEN, list(range(999, -1, -111)), [999, 0], [700, 20, 3], [640]]


@pytest.mark.parametrize("timesteps", GRIDS, ids=len)
def test_dpm_solver_pp_of_order_2_is_algorithm_2(timesteps):
    """Lu et al. 2022b, Algorithm 2 (2M); its first step, and the last one, are DDIM's."""
    alpha, sigma, log_snr = levels(LINEAR, timesteps)
    x, before = START, None
    states = made(dpm_solver_pp(LINEAR, timesteps, min(2, len(timesteps))))
    for i, state in enumerate(states):
        q = bent(x, timesteps[i])
        if i + 1 == len(timesteps):
            x = q
        else:
            h = log_snr[i + 1] - log_snr[i]
            d = q
            if before is not None:
                r = (log_snr[i] - log_snr[i - 1]) / h
                d = (1 + 1 / (2 * r)) * q - 1 / (2 * r) * before
            x = sigma[i + 1] / sigma[i] * x - alpha[i + 1] * (math.exp(-h) - 1) * d
        before = q
        np.testing.assert_allclose(state.x, x, rtol=1e-11, atol=1e-11)


def unipc_update(x, estimates, log_snr, alpha, sigma, order, ahead=None):
    """One UniP (`ahead` None) or UniC update, from the last of `log_snr` but one to the last.

    Zhao et al. 2023's data prediction with B(h) = e^(-h) - 1. `estimates` rise in time, the
    present one last.
    """
    now, end = len(log_snr) - 2, len(log_snr) - 1
    h = log_snr[end] - log_snr[now]
    m = estimates[-1]
    rates, differences = [], []
    for j in range(1, order):
        rates.append((log_snr[now - j] - log_snr[now]) / h)
        differences.append((estimates[-1 - j] - m) / rates[-1])
    if ahead is not None:
        rates.append(1.0)
        differences.append(ahead - m)
    big_b = math.exp(-h) - 1
    x = sigma[end] / sigma[now] * x - alpha[end] * big_b * m
    if not rates:
        return x
    # φ_1 = (e^(-h) - 1)/(-h), φ_(k+1) = (φ_k - 1/k!)/(-h); Σ_j a_j r_j^(k-1) B = (-h) k! φ_(k+1)
    phi, right = big_b / -h, []
    for k in range(1, len(rates) + 1):
        phi = (phi - 1 / math.factorial(k)) / -h
        right.append(-h * math.factorial(k) * phi / big_b)
    if len(rates) == 1:  # the paper's shortcut: a_1 = ½ whatever h
        a = [0.5]
    else:
        a = np.linalg.solve([[r**k for r in rates] for k in range(len(rates))], right)
    return x - alpha[end] * big_b * sum(w * d for w, d in zip(a, differences, strict=True))


@pytest.mark.parametrize(
    ("timesteps", "order"),
    [(grid, order) for grid in GRIDS for order in (1, 2, 3) if order <= len(grid)],
)
@pytest.mark.parametrize("corrector", [True, False])
def test_unipc_is_its_papers_algorithm(timesteps, order, corrector):
    """Predict, evaluate, correct with that same evaluation; then predict from what was corrected.

    The first steps take the order that there are estimates for, the last ones the order that
    falls to 1 into the image.
    """
    alpha, sigma, log_snr = levels(LINEAR, timesteps)
    states = made(unipc(LINEAR, timesteps, order, corrector))
    corrected = predicted = START
    estimates, last_order = [], None
    for i, state in enumerate(states):
        m = bent(predicted, timesteps[i])
        until = [values[: i + 1] for values in (log_snr, alpha, sigma)]
        if not corrector:
            corrected = predicted
        elif i:
            corrected = unipc_update(corrected, estimates, *until, last_order, ahead=m)
        estimates.append(m)
        if i + 1 == len(timesteps):
            predicted = m
        else:
            until = [values[: i + 2] for values in (log_snr, alpha, sigma)]
            last_order = min(order, i + 1, len(timesteps) - i)
            predicted = unipc_update(corrected, estimates, *until, last_order)
        np.testing.assert_allclose(state.x_start, m, rtol=1e-9, atol=1e-9)
        np.testing.assert_allclose(state.x, predicted, rtol=1e-9, atol=1e-9)


def test_unipcs_corrector_changes_the_image():
    with_, without = (made(unipc(LINEAR, UNEVEN, 2, c))[-1].x for c in (True, False))
    assert (with_ - without).abs().max() > 1e-3


@pytest.mark.parametrize("timesteps", GRIDS, ids=len)
def test_heun_is_edms_loop(timesteps):
    """Karras et al. 2022, Algorithm 1 with σ(t) = t and s(t) = 1: y = x/α against t = σ/α."""
    alpha, sigma, _ = levels(LINEAR, timesteps)
    levels_of_noise = [s / a for s, a in zip(sigma, alpha, strict=True)]
    y, asked, rows = START / alpha[0], [], []
    for i, (now, after) in enumerate(itertools.pairwise([*levels_of_noise, 0.0])):
        asked.append(timesteps[i])
        slope = (y - bent(alpha[i] * y, timesteps[i])) / now
        euler = y + (after - now) * slope
        if after:
            rows.append(alpha[i + 1] * euler)
            asked.append(timesteps[i + 1])
            ahead = (euler - bent(alpha[i + 1] * euler, timesteps[i + 1])) / after
            y = y + (after - now) * (slope + ahead) / 2
            rows.append(alpha[i + 1] * y)
        else:
            y = euler
            rows.append(y)
    table = heun(LINEAR, timesteps)
    assert table.timesteps == tuple(asked)
    assert len(table) == 2 * len(timesteps) - 1
    for state, expected in zip(made(table), rows, strict=True):
        np.testing.assert_allclose(state.x, expected, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize(
    ("order", "expected"), [(1, [1]), (2, [3 / 2, -1 / 2]), (3, [23 / 12, -16 / 12, 5 / 12])]
)
def test_the_smallest_steps_are_adams_and_bashforths(order, expected):
    """h = 10⁻⁶ in λ, where φ_k by differences would have lost most of their digits."""
    h = 1e-6
    log_snr = 1 - h * torch.arange(2000).double()
    schedule = warned(lambda: NoiseSchedule.from_alphas_cumprod(torch.sigmoid(2 * log_snr)))
    table = dpm_solver_pp(schedule, range(1999, -1, -1), order)
    alpha = schedule.sqrt_alphas_cumprod.flip(0)[1:]
    now, *past = (
        weights[order - 1 : -3] / (alpha[order - 1 : -2] * h)
        for weights in (table.v[:, 0], *table.M[:, 0, 1:].unbind(1))
    )
    for weights, value in zip([now, *past], expected, strict=True):
        assert (weights - value).abs().max() < 2 * h


# Mistakes ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: dpm_solver_pp(LINEAR, [3, 1], 4), "order must be 1, 2 or 3, got 4"),
        (lambda: dpm_solver_pp(LINEAR, [3, 1], 0), "order must be a whole number .* got 0"),
        (lambda: unipc(LINEAR, [3, 1], -1), "order must .* got -1"),
        (lambda: unipc(LINEAR, [3, 1], 1.5), "order must be a whole number .* got 1.5"),
        (lambda: unipc(LINEAR, [3, 1], 2.0), "order must be a whole number .* got 2.0"),
        (lambda: unipc(LINEAR, [3, 1], "2"), "order must be a whole number .* got '2'"),
        (lambda: unipc(LINEAR, [3, 1], 3), "order 3 needs at least 3 steps, got 2"),
        (lambda: dpm_solver_pp(LINEAR, [3], 2), "order 2 needs at least 2 steps, got 1"),
        (lambda: inversion(LINEAR, [3]), "an inversion needs at least 2 timesteps"),
        (lambda: inversion(LINEAR, [3, 1], "unipc", 2), "order 2 needs at least 2 steps, got 1"),
        (lambda: inversion(LINEAR, [3, 1], "ddim", 2), "ddim has no order .got 2."),
        (lambda: inversion(LINEAR, [3, 1], "heun", 2), "heun has no order .got 2."),
        (lambda: inversion(LINEAR, [3, 1], "ancestral"), "unknown deterministic sampler"),
        (lambda: inversion(LINEAR, [1, 3]), "strictly fall, but index 1 goes from 1 to 3"),
        (lambda: heun(LINEAR, [1, 3]), "strictly fall"),
        (lambda: heun(LINEAR, []), "list of timesteps is empty"),
    ],
)
def test_a_mistake_is_named_in_one_line(call, message):
    with pytest.raises(InkdropError, match=message) as error:
        call()
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("name", INVERTIBLE)
def test_two_timesteps_are_enough_to_invert(name):
    table = inversion(COSINE, [150, 10], name)
    x = sample(Denoiser(Bent(), COSINE, "x_start"), table=table, x_init=torch.from_numpy(START))
    assert x.isfinite().all()
    if name != "heun":
        assert_same_table(
            inversion(COSINE, [150, 10], "dpm-solver++"), inversion(COSINE, [150, 10])
        )


@pytest.mark.parametrize("order", [1, 2, 3])
def test_as_many_steps_as_the_order_are_enough(order):
    for rule in ("dpm-solver++", "unipc"):
        table = build_table(COSINE, rule, order, order=order)
        assert len(table) == order
