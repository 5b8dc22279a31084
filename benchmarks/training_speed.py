"""How fast does a preset train here, and what loss does it reach? On whatever device there is.

    python benchmarks/training_speed.py mnist
    python benchmarks/training_speed.py ho-cifar10 --steps 1000 --name ho_cifar10_gpu

Trains by the command line and writes results/NAME.json, with the grid of samples beside it as
NAME.png. The preset mnist is made to last a quarter of an hour on two CPU cores.
"""

import argparse
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

from common import RESULTS, write_result

import inkdrop

parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
parser.add_argument("preset")
parser.add_argument("--steps", type=int, help="optimizer steps (default: the preset's)")
parser.add_argument("--data", nargs="*", default=[], help="the images")
parser.add_argument("--name", help="of the result (default: PRESET_DEVICE)")
parser.add_argument("--keep", type=Path, help="keep the run folder here")
options = parser.parse_args()

with tempfile.TemporaryDirectory() as temporary:
    out = options.keep or Path(temporary) / "run"
    arguments = ["train", options.preset, "--out", str(out)]
    arguments += ["--steps", str(options.steps)] if options.steps else []
    arguments += ["--data", *options.data] if options.data else []
    subprocess.run([sys.executable, "-m", "inkdrop", *arguments], check=True)
    run = inkdrop.load(out)
    rows = [row for row in run.metrics if "loss" in row]
    held_out = [row for row in run.metrics if "held_out_loss" in row]
    device = run.environment["sessions"][-1]["device"]
    name = options.name or f"{options.preset}_{device.split()[0]}".replace("-", "_")
    samples = out / "grid-for-benchmark"
    subprocess.run(
        [sys.executable, "-m", "inkdrop", "sample", str(out), "--out", str(samples)], check=True
    )
    RESULTS.mkdir(exist_ok=True)
    (RESULTS / f"{name}.png").write_bytes((samples / "grid.png").read_bytes())
    path = write_result(
        name,
        {
            "preset": options.preset,
            "device": device,
            "threads": run.environment["sessions"][-1]["threads"],
            "parameters": sum(p.numel() for p in run.denoiser.network.parameters()),
            "steps": run.step,
            "batch_size": run.config.training.batch_size,
            "training_seconds": rows[-1]["seconds"],
            "images_per_second_median": statistics.median(r["images_per_second"] for r in rows),
            "images_per_second_whole": round(
                run.step * run.config.training.batch_size / rows[-1]["seconds"], 1
            ),
            "final_training_loss": rows[-1]["loss"],
            "held_out_losses": [[row["step"], row["held_out_loss"]] for row in held_out],
        },
    )
print(f"written to {path}")
