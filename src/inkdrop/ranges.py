"""Images in another range than is meant: the commonest mistake, which raises no error by itself."""

from __future__ import annotations

import warnings

import torch
from torch import Tensor

_LEVELS = 255
_OFF = 0.02  # of a level: how far float32 strays from one
_SEVERAL = 8  # images of which one at least is darker than mid grey somewhere


def range_mistake(images: Tensor) -> str | None:
    """What is wrong with the range of images, in words; None if nothing is, or it cannot be told.

    Floats should lie in [-1, 1]. Without a value below 0 they are taken for images in [0, 1] if
    they are levels k/255 of that range, or, where they are no levels, if there are eight or more:
    a bright picture or two in [-1, 1] is let pass. uint8 should not be 0 and 1 alone.

    Args:
        images: (N, C, H, W); anything else, such as points, has no range to mistake.
    """
    if images.ndim != 4 or not images.numel():
        return None
    low, high = images.min().item(), images.max().item()
    if images.dtype == torch.uint8:
        if high == 1:
            return (
                "the images are uint8 but hold only 0 and 1, which is black of 0 … 255: multiply "
                "them by 255"
            )
        return None
    if not images.is_floating_point() or not 0 <= low < high <= 1:
        return None
    level = images * _LEVELS
    whole = level.round()
    if ((level - whole).abs() <= _OFF).all():
        mistaken = bool((whole % 2 == 0).any())  # levels of [-1, 1] are odd: (2k - 255)/255
    else:
        mistaken = len(images) >= _SEVERAL
    if mistaken:
        return (
            f"the images lie in [{low:.3g}, {high:.3g}], as if they were meant for [0, 1], but "
            "[-1, 1] is expected: give 2 * images - 1"
        )
    return None


def warn_of_range(images: Tensor, stacklevel: int = 2) -> None:
    """Warn of a `range_mistake`, on behalf of the function `stacklevel` calls up."""
    mistake = range_mistake(images)
    if mistake is not None:
        warnings.warn(mistake, UserWarning, stacklevel=stacklevel + 1)
