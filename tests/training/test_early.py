"""An early look tells gross faults for certain, and is silent about good trainings."""

import copy
import math
import re
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

import inkdrop
from inkdrop.config import TrainingConfig, UNetConfig
from inkdrop.data.examples import to_x_start
from inkdrop.data.points import draw
from inkdrop.randomness import normal
from inkdrop.training.early import LOOKS, WeightsWatch, due, initial_share, look
from inkdrop.training.ema import EMA
from inkdrop.training.trainer import Trainer


def blobs(n: int, seed: int = 0, channels: int = 3) -> Tensor:
    """Smooth images of each channel's own mean, (n, channels, 12, 12)."""
    coarse = normal((n, channels, 4, 4), seed, "blobs")
    x = nn.functional.interpolate(coarse, scale_factor=3, mode="bilinear")
    return (0.4 * x + torch.tensor([0.3, 0.0, -0.4])[:channels, None, None]).clamp(-1, 1)


DATA = blobs(256)
GOOD = blobs(64, 1)
NOISE = normal((64, 3, 12, 12), 0, "noise")
STEP = 1000


def test_looks_fall_on_one_step_each_however_long_training_is() -> None:
    for total in (2200, 101, 40):
        found = [fraction for step in range(1, total + 1) if (fraction := due(step, total))]
        assert found == list(LOOKS)
    assert due(22, 2200) == 0.01
    assert due(0, 2200) is None
    assert [due(step, 1) for step in (0, 1)] == [None, 0.25]


@pytest.mark.parametrize("fraction", LOOKS)
def test_good_samples_are_let_pass(fraction: float) -> None:
    assert look(GOOD, DATA, STEP, fraction) == []
    assert look(GOOD[:2], DATA, STEP, fraction) == []  # what two show is chance
    points = draw("points-gmm", 2000)
    assert look(points[:500], points, STEP, fraction) == []
    bright = torch.ones(64, 3, 12, 12)
    assert look(bright, bright, STEP, fraction) == []  # if the data are so


@pytest.mark.parametrize("fraction", LOOKS)
@pytest.mark.parametrize("step", [1, STEP])
@pytest.mark.parametrize(
    ("samples", "what"),
    [
        (torch.where(NOISE > 3, math.nan, GOOD), "samples hold values that are not finite"),
        (-torch.ones(64, 3, 12, 12), "every sample is black"),
        (torch.ones(64, 3, 12, 12), "every sample is white"),
    ],
    ids=["nan", "black", "white"],
)
def test_gross_faults_are_told_at_any_time(
    samples: Tensor, what: str, step: int, fraction: float
) -> None:
    (line,) = look(samples, DATA, step, fraction)
    assert line.startswith(f"early look at step {step:,} ({fraction:.0%}): ")
    assert what in line
    assert "\n" not in line


@pytest.mark.parametrize(
    ("samples", "what"),
    [
        (NOISE.clamp(-1, 1), "still noise"),
        (torch.full((64, 3, 12, 12), 0.2) + 0.01 * NOISE, "of one colour each"),
        ((GOOD + torch.tensor([0.0, 0.5, 0.0])[:, None, None]).clamp(-1, 1), "tint: .* green is"),
        (0.3 * GOOD + 0.7 * GOOD.mean((0, 2, 3), keepdim=True), "vary too little"),
        (3 * GOOD - 2 * GOOD.mean((0, 2, 3), keepdim=True), "vary too much"),
    ],
    ids=["noise", "flat", "tint", "faint", "harsh"],
)
def test_the_rest_is_told_once_there_was_time_to_learn(samples: Tensor, what: str) -> None:
    (line,) = look(samples, DATA, STEP, 0.25)
    assert re.search(what, line)
    assert look(samples, DATA, STEP, 0.01) == []
    assert look(samples, DATA, 20, 0.25) == []


def test_a_coordinate_of_points_that_drifted_is_named() -> None:
    points = draw("points-gmm", 2000)
    (line,) = look(points + torch.tensor([0.0, 0.8]), points, STEP, 0.25)
    assert "the mean of coordinate 1 is" in line


def test_noise_is_only_told_of_where_the_data_are_none() -> None:
    assert look(NOISE, normal((64, 3, 12, 12), 1, "noise"), STEP, 0.25) == []


def test_a_real_training_is_let_pass_and_an_untrained_network_is_not(tmp_path: Path) -> None:
    config = inkdrop.presets.digits()
    config.schedule.timesteps = 50
    config.network = UNetConfig(channels=16, multipliers=(1,), blocks=1)
    config.training = TrainingConfig(steps=60, batch_size=32, learning_rate=5e-3, ema_decay=0.9)
    trainer = Trainer(config, tmp_path / "run")
    data = to_x_start(trainer.train_set.at(range(256)))

    def lines() -> list[str]:
        return look(inkdrop.sample(trainer.averaged, 32, steps=8), data, 200, 0.25)

    assert "still noise" in lines()[0]
    for _ in range(60):
        trainer.train_step()
    assert lines() == []


# Weights that stand still


def test_weights_and_averages_that_move_are_let_pass_and_others_told() -> None:
    network = nn.Linear(3, 3)
    ema = EMA(network, 0.9)
    watch = WeightsWatch(network, ema.network)
    assert "no weight has changed" in str(watch.look(network, ema.network))
    with torch.no_grad():
        network.bias.add_(1)
    assert "averaged weights" in str(watch.look(network, ema.network))
    ema.update(network, 0)
    assert watch.look(network, ema.network) is None


@pytest.mark.parametrize("decay", [0.0, 0.05, 0.1, 0.5, 0.9, 0.998, 0.9999, 1.0])
def test_the_share_of_the_initial_weights_is_what_the_average_keeps(decay: float) -> None:
    initial, zero = nn.Linear(1, 1).double(), nn.Linear(1, 1).double()
    nn.init.ones_(initial.weight)
    nn.init.zeros_(zero.weight)
    ema = EMA(initial, decay)
    for step in range(60):
        assert initial_share(decay, step) == pytest.approx(ema.network.weight.item(), rel=1e-9)
        ema.update(copy.deepcopy(zero), step)
    assert initial_share(decay, 10) < 1.1e-5
