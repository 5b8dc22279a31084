"""The likelihood, against the objectives it is made of and data whose density is known."""

import math
from dataclasses import fields
from typing import NamedTuple

import numpy as np
import pytest
import torch
from torch import nn

from inkdrop.data.pixels import to_float
from inkdrop.diffusion.denoiser import Denoiser
from inkdrop.diffusion.likelihood import bits_per_dim, ode_likelihood
from inkdrop.diffusion.objectives import prior_term, simple, variational_bound
from inkdrop.diffusion.oracle import GaussianMixture
from inkdrop.diffusion.schedule import NoiseSchedule
from inkdrop.errors import InkdropError
from inkdrop.randomness import image_noise

LN2 = math.log(2)
SCHEDULE = NoiseSchedule.cosine(20)
MIXTURE = GaussianMixture(
    means=[[-0.8, 0.1], [0.5, 0.6], [0.4, -0.7]],
    covariances=[[[0.02, 0.01], [0.01, 0.05]], [[0.2, -0.1], [-0.1, 0.1]], [[0.01, 0], [0, 0.3]]],
    weights=[0.5, 0.3, 0.2],
)
POINTS = MIXTURE.sample(40, seed=4)


class Parts(NamedTuple):
    """A condition of several tensors."""

    one: torch.Tensor
    none: None
    other: torch.Tensor


class Network(nn.Module):
    """Some function of x, t and the condition, with or without a variance; never float32."""

    def __init__(self, learned=False):
        super().__init__()
        self.learned = learned
        self.drop = nn.Dropout(0.5)
        self.largest = 0

    def forward(self, x, t, condition):
        self.largest = max(self.largest, len(x))
        told = t.reshape(-1, *[1] * (x.ndim - 1))
        answer = self.drop(torch.sin(2 * x + 0.3 * told) + 0.4 * x)
        if isinstance(condition, Parts):
            condition = condition.one + condition.other
        if condition is not None:
            answer = answer + condition.reshape(-1, *[1] * (x.ndim - 1))
        return torch.cat([answer, torch.cos(x)], dim=1) if self.learned else answer


def digits(n=30):
    from sklearn.datasets import load_digits

    images = load_digits().images[:n, None]
    return to_float(torch.from_numpy((images * 15.9375).astype(np.uint8)))


def same(one, two, tolerance=1e-12):
    for field in fields(one):
        torch.testing.assert_close(
            torch.as_tensor(getattr(one, field.name)),
            torch.as_tensor(getattr(two, field.name)),
            rtol=tolerance,
            atol=1e-14,
            equal_nan=True,
        )


# The bound, term by term --------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["noise", "velocity"])
@pytest.mark.parametrize("variance", ["posterior", "beta", "learned", None])
@pytest.mark.parametrize("data", ["points", "images"])
@pytest.mark.parametrize("clip", [None, "range", "auto"])
def test_the_terms_are_those_of_the_objectives_and_sum_to_the_total(kind, variance, data, clip):
    x = POINTS if data == "points" else digits().double()
    learned = variance in ("learned", None)
    denoiser = Denoiser(Network(learned), SCHEDULE, kind, learned_variance=learned)
    found = bits_per_dim(denoiser, x, variance=variance, clip=clip, seed=3)

    denoiser.network.eval()
    shape, total = tuple(x.shape[1:]), torch.zeros(len(x), dtype=torch.float64)
    for t in range(20):
        noise = image_noise(shape, 0, len(x), 3, "bound", t).double()
        at = torch.full((len(x),), t)
        terms = variational_bound(denoiser, x, at, noise, variance=variance, clip=clip) / LN2
        term = found.per_timestep[t].item() if t else found.decoder
        assert term == pytest.approx(terms.mean().item(), rel=1e-12)
        total += terms
        if kind == "noise":
            error = simple(denoiser, x, at, noise).mean().item()
            assert found.noise_mse[t].item() == pytest.approx(error, rel=1e-9)
    prior = prior_term(SCHEDULE, x) / LN2
    total += prior
    assert found.prior == pytest.approx(prior.mean().item(), rel=1e-12)
    assert found.total == pytest.approx(total.mean().item(), rel=1e-12)
    assert found.total == pytest.approx(
        found.prior + found.per_timestep.sum().item() + found.decoder, rel=1e-12
    )
    assert found.standard_error == pytest.approx(total.std().item() / len(x) ** 0.5, rel=1e-12)
    assert found.examples == len(x)
    assert (found.asked == len(x)).all()
    assert found.per_timestep[0] == 0


@pytest.mark.parametrize("terms", [None, 3])
def test_the_figure_does_not_depend_on_the_batches_the_images_came_in(terms):
    denoiser, x = Denoiser(Network(), SCHEDULE), digits(19)
    condition = torch.linspace(-1, 1, 19)
    options = {"terms": terms, "seed": 5}
    whole = bits_per_dim(denoiser, x, condition, **options)
    for size in (1, 7, 16, 1000):
        denoiser.network.largest = 0
        same(bits_per_dim(denoiser, x, condition, batch_size=size, **options), whole)
        assert denoiser.network.largest <= size

    def batches():
        """No length, read once; of any sizes, even none."""
        for first, last in ((0, 3), (3, 3), (3, 9), (9, 19)):
            yield x[first:last], condition[first:last]

    same(bits_per_dim(denoiser, batches(), batch_size=10, **options), whole)
    parts = Parts(condition / 2, None, condition / 2)
    same(bits_per_dim(denoiser, x, parts, batch_size=7, **options), whole)
    assert bits_per_dim(denoiser, x, **options).total != whole.total


def test_no_batch_is_asked_for_before_the_one_before_it_is_done():
    done, asked = [], []

    def batches():
        for i in range(4):
            asked.append(len(done))
            yield POINTS[10 * i : 10 * i + 10], None

    denoiser = Denoiser(Network(), SCHEDULE)
    bits_per_dim(denoiser, batches(), batch_size=200, progress=done.append)
    assert asked == [0, 1, 2, 3]
    assert done == [200] * 4


def test_the_network_is_evaluated_and_left_as_it_was():
    denoiser = Denoiser(Network(), SCHEDULE)
    assert denoiser.network.training
    one, two = (bits_per_dim(denoiser, POINTS).total for _ in range(2))
    assert one == two
    assert denoiser.network.training
    assert denoiser.network.drop.training
    assert one != bits_per_dim(denoiser, POINTS, seed=1).total


def test_some_of_the_timesteps_give_an_unbiased_figure():
    denoiser, seeds = Denoiser(Network(), NoiseSchedule.linear(30)), range(60)
    x = MIXTURE.sample(100, seed=9)
    every = np.array([bits_per_dim(denoiser, x, seed=s, batch_size=3000).total for s in seeds])
    few = [bits_per_dim(denoiser, x, seed=s, batch_size=400, terms=3) for s in seeds]
    totals = np.array([found.total for found in few])
    assert abs(totals.mean() - every.mean()) < 4 * ((totals.var() + every.var()) / 60) ** 0.5
    for found in few:
        assert found.asked[0] == 100
        assert found.asked.sum() == 400
        parts = found.prior + found.per_timestep.sum().item() + found.decoder
        assert found.total == pytest.approx(parts, rel=1e-12)


def test_the_standard_error_is_honest():
    """z-scores over 150 sets of examples: mean 0, variance 1."""
    denoiser = Denoiser(Network(), NoiseSchedule.linear(30))
    whole = bits_per_dim(
        denoiser, MIXTURE.sample(100_000, seed=1), terms=3, seed=1, batch_size=200_000
    )
    z = []
    for seed in range(150):
        x = MIXTURE.sample(500, seed, "honest")
        found = bits_per_dim(denoiser, x, terms=3, seed=seed, batch_size=2000)
        z.append((found.total - whole.total) / found.standard_error)
    assert abs(np.mean(z)) < 4 / 150**0.5
    assert 0.8 < np.std(z) < 1.2


def test_each_kl_term_is_asked_as_often_as_the_others():
    x = torch.zeros(4000, 1)
    found = bits_per_dim(Denoiser(Network(), SCHEDULE), x, terms=4, batch_size=20_000)
    expected = 4 * 4000 / 19
    assert found.asked[0] == 4000
    assert ((found.asked[1:] - expected).abs() < 5 * expected**0.5).all()
    one = bits_per_dim(Denoiser(Network(), SCHEDULE), x[:1], terms=4)
    assert one.noise_mse.isnan().sum() == 15
    assert math.isnan(one.standard_error)


@pytest.mark.parametrize("total", [1, 2])
def test_a_schedule_of_one_or_two_timesteps_has_a_likelihood(total):
    schedule = NoiseSchedule.from_betas([0.9995] * total)
    found = bits_per_dim(Denoiser(Network(), schedule), POINTS)
    assert math.isfinite(found.total)
    assert found.asked.tolist() == [40] * total


# Data whose density is known ----------------------------------------------------------------------


@pytest.mark.parametrize("variance", ["posterior", "beta", "learned"])
def test_the_perfect_denoisers_bound_is_the_least_there_is_and_above_the_entropy(variance):
    """What it comes to exactly, as timesteps are added, is in test_best_loss."""
    schedule = NoiseSchedule.linear(25)
    x, other = MIXTURE.sample(10_000, seed=1), MIXTURE.sample(10_000, seed=2)
    denoiser = MIXTURE.denoiser(schedule, learned_variance=True)
    found = bits_per_dim(denoiser, x, variance=variance, batch_size=50_000)
    best = MIXTURE.best_loss(schedule, "variational_bound", variance=variance, n=10_000)
    least = best.value.sum().item() / LN2 + prior_term(schedule, other).mean().item() / LN2
    error = best.standard_error.sum().item() / LN2 + found.standard_error
    assert abs(found.total - least) < 4 * error
    entropy = -MIXTURE.log_density(other).mean().item() / (2 * LN2)
    assert found.total > entropy


def test_pixels_of_two_levels_by_a_fair_coin_are_worth_just_over_a_bit():
    levels = torch.tensor([[[[-1 + 80 / 127.5]]], [[[-1 + 180 / 127.5]]]], dtype=torch.float64)
    coin = GaussianMixture(levels, torch.full((2, 1, 1), 1e-7), [0.5, 0.5])
    x = levels[torch.arange(2000) % 2]
    denoiser = coin.denoiser(NoiseSchedule.linear(200), "x_start", learned_variance=True)
    found = bits_per_dim(denoiser, x, batch_size=20_000)
    assert abs(found.total - 1.01) < 4 * found.standard_error < 0.06
    assert 0 <= found.decoder < 1e-6


def test_real_images_cost_more_than_nothing_and_less_than_their_eight_bits():
    from sklearn.datasets import load_digits

    pixels = load_digits().images
    assert pixels.max() == 16
    x = digits(1797)
    assert x.unique().numel() == 17
    gmm = GaussianMixture.fit(x[:1500], 5, regularisation=0.01)
    denoiser = gmm.denoiser(NoiseSchedule.cosine(1000), learned_variance=True)
    found = bits_per_dim(denoiser, x[1500:1600], terms=20, batch_size=2100)
    assert 0 < found.total < 8
    assert found.decoder > 0
    assert found.prior > 0
    assert (found.per_timestep >= 0).all()


# The probability-flow ODE -------------------------------------------------------------------------


def some(size, seed=0):
    g = torch.Generator().manual_seed(seed)
    root = torch.randn(3, size, size, dtype=torch.float64, generator=g) / math.sqrt(size)
    covariances = 0.2 * root @ root.mT + 0.03 * torch.eye(size, dtype=torch.float64)
    means = torch.randn(3, size, dtype=torch.float64, generator=g)
    return GaussianMixture(means, covariances, [0.5, 0.3, 0.2])


@pytest.mark.parametrize("size", [1, 2, 5])
@pytest.mark.parametrize("kind", ["noise", "velocity"])
def test_the_odes_density_is_the_mixtures_at_the_first_noise_level(size, kind):
    schedule = NoiseSchedule.linear(1000, 1e-4, 0.04)  # whose end is noise to 10 digits
    gmm = some(size)
    x = gmm.marginal(schedule, 0).sample(20)
    found = ode_likelihood(gmm.denoiser(schedule, kind), x, divergence="exact", tolerance=1e-7)
    expected = gmm.marginal(schedule, 0).log_density(x)
    assert ((found.log_density - expected) / size).abs().max() < 1e-4
    bits = -expected / (size * LN2)
    assert found.bits_per_dim == pytest.approx(bits.mean().item(), abs=1e-4)
    assert found.standard_error == pytest.approx(bits.std().item() / 20**0.5, rel=1e-3)


def test_under_the_papers_schedule_the_mean_density_is_the_mixtures_too():
    schedule = NoiseSchedule.linear()
    x = MIXTURE.marginal(schedule, 0).sample(500)
    found = ode_likelihood(MIXTURE.denoiser(schedule), x, divergence="exact", batch_size=500)
    expected = MIXTURE.marginal(schedule, 0).log_density(x)
    assert abs(found.log_density.mean() - expected.mean()) / 2 < 3e-4
    assert found.evaluations % 500 == 0


def test_hutchinsons_probes_are_unbiased():
    """One example many times over: each copy has probes of its own."""
    denoiser = some(5).denoiser(NoiseSchedule.cosine(50))
    one = some(5).sample(1, seed=2)
    exact = ode_likelihood(denoiser, one, divergence="exact").log_density
    found = ode_likelihood(denoiser, one.repeat(500, 1), batch_size=500).log_density
    error = found.std() / 500**0.5
    assert error > 0
    assert (found.mean() - exact).abs() < 4 * error
    more = ode_likelihood(denoiser, one.repeat(200, 1), probes=4).log_density
    assert 0.35 < more.std() / found.std() < 0.7  # half, for four probes


def test_in_one_dimension_a_probe_sees_all_there_is():
    denoiser, x = some(1).denoiser(NoiseSchedule.cosine(50)), some(1).sample(5)
    exact = ode_likelihood(denoiser, x, divergence="exact")
    probed = ode_likelihood(denoiser, x)
    torch.testing.assert_close(probed.log_density, exact.log_density, rtol=1e-9, atol=1e-9)


def test_the_odes_figure_for_pixels_is_that_of_a_density_in_levels():
    """Of images as broad as a Gaussian a density in levels: H(x) + log₂ 127.5 bits."""
    gmm = GaussianMixture(torch.zeros(1, 1, 2, 2), 0.05 * torch.eye(4)[None], [1.0])
    schedule = NoiseSchedule.linear(1000, 1e-4, 0.04)
    pixels = (gmm.sample(400).clamp(-1, 1) * 127.5 + 127.5).round()
    x = pixels / 127.5 - 1
    found = ode_likelihood(gmm.denoiser(schedule), x, batch_size=400)
    entropy = math.log2(2 * math.pi * math.e * 0.05) / 2
    assert abs(found.bits_per_dim - entropy - math.log2(127.5)) < 4 * found.standard_error
    density = ode_likelihood(gmm.denoiser(schedule), x, batch_size=400, decoder="density")
    assert density.bits_per_dim == pytest.approx(found.bits_per_dim - math.log2(127.5), abs=1e-2)


def test_the_odes_figure_does_not_depend_on_what_came_before():
    denoiser = MIXTURE.denoiser(NoiseSchedule.cosine(50))
    whole = ode_likelihood(denoiser, POINTS[:20], tolerance=1e-6)
    parts = ode_likelihood(
        denoiser, iter([(POINTS[:7], None), (POINTS[7:20], None)]), tolerance=1e-6
    )
    # The solver takes its steps for a batch together: the same to its tolerance.
    torch.testing.assert_close(parts.log_density, whole.log_density, rtol=0, atol=1e-3)


def test_the_condition_reaches_the_odes_network():
    denoiser = Denoiser(Network(), SCHEDULE)
    condition = torch.tensor([0.0, 0.0, 1.0, 1.0])
    plain = ode_likelihood(denoiser, POINTS[:4], tolerance=1e-7).log_density
    told = ode_likelihood(denoiser, POINTS[:4], condition, tolerance=1e-7).log_density
    assert (plain - told)[:2].abs().max() < 1e-4
    assert (plain - told)[2:].abs().min() > 1e-2
    assert denoiser.network.training


# Mistakes -----------------------------------------------------------------------------------------


IMAGES = digits(2)


@pytest.mark.parametrize("likelihood", [bits_per_dim, ode_likelihood])
@pytest.mark.parametrize(
    ("images", "message"),
    [
        (IMAGES * 1.01, r"images in \[-1, 1\], got values in \[-1\.01"),
        (IMAGES * 127.5 + 127.5, r"got values in \[0, "),
        (
            IMAGES / 2 + 0.5,
            r"values between them and none below 0, as images in \[0, 1\] do; inkdrop.to_float",
        ),
        ((IMAGES * 127.5 + 127.5).byte(), "got torch.uint8; inkdrop.to_float"),
        (IMAGES[:, :, :4], r"of examples \(1, 8, 8\), but these are \(1, 4, 8\)"),
        (torch.where(IMAGES > 0, math.nan, IMAGES), "finite values, but these hold NaN"),
        (torch.where(IMAGES > 0, math.inf, IMAGES), "finite values, but these hold NaN"),
        (IMAGES[:0], "no images"),
        (iter([]), "no images"),
    ],
)
def test_images_that_are_none_are_an_error(likelihood, images, message):
    denoiser = Denoiser(Network(), SCHEDULE, shape=(1, 8, 8))
    with pytest.raises(InkdropError, match=message) as error:
        likelihood(denoiser, images)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_pixels_rounded_to_half_precision_are_still_on_their_levels(dtype):
    every = to_float(torch.arange(256).byte()).reshape(1, 1, 16, 16)
    bits_per_dim(Denoiser(Network(), SCHEDULE), every.to(dtype))


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda d: bits_per_dim(d, POINTS, variance="learned"), "a network that learns none"),
        (lambda d: bits_per_dim(d, POINTS, variance="bta"), "did you mean 'beta'"),
        (lambda d: bits_per_dim(d, POINTS, terms=20), "between 1 and 19.*got 20"),
        (lambda d: bits_per_dim(d, POINTS, terms=0), "at least 1, got 0"),
        (lambda d: bits_per_dim(d, POINTS, batch_size=0), "batch_size must .* got 0"),
        (lambda d: bits_per_dim(d, POINTS, decoder="pixel"), "did you mean 'pixels'"),
        (lambda d: bits_per_dim(d, POINTS, clip="rnge"), "did you mean 'range'"),
        (lambda d: bits_per_dim(d, POINTS, torch.zeros(3)), "condition holds 3, but there are 40"),
        (lambda d: bits_per_dim(d, [(POINTS, None)], torch.zeros(40)), "bring their condition"),
        (lambda d: ode_likelihood(d, POINTS, divergence="exat"), "did you mean 'exact'"),
        (lambda d: ode_likelihood(d, POINTS, tolerance=0.0), "tolerance must be above 0, got 0"),
        (lambda d: ode_likelihood(d, POINTS, probes=0), "probes must .* got 0"),
    ],
)
def test_a_mistake_is_named_in_one_line(call, message):
    with pytest.raises(InkdropError, match=message) as error:
        call(Denoiser(Network(), SCHEDULE))
    assert "\n" not in str(error.value)


def test_a_schedule_of_one_timestep_has_no_ode():
    schedule = NoiseSchedule.from_betas([0.9995])
    with pytest.raises(InkdropError, match="this schedule has only one"):
        ode_likelihood(Denoiser(Network(), schedule), POINTS)
