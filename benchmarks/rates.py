"""What this machine can do at best: a network's convolutions alone, and a large matrix product."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from paired import wait_for_device
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

SIDE = 2048  # of the matrices


@dataclass(frozen=True)
class Convolution:
    """A convolution as it occurs in a network: its shapes, and how its input lies in memory."""

    inputs: tuple[int, ...]
    weights: tuple[int, ...]
    outputs: tuple[int, ...]
    stride: tuple[int, ...]
    padding: tuple[int, ...]
    channels_last: bool
    first: bool  # in the network: nothing asks for the gradient of its input

    def __str__(self) -> str:
        kernel, stride = (f"{n[-2]}×{n[-1]}" for n in (self.weights, self.stride))
        before, after = ("×".join(map(str, n)) for n in (self.inputs, self.outputs))
        layout = ", channels last" if self.channels_last else ""
        return f"{before} → {after} by {kernel}, stride {stride}{layout}"

    def flops(self, training: bool) -> int:
        """Of the forward pass, and of both gradients where it is training."""
        channels, *kernel = self.weights[1:]
        forward = 2 * torch.Size(self.outputs).numel() * channels * torch.Size(kernel).numel()
        return forward * (1 if not training else 2 if self.first else 3)

    def ready(self, training: bool, device: str, dtype: torch.dtype) -> Callable[[], Any]:
        """The computation itself, on random data."""
        layout = torch.channels_last if self.channels_last else torch.contiguous_format

        def random(shape: tuple[int, ...]) -> Tensor:
            values = torch.randn(shape, device=device, dtype=dtype)
            return values.to(memory_format=layout) if values.ndim == 4 else values

        x, weight = random(self.inputs), random(self.weights)
        bias, gradient = random(self.weights[:1]), random(self.outputs)
        wanted = [weight, bias] if self.first else [x, weight, bias]

        def forward() -> Tensor:
            return F.conv2d(x, weight, bias, self.stride, self.padding)

        if not training:
            return torch.no_grad()(forward)
        for tensor in wanted:
            tensor.requires_grad_()
        return lambda: torch.autograd.grad(forward(), wanted, gradient)


def convolutions_of(network: nn.Module, x: Tensor, t: Tensor) -> Counter[Convolution]:
    """Which convolutions a network consists of, and how often each occurs."""
    found: Counter[Convolution] = Counter()

    def note(module: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> None:
        assert isinstance(module, nn.Conv2d)
        assert not isinstance(module.padding, str)
        (given,) = inputs
        convolution = Convolution(
            tuple(given.shape),
            tuple(module.weight.shape),
            tuple(output.shape),
            tuple(module.stride),
            tuple(module.padding),
            given.is_contiguous(memory_format=torch.channels_last) and not given.is_contiguous(),
            not found,
        )
        found[convolution] += 1

    hooks = [
        module.register_forward_hook(note)
        for module in network.modules()
        if isinstance(module, nn.Conv2d)
    ]
    with torch.no_grad():
        network(x, t)
    for hook in hooks:
        hook.remove()
    return found


@contextmanager
def convolutions_alone(
    counts: Counter[Convolution], training: bool, device: str, repeats: int = 1
) -> Iterator[tuple[Callable[[], None], dict[str, Any]]]:
    """A side of `paired`: all convolutions of a pass and nothing else, each as often as it occurs.

    The kinds are told with the rate that each had in a first round.
    """
    dtype = torch.bfloat16 if device == "cuda" else torch.float32
    ready = [(c, n, c.ready(training, device, dtype)) for c, n in counts.items()]
    kinds = {}
    for convolution, n, compute in ready:
        compute()
        seconds = seconds_of(compute)
        rate = convolution.flops(training) / seconds / 1e9
        kinds[str(convolution)] = {"occurs": n, "gflops_per_second": round(rate, 2)}

    def piece() -> None:
        for _ in range(repeats):
            for _, n, compute in ready:
                for _ in range(n):
                    compute()

    yield piece, {"kinds": kinds}


@contextmanager
def matrix_product(device: str, repeats: int = 1) -> Iterator[tuple[Callable[[], None], dict]]:
    """A side of `paired`: products of 2048² matrices, in the precision that networks compute in."""
    dtype = torch.bfloat16 if device == "cuda" else torch.float32
    a, b = (torch.randn(SIDE, SIDE, device=device, dtype=dtype) for _ in range(2))
    torch.mm(a, b)

    def piece() -> None:
        for _ in range(repeats):
            torch.mm(a, b)

    yield piece, {}


def seconds_of(action: Callable[[], Any]) -> float:
    """How long one call takes."""
    wait_for_device()
    began = time.perf_counter()
    action()
    wait_for_device()
    return time.perf_counter() - began


def counted_flops(action: Callable[[], Any]) -> int:
    """The FLOPs of a call, attention by plain products, which the counter knows."""
    with sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
        action()
    return int(counter.get_total_flops())
