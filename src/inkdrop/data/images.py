"""A set of images in memory, checked once."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ..errors import InkdropError


@dataclass(frozen=True, eq=False)
class ImageSet:
    """Images and, if there are any, their labels. The tensors are not to be written to.

    Attributes:
        images: (N, C, H, W) uint8.
        labels: (N,) int64, 0 or more; None for images without labels.
        name: what messages call the set.

    Raises:
        InkdropError: if a tensor has another type or shape, or there is no image.
    """

    images: Tensor
    labels: Tensor | None
    name: str

    def __post_init__(self) -> None:
        _check_images(self.images, self.name)
        if self.labels is not None:
            _check_labels(self.labels, len(self.images), self.name)

    def __len__(self) -> int:
        return len(self.images)

    @property
    def shape(self) -> tuple[int, int, int]:
        """(C, H, W) of every image."""
        _, channels, height, width = self.images.shape
        return channels, height, width

    @cached_property
    def classes(self) -> int | None:
        """The largest label + 1; None without labels."""
        return None if self.labels is None else int(self.labels.max()) + 1

    @cached_property
    def fingerprint(self) -> str:
        """The SHA-256 (hex) of shape, pixels and labels: the same for the same data anywhere."""
        labelled = "labelled" if self.labels is not None else "unlabelled"
        digest = hashlib.sha256(f"{tuple(self.images.shape)} {labelled}\n".encode())
        digest.update(self.images.contiguous().numpy().data)
        if self.labels is not None:
            digest.update(self.labels.numpy().astype("<i8").tobytes())
        return digest.hexdigest()

    def take(self, indices: Sequence[int] | NDArray[np.integer[Any]] | Tensor) -> ImageSet:
        """The images at `indices`, 0 … N-1, in that order, with their labels.

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
        return ImageSet(self.images[index], labels, self.name)


@dataclass(frozen=True)
class Source:
    """Training images and, if the source has them, test images of the same shape.

    Raises:
        InkdropError: if the two differ in shape.
    """

    train: ImageSet
    test: ImageSet | None

    def __post_init__(self) -> None:
        if self.test is not None and self.test.shape != self.train.shape:
            raise InkdropError(
                f"{self.test.name} has images of shape {self.test.shape}, but {self.train.name} of "
                f"{self.train.shape}: (channels, height, width) must be the same"
            )


def _check_images(images: Tensor, name: str) -> None:
    if images.dtype != torch.uint8:
        raise InkdropError(f"{name}: images must be uint8, got {images.dtype}")
    if images.ndim != 4:
        raise InkdropError(
            f"{name}: images must have shape (N, channels, height, width), got "
            f"{tuple(images.shape)}"
        )
    if images.numel() == 0:
        raise InkdropError(
            f"{name}: at least one image of at least one pixel is needed, got shape "
            f"{tuple(images.shape)}"
        )


def _check_labels(labels: Tensor, count: int, name: str) -> None:
    if labels.dtype != torch.int64:
        raise InkdropError(f"{name}: labels must be int64, got {labels.dtype}")
    if labels.shape != (count,):
        raise InkdropError(
            f"{name}: labels must have shape ({count},), one for each image, got "
            f"{tuple(labels.shape)}"
        )
    if labels.min() < 0:
        first = int((labels < 0).nonzero()[0])
        raise InkdropError(
            f"{name}: labels must be 0 or more, but label {first} is {int(labels[first])}"
        )
