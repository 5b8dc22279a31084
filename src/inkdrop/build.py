"""From a configuration to the objects it describes."""

from __future__ import annotations

from functools import partial

import torch
from torch import nn

from .config import Config, DataConfig, MLPConfig, NetworkConfig, ScheduleConfig, UNetConfig
from .data.augment import Augmentation
from .diffusion import objectives
from .diffusion.denoiser import Denoiser
from .diffusion.objectives import Objective
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


def build_network(
    config: NetworkConfig,
    shape: tuple[int, ...],
    learned_variance: bool = False,
    augmentation_labels: int = 0,
    null: bool = False,
) -> nn.Module:
    """The network of a configuration, for examples of `shape`: (C, H, W), or (D,) for an MLP.

    With a learned variance it has twice the outputs; with augmentation labels it is told these;
    with null its class or vector may be left out.
    """
    outputs = shape[0] * (2 if learned_variance else 1)
    if isinstance(config, UNetConfig) and len(shape) == 3:
        return UNet(config, shape[0], (shape[1], shape[2]), outputs, augmentation_labels, null)
    if isinstance(config, MLPConfig) and len(shape) == 1:
        return MLP(config, shape[0], outputs, null)
    expected, other = (
        ("images (C, H, W)", "points, such as points-gmm")
        if isinstance(config, UNetConfig)
        else ("points (D,)", "images, such as folder")
    )
    raise InkdropError(
        f"a network of kind {config.kind} takes {expected}, not examples of {shape}; choose a "
        f"preset for {other}"
    )


def augmentation_of(data: DataConfig) -> Augmentation:
    """How a configuration varies images."""
    return Augmentation(
        data.horizontal_flip, data.shift, data.padding, data.rotation, data.non_leaking
    )


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
        network = build_network(
            config.network,
            shape,
            config.variance == "learned",
            augmentation_of(config.data).labels,
            bool(config.label_dropout),
        )
    return Denoiser(
        network,
        build_schedule(config.schedule),
        config.prediction,
        shape,
        learned_variance=config.variance == "learned",
    )


def build_objective(config: Config) -> Objective:
    """The training objective of a configuration.

    Raises:
        InkdropError: where objective and variance do not fit together.
    """
    name, variance, constants = config.objective, config.variance, config.weighting
    teaches_variance = name in ("hybrid", "variational-bound")
    if variance == "learned" and not teaches_variance:
        raise InkdropError(
            f"the objective {name} cannot teach a learned variance: choose hybrid or "
            "variational-bound, or set variance to posterior or beta"
        )
    if name == "hybrid" and variance != "learned":
        raise InkdropError(
            f"the objective hybrid needs a network that learns its variance, but variance is "
            f"{variance}: set it to learned"
        )
    makers: dict[str, Objective] = {
        "simple": objectives.simple,
        "weighted-noise": partial(objectives.weighted_noise, variance=variance),
        "variational-bound": partial(objectives.variational_bound, variance=variance),
        "hybrid": partial(objectives.hybrid, bound_weight=constants.bound_weight),
        "min-snr": partial(objectives.min_snr, gamma=constants.min_snr_gamma),
        "p2": partial(objectives.p2, gamma=constants.p2_gamma, k=constants.p2_k),
    }
    if name not in makers:
        raise InkdropError(
            "this configuration's objective is one's own: pass the function, objective=…"
        )
    return makers[name]


def choose_device(name: str) -> torch.device:
    """The device of a name; "auto" is the first to be had of cuda, mps and cpu."""
    if name == "auto":
        if torch.cuda.is_available():
            return torch.device("cuda")
        return torch.device("mps" if torch.backends.mps.is_available() else "cpu")
    try:
        device = torch.device(name)
        torch.zeros(1, device=device).cpu()  # "meta", for one, has no values
    except (RuntimeError, AssertionError) as error:
        reason = str(error).splitlines()[0]
        raise InkdropError(
            f"device {name!r} cannot be used here ({reason}); choose auto, cpu, cuda or mps"
        ) from None
    return device
