"""The one place where uint8 pixels and float images in [-1, 1] meet."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor

from ..errors import InkdropError

if TYPE_CHECKING:
    from PIL.Image import Image

_HALF_RANGE = 127.5  # half of 255: 0 … 255 becomes -1 … 1


def to_float(images: Tensor) -> Tensor:
    """uint8 pixels of any shape as float32 in [-1, 1].

    Raises:
        InkdropError: if `images` are not uint8.
    """
    if images.dtype != torch.uint8:
        raise InkdropError(f"pixels must be uint8, got {images.dtype}")
    return images.to(torch.float32).div_(_HALF_RANGE).sub_(1)


def to_uint8(x: Tensor) -> Tensor:
    """Floats of any shape as uint8 pixels: clamped to [-1, 1] and rounded to the nearest level.

    Rounded, not truncated, so that `to_uint8(to_float(p))` is p for all 256 levels.

    Raises:
        InkdropError: if `x` is not floating point, or holds values that are not finite.
    """
    if not x.is_floating_point():
        raise InkdropError(f"an image in [-1, 1] must be floating point, got {x.dtype}")
    bad = int((~torch.isfinite(x)).sum())
    if bad:
        raise InkdropError(
            f"{bad} of {x.numel()} values are not finite (NaN or infinite), so they are no pixels"
        )
    # Half precision has too few digits for 256 levels around 255.
    wide = x if x.dtype == torch.float64 else x.to(torch.float32)
    return ((wide.clamp(-1, 1) + 1) * _HALF_RANGE).round().to(torch.uint8)


def to_picture(image: Tensor) -> Image:
    """A Pillow image from uint8 (C, H, W) with 1, 3 or 4 channels.

    Raises:
        InkdropError: for another number of channels, which image files do not have.
    """
    from PIL.Image import fromarray

    if image.shape[0] not in (1, 3, 4):
        raise InkdropError(
            f"an image file has 1, 3 or 4 channels, but this image has {image.shape[0]}; take the "
            "samples as tensors, from inkdrop.sample"
        )
    return fromarray(image.permute(1, 2, 0).squeeze(-1).cpu().numpy())
