"""A batch that does not fit in memory: what to tell of it, and how to find one part that does."""

from __future__ import annotations

import gc
import re
import threading
from collections.abc import Callable
from pathlib import Path

import psutil
import torch

from ..errors import InkdropError

_TEXTS = (
    "out of memory",  # CUDA and MPS
    "can't allocate memory",  # PyTorch's allocator on a CPU
    "CUBLAS_STATUS_ALLOC_FAILED",
    "CUDNN_STATUS_ALLOC_FAILED",
)
_UNITS = {"bytes": 1, "KiB": 2**10, "MiB": 2**20, "GiB": 2**30, "TiB": 2**40}
_UNITS |= {"KB": 2**10, "MB": 2**20, "GB": 2**30}  # as MPS writes them
_ASKED = re.compile(r"tried to allocate ([\d.]+) (bytes|[KMGT]i?B)", re.IGNORECASE)

_FULL = 0.95  # of a device's memory; fragments and sampling need what is beyond
_SHARE = 0.8  # of free main memory, where what is needed is only estimated
_LOOKS = 0.002  # seconds between looks at a process's memory
_PROBED = 8  # rows that a CPU's estimate is made from


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an error says that memory ran out, on whatever device."""
    if isinstance(error, (torch.OutOfMemoryError, MemoryError)):
        return True
    return isinstance(error, RuntimeError) and any(text in str(error) for text in _TEXTS)


def out_of_memory(
    error: BaseException, device: torch.device, rows: int, parts: int = 1
) -> InkdropError:
    """The line to show for it, with what was asked for and what there is, as far as is known.

    Args:
        error: as `is_out_of_memory` knows it.
        rows: examples of one part of a process's batch, which are computed at once.
        parts: the parts of a batch (training.accumulation).
    """
    asked = _asked(error)
    facts = [f"{_size(asked)} more were asked for"] if asked else []
    facts += _facts(device)
    known = f" ({'; '.join(facts)})" if facts else ""
    at_once = f"{rows:,} example{'s' if rows != 1 else ''} at once"
    if rows > 1:
        mend = (
            "compute it in smaller parts, with --batch-size auto, which finds how many fit, or "
            f"--training.accumulation {2 * parts}"
        )
    else:
        mend = (
            "no part can be smaller: choose a smaller network, such as fewer --network.channels, "
            "or smaller images"
        )
    return InkdropError(f"{device} is out of memory in a step of {at_once}{known}; {mend}")


def _asked(error: BaseException) -> int | None:
    found = _ASKED.search(str(error))
    return round(float(found[1]) * _UNITS[found[2]]) if found and found[2] in _UNITS else None


def _facts(device: torch.device) -> list[str]:
    if device.type == "cuda" and torch.cuda.is_available():
        free, total = torch.cuda.mem_get_info(device)
        return [
            f"it has {_size(total)}, of which {_size(free)} are free",
            f"this process holds {_size(torch.cuda.memory_allocated(device))}, and "
            f"{_size(torch.cuda.memory_reserved(device))} with what it keeps for later",
        ]
    if device.type == "mps" and torch.backends.mps.is_available():
        return [
            f"it has {_size(torch.mps.recommended_max_memory())}",
            f"this process holds {_size(torch.mps.current_allocated_memory())}",
        ]
    if device.type == "cpu":
        return [
            f"there are {_size(psutil.virtual_memory().total)}, of which {_size(_available())} are "
            "free",
            f"this process holds {_size(psutil.Process().memory_info().rss)}",
        ]
    return []


def _size(count: float) -> str:
    for unit in ("B", "KiB", "MiB"):
        if count < 1024:
            return f"{count:.3g} {unit}"
        count /= 1024
    return f"{count:.1f} GiB"


# The parts of a batch


def find_parts(
    try_step: Callable[[int], None],
    rows: int,
    device: torch.device,
    agree: Callable[[int], int] = lambda parts: parts,
) -> int:
    """The smallest number of equal parts that `rows` examples can be computed in.

    Divisors of `rows` are tried from 1 up. A little of an accelerator's memory is left free.

    Args:
        try_step: takes a training step with so many examples, as its largest part would, and
            leaves no trace. It must not wait for other processes: they may have run out of memory.
        rows: of this process's batch, the same in every process.
        agree: gives every process the largest of what they say; alone, what it is given.

    Raises:
        InkdropError: if not even single examples fit, here or in another process.
    """
    parts, failure = _smallest(try_step, rows, device)
    agreed = agree(parts)
    if failure is not None:
        raise failure
    if agreed > rows:
        raise InkdropError(
            "a step of 1 example does not fit in the memory of another process's device, which "
            "tells why; choose a smaller network or smaller images"
        )
    return agreed


def _smallest(
    try_step: Callable[[int], None], rows: int, device: torch.device
) -> tuple[int, InkdropError | None]:
    """The parts; more than there are rows, and why, where single ones do not fit."""
    failure = None
    for parts in _divisors(rows):
        if device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(device)
        try:
            try_step(rows // parts)
        except (RuntimeError, MemoryError) as error:
            if not is_out_of_memory(error):
                raise
            failure = out_of_memory(error, device, rows // parts, parts)
        else:
            if rows == parts or not _nearly_full(device):
                return parts, None
        free_memory(device)  # here, where no exception holds on to it any more
    return rows + 1, failure


def free_memory(device: torch.device) -> None:
    """Give back what nothing refers to any more."""
    gc.collect()
    if device.type == "cuda":
        torch.cuda.empty_cache()
    elif device.type == "mps":
        torch.mps.empty_cache()


def _nearly_full(device: torch.device) -> bool:
    if device.type != "cuda":
        return False
    free, _ = torch.cuda.mem_get_info(device)
    room = free + torch.cuda.memory_reserved(device)
    return torch.cuda.max_memory_allocated(device) > _FULL * room


def _divisors(number: int) -> list[int]:
    return [divisor for divisor in range(1, number + 1) if number % divisor == 0]


# A CPU, where there is no error to catch: the system ends a process that takes too much


def find_parts_on_cpu(
    try_step: Callable[[int], None],
    rows: int,
    agree: Callable[[int], int] = lambda parts: parts,
    processes: int = 1,
) -> int:
    """As `find_parts`, by an estimate: what a step takes is linear in its examples.

    It is made from steps of one and of a few examples, so that many parts of a few are the most
    that it finds.

    Args:
        processes: of this machine, which share its memory.
    """
    divisors = _divisors(rows)
    few = max(divisor for divisor in divisors if divisor <= _PROBED)
    free = _available() / processes
    try_step(1)  # makes what lasts
    least, most = _peak(lambda: try_step(1)), _peak(lambda: try_step(few))
    each = max(0.0, (most - least) / max(1, few - 1))
    fitting = (p for p in divisors if most + each * (rows // p - few) <= _SHARE * free)
    return agree(min(next(fitting, rows), rows // few))


def _peak(step: Callable[[], None]) -> int:
    """The bytes by which a step makes this process grow, at the most."""
    process, done = psutil.Process(), threading.Event()
    before: int = process.memory_info().rss
    largest = before

    def watch() -> None:
        nonlocal largest
        while not done.wait(_LOOKS):
            largest = max(largest, process.memory_info().rss)

    watcher = threading.Thread(target=watch, name="inkdrop-memory", daemon=True)
    watcher.start()
    try:
        step()
    finally:
        done.set()
        watcher.join()
    return largest - before


def _available() -> float:
    """Bytes of main memory that are free, also under a container's limit."""
    available = float(psutil.virtual_memory().available)
    group = Path("/sys/fs/cgroup")
    try:
        limit, used = (float((group / f"memory.{name}").read_text()) for name in ("max", "current"))
        counted = dict(line.split() for line in (group / "memory.stat").read_text().splitlines())
        cached = float(counted["inactive_file"]) + float(counted["active_file"])
        return min(available, limit - used + cached)  # "max" is no limit
    except (OSError, ValueError, KeyError):
        return available
