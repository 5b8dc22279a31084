"""Sets that are decoded as they are needed: larger than memory, and than the disk.

What is kept is one window of encoded images, and the one that comes next.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from itertools import pairwise
from typing import ClassVar, Self

import numpy as np
import torch
from torch import Tensor

from ..errors import InkdropError
from ..randomness import generator
from .decode import BadImage, decode
from .examples import Examples, Indices
from .images import image_size
from .order import Ints, Windowed
from .stored.collection import Collection, Item, Labelled
from .transform import Transform

_NEIGHBOURS = 32  # images that are read together where reading any one costs the same


class StreamedImages(Examples):
    """Images that stay where they are stored, and are decoded when they are asked for.

    Args:
        collection: where they are stored.
        kept: (N,) which of its images are used, in rising order.
        transform: what makes them (C, H, W) uint8.
        fingerprint: of the images and what is done to them.
        window: how many encoded images are kept at hand while training.
        workers: threads that decode; as many as there are cores by default.
    """

    noun: ClassVar[str] = "image"
    in_memory: ClassVar[bool] = False

    def __init__(
        self,
        collection: Collection,
        kept: Ints,
        transform: Transform,
        fingerprint: str,
        window: int,
        workers: int | None = None,
    ) -> None:
        self.collection = collection
        self.kept = kept
        self.transform = transform
        self.window = window
        self.name = collection.name
        stored = collection.labels
        self.labels = None if stored is None else torch.from_numpy(stored[kept])
        self.__dict__["fingerprint"] = fingerprint
        if collection.class_names and (stored is not None or collection.streams_labels):
            self.__dict__["classes"] = len(collection.class_names)
        self._places = None
        if transform.fit == "random-crop":  # as the decoded cache draws them
            self._places = generator(0, "crop place").random((len(collection), 2))
        self._workers = workers
        self._pool: ThreadPoolExecutor | None = None
        self._at_hand: dict[int, dict[int, Labelled]] = {}
        self._coming: dict[int, Future[dict[int, Labelled]]] = {}

    @property
    def values(self) -> Tensor:
        """All of the images, decoded: (N, C, H, W) uint8."""
        return self.at(np.arange(len(self)))

    @property
    def shape(self) -> tuple[int, int, int]:
        """(C, H, W) of every image."""
        return self.transform.channels, self.transform.height, self.transform.width

    @property
    def size(self) -> str:
        """Height, width and channels in words."""
        return image_size(self.shape)

    def __len__(self) -> int:
        return len(self.kept)

    def order(self, seed: int) -> Windowed:
        """An order in which a window at a time is needed."""
        block = max(_NEIGHBOURS, self.collection.block)
        return Windowed(len(self), seed, self.window, block, sequential=self.collection.sequential)

    def at(self, indices: Indices) -> Tensor:
        """The images at `indices`, (B, C, H, W) uint8.

        Raises:
            InkdropError: naming the first image that cannot be decoded.
        """
        stored = self.kept[np.asarray(indices)]
        items = [item for item, _ in self._items(stored)]
        if self._pool is None:
            self._pool = ThreadPoolExecutor(self._workers, "inkdrop-decode")
        rows = list(self._pool.map(self._decoded, stored.tolist(), items))
        return torch.from_numpy(np.stack(rows))

    def labels_at(self, indices: Indices) -> Tensor | None:
        """Their labels, which may come with the images themselves."""
        if not self.collection.streams_labels:
            return super().labels_at(indices)
        items = self._items(self.kept[np.asarray(indices)])
        labels = [label for _, label in items if label is not None]
        return torch.tensor(labels) if len(labels) == len(items) else None

    def have_at_hand(self, order: Windowed, keys: Sequence[int]) -> None:
        """Read the windows `keys` of an order, let go of others, and begin with the next one."""
        self._at_hand = {key: items for key, items in self._at_hand.items() if key in keys}
        for key in keys:
            if key not in self._at_hand:
                coming = self._coming.pop(key, None)
                self._at_hand[key] = coming.result() if coming else self._window(order, key)
        following = keys[-1] + 1
        if following not in self._coming:
            self._coming.clear()
            reader = ThreadPoolExecutor(1, "inkdrop-read")
            self._coming[following] = reader.submit(self._window, order, following)
            reader.shutdown(wait=False)

    def _taken(self, index: Tensor) -> Self:
        return type(self)(
            self.collection,
            self.kept[index.numpy()],
            self.transform,
            "",  # `take` sets it
            self.window,
            self._workers,
        )

    def _window(self, order: Windowed, key: int) -> dict[int, Labelled]:
        stored = self.kept[order.members(key)]
        return dict(zip(stored.tolist(), self._read(stored), strict=True))

    def _items(self, stored: Ints) -> list[Labelled]:
        found: dict[int, Labelled] = {}
        for items in self._at_hand.values():
            found |= {i: items[i] for i in stored.tolist() if i in items}
        missing = np.unique([i for i in stored.tolist() if i not in found]).astype(np.int64)
        found |= dict(zip(missing.tolist(), self._read(missing), strict=True))
        return [found[i] for i in stored.tolist()]

    def _read(self, stored: Ints) -> Iterator[Labelled]:
        """The items at rising indices, neighbours together."""
        if not len(stored):
            return
        breaks = np.flatnonzero(np.diff(stored) != 1) + 1
        for first, last in pairwise([0, *breaks.tolist(), len(stored)]):
            yield from self.collection.read_labelled(int(stored[first]), int(stored[last - 1]) + 1)

    def _decoded(self, index: int, item: Item) -> np.ndarray:
        try:
            return self.transform(decode(item), self._place(index))
        except BadImage as bad:
            why = "has it changed since the check?"
            if self.collection.sequential:
                why = "a stream is not checked, so its bad images cannot be skipped"
            raise InkdropError(f"{item.place}: {bad.reason}; {why}") from None

    def _place(self, index: int) -> tuple[float, float]:
        if self._places is None:
            return 0.5, 0.5
        x, y = self._places[index]
        return float(x), float(y)
