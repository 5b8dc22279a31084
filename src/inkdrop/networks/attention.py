"""Softmax attention between the positions of a map, computed the way a device is fast at."""

from __future__ import annotations

import math
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

_SCORES = 2**21  # at once: they stay in a processor's cache, and the products get parallel work
_POSITIONS = 2048  # beyond which a single map's scores are too many to hold


def attend(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """softmax(qᵀk / √D) applied to v, each (B, heads, D, positions): Vaswani et al. 2017, Eq. 1.

    On a CPU by matrix products over a few maps at a time, whose scores are computed again for the
    backward pass; elsewhere, for long sequences and in half precision by PyTorch's own kernels.
    """
    by_products = (
        q.device.type == "cpu"
        and q.dtype in (torch.float32, torch.float64)
        and q.shape[-1] <= _POSITIONS
        and not torch.compiler.is_compiling()
    )
    if not by_products:
        return _reference(q, k, v)
    out: Tensor = _Products.apply(*(z.flatten(0, 1) for z in (q, k, v)))  # type: ignore[no-untyped-call]
    return out.reshape(v.shape)


def _reference(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    # A GPU's fast kernels want the channels of a head side by side, and are not chosen otherwise.
    rows = (z.transpose(-1, -2) for z in (q, k, v))
    q, k, v = (z if z.stride(-1) == 1 else z.contiguous() for z in rows)
    return F.scaled_dot_product_attention(q, k, v).transpose(-1, -2)


class _Products(torch.autograd.Function):
    """Attention as batched matrix products in the layout that convolutions leave: no transposing.

    Heads of few channels make thin matrices, which are multiplied fastest from the left.
    """

    @staticmethod
    def forward(ctx: Any, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        out = torch.empty_like(v, memory_format=torch.contiguous_format)
        scores = _room(q)
        for rows in _parts(q):
            p = _softmax(q[rows], k[rows], scores)
            torch.bmm(v[rows], p.transpose(1, 2), out=out[rows])
        ctx.save_for_backward(q, k, v)
        return out

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, ...]:
        (gradient,) = gradients
        q, k, v = ctx.saved_tensors
        if torch.is_grad_enabled():  # for a derivative of the derivative
            return torch.autograd.grad(
                _reference(q, k, v), (q, k, v), gradient, create_graph=True, materialize_grads=True
            )
        to_q, to_k, to_v = (torch.empty_like(z) for z in (q, k, v))
        scores, to_scores = _room(q), _room(q)
        scale = 1 / math.sqrt(q.shape[1])
        for rows in _parts(q):
            p = _softmax(q[rows], k[rows], scores)
            d = to_scores[: len(p)]
            torch.bmm(gradient[rows], p, out=to_v[rows])
            torch.bmm(gradient[rows].transpose(1, 2), v[rows], out=d)
            torch._softmax_backward_data(d, p, -1, d.dtype, grad_input=d)
            _product(to_q[rows], k[rows], d.transpose(1, 2), scale)
            _product(to_k[rows], q[rows], d, scale)
        return to_q, to_k, to_v


def _room(q: Tensor) -> Tensor:
    return q.new_empty(min(_at_once(q), len(q)), q.shape[2], q.shape[2])


def _at_once(q: Tensor) -> int:
    return max(1, _SCORES // q.shape[2] ** 2)


def _parts(q: Tensor) -> list[slice]:
    return [slice(i, i + _at_once(q)) for i in range(0, len(q), _at_once(q))]


def _softmax(q: Tensor, k: Tensor, room: Tensor) -> Tensor:
    scores = room[: len(q)]
    _product(scores, q.transpose(1, 2), k, 1 / math.sqrt(q.shape[1]))
    return torch.softmax(scores, -1, out=scores)


def _product(out: Tensor, a: Tensor, b: Tensor, scale: float) -> None:
    torch.baddbmm(out, a, b, beta=0, alpha=scale, out=out)
