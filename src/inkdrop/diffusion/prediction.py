"""What a network predicts, and every conversion between the things it may predict.

With α = √ᾱ_t and σ = √(1-ᾱ_t), the forward process is x_t = α x₀ + σ ε, and

    noise      ε
    x_start    x₀
    velocity   v = α ε - σ x₀        (Salimans & Ho 2022, Sec. 4)
    score      ∇ log q(x_t|x₀) = -ε/σ

Given x_t, any one of them determines the others. Shapes: values and x_t (B, …); α, σ broadcast.
"""

from __future__ import annotations

from typing import NamedTuple

from torch import Tensor

from ..errors import unknown_name

PREDICTIONS = ("noise", "x_start", "velocity", "score")


class Pair(NamedTuple):
    """The two ingredients of x_t = α x_start + σ noise."""

    x_start: Tensor
    noise: Tensor


def to_pair(kind: str, value: Tensor, x_t: Tensor, alpha: Tensor, sigma: Tensor) -> Pair:
    """(x₀, ε) from a prediction `value` of the given kind."""
    if kind == "noise":
        return Pair((x_t - sigma * value) / alpha, value)
    if kind == "x_start":
        return Pair(value, (x_t - alpha * value) / sigma)
    if kind == "velocity":
        return Pair(alpha * x_t - sigma * value, sigma * x_t + alpha * value)
    if kind == "score":
        return to_pair("noise", -sigma * value, x_t, alpha, sigma)
    raise unknown_name("prediction", kind, PREDICTIONS)


def from_pair(kind: str, pair: Pair, alpha: Tensor, sigma: Tensor) -> Tensor:
    """The prediction of the given kind that (x₀, ε) amounts to: a network's training target."""
    if kind == "noise":
        return pair.noise
    if kind == "x_start":
        return pair.x_start
    if kind == "velocity":
        return alpha * pair.noise - sigma * pair.x_start
    if kind == "score":
        return -pair.noise / sigma
    raise unknown_name("prediction", kind, PREDICTIONS)


def convert(
    value: Tensor, source: str, target: str, x_t: Tensor, alpha: Tensor, sigma: Tensor
) -> Tensor:
    """A prediction of kind `source` as one of kind `target`."""
    return from_pair(target, to_pair(source, value, x_t, alpha, sigma), alpha, sigma)
