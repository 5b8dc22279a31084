"""What is a minute of training worth on a GPU, and twenty beside diffusers' script?

    python benchmarks/gpu_quality.py mnist-60s
    python benchmarks/gpu_quality.py cifar10                      # again until it is finished
    python benchmarks/gpu_quality.py mnist-60s --device cpu --quick   # and cifar10 --device cpu …

mnist-60s  a preset for MNIST (--preset) trained for 60 s, as many steps as a probe says fit: the
           Fréchet distance of 2,000 and of 10,000 samples in the features of the classifier of the
           digits, with what real images get in their place.
cifar10    --minutes of training (20) for each of --sides: inkdrop's preset as it is, with as many
           steps as a probe says fit; and diffusers' script (diffusers_script.py) with the network
           of Ho et al. 2020, which inkdrop then reads and samples as its own. Then for both the
           bits/dim of --images held-out images by the averaged weights, and the Fréchet distance of
           10,000 samples in the features of inkdrop's classifier of CIFAR-10. The side inkdrop-b
           is the peer's network trained by inkdrop.

Every step of it lasts less than ten minutes, trainings being broken off and gone on with: where
--limit minutes (9) are over the program leaves with 75, "not finished", and the same command goes
on from what is in --keep (runs/gpu_quality_…). Writes results/gpu_quality_mnist_60s.json or
gpu_quality_cifar10.json.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import torch
from common import RESULTS, write_result
from diffusers_script import network_config, prepare
from peers import HAS_DIFFUSERS, MISSING, inkdrop_config
from time_to_quality import LEAST, Parts, bound, evaluated, steps_for, train, training_seconds
from whole_training import SCRIPT, SHAPES, flags

import inkdrop
from inkdrop import presets
from inkdrop.checkpoint import Checkpoint, read_manifest, write_checkpoint
from inkdrop.config import ScheduleConfig
from inkdrop.environment import device_name, package_version
from inkdrop.networks.from_diffusers import unet_config_of, unet_from_diffusers
from inkdrop.run import write_config

SIDES = ("inkdrop", "inkdrop-b", "diffusers")


# mnist-60s


def mnist_60s(options: argparse.Namespace) -> dict[str, Any]:
    """A short training, and what its samples are worth."""
    parts, out = options.parts, options.parts.folder / "run"
    device = ["--training.device", options.device]
    steps = parts.once(
        "steps", lambda: steps_for(options.seconds, options.preset, device, options.probe)
    )

    def whole() -> float:
        began = time.perf_counter()
        if not train([options.preset, *device, "--steps", str(steps), "--out", str(out)]):
            raise AssertionError("nobody stops it")
        return round(time.perf_counter() - began, 1)

    command = parts.once("training", whole, least=options.seconds + LEAST)
    return {
        "preset": options.preset,
        "steps": steps,
        "batch_size": inkdrop.load(out).config.training.batch_size,
        "training_seconds": training_seconds(out),
        "command_seconds": command,
        "samples": [
            parts.once(f"{n} samples", lambda n=n: evaluated(out, options, n))
            for n in options.samples
        ],
    }


# cifar10


def cifar10(options: argparse.Namespace) -> dict[str, Any]:
    """Both sides, one after the other: what each is worth after so many minutes."""
    sides = options.sides
    if not HAS_DIFFUSERS and "diffusers" in sides:
        print(f"inkdrop alone: {MISSING}")
        sides = [side for side in sides if side != "diffusers"]
    trained = {
        side: (by_diffusers if side == "diffusers" else by_inkdrop)(options, side) for side in sides
    }
    return {
        "minutes": options.minutes,
        "peer_measured": "diffusers" in sides,
        "sides": {
            side: {**facts, **judged(options, side, facts["run"])}
            for side, facts in trained.items()
        },
    }


def by_inkdrop(options: argparse.Namespace, side: str) -> dict[str, Any]:
    """A training by inkdrop: of its preset, or of the peer's network under the peer's settings."""
    parts, out = options.parts, options.parts.folder / side
    preset, given = options.preset, ["--training.device", options.device]
    if side == "inkdrop-b":
        start = presets.preset(preset)
        config = start.model_copy(deep=True)
        like = inkdrop_config(options.network, options.batch)
        config.prediction, config.schedule = like.prediction, like.schedule
        config.network = unet_config_of(peer_config(options))
        config.training = like.training.model_copy(
            update={"compile": start.training.compile, "steps": start.training.steps}
        )
        given = [*flags(config, start), *given]
    steps = parts.once(
        f"{side}: steps", lambda: steps_for(60 * options.minutes, preset, given, options.probe)
    )

    def whole() -> bool:
        if not train([preset, *given, "--steps", str(steps), "--out", str(out)], parts.left - 20):
            parts.leave(f"the rest of the training by {side}")
        return True

    parts.once(f"{side}: training", whole, least=60.0)
    run = inkdrop.load(out, device=options.device)
    images = steps * run.config.training.batch_size
    seconds = training_seconds(out)
    return {
        "run": str(out),
        "parameters": sum(p.numel() for p in run.denoiser.network.parameters()),
        "batch_size": run.config.training.batch_size,
        "steps": steps,
        "training_seconds": seconds,
        "images_per_second": round(images / seconds, 1),
    }


def by_diffusers(options: argparse.Namespace, side: str) -> dict[str, Any]:
    """A training by diffusers' script, made into a run that inkdrop can be asked about."""
    parts, out = options.parts, options.parts.folder / side
    prepared = options.parts.folder / "data"
    if not prepared.exists():
        prepare(options.data, prepared)
    preset = presets.preset(options.preset)
    given = {
        "data": options.data,
        "network": options.network,
        "batch": options.batch,
        "seconds": 60 * options.minutes,
        "workers": options.workers,
        "checkpoint-every": preset.logging.checkpoint_every,
        "device": options.device,
        "prepared": prepared,
        "out": out,
    }
    words = [word for name, value in given.items() for word in (f"--{name}", str(value))]
    words += ["--flip"] if preset.data.horizontal_flip else []

    def whole() -> dict[str, Any]:
        session = max(1.0, parts.left - options.start)
        command = [sys.executable, str(SCRIPT), *words, "--session-seconds", str(session)]
        subprocess.run(command, check=True, stderr=subprocess.DEVNULL)
        timings: dict[str, Any] = json.loads((out / "timings.json").read_text())
        if not timings["finished"]:
            parts.leave(f"the rest of the training by {side}")
        return timings

    timings = parts.once(f"{side}: training", whole, least=options.start + 1)
    run = parts.folder / f"{side}-run"
    if not (run / "config.json").exists():
        as_run(out, options, timings["steps"], run)
    return {
        "run": str(run),
        "parameters": timings["parameters"],
        "batch_size": options.batch,
        "steps": timings["steps"],
        "training_seconds": timings["training_seconds"],
        "images_per_second": round(timings["images"] / timings["training_seconds"], 1),
        "timings": timings,
    }


def peer_config(options: argparse.Namespace) -> dict[str, Any]:
    """The configuration of the peer's network for these images."""
    return network_config(options.network, SHAPES[options.data])


def as_run(pipeline: Path, options: argparse.Namespace, steps: int, out: Path) -> None:
    """Write a run of inkdrop's with the weights of a diffusers pipeline, which are averaged ones.

    What belongs to the data is taken from a run on the same data, which is trained one step.
    """
    from diffusers import UNet2DModel

    model = UNet2DModel.from_pretrained(pipeline / "unet")
    network = unet_from_diffusers(model.config, model.state_dict())
    with tempfile.TemporaryDirectory() as temporary:
        one = Path(temporary) / "run"
        config = presets.preset(options.preset)
        config.training.steps, config.training.device = 1, "cpu"
        config.training.batch_size, config.logging.samples_every = 2, 0
        config.prediction = "noise"
        config.schedule = ScheduleConfig(kind="linear", timesteps=1000)
        config.network = unet_config_of(model.config)
        run = inkdrop.train(config, one, progress=False)
        state = read_manifest(run.checkpoint)["state"]
    weights = dict(network.state_dict())
    write_checkpoint(
        out / "checkpoints", Checkpoint(steps, {"weights": weights, "ema": weights}, state), 1
    )
    write_config(out, config)


def judged(options: argparse.Namespace, side: str, path: str) -> dict[str, Any]:
    """Bits/dim and the distance of samples."""
    parts = options.parts

    def likelihood() -> dict[str, Any]:
        run = inkdrop.load(path, device=options.device)
        found = bound(run, run.denoiser, options.images, options.terms)
        print(side, found, flush=True)
        return found

    return {
        "bound": parts.once(f"{side}: bits/dim", likelihood),
        "samples": parts.once(
            f"{side}: samples",
            lambda: evaluated(Path(path), options, options.samples[-1]),
            least=2 * LEAST,
        ),
    }


def table(found: dict[str, Any]) -> str:
    """Both sides, a line each."""
    rows = [
        "| side | parameters | training | images/s | bits/dim | Fréchet distance | floor |",
        "|" + 7 * "---|",
    ]
    for side, of in found["sides"].items():
        bits, samples = of["bound"], of["samples"]
        floor = ", ".join(f"{value:.3g} ({name})" for name, value in samples["floor"].items())
        rows.append(
            f"| {side} | {of['parameters']:,} | {of['training_seconds']:.0f} s "
            f"| {of['images_per_second']:,.0f} "
            f"| {bits['bits_per_dim']:.3f} ± {bits['standard_error']:.3f} "
            f"| {samples['frechet_distance']:.3g} | {floor} |"
        )
    return "\n".join(rows)


def parsed() -> argparse.Namespace:
    """The options."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("what", choices=("mnist-60s", "cifar10"))
    parser.add_argument("--preset", help="mnist-gpu for mnist-60s, cifar10 for cifar10")
    parser.add_argument("--seconds", type=float, default=60, help="of mnist's training")
    parser.add_argument("--minutes", type=float, default=20, help="of each side's for cifar10")
    parser.add_argument(
        "--sides", nargs="+", choices=SIDES, default=["inkdrop", "diffusers"], help="of cifar10"
    )
    parser.add_argument("--network", default="b", help="of the peer: a or b, of peers.py")
    parser.add_argument("--batch", type=int, default=128, help="of the peer")
    parser.add_argument("--workers", type=int, default=0, help="of the peer's DataLoader")
    parser.add_argument("--samples", type=int, nargs="+", help="2000 10000, or 10000 for cifar10")
    parser.add_argument("--images", type=int, default=256, help="held-out ones for bits/dim")
    parser.add_argument("--terms", type=int, default=250, help="of the bound, for each image")
    parser.add_argument("--extractor", default="classifier", help="of features")
    parser.add_argument("--probe", type=int, default=300, help="steps, to see how long one takes")
    parser.add_argument("--device", choices=("auto", "cpu", "cuda"), default="auto")
    parser.add_argument("--limit", type=float, default=9, help="minutes of this process")
    parser.add_argument("--keep", type=Path, help="the folder to go on in")
    parser.add_argument("--quick", action="store_true", help="seconds, on the digits")
    options = parser.parse_args()
    on_cifar = options.what == "cifar10"
    options.preset = options.preset or ("cifar10" if on_cifar else "mnist-gpu")
    options.samples = options.samples or ([10_000] if on_cifar else [2000, 10_000])
    options.data = "cifar10"
    options.start = 40.0  # seconds, that diffusers' script may take beside its training
    if options.device == "auto":
        options.device = "cuda" if torch.cuda.is_available() else "cpu"
    if options.quick:
        options.preset = options.data = "digits"
        options.network, options.batch, options.probe, options.start = "a", 8, 20, 1.0
        options.seconds, options.minutes, options.extractor = 2.0, 0.05, "pixels"
        options.images, options.terms = 4, 10
        options.samples = [100] if on_cifar else [100, 150]
    return options


def main() -> None:
    """Measure what is asked for, as far as the time goes, and write it down."""
    options = parsed()
    name = f"gpu_quality_{options.what.replace('-', '_')}"
    asked = ("what", "preset", "seconds", "minutes", "network", "batch", "workers", "samples")
    settings = {key: getattr(options, key) for key in (*asked, "images", "terms", "device")}
    with tempfile.TemporaryDirectory() as temporary:
        folder = options.keep or (Path(temporary) if options.quick else Path("runs") / name)
        options.parts = Parts(folder, options.limit, settings)
        found = (cifar10 if options.what == "cifar10" else mnist_60s)(options)
        if options.what == "cifar10":
            print(table(found))
        path = write_result(
            name,
            {
                "settings": settings,
                "device": device_name(torch.device(options.device)),
                "peer_versions": {
                    package: package_version(package) for package in ("diffusers", "accelerate")
                },
                **found,
            },
            folder if options.quick else RESULTS,
        )
        kept = options.keep is not None or not options.quick
        print(f"written to {path}" if kept else "quick: nothing is kept")


if __name__ == "__main__":
    main()
