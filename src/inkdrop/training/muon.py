"""Muon: momentum whose matrices are made orthogonal before each step."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim.adamw import adamw

_LEAST = 16  # rows and columns that make a weight a matrix; below, it is a set of vectors
_ITERATIONS = 5
_QUINTIC = (3.4445, -4.7750, 2.0315)  # Jordan et al. 2024: singular values end in 0.7 … 1.2
_LIKE_ADAM = 0.2  # the root mean square of Adam's usual updates


class Muon(torch.optim.Optimizer):
    """Muon for the weights of layers, AdamW for all else: biases, norms, embeddings, thin layers.

    Jordan et al. 2024 (kellerjordan.github.io/posts/muon): a layer's update is its momentum with
    all singular values made equal. It is scaled to the size of Adam's updates (Liu et al. 2025,
    arXiv 2502.16982, Eq. 4), so that a learning rate that suits AdamW suits it too. A convolution
    is the matrix (outputs, inputs × positions).

    Args:
        parameters: all of them, in the order that a state is saved in.
        matrices: those of them that Muon is for, see `matrices_of`.
        lr: the learning rate.
        betas: AdamW's, for the others.
        weight_decay: decoupled, of all of them.
        momentum: Muon's, with Nesterov's look ahead.
    """

    def __init__(
        self,
        parameters: Iterable[nn.Parameter],
        matrices: Iterable[nn.Parameter],
        lr: float,
        betas: tuple[float, float] = (0.9, 0.999),
        weight_decay: float = 0.0,
        momentum: float = 0.95,
    ) -> None:
        defaults = {"lr": lr, "betas": betas, "weight_decay": weight_decay, "momentum": momentum}
        super().__init__(list(parameters), defaults)
        self._matrices = {id(parameter) for parameter in matrices}

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> None:  # type: ignore[override]
        """Take a step down the gradients."""
        assert closure is None
        for group in self.param_groups:
            given = [parameter for parameter in group["params"] if parameter.grad is not None]
            self._muon([p for p in given if id(p) in self._matrices], group)
            self._adamw([p for p in given if id(p) not in self._matrices], group)

    def _muon(self, parameters: list[Tensor], group: dict[str, Any]) -> None:
        if not parameters:
            return
        for parameter in parameters:
            if not self.state[parameter]:
                self.state[parameter] = {"momentum": torch.zeros_like(parameter)}
        momenta = [self.state[parameter]["momentum"] for parameter in parameters]
        gradients = [parameter.grad for parameter in parameters if parameter.grad is not None]
        torch._foreach_lerp_(momenta, gradients, 1 - group["momentum"])
        ahead = torch._foreach_lerp(gradients, momenta, group["momentum"])
        torch._foreach_mul_(parameters, 1 - group["lr"] * group["weight_decay"])
        # Those of one shape at once: most matrices are too small to be worth an operation each.
        shapes: dict[torch.Size, list[int]] = {}
        for i, update in enumerate(ahead):
            shapes.setdefault(update.flatten(1).shape, []).append(i)
        for shape, members in shapes.items():
            scale = -group["lr"] * _LIKE_ADAM * math.sqrt(max(shape))
            updates = orthogonal(torch.stack([ahead[i].flatten(1) for i in members]))
            for i, update in zip(members, updates, strict=True):
                parameters[i].add_(update.reshape(parameters[i].shape), alpha=scale)

    def _adamw(self, parameters: list[Tensor], group: dict[str, Any]) -> None:
        for parameter in parameters:
            if not self.state[parameter]:
                self.state[parameter] = {
                    "step": torch.zeros((), device=parameter.device),
                    "exp_avg": torch.zeros_like(parameter),
                    "exp_avg_sq": torch.zeros_like(parameter),
                }
        states = [self.state[parameter] for parameter in parameters]
        beta1, beta2 = group["betas"]
        adamw(
            parameters,
            [parameter.grad for parameter in parameters],  # type: ignore[misc]
            [state["exp_avg"] for state in states],
            [state["exp_avg_sq"] for state in states],
            [],
            [state["step"] for state in states],
            fused=True,
            amsgrad=False,
            beta1=beta1,
            beta2=beta2,
            lr=group["lr"],
            weight_decay=group["weight_decay"],
            eps=1e-8,
            maximize=False,
        )


def orthogonal(matrices: Tensor) -> Tensor:
    """Matrices (K, M, N) with the same singular vectors, and singular values of about 1.

    By Newton and Schulz's iteration, with Jordan's coefficients: quick rather than exact.
    """
    tall = matrices.shape[1] > matrices.shape[2]
    x = matrices.transpose(1, 2) if tall else matrices
    x = x / (torch.linalg.matrix_norm(x, keepdim=True) + 1e-7)
    a, b, c = _QUINTIC
    for _ in range(_ITERATIONS):
        square = x @ x.transpose(1, 2)
        x = torch.baddbmm(x, torch.baddbmm(square, square, square, beta=b, alpha=c), x, beta=a)
    return x.transpose(1, 2) if tall else x


def matrices_of(network: nn.Module) -> list[nn.Parameter]:
    """The weights of a network's linear and convolutional layers that are matrices, not vectors."""
    layers = (nn.Linear, nn.Conv1d, nn.Conv2d, nn.Conv3d)
    parameters = {id(module.weight) for module in network.modules() if isinstance(module, layers)}
    return [
        parameter
        for parameter in network.parameters()
        if id(parameter) in parameters and min(parameter.flatten(1).shape) >= _LEAST
    ]
