"""A tiny network that draws something, and a run folder that never was trained."""

from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from inkdrop.config import Config, UNetConfig
from inkdrop.diffusion.denoiser import Denoiser
from inkdrop.diffusion.schedule import NoiseSchedule
from inkdrop.networks.unet import UNet
from inkdrop.randomness import torch_seeded
from inkdrop.report.page import write_report
from inkdrop.run import Run


def tiny_denoiser(
    shape: tuple[int, int, int] = (1, 8, 8), classes: int | None = None, timesteps: int = 20
) -> Denoiser:
    config = UNetConfig(channels=8, multipliers=(1,), blocks=1, classes=classes)
    with torch_seeded(0, "test network"):
        network = UNet(config, shape[0], shape[1:])
        for p in network.head.parameters():
            torch.nn.init.normal_(p, std=0.1)
    schedule = NoiseSchedule.cosine(timesteps)
    return Denoiser(network.eval(), schedule, "x_start", shape)


@pytest.fixture
def make_denoiser() -> Callable[..., Denoiser]:
    return tiny_denoiser


@pytest.fixture
def run(tmp_path: Path) -> SimpleNamespace:
    """What `write_report` asks of a run, with plain attributes that a test can change."""
    return pretended_run(tmp_path)


@pytest.fixture(scope="session")
def reported(tmp_path_factory: pytest.TempPathFactory) -> SimpleNamespace:
    """Such a run whose report is written, to be looked at only."""
    run = pretended_run(tmp_path_factory.mktemp("reported"))
    write_report(run)  # type: ignore[arg-type]
    return run


def pretended_run(folder: Path) -> SimpleNamespace:
    run = SimpleNamespace(
        path=folder / "runs" / "a name",
        config=Config(
            name="ink & <b>paper</b>",
            prediction="x_start",
            schedule={"kind": "cosine", "timesteps": 20},
            training={"steps": 1234, "batch_size": 32},
        ),
        step=1234,
        shape=(1, 8, 8),
        metrics=[
            {
                "step": 617 * k,
                "loss": 0.5 / k,
                "images_per_second": 1500.0,
                "seconds": 61.0 * k,
                "loss_by_timestep": [None, *(0.1 * i / k for i in range(1, 10))],
            }
            for k in (1, 2)
        ]
        + [{"step": 1234, "held_out_loss": 0.31, "held_out_loss_by_timestep": [0.3] * 10}],
        environment={
            "sessions": [
                {
                    "started": "2025-01-01T00:00:00+00:00",
                    "command": "inkdrop train digits --out '<script>alert(1)</script>'",
                    "python": "3.11.2",
                    "platform": "Linux-6",
                    "processor": "A Processor",
                    "device": "cpu",
                    "threads": 2,
                    "versions": {"inkdrop": "0.1.0", "torch": "2.13.0", "numpy": None},
                }
            ]
        },
        denoiser=tiny_denoiser(),
        example=torch.arange(64, dtype=torch.uint8).reshape(1, 8, 8) * 4,
    )
    run.conditions = lambda first, count: Run.conditions(run, first, count)
    return run
