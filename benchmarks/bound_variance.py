"""What does the variance of the reverse steps cost the bound? The least there is, for a mixture.

    python benchmarks/bound_variance.py

The bound of the perfect denoiser of a two-component mixture on the line, in bits per dimension,
with each variance, beside the mixture's entropy. Nothing is drawn: every mean over x_t is an
integral over a grid. Writes results/bound_variance.json.
"""

import math

import torch
from common import write_result

import inkdrop
from inkdrop.diffusion.best_loss import least_loss
from inkdrop.diffusion.objectives import VARIANCES

LENGTHS, REACH, CELLS = (100, 1000), 6, 1000

mixture = inkdrop.GaussianMixture([[-0.7], [0.5]], [[[0.01]], [[0.04]]], [0.4, 0.6])
grid = torch.linspace(-REACH, REACH, CELLS + 1, dtype=torch.float64)[:, None]


def bits(log_density: torch.Tensor, nats: torch.Tensor) -> float:
    """The mean of `nats` on the grid under a density, in bits."""
    return (log_density.exp() * nats).sum().item() * 2 * REACH / CELLS / math.log(2)


own = mixture.log_density(grid)
entropy = bits(own, -own)
second_moment = (mixture.weights @ (mixture.means**2 + mixture.covariances[:, 0])).item()
rows = {}
for timesteps in LENGTHS:
    schedule = inkdrop.NoiseSchedule.linear(timesteps)
    signal = schedule.alphas_cumprod[-1].item()
    prior = (signal * (second_moment - 1) - math.log1p(-signal)) / 2 / math.log(2)
    bounds = dict.fromkeys(VARIANCES, prior)
    for t in range(timesteps):
        spread = mixture.posterior(schedule, grid, t).covariance[:, 0]
        here = mixture.marginal(schedule, t).log_density(grid)
        for variance in VARIANCES:
            terms = least_loss(schedule, "variational_bound", "noise", variance, t, spread)
            bounds[variance] += bits(here, terms)
    rows[timesteps] = {variance: round(bound, 4) for variance, bound in bounds.items()}
print(f"entropy {entropy:.4f}\n{rows}")
path = write_result("bound_variance", {"entropy": round(entropy, 4), "linear_schedule": rows})
print(f"written to {path}")
