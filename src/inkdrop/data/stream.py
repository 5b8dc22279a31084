"""Batches for training: batch k is a pure function of (seed, k).

There is no state to save, and nothing depends on how many processes share a batch.
"""

from __future__ import annotations

from concurrent.futures import Future
from typing import NamedTuple

import numpy as np
import psutil
import torch
from torch import Tensor

from ..config import MEMORY
from ..errors import InkdropError, unknown_name
from ..randomness import generator
from ..threads import helper
from .augment import Augmentation
from .examples import Examples, to_x_start
from .order import Order, Shuffled, Windowed
from .streaming import StreamedImages

_SHARE_OF_MEMORY = 0.25  # of what is free on the device, that a resident set may take


class Batch(NamedTuple):
    """What one process trains on in one step.

    Attributes:
        x_start: (B, C, H, W) in [-1, 1] or (B, D), float32.
        labels: (B,) int64, (B, V) float32 or None.
        augmentation: (B, A) float32, what was done to the images; None for nothing that a network
            is told.
    """

    x_start: Tensor
    labels: Tensor | None
    augmentation: Tensor | None


class Stream:
    """Batches of a set, in a new order every epoch.

    Batches run on from one epoch into the next, so that every example is seen once in each. Asking
    again gives the same batch, whatever the memory mode and the number of processes.

    The set is resident (kept on the device, images as uint8) where it fits and is in memory or
    mapped; else rows are gathered, or decoded, a batch ahead of the training.

    Args:
        examples: the set.
        batch_size: examples of a batch, of all processes together.
        seed: names the order and the augmentation.
        augmentation: how images are varied.
        device: where batches are needed.
        memory: "auto", "resident", or "mapped" for leaving the set where it is.
        rank, world_size: this process and how many there are; each takes its rows of every batch.

    Raises:
        InkdropError: for an augmentation of what are no images, or a batch that the processes
            cannot share evenly.
    """

    def __init__(
        self,
        examples: Examples,
        batch_size: int,
        seed: int,
        augmentation: Augmentation | None = None,
        *,
        device: torch.device | str = "cpu",
        memory: str = "auto",
        rank: int = 0,
        world_size: int = 1,
    ) -> None:
        self.augmentation = augmentation or Augmentation()
        if self.augmentation.active and examples.noun != "image":
            raise InkdropError(
                f"{examples.name}: {examples.noun}s cannot be flipped, shifted or turned: only "
                "images can; leave the augmentation out"
            )
        if batch_size % world_size:
            raise InkdropError(
                f"a batch of {batch_size} cannot be shared evenly by {world_size} processes"
            )
        if memory not in MEMORY:
            raise unknown_name("memory mode", memory, MEMORY)
        self.batch_size = batch_size
        self.seed = seed
        self.device = torch.device(device)
        self._examples = examples
        share = batch_size // world_size
        self.rows = slice(rank * share, (rank + 1) * share)
        self.order: Order
        if isinstance(examples, StreamedImages):
            self.order = examples.order(seed)
        else:
            self.order = Shuffled(len(examples), seed)
        self.resident = _is_resident(examples, self.device, memory)
        if self.resident:
            self._values = examples.values.to(self.device)
            labels = examples.labels
            self._labels = None if labels is None else labels.to(self.device)
        else:
            self._ahead = helper("inkdrop-batch")
            self._coming: tuple[int, Future[_Rows]] | None = None

    def indices(self, step: int) -> np.ndarray:
        """The examples of batch `step`, as indices (B,) into the set."""
        return self.order.indices(self._positions(step))

    def batch(self, step: int) -> Batch:
        """This process's rows of batch `step`, augmented."""
        values, labels = self._resident_rows(step) if self.resident else self._rows_ahead(step)
        if not self.augmentation.active:
            return Batch(to_x_start(values), labels, None)
        draws = self.augmentation.draw(self.batch_size, self.seed, step).of(self.rows)
        x_start, told = self.augmentation.apply(values, draws)
        return Batch(x_start, labels, told)

    def _positions(self, step: int) -> np.ndarray:
        return np.arange(step * self.batch_size, (step + 1) * self.batch_size)

    def _resident_rows(self, step: int) -> _Rows:
        own = torch.from_numpy(self.indices(step)[self.rows]).to(self.device)
        labels = None if self._labels is None else self._labels[own]
        return _Rows(self._values[own], labels)

    def _rows_ahead(self, step: int) -> _Rows:
        coming, self._coming = self._coming, None
        if coming is not None and coming[0] == step:
            rows = coming[1].result()
        else:
            if coming is not None:
                coming[1].exception()  # one reader at a time
            rows = self._gathered(step)
        self._coming = (step + 1, self._ahead.submit(self._gathered, step + 1))
        return rows

    def _gathered(self, step: int) -> _Rows:
        positions = self._positions(step)
        if isinstance(self.order, Windowed) and isinstance(self._examples, StreamedImages):
            self._examples.have_at_hand(self.order, self.order.keys(positions))
        own = self.order.indices(positions)[self.rows]
        values, labels = self._examples.at(own), self._examples.labels_at(own)
        return _Rows(self._moved(values), None if labels is None else self._moved(labels))

    def _moved(self, rows: Tensor) -> Tensor:
        if self.device.type != "cuda":
            return rows.to(self.device)
        return rows.pin_memory().to(self.device, non_blocking=True)


class _Rows(NamedTuple):
    values: Tensor
    labels: Tensor | None


def _is_resident(examples: Examples, device: torch.device, memory: str) -> bool:
    if isinstance(examples, StreamedImages):
        return False
    if memory != "auto":
        return memory == "resident"
    if device.type == "cpu":
        return examples.in_memory  # a mapped file is as near as a copy of it
    needed = len(examples) * examples.bytes_each
    free = (
        torch.cuda.mem_get_info(device)[0]
        if device.type == "cuda"
        else psutil.virtual_memory().available
    )
    return needed <= _SHARE_OF_MEMORY * free


def held_out_split(
    train: Examples, test: Examples | None, wanted: int
) -> tuple[Examples, Examples | None]:
    """The examples to train on, and up to `wanted` for the held-out loss.

    They come from the test set where there is one. Otherwise up to a tenth of the training examples
    is set aside, the same ones for every seed; none when there are fewer than ten. Of a set that
    can only be read from its beginning they are the first.
    """
    pool = train if test is None else test
    order = np.arange(len(pool))
    if not (isinstance(pool, StreamedImages) and pool.collection.sequential):
        order = generator(0, "held out").permutation(len(pool))
    if test is not None:
        return train, test.take(order[:wanted])
    count = min(wanted, len(train) // 10)
    if count == 0:
        return train, None
    return train.take(np.sort(order[count:])), train.take(order[:count])
