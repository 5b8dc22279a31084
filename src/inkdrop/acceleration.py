"""Networks made faster for a device, at the same function up to rounding."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from .diffusion.denoiser import Denoiser
from .errors import InkdropError

_HALF = {"bfloat16": torch.bfloat16, "float16": torch.float16}


def compiled(network: nn.Module) -> nn.Module:
    """The network through `torch.compile`: the same parameters, fewer and larger kernels.

    The first call of each batch size takes a minute or so. Needs what `torch.compile` does: Triton
    on a GPU, a C++ compiler on a CPU.
    """
    module: nn.Module = torch.compile(network, dynamic=False)  # type: ignore[assignment]
    return module


def accelerated(denoiser: Denoiser, precision: str = "float32", compile: bool = False) -> Denoiser:
    """A denoiser that asks the same network in another precision, or compiled.

    Args:
        precision: "float32", or "bfloat16" or "float16": what convolutions and matrix products are
            computed in; the weights and the sampler stay as they are.
        compile: as for `compiled`.

    Raises:
        InkdropError: for another precision.
    """
    if precision != "float32" and precision not in _HALF:
        raise InkdropError(f"precision must be float32, bfloat16 or float16, got {precision!r}")
    network = denoiser.network
    if precision in _HALF:
        network = _Autocast(network, denoiser.device.type, _HALF[precision])
    if compile:
        network = compiled(network)
    if network is denoiser.network:
        return denoiser
    return Denoiser(
        network, denoiser.schedule, denoiser.prediction, denoiser.shape, denoiser.learned_variance
    )


class _Autocast(nn.Module):
    def __init__(self, network: nn.Module, device_type: str, dtype: torch.dtype) -> None:
        super().__init__()
        self.network = network
        self.device_type = device_type
        self.dtype = dtype

    def forward(self, x: Tensor, t: Tensor, condition: Any = None) -> Tensor:
        with torch.autocast(self.device_type, self.dtype):
            out: Tensor = self.network(x, t, condition)
        return out.to(x.dtype)

    def null_condition(self, condition: Any) -> Any:
        """As the network's own."""
        null: Any = self.network.null_condition
        return null(condition)
