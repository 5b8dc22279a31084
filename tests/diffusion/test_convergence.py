"""Solvers have the order they claim, measured on the exact flow of a Gaussian mixture.

Between two noise levels, multistep methods are started from exact values: what is measured then is
the method, and not the low order of its first rows.
"""

import functools
import math
import warnings

import numpy as np
import pytest
import torch

from inkdrop.diffusion.oracle import GaussianMixture
from inkdrop.diffusion.samplers import (
    SamplerTable,
    build_table,
    ddim,
    dpm_solver_pp,
    heun,
    inversion,
    sample,
    unipc,
)
from inkdrop.diffusion.schedule import NoiseSchedule, ScheduleWarning

MEANS = [[0.9, 0.2], [-0.7, 0.6], [-0.1, -0.8]]
COVARIANCES = [[[0.2, 0.05], [0.05, 0.1]], [[0.1, 0.0], [0.0, 0.3]], [[0.25, -0.1], [-0.1, 0.2]]]
MIXTURE = GaussianMixture(MEANS, COVARIANCES, [0.5, 0.3, 0.2])

STEPS = (30, 42, 60, 84, 120)
BETWEEN = 1680  # timesteps between the two levels: halves of all steps are whole
BEYOND = 200  # timesteps on either side, where multistep methods begin and end
NOISY, CLEAN = -2.0, 2.0  # λ = log(α/σ) of the two levels
PER_TIMESTEP = (CLEAN - NOISY) / BETWEEN
END, START = BEYOND, BEYOND + BETWEEN
with warnings.catch_warnings():
    warnings.simplefilter("ignore", ScheduleWarning)
    #: Even in λ: whatever the step, its ends are timesteps and no rounding gets in the way.
    EVEN = NoiseSchedule.from_alphas_cumprod(
        torch.sigmoid(
            2 * (CLEAN + PER_TIMESTEP * (BEYOND - torch.arange(START + BEYOND + 1).double()))
        )
    )
EXACT = MIXTURE.denoiser(EVEN)


def estimate(x, t):
    return EXACT(x, t).x_start


def flow_estimate(x, log_snr):
    """x̂₀ = E[x_0 | x] (B, 2) at λ by Bayes' rule, on its own."""
    alpha, sigma = (1 / (1 + math.exp(-2 * s * log_snr)) for s in (1, -1))
    alpha, sigma = math.sqrt(alpha), math.sqrt(sigma)
    logs, posteriors = [], []
    for mean, covariance, weight in zip(MEANS, COVARIANCES, (0.5, 0.3, 0.2), strict=True):
        spread = alpha**2 * np.array(covariance) + sigma**2 * np.eye(2)
        apart = x - alpha * np.array(mean)
        pulled = apart @ np.linalg.inv(spread)
        logs.append(
            math.log(weight) - (apart * pulled).sum(1) / 2 - math.log(np.linalg.det(spread)) / 2
        )
        posteriors.append(np.array(mean) + alpha * pulled @ np.array(covariance))
    shares = np.exp(np.array(logs) - np.max(logs, axis=0))
    return np.einsum("kb,kbd->bd", shares / shares.sum(0), np.array(posteriors))


@functools.cache
def reference():
    """The exact path x_t (T, 8, 2) of 8 points, by Runge and Kutta's fourth-order rule.

    In y = x/σ and λ the flow is dy/dλ = e^λ x̂₀.
    """

    def slope(y, log_snr):
        sigma = math.sqrt(1 / (1 + math.exp(2 * log_snr)))
        return math.exp(log_snr) * flow_estimate(sigma * y, log_snr)

    sigma = EVEN.sqrt_one_minus_alphas_cumprod.numpy()
    y = np.random.default_rng(0).standard_normal((8, 2)) / sigma[-1]
    path, substeps = [y * sigma[-1]], 1
    h = PER_TIMESTEP / substeps
    for t in range(EVEN.timesteps - 1, 0, -1):
        now = EVEN.log_snr[t].item() / 2
        for i in range(substeps):
            at = now + i * h
            a = slope(y, at)
            b = slope(y + h / 2 * a, at + h / 2)
            c = slope(y + h / 2 * b, at + h / 2)
            d = slope(y + h * c, at + h)
            y = y + h / 6 * (a + 2 * b + 2 * c + d)
        path.append(y * sigma[t - 1])
    return torch.from_numpy(np.array(path[::-1]))


def grid(steps, uneven):
    """Falling timesteps from START to END in `steps` steps, and 3 steps further at both ends.

    Uneven steps are turn by turn half as long and one and a half times as long as even ones.
    """
    step = BETWEEN // steps
    t = START + 3 * step - np.arange(steps + 7) * step
    if uneven:
        t[np.arange(steps + 7) % 2 == 0] -= step // 2
    return t.tolist()


def run(table, registers, rows):
    """Rows of a table from given registers, as `sample` does but in the open."""
    u = torch.stack(registers)
    for i in rows:
        x_start = estimate(u[0], table.timesteps[i])
        u = torch.einsum("rq,qnd->rnd", table.M[i], u) + table.v[i][:, None, None] * x_start
    return u


def multistep_error(make, steps, uneven, order, corrector):
    """From START to END with exact starting values, in a table that goes on at both ends."""
    exact, timesteps = reference(), grid(steps, uneven)
    first, rows = 3, range(3, 3 + steps)
    table = make(timesteps)
    assert table.timesteps == tuple(timesteps)
    registers = [exact[timesteps[first]]]
    now = estimate(registers[0], timesteps[first])
    if corrector:
        # The register of the corrected image lacks what the coming x̂₀ adds: here the rule without
        # its corrector differs by the same.
        plain = unipc(EVEN, timesteps, order, corrector=False)
        gain = (table.v[first, 0] - plain.v[first, 0]) / table.M[first, 0, 1]
        registers.append(registers[0] - gain * now)
    for back in range(1, order):
        t = timesteps[first - back]
        registers.append(estimate(exact[t], t))
    end = timesteps[first + steps]
    return (run(table, registers, rows)[0] - exact[end]).abs().max().item()


def one_step_error(make, steps, uneven, rows_per_step):
    exact, timesteps = reference(), grid(steps, uneven)
    timesteps = timesteps[3:]
    table = make(timesteps)
    registers = [exact[timesteps[0]]] * table.M.shape[1]
    made = run(table, registers, range(rows_per_step * steps))[0]
    return (made - exact[timesteps[steps]]).abs().max().item()


def slope(steps, errors):
    """-d log error / d log steps, by least squares."""
    return -np.polyfit(np.log(steps), np.log(errors), 1)[0]


SOLVERS = {
    "ddim": (1, lambda t: ddim(EVEN, t)),
    "heun": (2, lambda t: heun(EVEN, t)),
    "dpm-solver++ 1": (1, lambda t: dpm_solver_pp(EVEN, t, 1)),
    "dpm-solver++ 2": (2, lambda t: dpm_solver_pp(EVEN, t, 2)),
    "dpm-solver++ 3": (3, lambda t: dpm_solver_pp(EVEN, t, 3)),
    "unipc 1": (2, lambda t: unipc(EVEN, t, 1)),
    "unipc 2": (3, lambda t: unipc(EVEN, t, 2)),
    "unipc 3": (4, lambda t: unipc(EVEN, t, 3)),
    "unipc 2 predictor": (2, lambda t: unipc(EVEN, t, 2, corrector=False)),
    "unipc 3 predictor": (3, lambda t: unipc(EVEN, t, 3, corrector=False)),
}


def error(name, make, steps, uneven):
    if name in ("ddim", "heun"):
        return one_step_error(make, steps, uneven, 2 if name == "heun" else 1)
    order = int(name.split()[1])
    return multistep_error(make, steps, uneven, order, name in ("unipc 1", "unipc 2", "unipc 3"))


def test_the_mixtures_denoiser_is_the_one_that_the_exact_flow_uses():
    exact = reference()
    for t in (0, START, END, EVEN.timesteps - 1):
        expected = flow_estimate(exact[t].numpy(), EVEN.log_snr[t].item() / 2)
        torch.testing.assert_close(
            estimate(exact[t], t), torch.from_numpy(expected), rtol=1e-9, atol=1e-9
        )


@pytest.mark.parametrize("name", SOLVERS)
def test_a_solver_has_the_order_it_claims(name):
    order, make = SOLVERS[name]
    errors = [error(name, make, steps, uneven=False) for steps in STEPS]
    assert slope(STEPS, errors) == pytest.approx(order, abs=0.15)


@pytest.mark.parametrize("name", SOLVERS)
def test_uneven_steps_cost_no_order(name):
    order, make = SOLVERS[name]
    errors = [error(name, make, steps, uneven=True) for steps in STEPS]
    assert slope(STEPS, errors) > order - 0.15


# Known slips -------------------------------------------------------------------------------------


def adams(timesteps, order, weights):
    """A multistep table from the weights of m_0, m_1, … in x' = σ'/σ x + α' Σ weights_j m_j."""
    rows = len(timesteps) - 1
    M = torch.zeros(rows, order, order, dtype=torch.float64)
    v = torch.zeros(rows, order, dtype=torch.float64)
    sigma, alpha = EVEN.sqrt_one_minus_alphas_cumprod, EVEN.sqrt_alphas_cumprod
    levels = (EVEN.log_snr / 2)[timesteps].tolist()
    for i in range(order - 1, rows):
        h = [levels[i - j + 1] - levels[i - j] for j in range(order)]  # the step, and those before
        now, *past = weights(*h)
        M[i, 0, 0] = sigma[timesteps[i + 1]] / sigma[timesteps[i]]
        M[i, 0, 1:] = alpha[timesteps[i + 1]] * torch.tensor(past, dtype=torch.float64)
        v[i, 0] = alpha[timesteps[i + 1]] * now
        v[i, 1] = 1
        for register in range(2, order):
            M[i, register, register - 1] = 1
    return SamplerTable(tuple(timesteps[:rows]), M, v, torch.zeros_like(v))


def third_order(second_derivative):
    """Weights of the parabola; its second divided difference is half of its second derivative."""

    def weights(h, h1, h2):
        r0, r1 = h1 / h, h2 / h
        e = math.expm1(-h)
        slope_scale, curve_scale = e / h + 1, -((e + h) / h**2 - 0.5)
        scale = second_derivative * curve_scale
        # D1 = D1_0 + r0/(r0+r1) (D1_0 - D1_1) and D2 = (D1_0 - D1_1)/(r0+r1)
        first = slope_scale * (1 + r0 / (r0 + r1)) + scale / (r0 + r1)  # of D1_0
        second = -slope_scale * r0 / (r0 + r1) - scale / (r0 + r1)  # of D1_1
        return -e + first / r0, -first / r0 + second / r1, -second / r1

    return weights


def multistep_slope(table, order, uneven):
    def made(timesteps):
        rows = table(timesteps)
        return type(rows)(
            (*rows.timesteps, timesteps[-1]),
            torch.cat([rows.M, rows.M[-1:]]),
            torch.cat([rows.v, rows.v[-1:]]),
            torch.cat([rows.s, rows.s[-1:]]),
        )

    errors = [multistep_error(made, steps, uneven, order, False) for steps in STEPS]
    return slope(STEPS, errors)


def test_halving_the_parabolas_curvature_loses_an_order():
    """The widespread third-order update takes a divided difference for the second derivative."""
    assert multistep_slope(lambda t: adams(t, 3, third_order(1)), 3, False) < 2.15
    assert multistep_slope(lambda t: adams(t, 3, third_order(2)), 3, False) > 2.85


def test_the_whole_parabola_is_ours():
    timesteps = grid(30, uneven=True)
    ours, expected = dpm_solver_pp(EVEN, timesteps, 3), adams(timesteps, 3, third_order(2))
    full = slice(2, len(timesteps) - 2)
    torch.testing.assert_close(ours.M[full], expected.M[full], rtol=0, atol=1e-10)
    torch.testing.assert_close(ours.v[full], expected.v[full], rtol=0, atol=1e-10)


def test_taking_uneven_steps_for_even_loses_an_order():
    def slip(h, _):
        return -1.5 * math.expm1(-h), 0.5 * math.expm1(-h)

    assert multistep_slope(lambda t: adams(t, 2, slip), 2, uneven=True) < 1.3
    assert multistep_slope(lambda t: adams(t, 2, slip), 2, uneven=False) > 1.85


# There and back ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "order", "expected"),
    [
        ("ddim", None, 1),
        ("dpm-solver++", 1, 1),
        ("dpm-solver++", 2, 2),
        ("unipc", 1, 2),
        ("unipc", 2, 2),
        ("heun", None, 2),
    ],
)
def test_inversion_after_sampling_returns_to_the_start_at_the_order_of_the_solver(
    name, order, expected
):
    start, errors = reference()[START], []
    for steps in STEPS:
        timesteps = grid(steps, uneven=False)[3:]
        table = build_table(EVEN, name, timesteps=timesteps, order=order)
        registers = [start, *[torch.zeros_like(start)] * (table.M.shape[1] - 1)]
        rows = steps * (2 if name == "heun" else 1)
        low = run(table, registers, range(rows))[0]
        back = inversion(EVEN, timesteps[: steps + 1], name, order)
        made = sample(EXACT, table=back, x_init=low)
        errors.append((made - start).abs().max().item())
    assert slope(STEPS, errors) > expected - 0.2
    assert (np.diff(errors) < 0).all()


def test_a_solvers_inversion_is_the_solver_from_low_noise_to_high():
    exact = reference()
    for name in ("ddim", "dpm-solver++", "unipc", "heun"):
        errors = []
        for steps in STEPS:
            timesteps = list(range(END, START + 1, BETWEEN // steps))[::-1]
            made = sample(EXACT, table=inversion(EVEN, timesteps, name), x_init=exact[END])
            errors.append((made - exact[START]).abs().max().item())
        assert slope(STEPS, errors) > (0.8 if name == "ddim" else 1.8)


def test_sampling_from_an_inverted_image_gives_it_back_the_better_the_more_steps():
    schedule = NoiseSchedule.linear()
    denoiser, images = MIXTURE.denoiser(schedule), MIXTURE.sample(40, seed=3)
    errors = []
    for count in (10, 20, 50, 100, 200, 1000):
        timesteps = np.linspace(999, 0, count).round().astype(int).tolist()
        noise = sample(denoiser, table=inversion(schedule, timesteps), x_init=images)
        again = sample(denoiser, table=ddim(schedule, timesteps), x_init=noise)
        errors.append((again - images).square().mean().sqrt().item())
    assert (np.diff(errors) < 0).all()
    assert errors[-1] < errors[0] / 20


# As used -----------------------------------------------------------------------------------------


AS_USED = {
    ("ddim", None): 0.9,
    ("heun", None): 1.9,
    ("dpm-solver++", 2): 1.8,
    ("dpm-solver++", 3): 2.7,
    ("unipc", 1): 1.8,
    ("unipc", 2): 2.7,
    ("unipc", 3): 3.3,
}


@functools.cache
def used():
    """A fine schedule, starts, and what the exact flow takes them to."""
    schedule = NoiseSchedule.linear(8000)
    start = torch.from_numpy(np.random.default_rng(1).standard_normal((16, 2)))
    denoiser = MIXTURE.denoiser(schedule)
    end = sample(denoiser, None, "unipc", 1000, x_init=start, order=3, timesteps="log-snr")
    return schedule, denoiser, start, end


@pytest.mark.parametrize(("name", "order"), AS_USED)
def test_from_noise_to_the_image_the_low_orders_at_the_ends_cost_little(name, order):
    """With steps even in λ, all but the ends are as between two levels."""
    _, denoiser, start, end = used()
    errors, counts = [], (20, 40, 80)
    for steps in counts:
        made = sample(denoiser, None, name, steps, x_init=start, order=order, timesteps="log-snr")
        errors.append((made - end).square().mean().sqrt().item())
    assert (np.diff(errors) < 0).all()
    assert slope(counts, errors) > AS_USED[name, order]


@pytest.mark.parametrize(("name", "order"), AS_USED)
@pytest.mark.parametrize("spacing", ["trailing", "karras", "quadratic"])
def test_more_steps_do_not_hurt(name, order, spacing):
    _, denoiser, start, end = used()
    errors = []
    for steps in (20, 40, 80):
        made = sample(denoiser, None, name, steps, x_init=start, order=order, timesteps=spacing)
        errors.append((made - end).square().mean().sqrt().item())
    assert (np.diff(errors) < 0).all()
    assert errors[-1] < 0.3 * errors[0]
