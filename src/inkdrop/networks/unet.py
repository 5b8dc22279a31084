"""The U-Net of DDPM: image in, image of the same shape out, told the timestep in every block."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..config import UNetConfig
from ..errors import InkdropError
from .attention import attend
from .embedding import Condition, ConditionEmbedding


class UNet(nn.Module):
    """Residual blocks and self-attention down, across and up, with skip connections.

    Ho et al. 2020, App. B. Any height and width: images are padded by repeating their edges to a
    multiple that halves evenly, and cropped back.

    Args:
        config: its shape.
        image_channels: C.
        image_size: (H, W), which attention_resolutions refer to; others can be given later.
        out_channels: the channels that come out; C by default.
        augmentation_labels: A, the numbers it is told of how an image was augmented; 0 for none.
        null: whether its class or vector may be left out.

    Raises:
        InkdropError: for an attention resolution that no level has.
    """

    def __init__(
        self,
        config: UNetConfig,
        image_channels: int,
        image_size: tuple[int, int],
        out_channels: int | None = None,
        augmentation_labels: int = 0,
        null: bool = False,
    ) -> None:
        super().__init__()
        self.patch_size = config.patch_size
        self.multiple = config.patch_size * 2 ** (len(config.multipliers) - 1)
        widths = [config.channels * m for m in config.multipliers]
        attends = _levels_with_attention(config, image_size, self.multiple)
        embedding_width = 4 * config.channels

        def block(inputs: int, outputs: int, attention: bool) -> Block:
            return Block(inputs, outputs, embedding_width, attention, config)

        self.embedding = ConditionEmbedding(
            config.channels,
            embedding_width,
            config.classes,
            augmentation_labels,
            config.vector,
            null,
            longest=config.longest_wave == "included",
        )
        self.stem = nn.Conv2d(image_channels * self.patch_size**2, widths[0], 3, padding=1)

        self.down = nn.ModuleList()
        skips = [width := widths[0]]
        for level, outputs in enumerate(widths):
            for _ in range(config.blocks):
                self.down.append(block(width, outputs, attends[level]))
                skips.append(width := outputs)
            if level < len(widths) - 1:
                self.down.append(Downsample(width, config.downsample_padding))
                skips.append(width)

        self.middle = nn.ModuleList(
            [block(width, width, config.attention_in_bottleneck), block(width, width, False)]
        )

        self.up = nn.ModuleList()
        for level, outputs in reversed(list(enumerate(widths))):
            for _ in range(config.blocks + 1):
                self.up.append(block(width + skips.pop(), outputs, attends[level]))
                width = outputs
            if level > 0:
                self.up.append(Upsample(width))

        self.head = nn.Sequential(
            _norm(width, config),
            nn.SiLU(),
            _zeroed(
                nn.Conv2d(
                    width, (out_channels or image_channels) * self.patch_size**2, 3, padding=1
                )
            ),
        )

    def forward(self, x: Tensor, t: Tensor, condition: Tensor | Condition | None = None) -> Tensor:
        """x (B, C, H, W), t (B,) → (B, out_channels, H, W).

        The condition is classes (B,), vectors (B, V), a `Condition` of either and augmentation
        (B, A), or None.
        """
        height, width = x.shape[-2:]
        bottom, right = -height % self.multiple, -width % self.multiple
        h = F.pad(x, (0, right, 0, bottom), mode="replicate") if bottom or right else x

        embedding = F.silu(self.embedding(t, condition))
        h = self.stem(F.pixel_unshuffle(h, self.patch_size))
        skips = [h]
        for module in self.down:
            h = module(h, embedding)
            skips.append(h)
        for module in self.middle:
            h = module(h, embedding)
        for module in self.up:
            if isinstance(module, Block):
                h = torch.cat([h, skips.pop()], dim=1)
            h = module(h, embedding)
        h = F.pixel_shuffle(self.head(h), self.patch_size)
        return h[..., :height, :width]

    def null_condition(self, condition: Tensor | Condition) -> Tensor | Condition:
        """Like `condition`, but told no class or vector: see `ConditionEmbedding`."""
        return self.embedding.null_condition(condition)


class Block(nn.Module):
    """A residual block told the timestep, then self-attention where it is wanted."""

    def __init__(
        self, inputs: int, outputs: int, embedding_width: int, attention: bool, config: UNetConfig
    ) -> None:
        super().__init__()
        self.scale_shift = config.time_injection == "scale-shift"
        self.norm1 = _norm(inputs, config)
        self.conv1 = nn.Conv2d(inputs, outputs, 3, padding=1)
        self.project = nn.Linear(embedding_width, outputs * (2 if self.scale_shift else 1))
        self.norm2 = _norm(outputs, config)
        self.dropout = nn.Dropout(config.dropout)
        self.conv2 = _zeroed(nn.Conv2d(outputs, outputs, 3, padding=1))
        self.shortcut = nn.Conv2d(inputs, outputs, 1) if inputs != outputs else nn.Identity()
        self.attention = Attention(outputs, config) if attention else nn.Identity()

    def forward(self, x: Tensor, embedding: Tensor) -> Tensor:
        told = self.project(embedding)[:, :, None, None]
        h = self.conv1(F.silu(self.norm1(x)))
        if self.scale_shift:
            scale, shift = told.chunk(2, dim=1)
            h = self.norm2(h) * (1 + scale) + shift
        else:
            h = self.norm2(h + told)
        h = self.conv2(self.dropout(F.silu(h)))
        attended: Tensor = self.attention(self.shortcut(x) + h)
        return attended


class Attention(nn.Module):
    """Self-attention over all positions of a feature map, added to it."""

    def __init__(self, channels: int, config: UNetConfig) -> None:
        super().__init__()
        head_channels = config.head_channels or channels
        if channels % head_channels:
            raise InkdropError(
                f"head_channels {head_channels} does not divide the {channels} channels of a level "
                "with attention"
            )
        self.heads = channels // head_channels
        self.norm = _norm(channels, config)
        self.qkv = nn.Conv2d(channels, 3 * channels, 1)
        self.out = _zeroed(nn.Conv2d(channels, channels, 1))

    def forward(self, x: Tensor) -> Tensor:
        batch, channels, height, width = x.shape
        heads = (batch, self.heads, channels // self.heads, height * width)
        q, k, v = (z.reshape(heads) for z in self.qkv(self.norm(x)).chunk(3, dim=1))
        out: Tensor = x + self.out(attend(q, k, v).reshape(x.shape))
        return out


class Downsample(nn.Module):
    """Half the resolution, by a strided convolution."""

    def __init__(self, channels: int, padding: str = "both") -> None:
        super().__init__()
        self.after = padding == "after"
        self.conv = nn.Conv2d(channels, channels, 3, stride=2, padding=0 if self.after else 1)

    def forward(self, x: Tensor, embedding: Tensor) -> Tensor:
        h: Tensor = self.conv(F.pad(x, (0, 1, 0, 1)) if self.after else x)
        return h


class Upsample(nn.Module):
    """Twice the resolution: nearest neighbours, then a convolution."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(channels, channels, 3, padding=1)

    def forward(self, x: Tensor, embedding: Tensor) -> Tensor:
        h: Tensor = self.conv(F.interpolate(x, scale_factor=2, mode="nearest"))
        return h


def _norm(channels: int, config: UNetConfig) -> nn.GroupNorm:
    """Ho's 32 groups, or fewer for groups of about four channels at least, as his have.

    A group of one channel would subtract the timestep again, which a block adds to whole channels.
    """
    groups = config.norm_groups or math.gcd(min(32, max(1, channels // 4)), channels)
    if channels % groups:
        raise InkdropError(
            f"norm_groups {groups} does not divide the {channels} channels of a level"
        )
    return nn.GroupNorm(groups, channels, config.norm_epsilon)


def _zeroed(layer: nn.Conv2d) -> nn.Conv2d:
    """A layer that starts by contributing nothing, so that a block starts as the identity."""
    nn.init.zeros_(layer.weight)
    if layer.bias is not None:
        nn.init.zeros_(layer.bias)
    return layer


def _levels_with_attention(
    config: UNetConfig, image_size: tuple[int, int], multiple: int
) -> list[bool]:
    longer = max(side + -side % multiple for side in image_size) // config.patch_size
    sides = [longer // 2**level for level in range(len(config.multipliers))]
    for wanted in config.attention_resolutions:
        if wanted not in sides:
            raise InkdropError(
                f"attention_resolutions asks for {wanted} pixels, but the levels of this network "
                f"have {', '.join(map(str, sides))}"
            )
    return [side in config.attention_resolutions for side in sides]
