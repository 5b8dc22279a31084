"""A model that diffusers saved, as a denoiser: to sample, measure and hold against one's own."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file

from .diffusion.denoiser import Denoiser
from .diffusion.schedule import NoiseSchedule
from .errors import InkdropError, unknown_name
from .networks.from_diffusers import unet_from_diffusers

_WEIGHTS = "diffusion_pytorch_model.safetensors"
_PREDICTIONS = {"epsilon": "noise", "sample": "x_start", "v_prediction": "velocity"}


def from_diffusers(folder: str | Path) -> Denoiser:
    """The denoiser of a folder that a DDPM or DDIM pipeline of diffusers was saved in.

    It needs no diffusers. Of the hub's, download one first (`hf download google/ddpm-cifar10-32`);
    a folder that has only a pickle of the weights is not opened: save it as safetensors.

    Args:
        folder: with unet/config.json, unet/diffusion_pytorch_model.safetensors and
            scheduler/scheduler_config.json.

    Returns:
        The denoiser, on the CPU and in evaluation.

    Raises:
        InkdropError: for a folder without these, or a model that our U-Net is not.
    """
    folder = Path(folder)
    config = _read(folder / "unet" / "config.json")
    scheduler = _read(folder / "scheduler" / "scheduler_config.json")
    weights = folder / "unet" / _WEIGHTS
    if not weights.is_file():
        raise InkdropError(
            f"{weights} is missing; inkdrop opens no pickles, save the model with "
            "safe_serialization=True"
        )
    inputs, outputs = config["in_channels"], config["out_channels"]
    if outputs not in (inputs, 2 * inputs):
        raise InkdropError(f"the diffusers model has {inputs} channels in and {outputs} out")
    network = unet_from_diffusers(config, load_file(weights)).eval()
    size = config["sample_size"]
    height, width = (size, size) if isinstance(size, int) else size
    prediction = scheduler.get("prediction_type", "epsilon")
    if prediction not in _PREDICTIONS:
        raise unknown_name("diffusers prediction_type", prediction, _PREDICTIONS)
    return Denoiser(
        network,
        _schedule(scheduler),
        _PREDICTIONS[prediction],
        (inputs, height, width),
        learned_variance=outputs == 2 * inputs,
    )


def _schedule(config: Mapping[str, Any]) -> NoiseSchedule:
    """The noise schedule of a scheduler's configuration."""
    if config.get("trained_betas") is not None:
        return NoiseSchedule.from_betas(config["trained_betas"])
    timesteps = config.get("num_train_timesteps", 1000)
    start, end = config.get("beta_start", 1e-4), config.get("beta_end", 0.02)
    kind = config.get("beta_schedule", "linear")
    if kind == "linear":
        return NoiseSchedule.linear(timesteps, start, end)
    if kind == "scaled_linear":
        roots = torch.linspace(start**0.5, end**0.5, timesteps, dtype=torch.float64)
        return NoiseSchedule.from_betas(roots**2)
    if kind == "squaredcos_cap_v2":
        return NoiseSchedule.cosine(timesteps)
    known = ("linear", "scaled_linear", "squaredcos_cap_v2")
    raise unknown_name("diffusers beta_schedule", kind, known)


def _read(path: Path) -> dict[str, Any]:
    try:
        content: dict[str, Any] = json.loads(path.read_bytes())
    except FileNotFoundError:
        raise InkdropError(
            f"{path} is missing: give a folder that diffusers' pipeline.save_pretrained wrote"
        ) from None
    except ValueError as error:
        raise InkdropError(f"{path} is no JSON ({error})") from None
    return content
