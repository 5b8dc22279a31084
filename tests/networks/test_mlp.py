"""The network for points."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from inkdrop.config import MLPConfig
from inkdrop.errors import InkdropError
from inkdrop.networks.embedding import Condition
from inkdrop.networks.mlp import MLP
from inkdrop.randomness import torch_seeded


def awake(dimensions=2, **config):
    """A network past its first step: no weight is zero."""
    with torch_seeded(0, "test"):
        network = MLP(MLPConfig(**{"width": 16, "blocks": 2, **config}), dimensions)
        for parameter in network.parameters():
            nn.init.normal_(parameter, std=0.3)
    return network


def points(n, dimensions=2):
    return torch.randn(n, dimensions, generator=torch.Generator().manual_seed(0))


@given(*(st.integers(*bounds) for bounds in ((1, 9), (1, 20), (1, 3), (1, 5), (0, 3))))
def test_points_of_any_dimension_in_and_out(dimensions, width, blocks, n, waves):
    config = MLPConfig(width=width, blocks=blocks, waves=waves)
    network = MLP(config, dimensions)
    out = network(points(n, dimensions), torch.arange(n))
    assert out.shape == (n, dimensions)
    assert (out == 0).all()  # what an untrained network says


def test_waves_add_the_sine_and_cosine_of_each_to_the_coordinates():
    network, seen = awake(waves=3), []
    network.stem.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0]))
    x = points(4)
    network(x, torch.arange(4))
    phase = x @ network.waves.weight.T
    torch.testing.assert_close(seen[0], torch.cat([x, phase.sin(), phase.cos()], dim=1))


def test_waves_start_short_enough_for_fine_detail():
    with torch_seeded(0, "test"):
        waves = MLP(MLPConfig(waves=2000), 2).waves
    assert waves.weight.std().item() == pytest.approx(4, rel=0.1)
    assert MLP(MLPConfig(), 2).waves is None


def test_every_weight_receives_a_gradient():
    network = awake(classes=3, waves=2)
    network(points(8), torch.arange(8) * 100, torch.arange(8) % 3).square().mean().backward()
    for name, parameter in network.named_parameters():
        assert parameter.grad is not None, name
        assert (parameter.grad != 0).any(), name


def test_point_time_and_class_each_change_the_answer():
    network = awake(classes=3)
    x, t, condition = points(1), torch.tensor([10]), torch.tensor([1])
    before = network(x, t, condition)
    for other in ((x + 1, t, condition), (x, t + 300, condition), (x, t, condition + 1)):
        assert (network(*other) - before).abs().max() > 1e-3


def test_every_block_is_told_the_timestep():
    network = awake(blocks=3)
    x, t = points(1), torch.tensor([10])
    for block in network.blocks:
        weight = block.project.weight.detach().clone()
        nn.init.zeros_(block.project.weight)
        without = network(x, t)
        with torch.no_grad():
            block.project.weight.copy_(weight)
        assert (network(x, t) - without).abs().max() > 1e-3


def test_a_points_answer_does_not_depend_on_the_others():
    network, x, t = awake(), points(6), torch.arange(6) * 100
    together = network(x, t)
    for i in range(6):
        alone = network(x[i : i + 1], t[i : i + 1])
        torch.testing.assert_close(alone, together[i : i + 1], rtol=1e-5, atol=1e-5)


def test_dropout_is_for_training_only():
    network, x, t = awake(dropout=0.5), points(4), torch.zeros(4, dtype=torch.int64)
    with torch_seeded(0, "dropout"):
        assert not torch.equal(network(x, t), network(x, t))
    network.eval()
    assert torch.equal(network(x, t), network(x, t))


def test_there_is_nothing_in_it_that_averaging_weights_could_spoil():
    assert list(awake(classes=3).buffers()) == []


def test_a_class_too_many_or_too_few_is_an_error():
    x, t = points(2), torch.tensor([1, 2])
    with pytest.raises(InkdropError, match="conditional on 3 classes"):
        awake(classes=3)(x, t)
    with pytest.raises(InkdropError, match="takes no condition"):
        awake()(x, t, torch.tensor([1, 2]))


def test_points_have_classes_in_a_condition_but_no_augmentation():
    x, t, classes = points(2), torch.tensor([1, 2]), torch.tensor([0, 2])
    network = awake(classes=3)
    assert torch.equal(network(x, t, Condition(classes)), network(x, t, classes))
    with pytest.raises(InkdropError, match="not told of augmentation"):
        network(x, t, Condition(classes, torch.zeros(2, 9)))
