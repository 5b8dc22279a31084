"""A residual multilayer perceptron for points."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor, nn

from ..config import MLPConfig
from .embedding import ConditionEmbedding


class MLP(nn.Module):
    """Points (B, D) in, points out; every block is told the timestep.

    Args:
        config: its shape.
        dimensions: D.
    """

    def __init__(self, config: MLPConfig, dimensions: int) -> None:
        super().__init__()
        self.embedding = ConditionEmbedding(config.width, config.width, config.classes)
        self.stem = nn.Linear(dimensions, config.width)
        self.blocks = nn.ModuleList(
            _ResidualBlock(config.width, config.dropout) for _ in range(config.blocks)
        )
        self.head = nn.Linear(config.width, dimensions)
        nn.init.zeros_(self.head.weight)
        nn.init.zeros_(self.head.bias)

    def forward(self, x: Tensor, t: Tensor, condition: Tensor | None = None) -> Tensor:
        """x (B, D), t (B,), condition (B,) class indices or None → (B, D)."""
        embedding = F.silu(self.embedding(t, condition))
        h = self.stem(x)
        for block in self.blocks:
            h = block(h, embedding)
        out: Tensor = self.head(F.silu(h))
        return out


class _ResidualBlock(nn.Module):
    def __init__(self, width: int, dropout: float) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(width)
        self.first = nn.Linear(width, width)
        self.project = nn.Linear(width, width)
        self.dropout = nn.Dropout(dropout)
        self.second = nn.Linear(width, width)
        nn.init.zeros_(self.second.weight)
        nn.init.zeros_(self.second.bias)

    def forward(self, x: Tensor, embedding: Tensor) -> Tensor:
        h = self.first(F.silu(self.norm(x))) + self.project(embedding)
        out: Tensor = x + self.second(self.dropout(F.silu(h)))
        return out
