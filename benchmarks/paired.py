"""Two or more ways of doing the same work, measured in turns: A B A B …, each in its own process.

What disturbs a shared machine comes and goes, and meets all sides alike where they alternate. A
process a side keeps the memory of each apart, and what a side sets up in its process to itself.
"""

from __future__ import annotations

import multiprocessing
import resource
import sys
import time
import traceback
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from multiprocessing.connection import Connection
from pathlib import Path
from statistics import median, quantiles
from typing import Any

import torch

_REST = 0.2  # seconds between turns: the threads of the last one stop spinning in wait for work


@dataclass(frozen=True)
class Side:
    """One way of doing the work.

    Attributes:
        prepare: called once in the side's process, with `arguments`: a context whose value is the
            measured piece, called without arguments, and what else there is to tell of the side.
            It warms up what wants to be warm.
        arguments: what it is called with.
    """

    prepare: Callable[..., AbstractContextManager[tuple[Callable[[], Any], dict[str, Any]]]]
    arguments: tuple[Any, ...] = ()


@dataclass
class Measured:
    """What was found of a side.

    Attributes:
        seconds: of each repetition, in their order.
        peak_bytes: of resident memory, or on a GPU of what tensors held there.
        facts: what it told of itself.
    """

    seconds: list[float] = field(default_factory=list)
    peak_bytes: int = 0
    facts: dict[str, Any] = field(default_factory=dict)


def alternate(sides: Mapping[str, Side], repetitions: int) -> dict[str, Measured]:
    """Run each side's piece in turns.

    Raises:
        SystemExit: where a side fails, with its error.
    """
    context = multiprocessing.get_context("spawn")
    found = {name: Measured() for name in sides}
    workers = {}
    try:
        for name, side in sides.items():
            ours, theirs = context.Pipe()
            process = context.Process(target=_work, args=(theirs, side), daemon=True)
            process.start()
            theirs.close()
            workers[name] = process, ours
        for name, (_, pipe) in workers.items():  # all have started; one prepares after the other
            pipe.send("prepare")
            found[name].facts = _answer(name, pipe)
        for _ in range(repetitions):
            for name, (_, pipe) in workers.items():
                time.sleep(_REST)
                pipe.send("run")
                found[name].seconds.append(_answer(name, pipe))
        for name, (process, pipe) in workers.items():
            pipe.send("end")
            found[name].peak_bytes = _answer(name, pipe)
            process.join()
    finally:
        for process, _ in workers.values():
            process.kill()
    return found


def in_new_process(function: Callable[..., Any], *arguments: Any) -> Any:
    """What a function returns, called in a process of its own, which leaves nothing behind."""
    context = multiprocessing.get_context("spawn")
    ours, theirs = context.Pipe()
    process = context.Process(target=_call, args=(theirs, function, arguments), daemon=True)
    process.start()
    theirs.close()
    answer = _answer(function.__name__, ours)
    process.join()
    return answer


def spread(values: list[float], digits: int = 6) -> dict[str, float]:
    """Median and quartiles."""
    lower, middle, upper = (
        quantiles(values, n=4, method="inclusive") if len(values) > 1 else 3 * values
    )
    return {
        "median": _rounded(middle, digits),
        "lower_quartile": _rounded(lower, digits),
        "upper_quartile": _rounded(upper, digits),
    }


def summary(found: Mapping[str, Measured], units: float = 1.0) -> dict[str, Any]:
    """Each side's seconds, rate and memory.

    Args:
        units: what a piece does, for instance how many images; rates count these.
    """
    return {
        name: {
            "units_per_second": spread([units / s for s in side.seconds]),
            "seconds": spread(side.seconds),
            "seconds_of_each_repetition": [_rounded(s) for s in side.seconds],
            "peak_bytes": side.peak_bytes,
            **side.facts,
        }
        for name, side in found.items()
    }


def ratio(faster: Measured, slower: Measured) -> dict[str, float]:
    """How many times as fast the first is: of the medians, and the median of neighbours' ratios."""
    pairs = [s / f for f, s in zip(faster.seconds, slower.seconds, strict=True)]
    return {
        "of_medians": _rounded(median(slower.seconds) / median(faster.seconds), 4),
        **{f"{name}_of_pairs": value for name, value in spread(pairs, 4).items()},
    }


def wait_for_device() -> None:
    """Until the GPU has done what it was given, where one is in use."""
    if torch.cuda.is_available() and torch.cuda.is_initialized():
        torch.cuda.synchronize()


def peak_bytes() -> int:
    """The most memory of this process so far: on the GPU where one is in use, else resident."""
    if torch.cuda.is_available() and torch.cuda.is_initialized():
        return torch.cuda.max_memory_allocated()
    status = Path("/proc/self/status")
    if status.exists():  # getrusage would tell of the parent's too, where that had more
        for line in status.read_text().splitlines():
            if line.startswith("VmHWM:"):
                return 1024 * int(line.split()[1])
    most = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return most if sys.platform == "darwin" else 1024 * most


def _work(pipe: Connection, side: Side) -> None:
    """A side's process: prepare, then run whenever told to."""
    try:
        pipe.recv()
        with side.prepare(*side.arguments) as (piece, facts):
            pipe.send(("found", facts))
            while pipe.recv() == "run":
                wait_for_device()
                began = time.perf_counter()
                piece()
                wait_for_device()
                pipe.send(("found", time.perf_counter() - began))
            pipe.send(("found", peak_bytes()))
    except EOFError:
        pass  # the parent is gone
    except BaseException as error:
        pipe.send(("failed", _told(error)))


def _call(pipe: Connection, function: Callable[..., Any], arguments: tuple[Any, ...]) -> None:
    try:
        pipe.send(("found", function(*arguments)))
    except BaseException as error:
        pipe.send(("failed", _told(error)))


def _told(error: BaseException) -> str:
    return str(error) if isinstance(error, SystemExit) else traceback.format_exc()


def _answer(name: str, pipe: Connection) -> Any:
    try:
        kind, answer = pipe.recv()
    except EOFError:
        raise SystemExit(f"{name}: its process ended without a word (out of memory?)") from None
    if kind == "failed":
        raise SystemExit(f"{name} failed: {answer}")
    return answer


def _rounded(value: float, digits: int = 6) -> float:
    """To so many significant digits."""
    return float(f"{value:.{digits}g}")
