"""Deterministic operations are switched on for training alone, and change no bit on a CPU."""

import io
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch
from rich.console import Console
from test_trainer import assert_same_bits, stop_after

from inkdrop.config import Config
from inkdrop.data.images import Source
from inkdrop.training.deterministic import cost, deterministic
from inkdrop.training.trainer import Trainer, train

MakeConfig = Callable[..., Config]


@pytest.fixture(autouse=True)
def own_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    """The setting of cuBLAS that is made here does not outlive the test."""
    monkeypatch.setenv("CUBLAS_WORKSPACE_CONFIG", ":16:8")


def settings() -> tuple[bool, ...]:
    return (
        torch.are_deterministic_algorithms_enabled(),
        torch.backends.cudnn.deterministic,
        torch.backends.cudnn.benchmark,
        torch.utils.deterministic.fill_uninitialized_memory,
    )


@pytest.fixture
def unusual() -> Iterator[tuple[bool, ...]]:
    """Settings that are not torch's own."""
    before = settings()
    torch.backends.cudnn.benchmark = True
    torch.utils.deterministic.fill_uninitialized_memory = True
    yield settings()
    torch.backends.cudnn.benchmark = before[2]
    torch.utils.deterministic.fill_uninitialized_memory = before[3]


def test_the_settings_are_put_back_also_after_an_error(unusual: tuple[bool, ...]) -> None:
    inside = []

    def fail() -> None:
        with deterministic(True):
            inside.append(settings())
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        fail()
    assert inside == [(True, True, False, False)]
    assert settings() == unusual
    with deterministic(False):
        assert settings() == unusual


def test_the_cost_is_a_number_and_each_way_is_measured_in_turn() -> None:
    seen: list[bool] = []
    more = cost(
        lambda: seen.append(torch.are_deterministic_algorithms_enabled()), torch.device("cpu")
    )
    assert -1 < more < 1e6
    assert seen[:4] == [False, True, False, True]
    assert len(seen) == 12
    assert not torch.are_deterministic_algorithms_enabled()


def test_on_a_cpu_it_costs_nothing_and_may_change_on_the_way(
    tmp_path: Path, config: MakeConfig, source: Source
) -> None:
    train(config(), tmp_path / "straight", source=source, progress=False)
    console = Console(file=io.StringIO())
    trainer = Trainer(config(deterministic=True), tmp_path / "run", source=source, console=console)
    inside: list[tuple[bool, ...]] = []
    step = trainer.train_step

    def watched() -> None:
        inside.append(settings())
        step()

    before = settings()
    trainer.train_step = watched  # type: ignore[method-assign]
    stop_after(trainer, 5)
    trainer.run()
    assert set(inside) == {(True, True, False, False)}
    assert settings() == before
    told = console.file.getvalue()  # type: ignore[attr-defined]
    assert "deterministic: a CPU repeats bit for bit anyway, so that it costs nothing" in told
    train(config(), tmp_path / "run", source=source, progress=False)
    assert_same_bits(tmp_path / "straight", tmp_path / "run")
