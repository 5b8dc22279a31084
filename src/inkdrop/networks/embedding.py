"""How networks are told the timestep, the class and the augmentation."""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor, nn

from ..errors import InkdropError


class Condition(NamedTuple):
    """What a network is told besides the timestep.

    Attributes:
        classes: (B,) int; None for a network without classes.
        augmentation: (B, A) float32, how an image was changed; None or zeros for images as they
            are in the data.
    """

    classes: Tensor | None = None
    augmentation: Tensor | None = None


def rows_of(
    condition: Tensor | Condition | None, rows: slice | Tensor
) -> Tensor | Condition | None:
    """The condition of some examples: classes (B,), a `Condition` or None, as it was given."""
    if condition is None:
        return None
    if isinstance(condition, Tensor):
        return condition[rows]
    return Condition(*(None if part is None else part[rows] for part in condition))


def to_device(
    condition: Tensor | Condition | None, device: torch.device | str
) -> Tensor | Condition | None:
    """The condition on a device: classes (B,), a `Condition` or None, as it was given."""
    if condition is None:
        return None
    if isinstance(condition, Tensor):
        return condition.to(device)
    return Condition(*(None if part is None else part.to(device) for part in condition))


def sinusoidal(t: Tensor, dimensions: int) -> Tensor:
    """Sines and cosines of t at wavelengths from 2π to 20,000π.

    Vaswani et al. 2017, Sec. 3.5, in the order of Ho et al. 2020: all sines, then all cosines.

    Args:
        t: (B,) timesteps.
        dimensions: even, at least 4.

    Returns:
        (B, dimensions) float32.
    """
    half = dimensions // 2
    exponents = torch.arange(half, device=t.device, dtype=torch.float32) / (half - 1)
    angles = t.float()[:, None] * torch.exp(-math.log(10_000) * exponents)
    return torch.cat([angles.sin(), angles.cos()], dim=1)


class ConditionEmbedding(nn.Module):
    """The timestep, the class where there are classes, and the augmentation, as one vector.

    Args:
        dimensions: of the sinusoidal embedding.
        width: of the vector that comes out, (B, width).
        classes: number of classes; None for a network without them.
        augmentations: the numbers that tell an augmentation; 0 for a network that is not told.
    """

    def __init__(
        self, dimensions: int, width: int, classes: int | None = None, augmentations: int = 0
    ) -> None:
        super().__init__()
        self.dimensions = max(4, dimensions + dimensions % 2)
        self.classes = classes
        self.augmentations = augmentations
        self.mlp = nn.Sequential(
            nn.Linear(self.dimensions, width), nn.SiLU(), nn.Linear(width, width)
        )
        self.class_embedding = None if classes is None else nn.Embedding(classes, width)
        # Without a bias zeros add exactly nothing, so that sampling need not tell them.
        self.augmentation_embedding = (
            nn.Linear(augmentations, width, bias=False) if augmentations else None
        )

    def forward(self, t: Tensor, condition: Tensor | Condition | None) -> Tensor:
        classes, augmentation = (
            condition if isinstance(condition, Condition) else Condition(condition)
        )
        dtype = next(self.mlp.parameters()).dtype
        embedding: Tensor = self.mlp(sinusoidal(t, self.dimensions).to(dtype))
        embedding = self._with_classes(embedding, t, classes)
        if augmentation is None:
            return embedding
        if self.augmentation_embedding is None:
            raise InkdropError(
                "this network is not told of augmentation, but one was given; build it with "
                "augmentation labels to train one that is"
            )
        labels = _checked_augmentation(augmentation, t, self.augmentations).to(dtype)
        told: Tensor = embedding + self.augmentation_embedding(labels)
        return told

    def _with_classes(self, embedding: Tensor, t: Tensor, classes: Tensor | None) -> Tensor:
        if self.class_embedding is None:
            if classes is not None:
                raise InkdropError(
                    "this network takes no condition, but one was given; set network.classes to "
                    "train one that does"
                )
            return embedding
        if classes is None:
            raise InkdropError(
                f"this network is conditional on {self.classes} classes: give condition, "
                "one class index for each example"
            )
        known = self.class_embedding.num_embeddings
        told: Tensor = embedding + self.class_embedding(_checked(classes, t, known))
        return told


def _checked(condition: Tensor, t: Tensor, classes: int) -> Tensor:
    if condition.shape != t.shape or condition.dtype not in (torch.int64, torch.int32):
        raise InkdropError(
            f"condition must hold {len(t)} class indices, one integer for each example, "
            f"got shape {tuple(condition.shape)} of {condition.dtype}"
        )
    # Looking at values makes the host wait for an accelerator, and breaks a compiled graph.
    on_host = condition.device.type == "cpu" and not torch.compiler.is_compiling()
    if on_host and len(condition):
        low, high = int(condition.min()), int(condition.max())
        if not 0 <= low <= high < classes:
            raise InkdropError(f"classes are 0 … {classes - 1}, but condition holds {low} … {high}")
    return condition


def _checked_augmentation(augmentation: Tensor, t: Tensor, labels: int) -> Tensor:
    if augmentation.shape != (len(t), labels) or not augmentation.is_floating_point():
        raise InkdropError(
            f"augmentation must hold {labels} floats for each of {len(t)} examples, got shape "
            f"{tuple(augmentation.shape)} of {augmentation.dtype}"
        )
    return augmentation
