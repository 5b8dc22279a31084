"""A run is a folder, and the folder is enough.

RUN/config.json         the configuration
RUN/environment.json    versions, machine and command of every session that trained it
RUN/checkpoints/        step-…/: weights, averaged weights, optimizer
RUN/metrics.jsonl       one JSON object a line
RUN/example.png         a held-out image, for pictures
RUN/samples/            images and grids
RUN/pictures/, RUN/report.html
"""

from __future__ import annotations

import io
import json
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn

from .build import build_denoiser, choose_device
from .checkpoint import (
    FORMAT_VERSION,
    check_version,
    looks_like_pickle,
    newest_checkpoint,
    read_checkpoint,
    read_manifest,
    replace_synced,
)
from .config import Config
from .data.pixels import to_picture
from .diffusion.denoiser import Denoiser
from .errors import InkdropError
from .metrics import read_metrics

WEIGHTS = {"ema": "ema", "raw": "weights"}


class Run:
    """A trained (or half-trained) run, read from its folder.

    Args:
        path: the folder.
        network: the module, for a run that trained one's own.
        device: where denoisers are put; "auto" takes the best there is.

    Raises:
        InkdropError: when the folder is missing, holds no run or no checkpoint, or is from a newer
            version.
    """

    def __init__(
        self, path: str | Path, network: nn.Module | None = None, device: str = "auto"
    ) -> None:
        self.path = Path(path)
        self.config = read_config(self.path)
        checkpoint = newest_checkpoint(self.path / "checkpoints")
        if checkpoint is None:
            raise _no_checkpoint(self.path / "checkpoints")
        self.checkpoint = checkpoint
        manifest = read_manifest(checkpoint)
        self.step: int = manifest["step"]
        self.shape: tuple[int, ...] = tuple(manifest["state"]["shape"])
        self.fingerprint: str = manifest["state"]["data"]
        self._network = network
        self._device = device

    @cached_property
    def denoiser(self) -> Denoiser:
        """The denoiser with the averaged (EMA) weights, in evaluation mode."""
        return self.load_denoiser("ema")

    def load_denoiser(self, weights: str = "ema") -> Denoiser:
        """A denoiser with the "ema" or the "raw" weights of the newest checkpoint."""
        if weights not in WEIGHTS:
            raise InkdropError(f"weights must be ema or raw, got {weights!r}")
        part = WEIGHTS[weights]
        tensors = read_checkpoint(self.checkpoint, (part,)).tensors[part]
        denoiser = build_denoiser(self.config, self.shape, self._network)
        try:
            denoiser.network.load_state_dict(tensors)
        except RuntimeError as error:
            reason = str(error).replace("\n\t", " ").split("\n")[0]
            raise InkdropError(
                f"{self.checkpoint / part}.safetensors does not fit the network: {reason}"
            ) from None
        denoiser.network.to(choose_device(self._device)).eval()
        return denoiser

    def cycled_classes(self, first: int, count: int) -> Tensor | None:
        """The classes of images first … first + count - 1 when all take turns; None without."""
        return cycled_classes(self.config, first, count)

    @property
    def metrics(self) -> list[dict[str, Any]]:
        """The rows of metrics.jsonl."""
        return read_metrics(self.path / "metrics.jsonl")

    @property
    def environment(self) -> dict[str, Any]:
        """environment.json."""
        return read_environment(self.path)

    @property
    def example(self) -> Tensor | None:
        """A held-out image, uint8 (C, H, W), or None."""
        path = self.path / "example.png"
        if not path.exists():
            return None
        pixels = np.array(Image.open(path))
        return torch.from_numpy(pixels).reshape(*pixels.shape[:2], -1).permute(2, 0, 1)


def cycled_classes(config: Config, first: int, count: int) -> Tensor | None:
    """Classes for images first … first + count - 1, all in turn; None for a run without classes."""
    classes = config.network.classes if config.network else None
    return None if classes is None else torch.arange(first, first + count) % classes


def read_config(path: Path) -> Config:
    """The configuration of a run folder."""
    file = path / "config.json"
    if not path.exists():
        raise InkdropError(f"there is no run folder {path}; `inkdrop train` makes one")
    if not file.exists():
        raise InkdropError(f"{path} is not a run folder: it has no config.json")
    try:
        content = json.loads(file.read_bytes())
        values = content["config"]
    except (ValueError, KeyError, TypeError):
        raise InkdropError(
            f"{file} is damaged or not inkdrop's: it holds no configuration"
        ) from None
    check_version(file, content)
    try:
        return Config(**values)
    except (InkdropError, TypeError) as error:
        raise InkdropError(f"{file} does not describe a run: {error}") from None


def write_config(path: Path, config: Config) -> None:
    """Write config.json."""
    content = {"format_version": FORMAT_VERSION, "config": config.model_dump(mode="json")}
    replace_synced(path / "config.json", json.dumps(content, indent=1).encode())


def write_example(path: Path, image: Tensor) -> None:
    """Keep an image, uint8 (C, H, W), as example.png, where PNG has such images."""
    if image.shape[0] in (1, 3, 4):
        file = io.BytesIO()
        to_picture(image).save(file, "PNG")
        replace_synced(path / "example.png", file.getvalue())


def read_environment(path: Path) -> dict[str, Any]:
    """environment.json of a run folder; no sessions where there is none."""
    file = path / "environment.json"
    if not file.exists():
        return {"sessions": []}
    content: dict[str, Any] = json.loads(file.read_bytes())
    return content


def _no_checkpoint(folder: Path) -> InkdropError:
    for path in sorted(folder.glob("*")) if folder.exists() else []:
        if path.is_file() and looks_like_pickle(path.read_bytes()[:16]):
            return InkdropError(
                f"{folder} has no checkpoint of inkdrop's, only {path.name}: a pickle, which "
                "inkdrop never loads because a pickle can run any code"
            )
    return InkdropError(
        f"{folder.parent} has no checkpoint yet; give its `inkdrop train` command again to train it"
    )


def load(path: str | Path, network: nn.Module | None = None, device: str = "auto") -> Run:
    """Open a run folder: `load("runs/digits").denoiser`. The arguments are those of `Run`."""
    return Run(path, network, device)
