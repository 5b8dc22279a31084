import pytest
import torch
from test_trainer import assert_same_bits, stop_after
from torch import nn

from inkdrop.config import UNetConfig
from inkdrop.errors import InkdropError
from inkdrop.networks.unet import UNet
from inkdrop.training.muon import Muon, matrices_of, orthogonal
from inkdrop.training.trainer import Trainer, train


@pytest.mark.parametrize("shape", [(16, 16), (16, 300), (300, 16), (64, 576)])
def test_an_update_has_the_same_vectors_and_equal_values(shape):
    generator = torch.Generator().manual_seed(0)
    matrix = torch.randn(shape, generator=generator, dtype=torch.float64) ** 3
    found, other = orthogonal(torch.stack([matrix, matrix.flip(0)]))
    assert found.shape == shape
    torch.testing.assert_close(other, found.flip(0))
    u, s, vh = torch.linalg.svd(matrix, full_matrices=False)
    within = u.T @ found @ vh.T  # diagonal: the same singular vectors
    torch.testing.assert_close(within, torch.diag(within.diagonal()), rtol=0, atol=1e-8)
    large = s > 0.02 * s[0]
    assert large.sum() > 10
    assert (within.diagonal()[large] > 0.5).all()
    assert (within.diagonal() < 1.3).all()


def test_a_gradient_of_zero_moves_nothing():
    layer = nn.Linear(32, 32)
    before = layer.weight.detach().clone()
    optimizer = Muon(layer.parameters(), [layer.weight], lr=0.1)
    layer.weight.grad, layer.bias.grad = torch.zeros_like(layer.weight), torch.zeros(32)
    optimizer.step()
    assert torch.equal(layer.weight, before)


def test_a_step_is_as_large_as_one_of_adamw():
    layer = nn.Conv2d(32, 64, 3)
    before = layer.weight.detach().clone()
    layer.weight.grad = torch.randn(layer.weight.shape, generator=torch.Generator().manual_seed(0))
    Muon([layer.weight], [layer.weight], lr=0.01).step()
    moved = (layer.weight - before).square().mean().sqrt() / 0.01
    assert 0.1 < moved < 0.3


def test_the_rest_is_adamw_to_the_bit():
    ours, theirs = nn.Linear(8, 8), nn.Linear(8, 8)
    theirs.load_state_dict(ours.state_dict())
    options = {"lr": 0.01, "betas": (0.8, 0.95), "weight_decay": 0.1}
    optimizers = (
        Muon(ours.parameters(), [], **options),
        torch.optim.AdamW(theirs.parameters(), fused=True, **options),
    )
    x = torch.linspace(-1, 1, 40).reshape(5, 8)
    for _ in range(5):
        for layer, optimizer in zip((ours, theirs), optimizers, strict=True):
            optimizer.zero_grad()
            layer(x).square().sum().backward()
            optimizer.step()
    assert torch.equal(ours.weight, theirs.weight)
    assert torch.equal(ours.bias, theirs.bias)


def test_weight_decay_is_apart_from_the_gradient():
    layer = nn.Linear(32, 32)
    before = layer.weight.detach().clone()
    layer.weight.grad = torch.zeros_like(layer.weight)
    Muon([layer.weight], [layer.weight], lr=0.1, weight_decay=0.5).step()
    torch.testing.assert_close(layer.weight, before * 0.95)


def test_matrices_are_layers_of_some_width():
    network = UNet(UNetConfig(channels=32, multipliers=(1,), blocks=1, classes=20), 1, (8, 8))
    names = {id(parameter): name for name, parameter in network.named_parameters()}
    found = {names[id(parameter)] for parameter in matrices_of(network)}
    assert {"middle.0.conv1.weight", "middle.0.attention.qkv.weight"} <= found
    assert "embedding.mlp.0.weight" in found
    assert not {"stem.weight", "head.2.weight", "embedding.class_embedding.weight"} & found
    assert not any(name.endswith("bias") or ".norm" in name for name in found)


def test_training_learns_and_resumes_to_the_bit(config, tmp_path):
    wanted = config(steps=6)
    wanted.training.optimizer = "muon"
    wanted.network = UNetConfig(channels=16, multipliers=(1,), blocks=1)
    train(wanted, tmp_path / "straight", progress=False)
    stopped = Trainer(wanted, tmp_path / "stopped")
    stop_after(stopped, 3)
    stopped.run()
    assert stopped.step == 3
    train(wanted, tmp_path / "stopped", progress=False)
    assert_same_bits(tmp_path / "straight", tmp_path / "stopped")


def test_it_needs_whole_matrices(config, tmp_path, monkeypatch):
    wanted = config(steps=2)
    wanted.training.optimizer = "muon"
    monkeypatch.setattr("inkdrop.training.trainer.Parallel", _InParts)
    with pytest.raises(InkdropError, match="muon needs whole matrices"):
        Trainer(wanted, tmp_path / "run")
    assert not (tmp_path / "run").exists()


def _InParts(network, *_, **__):  # noqa: N802 - stands for a class
    class InParts:
        sharded = True
        module = network

        def place(self, other):
            pass

    InParts.network = network
    return InParts()
