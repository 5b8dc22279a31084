"""What keeps an estimate x̂₀ in the range of images."""

from __future__ import annotations

import math

from torch import Tensor

from ..errors import unknown_name

CLIPS = ("auto", "range", "dynamic")
DYNAMIC_QUANTILE = 0.995  # Saharia et al. 2022 (Imagen), Fig. A.10; the rule is in Sec. 2.3


def chosen_clip(clip: str | None, shape: tuple[int, ...]) -> str | None:
    """The clip that is meant for examples of a shape ("auto" clips images alone), or an error.

    "none", as it is written on the command line, is None.
    """
    if clip == "none":
        return None
    if clip is not None and clip not in CLIPS:
        raise unknown_name("clip", str(clip), [*CLIPS, "None"])
    if clip == "auto":
        return "range" if len(shape) == 3 else None
    return clip


def clipped(x_start: Tensor, clip: str | None) -> Tensor:
    """x̂₀ (B, …) kept in [-1, 1] by "range", by "dynamic" thresholding, or left as it is."""
    if clip == "range":
        return x_start.clamp(-1, 1)
    if clip == "dynamic":
        # torch.quantile refuses tensors of more than 16 million elements; a sort does not.
        size = x_start.abs().flatten(1).sort(1).values
        limit = size[:, math.ceil(DYNAMIC_QUANTILE * size.shape[1]) - 1].clamp(min=1)
        limit = limit.reshape(-1, *[1] * (x_start.ndim - 1))
        return x_start.clamp(-limit, limit) / limit
    return x_start
