"""Operations that repeat bit for bit, and what they cost."""

from __future__ import annotations

import os
import statistics
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch

_REPEATS = 5
_FILLING: Any = torch.utils.deterministic  # torch's stubs do not know its one setting


@contextmanager
def deterministic(wanted: bool) -> Iterator[None]:
    """Inside, torch uses only operations that repeat bit for bit, if that is `wanted`.

    An operation that has no such form raises torch's own error, which names it.
    """
    if not wanted:
        yield
        return
    # cuBLAS reads this when it is first used.
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    before = (
        torch.are_deterministic_algorithms_enabled(),
        torch.backends.cudnn.deterministic,
        torch.backends.cudnn.benchmark,
        _FILLING.fill_uninitialized_memory,
    )
    torch.use_deterministic_algorithms(True)
    torch.backends.cudnn.deterministic = True
    torch.backends.cudnn.benchmark = False
    _FILLING.fill_uninitialized_memory = False  # nothing here reads memory before it is written
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(before[0])
        (
            torch.backends.cudnn.deterministic,
            torch.backends.cudnn.benchmark,
            _FILLING.fill_uninitialized_memory,
        ) = before[1:]


def cost(compute: Callable[[], None], device: torch.device) -> float:
    """How much longer `compute` takes with deterministic operations: 0.1 for a tenth more."""

    def seconds(wanted: bool) -> float:
        with deterministic(wanted):
            _finish(device)
            began = time.perf_counter()
            compute()
            _finish(device)
            return time.perf_counter() - began

    seconds(False), seconds(True)  # the first of each finds its kernels
    pairs = [(seconds(False), seconds(True)) for _ in range(_REPEATS)]
    return statistics.median(exact / free for free, exact in pairs) - 1


def _finish(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
