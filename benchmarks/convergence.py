"""What order do samplers have as they are used, from pure noise to x₀?

    python benchmarks/convergence.py

The oracle's denoiser of a Gaussian mixture in the plane, linear schedule with T = 16,000; each
sampler and spacing at 10 … 160 steps, against a fine solution from the same noise. Writes
results/convergence.json: root mean square errors, and the slopes over 10 … 40 and 40 … 160 steps.
"""

import numpy as np
import torch
from common import write_result

import inkdrop
from inkdrop.diffusion.samplers import build_table

STEPS = (10, 20, 40, 80, 160)
SPACINGS = ("trailing", "log-snr", "karras", "quadratic", "linspace")
SAMPLERS = [
    ("ddim", None),
    ("heun", None),
    ("dpm-solver++", 2),
    ("dpm-solver++", 3),
    ("unipc", 1),
    ("unipc", 2),
    ("unipc", 3),
]

mixture = inkdrop.GaussianMixture(
    means=[[0.8, 0.3], [-0.6, -0.5]],
    covariances=[[[0.10, 0.05], [0.05, 0.08]], [[0.05, 0.0], [0.0, 0.30]]],
    weights=[0.4, 0.6],
)
schedule = inkdrop.NoiseSchedule.linear(16_000)
exact = mixture.denoiser(schedule)
noise = torch.from_numpy(np.random.default_rng(0).standard_normal((200, 2)))


def solved(sampler: str, steps: int, spacing: str, order: int | None) -> torch.Tensor:
    table = build_table(schedule, sampler, steps, timesteps=spacing, order=order)
    return inkdrop.sample(exact, table=table, x_init=noise)


reference = solved("unipc", 4000, "log-snr", 3)
rows = {}
for sampler, order in SAMPLERS:
    for spacing in SPACINGS:
        errors = [
            (solved(sampler, steps, spacing, order) - reference).square().mean().sqrt().item()
            for steps in STEPS
        ]
        slopes = [
            -float(np.polyfit(np.log(STEPS[part]), np.log(errors[part]), 1)[0])
            for part in (slice(0, 3), slice(2, 5))
        ]
        name = f"{sampler} {order or ''}".strip()
        rows[f"{name}, {spacing}"] = {
            "root_mean_square_error": dict(zip(map(str, STEPS), errors, strict=True)),
            "slope_10_to_40": round(slopes[0], 2),
            "slope_40_to_160": round(slopes[1], 2),
        }
        print(f"{name:16} {spacing:10} {slopes[0]:.1f}/{slopes[1]:.1f} {errors[1]:.1e}", flush=True)
path = write_result("convergence", {"timesteps": 16_000, "samplers": rows})
print(f"written to {path}")
