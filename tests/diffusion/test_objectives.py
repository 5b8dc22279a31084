"""The training losses: right for each example, and least for the perfect denoiser."""

import math

import mpmath
import pytest
import torch
from hypothesis import example, given
from hypothesis import strategies as st
from torch import nn
from torch.distributions import Normal, kl_divergence

from inkdrop.diffusion.denoiser import Denoiser
from inkdrop.diffusion.forward import q_marginal, q_posterior, q_sample
from inkdrop.diffusion.objectives import (
    discretised_log_likelihood,
    hybrid,
    min_snr,
    p2,
    prior_term,
    simple,
    snr_weighted,
    variational_bound,
    weighted_noise,
)
from inkdrop.diffusion.prediction import PREDICTIONS, Pair, from_pair
from inkdrop.diffusion.schedule import NoiseSchedule
from inkdrop.errors import InkdropError

SCHEDULE = NoiseSchedule.linear()
LEVELS = torch.arange(256, dtype=torch.float64) / 127.5 - 1


def draw(*shape, seed=0):
    return torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


class Linear(nn.Module):
    """a x + b t, plus the condition where there is one."""

    def __init__(self):
        super().__init__()
        self.a = nn.Parameter(torch.tensor(0.3, dtype=torch.float64))
        self.b = nn.Parameter(torch.tensor(0.001, dtype=torch.float64))

    def forward(self, x, t, condition):
        told = (self.b * t).reshape(-1, *[1] * (x.ndim - 1))
        return self.a * x + told + (0 if condition is None else condition)


@pytest.mark.parametrize("kind", PREDICTIONS)
def test_the_loss_is_the_mean_squared_error_of_the_networks_own_prediction(kind):
    denoiser = Denoiser(Linear(), SCHEDULE, prediction=kind)
    x_start, noise = draw(4, 2, 3, 3), draw(4, 2, 3, 3, seed=1)
    t = torch.tensor([0, 10, 500, 999])
    losses = simple(denoiser, x_start, t, noise).detach()
    assert losses.shape == (4,)
    for i in range(4):
        signal = SCHEDULE.alphas_cumprod[t[i]]
        alpha, sigma = signal.sqrt(), (1 - signal).sqrt()
        wanted = {
            "noise": noise[i],
            "x_start": x_start[i],
            "velocity": alpha * noise[i] - sigma * x_start[i],
            "score": -noise[i] / sigma,
        }[kind]
        answer = 0.3 * (alpha * x_start[i] + sigma * noise[i]) + 0.001 * float(t[i])
        expected = ((answer - wanted) ** 2).sum() / 18
        torch.testing.assert_close(losses[i], expected, rtol=1e-10, atol=0)


@pytest.mark.parametrize("kind", PREDICTIONS)
@pytest.mark.parametrize("t", [0, 50, 300, 999])
def test_the_perfect_denoiser_reaches_the_least_loss_there_is(gaussian, target, kind, t):
    """The least loss is the variance of the target that x_t leaves open, Var(x_0 | x_t) scaled."""
    mean, variance = target
    examples = 20_000
    x_start = mean + variance.sqrt() * draw(examples, 3)
    noise = draw(examples, 3, seed=1)
    at = torch.full((examples,), t)

    signal = SCHEDULE.alphas_cumprod[t]
    open_variance = variance * (1 - signal) / (signal * variance + 1 - signal)
    # x_t is known, so ε = (x_t - α x_0) / σ varies as α/σ x_0, and v = ε/α - x_t σ/α as x_0/σ.
    scale = {
        "x_start": 1,
        "noise": signal / (1 - signal),
        "velocity": 1 / (1 - signal),
        "score": signal / (1 - signal) ** 2,
    }[kind]
    least = (scale * open_variance).mean()

    losses = simple(gaussian(SCHEDULE, kind), x_start, at, noise)
    error = losses.std() / examples**0.5
    assert (losses.mean() - least).abs() < 4 * error

    for perturbation in (-1, 1):
        # Four standard errors away: more than chance can make up for.
        size = perturbation * (40 * error.item()) ** 0.5
        worse = simple(gaussian(SCHEDULE, kind, perturbation=size), x_start, at, noise)
        assert worse.mean() > losses.mean()
        assert worse.mean().item() == pytest.approx(least.item() + size**2, rel=0.15)


def test_the_loss_of_an_example_does_not_depend_on_the_others():
    denoiser = Denoiser(Linear(), SCHEDULE)
    x_start, noise, t = draw(4, 6), draw(4, 6, seed=1), torch.tensor([0, 10, 500, 999])
    together = simple(denoiser, x_start, t, noise)
    for i in range(4):
        one = slice(i, i + 1)
        assert torch.equal(simple(denoiser, x_start[one], t[one], noise[one]), together[one])


def test_the_condition_reaches_the_network():
    denoiser = Denoiser(Linear(), SCHEDULE)
    x_start, noise, t = draw(2, 6), draw(2, 6, seed=1), torch.tensor([10, 500])
    condition = torch.tensor([[0.0], [5.0]])
    plain, told = (simple(denoiser, x_start, t, noise, c) for c in (None, condition))
    assert torch.equal(plain[0], told[0])
    assert told[1] > plain[1]


def test_the_gradient_reaches_every_weight():
    denoiser = Denoiser(Linear(), SCHEDULE)
    losses = simple(denoiser, draw(4, 6), torch.tensor([5, 10, 500, 999]), draw(4, 6, seed=1))
    losses.mean().backward()
    assert all(p.grad.abs() > 0 for p in denoiser.network.parameters())


def test_noise_of_another_shape_is_an_error_and_not_broadcast():
    denoiser = Denoiser(Linear(), SCHEDULE)
    with pytest.raises(InkdropError, match=r"noise has shape \(2, 1, 4\), but x_start \(2, 3, 4\)"):
        simple(denoiser, draw(2, 3, 4), torch.tensor([1, 2]), draw(2, 1, 4))


def test_a_timestep_that_is_none_is_an_error():
    denoiser = Denoiser(Linear(), SCHEDULE)
    for t in (torch.tensor([1, 1000]), torch.tensor([1, -1]), torch.tensor([1.0, 2.0])):
        with pytest.raises(InkdropError, match="t must"):
            simple(denoiser, draw(2, 3), t, draw(2, 3))


# The bound ----------------------------------------------------------------------------------------


class Learned(nn.Module):
    """A prediction a x + b t, and beside it a raw variance c x + d."""

    def __init__(self, c=0.2, d=-0.4):
        super().__init__()
        self.mean = Linear()
        self.c = nn.Parameter(torch.tensor(c, dtype=torch.float64))
        self.d = nn.Parameter(torch.tensor(d, dtype=torch.float64))

    def forward(self, x, t, condition):
        return torch.cat([self.mean(x, t, condition), self.c * x + self.d], dim=1)


class Constant(nn.Module):
    """One number for all, whatever it is asked."""

    def __init__(self, value, dtype):
        super().__init__()
        self.value = nn.Parameter(torch.tensor(value, dtype=dtype))

    def forward(self, x, t, condition):
        return self.value.expand_as(x)


def of_every_timestep(schedule, dimensions=6):
    """(x_start, t, noise), one example for each t ≥ 1."""
    t = torch.arange(1, schedule.timesteps)
    return draw(len(t), dimensions), t, draw(len(t), dimensions, seed=1)


def noise_error(denoiser, x_start, t, noise):
    """‖ε - ε̂‖² / D from the denoiser's estimate."""
    x_t = q_sample(denoiser.schedule, x_start, t, noise)
    return ((noise - denoiser(x_t, t).noise) ** 2).mean(1).detach()


def close(actual, expected, tolerance=1e-10):
    torch.testing.assert_close(actual, expected, rtol=tolerance, atol=0)


@pytest.mark.parametrize("schedule", [SCHEDULE, NoiseSchedule.cosine(100)], ids=repr)
@pytest.mark.parametrize("kind", PREDICTIONS)
def test_the_bounds_terms_are_eq_12_and_half_the_snrs_fall_times_the_error(schedule, kind):
    """Ho et al. 2020, Eq. 12; and with γ = -log SNR, ½ (e^(γ_t - γ_s) - 1) ‖ε - ε̂‖²."""
    denoiser = Denoiser(Linear(), schedule, prediction=kind)
    x_start, t, noise = of_every_timestep(schedule)
    bound = variational_bound(denoiser, x_start, t, noise, variance="posterior").detach()
    error = noise_error(denoiser, x_start, t, noise)

    betas, alphas_cumprod = schedule.betas, (1 - schedule.betas).cumprod(0)
    before, here = alphas_cumprod[:-1], alphas_cumprod[1:]
    variance = betas[1:] * (1 - before) / (1 - here)
    eq_12 = betas[1:] ** 2 / (2 * variance * (1 - betas[1:]) * (1 - here))
    close(bound, eq_12 * error, 1e-9)  # a plain product: 1 - ᾱ has lost digits at the first steps
    close(bound, schedule.bound_weight_posterior[1:] * error)
    gamma = -schedule.log_snr
    close(bound, torch.expm1(gamma[1:] - gamma[:-1]) / 2 * error)
    close(bound, weighted_noise(denoiser, x_start, t, noise).detach())


@pytest.mark.parametrize("kind", PREDICTIONS)
@pytest.mark.parametrize("variance", ["posterior", "beta", "learned"])
def test_a_term_of_the_bound_is_the_kl_divergence_of_two_gaussians(kind, variance):
    learned = variance == "learned"
    denoiser = Denoiser(
        Learned() if learned else Linear(), SCHEDULE, kind, learned_variance=learned
    )
    x_start, t, noise = of_every_timestep(SCHEDULE)
    bound = variational_bound(denoiser, x_start, t, noise, variance=variance)

    x_t = q_sample(SCHEDULE, x_start, t, noise)
    estimate = denoiser(x_t, t)
    true = q_posterior(SCHEDULE, x_start, x_t, t)
    model = q_posterior(SCHEDULE, estimate.x_start, x_t, t)
    betas = SCHEDULE.betas[t, None]
    if learned:
        raw = 0.2 * x_t - 0.4
        log_variance = (1 + raw) / 2 * betas.log() + (1 - raw) / 2 * true.variance.log()
    else:
        log_variance = {"posterior": true.variance, "beta": betas}[variance].log()
    expected = kl_divergence(
        Normal(true.mean, true.variance.sqrt()), Normal(model.mean, (log_variance / 2).exp())
    )
    torch.testing.assert_close(bound, expected.mean(1), rtol=1e-9, atol=1e-13)


@pytest.mark.parametrize("kind", PREDICTIONS)
def test_with_beta_the_bound_is_eq_12_and_a_part_that_no_network_can_change(kind):
    denoiser = Denoiser(Linear(), SCHEDULE, prediction=kind)
    x_start, t, noise = of_every_timestep(SCHEDULE)
    bound = variational_bound(denoiser, x_start, t, noise, variance="beta").detach()
    weighted = weighted_noise(denoiser, x_start, t, noise, variance="beta").detach()
    ratio = (SCHEDULE.posterior_variance / SCHEDULE.betas)[1:]
    torch.testing.assert_close(
        bound - weighted, (ratio - 1 - ratio.log()) / 2, rtol=1e-8, atol=1e-13
    )
    error = noise_error(denoiser, x_start, t, noise)
    close(
        weighted,
        (SCHEDULE.betas**2 / (2 * SCHEDULE.betas * SCHEDULE.alphas))[1:]
        * error
        / SCHEDULE.one_minus_alphas_cumprod[1:],
    )


def test_the_weighted_loss_is_the_simple_one_times_the_known_weights(known_answers):
    denoiser = Denoiser(Linear(), NoiseSchedule.linear(1000, 1e-4, 0.02))
    known = known_answers["linear_1000"]["eq12_weight_fixed_small"]
    t = torch.tensor([int(name) for name in known])
    given = draw(len(t), 6), t, draw(len(t), 6, seed=1)
    ratio = weighted_noise(denoiser, *given) / simple(denoiser, *given)
    assert ratio.tolist() == pytest.approx(list(known.values()), rel=1e-9)


def test_at_the_first_timestep_the_weight_is_of_the_second_posterior_variance():
    """Ho's code: β̃_0 is zero, and β̃_1 stands in for it."""
    denoiser = Denoiser(Linear(), SCHEDULE)
    given = draw(1, 6), torch.tensor([0]), draw(1, 6, seed=1)
    beta, width = SCHEDULE.betas[0], SCHEDULE.posterior_variance[1]
    weight = beta**2 / (2 * width * (1 - beta) * beta)
    close(weighted_noise(denoiser, *given), weight * simple(denoiser, *given))


@pytest.mark.parametrize("variance", ["posterior", "beta"])
def test_at_the_first_timestep_stands_the_decoder(variance):
    denoiser = Denoiser(Linear(), SCHEDULE, prediction="x_start")
    zero = torch.zeros(3, dtype=torch.int64)
    width = {"posterior": SCHEDULE.posterior_variance[1], "beta": SCHEDULE.betas[0]}[variance]

    points, noise = draw(3, 6), draw(3, 6, seed=1)
    x_start = denoiser(q_sample(SCHEDULE, points, zero, noise), zero).x_start
    expected = -Normal(x_start, width.sqrt()).log_prob(points).mean(1)
    close(variational_bound(denoiser, points, zero, noise, variance=variance), expected)

    images, noise = LEVELS[draw(3, 1, 4, 5).mul(40).add(128).long().clamp(0, 255)], draw(3, 1, 4, 5)
    x_start = denoiser(q_sample(SCHEDULE, images, zero, noise), zero).x_start
    likelihood = discretised_log_likelihood(images, x_start, width.log())
    bound = variational_bound(denoiser, images, zero, noise, variance=variance)
    close(bound, -likelihood.flatten(1).mean(1))
    density = variational_bound(denoiser, images, zero, noise, variance=variance, decoder="density")
    close(density, -Normal(x_start, width.sqrt()).log_prob(images).flatten(1).mean(1))


def test_clipping_changes_the_bound_as_it_changes_the_estimate():
    denoiser = Denoiser(Linear(), SCHEDULE, prediction="x_start")
    x_start, t, noise = of_every_timestep(SCHEDULE)
    clipped = variational_bound(denoiser, x_start, t, noise, clip="range").detach()
    x_t = q_sample(SCHEDULE, x_start, t, noise)
    x_start_error = ((denoiser(x_t, t).x_start.clamp(-1, 1) - x_start) ** 2).mean(1).detach()
    close(clipped, SCHEDULE.bound_weight_posterior[1:] * SCHEDULE.snr[1:] * x_start_error)


def test_a_schedule_of_one_or_two_timesteps_has_a_bound():
    for total in (1, 2):
        schedule = NoiseSchedule.from_betas([0.9995] * total)
        denoiser = Denoiser(Learned(), schedule, learned_variance=True)
        t = torch.arange(total)
        given = draw(total, 6), t, draw(total, 6, seed=1)
        for variance in ("posterior", "beta", "learned"):
            assert variational_bound(denoiser, *given, variance=variance).isfinite().all()
        assert hybrid(denoiser, *given).isfinite().all()


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_the_prior_term_is_the_kl_divergence_from_a_standard_normal(dtype):
    for schedule in (SCHEDULE, NoiseSchedule.cosine(), NoiseSchedule.from_betas([0.9995])):
        x_start = draw(5, 2, 3, 3)
        last = q_marginal(schedule, x_start, torch.full((5,), schedule.timesteps - 1))
        expected = kl_divergence(
            Normal(last.mean, last.variance.sqrt().expand_as(last.mean)), Normal(0.0, 1.0)
        )
        tolerance = {torch.float64: 1e-12, torch.float32: 1e-5}[dtype]
        torch.testing.assert_close(
            prior_term(schedule, x_start.to(dtype)).double(),
            expected.flatten(1).mean(1),
            rtol=tolerance,
            atol=1e-16,
        )


# The decoder --------------------------------------------------------------------------------------


@given(st.floats(-30, 30), st.floats(-3, 1))
@example(0.0, -3.0)
@example(1.0, -3.0)
@example(-1e4, -3.0)
@example(1e4, 1.0)
def test_the_decoders_256_probabilities_sum_to_one(mean, log10_sigma):
    log_variance = torch.tensor(2 * log10_sigma * math.log(10), dtype=torch.float64)
    log_p = discretised_log_likelihood(LEVELS, torch.tensor(mean).double(), log_variance)
    assert log_p.logsumexp(0).abs().item() < 1e-12
    assert (log_p <= 0).all()


def exact_log_probability(level, mean, sigma):
    """Of the pixel's bin, to 60 digits."""
    with mpmath.workdps(60):
        half = mpmath.mpf(1) / 255
        low = (mpmath.mpf(level) - half - mpmath.mpf(mean)) / mpmath.mpf(sigma)
        high = low + 2 * half / mpmath.mpf(sigma)
        if level == -1:
            low = -mpmath.inf
        if level == 1:
            high = mpmath.inf
        if low > 0:
            low, high = -high, -low
        return float(mpmath.log(mpmath.ncdf(high) - mpmath.ncdf(low)))


@pytest.mark.parametrize("sigma", [1e-3, 7.4e-3, 0.05, 0.6, 10.0])
@pytest.mark.parametrize("mean", [0.0, 0.5019, -0.97, 1.0, -1.3, 4.0, -20.0])
def test_the_decoders_probabilities_are_the_integrals_over_the_bins(mean, sigma):
    levels = LEVELS[[0, 1, 2, 60, 126, 127, 128, 129, 191, 192, 253, 254, 255]]
    log_variance = 2 * torch.tensor(sigma, dtype=torch.float64).log()
    found = discretised_log_likelihood(levels, torch.tensor(mean).double(), log_variance)
    for level, log_p in zip(levels.tolist(), found.tolist(), strict=True):
        # 1e-10 of the probability, as long as float64 can tell its logarithm so finely.
        exact = exact_log_probability(level, float(torch.tensor(mean).double()), sigma)
        assert log_p == pytest.approx(exact, rel=2e-15, abs=1e-10)


def test_the_decoder_is_exact_and_not_the_tanh_that_approximates_it():
    level, mean, sigma = LEVELS[150], torch.tensor(0.1, dtype=torch.float64), 0.02

    def tanh_cdf(x):
        return (1 + torch.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x**3))) / 2

    at = [(level - mean + side / 255) / sigma for side in (-1, 1)]
    approximate = (tanh_cdf(at[1]) - tanh_cdf(at[0])).log()
    log_variance = torch.tensor(2 * math.log(sigma), dtype=torch.float64)
    exact = discretised_log_likelihood(level, mean, log_variance)
    assert (exact - approximate).abs() > 1e-3
    assert exact.item() == pytest.approx(
        exact_log_probability(level.item(), mean.item(), sigma), rel=1e-12
    )


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
@pytest.mark.parametrize("sigma", [1e-3, 0.01, 1.0, 10.0])
@pytest.mark.parametrize("off", [0.0, 1e-3, 0.1, 3.0, 1e4, 1e5, 1e6])
def test_the_decoders_gradients_are_finite_and_point_home_however_far_the_mean_is(
    dtype, sigma, off
):
    for side in (-1, 1):
        mean = (LEVELS + side * off).to(dtype).requires_grad_()
        log_variance = torch.full((256,), 2 * math.log(sigma), dtype=dtype, requires_grad=True)
        log_p = discretised_log_likelihood(LEVELS.to(dtype), mean, log_variance)
        log_p.sum().backward()
        assert log_p.isfinite().all()
        assert mean.grad.isfinite().all()
        assert log_variance.grad.isfinite().all()
        if off >= 3:
            inner = slice(1, -1)
            assert (mean.grad[inner] * side < 0).all()
            assert (log_variance.grad[inner] > 0).all() or sigma >= 1


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
@pytest.mark.parametrize("value", [1e4, -1e6])
def test_the_bounds_gradients_are_finite_at_every_timestep_for_an_estimate_far_off(dtype, value):
    denoiser = Denoiser(Constant(value, dtype), SCHEDULE, prediction="x_start")
    images = LEVELS[draw(4, 1, 3, 3).mul(40).add(128).long().clamp(0, 255)].to(dtype)
    t = torch.tensor([0, 1, 500, 999])
    for rows in (slice(0, 4), slice(1, 4)):
        denoiser.network.zero_grad()
        noise = draw(4, 1, 3, 3).to(dtype)[rows]
        losses = variational_bound(denoiser, images[rows], t[rows], noise)
        losses.sum().backward()
        assert losses.isfinite().all()
        assert denoiser.network.value.grad.isfinite()
        assert denoiser.network.value.grad * value > 0


def test_a_decoder_that_would_overflow_does_not_reach_the_other_timesteps_gradients():
    denoiser = Denoiser(Constant(1e19, torch.float32), SCHEDULE, prediction="x_start")
    images, noise = LEVELS[[3, 200]].reshape(2, 1, 1, 1).float(), torch.zeros(2, 1, 1, 1)
    variational_bound(denoiser, images, torch.tensor([999, 998]), noise).sum().backward()
    assert denoiser.network.value.grad.isfinite()


# A learned variance -------------------------------------------------------------------------------


@pytest.mark.parametrize(("raw", "variance"), [(-1.0, "posterior"), (1.0, "beta")])
def test_the_ends_of_a_learned_variance_are_the_fixed_ones(raw, variance):
    learned = Denoiser(Learned(0.0, raw), SCHEDULE, learned_variance=True)
    fixed = Denoiser(Linear(), SCHEDULE)
    t = torch.arange(1000)
    given = draw(1000, 6), t, draw(1000, 6, seed=1)
    close(
        variational_bound(learned, *given),
        variational_bound(fixed, *given, variance=variance),
        1e-9,
    )


def test_in_the_hybrid_simple_teaches_the_mean_and_the_bound_the_variance():
    denoiser = Denoiser(Learned(), SCHEDULE, learned_variance=True)
    network = denoiser.network
    mean, variance = list(network.mean.parameters()), [network.c, network.d]
    given = draw(4, 6), torch.tensor([0, 10, 500, 999]), draw(4, 6, seed=1)

    def gradients(losses, parameters):
        return torch.autograd.grad(losses.sum(), parameters, allow_unused=True)

    of_simple = gradients(simple(denoiser, *given), mean + variance)
    assert of_simple[2:] == (0, 0)
    assert gradients(hybrid(denoiser, *given), mean) == of_simple[:2]

    of_bound = gradients(variational_bound(denoiser, *given), variance)
    of_hybrid = gradients(hybrid(denoiser, *given), variance)
    for found, expected in zip(of_hybrid, of_bound, strict=True):
        assert expected.abs() > 0
        close(found, 0.001 * 1000 * expected)


def test_the_hybrid_is_simple_and_a_thousandth_of_the_whole_bound():
    schedule = NoiseSchedule.cosine(50)
    denoiser = Denoiser(Learned(), schedule, learned_variance=True)
    t = torch.arange(50)
    given = draw(50, 6), t, draw(50, 6, seed=1)
    bound = variational_bound(denoiser, *given, variance="learned")
    close(hybrid(denoiser, *given), simple(denoiser, *given) + 0.001 * 50 * bound)
    close(hybrid(denoiser, *given, bound_weight=0.3), simple(denoiser, *given) + 0.3 * 50 * bound)


# Weightings ---------------------------------------------------------------------------------------


def x_start_error(denoiser, x_start, t, noise):
    x_t = q_sample(denoiser.schedule, x_start, t, noise)
    return ((x_start - denoiser(x_t, t).x_start) ** 2).mean(1).detach()


@pytest.mark.parametrize("kind", PREDICTIONS)
@pytest.mark.parametrize("gamma", [0.01, 5.0, 1e6])
def test_min_snr_is_the_error_of_the_clean_image_times_the_capped_snr(kind, gamma):
    denoiser = Denoiser(Linear(), SCHEDULE, prediction=kind)
    given = of_every_timestep(SCHEDULE)
    losses = min_snr(denoiser, *given, gamma=gamma).detach()
    close(losses, SCHEDULE.snr[1:].clamp(max=gamma) * x_start_error(denoiser, *given), 1e-9)


@pytest.mark.parametrize("kind", PREDICTIONS)
def test_p2_is_the_error_of_the_noise_over_a_power_of_the_snr(kind):
    denoiser = Denoiser(Linear(), SCHEDULE, prediction=kind)
    given = of_every_timestep(SCHEDULE)
    error, snr = noise_error(denoiser, *given), SCHEDULE.snr[1:]
    close(p2(denoiser, *given).detach(), error / (1 + snr), 1e-9)
    close(p2(denoiser, *given, gamma=0.5, k=2.0).detach(), error / (2 + snr).sqrt(), 1e-9)


@pytest.mark.parametrize("kind", PREDICTIONS)
def test_any_function_of_the_snr_may_weigh_the_noise_error(kind):
    denoiser = Denoiser(Linear(), SCHEDULE, prediction=kind)
    given = of_every_timestep(SCHEDULE)
    losses = snr_weighted(lambda snr: 1 + torch.sin(snr.log()))(denoiser, *given).detach()
    expected = (1 + torch.sin(SCHEDULE.log_snr[1:])) * noise_error(denoiser, *given)
    torch.testing.assert_close(losses, expected, rtol=1e-9, atol=1e-14)


@pytest.mark.parametrize(
    ("weight", "message"),
    [
        (lambda snr: -snr, "finite weights of at least 0"),
        (lambda snr: snr / 0, "finite weights of at least 0"),
        (lambda snr: snr.mean(), r"given 1000 SNRs and returned shape \(\); it must return one"),
        (lambda snr: snr[:3], r"returned shape \(3,\)"),
        (lambda snr: torch.where(snr < 1e-4, math.nan, snr), "finite weights"),
    ],
)
def test_a_weighting_that_is_none_is_an_error_whatever_the_timesteps_asked(weight, message):
    denoiser = Denoiser(Linear(), SCHEDULE)
    with pytest.raises(InkdropError, match=message):
        snr_weighted(weight)(denoiser, draw(2, 3), torch.tensor([5, 10]), draw(2, 3))


EVERY_OBJECTIVE = [simple, weighted_noise, min_snr, p2, variational_bound, hybrid]


@pytest.mark.parametrize("objective", EVERY_OBJECTIVE)
@pytest.mark.parametrize("index", [torch.uint8, torch.int32, torch.int64])
def test_timesteps_may_be_any_integers(objective, index):
    denoiser = Denoiser(Learned(), SCHEDULE, learned_variance=True)
    x_start, t, noise = draw(4, 6), torch.tensor([0, 1, 1, 99]), draw(4, 6, seed=1)
    assert torch.equal(
        objective(denoiser, x_start, t.to(index), noise), objective(denoiser, x_start, t, noise)
    )


@pytest.mark.parametrize("objective", EVERY_OBJECTIVE)
@pytest.mark.parametrize("kind", PREDICTIONS)
def test_float32_losses_are_the_float64_ones_rounded(objective, kind):
    """Where a network is right to within a percent, which it soon is."""
    x_start, t, noise = draw(40, 6), torch.arange(0, 1000, 25), draw(40, 6, seed=1)
    alpha, sigma = SCHEDULE.sqrt_alphas_cumprod[t], SCHEDULE.sqrt_one_minus_alphas_cumprod[t]
    answer = from_pair(kind, Pair(x_start, noise), alpha[:, None], sigma[:, None])
    answer = torch.cat([answer * 1.01 + 0.01, draw(40, 6, seed=2)], dim=1)
    losses = {}
    for dtype in (torch.float64, torch.float32):
        network = nn.Module()
        network.forward = lambda x, t, condition, dtype=dtype: answer.to(dtype)
        denoiser = Denoiser(network, SCHEDULE, kind, learned_variance=True)
        losses[dtype] = objective(denoiser, x_start.to(dtype), t, noise.to(dtype))
        assert losses[dtype].dtype == dtype
    torch.testing.assert_close(
        losses[torch.float32].double(), losses[torch.float64], rtol=1e-3, atol=1e-5
    )


# Mistakes -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("objective", EVERY_OBJECTIVE)
def test_every_objective_refuses_noise_of_another_shape_and_timesteps_that_are_none(objective):
    denoiser = Denoiser(Learned(), SCHEDULE, learned_variance=True)
    with pytest.raises(InkdropError, match="noise has shape"):
        objective(denoiser, draw(2, 4), torch.tensor([1, 2]), draw(2, 1))
    with pytest.raises(InkdropError, match="t must lie in 0 … 999, got 1 … 1000"):
        objective(denoiser, draw(2, 4), torch.tensor([1, 1000]), draw(2, 4))


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda *a: hybrid(*a), "learned variance is asked of a network that learns none"),
        (lambda *a: variational_bound(*a, variance="learned"), "network that learns none"),
        (lambda *a: variational_bound(*a, variance="betas"), "did you mean 'beta'"),
        (lambda *a: weighted_noise(*a, variance="learned"), "choose from posterior, beta"),
        (lambda *a: variational_bound(*a, decoder="pixel"), "did you mean 'pixels'"),
        (lambda *a: variational_bound(*a, clip="rnage"), "did you mean 'range'"),
        (lambda *a: variational_bound(*a, decoder="pixels"), r"got values in \[-[1-9]"),
        (lambda *a: min_snr(*a, gamma=0), "gamma must be above 0, got 0"),
        (lambda *a: min_snr(*a, gamma=math.nan), "gamma must be above 0, got nan"),
        (lambda *a: p2(*a, gamma=-1), "got -1 and 1.0"),
        (lambda *a: p2(*a, k=0), "got 1.0 and 0"),
    ],
)
def test_a_mistake_is_named_in_one_line(call, message):
    with pytest.raises(InkdropError, match=message) as error:
        call(Denoiser(Linear(), SCHEDULE), 3 * draw(2, 6), torch.tensor([1, 2]), draw(2, 6))
    assert "\n" not in str(error.value)
