"""Training goes on: past steps that cannot be taken, within the memory there is, and from runs that
older versions began."""

import io
import math
import os
import shutil
import signal
from collections.abc import Callable, Collection
from pathlib import Path
from typing import Any

import pytest
import torch
from rich.console import Console
from test_trainer import OwnNetwork, assert_same_bits, stop_after, tensors, timeless
from torch import Tensor, nn

import inkdrop
from inkdrop import cli
from inkdrop.checkpoint import finished_checkpoints, newest_checkpoint, read_checkpoint
from inkdrop.config import Config
from inkdrop.data.images import Source
from inkdrop.data.stream import Batch
from inkdrop.errors import InkdropError
from inkdrop.run import read_config
from inkdrop.training import looking as looking_module
from inkdrop.training import trainer as trainer_module
from inkdrop.training.guards import TrainingDiverged
from inkdrop.training.looking import Looking
from inkdrop.training.memory import find_parts
from inkdrop.training.trainer import Trainer, train

MakeConfig = Callable[..., Config]

VERSIONS = Path(__file__).parents[1] / "checkpoints"


def said(trainer: Trainer) -> list[str]:
    """The lines that a trainer of `listened_to` told so far."""
    assert trainer.console is not None
    assert isinstance(trainer.console.file, io.StringIO)
    return trainer.console.file.getvalue().splitlines()


def listened_to(config: Config, out: Path, **keywords: Any) -> Trainer:
    return Trainer(config, out, console=Console(file=io.StringIO()), **keywords)


def steps_kept(out: Path) -> list[int]:
    return [int(path.name[5:]) for path in finished_checkpoints(out / "checkpoints")]


# Steps that cannot be taken


class Failing:
    """An objective that is not a number for the batches of some addresses."""

    def __init__(self, addresses: Collection[int]) -> None:
        self.addresses = addresses
        self.trainer: Trainer | None = None

    def __call__(
        self,
        denoiser: inkdrop.Denoiser,
        x_start: Tensor,
        t: Tensor,
        noise: Tensor,
        condition: Tensor | None = None,
    ) -> Tensor:
        losses = inkdrop.objectives.simple(denoiser, x_start, t, noise, condition)
        assert self.trainer is not None
        address = self.trainer.step + self.trainer.nonfinite.shift
        bad = denoiser.network.training and address in self.addresses
        return losses * math.nan if bad else losses


def failing(
    config: Config, out: Path, source: Source, addresses: Collection[int], choice: str
) -> Trainer:
    """A training that meets a loss that is not a number in the batches of some addresses."""
    config.training.on_nonfinite = choice
    objective = Failing(addresses)
    objective.trainer = listened_to(config, out, source=source, objective=objective)
    return objective.trainer


def test_a_skipped_step_is_left_out_and_all_else_is_as_ever(
    tmp_path: Path, config: MakeConfig, source: Source
) -> None:
    bad = {3, 5, 7, 11}  # before lines of metrics, a checkpoint, and the end
    straight = failing(config(), tmp_path / "straight", source, bad, "skip")
    straight.run()
    assert straight.step == 12
    warnings = [line for line in said(straight) if line.startswith("warning: in step")]
    assert [line.split(":")[1] for line in warnings] == [f" in step {step}" for step in sorted(bad)]
    assert "the step is left out (4 so far)" in warnings[-1]
    moments = tensors(tmp_path / "straight")["optimizer"]
    assert {int(value) for name, value in moments.items() if name.startswith("step/")} == {12 - 4}

    run = inkdrop.load(tmp_path / "straight")
    rows = [row for row in run.metrics if "loss" in row]
    assert [(row["step"], row["skipped_steps"]) for row in rows] == [(4, 1), (8, 2), (12, 1)]
    assert all(math.isfinite(row["loss"]) for row in rows)
    assert [row["step"] for row in run.metrics if "held_out_loss" in row] == [6, 12]
    assert steps_kept(run.path) == [6, 12]

    for step in (5, 8):
        stopped = failing(config(), tmp_path / "stopped", source, bad, "skip")
        stop_after(stopped, step) if step == 5 else stop_on_skip(stopped, step)
        stopped.run()
        assert inkdrop.load(tmp_path / "stopped").step == step
    failing(config(), tmp_path / "stopped", source, bad, "skip").run()
    assert_same_bits(tmp_path / "straight", tmp_path / "stopped")
    assert timeless(inkdrop.load(tmp_path / "stopped").metrics) == timeless(run.metrics)


def stop_on_skip(trainer: Trainer, step: int) -> None:
    """Send this process a signal in the step before `step`, which is skipped."""
    diverged = trainer._diverged

    def watched(*arguments: Any) -> TrainingDiverged:
        if trainer.step + 1 == step:
            os.kill(os.getpid(), signal.SIGTERM)
        return diverged(*arguments)

    trainer._diverged = watched  # type: ignore[method-assign]


def test_when_all_steps_are_skipped_training_stops(
    tmp_path: Path, config: MakeConfig, source: Source
) -> None:
    trainer = failing(config(), tmp_path / "run", source, range(100), "skip")
    with pytest.raises(TrainingDiverged, match=r"in step 10: .* nor were the 10 before it"):
        trainer.run()


def test_a_skipped_step_leaves_no_trace_in_what_a_network_counts(
    tmp_path: Path, config: MakeConfig, source: Source
) -> None:
    class Normalised(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.norm = nn.BatchNorm2d(1)
            self.broken = False

        def forward(self, x: Tensor, t: Tensor, condition: Tensor | None = None) -> Tensor:
            return self.norm(x * math.nan if self.broken else x)

    c = config(on_nonfinite="skip")
    c.network = None
    trainer = Trainer(c, tmp_path / "run", source=source, network=Normalised())
    step = trainer.train_step

    def breaking() -> None:
        trainer.network.broken = trainer.step == 4  # type: ignore[assignment]
        step()

    trainer.train_step = breaking  # type: ignore[method-assign]
    trainer.run()
    saved = tensors(tmp_path / "run")
    for part in ("weights", "ema"):
        assert saved[part]["norm.num_batches_tracked"] == 11
        assert saved[part]["norm.running_mean"].isfinite().all()


def test_going_back_takes_other_batches_and_is_the_same_after_a_stop(
    tmp_path: Path, config: MakeConfig, source: Source
) -> None:
    bad = {8, 10}
    straight = failing(config(), tmp_path / "straight", source, bad, "rollback")
    asked: list[int] = []
    batch = straight.stream.batch

    def watched_batch(address: int) -> Batch:
        asked.append(address)
        return batch(address)

    straight.stream.batch = watched_batch  # type: ignore[method-assign]
    straight.run()
    assert asked == list(range(17))  # none is met again
    warnings = [line for line in said(straight) if line.startswith("warning: in step")]
    assert len(warnings) == 2
    assert "in step 8: the loss is nan" in warnings[0]
    assert "going back to step-00000006 and on with other batches (time 1" in warnings[0]
    assert "in step 7: " in warnings[1]  # which has address 10, after 6 with address 9
    assert "(time 2 of at most 3)" in warnings[1]
    assert straight.step == 12
    assert straight.nonfinite.shift == 5
    run = inkdrop.load(tmp_path / "straight")
    assert [row["step"] for row in run.metrics if "loss" in row] == [4, 8, 12]
    assert [row["step"] for row in run.metrics if "held_out_loss" in row] == [6, 12]

    stopped = failing(config(), tmp_path / "stopped", source, bad, "rollback")
    step = stopped.train_step

    def watched() -> None:
        step()
        if stopped.nonfinite.shift == 5 and stopped.step == 7:
            os.kill(os.getpid(), signal.SIGTERM)

    stopped.train_step = watched  # type: ignore[method-assign]
    stopped.run()
    assert inkdrop.load(tmp_path / "stopped").step == 7
    failing(config(), tmp_path / "stopped", source, bad, "rollback").run()
    assert_same_bits(tmp_path / "straight", tmp_path / "stopped")
    assert timeless(inkdrop.load(tmp_path / "stopped").metrics) == timeless(run.metrics)


def test_there_is_something_to_go_back_to_from_the_first_step_on(
    tmp_path: Path, config: MakeConfig, source: Source
) -> None:
    trainer = failing(config(), tmp_path / "run", source, {2}, "rollback")
    trainer.run()
    assert any("going back to step-00000000" in line for line in said(trainer))
    assert trainer.step == 12


def test_going_back_in_vain_ends(tmp_path: Path, config: MakeConfig, source: Source) -> None:
    trainer = failing(config(), tmp_path / "run", source, range(7, 100), "rollback")
    with pytest.raises(TrainingDiverged, match="going back 3 times has not helped") as caught:
        trainer.run()
    assert "step-00000006 is the last good checkpoint" in str(caught.value)
    assert steps_kept(tmp_path / "run")[-1] == 6


def test_what_is_not_finite_is_told_with_its_layer(
    tmp_path: Path, config: MakeConfig, source: Source
) -> None:
    class Breaking(nn.Identity):
        broken = False

        def forward(self, x: Tensor) -> Tensor:
            return x / 0 if self.broken else x

    class Network(OwnNetwork):
        def __init__(self) -> None:
            super().__init__()
            self.middle = nn.Sequential(nn.Identity(), Breaking())

        def forward(self, x: Tensor, t: Tensor, condition: Tensor | None = None) -> Tensor:
            return self.middle(self.layer(x))

    c = config(warmup_steps=10)
    c.network = None
    trainer = Trainer(c, tmp_path / "run", source=source, network=Network())
    step = trainer.train_step

    def breaking() -> None:
        trainer.network.middle[1].broken = trainer.step == 7  # type: ignore[index,union-attr]
        step()

    trainer.train_step = breaking  # type: ignore[method-assign]
    with pytest.raises(TrainingDiverged) as caught:
        trainer.run()
    message = str(caught.value)
    assert "training diverged in step 7: the loss is" in message
    assert "at timestep" in message
    assert "(bin " in message
    assert "beginning in the layer middle.1, with learning rate 0.008" in message
    assert "\n" not in message


def test_no_checkpoint_holds_what_is_not_finite(
    tmp_path: Path, config: MakeConfig, source: Source
) -> None:
    trainer = Trainer(config(), tmp_path / "run", source=source)
    step = trainer.train_step

    def overflowing() -> None:
        step()
        if trainer.step == 12:
            next(trainer.ema.network.parameters()).data.fill_(math.inf)

    trainer.train_step = overflowing  # type: ignore[method-assign]
    with pytest.raises(InkdropError) as caught:
        trainer.run()
    message = str(caught.value)
    assert "of the ema holds" in message
    assert (
        "the checkpoint was not written, and what was saved before stands; try a lower" in message
    )
    assert "\n" not in message
    assert steps_kept(tmp_path / "run") == [6]
    assert not list((tmp_path / "run" / "checkpoints").glob(".writing-*"))


# Memory


class Hungry(OwnNetwork):
    """A network that there is memory for with two examples at once, in training."""

    def forward(self, x: Tensor, t: Tensor, condition: Tensor | None = None) -> Tensor:
        if self.training and len(x) > 2:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 3.00 GiB.")
        return self.layer(x)


def test_memory_that_runs_out_in_a_step_is_one_line(
    tmp_path: Path, config: MakeConfig, source: Source
) -> None:
    c = config(accumulation=2)
    c.network = None
    with pytest.raises(InkdropError) as caught:
        train(c, tmp_path / "run", source=source, network=Hungry(), progress=False)
    message = str(caught.value)
    assert message.startswith("cpu is out of memory in a step of 4 examples at once (3.0 GiB more")
    assert "--batch-size auto" in message
    assert "--training.accumulation 4" in message
    assert "\n" not in message


def test_parts_that_fit_are_found_and_train_as_if_they_had_been_asked_for(
    tmp_path: Path, config: MakeConfig, source: Source, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As on a GPU, where an attempt fails; a CPU's estimate has tests of its own."""

    def attempting(
        try_step: Callable[[int], None], rows: int, agree: Callable[[int], int], count: int
    ) -> int:
        return find_parts(try_step, rows, torch.device("cpu"), agree)

    monkeypatch.setattr(trainer_module, "find_parts_on_cpu", attempting)
    for accumulation in (4, "auto"):
        c = config(accumulation=accumulation)
        c.network = None
        torch.manual_seed(0)
        network = Hungry()
        trainer = listened_to(c, tmp_path / f"{accumulation}", source=source, network=network)
        trainer.run()
        assert any("of 8 images in 4 parts" in line for line in said(trainer))
    assert_same_bits(tmp_path / "4", tmp_path / "auto")


def test_looking_for_parts_changes_nothing(
    tmp_path: Path, config: MakeConfig, source: Source
) -> None:
    c = config(accumulation="auto")
    trainer = Trainer(c, tmp_path / "auto", source=source)
    trainer.run()
    assert trainer.accumulation == 1
    train(config(), tmp_path / "whole", source=source, progress=False)
    assert_same_bits(tmp_path / "whole", tmp_path / "auto")


# Checkpoints


@pytest.mark.parametrize(("minutes", "kept"), [(1e-9, [10, 11, 12]), (60, [12]), (None, [12])])
def test_checkpoints_are_written_by_the_clock_too(
    tmp_path: Path, config: MakeConfig, source: Source, minutes: float | None, kept: list[int]
) -> None:
    c = config()
    c.logging.checkpoint_every, c.logging.held_out_every = 1000, 1000
    c.logging.checkpoint_minutes = minutes
    train(c, tmp_path / "run", source=source, progress=False)
    assert steps_kept(tmp_path / "run") == kept


@pytest.fixture
def best_at_three(
    tmp_path: Path, config: MakeConfig, source: Source, monkeypatch: pytest.MonkeyPatch
) -> Path:
    """A run that was stopped and went on, and whose held-out loss was lowest after three steps."""
    measured = Looking.held_out_row
    losses = {3: 0.5, 6: 0.9, 9: 0.7, 12: 0.6}

    def row(looking: Looking, step: int) -> dict[str, Any]:
        return measured(looking, step) | {"held_out_loss": losses[step]}

    monkeypatch.setattr(Looking, "held_out_row", row)
    c = config()
    c.logging.held_out_every, c.logging.checkpoint_every, c.logging.keep_checkpoints = 3, 4, 1
    stopped = Trainer(c, tmp_path / "run", source=source)
    stop_after(stopped, 7)
    stopped.run()
    assert steps_kept(tmp_path / "run") == [3, 7]
    train(c, tmp_path / "run", source=source, progress=False)
    return tmp_path / "run"


def test_the_best_checkpoint_is_kept_and_each_can_be_chosen(
    best_at_three: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = best_at_three
    assert steps_kept(run) == [3, 12]
    chosen = {which: inkdrop.load(run, checkpoint=which) for which in ("newest", "best", "3", "12")}
    assert {w: loaded.step for w, loaded in chosen.items()} == {
        "newest": 12,
        "best": 3,
        "3": 3,
        "12": 12,
    }
    weights = {w: next(loaded.denoiser.network.parameters()) for w, loaded in chosen.items()}
    assert torch.equal(weights["best"], weights["3"])
    assert not torch.equal(weights["best"], weights["newest"])
    for wrong in ("7", "worst", "-3", "3.0", ""):
        with pytest.raises(InkdropError, match=r"newest, best or a step .* \(3, 12\), got"):
            inkdrop.load(run, checkpoint=wrong)

    command = ["sample", str(run), "-n", "2", "--steps", "2", "--checkpoint"]
    assert cli.run([*command, "best"]) == 0
    assert cli.run([*command, "7"]) == 2
    message = capsys.readouterr().err
    assert "(3, 12), got '7'" in message
    assert message.count("\n") == 1


# Runs of older versions


@pytest.mark.parametrize("version", [1, 2])
def test_training_goes_on_in_runs_of_every_version(tmp_path: Path, version: int) -> None:
    """The same batches, timesteps and noise as the version that began the run would have drawn."""
    out = tmp_path / "run"
    shutil.copytree(VERSIONS / f"version-{version}", out)
    config = read_config(out)
    assert config.training.steps == 6
    straight = train(config, tmp_path / "straight", progress=False)
    for part in ("weights", "ema", "optimizer"):
        for name, tensor in tensors(out)[part].items():
            torch.testing.assert_close(tensors(straight.path)[part][name], tensor)

    text = (out / "config.json").read_text()
    (out / "config.json").write_text(text.replace('"steps": 6', '"steps": 10'))
    config = read_config(out)
    went_on = train(config, out, progress=False)
    assert went_on.step == 10
    assert went_on.config.training.steps == 10
    longer = train(config, tmp_path / "longer", progress=False)
    for part in ("weights", "ema", "optimizer"):
        for name, tensor in tensors(out)[part].items():
            torch.testing.assert_close(tensors(longer.path)[part][name], tensor)
    steps = [row["step"] for row in went_on.metrics]
    assert steps == [2, 3, 4, 6, 6, 8, 9, 10, 10]
    for mine, theirs in zip(went_on.metrics, longer.metrics, strict=True):
        for name in {"loss", "held_out_loss"} & mine.keys():
            assert mine[name] == pytest.approx(theirs[name], rel=1e-5)
    path = newest_checkpoint(out / "checkpoints")
    assert path is not None
    assert read_checkpoint(path).step == 10


# Early looks


def test_broken_samples_are_told_of_early(
    tmp_path: Path, config: MakeConfig, source: Source, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(looking_module, "SHORTEST", 12)
    trainer = listened_to(config(), tmp_path / "healthy", source=source)
    trainer.run()
    assert not [line for line in said(trainer) if "early look" in line or "no weight" in line]

    broken = listened_to(config(), tmp_path / "broken", source=source)
    monkeypatch.setattr(
        broken.looking, "sampled", lambda count, steps: torch.full((64, 1, 4, 4), -1.0)
    )
    broken.run()
    warnings = [line for line in said(broken) if "early look" in line]
    assert len(warnings) == 2  # steps 1 (of 1% and 5%) and 3
    assert warnings[0].startswith("warning: early look at step 1 (5%): every sample is black")
    assert_same_bits(tmp_path / "healthy", tmp_path / "broken")  # looking changes nothing


def test_a_short_training_is_not_sampled_but_weights_that_stand_still_are_told_of(
    tmp_path: Path, config: MakeConfig, source: Source, monkeypatch: pytest.MonkeyPatch
) -> None:
    def detached(
        denoiser: inkdrop.Denoiser,
        x_start: Tensor,
        t: Tensor,
        noise: Tensor,
        condition: Tensor | None = None,
    ) -> Tensor:
        return 0 * inkdrop.objectives.simple(denoiser, x_start, t, noise, condition)

    monkeypatch.setattr(Looking, "sampled", lambda *_: pytest.fail("sampled"))
    trainer = listened_to(config(steps=4), tmp_path / "run", source=source, objective=detached)
    trainer.run()
    warnings = [line for line in said(trainer) if "no weight has changed yet" in line]
    assert len(warnings) == 1
