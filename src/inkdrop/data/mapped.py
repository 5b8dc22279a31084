"""A set of images in a file of pixels: as large as the disk allows."""

from __future__ import annotations

import math
import os
import threading
import weakref
from pathlib import Path
from typing import ClassVar, Self

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ..errors import InkdropError
from .examples import Examples, Indices
from .images import image_size

_HAS_PREADV = hasattr(os, "preadv")
_AT_ONCE = 1 << 20  # bytes that are read at a time where they are copied again


class MappedImages(Examples):
    """Images in a file of uint8 pixels, read as they are asked for.

    What was taken from a set reads the same file; nothing is copied. The memory that is held does
    not grow with the set: the system keeps what it has room for.

    Args:
        rows: the file.
        shape: (C, H, W) of every image.
        labels: (N,) int64 or None.
        name: what messages call the set.
        fingerprint: of shape, pixels and labels, as every set has it.
        class_names: the names of classes 0 … K-1; empty where they have none.
        index: (N,) which of the file's images these are; None for all.
    """

    noun: ClassVar[str] = "image"
    in_memory: ClassVar[bool] = False

    def __init__(
        self,
        rows: MappedRows,
        shape: tuple[int, int, int],
        labels: Tensor | None,
        name: str,
        fingerprint: str,
        class_names: tuple[str, ...] = (),
        index: NDArray[np.int64] | None = None,
    ) -> None:
        self._rows = rows
        self._shape = shape
        self._index = index
        self.labels = labels
        self.name = name
        self.class_names = class_names
        self.__dict__["fingerprint"] = fingerprint
        if class_names and labels is not None:
            self.__dict__["classes"] = len(class_names)

    def __len__(self) -> int:
        return self._rows.count if self._index is None else len(self._index)

    @property
    def values(self) -> Tensor:
        """All of the images, (N, C, H, W) uint8, read into memory."""
        return self.at(np.arange(len(self)))

    @property
    def shape(self) -> tuple[int, int, int]:
        """(C, H, W) of every image."""
        return self._shape

    @property
    def size(self) -> str:
        """Height, width and channels in words."""
        return image_size(self._shape)

    def at(self, indices: Indices) -> Tensor:
        """The images at `indices`, 0 … N-1: (B, C, H, W) uint8."""
        wanted = np.asarray(indices, dtype=np.int64)
        if self._index is not None:
            wanted = self._index[wanted]
        return torch.from_numpy(self._rows.gathered(wanted).reshape(-1, *self._shape))

    def _taken(self, index: Tensor) -> Self:
        own = index.numpy() if self._index is None else self._index[index.numpy()]
        return type(self)(
            self._rows,
            self._shape,
            self.labels_at(index),
            self.name,
            "",  # `take` sets it
            self.class_names,
            own,
        )


class MappedRows:
    """A file of rows of bytes, all of the same length.

    Read at its places rather than mapped by the system: a mapping counts whole stretches of the
    file as this process's memory for every row that is touched, and ends it when a disk fails.

    Args:
        path: the file.
        shape: of what one row is.
    """

    def __init__(self, path: Path, shape: tuple[int, ...]) -> None:
        self.path = path
        self.shape = shape
        self._length = math.prod(shape)
        self._lock = threading.Lock()
        self._file = os.open(path, os.O_RDONLY | getattr(os, "O_BINARY", 0))
        weakref.finalize(self, os.close, self._file)
        self.count = os.fstat(self._file).st_size // self._length

    def gathered(self, indices: NDArray[np.int64]) -> NDArray[np.uint8]:
        """Copies of the rows at `indices` (B,).

        Raises:
            IndexError: if one is outside 0 … count - 1.
            InkdropError: if the file cannot be read.
        """
        if len(indices) and not 0 <= indices.min() <= indices.max() < self.count:
            raise IndexError(f"rows 0 … {self.count - 1} of {self.path}")
        rows = np.empty((len(indices), self._length), np.uint8)
        starts = np.flatnonzero(np.diff(indices, prepend=-2) != 1)  # of runs of neighbours
        places = (indices[starts] * self._length).tolist()
        buffer = memoryview(rows.data).cast("B") if rows.size else memoryview(b"")
        bounds = [*(starts * self._length).tolist(), rows.size]
        read = self._read
        try:
            for place, start, stop in zip(places, bounds, bounds[1:], strict=False):
                run = buffer[start:stop]
                done = read(run, place)
                while done < stop - start:  # the system reads 2 GiB at a time
                    more = read(run[done:], place + done)
                    if not more:
                        raise InkdropError(f"{self.path} has been cut short: start again")
                    done += more
        except OSError as error:
            raise InkdropError(f"cannot read {self.path}: {error.strerror}") from error
        return rows

    def _read(self, buffer: memoryview, place: int) -> int:
        """Read from `place` into `buffer`; how many bytes were read, 0 at the end."""
        if _HAS_PREADV:
            return os.preadv(self._file, (buffer,), place)
        with self._lock:  # Windows has one place in a file for all threads
            os.lseek(self._file, place, os.SEEK_SET)
            content = os.read(self._file, min(len(buffer), _AT_ONCE))
        buffer[: len(content)] = content
        return len(content)

    def __reduce__(self) -> tuple[type[MappedRows], tuple[Path, tuple[int, ...]]]:
        return MappedRows, (self.path, self.shape)
