"""What makes features of images: their pixels, a classifier, Inception-v3 or DINOv2."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..errors import InkdropError
from .features import FeatureSet

EXTRACTORS = ("classifier", "inception", "dinov2", "pixels")
DINOV2 = "facebook/dinov2-base"
_DINOV2_SIDE = 224  # what its authors evaluate it at: 16 × 16 patches
_IMAGENET_MEAN = (0.485, 0.456, 0.406)
_IMAGENET_STD = (0.229, 0.224, 0.225)
_AS_RGB = "grey repeated to RGB, transparent laid on white"

Extracted = tuple[Tensor, Tensor | None]


@dataclass(frozen=True)
class Extractor:
    """A fixed function from images to features.

    Attributes:
        name: its kind, of `EXTRACTORS`.
        fingerprint: of its weights and preprocessing: equal ones make equal features.
        preprocessing: what happens to an image before the network, in words.
        features: D.
        classes: K of its logits; None where it has none.
        device: where it computes.
        shape: (C, H, W) of the images it takes; None where they may have any size.
    """

    name: str
    fingerprint: str
    preprocessing: str
    features: int
    classes: int | None
    device: torch.device
    shape: tuple[int, int, int] | None
    of: Callable[[Tensor], Extracted] = field(repr=False, compare=False)

    def __call__(self, images: Tensor) -> FeatureSet:
        """The features of uint8 images (B, C, H, W) on any device, as NumPy arrays.

        Raises:
            InkdropError: for images that are not uint8 or that it does not take.
        """
        if images.dtype != torch.uint8 or images.ndim != 4:
            raise InkdropError(
                f"an extractor takes uint8 images (B, C, H, W), got {images.dtype} of "
                f"{tuple(images.shape)}"
            )
        _, channels, height, width = images.shape
        self.check((channels, height, width))
        with torch.inference_mode():
            values, logits = self.of(images.to(self.device))
        return FeatureSet(
            values.to("cpu", torch.float32).numpy(),
            None if logits is None else logits.to("cpu", torch.float32).numpy(),
        )

    def check(self, shape: tuple[int, ...]) -> None:
        """Refuse images of a shape (C, H, W) that it does not take.

        Raises:
            InkdropError: that says which it takes.
        """
        if self.shape is not None and tuple(shape) != self.shape:
            raise InkdropError(
                f"the extractor {self.name} is for images of shape {self.shape}, got {tuple(shape)}"
            )
        if self.shape is None and (len(shape) != 3 or shape[0] not in (1, 3, 4)):
            raise InkdropError(
                f"the extractor {self.name} takes images with 1, 3 or 4 channels (grey, RGB, "
                f"RGBA), got shape {tuple(shape)}; choose pixels or the classifier"
            )

    def described(self) -> dict[str, Any]:
        """What an evaluation's protocol says of it."""
        return {
            "name": self.name,
            "fingerprint": self.fingerprint,
            "preprocessing": self.preprocessing,
            "features": self.features,
            "classes": self.classes,
        }


def pixels(shape: tuple[int, int, int]) -> Extractor:
    """The pixels themselves, 0 … 255, one feature for each number of an image (C, H, W)."""
    preprocessing = "none: pixels of 0 … 255"

    def of(images: Tensor) -> Extracted:
        return images.flatten(1).float(), None

    return Extractor(
        "pixels",
        _digest({}, preprocessing, shape),
        preprocessing,
        features=shape[0] * shape[1] * shape[2],
        classes=None,
        device=torch.device("cpu"),
        shape=shape,
        of=of,
    )


def classifier_extractor(
    network: nn.Module,
    *,
    fingerprint: str,
    features: int,
    classes: int,
    shape: tuple[int, int, int],
    device: torch.device | str = "cpu",
    name: str = "classifier",
) -> Extractor:
    """A classifier of the data's own classes, of the shape of images that it was trained on.

    Args:
        network: with `features(x)` (B, D) and `forward(x)`, the logits (B, K), of x in [-1, 1];
            where it has a `head` that makes logits of features, the images pass through it once.
        fingerprint: of its weights.
        shape: (C, H, W) of the images it was trained on.
    """
    device = torch.device(device)
    network = network.to(device).eval()
    head = getattr(network, "head", None)

    def of(images: Tensor) -> Extracted:
        # As data.pixels.to_float makes them in training.
        x = images.to(torch.float32).div_(127.5).sub_(1)
        values = network.features(x)  # type: ignore[operator]
        return values, network(x) if head is None else head(values)

    return Extractor(name, fingerprint, "pixels / 127.5 - 1", features, classes, device, shape, of)


def inception(*, device: torch.device | str = "cpu", network: nn.Module | None = None) -> Extractor:
    """Inception-v3 with the weights that published figures use, by torch-fidelity.

    Its 2,048 pooled features, and the logits without bias that the Inception score takes. The
    network takes uint8 and resizes to 299 × 299 itself, bilinearly as TensorFlow 1 did, which is
    what FID means. Weights are fetched at first use.

    Args:
        network: in place of torch-fidelity's: takes uint8 (B, 3, H, W), gives (features, logits).

    Raises:
        InkdropError: if torch-fidelity is missing, or the weights cannot be had.
    """
    device = torch.device(device)
    network = (_fetched_inception() if network is None else network).to(device).eval()
    preprocessing = f"{_AS_RGB}, resized to 299 × 299 inside the network, bilinear as TensorFlow 1"

    def of(images: Tensor) -> Extracted:
        values, logits = network(_as_rgb(images))
        return values.flatten(1), logits

    values, logits = of(torch.zeros(1, 3, 32, 32, dtype=torch.uint8, device=device))
    return Extractor(
        "inception",
        _digest(network.state_dict(), preprocessing),
        preprocessing,
        features=values.shape[1],
        classes=None if logits is None else logits.shape[1],
        device=device,
        shape=None,
        of=of,
    )


def dinov2(place: str = DINOV2, *, device: torch.device | str = "cpu") -> Extractor:
    """DINOv2's class token, by transformers (Oquab et al. 2023; for metrics Stein et al. 2023).

    Args:
        place: a model's name on the Hugging Face hub, or a folder that `save_pretrained` wrote.

    Raises:
        InkdropError: if transformers is missing, or there is no DINOv2 at that place.
    """
    device = torch.device(device)
    network = _pretrained_dinov2(place).to(device).eval()
    side = _DINOV2_SIDE
    preprocessing = (
        f"{_AS_RGB}, resized to {side} × {side} by antialiased bicubic interpolation, ImageNet’s "
        "mean and deviation"
    )
    mean = torch.tensor(_IMAGENET_MEAN, device=device)[:, None, None]
    std = torch.tensor(_IMAGENET_STD, device=device)[:, None, None]

    def of(images: Tensor) -> Extracted:
        x = _as_rgb(images).float() / 255
        x = F.interpolate(x, (side, side), mode="bicubic", align_corners=False, antialias=True)
        x = (x.clamp(0, 1) - mean) / std
        return network(pixel_values=x).last_hidden_state[:, 0], None

    return Extractor(
        "dinov2",
        _digest(network.state_dict(), preprocessing),
        preprocessing,
        features=int(network.config.hidden_size),
        classes=None,
        device=device,
        shape=None,
        of=of,
    )


def _fetched_inception() -> nn.Module:
    try:
        from torch_fidelity.feature_extractor_inceptionv3 import FeatureExtractorInceptionV3
    except ImportError:
        raise InkdropError(
            "the extractor inception needs torch-fidelity: pip install 'inkdrop[inception]'"
        ) from None
    try:
        network: nn.Module = FeatureExtractorInceptionV3(
            "inception-v3-compat", ["2048", "logits_unbiased"]
        )
    except OSError as error:  # also of a connection
        raise InkdropError(
            "Inception-v3’s weights could not be fetched or read "
            f"({' '.join(str(error).split()) or type(error).__name__}): connect once, or put "
            "weights-inception-2015-12-05-6726825d.pth into $TORCH_HOME/hub/checkpoints"
        ) from None
    return network


def _pretrained_dinov2(place: str) -> Any:
    try:
        from transformers import AutoConfig, Dinov2Model
    except ImportError:
        raise InkdropError(
            "the extractor dinov2 needs transformers: pip install 'inkdrop[dinov2]'"
        ) from None
    missing = (
        f"there is no DINOv2 to be had at {place!r}: give a folder that holds config.json and "
        f"model.safetensors, or connect to fetch it by its name, such as {DINOV2!r}"
    )
    try:
        kind = AutoConfig.from_pretrained(place).model_type
    except (OSError, ValueError):
        raise InkdropError(missing) from None
    if kind != "dinov2":
        raise InkdropError(f"{place!r} holds a model of kind {kind}, where dinov2 is needed")
    try:
        return Dinov2Model.from_pretrained(place, use_safetensors=True)
    except (OSError, ValueError, RuntimeError):
        raise InkdropError(missing) from None


def _as_rgb(images: Tensor) -> Tensor:
    """uint8 grey, RGB or RGBA (B, C, H, W) as RGB (B, 3, H, W)."""
    channels = images.shape[1]
    if channels == 4:
        opaque = images[:, 3:].float() / 255
        return (images[:, :3] * opaque + 255 * (1 - opaque)).round().to(torch.uint8)
    return images.expand(-1, 3, -1, -1) if channels == 1 else images


def _digest(weights: dict[str, Tensor], *facts: object) -> str:
    """Of everything that makes an image's features what they are."""
    digest = hashlib.sha256(repr(facts).encode())
    for name, tensor in sorted(weights.items()):
        array = tensor.detach().cpu().contiguous()
        digest.update(f"{name} {array.dtype} {tuple(array.shape)}".encode())
        digest.update(array.reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()
