"""What sets of images and of points have in common, and the one place where they become x_start."""

from __future__ import annotations

import hashlib
import math
from abc import ABC, abstractmethod
from collections.abc import Sequence
from functools import cached_property
from typing import Any, ClassVar, Self

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ..errors import InkdropError
from .pixels import to_float
from .stored.collection import MOST_CLASSES

Indices = Sequence[int] | NDArray[np.integer[Any]] | Tensor


class Examples(ABC):
    """Examples in memory and, if there are any, their labels: an `ImageSet` or a `PointSet`.

    A label is what a conditional network is told of an example: its class, or a vector of numbers.

    Attributes:
        labels: classes (N,) int64, 0 or more, or vectors (N, V) float32, finite; None for examples
            without labels.
        name: what messages call the set.
    """

    noun: ClassVar[str]  # what messages call one example
    in_memory: ClassVar[bool] = True  # rather than in a file
    labels: Tensor | None
    name: str

    @property
    @abstractmethod
    def values(self) -> Tensor:
        """The examples (N, …) as they are kept; `to_x_start` makes them what a network sees."""

    @property
    @abstractmethod
    def size(self) -> str:
        """The shape of every example in words."""

    @abstractmethod
    def _taken(self, index: Tensor) -> Self:
        """A set of the same kind and name, of the examples at `index` (int64, in range)."""

    def __len__(self) -> int:
        return len(self.values)

    def at(self, indices: Indices) -> Tensor:
        """The examples at `indices`, 0 … N-1, as they are kept: rows of `values`."""
        return self.values[torch.as_tensor(indices)]

    def labels_at(self, indices: Indices) -> Tensor | None:
        """Their labels."""
        return None if self.labels is None else self.labels[torch.as_tensor(indices)]

    @property
    def shape(self) -> tuple[int, ...]:
        """The shape of every example."""
        return tuple(self.values.shape[1:])

    @property
    def bytes_each(self) -> int:
        """The bytes of one example as it is kept."""
        return math.prod(self.shape) * (1 if self.noun == "image" else 4)

    @cached_property
    def classes(self) -> int | None:
        """The largest label + 1; None without labels, or where these are vectors."""
        if self.labels is None or self.vector is not None:
            return None
        return int(self.labels.max()) + 1

    @property
    def vector(self) -> int | None:
        """V, where the labels are vectors (N, V); None otherwise."""
        return None if self.labels is None or self.labels.ndim == 1 else self.labels.shape[1]

    @property
    def told(self) -> str:
        """What the labels are, in words."""
        if self.vector is not None:
            return f"vectors of {self.vector} number{'s' if self.vector > 1 else ''}"
        return "none" if self.labels is None else "classes"

    @cached_property
    def fingerprint(self) -> str:
        """A digest (hex) that is the same for the same data anywhere.

        The SHA-256 of shape, values and labels; for a part that was taken from a set, of the whole
        set's fingerprint and the indices.
        """
        labelled = "labelled" if self.labels is not None else "unlabelled"
        if self.vector is not None:
            labelled = f"told vectors of {self.vector}"
        digest = hashlib.sha256(f"{tuple(self.values.shape)} {labelled}\n".encode())
        digest.update(self.values.contiguous().numpy().data)
        if self.labels is not None:
            kind = "<i8" if self.vector is None else "<f4"
            digest.update(self.labels.numpy().astype(kind).tobytes())
        return digest.hexdigest()

    def take(self, indices: Indices) -> Self:
        """The examples at `indices`, 0 … N-1, in that order, with their labels.

        Raises:
            InkdropError: if there is no index, or one is not a whole number in that range.
        """
        index = self._checked(indices)
        taken = self._taken(index)
        everything = torch.equal(index, torch.arange(len(self)))
        taken.__dict__["fingerprint"] = (
            self.fingerprint if everything else taken_fingerprint(self.fingerprint, index.numpy())
        )
        return taken

    def _checked(self, indices: Indices) -> Tensor:
        index = torch.as_tensor(indices)
        whole = not index.is_floating_point() and index.dtype != torch.bool
        if not whole or index.ndim != 1 or len(index) == 0:
            raise InkdropError(
                f"{self.name}: indices must be a sequence of at least one whole number, got "
                f"{index.dtype} of shape {tuple(index.shape)}"
            )
        index = index.to(torch.int64)
        outside = (index < 0) | (index >= len(self))
        if outside.any():
            raise InkdropError(
                f"{self.name}: index {int(index[outside][0])} is outside 0 … {len(self) - 1}"
            )
        return index

    def _check_labels(self) -> None:
        if self.labels is None:
            return
        labels, count = self.labels, len(self)
        if labels.dtype == torch.float32:
            _check_vectors(labels, count, self.noun, self.name)
            return
        if labels.dtype != torch.int64:
            raise InkdropError(
                f"{self.name}: labels must be int64 classes or float32 vectors, got {labels.dtype}"
            )
        if labels.shape != (count,):
            raise InkdropError(
                f"{self.name}: labels must have shape ({count},), one for each {self.noun}, got "
                f"{tuple(labels.shape)}"
            )
        if labels.min() < 0:
            first = int((labels < 0).nonzero()[0])
            raise InkdropError(
                f"{self.name}: labels must be 0 or more, but label {first} is {int(labels[first])}"
            )
        if labels.max() >= MOST_CLASSES:
            raise InkdropError(
                f"{self.name}: labels must be below {MOST_CLASSES:,}, but one is "
                f"{int(labels.max())}: number the classes from 0"
            )


def _check_vectors(vectors: Tensor, count: int, noun: str, name: str) -> None:
    if vectors.ndim != 2 or len(vectors) != count or vectors.shape[1] < 1:
        raise InkdropError(
            f"{name}: labels of floats are vectors and must have shape ({count}, numbers), one row "
            f"for each {noun}, got {tuple(vectors.shape)}"
        )
    bad = ~vectors.isfinite().all(dim=1)
    if bad.any():
        first = int(bad.nonzero()[0])
        raise InkdropError(
            f"{name}: vectors must be finite, but that of {noun} {first} is "
            f"{vectors[first].tolist()}"
        )


def to_x_start(values: Tensor) -> Tensor:
    """What a network is trained on, float32: pixels in [-1, 1], points as they are.

    Args:
        values: `Examples.values`, or some of them: uint8 (B, C, H, W) or float32 (B, D).
    """
    return values if values.is_floating_point() else to_float(values)


def taken_fingerprint(parent: str, index: NDArray[np.int64]) -> str:
    """The fingerprint of what was taken from a set at `index`."""
    digest = hashlib.sha256(f"{parent} taken\n".encode())
    digest.update(index.astype("<i8").tobytes())
    return digest.hexdigest()
