"""Small trainings that take a second."""

from collections.abc import Callable
from typing import Any

import pytest
import torch

from inkdrop.config import (
    Config,
    LoggingConfig,
    MLPConfig,
    ScheduleConfig,
    TrainingConfig,
    UNetConfig,
)
from inkdrop.data.images import ImageSet, Source
from inkdrop.data.points import PointSet, draw


@pytest.fixture
def source() -> Source:
    """Fifty images of 4×4, with three classes."""
    pixels = torch.arange(50 * 16).reshape(50, 1, 4, 4) * 37 % 256
    return Source(ImageSet(pixels.to(torch.uint8), torch.arange(50) % 3, "patterns"), None)


@pytest.fixture
def points() -> Source:
    """Fifty points in the plane, with three classes."""
    return Source(PointSet(draw("points-rings", 50), torch.arange(50) % 3, "rings"), None)


@pytest.fixture
def points_config(config: Callable[..., Config]) -> Callable[..., Config]:
    """A configuration for points that trains in a second; keywords go to training."""

    def make(**training: Any) -> Config:
        made = config(**training)
        made.network = MLPConfig(width=8, blocks=2, dropout=0.1)
        return made

    return make


@pytest.fixture
def config() -> Callable[..., Config]:
    """A configuration that trains in a second; keywords go to training."""

    def make(**training: Any) -> Config:
        settings: dict[str, Any] = {"steps": 12, "batch_size": 8, "learning_rate": 1e-2}
        return Config(
            name="tiny",
            schedule=ScheduleConfig(kind="cosine", timesteps=20),
            network=UNetConfig(channels=4, multipliers=(1, 2), blocks=1, dropout=0.1),
            training=TrainingConfig(**(settings | training)),
            logging=LoggingConfig(
                metrics_every=4, held_out_every=6, checkpoint_every=6, samples_every=0
            ),
        )

    return make
