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
            others = []
            for parameter in group["params"]:
                if parameter.grad is None:
                    continue
                if id(parameter) in self._matrices:
                    self._move(parameter, group)
                else:
                    others.append(parameter)
            self._adamw(others, group)

    def _move(self, parameter: Tensor, group: dict[str, Any]) -> None:
        state, gradient = self.state[parameter], parameter.grad
        assert gradient is not None
        if not state:
            state["momentum"] = torch.zeros_like(parameter)
        momentum = state["momentum"].lerp_(gradient, 1 - group["momentum"])
        ahead = gradient.lerp(momentum, group["momentum"]).flatten(1)
        update = orthogonal(ahead).reshape(parameter.shape)
        parameter.mul_(1 - group["lr"] * group["weight_decay"])
        parameter.add_(update, alpha=-group["lr"] * _LIKE_ADAM * math.sqrt(max(ahead.shape)))

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


def orthogonal(matrix: Tensor) -> Tensor:
    """A matrix (M, N) with the same singular vectors, and singular values of about 1.

    By Newton and Schulz's iteration, with Jordan's coefficients: quick rather than exact.
    """
    wide = matrix if matrix.shape[0] <= matrix.shape[1] else matrix.T
    x: Tensor = wide / (wide.norm() + 1e-7)
    a, b, c = _QUINTIC
    for _ in range(_ITERATIONS):
        square = x @ x.T
        x = torch.addmm(x, torch.addmm(square, square, square, beta=b, alpha=c), x, beta=a)
    return x if wide is matrix else x.T


def matrices_of(network: nn.Module) -> list[nn.Parameter]:
    """The weights of a network's linear and convolutional layers that are matrices, not vectors."""
    layers = (nn.Linear, nn.Conv1d, nn.Conv2d, nn.Conv3d)
    parameters = {id(module.weight) for module in network.modules() if isinstance(module, layers)}
    return [
        parameter
        for parameter in network.parameters()
        if id(parameter) in parameters and min(parameter.flatten(1).shape) >= _LEAST
    ]
