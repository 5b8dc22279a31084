"""Images as they are stored: encoded or as pixels, of any sizes, not yet decided upon.

Nothing here imports torch: worker processes open collections, and must start quickly.
"""

from __future__ import annotations

import hashlib
from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from ...console import counted

Pixels = NDArray[Any]  # (H, W) or (H, W, C)

MOST_CLASSES = 1 << 20  # a label beyond it is no class, and to count classes would take the memory


class Item(NamedTuple):
    """One image as it is stored.

    Attributes:
        place: what messages call it: "cats/7.png", "train.parquet, row 12".
        content: an encoded file's bytes, or pixels (H, W) or (H, W, C) of uint8 or uint16; None
            where it cannot be read.
        fault: why not, in a few words.
    """

    place: str
    content: bytes | Pixels | None
    fault: str = ""


Labelled = tuple[Item, int | None]


class Collection(ABC):
    """Images in a fixed order, and their labels. Pickles as where it lies, not as what it holds.

    Attributes:
        name: what messages call the set: "emoji.zip", "train.parquet".
        kind: what it was recognised as, in words: "a zip of images", "IDX files".
        labels: (N,) int64, 0 or more; None for images without labels.
        class_names: the names of classes 0 … K-1; empty where they have none.
        notes: what was set aside or guessed when it was looked through, a sentence each.
        block: how many images in a row are best read together.
        sequential: whether reading from the middle means reading all that comes before it.
        streams_labels: whether labels are known only with the images, from `read_labelled`.
    """

    name: str
    kind: str
    labels: NDArray[np.int64] | None = None
    class_names: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()
    block: int = 1
    sequential: bool = False
    streams_labels: bool = False

    @abstractmethod
    def __len__(self) -> int:
        """How many images there are."""

    @abstractmethod
    def read(self, start: int, stop: int) -> Iterator[Item]:
        """Images start … stop - 1, in order.

        An image that cannot be read comes with its fault, and the others still come.
        """

    def read_labelled(self, start: int, stop: int) -> Iterator[Labelled]:
        """Images start … stop - 1 with their labels; None for one without."""
        labels = self.labels
        for i, item in enumerate(self.read(start, stop), start):
            yield item, None if labels is None else int(labels[i])

    @abstractmethod
    def identity(self) -> str:
        """A digest (hex) that changes when what is stored does, without reading it.

        For files their names, sizes and times of change.
        """


class Arrays(Collection):
    """Images that lie in memory, or in a mapped file, as one array.

    Args:
        pixels: (N, H, W), (N, H, W, C) with C = 1, 3 or 4, of uint8 or uint16.
        labels: (N,) int64.
        name, kind, class_names, notes: as for every collection.
        identity: as `Collection.identity` gives it; from the pixels themselves by default.
    """

    def __init__(
        self,
        pixels: Pixels,
        labels: NDArray[np.int64] | None,
        name: str,
        kind: str,
        *,
        class_names: Sequence[str] = (),
        notes: Sequence[str] = (),
        identity: str | None = None,
    ) -> None:
        self.pixels = pixels
        self.labels = labels
        self.name = name
        self.kind = kind
        self.class_names = tuple(class_names)
        self.notes = tuple(notes)
        self._identity = identity

    def __len__(self) -> int:
        return len(self.pixels)

    def read(self, start: int, stop: int) -> Iterator[Item]:
        """Images start … stop - 1."""
        for i in range(start, stop):
            yield Item(f"{self.name}, image {i}", self.pixels[i])

    def identity(self) -> str:
        """Of the files it was read from; else of the pixels."""
        if self._identity is None:
            digest = hashlib.sha256(f"{self.pixels.shape} {self.pixels.dtype}".encode())
            digest.update(np.ascontiguousarray(self.pixels).data)
            if self.labels is not None:
                digest.update(self.labels.astype("<i8").tobytes())
            self._identity = digest.hexdigest()
        return self._identity


class Found(NamedTuple):
    """A set of images as it was found: to train on and, where there are any, to test on."""

    train: Collection
    test: Collection | None

    @property
    def description(self) -> str:
        """One line: what was recognised, and how much of it there is."""
        parts = [counted(len(self.train), "image")]
        if self.test is not None:
            parts.append(counted(len(self.test), "test image"))
        labels, named = self.train.labels, len(self.train.class_names)
        if labels is not None:
            parts.append(f"{named or int(labels.max()) + 1} classes")
        else:
            parts.append(f"{named or ''} classes" if self.train.streams_labels else "no labels")
        return f"{self.train.name}: {self.train.kind}, {', '.join(parts)}"


class Head(Collection):
    """The first images of a collection."""

    def __init__(self, whole: Collection, count: int) -> None:
        self._whole = whole
        self._count = min(count, len(whole))
        self.name = whole.name
        self.kind = whole.kind
        self.labels = None if whole.labels is None else whole.labels[: self._count]
        self.class_names = whole.class_names
        self.block = whole.block
        self.sequential = whole.sequential
        self.streams_labels = whole.streams_labels

    def __len__(self) -> int:
        return self._count

    def read(self, start: int, stop: int) -> Iterator[Item]:
        """Images start … stop - 1."""
        return self._whole.read(start, stop)

    def read_labelled(self, start: int, stop: int) -> Iterator[Labelled]:
        """Images start … stop - 1 with their labels."""
        return self._whole.read_labelled(start, stop)

    def identity(self) -> str:
        """Of the whole, and how much of it this is."""
        return f"{self._whole.identity()} first {self._count}"
