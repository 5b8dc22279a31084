"""Does the preset `digits` generate all ten digits, well, without copying? Three seeds.

    python benchmarks/digits_quality.py

For each seed: train by the command line, generate as many samples as there are real images, and
compare in pixel space (0 … 16): the Fréchet distance to the real set, the median distance to the
nearest training image over that between training images, and the share of each digit by a
classifier trained on the real set. Writes results/digits_quality.json.
"""

import argparse
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np
from common import write_result
from sklearn.datasets import load_digits
from sklearn.svm import SVC

import inkdrop
from inkdrop.data.pixels import to_uint8
from inkdrop.evaluation.distances import frechet_distance, nearest_distances

parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
parser.add_argument("--keep", type=Path, help="keep the run folders here")
options = parser.parse_args()

digits = load_digits()
real = digits.data
classifier = SVC(gamma=0.001).fit(real, digits.target)
between_real = float(np.median(nearest_distances(real)))
order = np.random.default_rng(0).permutation(len(real))
halves = np.array_split(real[order], 2)

SAMPLERS = [("ddim", 50), ("ancestral", 100)]


def measured(run: inkdrop.Run, sampler: str, steps: int | None) -> dict[str, object]:
    images = inkdrop.sample(run.denoiser, len(real), sampler, steps, batch_size=600)
    pixels = to_uint8(images).numpy().reshape(len(real), -1) / 255 * 16
    shares = np.bincount(classifier.predict(pixels), minlength=10) / len(pixels)
    return {
        "frechet_distance": round(frechet_distance(pixels, real), 2),
        "nearest_distance_ratio": round(
            float(np.median(nearest_distances(pixels, real))) / between_real, 3
        ),
        "smallest_class_share": round(float(shares.min()), 4),
        "class_shares": [round(float(share), 4) for share in shares],
    }


with tempfile.TemporaryDirectory() as temporary:
    rows = []
    for seed in options.seeds:
        out = (options.keep or Path(temporary)) / f"digits-seed{seed}"
        command = ["train", "digits", "--seed", str(seed), "--out", str(out)]
        subprocess.run([sys.executable, "-m", "inkdrop", *command], check=True)
        run = inkdrop.load(out)
        training = [row for row in run.metrics if "loss" in row]
        row = {
            "seed": seed,
            "training_seconds": training[-1]["seconds"],
            "steps": run.step,
            "held_out_loss": run.metrics[-1]["held_out_loss"],
            "samplers": {f"{s} {n or 'all'}": measured(run, s, n) for s, n in SAMPLERS},
        }
        rows.append(row)
        print(row, flush=True)

path = write_result(
    "digits_quality",
    {
        "samples": len(real),
        "frechet_distance_of_two_random_halves_of_the_real_set": round(
            frechet_distance(*halves), 2
        ),
        "median_training_seconds": statistics.median(r["training_seconds"] for r in rows),
        "seeds": rows,
    },
)
print(f"written to {path}")
