"""A small convolutional classifier of images, whose last layer but one makes features of them."""

from __future__ import annotations

from itertools import pairwise

import torch.nn.functional as F
from torch import Tensor, nn

from ..errors import InkdropError

FEATURES = 128
_FINEST = 32  # channels where the image is still large
_COARSEST = 4  # pixels of the longer side at which halving ends


class Classifier(nn.Module):
    """Images (B, C, H, W) in [-1, 1] in, one logit for each class out.

    Residual stages of 3×3 convolutions with batch normalisation (He et al. 2016). Every stage
    halves the image, until its longer side is at most 4 pixels, where there are 128 channels; there
    are half as many a stage before, and never fewer than 32. The mean over the places that are left
    is the features. So there are about as many operations in every stage, and the whole follows the
    images' size. Grey images, which have less to tell, get half the depth, and from 17 pixels on a
    stem that halves them.

    Args:
        shape: (C, H, W).
        classes: K.

    Raises:
        InkdropError: for a shape that is not an image's, or fewer than two classes.
    """

    def __init__(self, shape: tuple[int, ...], classes: int) -> None:
        super().__init__()
        if len(shape) != 3 or min(shape) < 1:
            raise InkdropError(f"a classifier takes images (C, H, W), not examples of {shape}")
        if classes < 2:
            raise InkdropError(f"a classifier needs at least two classes, got {classes}")
        self.shape, self.classes = tuple(shape), classes
        grey = shape[0] == 1
        side = max(shape[1:])
        halved = side > (16 if grey else 48)
        sides = [-(-side // 2) if halved else side]
        while sides[-1] > _COARSEST:
            sides.append(-(-sides[-1] // 2))
        widths = [max(_FINEST, FEATURES >> stage) for stage in reversed(range(len(sides)))]
        kernel, stride = (5, 2) if halved else (3, 1)
        layers: list[nn.Module] = [_Convolution(shape[0], widths[0], kernel, stride)]
        for inputs, outputs in pairwise(widths):
            layers.append(_Convolution(inputs, outputs, 3, 2))
            layers += [_Residual(outputs) for _ in range(1 if grey else 2)]
        self.body = nn.Sequential(*layers)
        self.head = nn.Linear(FEATURES, classes)

    def features(self, x: Tensor) -> Tensor:
        """x (B, C, H, W) in [-1, 1] → (B, 128), what the logits are a linear function of.

        Raises:
            InkdropError: for images of another shape than it was made for.
        """
        if tuple(x.shape[1:]) != self.shape:
            raise InkdropError(
                f"this classifier takes images of shape {self.shape}, got {tuple(x.shape[1:])}"
            )
        features: Tensor = self.body(x).mean(dim=(2, 3))
        return features

    def forward(self, x: Tensor) -> Tensor:
        """x (B, C, H, W) in [-1, 1] → logits (B, K)."""
        logits: Tensor = self.head(self.features(x))
        return logits


class _Convolution(nn.Module):
    def __init__(self, inputs: int, outputs: int, kernel: int, stride: int) -> None:
        super().__init__()
        self.convolution = nn.Conv2d(inputs, outputs, kernel, stride, kernel // 2, bias=False)
        self.norm = nn.BatchNorm2d(outputs)

    def forward(self, x: Tensor) -> Tensor:
        return F.relu(self.norm(self.convolution(x)))


class _Residual(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.convolution = nn.Conv2d(width, width, 3, padding=1, bias=False)
        self.norm = nn.BatchNorm2d(width)

    def forward(self, x: Tensor) -> Tensor:
        return F.relu(x + self.norm(self.convolution(x)))
