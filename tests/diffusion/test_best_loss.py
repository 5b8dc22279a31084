"""The least loss of any network: what the objectives give for the perfect one, and no less."""

import math

import pytest
import torch
from torch import nn

from inkdrop.diffusion import objectives
from inkdrop.diffusion.best_loss import least_loss
from inkdrop.diffusion.denoiser import Denoiser
from inkdrop.diffusion.oracle import GaussianMixture
from inkdrop.diffusion.prediction import PREDICTIONS
from inkdrop.diffusion.schedule import NoiseSchedule
from inkdrop.errors import InkdropError

SCHEDULE = NoiseSchedule.linear(100)
MIXTURE = GaussianMixture(
    means=[[-0.8, 0.1], [0.5, 0.6], [0.4, -0.7]],
    covariances=[[[0.02, 0.01], [0.01, 0.05]], [[0.2, -0.1], [-0.1, 0.1]], [[0.01, 0], [0, 0.3]]],
    weights=[0.5, 0.3, 0.2],
)
ONE = GaussianMixture([[0.3, -0.5]], [[[0.5, 0.3], [0.3, 0.4]]], [1.0])
TIMESTEPS = [0, 1, 20, 60, 99]
CASES = [
    *[("simple", {"prediction": kind}) for kind in PREDICTIONS],
    ("weighted_noise", {"variance": "posterior"}),
    ("weighted_noise", {"variance": "beta"}),
    ("min_snr", {}),
    ("min_snr", {"gamma": 0.3}),
    ("p2", {}),
    ("p2", {"gamma": 0.5, "k": 0.1}),
    ("variational_bound", {"variance": "posterior"}),
    ("variational_bound", {"variance": "beta"}),
    ("variational_bound", {"variance": "learned"}),
    *[("hybrid", {"prediction": kind}) for kind in PREDICTIONS],
    ("hybrid", {"bound_weight": 0.1}),
]
LEARNED = [case for case in CASES if case[0] == "hybrid" or "learned" in case[1].values()]


def drawn(gmm, t, n=20_000, seed=5):
    """(x_start, t, noise) with all n examples at one t."""
    noise = torch.Generator().manual_seed(seed)
    x_start = gmm.sample(n, seed)
    z = torch.randn(x_start.shape, dtype=torch.float64, generator=noise)
    return x_start, torch.full((n,), t), z


def losses(denoiser, objective, options, given):
    """What the objective itself gives, (B,)."""
    options = {name: value for name, value in options.items() if name != "prediction"}
    return getattr(objectives, objective)(denoiser, *given, **options)


def perfect(gmm, options, learned=True, schedule=SCHEDULE):
    return gmm.denoiser(schedule, options.get("prediction", "noise"), learned)


class Worse(nn.Module):
    """The perfect network with something added, to its prediction or its variance."""

    def __init__(self, network, add, to="prediction"):
        super().__init__()
        self.network, self.add, self.to = network, add, to

    def forward(self, x, t, condition):
        prediction, variance = self.network(x, t, condition).chunk(2, dim=1)
        if self.to == "prediction":
            return torch.cat([prediction + self.add(x), variance], dim=1)
        return torch.cat([prediction, variance + self.add(x)], dim=1)


@pytest.mark.parametrize(("objective", "options"), CASES)
def test_it_is_the_mean_loss_of_the_perfect_denoiser(objective, options):
    best = MIXTURE.best_loss(SCHEDULE, objective, t=TIMESTEPS, n=20_000, **options)
    assert best.timesteps.tolist() == TIMESTEPS
    denoiser = perfect(MIXTURE, options)
    for i, t in enumerate(TIMESTEPS):
        found = losses(denoiser, objective, options, drawn(MIXTURE, t))
        error = (found.var() / len(found) + best.standard_error[i] ** 2).sqrt()
        assert (found.mean() - best.value[i]).abs() < 4 * error


@pytest.mark.parametrize(("objective", "options"), CASES)
def test_no_denoiser_of_another_mean_does_better(objective, options):
    denoiser = perfect(MIXTURE, options)
    for t in (0, 1, 60):
        given = drawn(MIXTURE, t, 4000)
        least = losses(denoiser, objective, options, given)
        for add in (torch.ones_like, torch.neg, lambda x: torch.sin(3 * x)):
            # So much of it that a rise stands out of the noise, but no more.
            own = objectives.simple(denoiser, *given)
            for size in (0.3, -0.3):
                scale = size * own.mean().sqrt()
                network = Worse(denoiser.network, lambda x, f=add, s=scale: s * f(x))
                other = Denoiser(network, SCHEDULE, denoiser.prediction, learned_variance=True)
                rise = losses(other, objective, options, given) - least
                assert rise.mean() > 4 * rise.std() / math.sqrt(len(rise))


@pytest.mark.parametrize(("objective", "options"), LEARNED)
def test_no_denoiser_of_another_variance_does_better(objective, options):
    denoiser = perfect(MIXTURE, options)
    for t in (0, 1, 60):
        given = drawn(MIXTURE, t, 4000)
        span = SCHEDULE.log_betas[t] - SCHEDULE.log_posterior_variance_clipped[t]
        least = losses(denoiser, objective, options, given)
        for size in (-0.3, 0.3):  # in the logarithm of the variance
            network = Worse(
                denoiser.network, lambda x, s=size / span: torch.full_like(x, 2 * s), "variance"
            )
            other = Denoiser(network, SCHEDULE, denoiser.prediction, learned_variance=True)
            rise = losses(other, objective, options, given) - least
            assert rise.mean() > 4 * rise.std() / math.sqrt(len(rise))


def of_one_gaussian(objective, options, t, schedule=SCHEDULE):
    """The closed form, for one component, from Bayes' rule and calculus."""
    signal = (1 - schedule.betas[: t + 1]).prod()
    before = (1 - schedule.betas[:t]).prod()
    covariance = ONE.covariances[0]
    identity = torch.eye(2, dtype=torch.float64)
    left = torch.linalg.inv(torch.linalg.inv(covariance) + identity * signal / (1 - signal))
    x_start = left.diagonal()
    noise = (x_start * signal / (1 - signal)).mean()
    kind = options.get("prediction", "noise")
    own = {
        "noise": noise,
        "x_start": x_start.mean(),
        "velocity": x_start.mean() / (1 - signal),
        "score": noise / (1 - signal),
    }[kind]
    beta = schedule.betas[t]
    width = beta * (1 - before) / (1 - signal) if t else torch.tensor(0.0)
    first = schedule.betas[1] * schedule.betas[0] / (1 - (1 - schedule.betas[:2]).prod())
    c = before.sqrt() * beta / (1 - signal)

    def bound(variance):
        """At t = 0 -E log N(x_0; x̂_0, v), else the divergence of two Gaussians; best v first."""
        v = {
            "posterior": width if t else first,
            "beta": beta,
            "learned": width + c**2 * x_start,
        }[variance]
        if t == 0:
            return ((x_start / v + torch.log(2 * math.pi * v)) / 2).mean()
        return ((width / v - 1 - torch.log(width / v) + c**2 * x_start / v) / 2).mean()

    snr = signal / (1 - signal)
    if objective == "simple":
        return own
    if objective == "weighted_noise":
        v = beta if options["variance"] == "beta" else (width if t else first)
        return beta**2 / (2 * v * (1 - beta) * (1 - signal)) * noise
    if objective == "min_snr":
        return min(snr, options.get("gamma", 5.0)) * x_start.mean()
    if objective == "p2":
        return noise / (options.get("k", 1.0) + snr) ** options.get("gamma", 1.0)
    if objective == "variational_bound":
        return bound(options["variance"])
    return own + options.get("bound_weight", 0.001) * schedule.timesteps * bound("learned")


@pytest.mark.parametrize(("objective", "options"), CASES)
def test_for_one_gaussian_it_is_a_closed_form_and_has_no_error(objective, options):
    best = ONE.best_loss(SCHEDULE, objective, t=TIMESTEPS, n=50, **options)
    for i, t in enumerate(TIMESTEPS):
        expected = of_one_gaussian(objective, options, t).item()
        assert best.value[i].item() == pytest.approx(expected, rel=1e-9)
        assert best.standard_error[i].item() < 1e-10 * abs(expected)


@pytest.mark.parametrize("schedule", [NoiseSchedule.from_betas([0.9995] * n) for n in (1, 2)])
@pytest.mark.parametrize(("objective", "options"), CASES)
def test_a_schedule_of_one_or_two_timesteps_has_a_least_loss_too(schedule, objective, options):
    best = MIXTURE.best_loss(schedule, objective, n=20_000, **options)
    denoiser = perfect(MIXTURE, options, schedule=schedule)
    for t in range(schedule.timesteps):
        found = losses(denoiser, objective, options, drawn(MIXTURE, t))
        error = (found.var() / len(found) + best.standard_error[t] ** 2).sqrt()
        assert (found.mean() - best.value[t]).abs() < 4 * error


def test_the_least_bound_is_above_the_entropy_and_falls_to_it_as_timesteps_are_added():
    """Without a draw: every mean over x_t is an integral over a grid."""
    gmm = GaussianMixture([[-0.7], [0.5]], [[[0.01]], [[0.04]]], [0.4, 0.6])
    grid = torch.linspace(-6, 6, 1001, dtype=torch.float64)[:, None]

    def integral(density, values):
        return (density.exp() * values).sum().item() * 12 / 1000

    density = gmm.log_density(grid)
    entropy = -integral(density, density)
    second = gmm.weights @ (gmm.means**2 + gmm.covariances[:, 0])
    above = {"posterior": [], "beta": [], "learned": []}
    for total in (25, 100, 400, 1000):
        schedule = NoiseSchedule.linear(total)
        signal = schedule.alphas_cumprod[-1]
        prior = (signal * (second - 1) - torch.log1p(-signal)).item() / 2
        bounds = dict.fromkeys(above, prior)
        for t in range(total):
            spread = gmm.posterior(schedule, grid, t).covariance[:, 0]
            here = gmm.marginal(schedule, t).log_density(grid)
            for variance in above:
                losses = least_loss(schedule, "variational_bound", "noise", variance, t, spread)
                bounds[variance] += integral(here, losses)
        for variance, bound in bounds.items():
            above[variance].append(bound - entropy)
    for gaps in above.values():
        assert min(gaps) > 0
        assert gaps == sorted(gaps, reverse=True)
    for posterior, beta, learned in zip(*above.values(), strict=True):
        assert learned < min(posterior, beta)
    assert above["learned"][-1] < 1e-3
    assert above["beta"][-1] < 0.02
    assert above["posterior"][-1] > 0.3  # its decoder is half as wide as the noise that is left


def test_all_timesteps_are_asked_by_default_and_the_draws_are_named_by_the_seed():
    schedule = NoiseSchedule.cosine(10)
    every = MIXTURE.best_loss(schedule, n=100)
    assert every.timesteps.tolist() == list(range(10))
    some = MIXTURE.best_loss(schedule, n=100, t=torch.tensor([7, 2]))
    assert torch.equal(some.value, every.value[[7, 2]])
    assert torch.equal(some.standard_error, every.standard_error[[7, 2]])
    assert not torch.equal(MIXTURE.best_loss(schedule, n=100, seed=1).value, every.value)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"objective": "simpel"}, "did you mean 'simple'"),
        ({"objective": "min_snr", "gama": 3.0}, "min_snr has no parameter 'gama': it has gamma"),
        ({"objective": "simple", "gamma": 3.0}, "simple has no parameter 'gamma': it has none"),
        ({"objective": "weighted_noise", "variance": "learned"}, "choose from posterior, beta"),
        ({"objective": "variational_bound", "variance": "beat"}, "did you mean 'beta'"),
        ({"prediction": "epsilon"}, "unknown prediction 'epsilon'"),
        ({"t": [100]}, "t must lie in 0 … 99, got 100"),
        ({"objective": "min_snr", "gamma": 0.0}, "gamma must be above 0"),
    ],
)
def test_a_mistake_is_named_in_one_line(options, message):
    with pytest.raises(InkdropError, match=message) as error:
        MIXTURE.best_loss(SCHEDULE, n=10, **options)
    assert "\n" not in str(error.value)
