"""A configuration becomes what it describes."""

import pytest
import torch

import inkdrop
from inkdrop import config as config_module
from inkdrop.build import (
    build_denoiser,
    build_network,
    build_objective,
    build_schedule,
    choose_device,
)
from inkdrop.config import OBJECTIVES, Config, MLPConfig, ScheduleConfig, UNetConfig
from inkdrop.diffusion import objectives, timestep_sampling
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


@pytest.mark.parametrize("objective", OBJECTIVES)
def test_every_objective_of_a_configuration_can_be_built_and_trained(objective: str) -> None:
    config = inkdrop.Config(objective=objective, schedule={"timesteps": 30})
    config.variance = "learned" if objective == "hybrid" else "posterior"
    denoiser = build_denoiser(config, (1, 8, 8))
    x = torch.rand(3, 1, 8, 8) * 2 - 1
    losses = build_objective(config)(denoiser, x, torch.tensor([0, 7, 29]), torch.randn_like(x))
    assert losses.shape == (3,)
    losses.sum().backward()
    assert all(
        p.grad is not None and p.grad.isfinite().all() for p in denoiser.network.parameters()
    )


def test_the_constants_of_objectives_are_the_configurations() -> None:
    x, t = torch.rand(2, 1, 8, 8) * 2 - 1, torch.tensor([0, 9])
    for objective, field, value in (
        ("min-snr", "min_snr_gamma", 1.0),
        ("p2", "p2_gamma", 2.0),
        ("p2", "p2_k", 3.0),
        ("hybrid", "bound_weight", 1.0),
    ):
        config = inkdrop.Config(objective=objective, schedule={"timesteps": 30})
        config.variance = "learned" if objective == "hybrid" else "posterior"
        denoiser = build_denoiser(config, (1, 8, 8))
        before = build_objective(config)(denoiser, x, t, torch.ones_like(x))
        setattr(config.weighting, field, value)
        after = build_objective(config)(denoiser, x, t, torch.ones_like(x))
        assert not torch.equal(before, after), field


def test_a_learned_variance_and_its_objective_need_each_other() -> None:
    with pytest.raises(InkdropError, match="cannot teach a learned variance"):
        build_objective(inkdrop.Config(variance="learned"))
    with pytest.raises(InkdropError, match="needs a network that learns its variance"):
        build_objective(inkdrop.Config(objective="hybrid"))
    with pytest.raises(InkdropError, match="pass the function"):
        build_objective(inkdrop.Config(objective="own"))


def test_the_configuration_knows_the_timestep_samplers_there_are() -> None:
    assert set(config_module.TIMESTEP_SAMPLERS) == set(timestep_sampling.TIMESTEP_SAMPLERS)
    assert set(config_module.VARIANCES) == set(objectives.VARIANCES)
