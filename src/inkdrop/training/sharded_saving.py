"""Checkpoints of a network in parts: every process writes its own, and the first makes them one."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

import torch.distributed as dist

from ..checkpoint import (
    Checkpoint,
    begin,
    check_finite,
    commit,
    entry,
    telling_what_stands,
    write_part,
)
from ..errors import InkdropError
from ..processes import Processes
from ..sharded_files import is_shared, local, write_shards

T = TypeVar("T")


class ShardedWriter:
    """Writes checkpoints with all processes, as `checkpoint.write_checkpoint` does alone.

    Collective, also to make one. It has a process group of its own, so that it can be called in a
    thread while training goes on.
    """

    def __init__(self, processes: Processes) -> None:
        self._processes = processes
        self._group: Any = dist.new_group(backend="gloo")

    def __call__(self, folder: Path, checkpoint: Checkpoint, keep: int) -> None:
        """Write it.

        Raises:
            NonFiniteError: for values that are not finite, in any process's part.
            InkdropError: when a disk refuses. Either way what was there before is untouched.
        """
        with telling_what_stands(folder, checkpoint.step):
            self._write(folder, checkpoint, keep)

    def _write(self, folder: Path, checkpoint: Checkpoint, keep: int) -> None:
        first, step = self._processes.first, checkpoint.step

        def start() -> Path | None:
            for part, tensors in checkpoint.tensors.items():
                own = {name: local(tensor) for name, tensor in tensors.items()}
                check_finite(part, own, checkpoint.exempt)
            return begin(folder, step) if first else None

        temporary = next(path for path in self._all(start) if path is not None)
        files: dict[str, Any] = {}
        for part, tensors in checkpoint.tensors.items():
            if any(map(is_shared, tensors.values())):
                write_shards(temporary / part, tensors, self._group)
            else:
                alone: Callable[[], dict[str, Any]] = partial(write_part, temporary, part, tensors)
                files |= self._all(alone if first else dict)[0]

        def hashed() -> dict[str, Any]:
            shards = sorted(temporary.glob("*/*.safetensors"))
            own = shards[self._processes.rank :: self._processes.size]
            return {str(path.relative_to(temporary)): entry(path) for path in own}

        for entries in self._all(hashed):
            files |= entries

        def finish() -> None:
            if first:
                state, loss = checkpoint.state, checkpoint.held_out_loss
                commit(folder, temporary, files, step, state, loss, keep)

        self._all(finish)

    def _all(self, do: Callable[[], T]) -> list[T]:
        """What `do` returns in every process, in order; a failure in one is a failure of all."""
        result, failure = None, None
        try:
            result = do()
        except (InkdropError, OSError) as error:
            failure = error
        held: list[Any] = [None] * self._processes.size
        dist.all_gather_object(held, (result, failure), group=self._group)
        for _, failed in held:
            if failed is not None:
                raise failed
        return [returned for returned, _ in held]
