"""Our U-Net with the shape and the weights of a diffusers `UNet2DModel`: the same function."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import Tensor

from ..config import UNetConfig
from ..errors import InkdropError
from .unet import Block, Downsample, UNet

_DOWN = {"DownBlock2D": False, "AttnDownBlock2D": True}
_UP = {"UpBlock2D": False, "AttnUpBlock2D": True}
# What our U-Net has no choice of: the values that mean the same there.
_FIXED: dict[str, tuple[Any, ...]] = {
    "act_fn": ("silu", "swish"),
    "add_attention": (True, False),
    "attn_norm_num_groups": (None,),
    "center_input_sample": (False,),
    "class_embed_type": (None,),
    "conv_in_kernel": (3,),
    "conv_out_kernel": (3,),
    "downsample_padding": (0, 1),
    "downsample_type": ("conv",),
    "flip_sin_to_cos": (True, False),
    "freq_shift": (0, 1),
    "mid_block_scale_factor": (1,),
    "mid_block_type": ("UNetMidBlock2D",),
    "num_train_timesteps": (None,),
    "resnet_time_scale_shift": ("default",),  # else its bottleneck attends without a norm
    "time_embedding_type": ("positional",),
    "upsample_type": ("conv",),
}


def unet_from_diffusers(config: Mapping[str, Any], weights: Mapping[str, Tensor]) -> UNet:
    """A U-Net that computes what a diffusers `UNet2DModel` does.

    Args:
        config: the model's: `model.config`, or the content of its config.json.
        weights: `model.state_dict()`, or its diffusion_pytorch_model.safetensors.

    Raises:
        InkdropError: for a kind of model that our U-Net is not, or weights that are not its own.
    """
    height, width = _size(config)
    network = UNet(
        unet_config_of(config),
        config["in_channels"],
        (height, width),
        config["out_channels"],
    )
    network.load_state_dict(_renamed(network, dict(config), weights))
    return network


def unet_config_of(config: Mapping[str, Any]) -> UNetConfig:
    """The configuration of the U-Net that a diffusers `UNet2DModel` of this configuration is.

    Raises:
        InkdropError: naming what our U-Net cannot be.
    """
    for name, usual in _FIXED.items():
        if name in config and config[name] not in usual:
            raise InkdropError(
                f"the diffusers model has {name} {config[name]!r}, which inkdrop's U-Net does not "
                f"know; it knows {', '.join(map(repr, usual))}"
            )
    widths = tuple(config["block_out_channels"])
    down = [_kind(name, _DOWN) for name in config["down_block_types"]]
    up = [_kind(name, _UP) for name in config["up_block_types"]]
    if down != up[::-1]:
        raise InkdropError(
            "the diffusers model attends at other levels on the way up than on the way down: "
            f"{', '.join(config['down_block_types'])}; {', '.join(config['up_block_types'])}"
        )
    if any(width % widths[0] for width in widths):
        raise InkdropError(
            f"the diffusers model has block_out_channels {list(widths)}, of which the first does "
            "not divide the others"
        )
    longer = max(_size(config))
    if longer % 2 ** (len(widths) - 1):
        raise InkdropError(
            f"the diffusers model is for images of {longer} pixels, which cannot be halved "
            f"{len(widths) - 1} times"
        )
    return UNetConfig(
        channels=widths[0],
        multipliers=tuple(width // widths[0] for width in widths),
        blocks=config["layers_per_block"],
        attention_resolutions=tuple(
            longer // 2**level for level, attends in enumerate(down) if attends
        ),
        attention_in_bottleneck=config.get("add_attention", True),
        head_channels=config.get("attention_head_dim", 8),
        dropout=config.get("dropout", 0.0),
        norm_groups=config.get("norm_num_groups", 32),
        norm_epsilon=config.get("norm_eps", 1e-5),
        longest_wave="included" if config.get("freq_shift", 0) == 1 else "excluded",
        downsample_padding="both" if config.get("downsample_padding", 1) == 1 else "after",
        classes=config.get("num_class_embeds"),
    )


def _kind(name: str, kinds: dict[str, bool]) -> bool:
    if name not in kinds:
        raise InkdropError(
            f"the diffusers model has a {name}, which inkdrop's U-Net does not know; it knows "
            f"{', '.join(kinds)}"
        )
    return kinds[name]


def _size(config: Mapping[str, Any]) -> tuple[int, int]:
    size = config.get("sample_size")
    if size is None:
        raise InkdropError("the diffusers model does not say which sample_size it is for")
    height, width = (size, size) if isinstance(size, int) else size
    return height, width


def _renamed(
    network: UNet, config: dict[str, Any], weights: Mapping[str, Tensor]
) -> dict[str, Tensor]:
    """Their weights under our names; queries, keys and values become one convolution."""
    left = dict(weights)
    found: dict[str, Tensor] = {}

    def take(ours: str, theirs: str, like: Tensor | None = None) -> None:
        for part in ("weight", "bias"):
            value = _taken(left, f"{theirs}.{part}")
            found[f"{ours}.{part}"] = value if like is None else value.reshape(like.shape)

    take("stem", "conv_in")
    take("embedding.mlp.0", "time_embedding.linear_1")
    take("embedding.mlp.2", "time_embedding.linear_2")
    if config.get("flip_sin_to_cos", True):
        first = found["embedding.mlp.0.weight"]
        found["embedding.mlp.0.weight"] = first.roll(first.shape[1] // 2, dims=1)
    if config.get("num_class_embeds") is not None:
        found["embedding.class_embedding.weight"] = _taken(left, "class_embedding.weight")
    take("head.0", "conv_norm_out")
    take("head.2", "conv_out")
    for ours, theirs, attention, block in _places(network, config):
        if not isinstance(block, Block):
            take(f"{ours}.conv", theirs)
            continue
        for name in ("norm1", "conv1", "norm2", "conv2"):
            take(f"{ours}.{name}", f"{theirs}.{name}")
        take(f"{ours}.project", f"{theirs}.time_emb_proj")
        if f"{theirs}.conv_shortcut.weight" in left:
            take(f"{ours}.shortcut", f"{theirs}.conv_shortcut")
        if f"{attention}.group_norm.weight" in left:
            _take_attention(found, left, f"{ours}.attention", attention)
    if left:
        raise InkdropError(
            f"{len(left)} weights of the diffusers model have no place in inkdrop's U-Net, "
            f"{next(iter(left))} among them"
        )
    return found


def _take_attention(
    found: dict[str, Tensor], left: dict[str, Tensor], ours: str, theirs: str
) -> None:
    new = f"{theirs}.to_q.weight" in left
    names = ("to_q", "to_k", "to_v") if new else ("query", "key", "value")
    out = "to_out.0" if new else "proj_attn"
    for part in ("weight", "bias"):
        found[f"{ours}.norm.{part}"] = _taken(left, f"{theirs}.group_norm.{part}")
        qkv = torch.cat([_taken(left, f"{theirs}.{name}.{part}") for name in names])
        last = _taken(left, f"{theirs}.{out}.{part}")
        if part == "weight":  # of linear layers, which are convolutions of one pixel
            qkv, last = qkv.flatten(1)[:, :, None, None], last.flatten(1)[:, :, None, None]
        found[f"{ours}.qkv.{part}"], found[f"{ours}.out.{part}"] = qkv, last


def _taken(left: dict[str, Tensor], name: str) -> Tensor:
    if name not in left:
        raise InkdropError(f"the weights of the diffusers model lack {name}")
    return left.pop(name)


def _places(
    network: UNet, config: dict[str, Any]
) -> Iterator[tuple[str, str, str, torch.nn.Module]]:
    """Each of our modules: its name, theirs, that of the attention after it, and the module."""
    blocks = config["layers_per_block"]
    level = within = 0
    for i, module in enumerate(network.down):
        if isinstance(module, Downsample):
            yield f"down.{i}", f"down_blocks.{level}.downsamplers.0.conv", "", module
            level, within = level + 1, 0
        else:
            theirs = f"down_blocks.{level}"
            yield (
                f"down.{i}",
                f"{theirs}.resnets.{within}",
                f"{theirs}.attentions.{within}",
                module,
            )
            within += 1
    for i, module in enumerate(network.middle):
        yield f"middle.{i}", f"mid_block.resnets.{i}", f"mid_block.attentions.{i}", module
    level = within = 0
    for i, module in enumerate(network.up):
        theirs = f"up_blocks.{level}"
        if within > blocks:
            yield f"up.{i}", f"{theirs}.upsamplers.0.conv", "", module
            level, within = level + 1, 0
        else:
            yield (
                f"up.{i}",
                f"{theirs}.resnets.{within}",
                f"{theirs}.attentions.{within}",
                module,
            )
            within += 1
