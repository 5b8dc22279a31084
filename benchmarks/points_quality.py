"""How near do the presets for points come to their truth? Energy distances beside the oracle's.

    python benchmarks/points_quality.py               # points-gmm, three seeds
    python benchmarks/points_quality.py points-rings  # another preset

Trains the preset, generates 10,000 points by each sampler, and averages their energy distance to
four true sets of 10,000. The floor is that of the oracle's points from the same noise (points-gmm),
or of other true sets. Writes results/NAME.json.
"""

import argparse
import statistics
import tempfile
from pathlib import Path

import torch
from common import write_result

import inkdrop
from inkdrop.data.points import MIXTURES, draw
from inkdrop.diffusion.denoiser import Denoiser
from inkdrop.evaluation.distances import energy_distance

POINTS, TRUE_SETS, SAMPLE_SEEDS = 10_000, 4, (0,)
SAMPLERS = [("ancestral", None), ("unipc", 20)]

parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
parser.add_argument("preset", nargs="?", default="points-gmm")
parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
options = parser.parse_args()

truth = [draw(options.preset, POINTS, seed, "benchmark truth") for seed in range(TRUE_SETS)]


def distance(sets: list[torch.Tensor]) -> float:
    """The mean over all pairs of a generated and a true set."""
    return statistics.mean(energy_distance(x, y) for x in sets for y in truth)


def generated(denoiser: Denoiser, sampler: str, steps: int | None) -> list[torch.Tensor]:
    return [inkdrop.sample(denoiser, POINTS, sampler, steps, seed) for seed in SAMPLE_SEEDS]


others = [draw(options.preset, POINTS, seed, "benchmark floor") for seed in SAMPLE_SEEDS]
floors = {"true points": distance(others)}
rows = []
with tempfile.TemporaryDirectory() as folder:
    for seed in options.seeds:
        config = inkdrop.presets.preset(options.preset)
        config.seed = seed
        run = inkdrop.train(config, Path(folder) / str(seed))
        seconds = [row["seconds"] for row in run.metrics if "seconds" in row][-1]
        row: dict[str, object] = {"seed": seed, "training_seconds": round(seconds, 1)}
        for sampler, steps in SAMPLERS:
            name = f"{sampler} {steps or 'all'}"
            row[name] = distance(generated(run.denoiser, sampler, steps))
            if name not in floors and options.preset in MIXTURES:
                mixture = inkdrop.GaussianMixture(**MIXTURES[options.preset]._asdict())
                exact = mixture.denoiser(run.denoiser.schedule)
                floors[name] = distance(generated(exact, sampler, steps))
        rows.append(row)
        print(row, flush=True)
print("floors", floors)
ratios = {
    name: round(
        statistics.mean(row[name] for row in rows) / floors.get(name, floors["true points"]), 3
    )  # type: ignore[arg-type, misc]
    for name in (f"{sampler} {steps or 'all'}" for sampler, steps in SAMPLERS)
}
print("ratios to the floor", ratios)
path = write_result(
    options.preset.replace("-", "_"),
    {
        "points": POINTS,
        "true_sets": TRUE_SETS,
        "energy_distance_of_the_floor": floors,
        "mean_ratio_to_the_floor": ratios,
        "seeds": rows,
    },
)
print(f"written to {path}")
