"""How does the cost of training grow with resolution, channels, batch, data and steps, and why?

    python benchmarks/cost_growth.py                       # about six minutes on two quiet cores
    python benchmarks/cost_growth.py --quick --device cpu  # that the program itself works
    python benchmarks/cost_growth.py --only batch          # one variable, in a temporary folder

One variable at a time grows from a base: `Trainer.train_step` without compilation, float32 on a CPU
and bfloat16 on a GPU, each point in a process of its own. Measured are the seconds of steps, and
the most memory above what a process holds that has trained a tiny network (resident on a CPU, that
of tensors on a GPU). A point that would take longer than --budget seconds, by what the points
before it grew, is skipped and says so. Resolution, channels and batch start from images of 32×32;
data and steps from the preset digits' 8×8. What grows with the data is the start of training: the
first one, which checks the images, and one again, which knows them.

Why it grows as it does is measured too. A step is profiled by kind of work, beside the least step
its network can do (one image as small as its levels allow: what does not depend on the images);
floating-point operations and what is saved for the backward pass are counted. Each exponent, from
one point to the next, is then split into what every part adds to it, exactly: a part's share of the
growth is its difference over the logarithmic mean of the totals, so that the shares add up to the
exponent. Where the exponent bends, the part that moved it most is the cause.

Writes results/cost_growth.json and .png (cost_growth_cuda on a GPU).
"""

from __future__ import annotations

import argparse
import cProfile
import json
import math
import os
import pstats
import resource
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from itertools import pairwise
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import psutil
import torch
from common import RESULTS, write_result
from paired import peak_bytes, wait_for_device
from torch.autograd.graph import saved_tensors_hooks
from torch.utils.flop_counter import FlopCounterMode, sdpa_backward_flop_count, sdpa_flop_count

from inkdrop import presets
from inkdrop.allocator import keep_memory
from inkdrop.config import UNetConfig
from inkdrop.data.places import CACHE_VARIABLE
from inkdrop.environment import device_name
from inkdrop.training.losses import LossWindow
from inkdrop.training.trainer import Trainer

REACH, BEND = 3, 0.25  # points of a tail; the change of an exponent that is called a bend
STEPS_OF_A_POINT = 6  # about how many a point takes, counted ones included
PROFILED = 100_000  # images of a start
SHARE_OF_MEMORY = 0.6  # of what is free, that a point may take


@dataclass(frozen=True)
class Case:
    """What is trained. `examples` is 0 for as many as two batches take, 64 at least."""

    resolution: int
    channels: int
    batch: int
    image_channels: int = 3
    multipliers: tuple[int, ...] = (1, 2, 2)
    examples: int = 0

    @property
    def images(self) -> int:
        return self.examples or max(64, 2 * self.batch)


@dataclass(frozen=True)
class Variable:
    """What grows; the time of a step is expected to grow by this power of it at least."""

    label: str
    unit: str
    values: tuple[int, ...]
    quick: tuple[int, ...]
    power: float


VARIABLES = {
    "resolution": Variable("Resolution", "pixels a side", (16, 32, 64, 128, 256), (8, 16, 32), 2),
    "channels": Variable("Channels", "channels at full resolution", (16, 32, 64, 128), (8, 16), 2),
    "batch": Variable("Batch", "images per step", (1, 2, 4, 8, 16, 32, 64, 128, 256), (4, 16), 1),
    "examples": Variable(
        "Data", "images of 8×8", (1_000, 10_000, 100_000, 1_000_000), (1_000, 10_000), 0
    ),
    "steps": Variable("Length", "steps of 8×8", (10, 30, 100, 300, 1_000), (10, 30), 0),
}
DIGITS = Case(8, 32, 16, image_channels=1, multipliers=(1, 1))
BASES = {"cpu": Case(32, 32, 8), "cuda": Case(32, 64, 64)}
QUICK = Case(16, 8, 4, multipliers=(1, 2))

STARTS = {"start_seconds": "first start", "start_again_seconds": "again"}
KINDS = {  # of work, by what the profiler calls it
    "attention": ("bmm", "softmax", "scaled_dot", "_products", "flash", "fmha"),
    "convolution": ("conv",),
    "normalisation": ("group_norm", "groupnorm"),
    "optimizer and average": ("adam", "foreach", "lerp", "optimizer."),
    "between operations": ("step of training", "backward0", "autograd::"),
}
OTHER = "other operations"


# -- in the process of a point ------------------------------------------------------------------


def new_trainer(case: Case, device: str, out: str, images: np.ndarray) -> Trainer:
    """A training at its start."""
    config = presets.digits()
    config.network = UNetConfig(channels=case.channels, multipliers=case.multipliers, blocks=1)
    config.training.batch_size = case.batch
    config.training.device = device
    config.training.compile = "off"
    config.data.size = (case.resolution,)  # large ones would be made smaller
    trainer = Trainer(config, out, source=images)
    side = case.resolution
    assert trainer.train_set.shape == (case.image_channels, side, side), trainer.train_set.shape
    return trainer


def random_images(case: Case) -> np.ndarray:
    """uint8 (N, H, W, C)."""
    shape = (case.images, case.resolution, case.resolution, case.image_channels)
    return np.random.default_rng(0).integers(0, 256, shape, dtype=np.uint8)


class Meter:
    """The seconds of actions, and the most memory since it was made."""

    def __init__(self) -> None:
        wait_for_device()
        if torch.cuda.is_initialized():
            torch.cuda.reset_peak_memory_stats()
        self.before = peak_bytes()

    @property
    def memory(self) -> int:
        """Bytes above those at the beginning."""
        return peak_bytes() - self.before

    def seconds(self, action: Callable[[], Any]) -> float:
        wait_for_device()
        began = time.perf_counter()
        action()
        wait_for_device()
        return time.perf_counter() - began

    def repeated(self, action: Callable[[], Any], least: int, seconds: float) -> list[float]:
        """The seconds of each: `least` of them, and more (100 at most) until `seconds` are over."""
        taken: list[float] = []
        while len(taken) < least or (len(taken) < 100 and sum(taken) < seconds):
            taken.append(self.seconds(action))
        return taken


def kind_of(operation: str) -> str:
    """The kind of work, of those in KINDS or OTHER."""
    name = operation.lower()
    return next((k for k, parts in KINDS.items() if any(p in name for p in parts)), OTHER)


def profiled(trainer: Trainer, times: int) -> dict[str, Any]:
    """The shares of a step's time by kind of work, and how many operations (GPU: kernels) it has.

    On a GPU shares are those of the kernels, and "between operations" is when none ran.
    """
    cuda = trainer.device.type == "cuda"
    kinds = [torch.profiler.ProfilerActivity.CPU]
    kinds += [torch.profiler.ProfilerActivity.CUDA] if cuda else []
    with torch.profiler.profile(activities=kinds):
        torch.ones(1, device=trainer.device).add(1)  # the first time is another
    with torch.profiler.profile(activities=kinds) as profile:
        began = time.perf_counter()
        with torch.profiler.record_function("step of training"):
            for _ in range(times):
                trainer.train_step()
            wait_for_device()
        wall = 1e6 * (time.perf_counter() - began)
    spent: dict[str, float] = dict.fromkeys([*KINDS, OTHER], 0.0)
    for row in profile.key_averages():
        if not cuda:
            spent[kind_of(row.key)] += row.self_cpu_time_total
        elif row.key.startswith("aten::"):
            spent[kind_of(row.key)] += row.self_device_time_total
    events = profile.events()
    if cuda:
        spent["between operations"] = max(0.0, wall - sum(spent.values()))
        operations = sum(e.device_type == torch.autograd.DeviceType.CUDA for e in events)
    else:  # those that consist of no others
        operations = sum(
            e.name.startswith("aten::")
            and not any(child.name.startswith("aten::") for child in e.cpu_children)
            for e in events
        )
    whole = sum(spent.values())
    return {
        "operations": round(operations / times),
        "shares": {kind: round(value / whole, 4) for kind, value in spent.items()},
    }


def counted(trainer: Trainer) -> dict[str, int]:
    """Floating-point operations of a step, and the bytes it saves for the backward pass."""
    own = {p.untyped_storage().data_ptr() for p in trainer.network.parameters()}
    saved: dict[int, int] = {}

    def pack(tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in own:
            saved[storage.data_ptr()] = storage.nbytes()
        return tensor

    attention = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu
    backward = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu_backward
    on_cpu = {  # which the counter does not know by itself
        attention: lambda *shapes, **_: sdpa_flop_count(*shapes[:3]),
        backward: lambda *shapes, **_: sdpa_backward_flop_count(*shapes[:4]),
    }
    with (
        FlopCounterMode(display=False, custom_mapping=on_cpu) as flop,
        saved_tensors_hooks(pack, lambda tensor: tensor),
    ):
        trainer.train_step()
    return {"flop": flop.get_total_flops(), "saved_bytes": sum(saved.values())}


def least_step(case: Case, device: str, out: str, meter: Meter) -> float:
    """Seconds of a step with one image, of one pixel at the lowest level."""
    side = 2 ** (len(case.multipliers) - 1)
    least = replace(case, resolution=side, batch=1, examples=0)
    with training(least, device, out) as trainer:
        trainer.train_step()
        return median(meter.repeated(trainer.train_step, 5, 0.5))


@contextmanager
def training(case: Case, device: str, out: str) -> Iterator[Trainer]:
    trainer = new_trainer(case, device, out, random_images(case))
    try:
        yield trainer
    finally:
        trainer.folder.let_go()


def state_bytes(trainer: Trainer) -> int:
    """Of weights, gradients, two moments and averaged weights."""
    return 5 * sum(p.numel() * p.element_size() for p in trainer.network.parameters())


def measure(case: Case, device: str, seconds: float, folder: str) -> dict[str, Any]:
    """What a point is."""
    with training(Case(8, 4, 1, examples=64), device, f"{folder}/tiny") as trainer:
        trainer.train_step()  # brings in what any training brings in
    meter = Meter()
    images = random_images(case)
    made: list[Trainer] = []
    start = meter.seconds(lambda: made.append(new_trainer(case, device, f"{folder}/run", images)))
    (trainer,) = made
    first = meter.seconds(trainer.train_step)
    if first < seconds:
        meter.repeated(trainer.train_step, 2, 0)
    before = resource.getrusage(resource.RUSAGE_SELF)
    steps = meter.repeated(trainer.train_step, 3, seconds)
    after = resource.getrusage(resource.RUSAGE_SELF)
    system, user = after.ru_stime - before.ru_stime, after.ru_utime - before.ru_utime
    found = {
        "seconds_per_image": median(steps) / case.batch,
        "memory_bytes": meter.memory,
        "steps_seconds": rounded(steps),
        "start_seconds": start,
        "first_step_seconds": first,
        "system_share": round(system / (system + user), 4),
        "page_faults_per_step": round((after.ru_minflt - before.ru_minflt) / len(steps)),
        "state_bytes": state_bytes(trainer),
        "data_bytes": images.nbytes,
        **counted(trainer),
        **profiled(trainer, max(1, min(5, int(1 / median(steps))))),
    }
    trainer.folder.let_go()
    found["least_step_seconds"] = least_step(case, device, f"{folder}/least", meter)
    if case.examples:
        again = meter.seconds(lambda: made.append(new_trainer(case, device, f"{folder}/2", images)))
        made[1].folder.let_go()
        found["start_again_seconds"] = again
        found["start_by_function"] = start_by_function(case, device, folder, images)
    return found


def start_by_function(case: Case, device: str, folder: str, images: np.ndarray) -> dict[str, float]:
    """The functions in which a first start spends most, with their shares; of PROFILED images."""
    os.environ[CACHE_VARIABLE] = f"{folder}/empty"
    profile = cProfile.Profile()
    profile.runcall(
        new_trainer, case, device, f"{folder}/profiled", images[:PROFILED]
    ).folder.let_go()
    spent: Counter[str] = Counter()
    for (file, _, function), row in pstats.Stats(profile).stats.items():  # type: ignore[attr-defined]
        spent[f"{Path(file).name}:{function}"] += row[2]
    whole = spent.total()
    return {name: round(seconds / whole, 4) for name, seconds in spent.most_common(6)}


def measure_steps(case: Case, device: str, marks: list[int], folder: str) -> list[dict[str, Any]]:
    """What a step is at each of the marks, and the most memory until then.

    The time of a step is the median of those in the later half of the way from the start.
    """
    with training(Case(8, 4, 1, examples=64), device, f"{folder}/tiny") as trainer:
        trainer.train_step()
    meter = Meter()
    found = []
    with training(case, device, f"{folder}/run") as trainer:
        taken: list[float] = []
        faults = [resource.getrusage(resource.RUSAGE_SELF).ru_minflt]
        for mark in marks:
            while len(taken) < mark:
                taken.append(meter.seconds(trainer.train_step))
                faults.append(resource.getrusage(resource.RUSAGE_SELF).ru_minflt)
                if trainer.step % trainer.config.logging.metrics_every == 0:
                    trainer.window = LossWindow()
            recent = taken[mark // 2 :]
            found.append(
                {
                    "value": mark,
                    "step_seconds": median(recent),
                    "seconds_per_image": median(recent) / case.batch,
                    "memory_bytes": meter.memory,
                    "steps_seconds": rounded(recent[-50:]),
                    "page_faults_per_step": round((faults[-1] - faults[mark // 2]) / len(recent)),
                    "state_bytes": state_bytes(trainer),
                    "data_bytes": random_images(case).nbytes,
                }
            )
        more = {**counted(trainer), **profiled(trainer, 5)}
    more["least_step_seconds"] = least_step(case, device, f"{folder}/least", meter)
    return [row | more for row in found]


def rounded(values: list[float]) -> list[float]:
    return [float(f"{value:.4g}") for value in values]


def measure_job(job: dict[str, Any]) -> Any:
    """What a job asks for, in this process."""
    keep_memory()
    case = Case(**job["case"] | {"multipliers": tuple(job["case"]["multipliers"])})
    with tempfile.TemporaryDirectory() as folder:
        os.environ[CACHE_VARIABLE] = f"{folder}/cache"  # the check of images is kept there
        if "marks" in job:
            return measure_steps(case, job["device"], job["marks"], folder)
        return measure(case, job["device"], job["seconds"], folder)


# -- in the process that starts them ------------------------------------------------------------


def in_new_process(job: dict[str, Any], seconds: float) -> Any:
    """What a job finds, or {"skipped": why}."""
    command = [sys.executable, __file__, "--measure", json.dumps(job)]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=seconds)
    except subprocess.TimeoutExpired:
        return {"skipped": f"took longer than {seconds:.0f} s"}
    if done.returncode < 0:
        return {"skipped": f"its process was ended by signal {-done.returncode} (out of memory?)"}
    if done.returncode:
        sys.exit(f"{done.stderr}{job['case']} could not be measured")
    return json.loads(done.stdout.splitlines()[-1])


def expected(points: list[dict[str, Any]], value: int, power: float) -> tuple[float, float]:
    """Seconds of a whole point at `value`, and its bytes, by what the last two points grew.

    A batch takes longer in proportion, which an image does not.
    """
    measured = [p for p in points if "skipped" not in p]
    if not measured:
        return 0.0, 0.0
    last = measured[-1]
    grown = []
    for key in ("step_seconds", "memory_bytes"):
        slope = power
        if len(measured) > 1:
            before = measured[-2]
            change = last[key] / max(before[key], 1e-9)
            slope = max(power, math.log(max(change, 1)) / math.log(last["value"] / before["value"]))
        grown.append(last[key] * (value / last["value"]) ** slope)
    return STEPS_OF_A_POINT * grown[0], grown[1]


def free_memory(device: str) -> float:
    if device == "cuda":
        return float(torch.cuda.mem_get_info()[0])
    return float(psutil.virtual_memory().available)


def swept(
    name: str, base: Case, device: str, quick: bool, budget: float, known: dict[Case, Any]
) -> list[dict[str, Any]]:
    """The points of a variable, each {"value": …} with what was measured, or why it was skipped."""
    variable = VARIABLES[name]
    values = variable.quick if quick else variable.values
    if name == "steps":
        job = {"case": asdict(DIGITS), "device": device, "marks": values}
        found = in_new_process(job, 2 * budget)
        return [{"value": value} | found for value in values] if "skipped" in found else found
    points: list[dict[str, Any]] = []
    for value in values:
        case = replace(DIGITS if name == "examples" else base, **{name: value})
        seconds, size = expected(points, value, variable.power)
        if seconds > budget:
            found = {"skipped": f"would take about {seconds:.0f} s"}
        elif size > SHARE_OF_MEMORY * free_memory(device):
            found = {"skipped": f"would take about {size / 1e9:.0f} GB"}
        else:
            job = {"case": asdict(case), "device": device, "seconds": 0.2 if quick else 2.5}
            found = known[case] = known.get(case) or in_new_process(job, 2 * budget)
        if "skipped" not in found:
            found = found | {"step_seconds": found["seconds_per_image"] * case.batch}
        points.append({"value": value, "case": asdict(case)} | found)
        print(f"{name} {value:,}: {told(points[-1])}", flush=True)
    return points


def told(point: dict[str, Any]) -> str:
    if "skipped" in point:
        return f"skipped: {point['skipped']}"
    return (
        f"{1 / point['seconds_per_image']:,.1f} images/s, {point['memory_bytes'] / 1e6:,.0f} MB, "
        f"start {point['start_seconds']:.2f} s"
    )


# -- what the points say ------------------------------------------------------------------------


def slope(points: list[dict[str, Any]], key: str) -> float | None:
    """The exponent of least squares in logarithms."""
    known = [(p["value"], p[key]) for p in points if p.get(key, 0) > 0]
    if len(known) < 2:
        return None
    x, y = np.log(np.array(known, dtype=float)).T
    return round(float(np.polyfit(x, y, 1)[0]), 3)


def exponents(points: list[dict[str, Any]], key: str) -> dict[str, float | None]:
    return {"overall": slope(points, key), "tail": slope(points[-REACH:], key)}


def time_parts(point: dict[str, Any]) -> dict[str, dict[str, float]]:
    """The seconds of an image, split in three ways, of which each adds up to the whole."""
    whole = point["seconds_per_image"]
    batch = point["step_seconds"] / whole
    least = min(point["least_step_seconds"] / batch, whole)
    return {
        "by_kind": {kind: share * whole for kind, share in point["shares"].items()},
        "by_origin": {"whatever the images": least, "with the images": whole - least},
    }


def memory_parts(point: dict[str, Any]) -> dict[str, dict[str, float]]:
    """The bytes of memory; the rest passes by: gradients of activations, workspace."""
    whole = point["memory_bytes"]
    parts = {
        "weights, gradients, moments, average": point["state_bytes"],
        "images": point["data_bytes"],
        "saved for the backward pass": point["saved_bytes"],
    }
    return {"by_kind": parts | {"the rest": whole - sum(parts.values())}}


def contributions(
    before: Mapping[str, float], after: Mapping[str, float], ratio: float
) -> dict[str, float]:
    """What each part adds to the exponent between two totals; they add up to it."""
    a, b = sum(before.values()), sum(after.values())
    mean = a if math.isclose(a, b) else (b - a) / math.log(b / a)
    return {
        part: round((after[part] - before[part]) / (mean * math.log(ratio)), 3) for part in before
    }


def growth(
    points: list[dict[str, Any]],
    key: str,
    parts: Callable[[dict[str, Any]], dict[str, dict[str, float]]],
) -> dict[str, Any]:
    """The exponent from each point to the next, split by parts, and the bends with their cause."""
    intervals = []
    for a, b in pairwise(points):
        ratio = b["value"] / a["value"]
        whole = math.log(b[key] / a[key]) / math.log(ratio) if min(a[key], b[key]) > 0 else None
        split_a, split_b = parts(a), parts(b)
        found: dict[str, Any] = {
            "from": a["value"],
            "to": b["value"],
            "exponent": None if whole is None else round(whole, 3),
        }
        if whole is not None:
            for way in split_a:
                found[way] = contributions(split_a[way], split_b[way], ratio)
            if key == "seconds_per_image":
                flop = math.log(b["flop"] / a["flop"]) / math.log(ratio)
                flop -= math.log(batch_of(b) / batch_of(a)) / math.log(ratio)
                found["flop_per_image"] = round(flop, 3)
                found["flop_per_second"] = round(flop - whole, 3)
        intervals.append(found)
    return {"intervals": intervals, "bends": bends(intervals)}


def batch_of(point: dict[str, Any]) -> float:
    return round(point["step_seconds"] / point["seconds_per_image"])


def bends(intervals: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Where the exponent changes by more than BEND, and the part of each split that moved most."""
    found = []
    for before, after in pairwise(intervals):
        if before["exponent"] is None or after["exponent"] is None:
            continue
        if abs(after["exponent"] - before["exponent"]) < BEND:
            continue
        causes = {}
        for way in ("by_kind", "by_origin"):
            if way in before:
                moved = {part: after[way][part] - before[way][part] for part in before[way]}
                part = max(moved, key=lambda part: abs(moved[part]))
                causes[way] = {"part": part, "from": before[way][part], "to": after[way][part]}
        found.append(
            {
                "at": after["from"],
                "exponent_before": before["exponent"],
                "exponent_after": after["exponent"],
                "moved_most": causes,
            }
        )
    return found


def causes_of(name: str, points: list[dict[str, Any]]) -> dict[str, Any]:
    """What the points say of why a variable costs what it does."""
    found: dict[str, Any] = {
        "seconds_per_image": growth(points, "seconds_per_image", time_parts),
        "memory_bytes": growth(points, "memory_bytes", memory_parts),
        "at_each_value": {
            point["value"]: {
                "whatever_the_images": round(
                    min(1, point["least_step_seconds"] / point["step_seconds"]), 3
                ),
                **point["shares"],
                "operations": point["operations"],
                "gflop_per_second": round(point["flop"] / point["step_seconds"] / 1e9, 1),
                "saved_share_of_memory": round(
                    point["saved_bytes"] / max(point["memory_bytes"], 1), 3
                ),
                "page_faults_per_step": point["page_faults_per_step"],
            }
            for point in points
        },
    }
    first, last = points[0], points[-1]
    if name == "examples":
        more = last["value"] - first["value"]
        found["start"] = {
            "seconds_per_million_images": round(
                1e6 * (last["start_seconds"] - first["start_seconds"]) / more, 4
            ),
            "seconds_per_million_images_again": round(
                1e6 * (last["start_again_seconds"] - first["start_again_seconds"]) / more, 4
            ),
            "bytes_per_image": round((last["memory_bytes"] - first["memory_bytes"]) / more, 1),
            "bytes_of_an_image": last["data_bytes"] / last["value"],
            "most_time_of_the_first": last["start_by_function"],
        }
    if name == "steps":
        found["drift"] = {
            "last_over_first_step": round(
                last["seconds_per_image"] / first["seconds_per_image"], 3
            ),
            "bytes_per_step": round(
                (last["memory_bytes"] - first["memory_bytes"]) / (last["value"] - first["value"]), 1
            ),
        }
    return found


def table(results: dict[str, Any]) -> str:
    """The exponents, and the part of the cost that is the same for any image."""
    rows = [
        "| what grows | from … to | seconds an image: overall, tail | memory: overall, tail "
        "| whatever the images | convolution | attention |",
        "|" + 7 * "---|",
    ]
    for name, found in results.items():
        shares = list(found["causes"]["at_each_value"].items())
        (first, a), (last, b) = shares[0], shares[-1]
        cells = [VARIABLES[name].label.lower(), f"{first:,} … {last:,}"]
        for key in ("seconds_per_image", "memory_bytes"):
            fit = found["exponents"][key]
            cells.append(", ".join("–" if fit[k] is None else f"{fit[k]:.2f}" for k in fit))
        for key in ("whatever_the_images", "convolution", "attention"):
            cells.append(f"{a[key]:.0%} … {b[key]:.0%}")
        rows.append(f"| {' | '.join(cells)} |")
    return "\n".join(rows)


def told_bends(results: dict[str, Any]) -> Iterator[str]:
    """A line for each bend: where, and the kind of work or memory that moved the exponent most."""
    for name, found in results.items():
        for key, what in (("seconds_per_image", "time per image"), ("memory_bytes", "memory")):
            for bend in found["causes"][key]["bends"]:
                cause = bend["moved_most"]["by_kind"]
                yield (
                    f"{name}, {what}: at {bend['at']:,} the exponent goes from "
                    f"{bend['exponent_before']:.2f} to {bend['exponent_after']:.2f}; "
                    f"{cause['part']} adds {cause['from']:.2f}, then {cause['to']:.2f}"
                )


def draw(results: dict[str, Any], path: Path) -> None:
    """Small multiples: seconds of an image above, memory below, a column for each variable."""
    from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter, NullLocator
    from plotting import figure

    from inkdrop.report import style

    rows = {
        "seconds_per_image": ("Time per image", seconds_label),
        "memory_bytes": ("Peak memory", bytes_label),
    }
    with figure(path, 2.5 * len(results), 5.2, 2, len(results)) as (fig, axes):
        axes = axes.reshape(2, len(results))
        for row, (key, (label, ticks)) in zip(axes, rows.items(), strict=True):
            lows, highs = [], []
            for ax, (name, found) in zip(row, results.items(), strict=True):
                points = [p for p in found["points"] if "skipped" not in p]
                values = [p["value"] for p in points]
                lines = [(key, style.INK)]
                if name == "examples" and key == "seconds_per_image":
                    lines.append(("start_seconds", style.ACCENT))
                    lines.append(("start_again_seconds", style.series(3)[2]["color"]))
                for which, color in lines:
                    y = [p[which] for p in points]
                    ax.loglog(values, y, color=color, marker="o", linestyle="-")
                    lows.append(min(v for v in y if v > 0))
                    highs.append(max(y))
                    if which in STARTS:
                        grown = power(found["exponents"][which]["tail"])
                        above = which == "start_seconds"  # and in the corner that it rises from
                        ax.text(
                            *(0.03, 0.97) if above else (values[0], y[0] / 1.4),
                            f"{STARTS[which]}, tail {grown}",
                            transform=ax.transAxes if above else ax.transData,
                            color=color,
                            va="top",
                        )
                fit = found["exponents"][key]
                if fit["overall"] is not None:
                    text = power(fit["overall"])
                    if len(points) > REACH:
                        text += f", tail {power(fit['tail'])}"
                    ax.text(0.0, 1.02, text, transform=ax.transAxes, color=style.MUTED, va="bottom")
                left_out = [f"{p['value']:,}" for p in found["points"] if "skipped" in p]
                if left_out:
                    where = {"transform": ax.transAxes, "ha": "right", "color": style.FAINT}
                    ax.text(1.0, 0.03, f"{', '.join(left_out)} skipped", **where)
                ax.set_xlim(values[0] / 1.5, values[-1] * 1.5)
                ax.set_xticks(*shown(values))
                ax.xaxis.set_minor_locator(NullLocator())
                ax.yaxis.set_major_locator(LogLocator(numticks=8))
                ax.yaxis.set_major_formatter(FuncFormatter(lambda v, _, ticks=ticks: ticks(v)))
                ax.yaxis.set_minor_formatter(NullFormatter())
                if key == "memory_bytes":
                    ax.set_xlabel(VARIABLES[name].unit)
                else:
                    ax.set_title(VARIABLES[name].label, fontweight="bold", pad=24)
            for ax in row:
                ax.set_ylim(min(lows) / 2, max(highs) * 2)
                ax.tick_params(axis="y", labelleft=ax is row[0])
            row[0].set_ylabel(label)
        fig.align_xlabels()


def power(exponent: float) -> str:
    return f"$n^{{{round(exponent, 2) + 0.0:.2f}}}$"


def shown(values: list[int]) -> tuple[list[int], list[str]]:
    """Not so many ticks that they meet."""
    few = values[:: 2 if len(values) > 5 else 1]
    if max(few) >= 10_000:
        return few, [f"10$^{{{round(math.log10(v))}}}$" for v in few]
    return few, [f"{v:,}" for v in few]


def seconds_label(value: float) -> str:
    for size, unit in ((1, "s"), (1e-3, "ms"), (1e-6, "µs")):
        if value >= 0.999 * size:
            return f"{value / size:g} {unit}"
    return f"{value:g} s"


def bytes_label(value: float) -> str:
    for size, unit in ((1e9, "GB"), (1e6, "MB"), (1e3, "kB")):
        if value >= 0.999 * size:
            return f"{value / size:g} {unit}"
    return f"{value:g} B"


def main() -> None:
    """Measure every variable, look for causes, draw and write it down."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--device", default="auto", choices=("auto", "cpu", "cuda"))
    parser.add_argument("--quick", action="store_true", help="tiny, into a temporary folder")
    parser.add_argument("--only", nargs="+", choices=VARIABLES, help="variables")
    parser.add_argument("--budget", type=float, default=75, help="seconds of a point (75)")
    parser.add_argument("--out", type=Path, help="folder of the result (benchmarks/results)")
    parser.add_argument("--measure", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.measure:
        print(json.dumps(measure_job(json.loads(options.measure))))
        return
    cuda = options.device != "cpu" and torch.cuda.is_available()
    if options.device == "cuda" and not cuda:
        sys.exit("there is no CUDA device here: leave --device out, or give cpu")
    device = torch.device("cuda" if cuda else "cpu")
    base = QUICK if options.quick else BASES[device.type]
    known: dict[Case, Any] = {}
    results: dict[str, Any] = {}
    for name in options.only or VARIABLES:
        points = swept(name, base, device.type, options.quick, options.budget, known)
        measured = [p for p in points if "skipped" not in p]
        if not measured:
            sys.exit(f"{name}: no point could be measured: {points[0]['skipped']}")
        keys = ("seconds_per_image", "memory_bytes", *STARTS)
        results[name] = {
            "exponents": {key: exponents(measured, key) for key in keys if key in measured[0]},
            "causes": causes_of(name, measured),
            "points": points,
        }
    print("\n".join([table(results), *told_bends(results)]))
    whole = not (options.quick or options.only)
    folder = options.out or (RESULTS if whole else Path(tempfile.mkdtemp()))
    result = "cost_growth" if device.type == "cpu" else f"cost_growth_{device.type}"
    draw(results, folder / f"{result}.png")
    figures = {
        "device": device_name(device),
        "threads": torch.get_num_threads(),
        "base": asdict(base),
        "base_of_data_and_steps": asdict(DIGITS),
        "variables": results,
    }
    print(f"written to {write_result(result, figures, folder)}")


if __name__ == "__main__":
    main()
