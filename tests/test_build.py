"""A configuration becomes what it describes."""

import pytest
import torch

from inkdrop.build import build_denoiser, build_network, build_schedule, choose_device
from inkdrop.config import Config, MLPConfig, ScheduleConfig, UNetConfig
from inkdrop.diffusion.schedule import NoiseSchedule
from inkdrop.errors import InkdropError
from inkdrop.networks.mlp import MLP

BETAS = (0.1, 0.5, 0.999)
ALPHAS_CUMPROD = (0.9, 0.5, 0.0001)


@pytest.mark.parametrize(
    ("config", "expected"),
    [
        (ScheduleConfig(timesteps=300), NoiseSchedule.linear(300)),
        (
            ScheduleConfig(timesteps=300, beta_start=1e-3, beta_end=0.1),
            NoiseSchedule.linear(300, 1e-3, 0.1),
        ),
        (
            ScheduleConfig(kind="cosine", timesteps=50, s=0.01, max_beta=0.9),
            NoiseSchedule.cosine(50, 0.01, 0.9),
        ),
        (
            ScheduleConfig(kind="sigmoid", timesteps=50, start=0.0, end=3.0, tau=0.7),
            NoiseSchedule.sigmoid(50, 0.0, 3.0, 0.7),
        ),
        (ScheduleConfig(kind="betas", values=BETAS), NoiseSchedule.from_betas(BETAS)),
        (
            ScheduleConfig(kind="alphas-cumprod", values=ALPHAS_CUMPROD),
            NoiseSchedule.from_alphas_cumprod(ALPHAS_CUMPROD),
        ),
    ],
)
def test_every_kind_of_schedule_is_built(config: ScheduleConfig, expected: NoiseSchedule) -> None:
    assert torch.equal(build_schedule(config).betas, expected.betas)


def test_points_get_an_mlp() -> None:
    assert isinstance(build_network(MLPConfig(width=8), (2,)), MLP)


@pytest.mark.parametrize(
    ("network", "shape"), [(UNetConfig(), (2,)), (MLPConfig(), (1, 8, 8)), (UNetConfig(), (8, 8))]
)
def test_a_network_for_other_examples_is_refused(
    network: UNetConfig | MLPConfig, shape: tuple[int, ...]
) -> None:
    with pytest.raises(InkdropError, match="not examples of"):
        build_network(network, shape)


def test_a_module_beside_a_described_network_is_refused() -> None:
    with pytest.raises(InkdropError, match=r"set config\.network = None"):
        build_denoiser(Config(), (1, 8, 8), torch.nn.Identity())


def test_auto_is_a_device_that_is_there() -> None:
    device = choose_device("auto")
    assert torch.zeros(1, device=device).device.type == device.type
    with pytest.raises(InkdropError, match="choose auto, cpu, cuda or mps"):
        choose_device("abacus")
