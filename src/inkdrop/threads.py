"""Threads beside the one that trains."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor

import torch


def helper(name: str) -> ThreadPoolExecutor:
    """A thread for work beside training, which computes by itself alone.

    OpenMP gives each thread that computes a team of its own. Once there are more threads than
    cores, the teams stop waiting actively for each other, all of them and for good: a step of a
    small network then takes half as long again.
    """
    pool = ThreadPoolExecutor(1, thread_name_prefix=name)
    threads = torch.get_num_threads()
    pool.submit(_compute_alone).result()
    torch.set_num_threads(threads)  # what threads of later get, which that had set too
    return pool


def _compute_alone() -> None:
    torch.get_num_threads()  # a thread takes the usual number when it first asks
    torch.set_num_threads(1)
