"""A residual multilayer perceptron for points."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..config import MLPConfig
from .embedding import Condition, ConditionEmbedding

_WAVE_NUMBER = 4.0  # spread of the initial waves along each axis: wavelengths of about 1.6


class MLP(nn.Module):
    """Points (B, D) in, points out; every block is told the timestep.

    Args:
        config: its shape.
        dimensions: D.
        outputs: the numbers that come out; D by default.
        null: whether its class or vector may be left out.
    """

    def __init__(
        self,
        config: MLPConfig,
        dimensions: int,
        outputs: int | None = None,
        null: bool = False,
    ) -> None:
        super().__init__()
        self.embedding = ConditionEmbedding(
            config.width, config.width, config.classes, vector=config.vector, null=null
        )
        # From coordinates alone a network is slow to learn fine detail (Tancik et al. 2020).
        self.waves = nn.Linear(dimensions, config.waves, bias=False) if config.waves else None
        if self.waves is not None:
            nn.init.normal_(self.waves.weight, std=_WAVE_NUMBER)
        self.stem = nn.Linear(dimensions + 2 * config.waves, config.width)
        self.blocks = nn.ModuleList(
            _ResidualBlock(config.width, config.dropout) for _ in range(config.blocks)
        )
        self.head = nn.Linear(config.width, outputs or dimensions)
        nn.init.zeros_(self.head.weight)
        nn.init.zeros_(self.head.bias)

    def forward(self, x: Tensor, t: Tensor, condition: Tensor | Condition | None = None) -> Tensor:
        """x (B, D), t (B,) → (B, outputs).

        The condition is classes (B,), vectors (B, V), a `Condition` without augmentation, or None.
        """
        embedding = F.silu(self.embedding(t, condition))
        if self.waves is not None:
            phase = self.waves(x)
            x = torch.cat([x, phase.sin(), phase.cos()], dim=1)
        h = self.stem(x)
        for block in self.blocks:
            h = block(h, embedding)
        out: Tensor = self.head(F.silu(h))
        return out

    def null_condition(self, condition: Tensor | Condition) -> Tensor | Condition:
        """Like `condition`, but told no class or vector: see `ConditionEmbedding`."""
        return self.embedding.null_condition(condition)


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
