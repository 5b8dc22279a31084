"""What sets of images and of points have in common, and the one place where they become x_start."""

from __future__ import annotations

import hashlib
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


class Examples(ABC):
    """Examples in memory and, if there are any, their labels: an `ImageSet` or a `PointSet`.

    Attributes:
        labels: (N,) int64, 0 or more; None for examples without labels.
        name: what messages call the set.
    """

    noun: ClassVar[str]  # what messages call one example
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
    def _with(self, values: Tensor, labels: Tensor | None) -> Self:
        """A set of the same kind and name."""

    def __len__(self) -> int:
        return len(self.values)

    @property
    def shape(self) -> tuple[int, ...]:
        """The shape of every example."""
        return tuple(self.values.shape[1:])

    @cached_property
    def classes(self) -> int | None:
        """The largest label + 1; None without labels."""
        return None if self.labels is None else int(self.labels.max()) + 1

    @cached_property
    def fingerprint(self) -> str:
        """The SHA-256 (hex) of shape, values and labels: the same for the same data anywhere."""
        labelled = "labelled" if self.labels is not None else "unlabelled"
        digest = hashlib.sha256(f"{tuple(self.values.shape)} {labelled}\n".encode())
        digest.update(self.values.contiguous().numpy().data)
        if self.labels is not None:
            digest.update(self.labels.numpy().astype("<i8").tobytes())
        return digest.hexdigest()

    def take(self, indices: Sequence[int] | NDArray[np.integer[Any]] | Tensor) -> Self:
        """The examples at `indices`, 0 … N-1, in that order, with their labels.

        Raises:
            InkdropError: if there is no index, or one is not a whole number in that range.
        """
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
        labels = None if self.labels is None else self.labels[index]
        return self._with(self.values[index], labels)

    def _check_labels(self) -> None:
        if self.labels is None:
            return
        labels, count = self.labels, len(self)
        if labels.dtype != torch.int64:
            raise InkdropError(f"{self.name}: labels must be int64, got {labels.dtype}")
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


def to_x_start(values: Tensor) -> Tensor:
    """What a network is trained on, float32: pixels in [-1, 1], points as they are.

    Args:
        values: `Examples.values`, or some of them: uint8 (B, C, H, W) or float32 (B, D).
    """
    return values if values.is_floating_point() else to_float(values)
