"""The order in which examples are seen: a pure function of (seed, position), with no state to save.

Position p of a training is place p mod N of epoch p div N, and every epoch sees each example once.
"""

from __future__ import annotations

from functools import lru_cache
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from ..randomness import generator

Ints = NDArray[np.int64]


class Order(Protocol):
    """Which example stands at each position."""

    def indices(self, positions: Ints) -> Ints:
        """The examples at positions 0, 1, 2, …"""


class Shuffled:
    """A new permutation of all `count` examples in every epoch."""

    def __init__(self, count: int, seed: int) -> None:
        self.count = count
        self.seed = seed
        # Threads ask at the same time; a batch may lie in two epochs.
        self._order = lru_cache(maxsize=2)(self._drawn_order)

    def indices(self, positions: Ints) -> Ints:
        """The examples at these positions."""
        epochs, places = np.divmod(positions, self.count)
        indices = np.empty(len(positions), dtype=np.int64)
        for epoch in np.unique(epochs):
            here = epochs == epoch
            indices[here] = self._order(int(epoch))[places[here]]
        return indices

    def _drawn_order(self, epoch: int) -> Ints:
        return generator(self.seed, "order", epoch).permutation(self.count)


class Windowed:
    """A shuffle for sets that are read in runs: blocks in a new order, shuffled in windows.

    Every epoch puts blocks of `block` neighbours in a new order, cuts the result into windows of
    `window` examples, and shuffles each window. One window at a time is all that must be at hand.

    Args:
        count: how many examples there are.
        seed: names the order.
        window: how many examples are at hand at once.
        block: how many neighbours stay in one window, or nearly.
        sequential: leave the blocks in their order, and shuffle windows only.
    """

    def __init__(
        self, count: int, seed: int, window: int, block: int = 1, *, sequential: bool = False
    ) -> None:
        self.count = count
        self.seed = seed
        self.window = min(window, count)
        self.block = min(block, self.window)
        self.sequential = sequential
        # As above; the next window is read ahead, and may lie in the next epoch.
        self._blocks = lru_cache(maxsize=2)(self._drawn_blocks)
        self._order = lru_cache(maxsize=2)(self._drawn_order)

    @property
    def windows(self) -> int:
        """Windows of an epoch."""
        return -(-self.count // self.window)

    def indices(self, positions: Ints) -> Ints:
        """The examples at these positions."""
        indices = np.empty(len(positions), dtype=np.int64)
        epochs, places = np.divmod(positions, self.count)
        keys = epochs * self.windows + places // self.window
        for key in np.unique(keys):
            here = keys == key
            epoch, window = divmod(int(key), self.windows)
            indices[here] = self._order(epoch, window)[places[here] - window * self.window]
        return indices

    def members(self, key: int) -> Ints:
        """The examples of window `key`, counted on through the epochs, in the order they lie in."""
        epoch, window = divmod(key, self.windows)
        starts, lengths, ends = self._blocks(epoch)
        first, last = window * self.window, min((window + 1) * self.window, self.count)
        blocks = slice(
            int(np.searchsorted(ends, first, side="right")),
            int(np.searchsorted(ends, last, side="left")) + 1,
        )
        runs = [
            np.arange(start, start + length)
            for start, length in zip(starts[blocks], lengths[blocks], strict=True)
        ]
        before = int(ends[blocks][0] - lengths[blocks][0])
        return np.sort(np.concatenate(runs)[first - before : last - before])

    def keys(self, positions: Ints) -> list[int]:
        """The windows that these positions lie in."""
        epochs, places = np.divmod(positions, self.count)
        keys = np.unique(epochs * self.windows + places // self.window)
        return [int(key) for key in keys]

    def _drawn_order(self, epoch: int, window: int) -> Ints:
        members = self.members(epoch * self.windows + window)
        draws = generator(self.seed, "order within a window", epoch, window)
        return members[draws.permutation(len(members))]

    def _drawn_blocks(self, epoch: int) -> tuple[Ints, Ints, Ints]:
        """Where each block of an epoch starts, how long it is, and where in the epoch it ends."""
        starts = np.arange(0, self.count, self.block)
        if not self.sequential:
            starts = starts[generator(self.seed, "order of blocks", epoch).permutation(len(starts))]
        lengths = np.minimum(self.block, self.count - starts)
        return starts, lengths, np.cumsum(lengths)
