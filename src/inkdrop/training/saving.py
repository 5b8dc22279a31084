"""Checkpoints are written while training goes on."""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from concurrent.futures import Future
from contextlib import suppress
from dataclasses import replace
from pathlib import Path

import torch
from torch import Tensor

from ..checkpoint import Checkpoint, write_checkpoint
from ..sharded_files import host_copy, is_shared
from ..threads import helper

Buffers = dict[str, dict[str, Tensor]]


class Saver:
    """Writes the checkpoints of one training, one at a time, in a thread of its own.

    Its copy of the training state stays in the host's memory for the next time: pinned, where the
    state is on a GPU. Whatever ends the process, a checkpoint is whole or not there; where Python
    itself ends it, the one being written is finished first.

    Args:
        folder: RUN/checkpoints.
        keep: how many of the newest stay there; see `checkpoint.commit`.
        write: what writes one; called in the thread.

    Attributes:
        copied: seconds that `save` took to copy the training state, in all.
        stalled: seconds that `save` took, with these copies, in all.
    """

    def __init__(
        self,
        folder: Path,
        keep: int,
        write: Callable[[Path, Checkpoint, int], object] = write_checkpoint,
    ) -> None:
        self.folder = folder
        self.keep = keep
        self.copied = self.stalled = 0.0
        self._write = write
        self._buffers: Buffers = {}
        self._thread = helper("inkdrop-saver")
        self._writing: Future[object] | None = None

    def save(self, checkpoint: Checkpoint) -> None:
        """Copy a training state and go on; it is written meanwhile.

        Waits first for the one before, if that is still being written.

        Raises:
            InkdropError: if the one before could not be written.
        """
        began = time.perf_counter()
        self.wait()
        asked = time.perf_counter()
        self._buffers = to_host(checkpoint.tensors, self._buffers)
        self.copied += time.perf_counter() - asked
        state = json.loads(json.dumps(checkpoint.state))
        copy = replace(checkpoint, tensors=self._buffers, state=state)
        self._writing = self._thread.submit(self._write, self.folder, copy, self.keep)
        self.stalled += time.perf_counter() - began

    def wait(self) -> None:
        """Return when what was saved is on the disk.

        Raises:
            InkdropError: if it could not be written; once for each failure.
        """
        writing, self._writing = self._writing, None
        if writing is not None:
            writing.result()

    def finish(self) -> None:
        """Wait, but raise nothing: for when another error is on its way."""
        with suppress(Exception):
            self.wait()

    def check(self) -> None:
        """Raise as `wait` does, but do not wait."""
        if not self.busy:
            self.wait()

    @property
    def busy(self) -> bool:
        """Whether one is being written."""
        return self._writing is not None and not self._writing.done()


def to_host(tensors: dict[str, dict[str, Tensor]], buffers: Buffers) -> Buffers:
    """Copy every part's tensors into the host's memory, into `buffers` where they fit.

    Tensors that share memory come out apart. The copies are complete when it returns.
    """
    copies: Buffers = {}
    gpus = set()
    for part, named in tensors.items():
        before, copies[part] = buffers.get(part, {}), {}
        for name, tensor in named.items():
            if is_shared(tensor):
                copies[part][name] = host_copy(tensor, before.get(name))
                continue
            on_gpu = tensor.device.type == "cuda"
            buffer = before.get(name)
            if buffer is None or buffer.shape != tensor.shape or buffer.dtype != tensor.dtype:
                buffer = torch.empty(
                    tensor.shape, dtype=tensor.dtype, device="cpu", pin_memory=on_gpu
                )
            buffer.copy_(tensor.detach(), non_blocking=on_gpu)
            copies[part][name] = buffer
            if on_gpu:
                gpus.add(tensor.device)
    for gpu in gpus:
        torch.cuda.current_stream(gpu).synchronize()
    return copies
