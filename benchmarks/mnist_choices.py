"""What the preset of MNIST was chosen by: candidates at equal seconds of two CPU cores.

    python benchmarks/mnist_choices.py --keep runs/choices
    python benchmarks/mnist_choices.py --only muon strata

Each is trained for a quarter of the preset's time: for so many steps as it takes by its own
measured speed. Then 1,000 samples by ancestral sampling in 50 evaluations are held against the
training images by the classifier of the digits' classes. What is finished in --keep is not done
again.
Writes results/mnist_choices.json.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from common import write_result

import inkdrop

PLAIN = "--training.optimizer adamw --training.learning-rate 2e-3 --timestep-sampler uniform"
MUON = "--training.optimizer muon --training.learning-rate 5e-3 --timestep-sampler uniform"
STRATA = "--training.optimizer muon --training.learning-rate 5e-3 --timestep-sampler stratified"
CANDIDATES = {
    "adamw": (1330, PLAIN),
    "adamw-5e-3": (1330, PLAIN.replace("2e-3", "5e-3")),
    "two-levels": (1050, f"{PLAIN} --network.multipliers 1 2 --network.blocks 2"),
    "two-levels-wide": (875, f"{PLAIN} --network.multipliers 1 2 --network.channels 48"),
    "muon": (1330, MUON),
    "muon-1e-2": (1330, MUON.replace("5e-3", "1e-2")),
    "strata": (1330, STRATA),
    "strata-wide-bottom": (1080, f"{STRATA} --network.multipliers 1 2 3"),
    "strata-attention": (
        1200,
        f"{STRATA} --network.attention-resolutions 8 --network.time-injection scale-shift",
    ),
}
ALL = "--training.ema-decay 0.995 --training.device cpu --logging.samples-every 0"
ALL += " --logging.held-out-every 1000000 --logging.checkpoint-every 1000000"
ALL += " --logging.checkpoint-minutes None"
SAMPLES, EVALUATIONS = 1000, 50


def train(out: Path, steps: int, flags: str) -> None:
    """Train a candidate by the command line."""
    command = [sys.executable, "-m", "inkdrop", "train", "mnist", "--out", str(out)]
    subprocess.run([*command, "--steps", str(steps), *ALL.split(), *flags.split()], check=True)
    inkdrop.evaluate(
        out,
        n=SAMPLES,
        sampler="ancestral",
        steps=EVALUATIONS,
        metrics=("frechet_distance", "precision", "recall"),
        memorisation=False,
    )


def measured(out: Path) -> dict[str, Any]:
    """What came of it: its largest evaluation, with the sampler that made it."""
    run = inkdrop.load(out, device="cpu")
    evaluations = json.loads((out / "evaluation.json").read_text())["evaluations"]
    found = max(evaluations, key=lambda evaluation: evaluation["protocol"]["samples"])
    protocol, figures = found["protocol"], found["figures"]
    losses = [row["held_out_loss"] for row in run.metrics if "held_out_loss" in row]
    return {
        "steps": run.step,
        "parameters": sum(p.numel() for p in run.denoiser.network.parameters()),
        "held_out_loss": losses[-1],
        "samples": protocol["samples"],
        "sampler": f"{protocol['sampler']}, {len(protocol['timesteps'])} evaluations",
        **{name: figures[name] for name in ("frechet_distance", "precision", "recall")},
    }


def main() -> None:
    """Train what is wanted, one after another."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--only", nargs="+", choices=CANDIDATES, default=list(CANDIDATES))
    parser.add_argument("--keep", type=Path, help="the folder of the runs, to go on in")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        folder = options.keep or Path(temporary)
        found = {}
        print("| candidate | steps | held-out loss | sampler | Fréchet distance | precision |")
        print("|---|---|---|---|---|---|")
        for name in options.only:
            steps, flags = CANDIDATES[name]
            if not (folder / name / "evaluation.json").exists():
                train(folder / name, steps, flags)
            figures = found[name] = {"flags": flags, **measured(folder / name)}
            distance = figures["frechet_distance"]
            print(
                f"| {name} | {steps:,} | {figures['held_out_loss']:.4f} | {figures['sampler']} | "
                f"{distance['value']:.2f} ({distance['low']:.2f} … {distance['high']:.2f}) | "
                f"{figures['precision']['value']:.2f} |",
                flush=True,
            )
    path = write_result("mnist_choices", {"all": ALL, "candidates": found})
    print(f"written to {path}")


if __name__ == "__main__":
    main()
