import io
from functools import partial

import pytest
import torch
from rich.console import Console
from test_trainer import assert_same_bits

import inkdrop
from inkdrop.config import UNetConfig
from inkdrop.errors import InkdropError
from inkdrop.training import trainer as trainer_module
from inkdrop.training.trainer import Trainer


@pytest.fixture(autouse=True)
def quick(monkeypatch):
    """Trace as ever, but run what was traced as it is: generating C++ takes a minute."""
    monkeypatch.setattr(torch, "compile", partial(torch.compile, backend="eager"))


def trained(config, out):
    told = io.StringIO()
    Trainer(config, out, console=Console(file=told, width=200)).run()
    return told.getvalue()


@pytest.fixture
def small(config):
    def make(compile):
        made = config(steps=3, compile=compile)
        made.network = UNetConfig(channels=4, multipliers=(1,), blocks=1)
        made.logging.metrics_every = 1
        return made

    return make


def losses(path):
    return torch.tensor([row["loss"] for row in inkdrop.load(path).metrics if "loss" in row])


def test_a_compiled_network_learns_the_same(small, tmp_path):
    assert "compiled in" in trained(small("on"), tmp_path / "on")
    assert "compiled in" not in trained(small("off"), tmp_path / "off")
    torch.testing.assert_close(losses(tmp_path / "on"), losses(tmp_path / "off"))


class Broken(torch.nn.Module):
    def __init__(self, network):
        super().__init__()
        self.network = network

    def forward(self, *_):
        raise RuntimeError("no compiler\nand much more")


def test_where_compiling_fails_training_goes_on_without(small, tmp_path, monkeypatch):
    trained(small("auto"), tmp_path / "plain")
    monkeypatch.setattr(Trainer, "_compiling_pays", True)
    monkeypatch.setattr(trainer_module, "compiled", Broken)
    told = trained(small("auto"), tmp_path / "run")
    assert "warning: not compiled, which would be faster (no compiler)" in told
    assert "much more" not in told
    assert_same_bits(tmp_path / "plain", tmp_path / "run")
    with pytest.raises(RuntimeError, match="no compiler"):
        trained(small("on"), tmp_path / "asked")


def test_a_network_in_parts_is_not_compiled(small, tmp_path, monkeypatch):
    trainer = Trainer(small("off"), tmp_path / "run")
    trainer.folder.let_go()
    trainer.parallel.sharded = True
    monkeypatch.setattr(trainer_module, "Parallel", lambda *_, **__: trainer.parallel)
    with pytest.raises(InkdropError, match="a network in parts is not compiled"):
        Trainer(small("on"), tmp_path / "other")
