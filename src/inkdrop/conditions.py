"""Conditions, whatever a network understands: a tensor (B, …), or a NamedTuple of such and None."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from .errors import InkdropError


def mapped(change: Callable[..., Tensor], condition: Any, *others: Any) -> Any:
    """`change` of each tensor of a condition, and of those at its place in conditions like it.

    Raises:
        InkdropError: for something else, or conditions that are not alike.
    """
    if condition is None and all(other is None for other in others):
        return None
    if isinstance(condition, Tensor) and all(isinstance(other, Tensor) for other in others):
        return change(condition, *others)
    if isinstance(condition, tuple) and all(type(other) is type(condition) for other in others):
        parts = [mapped(change, *parts) for parts in zip(condition, *others, strict=True)]
        return type(condition)(*parts) if hasattr(condition, "_fields") else tuple(parts)
    if others:
        raise InkdropError(
            "conditions must be alike to stand in one batch, got "
            + " and ".join(_described(other) for other in (condition, *others))
        )
    raise InkdropError(
        "a condition is a tensor with a row for each example, or a NamedTuple of such, got "
        f"{_described(condition)}"
    )


def rows_of(condition: Any, rows: slice | Tensor) -> Any:
    """The condition of some examples."""
    return mapped(lambda part: part[rows], condition)


def to_device(condition: Any, device: torch.device | str) -> Any:
    """The condition on a device."""
    return mapped(lambda part: part.to(device), condition)


def tensors_of(condition: Any) -> list[Tensor]:
    """The tensors that a condition is made of; none for None."""
    found: list[Tensor] = []

    def add(part: Tensor) -> Tensor:
        found.append(part)
        return part

    mapped(add, condition)
    return found


def count_of(condition: Any) -> int | None:
    """How many examples a condition is of; None where it tells nothing.

    Raises:
        InkdropError: for tensors of different lengths, or one without rows.
    """
    sizes = {len(part) if part.ndim else None for part in tensors_of(condition)}
    if None in sizes or len(sizes) > 1:
        raise InkdropError(
            "a condition needs a row for each example in all of its parts, got shapes "
            + ", ".join(str(tuple(part.shape)) for part in tensors_of(condition))
        )
    return sizes.pop() if sizes else None


def _described(condition: Any) -> str:
    if isinstance(condition, Tensor):
        return f"{tuple(condition.shape)} of {condition.dtype}"
    return "None" if condition is None else type(condition).__name__
