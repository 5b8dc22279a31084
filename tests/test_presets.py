"""The presets are what they say."""

from pathlib import Path

import pytest
import torch

from inkdrop.build import build_denoiser, build_network
from inkdrop.config import SOURCES
from inkdrop.data.points import draw
from inkdrop.diffusion.samplers import sample
from inkdrop.errors import InkdropError
from inkdrop.presets import PRESETS, fitted, ho_cifar10, preset
from inkdrop.training.trainer import train

POINTS = [name for name in PRESETS if name.startswith("points-")]
SHAPES = {
    "digits": (1, 8, 8),
    "mnist": (1, 28, 28),
    "mnist-gpu": (1, 28, 28),
    "fashion-mnist": (1, 28, 28),
    "cifar10": (3, 32, 32),
    "folder": (3, 32, 32),
    "ho-cifar10": (3, 32, 32),
    **dict.fromkeys(POINTS, (2,)),
}


@pytest.mark.parametrize("name", PRESETS)
def test_a_preset_builds_and_bears_its_name(name: str) -> None:
    config = preset(name)
    assert config.name == name
    denoiser = build_denoiser(config, SHAPES[name])
    assert denoiser.schedule.timesteps == config.schedule.timesteps
    assert config.training.steps


def test_ho_cifar10_is_the_papers_network_and_training() -> None:
    config = ho_cifar10()
    network = build_network(config.network, (3, 32, 32))
    assert sum(p.numel() for p in network.parameters()) == 35_746_307
    training = config.training
    assert (training.steps, training.batch_size) == (800_000, 128)
    assert (training.learning_rate, training.ema_decay) == (2e-4, 0.9999)
    assert config.data.horizontal_flip
    denoiser = build_denoiser(config, (3, 32, 32))
    assert denoiser.prediction == "noise"
    assert denoiser.schedule.betas[[0, -1]].tolist() == pytest.approx([1e-4, 0.02])


@pytest.mark.parametrize(("side", "count"), [(6, 10), (16, 500), (32, 5000), (64, 10**6), (200, 9)])
def test_a_fitted_network_takes_images_of_its_size(side: int, count: int) -> None:
    config = fitted(preset("folder"), (3, side, side // 2), count)
    network = build_network(config.network, (3, side, side // 2))
    x = torch.zeros(2, 3, side, side // 2)
    assert network(x, torch.zeros(2, dtype=torch.int64)).shape == x.shape
    assert 3000 <= config.training.steps <= 20_000


def test_every_distribution_of_points_has_a_preset() -> None:
    assert [name for name in SOURCES if name.startswith("points-")] == POINTS
    assert [preset(name).data.source for name in POINTS] == POINTS


def test_a_few_steps_already_bring_points_towards_the_truth(tmp_path: Path) -> None:
    config = preset("points-two-moons")
    config.training.steps = 300
    config.logging.samples_every = 0
    run = train(config, tmp_path / "run", progress=False)
    x = sample(run.denoiser, n=500, steps=20)
    truth = draw("points-two-moons", 5000)
    # True points lie 0.01 from the nearest of these on average, and pure noise 0.37.
    assert torch.cdist(x, truth).min(dim=1).values.mean() < 0.1
    spread = [truth[:, 0].std().item(), truth[:, 1].std().item()]
    assert x.std(dim=0).tolist() == pytest.approx(spread, rel=0.15)


def test_a_preset_is_made_anew_each_time() -> None:
    preset("digits").training.steps = 1
    assert preset("digits").training.steps != 1


def test_an_unknown_preset_is_told_the_nearest() -> None:
    with pytest.raises(InkdropError, match="did you mean 'cifar10'"):
        preset("cifar-10")
