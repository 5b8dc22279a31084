"""Does training hold on GPUs what it promises, and what does that cost there?

    python benchmarks/gpu_training.py                       # one GPU or more
    python benchmarks/gpu_training.py --device cpu --quick  # that the program itself works

Trains the preset ho-cifar10's network (35.7 million parameters, with dropout) on random images,
each measurement in processes of its own, and looks at five things (--parts chooses):

exact    N + M steps against N steps, SIGKILL, and M more by a new process: the same bits? With
         --training.deterministic and without; and whether two whole trainings are the same without.
cost     what --deterministic costs: seconds of a step with it over those without, in turns.
saver    what a checkpoint costs: the copy to pinned memory, what else `Saver.save` takes, and the
         steps while it is written beside those before.
memory   a batch that does not fit: the line that is shown for it, and the parts that
         --batch-size auto finds. On a CPU, which gives no such error, under a limit.
many     under torchrun, all GPUs that are visible (two processes on a CPU): images/s of DDP and
         FSDP2 in bfloat16 against one process, with its global batch and with its batch in each;
         and in float32, without dropout and TF32, how far the weights are from one process's after
         50 steps, beside what computing its batch in as many parts changes.

Prints a table and writes gpu_training.json into --out (benchmarks/results). Leaves with 1 if a
promise is broken: bits that differ with --deterministic, an error that is not one line, no parts
that fit, weights that differ by more than rounding.
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from statistics import median
from typing import Any

import torch
from common import RESULTS, write_result

from inkdrop import presets
from inkdrop.checkpoint import Checkpoint, newest_checkpoint, read_checkpoint, read_manifest
from inkdrop.config import Config, UNetConfig
from inkdrop.data.images import ImageSet, Source
from inkdrop.environment import device_name
from inkdrop.errors import InkdropError
from inkdrop.processes import joined
from inkdrop.training.deterministic import deterministic
from inkdrop.training.saving import Saver
from inkdrop.training.trainer import Trainer

WARM_UP = 5
ROUNDING = 1e-2  # of the way that the weights have gone; what is wrong is off by much of it

Settings = dict[str, Any]


# What the processes do that are started for it


def trainer_of(settings: Settings, out: Path) -> Trainer:
    """A training of the network on random images, as `settings` say."""
    side, images = (8, 512) if settings["quick"] else (32, 16_384)
    config: Config = presets.ho_cifar10()
    if settings["quick"]:
        config.network = UNetConfig(channels=16, multipliers=(1, 2), blocks=1, dropout=0.1)
    if not settings.get("dropout", True):
        assert config.network is not None
        config.network.dropout = 0.0
    for name in ("steps", "batch_size", "precision", "deterministic", "accumulation", "parallel"):
        if name in settings:
            setattr(config.training, name, settings[name])
    config.training.device = settings["device"]
    config.training.warmup_steps = 0
    every = settings.get("checkpoint_every", 10**9)
    config.logging.checkpoint_every, config.logging.checkpoint_minutes = every, None
    config.logging.held_out_every = 10**9
    config.logging.samples_every = 0
    pixels = torch.randint(
        256,
        (images, 3, side, side),
        dtype=torch.uint8,
        generator=torch.Generator().manual_seed(0),
    )
    return Trainer(config, out, source=Source(ImageSet(pixels, None, "noise"), None))


def train(settings: Settings, folder: Path) -> dict[str, Any]:
    """Train to the end in `folder`, or to SIGKILL right after step `kill_after`."""
    torch.backends.cudnn.allow_tf32 = settings.get("tf32", True)
    if settings.get("limit_bytes"):
        limit_memory(settings["limit_bytes"])
    trainer = None
    try:
        trainer = trainer_of(settings, folder)
        began_at = trainer.step
        if kill_after := settings.get("kill_after"):
            take = trainer.train_step

            def step_or_die() -> None:
                take()
                if trainer.step == kill_after:
                    trainer.saver.wait()  # one checkpoint is to stand
                    os.kill(os.getpid(), signal.SIGKILL)

            trainer.train_step = step_or_die  # type: ignore[method-assign]
        trainer.run()
    except InkdropError as error:
        return {"error": str(error)}
    peak = None
    if trainer.device.type == "cuda":
        peak = torch.cuda.max_memory_allocated(trainer.device)
    return {
        "from": began_at,
        "step": trainer.step,
        "accumulation": trainer.accumulation,
        "peak_bytes": peak,
    }


def limit_memory(more: int) -> None:
    """Let this process take so many bytes more, and no further."""
    import resource

    pages = int(Path("/proc/self/statm").read_text().split()[0])
    limit = pages * resource.getpagesize() + more
    resource.setrlimit(resource.RLIMIT_AS, (limit, limit))


def speed(settings: Settings, folder: Path) -> dict[str, Any]:
    """The median seconds of a step of training."""
    trainer = trainer_of(settings, folder)
    with deterministic(settings.get("deterministic", False)):
        step = median(timed(trainer, settings["timed"]))
    return {"step_seconds": step, "images_per_second": trainer.stream.batch_size / step}


def timed(trainer: Trainer, steps: int, warm_up: int = WARM_UP) -> list[float]:
    """The seconds of each of some steps."""
    took = []
    for _ in range(warm_up + steps):
        took.append(seconds_of(trainer.train_step, trainer.device))
    return took[warm_up:]


def seconds_of(action: Callable[[], object], device: torch.device) -> float:
    """How long it takes, with what it leaves the GPU to do."""
    began = time.perf_counter()
    action()
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter() - began


def save(settings: Settings, folder: Path) -> dict[str, Any]:
    """What checkpoints cost while training goes on; the first, which makes the room, apart."""
    trainer = trainer_of(settings, folder / "run")
    timed(trainer, 0)
    saver = Saver(folder / "checkpoints", keep=1)
    tensors = trainer.state.tensors()
    found: dict[str, list[float]] = {
        name: [] for name in ("copy", "stall_beyond_the_copy", "step_alone", "step_while_writing")
    }
    for repeat in range(settings["repeats"] + 1):
        alone = timed(trainer, settings["timed"], warm_up=0)
        copied, stalled = saver.copied, saver.stalled
        saver.save(Checkpoint(repeat, tensors))
        copied, stalled = saver.copied - copied, saver.stalled - stalled
        writing = []
        while saver.busy:
            writing.append(seconds_of(trainer.train_step, trainer.device))
        saver.wait()
        if repeat == 0:
            first = copied
            continue
        found["copy"].append(copied)
        found["stall_beyond_the_copy"].append(stalled - copied)
        found["step_alone"].append(median(alone))
        if writing:
            found["step_while_writing"].append(median(writing))
    size = sum(t.numel() * t.element_size() for part in tensors.values() for t in part.values())
    return {
        "parameters": sum(p.numel() for p in trainer.parameters.values()),
        "megabytes": round(size / 1e6, 1),
        "first_copy_seconds": round(first, 5),
        **{f"{name}_seconds": round(median(v), 5) if v else None for name, v in found.items()},
    }


TASKS = {"train": train, "speed": speed, "save": save}


# What starts them


class Jobs:
    """Starts tasks in processes of their own.

    Args:
        settings: of all of them.
        many: how many processes share a task that is given to many.
    """

    def __init__(self, settings: Settings, many: int) -> None:
        self.settings = settings
        self.many = many

    def __call__(
        self, task: str, folder: Path, processes: int = 1, killed: bool = False, **more: Any
    ) -> dict[str, Any]:
        """What a task finds; nothing if it is to be killed."""
        given = json.dumps({**self.settings, **more})
        launcher = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node"]
        with tempfile.TemporaryDirectory() as temporary:
            answer = Path(temporary) / "found.json"
            done = subprocess.run(
                [
                    sys.executable,
                    *([*launcher, str(processes)] if processes > 1 else []),
                    __file__,
                    *("--task", task, str(folder), str(answer), given),
                ],
                capture_output=True,
                text=True,
            )
            if killed and done.returncode == -signal.SIGKILL:
                return {}
            if killed or done.returncode:
                raise RuntimeError(f"{task} left with {done.returncode}: {done.stderr[-6000:]}")
            found: dict[str, Any] = json.loads(answer.read_text())
        return found


def hashes(folder: Path) -> dict[str, str]:
    """The hash of each file of the newest checkpoint of a training."""
    path = newest_checkpoint(folder / "checkpoints")
    assert path is not None
    return {name: entry["sha256"] for name, entry in read_manifest(path)["files"].items()}


def weights(folder: Path) -> torch.Tensor:
    """All weights of a training's newest checkpoint."""
    path = newest_checkpoint(folder / "checkpoints")
    assert path is not None
    tensors = read_checkpoint(path, ("weights",)).tensors["weights"]
    return torch.cat([tensors[name].double().flatten() for name in sorted(tensors)])


def exact(jobs: Jobs, quick: bool, faults: list[str]) -> dict[str, Any]:
    """Whether training that was killed goes on to the same bits."""
    first, steps = (4, 9) if quick else (30, 60)
    found: dict[str, Any] = {"killed_after_steps": first, "steps": steps}
    for wanted in (True, False):
        with tempfile.TemporaryDirectory() as temporary:
            given = {"steps": steps, "checkpoint_every": first, "deterministic": wanted}
            whole, again, stopped = (Path(temporary) / name for name in ("a", "b", "c"))
            jobs("train", whole, **given)
            jobs("train", again, **given)
            jobs("train", stopped, killed=True, kill_after=first + 2, **given)
            went_on = jobs("train", stopped, **given)
            if went_on["from"] != first:
                faults.append(f"a killed training went on from step {went_on['from']}, not {first}")
            same = hashes(stopped) == hashes(whole)
            repeats = hashes(again) == hashes(whole)
            away = (weights(stopped) - weights(whole)).abs().max().item()
        name = "deterministic" if wanted else "not_deterministic"
        found[name] = {
            "killed_and_resumed_is_the_same": same,
            "trained_twice_is_the_same": repeats,
            "largest_difference_of_a_weight": away,
        }
        if wanted and not (same and repeats):
            faults.append("with --deterministic the bits of a resumed or repeated training differ")
    return found


def cost(jobs: Jobs, quick: bool, faults: list[str]) -> dict[str, Any]:
    """What --deterministic costs."""
    repeats, steps = (2, 5) if quick else (4, 40)
    took: dict[bool, list[float]] = {False: [], True: []}
    for _ in range(repeats):
        for wanted, seconds in took.items():
            with tempfile.TemporaryDirectory() as folder:
                one = jobs("speed", Path(folder) / "run", deterministic=wanted, timed=steps)
            seconds.append(one["step_seconds"])
    return {
        "step_seconds": round(median(took[False]), 5),
        "step_seconds_deterministic": round(median(took[True]), 5),
        "ratio": round(median(d / f for f, d in zip(*took.values(), strict=True)), 3),
        "ratio_of_each_repeat": [round(d / f, 3) for f, d in zip(*took.values(), strict=True)],
    }


def saver(jobs: Jobs, quick: bool, faults: list[str]) -> dict[str, Any]:
    """What a checkpoint costs."""
    repeats, steps = (2, 5) if quick else (5, 20)
    with tempfile.TemporaryDirectory() as folder:
        return jobs("save", Path(folder), repeats=repeats, timed=steps)


def memory(jobs: Jobs, quick: bool, faults: list[str]) -> dict[str, Any]:
    """What is said of a batch that does not fit, and which part of it does."""
    batch = jobs.settings["too_large"]
    given: Settings = {"batch_size": batch, "steps": 2}
    limit = {"limit_bytes": 2**28} if jobs.settings["device"] == "cpu" else {}
    with tempfile.TemporaryDirectory() as folder:
        whole = jobs("train", Path(folder) / "whole", **given, **limit)
        parts = jobs("train", Path(folder) / "parts", accumulation="auto", **given)
    error = whole.get("error")
    if error is None:
        faults.append(f"a batch of {batch} fits here: give a larger --too-large")
    elif "\n" in error or "out of memory" not in error:
        faults.append(f"memory that ran out is told as {error!r}")
    if "error" in parts:
        faults.append(f"--batch-size auto: {parts['error']}")
    return {
        "batch_size": batch,
        "without_auto": error,
        "parts": parts.get("accumulation"),
        "examples_at_once": batch // parts.get("accumulation", batch),
        "peak_bytes": parts.get("peak_bytes"),
    }


def many(jobs: Jobs, quick: bool, faults: list[str]) -> dict[str, Any] | None:
    """What more processes are worth, and that they compute the same."""
    size = jobs.many
    if size < 2:
        return None
    repeats, timed_steps, steps = (1, 5, 10) if quick else (3, 40, 50)
    batch = jobs.settings["batch_size"]
    arrangements: dict[str, tuple[int, Settings]] = {
        "one process": (1, {}),
        **{
            f"{size} processes, {kind}, {what}": (size, {"parallel": kind, "batch_size": rows})
            for kind in ("ddp", "fsdp")
            for what, rows in (("its global batch", batch), ("its batch in each", size * batch))
        },
    }
    rates: dict[str, list[float]] = {name: [] for name in arrangements}
    for _ in range(repeats):
        for name, (processes, given) in arrangements.items():
            with tempfile.TemporaryDirectory() as folder:
                given = {"precision": "bfloat16", "timed": timed_steps, **given}
                one = jobs("speed", Path(folder) / "run", processes, **given)
            rates[name].append(one["images_per_second"])
    alone = median(rates["one process"])
    found: dict[str, Any] = {
        "processes": size,
        "global_batch": batch,
        "images_per_second": {name: round(median(r), 1) for name, r in rates.items()},
        "against_one_process": {name: round(median(r) / alone, 2) for name, r in rates.items()},
    }
    plain: Settings = {"precision": "float32", "dropout": False, "tf32": False}
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        jobs("train", folder / "start", steps=1, **plain)
        jobs("train", folder / "one", steps=steps, **plain)
        jobs("train", folder / "in parts", steps=steps, accumulation=size, **plain)
        for kind in ("ddp", "fsdp"):
            jobs("train", folder / kind, size, steps=steps, parallel=kind, **plain)
        end = weights(folder / "one")
        gone = (end - weights(folder / "start")).norm()
        away = {
            kind: ((weights(folder / kind) - end).norm() / gone).item()
            for kind in ("in parts", "ddp", "fsdp")
        }
    found["float32_steps"] = steps
    found["weights_apart_over_the_way_gone"] = away
    for kind, distance in away.items():
        if not distance < ROUNDING:
            faults.append(f"{kind}: weights are {distance:.2g} of their way from one process's")
    return found


PARTS = {"exact": exact, "cost": cost, "saver": saver, "memory": memory, "many": many}


def rows_of(found: Any, name: str = "") -> list[tuple[str, str]]:
    """Nested figures as lines of a table."""
    if isinstance(found, dict):
        inner = ((f"{name} · {key}" if name else key, value) for key, value in found.items())
        return [row for key, value in inner for row in rows_of(value, key.replace("_", " "))]
    return [(name, f"{found:.4g}" if isinstance(found, float) else str(found))]


def main() -> int:
    """Start everything, and write it down."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--device", default="cuda", help="cuda or cpu")
    parser.add_argument("--quick", action="store_true", help="small and short: a trial")
    parser.add_argument("--parts", nargs="+", choices=PARTS, default=list(PARTS))
    parser.add_argument("--batch-size", type=int, help="(default: 128; quick: 16)")
    parser.add_argument("--too-large", type=int, help="a batch (default: 8192; quick: 2048)")
    parser.add_argument("--out", type=Path, default=Path(os.environ.get("OUT", RESULTS)))
    parser.add_argument("--task", nargs=4, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.task:
        task, folder, answer, given = options.task
        with joined() as processes:
            found = TASKS[task](json.loads(given), Path(folder))
            if processes.first:
                Path(answer).write_text(json.dumps(found))
        return 0
    if options.device == "cuda" and not torch.cuda.is_available():
        parser.error("no GPU is visible to torch; --device cpu --quick tries the program itself")
    on_gpu = options.device == "cuda"
    count = torch.cuda.device_count() if on_gpu else 2
    jobs = Jobs(
        {
            "quick": options.quick,
            "device": options.device,
            "batch_size": options.batch_size or (16 if options.quick else 128),
            "too_large": options.too_large or (2048 if options.quick else 8192),
        },
        count,
    )
    faults: list[str] = []
    figures: dict[str, Any] = {
        "device": device_name(torch.device(options.device)),
        "devices": count if on_gpu else 0,
        "cuda": torch.version.cuda,
        "quick": options.quick,
        "batch_size": jobs.settings["batch_size"],
    }
    for name in options.parts:
        began = time.monotonic()
        try:
            figures[name] = PARTS[name](jobs, options.quick, faults)
        except RuntimeError as error:  # the other parts tell something too
            figures[name] = {"failed": str(error)}
            faults.append(f"{name} failed")
        took = f"{time.monotonic() - began:.0f} s"
        print(f"{name} ({took})", flush=True)
        if figures[name] is None:
            print("  not measured: it takes two GPUs")
            continue
        rows = rows_of(figures[name])
        width = max(len(key) for key, _ in rows)
        for key, value in rows:
            print(f"  {key:{width}}  {value}")
    figures["faults"] = faults
    for fault in faults:
        print(f"not as promised: {fault}")
    name = "gpu_training_quick" if options.quick else "gpu_training"
    print(f"written to {write_result(name, figures, options.out)}")
    return 1 if faults else 0


if __name__ == "__main__":
    sys.exit(main())
