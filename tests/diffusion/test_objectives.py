"""The training loss: right for each example, and least for the perfect denoiser."""

import pytest
import torch
from torch import nn

from inkdrop.diffusion.denoiser import Denoiser
from inkdrop.diffusion.objectives import simple
from inkdrop.diffusion.prediction import PREDICTIONS
from inkdrop.diffusion.schedule import NoiseSchedule
from inkdrop.errors import InkdropError

SCHEDULE = NoiseSchedule.linear()


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
