"""From a configuration to the objects it describes."""

from __future__ import annotations

import torch
from torch import nn

from .config import Config, MLPConfig, NetworkConfig, ScheduleConfig, UNetConfig
from .diffusion.denoiser import Denoiser
from .diffusion.schedule import NoiseSchedule
from .errors import InkdropError
from .networks.mlp import MLP
from .networks.unet import UNet


def build_schedule(config: ScheduleConfig) -> NoiseSchedule:
    """The noise schedule of a configuration."""
    c = config
    if c.kind == "linear":
        return NoiseSchedule.linear(c.timesteps, c.beta_start, c.beta_end)
    if c.kind == "cosine":
        return NoiseSchedule.cosine(c.timesteps, c.s, c.max_beta)
    if c.kind == "sigmoid":
        return NoiseSchedule.sigmoid(c.timesteps, c.start, c.end, c.tau, c.max_beta)
    if c.kind == "betas":
        return NoiseSchedule.from_betas(c.values)
    assert c.kind == "alphas-cumprod"
    return NoiseSchedule.from_alphas_cumprod(c.values)


def build_network(config: NetworkConfig, shape: tuple[int, ...]) -> nn.Module:
    """The network of a configuration, for examples of `shape`: (C, H, W), or (D,) for an MLP."""
    if isinstance(config, UNetConfig) and len(shape) == 3:
        return UNet(config, shape[0], (shape[1], shape[2]))
    if isinstance(config, MLPConfig) and len(shape) == 1:
        return MLP(config, shape[0])
    expected = "images (C, H, W)" if isinstance(config, UNetConfig) else "points (D,)"
    raise InkdropError(f"a network of kind {config.kind} takes {expected}, not examples of {shape}")


def build_denoiser(
    config: Config, shape: tuple[int, ...], network: nn.Module | None = None
) -> Denoiser:
    """The denoiser of a configuration; `network` is one's own module where it names none."""
    if network is not None and config.network is not None:
        raise InkdropError(
            "a module was passed, but config.network describes one too; set config.network = None"
        )
    if network is None:
        if config.network is None:
            raise InkdropError(
                "this configuration has no network of its own: pass the module, network=…"
            )
        network = build_network(config.network, shape)
    return Denoiser(network, build_schedule(config.schedule), config.prediction, shape)


def choose_device(name: str) -> torch.device:
    """The device of a name; "auto" is the first to be had of cuda, mps and cpu."""
    if name == "auto":
        if torch.cuda.is_available():
            return torch.device("cuda")
        return torch.device("mps" if torch.backends.mps.is_available() else "cpu")
    try:
        device = torch.device(name)
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError) as error:
        reason = str(error).splitlines()[0]
        raise InkdropError(
            f"device {name!r} cannot be used here ({reason}); choose auto, cpu, cuda or mps"
        ) from None
    return device
