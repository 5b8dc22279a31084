"""A trial measures what training would take, and leaves nothing behind."""

from pathlib import Path

import pytest
import torch

from inkdrop.config import Config, UNetConfig
from inkdrop.errors import InkdropError
from inkdrop.networks.unet import UNet
from inkdrop.training import trial as trials
from inkdrop.training.trial import STEPS, WARM_UP, trial


@pytest.fixture
def tiny() -> Config:
    made = Config(name="tiny", network=UNetConfig(channels=4, multipliers=(1, 2), blocks=1))
    made.training.steps, made.training.batch_size = 500, 8
    made.training.device = "cpu"
    return made


def test_all_steps_take_as_long_as_the_median_of_those_that_were_timed(
    tiny: Config, monkeypatch: pytest.MonkeyPatch
) -> None:
    took = iter([100] * WARM_UP + [1] * (STEPS // 2) + [2] + [50] * (STEPS // 2 - 1))
    clock = iter(moment for seconds in took for moment in (0.0, seconds))
    monkeypatch.setattr(trials.time, "perf_counter", lambda: next(clock))
    measured = trial(tiny, (3, 8, 8))
    assert measured.images_per_second == 8 / 2
    assert measured.seconds == 500 * 2
    assert measured.device == "cpu"
    assert measured.memory > 10e6


@pytest.mark.parametrize("shape", [(1, 8, 8), (4, 6, 10)])
def test_the_parameters_are_those_of_the_network(tiny: Config, shape: tuple[int, ...]) -> None:
    network = UNet(tiny.network, shape[0], shape[1:], shape[0])
    assert trial(tiny, shape).parameters == sum(p.numel() for p in network.parameters())


def test_a_length_in_epochs_is_refused_since_noise_has_none(tiny: Config) -> None:
    tiny.training.steps, tiny.training.epochs = None, 2
    with pytest.raises(InkdropError, match=r"training\.steps"):
        trial(tiny, (1, 4, 4))


def test_nothing_is_changed_or_left(
    tiny: Config, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    tiny.conditional = True
    before, state = tiny.model_copy(deep=True), torch.get_rng_state()
    trial(tiny, (1, 4, 4))
    assert tiny == before
    assert list(tmp_path.iterdir()) == []
    assert torch.equal(torch.get_rng_state(), state)
