"""How fast is a whole training, command against command?

    python benchmarks/whole_training.py                                        # mnist, network a
    python benchmarks/whole_training.py --data cifar10 --network b --batch 128 --steps 1000
    python benchmarks/whole_training.py --quick

`inkdrop train` against diffusers' unconditional training script (diffusers_script.py): the same
images, the same network and optimizer, as many steps, each with what it does for its user beside
them. That is reading the data, logging, and a checkpoint at the end for both; for inkdrop also its
held-out losses and its looks at early samples. Grids of samples are left out of both. They take
turns, A B A B.

images/s        from the start of the training loop until the last checkpoint is on the disk
whole command   seconds from its start to its end, imports and opening the data included
peak memory     resident, of the process

The peer's data are made ready beforehand, as `datasets` keeps them after their first use. Writes
results/whole_training_DATA_NETWORK_DEVICE.json.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from statistics import median
from typing import Any

import torch
from common import RESULTS, write_result
from diffusers_script import network_config, prepare
from peers import HAS_DIFFUSERS, MISSING, inkdrop_config

from inkdrop import presets
from inkdrop.checkpoint import newest_checkpoint
from inkdrop.config import Config
from inkdrop.environment import package_version
from inkdrop.metrics import read_metrics
from inkdrop.networks.from_diffusers import unet_config_of

SCRIPT = Path(__file__).parent / "diffusers_script.py"
SHAPES = {"digits": (1, 8, 8), "mnist": (1, 28, 28), "cifar10": (3, 32, 32)}
RSS_UNIT = 1 if sys.platform == "darwin" else 1024  # bytes


def flags(config: Config, start: Config) -> list[str]:
    """The command line's flags that make `config` of the preset `start`."""
    given: list[str] = []

    def compare(new: dict[str, Any], old: dict[str, Any], prefix: str) -> None:
        for name, value in new.items():
            if isinstance(value, dict):
                compare(value, old[name], f"{prefix}{name}.")
            elif value != old[name]:
                flag = f"--{prefix}{name}".replace("_", "-")
                if isinstance(value, bool):
                    given.append(flag if value else f"--{prefix}no-{name}".replace("_", "-"))
                else:
                    values = value if isinstance(value, (tuple, list)) else [value]
                    given.extend([flag, *map(str, values)])

    compare(config.model_dump(exclude={"name"}), start.model_dump(exclude={"name"}), "")
    return given


def command_of_inkdrop(options: argparse.Namespace, out: Path) -> list[str]:
    """The training of the peer's network by inkdrop's command line."""
    start = presets.preset(options.data)
    config, like = start.model_copy(deep=True), inkdrop_config(options.network, options.batch)
    config.prediction, config.schedule = like.prediction, like.schedule
    config.network = unet_config_of(network_config(options.network, SHAPES[options.data]))
    config.training = like.training.model_copy(
        update={
            "steps": options.steps,
            "compile": start.training.compile,
            "device": options.device,
        }
    )
    config.logging.samples_every = 0
    preset = [options.data, *flags(config, start)]
    return [sys.executable, "-m", "inkdrop", "train", *preset, "--out", str(out)]


def command_of_diffusers(options: argparse.Namespace, out: Path, prepared: Path) -> list[str]:
    """The training by diffusers' script."""
    given = {
        "data": options.data,
        "network": options.network,
        "batch": options.batch,
        "steps": options.steps,
        "workers": options.workers,
        "device": options.device,
        "prepared": prepared,
        "out": out,
    }
    words = [word for name, value in given.items() for word in (f"--{name}", str(value))]
    if presets.preset(options.data).data.horizontal_flip:
        words.append("--flip")
    return [sys.executable, str(SCRIPT), *words]


def timed(command: list[str], log: Path) -> dict[str, float]:
    """Seconds of a whole command, and its most resident memory."""
    with log.open("w") as output:
        began = time.perf_counter()
        process = subprocess.Popen(command, stdout=output, stderr=subprocess.STDOUT)
        _, status, usage = os.wait4(process.pid, 0)
        seconds = time.perf_counter() - began
    process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode:
        tail = "\n".join(log.read_text().splitlines()[-20:])
        raise SystemExit(f"{tail}\nexit code {process.returncode}: {' '.join(command)}")
    return {"command_seconds": seconds, "peak_resident_bytes": usage.ru_maxrss * RSS_UNIT}


def run_inkdrop(options: argparse.Namespace, folder: Path) -> dict[str, float]:
    """One training by inkdrop."""
    run = folder / "run"
    found = timed(command_of_inkdrop(options, run), folder / "log.txt")
    last = newest_checkpoint(run / "checkpoints")
    assert last is not None
    # Written when training begins, and when the checkpoint is whole.
    began = (run / "environment.json").stat().st_mtime
    ended = max(file.stat().st_mtime for file in last.iterdir())
    stepped = [row for row in read_metrics(run / "metrics.jsonl") if "loss" in row][-1]["seconds"]
    images = options.steps * options.batch
    return {
        **found,
        "training_seconds": ended - began,
        "images_per_second": images / (ended - began),
        "images_per_second_of_steps": images / stepped,
    }


def run_diffusers(options: argparse.Namespace, folder: Path, prepared: Path) -> dict[str, float]:
    """One training by diffusers."""
    out = folder / "out"
    found = timed(command_of_diffusers(options, out, prepared), folder / "log.txt")
    timings = json.loads((out / "timings.json").read_text())
    return {
        **found,
        "training_seconds": timings["seconds_with_last_checkpoint"],
        "images_per_second": timings["images"] / timings["seconds_with_last_checkpoint"],
        "images_per_second_of_steps": timings["images"] / timings["training_seconds"],
    }


def in_turns(options: argparse.Namespace) -> dict[str, list[dict[str, float]]]:
    """Every repetition of each side."""
    found: dict[str, list[dict[str, float]]] = {"inkdrop": []}
    with tempfile.TemporaryDirectory() as temporary:
        prepared = Path(temporary) / "data"
        if HAS_DIFFUSERS:
            found["diffusers"] = []
            prepare(options.data, prepared)
        else:
            print(f"inkdrop alone: {MISSING}")
        for pair in range(options.pairs):
            for side, repeats in found.items():
                folder = Path(temporary) / f"{side}-{pair}"
                folder.mkdir()
                one = (
                    run_inkdrop(options, folder)
                    if side == "inkdrop"
                    else run_diffusers(options, folder, prepared)
                )
                repeats.append(one)
                print(
                    f"{pair + 1}/{options.pairs}  {side}: {one['images_per_second']:,.1f} "
                    f"images/s, the whole command {one['command_seconds']:.1f} s",
                    flush=True,
                )
    return found


def figures(found: dict[str, list[dict[str, float]]]) -> dict[str, Any]:
    """Medians of each side, and inkdrop's over diffusers'."""
    medians = {
        side: {name: median(one[name] for one in repeats) for name in repeats[0]}
        for side, repeats in found.items()
    }
    ratios = None
    if "diffusers" in medians:
        ours, theirs = medians["inkdrop"], medians["diffusers"]
        ratios = {name: round(ours[name] / theirs[name], 3) for name in ours}
    return {
        "medians": _rounded(medians),
        "inkdrop_over_diffusers": ratios,
        "repetitions": _rounded(found),
    }


def _rounded(value: Any) -> Any:
    if isinstance(value, dict):
        return {name: _rounded(item) for name, item in value.items()}
    if isinstance(value, list):
        return [_rounded(item) for item in value]
    return round(value, 2) if isinstance(value, float) else value


def table(results: dict[str, Any]) -> str:
    """The medians, a side a line."""
    rows = [
        "| side | images/s | of the steps alone | whole command | peak memory |",
        "|" + 5 * "---|",
    ]
    for side, of in results["medians"].items():
        rows.append(
            f"| {side} | {of['images_per_second']:,.1f} "
            f"| {of['images_per_second_of_steps']:,.1f} | {of['command_seconds']:.1f} s "
            f"| {of['peak_resident_bytes'] / 1e6:,.0f} MB |"
        )
    if ratios := results["inkdrop_over_diffusers"]:
        rows.append(
            f"| inkdrop / diffusers | {ratios['images_per_second']:.2f} "
            f"| {ratios['images_per_second_of_steps']:.2f} | {ratios['command_seconds']:.2f} "
            f"| {ratios['peak_resident_bytes']:.2f} |"
        )
    return "\n".join(rows)


def main() -> None:
    """Measure in turns, and write it down."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--data", choices=sorted(SHAPES), default="mnist")
    parser.add_argument("--network", default="a", help="a or b, of peers.py")
    parser.add_argument("--batch", type=int, default=64)
    parser.add_argument("--steps", type=int, default=200)
    parser.add_argument("--pairs", type=int, default=2)
    parser.add_argument("--workers", type=int, default=0, help="of the peer's DataLoader")
    parser.add_argument("--device", choices=("auto", "cpu", "cuda"), default="auto")
    parser.add_argument("--quick", action="store_true", help="five steps on the digits")
    options = parser.parse_args()
    if options.quick:
        options.data, options.batch, options.steps, options.pairs = "digits", 8, 5, 1
    if options.device == "auto":
        options.device = "cuda" if torch.cuda.is_available() else "cpu"
    results = figures(in_turns(options))
    print(table(results))
    settings = {
        name: getattr(options, name)
        for name in ("data", "network", "batch", "steps", "pairs", "workers", "device")
    }
    with tempfile.TemporaryDirectory() as temporary:
        path = write_result(
            f"whole_training_{options.data}_{options.network}_{options.device}",
            {
                "settings": settings,
                "threads": torch.get_num_threads(),
                "peer_versions": {
                    name: package_version(name) for name in ("diffusers", "accelerate")
                },
                "peer_measured": HAS_DIFFUSERS,
                **results,
            },
            Path(temporary) if options.quick else RESULTS,
        )
        print("quick: nothing is kept" if options.quick else f"written to {path}")


if __name__ == "__main__":
    main()
