"""How networks are told the timestep, the class or vector, and the augmentation."""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor, nn

from ..errors import InkdropError


class Condition(NamedTuple):
    """What a network is told besides the timestep.

    Attributes:
        classes: (B,) int, -1 for none told; None for a network without classes.
        augmentation: (B, A) float32, how an image was changed; None or zeros for images as they
            are in the data.
        vectors: (B, V) float, a row of NaN for none told; None for a network without vectors.
    """

    classes: Tensor | None = None
    augmentation: Tensor | None = None
    vectors: Tensor | None = None


def condition_of(labels: Tensor | None, augmentation: Tensor | None) -> Tensor | Condition | None:
    """What is told of labelled examples: classes (B,) int, or vectors (B, V) float."""
    if augmentation is None:
        return labels
    if labels is not None and labels.is_floating_point():
        return Condition(None, augmentation, labels)
    return Condition(labels, augmentation)


def without(labels: Tensor, left_out: Tensor) -> Tensor:
    """Classes (B,) or vectors (B, V), with -1 or NaN in place of those `left_out` (B,) bool."""
    if labels.is_floating_point():
        return labels.masked_fill(left_out[:, None], math.nan)
    return labels.masked_fill(left_out, -1)


def sinusoidal(t: Tensor, dimensions: int, longest: bool = True) -> Tensor:
    """Sines and cosines of t at wavelengths from 2π to 20,000π.

    Vaswani et al. 2017, Sec. 3.5, in the order of Ho et al. 2020: all sines, then all cosines.

    Args:
        t: (B,) timesteps.
        dimensions: even, at least 4.
        longest: whether the last wavelength is 20,000π, as in Ho's code, or one step short of it,
            as in Vaswani's.

    Returns:
        (B, dimensions) float32.
    """
    half = dimensions // 2
    exponents = torch.arange(half, device=t.device, dtype=torch.float32) / (half - longest)
    angles = t.float()[:, None] * torch.exp(-math.log(10_000) * exponents)
    return torch.cat([angles.sin(), angles.cos()], dim=1)


class ConditionEmbedding(nn.Module):
    """The timestep, the class or vector where there are any, and the augmentation, as one vector.

    Args:
        dimensions: of the sinusoidal embedding.
        width: of the vector that comes out, (B, width).
        classes: number of classes; None for a network without them.
        augmentations: the numbers that tell an augmentation; 0 for a network that is not told.
        vector: the numbers of a vector that is told in place of a class; None for none.
        null: whether class or vector may be left out, as -1 or NaN: what stands for it is learnt.
        longest: as for `sinusoidal`.
    """

    def __init__(
        self,
        dimensions: int,
        width: int,
        classes: int | None = None,
        augmentations: int = 0,
        vector: int | None = None,
        null: bool = False,
        longest: bool = True,
    ) -> None:
        super().__init__()
        self.longest = longest
        self.dimensions = max(4, dimensions + dimensions % 2)
        self.classes = classes
        self.augmentations = augmentations
        self.vector = vector
        self.null = null and not (classes is None and vector is None)
        self.mlp = nn.Sequential(
            nn.Linear(self.dimensions, width), nn.SiLU(), nn.Linear(width, width)
        )
        self.class_embedding = None if classes is None else nn.Embedding(classes + null, width)
        self.vector_embedding = (
            None
            if vector is None
            else nn.Sequential(nn.Linear(vector, width), nn.SiLU(), nn.Linear(width, width))
        )
        self.null_vector = nn.Parameter(torch.zeros(width)) if null and vector is not None else None
        # Without a bias zeros add exactly nothing, so that sampling need not tell them.
        self.augmentation_embedding = (
            nn.Linear(augmentations, width, bias=False) if augmentations else None
        )

    def forward(self, t: Tensor, condition: Tensor | Condition | None) -> Tensor:
        classes, augmentation, vectors = _parts(condition)
        dtype = next(self.mlp.parameters()).dtype
        embedding: Tensor = self.mlp(sinusoidal(t, self.dimensions, self.longest).to(dtype))
        embedding = self._told(embedding, t, classes, vectors)
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

    def null_condition(self, condition: Tensor | Condition) -> Tensor | Condition:
        """The condition that tells no class or vector, of the shape and kind of another.

        Raises:
            InkdropError: for a network that was always told one, or never is.
        """
        if not self.null:
            never = self.classes is None and self.vector is None
            raise InkdropError(
                "this network takes no condition, so that there is nothing to guide"
                if never
                else "this network was trained without label dropout: train one with "
                "--label-dropout 0.1 to guide it"
            )
        if isinstance(condition, Tensor):
            return _nothing_like(condition)
        classes, augmentation, vectors = condition
        return Condition(
            None if classes is None else _nothing_like(classes),
            augmentation,
            None if vectors is None else _nothing_like(vectors),
        )

    def _told(
        self, embedding: Tensor, t: Tensor, classes: Tensor | None, vectors: Tensor | None
    ) -> Tensor:
        given = vectors if classes is None else classes
        if self.class_embedding is None and self.vector_embedding is None:
            if given is not None:
                raise InkdropError(
                    "this network takes no condition, but one was given; set network.classes or "
                    "network.vector to train one that does"
                )
            return embedding
        if classes is not None and vectors is not None:
            raise InkdropError("a network is told classes or vectors: give one, not both")
        if self.class_embedding is not None:
            if given is None:
                raise InkdropError(
                    f"this network is conditional on {self.classes} classes: give condition, "
                    "one class index for each example"
                )
            known = self.class_embedding.num_embeddings - self.null
            index = _checked(given, t, known, self.null)
            if self.null:
                index = torch.where(index < 0, known, index)
            told: Tensor = embedding + self.class_embedding(index)
            return told
        assert self.vector is not None
        assert self.vector_embedding is not None
        if given is None:
            raise InkdropError(
                f"this network is conditional on vectors: give condition, {self.vector} floats for "
                "each example"
            )
        rows = _checked_vectors(given, t, self.vector, self.null).to(embedding.dtype)
        # By value, not by branch: every process computes the same graph, whatever it was dealt.
        missing = rows.isnan().any(dim=1, keepdim=True)
        known_rows = self.vector_embedding(rows.nan_to_num())
        if self.null_vector is not None:
            known_rows = torch.where(missing, self.null_vector, known_rows)
        with_vector: Tensor = embedding + known_rows
        return with_vector


def _parts(condition: Tensor | Condition | None) -> Condition:
    if isinstance(condition, Tensor):
        floats = condition.is_floating_point()
        return Condition(None, None, condition) if floats else Condition(condition)
    return condition or Condition()


def _nothing_like(told: Tensor) -> Tensor:
    return torch.full_like(told, math.nan if told.is_floating_point() else -1)


def _on_host(told: Tensor) -> bool:
    """Whether values can be looked at.

    On an accelerator the host would wait for them; and it breaks a compiled graph.
    """
    return told.device.type == "cpu" and not torch.compiler.is_compiling() and len(told) > 0


def _checked(condition: Tensor, t: Tensor, classes: int, null: bool) -> Tensor:
    if condition.shape != t.shape or condition.dtype not in (torch.int64, torch.int32):
        raise InkdropError(
            f"condition must hold {len(t)} class indices, one integer for each example, "
            f"got shape {tuple(condition.shape)} of {condition.dtype}"
        )
    if _on_host(condition):
        low, high = int(condition.min()), int(condition.max())
        if not -null <= low <= high < classes:
            none = " and -1 for none" if null else ""
            raise InkdropError(
                f"classes are 0 … {classes - 1}{none}, but condition holds {low} … {high}"
            )
    return condition


def _checked_vectors(vectors: Tensor, t: Tensor, numbers: int, null: bool) -> Tensor:
    if vectors.shape != (len(t), numbers) or not vectors.is_floating_point():
        raise InkdropError(
            f"condition must hold a vector for each of {len(t)} examples, {numbers} floats each, "
            f"got shape {tuple(vectors.shape)} of {vectors.dtype}"
        )
    if _on_host(vectors):
        usable = vectors.isfinite().all(dim=1)
        if null:
            usable = usable | vectors.isnan().all(dim=1)
        if not usable.all():
            row = int((~usable).nonzero()[0])
            none = ", or all NaN for none" if null else ""
            raise InkdropError(
                f"vectors must be finite{none}, but condition holds {vectors[row].tolist()} for "
                f"example {row}"
            )
    return vectors


def _checked_augmentation(augmentation: Tensor, t: Tensor, labels: int) -> Tensor:
    if augmentation.shape != (len(t), labels) or not augmentation.is_floating_point():
        raise InkdropError(
            f"augmentation must hold {labels} floats for each of {len(t)} examples, got shape "
            f"{tuple(augmentation.shape)} of {augmentation.dtype}"
        )
    return augmentation
