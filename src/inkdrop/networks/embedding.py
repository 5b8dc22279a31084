"""How networks are told the timestep and the class."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from ..errors import InkdropError


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
    """The timestep, and the class where there are classes, as one vector.

    Args:
        dimensions: of the sinusoidal embedding.
        width: of the vector that comes out, (B, width).
        classes: number of classes; None for a network without a condition.
    """

    def __init__(self, dimensions: int, width: int, classes: int | None = None) -> None:
        super().__init__()
        self.dimensions = max(4, dimensions + dimensions % 2)
        self.classes = classes
        self.mlp = nn.Sequential(
            nn.Linear(self.dimensions, width), nn.SiLU(), nn.Linear(width, width)
        )
        self.class_embedding = None if classes is None else nn.Embedding(classes, width)

    def forward(self, t: Tensor, condition: Tensor | None) -> Tensor:
        dtype = next(self.mlp.parameters()).dtype
        embedding: Tensor = self.mlp(sinusoidal(t, self.dimensions).to(dtype))
        if self.class_embedding is None:
            if condition is not None:
                raise InkdropError(
                    "this network takes no condition, but one was given; set network.classes to "
                    "train one that does"
                )
            return embedding
        if condition is None:
            raise InkdropError(
                f"this network is conditional on {self.classes} classes: give condition, "
                "one class index for each example"
            )
        classes = self.class_embedding.num_embeddings
        told: Tensor = embedding + self.class_embedding(_checked(condition, t, classes))
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
