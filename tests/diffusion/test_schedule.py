"""The schedule's numbers against known answers and against each other."""

import math
import warnings

import pytest
import torch
from hypothesis import assume, example, given
from hypothesis import strategies as st

from inkdrop.diffusion.schedule import NoiseSchedule, ScheduleWarning
from inkdrop.errors import InkdropError

FLOATS = (
    "betas",
    "alphas",
    "alphas_cumprod",
    "alphas_cumprod_prev",
    "sqrt_alphas_cumprod",
    "sqrt_one_minus_alphas_cumprod",
    "snr",
    "log_snr",
    "posterior_variance",
    "posterior_mean_coef_x_start",
    "posterior_mean_coef_x_t",
    "one_minus_alphas_cumprod",
    "posterior_variance_clipped",
    "log_betas",
    "log_posterior_variance_clipped",
    "bound_weight_posterior",
    "bound_weight_beta",
)
MAKERS = {
    "linear": NoiseSchedule.linear,
    "cosine": NoiseSchedule.cosine,
    "sigmoid": NoiseSchedule.sigmoid,
    "function": lambda timesteps: NoiseSchedule.from_alphas_cumprod(
        lambda u: 0.6 * (1 - u) ** 2 + 0.2 * (1 - u), timesteps
    ),
    "betas": lambda timesteps: NoiseSchedule.from_betas(
        [0.3 * (i + 1) / timesteps for i in range(timesteps)]
    ),
    "alphas_cumprod": lambda timesteps: NoiseSchedule.from_alphas_cumprod(
        [math.exp(-8 * (i + 1) / timesteps) for i in range(timesteps)]
    ),
}


def quiet(make, *args, **kwargs):
    """A schedule whose warnings are of no interest here."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ScheduleWarning)
        return make(*args, **kwargs)


def close(actual, expected, tolerance=1e-12):
    torch.testing.assert_close(actual, expected, rtol=tolerance, atol=tolerance)


timesteps = st.integers(1, 2000)
makers = st.sampled_from(sorted(MAKERS)).map(MAKERS.get)


# Known answers -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("attribute", "known"),
    [
        ("alphas_cumprod", "alphas_cumprod"),
        ("posterior_variance", "posterior_variance"),
        ("posterior_mean_coef_x_start", "posterior_mean_coef_x0"),
        ("posterior_mean_coef_x_t", "posterior_mean_coef_xt"),
        ("log_snr", "log_snr"),
    ],
)
def test_linear_1000_is_the_known_schedule(known_answers, attribute, known):
    values = getattr(NoiseSchedule.linear(1000, 1e-4, 0.02), attribute)
    for t, expected in known_answers["linear_1000"][known].items():
        assert values[int(t)].item() == pytest.approx(expected, rel=1e-9)


def test_the_weight_of_eq_12_is_the_known_one(known_answers):
    """β² / (2 σ² α (1 - ᾱ)) with σ² = β̃ (Ho et al. 2020, Eq. 12)."""
    s = NoiseSchedule.linear(1000, 1e-4, 0.02)
    for t, expected in known_answers["linear_1000"]["eq12_weight_fixed_small"].items():
        assert s.bound_weight_posterior[int(t)].item() == pytest.approx(expected, rel=1e-9)


@pytest.mark.parametrize("attribute", ["betas", "alphas_cumprod"])
def test_cosine_1000_is_the_known_schedule(known_answers, attribute):
    values = getattr(NoiseSchedule.cosine(1000), attribute)
    for t, expected in known_answers["cosine_1000"][attribute].items():
        assert values[int(t)].item() == pytest.approx(expected, rel=1e-9)


def test_respacing_linear_1000_to_every_100th_gives_the_known_betas(known_answers):
    respaced = NoiseSchedule.linear(1000, 1e-4, 0.02).respaced(range(0, 1000, 100))
    expected = known_answers["linear_1000_respaced_every_100"]["betas"]
    assert respaced.betas.tolist() == pytest.approx(expected, rel=1e-9)


def test_the_sigmoid_schedule_is_jabris_formula():
    def sigmoid(x):
        return 1 / (1 + math.exp(-x))

    start, end, tau, steps = -2.0, 2.5, 0.7, 50
    s = NoiseSchedule.sigmoid(steps, start, end, tau)
    for t in (0, 20, 48):
        u = (t + 1) / steps
        low, high = sigmoid(start / tau), sigmoid(end / tau)
        expected = (high - sigmoid((u * (end - start) + start) / tau)) / (high - low)
        assert s.alphas_cumprod[t].item() == pytest.approx(expected, rel=1e-12)


# Invariants --------------------------------------------------------------------------------------


@given(makers, timesteps)
@example(NoiseSchedule.linear, 1)
@example(NoiseSchedule.linear, 2000)
@example(NoiseSchedule.cosine, 1)
@example(NoiseSchedule.cosine, 2000)
@example(NoiseSchedule.sigmoid, 1)
@example(NoiseSchedule.sigmoid, 2000)
def test_any_schedule_is_consistent(make, total):
    s = quiet(make, total)
    assert s.timesteps == total
    for name in FLOATS:
        values = getattr(s, name)
        assert values.dtype == torch.float64, name
        assert values.shape == (total,), name
        assert values.isfinite().all(), name
    assert (s.betas > 0).all()
    assert (s.betas < 1).all()
    assert (s.alphas_cumprod > 0).all()
    assert (s.alphas_cumprod[:1] < 1).all()
    assert (s.alphas_cumprod[1:] < s.alphas_cumprod[:-1]).all()
    assert s.network_timesteps.tolist() == list(range(total))

    close(s.alphas, 1 - s.betas)
    torch.testing.assert_close(s.alphas_cumprod, s.alphas.cumprod(0), rtol=1e-11, atol=0)
    assert s.alphas_cumprod_prev[0] == 1
    assert torch.equal(s.alphas_cumprod_prev[1:], s.alphas_cumprod[:-1])
    close(s.sqrt_alphas_cumprod**2, s.alphas_cumprod)
    close(s.sqrt_one_minus_alphas_cumprod**2, 1 - s.alphas_cumprod)
    close(s.log_snr, s.snr.log(), 1e-10)
    close(s.snr * (1 - s.alphas_cumprod), s.alphas_cumprod, 1e-10)


@given(makers, timesteps)
@example(NoiseSchedule.linear, 1)
@example(NoiseSchedule.cosine, 2000)
def test_the_posterior_agrees_with_the_marginals(make, total):
    """Averaged over q(x_t | x_0), q(x_{t-1} | x_t, x_0) must be q(x_{t-1} | x_0)."""
    s = quiet(make, total)
    one_minus = s.sqrt_one_minus_alphas_cumprod**2
    mean = s.posterior_mean_coef_x_start + s.posterior_mean_coef_x_t * s.alphas_cumprod.sqrt()
    close(mean, s.alphas_cumprod_prev.sqrt())
    variance = s.posterior_mean_coef_x_t**2 * one_minus + s.posterior_variance
    close(variance, 1 - s.alphas_cumprod_prev)
    assert s.posterior_variance[0] == 0
    assert s.posterior_mean_coef_x_t[0] == 0
    assert s.posterior_mean_coef_x_start[0].item() == pytest.approx(1, abs=1e-15)
    assert (s.posterior_variance[1:] > 0).all()
    assert (s.posterior_variance <= s.betas * (1 + 1e-12)).all()


@given(makers, timesteps)
@example(NoiseSchedule.linear, 1)
@example(NoiseSchedule.linear, 2)
@example(NoiseSchedule.cosine, 2000)
def test_the_weights_of_the_bound_are_eq_12_for_either_variance(make, total):
    s = quiet(make, total)
    for variance, weight in (
        (s.posterior_variance_clipped, s.bound_weight_posterior),
        (s.betas, s.bound_weight_beta),
    ):
        expected = s.betas**2 / (2 * variance * s.alphas * s.one_minus_alphas_cumprod)
        torch.testing.assert_close(weight, expected, rtol=1e-9, atol=0)


@given(makers, timesteps)
@example(NoiseSchedule.linear, 1)
def test_only_the_zero_of_the_posterior_variance_is_clipped(make, total):
    s = quiet(make, total)
    assert torch.equal(s.posterior_variance_clipped[1:], s.posterior_variance[1:])
    first = s.posterior_variance[1] if total > 1 else s.betas[0]
    assert s.posterior_variance_clipped[0] == first
    close(s.log_posterior_variance_clipped.exp(), s.posterior_variance_clipped)
    close(s.log_betas.exp(), s.betas)
    close(s.one_minus_alphas_cumprod, 1 - s.alphas_cumprod)


def test_one_minus_alphas_cumprod_keeps_its_precision_where_little_noise_is():
    s = quiet(NoiseSchedule.from_betas, [1e-18, 1e-17])
    assert (s.sqrt_one_minus_alphas_cumprod**2).tolist() == pytest.approx(
        [1e-18, 1.1e-17], rel=1e-14, abs=0
    )
    assert s.posterior_variance[1].item() == pytest.approx(1e-17 / 11, rel=1e-14)


# Makers ------------------------------------------------------------------------------------------


@given(st.integers(21, 2000))
def test_linear_scales_its_defaults_by_1000_over_t(total):
    s = NoiseSchedule.linear(total)
    assert s.betas[0].item() == pytest.approx(0.1 / total, rel=1e-12)
    assert s.betas[-1].item() == pytest.approx(20 / total, rel=1e-12)
    gaps = s.betas.diff()
    torch.testing.assert_close(gaps, gaps.mean().expand(total - 1), rtol=1e-9, atol=1e-14)


@pytest.mark.parametrize("total", [30, 100, 4000])
def test_linear_without_numbers_ends_in_noise_for_any_t(total, recwarn):
    assert NoiseSchedule.linear(total).alphas_cumprod[-1] < 1e-4
    assert not recwarn.list


def test_linear_keeps_what_it_is_given():
    s = quiet(NoiseSchedule.linear, 100, beta_start=0.001)
    assert (s.betas[0].item(), s.betas[-1].item()) == pytest.approx((0.001, 0.2), rel=1e-14)
    s = quiet(NoiseSchedule.linear, 100, beta_end=0.3)
    assert (s.betas[0].item(), s.betas[-1].item()) == pytest.approx((0.001, 0.3), rel=1e-14)
    s = quiet(NoiseSchedule.linear, 100, 1e-4, 0.02)
    assert (s.betas[0].item(), s.betas[-1].item()) == pytest.approx((1e-4, 0.02), rel=1e-14)


def test_so_few_linear_steps_that_beta_would_pass_one_are_capped_with_a_warning():
    with pytest.warns(ScheduleWarning, match="capped at 0.999"):
        s = NoiseSchedule.linear(10)
    assert s.betas.max() == 0.999


@given(timesteps)
def test_a_function_that_is_the_cosine_gives_the_cosine_schedule(total):
    def cosine(u):
        return math.cos((float(u) + 0.008) / 1.008 * math.pi / 2) ** 2

    function = quiet(NoiseSchedule.from_alphas_cumprod, cosine, total)
    close(function.betas, quiet(NoiseSchedule.cosine, total).betas)


def test_a_function_is_divided_by_its_value_at_the_clean_image():
    whole = NoiseSchedule.from_alphas_cumprod(lambda u: (1 - u) ** 2, 20)
    half = NoiseSchedule.from_alphas_cumprod(lambda u: 0.5 * (1 - u) ** 2, 20)
    close(half.betas, whole.betas)
    assert whole.alphas_cumprod[0].item() == pytest.approx(0.95**2, rel=1e-12)


def test_max_beta_caps_the_end_of_a_function():
    s = quiet(NoiseSchedule.cosine, 100, max_beta=0.5)
    assert s.betas.max() == 0.5
    assert s.betas[0] == NoiseSchedule.cosine(100).betas[0]


@given(
    st.floats(-6, 5),
    st.floats(0.01, 8),
    st.floats(0.05, 20),
    st.integers(1, 60),
)
@example(-3.0, 6.0, 0.7, 10)
@example(-3.0, 6.0, 0.9, 10)
@example(-0.1, 0.4, 1.0, 10)
def test_a_sigmoid_of_any_slope_is_a_schedule(start, width, tau, total):
    assume((start + width / total) / tau > -30)  # flatter than float64 can tell from 1 is refused
    s = quiet(NoiseSchedule.sigmoid, total, start, start + width, tau)
    assert (s.alphas_cumprod[1:] < s.alphas_cumprod[:-1]).all()
    assert s.betas[-1] == 0.999


rates = st.lists(st.floats(1e-6, 0.9), min_size=1, max_size=50)


@given(rates)
def test_betas_and_alphas_cumprod_are_two_ways_to_say_the_same(betas):
    s = quiet(NoiseSchedule.from_betas, betas)
    assert s.betas.tolist() == betas
    again = quiet(NoiseSchedule.from_alphas_cumprod, s.alphas_cumprod)
    torch.testing.assert_close(again.alphas_cumprod, s.alphas_cumprod, rtol=1e-14, atol=0)
    torch.testing.assert_close(again.betas, s.betas, rtol=1e-7, atol=0)


def test_a_sequence_of_alphas_cumprod_is_kept_even_where_beta_rounds_to_one():
    values = [0.5, 1e-20, 1e-60]
    s = NoiseSchedule.from_alphas_cumprod(values)
    assert s.alphas_cumprod.tolist() == pytest.approx(values, rel=1e-13, abs=0)
    assert s.alphas[1].item() == pytest.approx(2e-20, rel=1e-13, abs=0)
    assert (s.betas < 1).all()


def test_the_first_value_of_a_sequence_is_the_first_timesteps():
    s = quiet(NoiseSchedule.from_alphas_cumprod, [0.9, 0.5])
    assert s.alphas_cumprod.tolist() == pytest.approx([0.9, 0.5], rel=1e-15)
    assert s.betas.tolist() == pytest.approx([0.1, 4 / 9], rel=1e-14)


def test_a_schedule_does_not_share_memory_with_its_betas():
    betas = torch.full((5,), 0.9, dtype=torch.float64)
    s = NoiseSchedule.from_betas(betas)
    betas.zero_()
    assert (s.betas == 0.9).all()


# Respacing ---------------------------------------------------------------------------------------


@st.composite
def schedules_with_kept(draw):
    total = draw(st.integers(1, 300))
    kept = draw(st.sets(st.integers(0, total - 1), min_size=1).map(sorted))
    return quiet(draw(makers), total), kept


@given(schedules_with_kept())
def test_a_respaced_schedule_has_the_same_alphas_cumprod_where_it_stands(case):
    s, kept = case
    respaced = s.respaced(kept)
    assert respaced.timesteps == len(kept)
    assert respaced.network_timesteps.tolist() == kept
    for name in ("alphas_cumprod", "log_snr", "sqrt_one_minus_alphas_cumprod"):
        assert torch.equal(getattr(respaced, name), getattr(s, name)[kept]), name
    close((1 - respaced.betas).cumprod(0), s.alphas_cumprod[kept])


@given(makers, st.integers(1, 1000))
def test_keeping_every_timestep_changes_nothing(make, total):
    s = quiet(make, total)
    same = s.respaced(range(total))
    for name in FLOATS:
        torch.testing.assert_close(getattr(same, name), getattr(s, name), rtol=1e-12, atol=1e-12)


@given(schedules_with_kept(), st.data())
def test_respacing_twice_is_respacing_once(case, data):
    s, kept = case
    again = data.draw(st.sets(st.integers(0, len(kept) - 1), min_size=1).map(sorted))
    twice = s.respaced(kept).respaced(again)
    once = s.respaced([kept[i] for i in again])
    assert torch.equal(twice.network_timesteps, once.network_timesteps)
    for name in FLOATS:
        assert torch.equal(getattr(twice, name), getattr(once, name)), name


def test_a_schedule_that_ends_in_less_signal_than_float64_resolves_can_be_respaced_to_its_end():
    s = NoiseSchedule.linear(4000, 1e-4, 0.02)
    last = s.respaced([3999])
    assert s.alphas_cumprod[-1] < 1e-17
    assert torch.equal(last.alphas_cumprod, s.alphas_cumprod[-1:])
    assert last.betas[0] < 1


# Between timesteps -------------------------------------------------------------------------------


@given(makers, st.integers(2, 1000), st.data())
def test_at_its_timesteps_the_log_snr_between_is_the_log_snr(make, total, data):
    s = quiet(make, total)
    t = data.draw(st.integers(0, total - 1))
    value, slope = s.log_snr_between(torch.tensor([float(t)], dtype=torch.float64))
    close(value, s.log_snr[t : t + 1], 1e-11)
    assert slope.shape == (1,)


@given(makers, st.integers(2, 1000))
@example(NoiseSchedule.sigmoid, 1000)
@example(NoiseSchedule.cosine, 1000)
def test_between_timesteps_the_log_snr_falls_and_its_slope_is_its_derivative(make, total):
    s = quiet(make, total)
    t = torch.linspace(0, total - 1, 2003, dtype=torch.float64)
    value, slope = s.log_snr_between(t)
    assert (value.diff() < 0).all()
    assert (slope <= 0).all()
    step, inside = 1e-5, t[1:-1]
    ahead, behind = s.log_snr_between(inside + step)[0], s.log_snr_between(inside - step)[0]
    torch.testing.assert_close((ahead - behind) / (2 * step), slope[1:-1], rtol=1e-3, atol=1e-6)


def test_between_the_timesteps_of_a_smooth_schedule_is_the_function_it_was_made_from():
    s = NoiseSchedule.cosine(1000)
    for t in (0.5, 3.25, 500.5, 900.75):
        u = (torch.tensor(t, dtype=torch.float64) + 1) / 1000
        at, start = (math.cos((v + 0.008) / 1.008 * math.pi / 2) ** 2 for v in (u, 0.0))
        signal = at / start
        value, _ = s.log_snr_between(torch.tensor(t, dtype=torch.float64))
        # The first two are next to where log SNR is infinite, and bends the most.
        tolerance = 0.02 if t < 10 else 1e-7
        assert value.item() == pytest.approx(math.log(signal / (1 - signal)), abs=tolerance)


def test_one_timestep_has_nothing_between():
    with pytest.raises(InkdropError, match="nothing between its timesteps"):
        NoiseSchedule.from_betas([0.9995]).log_snr_between(torch.tensor(0.0))


def test_two_timesteps_have_a_straight_line_between():
    s = NoiseSchedule.from_betas([0.5, 0.999])
    value, slope = s.log_snr_between(torch.tensor([0.25], dtype=torch.float64))
    close(value, 0.75 * s.log_snr[:1] + 0.25 * s.log_snr[1:])
    close(slope, s.log_snr.diff())


# Lookup ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
def test_lookup_casts_once_and_broadcasts(dtype):
    s = NoiseSchedule.linear()
    like = torch.zeros(3, 1, 2, 2, dtype=dtype)
    found = s.lookup("sqrt_alphas_cumprod", torch.tensor([0, 999, 500]), like)
    assert found.shape == (3, 1, 1, 1)
    assert found.dtype == dtype
    assert torch.equal(found.flatten(), s.sqrt_alphas_cumprod[[0, 999, 500]].to(dtype))


def test_images_that_are_still_integers_are_an_error():
    pixels = torch.zeros(2, 4, dtype=torch.uint8)
    with pytest.raises(InkdropError, match=r"floating point.*uint8"):
        NoiseSchedule.linear().lookup("sqrt_alphas_cumprod", torch.tensor([0, 1]), pixels)


# Warnings and errors -----------------------------------------------------------------------------


def test_a_schedule_that_leaves_signal_says_so(known_answers):
    with pytest.warns(ScheduleWarning, match=r"last alphas_cumprod is 0\.0481.*pure noise"):
        s = NoiseSchedule.linear(300, 1e-4, 0.02)
    expected = known_answers["linear_300"]["alphas_cumprod_last"]
    assert s.alphas_cumprod[-1].item() == pytest.approx(expected, rel=1e-9)
    with pytest.warns(ScheduleWarning, match="pure noise"):
        NoiseSchedule.from_betas(s.betas)
    with pytest.warns(ScheduleWarning, match="pure noise"):
        NoiseSchedule.from_alphas_cumprod(s.alphas_cumprod)
    with pytest.warns(ScheduleWarning, match="pure noise"):
        NoiseSchedule.from_alphas_cumprod(lambda u: 1 - 0.9 * u, 10)


def test_the_usual_schedules_give_no_warning(recwarn):
    NoiseSchedule.linear()
    NoiseSchedule.linear(1000, 1e-4, 0.02)
    NoiseSchedule.linear(300)
    NoiseSchedule.cosine()
    NoiseSchedule.sigmoid()
    NoiseSchedule.linear().respaced([0, 10])
    assert not recwarn.list


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: NoiseSchedule.from_betas([0.1, 0.2, 1.0]), r"betas\[2\] is 1.0"),
        (lambda: NoiseSchedule.from_betas([0.1, 0.0, 1.0]), r"betas\[1\] is 0.0"),
        (lambda: NoiseSchedule.from_betas([-0.1]), r"betas\[0\] is -0.1"),
        (lambda: NoiseSchedule.from_betas([0.1, math.nan]), r"betas\[1\] is nan"),
        (lambda: NoiseSchedule.from_betas([]), r"shape \(0,\)"),
        (lambda: NoiseSchedule.from_betas([[0.1]]), r"shape \(1, 1\)"),
        (lambda: NoiseSchedule.from_betas(0.1), r"shape \(\)"),
        (
            lambda: NoiseSchedule.from_alphas_cumprod([0.9, 0.5, 0.5]),
            r"alphas_cumprod\[2\] is 0.5 after 0.5",
        ),
        (
            lambda: NoiseSchedule.from_alphas_cumprod([1.0, 0.5]),
            r"alphas_cumprod\[0\] is 1.0 after 1.0",
        ),
        (lambda: NoiseSchedule.from_alphas_cumprod([0.5, 0.0]), r"alphas_cumprod\[1\] is 0.0"),
        (lambda: NoiseSchedule.from_alphas_cumprod([]), r"shape \(0,\)"),
        (lambda: NoiseSchedule.from_alphas_cumprod([0.5, 0.1], 3), "timesteps=3 .* 2 values"),
        (lambda: NoiseSchedule.from_alphas_cumprod(lambda u: 1 - u), "needs timesteps=T"),
        (lambda: NoiseSchedule.from_alphas_cumprod(lambda u: u, 10), r"alphas_cumprod\(0\)"),
        (lambda: NoiseSchedule.from_alphas_cumprod(lambda u: 1 + u, 10), "timestep 0 it goes from"),
        (
            lambda: NoiseSchedule.from_alphas_cumprod(lambda u: 1 - 2 * u, 10),
            r"at timestep 5 it goes from 0 to -0\.2",
        ),
        (lambda: NoiseSchedule.cosine(10, max_beta=1.0), "max_beta must .* 1.0"),
        (lambda: NoiseSchedule.cosine(10, s=-0.1), "s must be at least 0, got -0.1"),
        (lambda: NoiseSchedule.sigmoid(10, 3, -3), "start=3, end=-3"),
        (lambda: NoiseSchedule.sigmoid(10, tau=0), "tau=0"),
        (lambda: NoiseSchedule.linear(10, beta_start=0.0), "beta_start must .* got 0.0"),
        (lambda: NoiseSchedule.linear(10, beta_end=1.0), "beta_end must .* got 1.0"),
        (lambda: NoiseSchedule.linear().respaced([]), "empty"),
        (lambda: NoiseSchedule.linear().respaced([0, 5, 5]), "rise, but index 2 goes from 5 to 5"),
        (lambda: NoiseSchedule.linear().respaced([5, 3]), "rise, but index 1 goes from 5 to 3"),
        (lambda: NoiseSchedule.linear().respaced([5, 1000]), "1000 at index 1 is outside 0 … 999"),
        (lambda: NoiseSchedule.linear().respaced([-1, 3]), "-1 at index 0 is outside 0 … 999"),
        (lambda: NoiseSchedule.linear().respaced([1, 3.5]), "whole numbers, but index 1 is 3.5"),
    ],
)
def test_a_mistake_is_named_in_one_line(make, message):
    with pytest.raises(InkdropError, match=message) as error:
        make()
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("make", [NoiseSchedule.linear, NoiseSchedule.cosine])
@pytest.mark.parametrize("total", [0, -3, 2.5, 10.0, math.inf, math.nan, "10"])
def test_timesteps_must_be_a_whole_number_of_at_least_one(make, total):
    with pytest.raises(InkdropError, match="timesteps must be a whole number of at least 1, got"):
        make(total)
