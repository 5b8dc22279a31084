"""The exponential moving average of a network's weights."""

from __future__ import annotations

import copy

import torch
from torch import nn

from ..sharded_files import local


class EMA:
    """A copy of a network whose parameters trail behind the trained ones.

    Its decay is min(decay, (1 + k)/(10 + k)) at step k, so that the random initial weights are
    soon forgotten. Only parameters are averaged; buffers are copied. For a network that processes
    share in parts, made before it is shared; then shared likewise (`Parallel.place`).
    """

    def __init__(self, network: nn.Module, decay: float) -> None:
        self.network = copy.deepcopy(network).requires_grad_(False).eval()
        self.decay = decay

    @torch.no_grad()
    def update(self, network: nn.Module, step: int) -> None:
        """Move towards `network` after optimizer step `step`, counted from 0."""
        decay = min(self.decay, (1 + step) / (10 + step))
        torch._foreach_lerp_(
            [local(p) for p in self.network.parameters()],
            [local(p.detach()) for p in network.parameters()],
            1 - decay,
        )
        for average, buffer in zip(self.network.buffers(), network.buffers(), strict=True):
            average.copy_(buffer)
