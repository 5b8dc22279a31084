"""What are two processes on two cores worth, and does a simple model foretell it?

    python benchmarks/two_processes.py

Trains the networks of the presets digits and mnist on random images, with the same global batch of
64, by `Trainer.train_step`: one process with one thread, one with two threads, and two with one
thread each that share every batch over gloo. The three take turns, and medians are compared.

In the same runs it measures what a step is made of, and holds the two processes' step against

    t = t_compute(B / N) + max(0, t_allreduce - overlap) + t_rest

where t_compute is forward and backward of a process's rows, while the other computes its own;
t_allreduce that of as many bytes as the gradients have; overlap 0, since gradients this small
travel in one or two buckets, of which the last is full when the backward pass ends; and t_rest what
one process does beside that, with the noise of the whole batch. Writes results/two_processes.json.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from statistics import median
from typing import Any

import torch
import torch.distributed as dist
from common import write_result

from inkdrop import presets
from inkdrop.build import build_denoiser, build_objective
from inkdrop.processes import current, joined
from inkdrop.training.trainer import Trainer

BATCH, WARM_UP = 64, 5
SHAPES = {"digits": (1, 8, 8), "mnist": (1, 28, 28)}
ARRANGEMENTS = {  # processes, threads of each
    "one process, one thread": (1, 1),
    "one process, two threads": (1, 2),
    "two processes, one thread each": (2, 1),
}
LARGE = 16 * 2**20  # bytes


def timed(action: Callable[[], Any], times: int) -> float:
    """The median seconds of an action."""
    took = []
    for _ in range(WARM_UP + times):
        began = time.perf_counter()
        action()
        took.append(time.perf_counter() - began)
    return median(took[WARM_UP:])


def measure(network: str, steps: int, out: str) -> dict[str, float]:
    """What a process of a job measures: seconds of a training step and of its parts."""
    config = presets.preset(network)
    config.training.batch_size = BATCH
    images = torch.randint(256, (2048, *SHAPES[network]), dtype=torch.uint8)
    trainer = Trainer(config, out, source=images)
    processes = current()
    found = {"step": timed(trainer.train_step, steps)}

    denoiser, objective = build_denoiser(config, SHAPES[network]), build_objective(config)

    def compute(rows: int) -> Callable[[], None]:
        x, noise = torch.randn(2, rows, *SHAPES[network])
        t = torch.arange(rows) * denoiser.schedule.timesteps // rows

        def forward_and_backward() -> None:
            denoiser.network.zero_grad(set_to_none=True)
            objective(denoiser, x, t, noise, None).mean().backward()

        return forward_and_backward

    count = sum(p.numel() for p in denoiser.network.parameters())
    found |= {"parameters": count, "gradient_bytes": 4 * count}
    processes.wait_for_all("compute")
    found["compute"] = timed(compute(BATCH // processes.size), steps)
    if processes.size == 1:
        found["compute_half"] = timed(compute(BATCH // 2), steps)
        return found
    for name, numbers in (("number", 1), ("gradients", count), ("large", LARGE // 4)):
        tensor = torch.zeros(numbers)
        processes.wait_for_all(name)
        found[f"all_reduce_{name}"] = timed(lambda tensor=tensor: dist.all_reduce(tensor), steps)
    return found


def in_new_processes(network: str, size: int, threads: int, steps: int) -> dict[str, float]:
    """What `measure` finds in processes of their own."""
    launcher = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(size)]
    with tempfile.TemporaryDirectory() as temporary:
        command = [sys.executable, *(launcher if size > 1 else []), __file__]
        subprocess.run(
            [*command, "--steps", str(steps), "--measure", network, temporary],
            env=os.environ | {"OMP_NUM_THREADS": str(threads)},
            check=True,
            stdout=subprocess.DEVNULL,
        )
        found: dict[str, float] = json.loads((Path(temporary) / "found.json").read_text())
    return found


def figures(found: dict[str, list[dict[str, float]]]) -> dict[str, Any]:
    """Medians over the repeats, in milliseconds, and the model beside the measurement."""
    medians = {
        name: {key: median(one[key] for one in repeats) for key in repeats[0]}
        for name, repeats in found.items()
    }
    alone, threads, two = (medians[name] for name in ARRANGEMENTS)
    rest = alone["step"] - alone["compute"]
    model = two["compute"] + two["all_reduce_gradients"] + rest

    def ms(seconds: float) -> float:
        return round(1e3 * seconds, 3)

    return {
        "parameters": int(alone["parameters"]),
        "images_per_second": {name: round(BATCH / m["step"], 1) for name, m in medians.items()},
        "images_per_second_of_each_repeat": {
            name: [round(BATCH / one["step"], 1) for one in repeats]
            for name, repeats in found.items()
        },
        "two_processes_against_one_with_one_thread": round(alone["step"] / two["step"], 3),
        "two_processes_against_one_with_two_threads": round(threads["step"] / two["step"], 3),
        "one_process_one_thread_ms": {
            "step": ms(alone["step"]),
            "compute": ms(alone["compute"]),
            "compute_of_half_the_batch": ms(alone["compute_half"]),
            "rest": ms(rest),
        },
        "two_processes_ms": {
            "step": ms(two["step"]),
            "compute": ms(two["compute"]),
            "all_reduce_of_the_gradients": ms(two["all_reduce_gradients"]),
        },
        "gloo": {
            "gradient_bytes": int(two["gradient_bytes"]),
            "latency_ms": ms(two["all_reduce_number"]),
            "gigabytes_per_second_of_16_mib": round(LARGE / two["all_reduce_large"] / 1e9, 3),
        },
        "model": {
            "step_ms": ms(model),
            "measured_over_model": round(two["step"] / model, 3),
        },
    }


def table(results: dict[str, Any]) -> str:
    """The figures as docs/scaling.md shows them."""
    rows = [
        "| network | one process, one thread | one, two threads | two, one thread each "
        "| t_compute(B / 2) | t_allreduce | t_rest | model | measured |",
        "|" + 9 * "---|",
    ]
    for network, found in results.items():
        rates = (f"{rate:,.0f} images/s" for rate in found["images_per_second"].values())
        two, alone = found["two_processes_ms"], found["one_process_one_thread_ms"]
        parts = (two["compute"], two["all_reduce_of_the_gradients"], alone["rest"])
        times = (f"{ms:.1f} ms" for ms in (*parts, found["model"]["step_ms"], two["step"]))
        name = f"`{network}`, {found['parameters']:,} parameters"
        rows.append(f"| {' | '.join([name, *rates, *times])} |")
    return "\n".join(rows)


def main() -> None:
    """Measure in turns, and write it down."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--steps", type=int, default=40, help="timed of each thing in each repeat")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--measure", nargs=2, metavar=("NETWORK", "FOLDER"), help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.measure:
        network, folder = options.measure
        torch.manual_seed(0)
        with joined() as processes:
            found = measure(network, options.steps, f"{folder}/run")
            if processes.first:
                (Path(folder) / "found.json").write_text(json.dumps(found))
        return
    results = {}
    for network in SHAPES:
        repeats: dict[str, list[dict[str, float]]] = {name: [] for name in ARRANGEMENTS}
        for repeat in range(options.repeats):
            for name, (size, threads) in ARRANGEMENTS.items():
                one = in_new_processes(network, size, threads, options.steps)
                repeats[name].append(one)
                rate = BATCH / one["step"]
                print(
                    f"{network} {repeat + 1}/{options.repeats}  {name}: {rate:.0f} images/s",
                    flush=True,
                )
        results[network] = figures(repeats)
    print(table(results))
    path = write_result("two_processes", {"global_batch": BATCH, "networks": results})
    print(f"written to {path}")


if __name__ == "__main__":
    main()
