"""Every benchmark that this machine can run, one after another.

    python benchmarks/run_all.py                        # make bench: hours
    python benchmarks/run_all.py --list                 # what there is, and how long it takes
    python benchmarks/run_all.py same_work cost_growth  # only these
    python benchmarks/run_all.py --quick                # minutes: that they work

Each is told by its command, the seconds that it took and the results that it wrote. One that fails
does not stop the others, and is named at the end, where this leaves with 1. One that leaves with 75
(not finished) is given again until it is. With --quick those run that have a quick way, which keep
no result.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path

import torch
from common import RESULTS

FOLDER = Path(__file__).parent
UNFINISHED, SESSIONS = 75, 50


@dataclass(frozen=True)
class Benchmark:
    """A program with its arguments, and about how many minutes it takes.

    Attributes:
        needs: beyond the package: "cuda", a variable of the environment, or a file or folder.
        quick: whether it takes --quick.
    """

    command: str
    minutes: float
    needs: str = ""
    quick: bool = False

    @property
    def name(self) -> str:
        return self.command.split()[0]

    @property
    def missing(self) -> str:
        """What this machine lacks of its needs; empty for nothing."""
        if self.needs == "cuda":
            return "" if torch.cuda.is_available() else "a CUDA device"
        if self.needs.startswith("$"):
            return "" if self.needs[1:] in os.environ else self.needs
        return "" if not self.needs or (FOLDER.parent / self.needs).exists() else self.needs

    def arguments(self, quick: bool) -> list[str]:
        return self.command.split()[1:] + ["--quick"] * quick


BENCHMARKS = (
    # Of the mathematics and of single parts.
    Benchmark("bound_variance", 1),
    Benchmark("convergence", 1),
    Benchmark("sampler_loop", 1),
    Benchmark("checkpoint_cost", 2),
    Benchmark("evaluation_speed", 5),
    Benchmark("data_speed", 10, "$INKDROP_DATA"),
    # How fast it is, beside diffusers where there is something to be beside.
    Benchmark("same_work --device cpu", 10, quick=True),
    Benchmark("same_work --device cpu --compiled", 15, quick=True),
    Benchmark("sampling_speed --device cpu", 15, quick=True),
    Benchmark("profile_step --device cpu", 5, quick=True),
    Benchmark("cost_growth --device cpu", 6, quick=True),
    Benchmark("whole_training --device cpu", 10, quick=True),
    Benchmark("two_processes", 5),
    Benchmark("training_speed mnist", 11),
    Benchmark("same_work --device cuda", 8, "cuda", quick=True),
    Benchmark("same_work --device cuda --compiled", 9, "cuda", quick=True),
    Benchmark("sampling_speed --device cuda", 9, "cuda", quick=True),
    Benchmark("sampling_speed --device cuda --compiled", 9, "cuda", quick=True),
    Benchmark("profile_step --device cuda", 3, "cuda", quick=True),
    Benchmark("cost_growth --device cuda", 6, "cuda", quick=True),
    Benchmark(
        "whole_training --device cuda --data cifar10 --network b --batch 128 --steps 1000",
        9,
        "cuda",
        quick=True,
    ),
    Benchmark("training_speed ho-cifar10 --steps 1000 --name ho_cifar10_cuda", 5, "cuda"),
    Benchmark("training_speed cifar10 --steps 1000 --name cifar10_cuda", 3, "cuda"),
    Benchmark("gpu_training", 9, "cuda"),
    # How good what comes out is, and how soon.
    Benchmark("points_quality", 5),
    Benchmark("digits_quality", 8),
    Benchmark("classifier", 8),
    Benchmark("time_to_quality digits --device cpu", 10, quick=True),
    Benchmark("time_to_quality mnist --as-it-comes --device cpu", 20, quick=True),
    Benchmark("mnist_choices", 40),
    Benchmark("time_to_quality mnist --device cuda", 15, "cuda", quick=True),
    Benchmark("gpu_quality mnist-60s --device cuda", 5, "cuda", quick=True),
    Benchmark("gpu_quality cifar10 --device cuda", 55, "cuda", quick=True),
    Benchmark("sampler_quality runs/digits", 240, "runs/digits"),
    # What a user waits for, and whether training survives.
    Benchmark("commands", 8),
    Benchmark("kills --kills 200 --steps 2200", 60),
    Benchmark("kills --kills 40 --processes 2 --steps 600", 30),
)


def written() -> dict[Path, float]:
    """The results there are, and when each was written."""
    return {path: path.stat().st_mtime for path in RESULTS.glob("*")}


def run(benchmark: Benchmark, quick: bool) -> str:
    """Run one, tell of it, and return how it failed; nothing where it did not."""
    arguments = [f"benchmarks/{benchmark.name}.py", *benchmark.arguments(quick)]
    print(f"\n$ python {' '.join(arguments)}", flush=True)
    before, began = written(), time.monotonic()
    for _ in range(SESSIONS):
        code = subprocess.run([sys.executable, *arguments], cwd=FOLDER.parent).returncode
        if code != UNFINISHED:
            break
    new = [str(path) for path, when in sorted(written().items()) if before.get(path) != when]
    took = f"{time.monotonic() - began:.0f} s"
    if code:
        print(f"failed after {took}, with exit code {code}", flush=True)
        return f"{' '.join(arguments)}: exit code {code}"
    print(f"took {took}; {', '.join(new) or 'no result kept'}", flush=True)
    return ""


def main() -> None:
    """Run them all, and leave with 1 if one failed."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    names = sorted({benchmark.name for benchmark in BENCHMARKS})
    parser.add_argument("names", nargs="*", metavar="NAME", help=f"of {', '.join(names)} (all)")
    parser.add_argument("--list", action="store_true", help="show them, and run none")
    parser.add_argument("--quick", action="store_true", help="those with a quick way, by that")
    options = parser.parse_args()
    unknown = [name for name in options.names if name not in names]
    if unknown:
        parser.error(f"unknown: {', '.join(unknown)}; there are {', '.join(names)}")
    chosen = [b for b in BENCHMARKS if not options.names or b.name in options.names]
    chosen = [b for b in chosen if b.quick or not options.quick]
    possible = [benchmark for benchmark in chosen if not benchmark.missing]
    for benchmark in chosen:
        lacking = f"  (not here: needs {benchmark.missing})" if benchmark.missing else ""
        if options.list:
            print(f"{benchmark.minutes:4.0f} min  {benchmark.command}{lacking}")
        elif lacking:
            print(f"left out: {benchmark.command}{lacking}")
    if options.list:
        print(f"{sum(b.minutes for b in possible):4.0f} min  in all, of what can run here")
        return
    failures = list(filter(None, (run(benchmark, options.quick) for benchmark in possible)))
    print(f"\n{len(possible) - len(failures)} of {len(possible)} done")
    if failures:
        sys.exit("failed:\n" + "\n".join(f"  {failure}" for failure in failures))


if __name__ == "__main__":
    main()
