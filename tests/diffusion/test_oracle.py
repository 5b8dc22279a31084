"""The mixture's closed forms, against torch's distributions, quadrature and autograd."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.distributions import Categorical, MixtureSameFamily, MultivariateNormal
from torch.utils._python_dispatch import TorchDispatchMode

from inkdrop.diffusion.oracle import GaussianMixture
from inkdrop.diffusion.prediction import PREDICTIONS
from inkdrop.diffusion.schedule import NoiseSchedule
from inkdrop.errors import InkdropError

SCHEDULE = NoiseSchedule.linear()
SHAPES = [(1,), (2,), (5,), (2, 1, 2), (1, 3, 2)]


def draw(*shape, seed=0):
    return torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def mixture(shape=(2,), components=3, seed=0):
    """Some mixture with correlations, whose components overlap."""
    size = math.prod(shape)
    root = draw(components, size, size, seed=seed + 1) / math.sqrt(size)
    covariances = 0.2 * root @ root.mT + 0.02 * torch.eye(size, dtype=torch.float64)
    weights = draw(components, seed=seed + 2).exp()
    return GaussianMixture(
        draw(components, *shape, seed=seed), covariances, weights / weights.sum()
    )


def as_torch(gmm, alpha=1.0, variance=0.0):
    """The distribution of √α x + √variance z, x from the mixture, as torch builds it."""
    size = gmm.means.shape[1]
    identity = torch.eye(size, dtype=torch.float64)
    return MixtureSameFamily(
        Categorical(gmm.weights),
        MultivariateNormal(
            math.sqrt(alpha) * gmm.means, alpha * gmm.covariances + variance * identity
        ),
    )


def close(actual, expected, tolerance=1e-10):
    torch.testing.assert_close(actual, expected, rtol=tolerance, atol=tolerance)


# Density and score --------------------------------------------------------------------------------


@pytest.mark.parametrize("shape", SHAPES)
def test_the_log_density_is_torchs(shape):
    gmm, x = mixture(shape), 2 * draw(50, *shape, seed=7)
    close(gmm.log_density(x), as_torch(gmm).log_prob(x.flatten(1)))


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("t", [0, 300, 999])
def test_the_marginal_is_the_mixture_of_the_noisy_components(shape, t):
    gmm, x = mixture(shape), draw(50, *shape, seed=7)
    alpha = (1 - SCHEDULE.betas[: t + 1]).prod().item()
    marginal = gmm.marginal(SCHEDULE, t)
    assert marginal.shape == shape
    close(marginal.log_density(x), as_torch(gmm, alpha, 1 - alpha).log_prob(x.flatten(1)), 1e-9)


@pytest.mark.parametrize("shape", SHAPES)
def test_the_score_is_the_gradient_of_the_log_density(shape):
    gmm, x = mixture(shape), draw(50, *shape, seed=7).requires_grad_()
    (gradient,) = torch.autograd.grad(gmm.log_density(x).sum(), x)
    close(gmm.score(x.detach()), gradient)


def test_a_density_far_from_all_components_is_still_a_number():
    gmm, x = mixture(), torch.tensor([[1e6, -1e6]])
    assert gmm.log_density(x).item() < -1e9
    assert gmm.score(x).isfinite().all()
    estimate = gmm.denoiser(SCHEDULE, "x_start")(x, 0)
    assert estimate.x_start.isfinite().all()


def test_a_component_of_weight_zero_is_not_there():
    gmm = mixture()
    means = torch.cat([gmm.means, torch.zeros(1, 2)])
    covariances = torch.cat([gmm.covariances, torch.eye(2)[None]])
    more = GaussianMixture(means, covariances, torch.cat([gmm.weights, torch.zeros(1)]))
    x = draw(20, 2)
    close(more.log_density(x), gmm.log_density(x), 1e-14)
    close(more.score(x), gmm.score(x), 1e-14)
    close(more.posterior(SCHEDULE, x, 300).covariance, gmm.posterior(SCHEDULE, x, 300).covariance)
    close(more.denoiser(SCHEDULE)(x, 300).x_start, gmm.denoiser(SCHEDULE)(x, 300).x_start)
    assert (more.sample(500) - torch.zeros(2)).isfinite().all()


def test_a_component_may_be_nearly_flat():
    """One axis 10⁷ times narrower than the other."""
    q, _ = torch.linalg.qr(draw(2, 2))
    flat = q @ torch.diag(torch.tensor([1.0, 1e-14]).double()) @ q.T
    gmm = GaussianMixture(torch.zeros(1, 2), flat[None], [1.0])
    for t in (0, 500, 999):
        x_t = gmm.marginal(SCHEDULE, t).sample(200)
        x_start = gmm.denoiser(SCHEDULE, "x_start")(x_t, t).x_start
        across = x_start @ q[:, 1]
        assert across.abs().max() < 1e-9
        signal = SCHEDULE.alphas_cumprod[t]
        close(x_start @ q[:, 0], signal.sqrt() / (signal + 1 - signal) * (x_t @ q[:, 0]), 1e-12)


# The posterior ------------------------------------------------------------------------------------


def on_a_grid(gmm, x_t, t, grid):
    """Mean (D,) and covariance (D, D) of x_0 given one x_t (D,), by brute force over a grid."""
    alpha = SCHEDULE.alphas_cumprod[t]
    log_weight = as_torch(gmm).log_prob(grid)
    log_weight = log_weight - ((x_t - alpha.sqrt() * grid) ** 2).sum(1) / (2 * (1 - alpha))
    weight = log_weight.softmax(0)
    mean = weight @ grid
    return mean, (grid - mean).T @ (weight[:, None] * (grid - mean))


@pytest.mark.parametrize("t", [5, 100, 300, 600, 999])
@pytest.mark.parametrize("size", [1, 2])
def test_the_posteriors_mean_and_covariance_are_what_bayes_rule_gives_on_a_grid(size, t):
    gmm = mixture((size,))
    line = torch.linspace(-6, 6, 20_001 if size == 1 else 601, dtype=torch.float64)
    grid = torch.cartesian_prod(*[line] * size).reshape(-1, size)
    x_t = gmm.marginal(SCHEDULE, t).sample(4)
    posterior = gmm.posterior(SCHEDULE, x_t, t)
    for i in range(4):
        mean, covariance = on_a_grid(gmm, x_t[i], t, grid)
        close(posterior.mean[i], mean, 1e-9)
        close(posterior.covariance[i], covariance, 1e-9)


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("t", [0, 1, 300, 999])
def test_the_posterior_mean_is_tweedies_formula(shape, t):
    """α E[x_0|x_t] = x_t + σ² ∇ log p(x_t), and the covariance is its Jacobian times σ²/α."""
    gmm = mixture(shape)
    x_t = gmm.marginal(SCHEDULE, t).sample(6)
    alpha, variance = SCHEDULE.sqrt_alphas_cumprod[t], SCHEDULE.one_minus_alphas_cumprod[t]
    posterior = gmm.posterior(SCHEDULE, x_t, t)
    score = gmm.marginal(SCHEDULE, t).score(x_t)
    close(alpha * posterior.mean, x_t + variance * score)

    jacobian = torch.autograd.functional.jacobian(
        lambda x: gmm.posterior(SCHEDULE, x.reshape(x_t.shape), t).mean.flatten(1).sum(0),
        x_t.flatten(1),
    )  # (D, B, D)
    close(posterior.covariance, variance / alpha * jacobian.movedim(0, 1), 1e-9)


# The perfect denoiser -----------------------------------------------------------------------------


@pytest.mark.parametrize("prediction", PREDICTIONS)
@pytest.mark.parametrize("shape", SHAPES)
def test_the_denoisers_estimate_is_the_posterior_mean_whatever_it_predicts(prediction, shape):
    gmm = mixture(shape)
    denoiser = gmm.denoiser(SCHEDULE, prediction)
    assert (denoiser.prediction, denoiser.shape) == (prediction, shape)
    for t in (0, 1, 300, 998, 999):
        x_t = gmm.marginal(SCHEDULE, t).sample(9)
        estimate = denoiser(x_t, t)
        assert estimate.variance_fraction is None
        close(estimate.x_start, gmm.posterior(SCHEDULE, x_t, t).mean)
        score = gmm.marginal(SCHEDULE, t).score(x_t)
        close(estimate.noise, -SCHEDULE.sqrt_one_minus_alphas_cumprod[t] * score, 1e-9)


def test_each_example_has_its_own_timestep():
    gmm = mixture((2, 1, 2))
    x_t, t = draw(4, 2, 1, 2), torch.tensor([999, 0, 500, 1])
    for learned in (False, True):
        denoiser = gmm.denoiser(SCHEDULE, learned_variance=learned)
        together = denoiser(x_t, t)
        for i in range(4):
            alone = denoiser(x_t[i : i + 1], t[i : i + 1])
            close(together.x_start[i : i + 1], alone.x_start, 1e-12)
            if learned:
                close(together.variance_fraction[i : i + 1], alone.variance_fraction, 1e-12)


@pytest.mark.parametrize("prediction", PREDICTIONS)
def test_respacing_the_denoiser_or_its_schedule_is_the_same(prediction):
    gmm, kept, x_t = mixture(), [3, 400, 998], draw(3, 2)
    t = torch.tensor([0, 1, 2])
    whole = gmm.denoiser(SCHEDULE, prediction)(x_t, torch.tensor(kept))
    of_schedule = gmm.denoiser(SCHEDULE.respaced(kept), prediction)
    for denoiser in (of_schedule, gmm.denoiser(SCHEDULE, prediction).respaced(kept)):
        estimate = denoiser(x_t, t)
        close(estimate.x_start, whole.x_start)
        close(estimate.noise, whole.noise)
    with pytest.raises(InkdropError, match="does not know timestep 4"):
        of_schedule.network(x_t, torch.tensor([3, 4, 998]))
    with pytest.raises(InkdropError, match="does not know timestep 999"):
        of_schedule.network(x_t, torch.tensor([3, 400, 999]))


@pytest.mark.parametrize("prediction", PREDICTIONS)
@pytest.mark.parametrize("learned", [False, True])
@pytest.mark.parametrize("schedule", [SCHEDULE, SCHEDULE.respaced(range(0, 1000, 37))], ids=repr)
def test_between_its_timesteps_the_denoiser_is_exact_at_the_noise_level_there(
    prediction, learned, schedule
):
    gmm, x_t = mixture((2, 1, 2)), draw(5, 2, 1, 2)
    denoiser = gmm.denoiser(schedule, prediction, learned)
    for t in (0.0, 0.25, 7.5, schedule.timesteps - 1.3, schedule.timesteps - 1.0):
        t = torch.tensor(t, dtype=torch.float64)
        level = schedule.log_snr_between(t)[0].sigmoid()
        there = NoiseSchedule.from_alphas_cumprod([level.item(), level.item() / 1e9])
        close(denoiser.between(x_t, t).x_start, gmm.posterior(there, x_t, 0).mean, 1e-9)
        if t == t.floor():
            close(denoiser.between(x_t, t).x_start, denoiser(x_t, int(t)).x_start)


@pytest.mark.parametrize("asked_in", [torch.float32, torch.float64])
def test_the_denoiser_answers_in_the_precision_of_the_question(asked_in):
    estimate = mixture().denoiser(SCHEDULE, "velocity")(draw(3, 2).to(asked_in), 700)
    assert estimate.x_start.dtype == estimate.noise.dtype == asked_in


@pytest.mark.parametrize("shape", [(3,), (2, 1, 2)])
def test_the_learned_variance_is_that_of_the_reverse_step_itself(shape):
    """Var(x_{t-1}|x_t) is β̃ + c² Var(x_0|x_t): what a Gaussian step can do best."""
    gmm = mixture(shape)
    denoiser = gmm.denoiser(SCHEDULE, learned_variance=True)
    for t in (0, 1, 300, 999):
        x_t = gmm.marginal(SCHEDULE, t).sample(5)
        fraction = denoiser(x_t, t).variance_fraction
        low = SCHEDULE.log_posterior_variance_clipped[t]
        found = (low + fraction * (SCHEDULE.log_betas[t] - low)).exp()
        spread = gmm.posterior(SCHEDULE, x_t, t).covariance.diagonal(dim1=1, dim2=2)
        c = SCHEDULE.posterior_mean_coef_x_start[t]
        expected = SCHEDULE.posterior_variance[t] + c**2 * spread
        close(found.flatten(1), expected, 1e-12)


def test_a_condition_is_an_error():
    with pytest.raises(InkdropError, match="takes no condition"):
        mixture().denoiser(SCHEDULE)(draw(2, 2), 5, torch.zeros(2))


# Sampling and fitting -----------------------------------------------------------------------------


def test_samples_have_the_mixtures_moments():
    gmm, n = mixture((2, 1, 2)), 100_000
    x = gmm.sample(n, seed=3).flatten(1)
    mean = gmm.weights @ gmm.means
    apart = gmm.means - mean
    covariance = (gmm.weights[:, None, None] * gmm.covariances).sum(0)
    covariance += torch.einsum("k,kd,ke->de", gmm.weights, apart, apart)
    z = (x.mean(0) - mean) / (covariance.diagonal() / n).sqrt()
    assert z.abs().max() < 4.5
    products = (x - mean)[:, :, None] * (x - mean)[:, None]
    z = (products.mean(0) - covariance) / (products.std(0) / math.sqrt(n))
    assert z.abs().max() < 4.5
    # Not the moments alone: -E[log p] is the entropy, the same for x and for torch's own draws.
    torch.manual_seed(0)
    theirs = gmm.log_density(as_torch(gmm).sample((n,)).reshape(n, 2, 1, 2))
    ours = gmm.log_density(x.reshape(n, 2, 1, 2))
    assert abs(ours.mean() - theirs.mean()) < 5 * theirs.std() * math.sqrt(2 / n)


def test_a_sample_is_a_pure_function_of_its_address():
    gmm = mixture((2, 1, 2))
    assert torch.equal(gmm.sample(10, seed=1), gmm.sample(10, seed=1))
    assert not torch.equal(gmm.sample(10, seed=1), gmm.sample(10, seed=2))
    assert not torch.equal(gmm.sample(10), gmm.sample(10, purpose="other"))
    assert gmm.sample(0).shape == (0, 2, 1, 2)


def digits():
    from sklearn.datasets import load_digits

    return torch.from_numpy(load_digits().images).unsqueeze(1) / 8 - 1


def test_one_component_fitted_is_the_datas_mean_and_covariance():
    data = digits()[:300]
    gmm = GaussianMixture.fit(data, 1, regularisation=1e-3)
    flat = data.flatten(1)
    close(gmm.means[0], flat.mean(0), 1e-9)
    expected = torch.cov(flat.T, correction=0) + 1e-3 * torch.eye(64, dtype=torch.float64)
    close(gmm.covariances[0], expected, 1e-9)
    assert gmm.shape == (1, 8, 8)


def test_ten_components_fit_the_digits_better_than_one_also_those_held_out():
    data = digits()
    densities = {
        k: GaussianMixture.fit(data[:1500].float(), k, regularisation=0.01).log_density(data)
        for k in (1, 10)
    }
    assert (densities[10] - densities[1])[:1500].mean() > 10
    assert (densities[10] - densities[1])[1500:].mean() > 1


@given(st.integers(0, 10**6))
def test_a_fit_is_a_pure_function_of_its_seed(seed):
    data = draw(30, 2, seed=seed % 1000)
    one, two = (GaussianMixture.fit(data, 2, seed, 0.1) for _ in range(2))
    assert torch.equal(one.means, two.means)
    assert torch.equal(one.covariances, two.covariances)


class Largest(TorchDispatchMode):
    """Notes the size of the largest tensor that is made inside."""

    numel = 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        made = function(*args, **(kwargs or {}))
        for tensor in made if isinstance(made, (tuple, list)) else [made]:
            if isinstance(tensor, torch.Tensor):
                self.numel = max(self.numel, tensor.numel())
        return made


def test_a_mixture_of_many_dimensions_needs_no_room_for_their_squares_at_each_example():
    gmm = mixture((1, 8, 8), components=2)
    x_t = gmm.sample(1000)
    denoiser = gmm.denoiser(SCHEDULE, learned_variance=True)
    with Largest() as largest:
        gmm.sample(1000)
        denoiser(x_t, 300)
        gmm.score(x_t)
        gmm.log_density(x_t)
        gmm.best_loss(SCHEDULE, t=[300], n=1000)
    assert 1000 * 64 <= largest.numel <= 1000 * 64 * 2


# Mistakes -----------------------------------------------------------------------------------------


EYE = torch.eye(2)[None]


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: GaussianMixture([0.0, 1.0], EYE, [1.0]), r"means must be \(K, D\).*got \(2,\)"),
        (lambda: GaussianMixture(torch.zeros(0, 2), EYE, [1.0]), r"got \(0, 2\)"),
        (lambda: GaussianMixture([[0.0, 1.0]], EYE[0], [1.0]), r"\(1, 2, 2\).*got \(2, 2\)"),
        (lambda: GaussianMixture([[0.0, 1.0]], EYE, [0.5, 0.5]), r"weights must be \(1,\)"),
        (lambda: GaussianMixture([[0.0, 1.0]], EYE, [0.9]), r"\[0\.9\] with sum 0\.9: divide"),
        (lambda: GaussianMixture([[0.0, 1.0]], EYE, [math.nan]), "weights must be at least 0"),
        (
            lambda: GaussianMixture([[0.0], [1.0]], torch.ones(2, 1, 1), [1.5, -0.5]),
            "at least 0 and sum to 1",
        ),
        (lambda: GaussianMixture([[0.0, math.nan]], EYE, [1.0]), "must be finite"),
        (lambda: GaussianMixture([[0.0, 1.0]], EYE * math.inf, [1.0]), "must be finite"),
        (
            lambda: GaussianMixture([[0.0, 1.0]], [[[1.0, 0.5], [0.4, 1.0]]], [1.0]),
            r"covariances\[0\] is not symmetric",
        ),
        (
            lambda: GaussianMixture([[0.0, 1.0]], [[[1.0, 2.0], [2.0, 1.0]]], [1.0]),
            r"covariances\[0\] is not positive definite: its smallest eigenvalue is -1",
        ),
        (lambda: mixture().marginal(SCHEDULE, 1000), "t must lie in 0 … 999, got 1000"),
        (lambda: mixture().posterior(SCHEDULE, torch.zeros(1, 2), -1), "0 … 999, got -1"),
        (lambda: mixture().log_density(torch.zeros(4, 3)), r"must be \(B, 2\), got \(4, 3\)"),
        (lambda: mixture((1, 3, 2)).score(torch.zeros(4, 6)), r"\(B, 1, 3, 2\), got \(4, 6\)"),
        (lambda: mixture().denoiser(SCHEDULE, "noize"), "did you mean 'noise'"),
        (lambda: GaussianMixture.fit(torch.zeros(5, 2), 6), r"components must lie in 1 … 5, got 6"),
    ],
)
def test_a_mistake_is_named_in_one_line(make, message):
    with pytest.raises(InkdropError, match=message) as error:
        make()
    assert "\n" not in str(error.value)


def test_float32_weights_and_covariances_are_close_enough():
    weights = torch.full((7,), 1 / 7, dtype=torch.float32)
    covariances = torch.cov(draw(2, 50).float())[None].repeat(7, 1, 1)
    covariances[:, 0, 1] *= 1 + 2e-7
    gmm = GaussianMixture(draw(7, 2), covariances, weights)
    assert gmm.weights.sum().item() == pytest.approx(1, abs=1e-15)
    assert torch.equal(gmm.covariances, gmm.covariances.mT)
