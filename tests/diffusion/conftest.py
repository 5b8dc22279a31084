"""A perfect network: for Gaussian data the posterior mean of x_0 is known."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from inkdrop.diffusion.denoiser import Denoiser
from inkdrop.diffusion.schedule import NoiseSchedule

MEAN = torch.tensor([0.3, -0.5, 0.1], dtype=torch.float64)
VARIANCE = torch.tensor([0.04, 0.25, 1.0], dtype=torch.float64)


class GaussianNetwork(nn.Module):
    """The exact prediction for data N(mean, diag(variance)), written out from Bayes' rule.

    Its ᾱ is a plain cumulative product of its own, so that it shares no code with the schedule.
    """

    def __init__(
        self,
        schedule: NoiseSchedule,
        kind: str,
        mean: Tensor = MEAN,
        variance: Tensor = VARIANCE,
        perturbation: float = 0.0,
    ) -> None:
        super().__init__()
        self.alphas_cumprod = (1 - schedule.betas).cumprod(0)
        self.kind = kind
        self.mean = mean
        self.variance = variance
        self.perturbation = perturbation
        self.asked: list[Tensor] = []

    def forward(self, x: Tensor, t: Tensor, condition: Tensor | None) -> Tensor:
        self.asked.append(t)
        signal = self.alphas_cumprod[t].reshape(-1, *[1] * (x.ndim - 1))
        residual = x.double() - signal.sqrt() * self.mean
        spread = signal * self.variance + 1 - signal
        x_start = self.mean + signal.sqrt() * self.variance / spread * residual
        noise = (1 - signal).sqrt() / spread * residual
        answer = {
            "x_start": x_start,
            "noise": noise,
            "velocity": signal.sqrt() * noise - (1 - signal).sqrt() * x_start,
            "score": -residual / spread,
        }[self.kind]
        return (answer + self.perturbation).to(x.dtype)


@pytest.fixture
def gaussian() -> Callable[..., Denoiser]:
    """A perfect denoiser for N(MEAN, diag(VARIANCE)) under a schedule."""

    def make(
        schedule: NoiseSchedule,
        kind: str = "x_start",
        trained_under: NoiseSchedule | None = None,
        **network: object,
    ) -> Denoiser:
        known = GaussianNetwork(trained_under or schedule, kind, **network)
        return Denoiser(known, schedule, prediction=kind, shape=(len(known.mean),))

    return make


@pytest.fixture
def target() -> tuple[Tensor, Tensor]:
    """The mean and variance of the data that `gaussian` knows."""
    return MEAN, VARIANCE
