"""Work on many examples, shared out over the processes of a job.

Each process takes whole batches, neighbours in their order, so that every batch is what it is in
one process alone, and so is all that is made of them, to the bit.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable

import torch
from torch import Tensor

from .diffusion.schedule import checked_count
from .errors import InkdropError
from .processes import Processes
from .run import Run

_calls = itertools.count()  # all processes make the same calls, so they count alike


def own_examples(processes: Processes, n: int, batch_size: int) -> range:
    """Which of n examples are this process's: all those of its batches."""
    batches = processes.share(-(-n // checked_count("batch_size", batch_size)))
    return range(min(n, batches.start * batch_size), min(n, batches.stop * batch_size))


def idle_note(processes: Processes, n: int, batch_size: int) -> str | None:
    """What to tell a user who has more processes than batches; None where all have some."""
    batches, least = -(-n // batch_size), -(-n // processes.size)
    if batches >= processes.size:
        return None
    return (
        f"there is work for {batches} of {processes.size} processes only: {n:,} in batches of "
        f"{batch_size}" + (f"; --batch-size {least} shares them out" if least < batch_size else "")
    )


def unique(what: str) -> str:
    """A name for this call, the same on every process, and never given again."""
    return f"{what} {next(_calls)}"


def gathering(processes: Processes) -> Callable[[Tensor], Tensor]:
    """What joins the rows (n, …) of all processes in order, on the CPU of each.

    However long one of them takes: a collective begins when all are there.
    """

    def gather(rows: Tensor) -> Tensor:
        processes.wait_for_all(unique("rows"))
        return processes.gather(rows.cpu())

    return gather


def first_does(processes: Processes, action: Callable[[], None]) -> None:
    """Let the first process do this while the others wait; all of them raise what it raises."""
    failure: InkdropError | OSError | None = None
    if processes.first:
        try:
            action()
        except (InkdropError, OSError) as error:
            failure = error
    failure = processes.broadcast(failure)
    if failure is not None:
        raise failure


def check_same_step(processes: Processes, run: Run) -> None:
    """Refuse a run of which some processes opened another checkpoint than others."""
    steps = processes.gather_equal(torch.tensor([run.step])).tolist()
    if len(set(steps)) > 1:
        raise InkdropError(
            f"{run.path} was saved while the processes opened it, some at step {min(steps):,} and "
            f"some at step {max(steps):,}: give the command again"
        )
