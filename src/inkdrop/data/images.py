"""A set of images in memory, checked once."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Self

import torch
from torch import Tensor

from ..errors import InkdropError
from .examples import Examples


@dataclass(frozen=True, eq=False)
class ImageSet(Examples):
    """Images and, if there are any, their labels. The tensors are not to be written to.

    Attributes:
        images: (N, C, H, W) uint8.
        labels: classes (N,) int64, 0 or more, or vectors (N, V) float32, finite; None for images
            without labels.
        name: what messages call the set.

    Raises:
        InkdropError: if a tensor has another type or shape, or there is no image.
    """

    noun: ClassVar[str] = "image"
    images: Tensor
    labels: Tensor | None
    name: str

    def __post_init__(self) -> None:
        _check_images(self.images, self.name)
        self._check_labels()

    @property
    def values(self) -> Tensor:
        """The images, (N, C, H, W) uint8."""
        return self.images

    @property
    def shape(self) -> tuple[int, int, int]:
        """(C, H, W) of every image."""
        _, channels, height, width = self.images.shape
        return channels, height, width

    @property
    def size(self) -> str:
        """Height, width and channels in words."""
        return image_size(self.shape)

    def _taken(self, index: Tensor) -> Self:
        return type(self)(self.at(index), self.labels_at(index), self.name)


@dataclass(frozen=True)
class Source:
    """Training examples and, if the source has them, test examples of the same shape.

    Raises:
        InkdropError: if the two differ in shape, or in the kind of their labels.
    """

    train: Examples
    test: Examples | None = None

    def __post_init__(self) -> None:
        if self.test is not None and self.test.shape != self.train.shape:
            raise InkdropError(
                f"{self.test.name} has {self.test.noun}s of shape {self.test.shape}, but "
                f"{self.train.name} of {self.train.shape}: they must be the same"
            )
        if self.test is not None and self.test.vector != self.train.vector:
            told, other = self.test.told, self.train.told
            raise InkdropError(
                f"the labels of {self.test.name} are {told}, but those of {self.train.name} "
                f"{other}: they must be the same"
            )


def read_images(examples: Examples) -> ImageSet:
    """Images that lie in a file, or are streamed, read into memory."""
    return ImageSet(examples.values, examples.labels_at(range(len(examples))), examples.name)


def image_size(shape: tuple[int, int, int]) -> str:
    """(C, H, W) in words."""
    channels, height, width = shape
    return f"{height}×{width}, {channels} channel{'s' if channels > 1 else ''}"


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
