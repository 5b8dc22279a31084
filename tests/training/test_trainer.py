"""The training loop: exact, resumable, and never past a loss that is not a number."""

import json
import math
import os
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor, nn

import inkdrop
from inkdrop.checkpoint import newest_checkpoint, read_checkpoint
from inkdrop.config import Config, DataConfig
from inkdrop.data.images import ImageSet, Source
from inkdrop.data.points import PointSet
from inkdrop.data.streaming import StreamedImages
from inkdrop.errors import InkdropError
from inkdrop.training.guards import TrainingDiverged
from inkdrop.training.trainer import Trainer, train

MakeConfig = Callable[..., Config]


def tensors(out: Path) -> dict[str, dict[str, Tensor]]:
    path = newest_checkpoint(out / "checkpoints")
    assert path is not None
    return read_checkpoint(path).tensors


def assert_same_bits(a: Path, b: Path) -> None:
    first, second = tensors(a), tensors(b)
    for part in ("weights", "ema", "optimizer"):
        assert first[part].keys() == second[part].keys()
        for name, tensor in first[part].items():
            assert torch.equal(tensor, second[part][name]), (part, name)


def timeless(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    return [
        {k: v for k, v in row.items() if k not in ("images_per_second", "data_wait", "seconds")}
        for row in rows
    ]


def stop_after(trainer: Trainer, step: int, number: signal.Signals = signal.SIGTERM) -> None:
    """Send this process a signal as soon as `step` steps are done."""
    train_step = trainer.train_step

    def watched() -> None:
        train_step()
        if trainer.step == step:
            os.kill(os.getpid(), number)

    trainer.train_step = watched  # type: ignore[method-assign]


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
@pytest.mark.parametrize("step", [1, 5, 6, 11])
def test_a_run_that_was_stopped_goes_on_bit_for_bit(
    tmp_path: Path, config: MakeConfig, source: Source, step: int, number: signal.Signals
) -> None:
    straight = train(config(), tmp_path / "straight", source=source)
    stopped = Trainer(config(), tmp_path / "stopped", source=source)
    stop_after(stopped, step, number)
    stopped.run()
    assert stopped.stopped_by is number
    assert inkdrop.load(tmp_path / "stopped").step == step
    resumed = train(config(), tmp_path / "stopped", source=source)
    assert resumed.step == straight.step == 12
    assert_same_bits(tmp_path / "straight", tmp_path / "stopped")
    assert timeless(resumed.metrics) == timeless(straight.metrics)


def test_a_signal_after_the_last_look_of_a_step_is_saved_too(
    tmp_path: Path, config: MakeConfig, source: Source
) -> None:
    trainer = Trainer(config(), tmp_path / "run", source=source)
    due = trainer._due

    def late(every: int) -> bool:
        answer = due(every)
        if trainer.step == 5:
            trainer.stopped_by = signal.SIGTERM
        return answer

    trainer._due = late  # type: ignore[method-assign]
    trainer.run()
    assert inkdrop.load(tmp_path / "run").step == trainer.step == 5


def test_images_of_ones_own_are_named_so_in_the_configuration(
    tmp_path: Path, config: MakeConfig, source: Source
) -> None:
    train(config(), tmp_path / "run", source=source)
    assert inkdrop.load(tmp_path / "run").config.data.source == "own"
    with pytest.raises(InkdropError, match="images are the user's own"):
        train(inkdrop.load(tmp_path / "run").config, tmp_path / "run")


def test_a_run_that_crashed_goes_on_from_its_checkpoint_bit_for_bit(
    tmp_path: Path, config: MakeConfig, source: Source
) -> None:
    train(config(), tmp_path / "straight", source=source)
    crashing = Trainer(config(), tmp_path / "crashed", source=source)
    train_step = crashing.train_step

    def crash_at_ten() -> None:
        if crashing.step == 10:
            raise RuntimeError("crashed")
        train_step()

    crashing.train_step = crash_at_ten  # type: ignore[method-assign]
    with pytest.raises(RuntimeError, match="crashed"):
        crashing.run()
    resumed = train(config(), tmp_path / "crashed", source=source)
    assert_same_bits(tmp_path / "straight", tmp_path / "crashed")
    assert timeless(resumed.metrics) == timeless(inkdrop.load(tmp_path / "straight").metrics)


def test_the_signal_handlers_are_put_back(
    tmp_path: Path, config: MakeConfig, source: Source
) -> None:
    before = signal.getsignal(signal.SIGINT), signal.getsignal(signal.SIGTERM)
    train(config(), tmp_path / "run", source=source)
    assert (signal.getsignal(signal.SIGINT), signal.getsignal(signal.SIGTERM)) == before


def test_the_same_seed_trains_the_same_weights_and_another_seed_others(
    tmp_path: Path, config: MakeConfig, source: Source
) -> None:
    torch.manual_seed(1)
    train(config(), tmp_path / "a", source=source)
    torch.manual_seed(2)  # the global state plays no part
    train(config(), tmp_path / "b", source=source)
    assert_same_bits(tmp_path / "a", tmp_path / "b")
    other = config()
    other.seed = 1
    train(other, tmp_path / "c", source=source)
    with pytest.raises(AssertionError):
        assert_same_bits(tmp_path / "a", tmp_path / "c")


def test_training_leaves_the_global_random_state_alone(
    tmp_path: Path, config: MakeConfig, source: Source
) -> None:
    before = torch.get_rng_state()
    train(config(), tmp_path / "run", source=source)
    assert torch.equal(torch.get_rng_state(), before)


def test_accumulation_computes_the_same_step_in_parts(
    tmp_path: Path, config: MakeConfig, source: Source
) -> None:
    gradients = []
    for accumulation in (1, 2, 4):
        c = config(accumulation=accumulation, gradient_clip=None)
        c.network.dropout = 0.0  # type: ignore[union-attr]
        trainer = Trainer(c, tmp_path / str(accumulation), source=source)
        trainer.network.double()
        trainer.ema.network.double()
        nn.init.constant_(trainer.network.head[2].weight, 0.1)  # zero lets no gradient through
        trainer.train_step()
        gradients.append(torch.cat([p.grad.flatten() for p in trainer.parameters.values()]))
    for parts in gradients[1:]:
        torch.testing.assert_close(parts, gradients[0], rtol=1e-5, atol=1e-8)


def test_the_loss_falls_and_the_averaged_weights_follow(
    tmp_path: Path, config: MakeConfig, source: Source
) -> None:
    run = train(config(steps=120, ema_decay=0.9), tmp_path / "run", source=source)
    losses = [row["loss"] for row in run.metrics if "loss" in row]
    held_out = [row["held_out_loss"] for row in run.metrics if "held_out_loss" in row]
    assert losses[-1] < 0.8 * losses[0]
    assert held_out[-1] < held_out[0]


def test_the_held_out_loss_is_on_fixed_images_timesteps_and_noise(
    tmp_path: Path, config: MakeConfig, source: Source
) -> None:
    rows = []
    for seed in (0, 1):
        c = config()
        c.seed = seed
        trainer = Trainer(c, tmp_path / str(seed), source=source)
        for p in trainer.ema.network.parameters():
            torch.nn.init.constant_(p, 0.01)
        assert trainer.held_out is not None
        rows.append(trainer.looking.held_out_row(trainer.step))
    assert rows[0] == rows[1]
    assert rows[0]["held_out_loss"] > 0


def test_every_line_of_metrics_says_all(tmp_path: Path, config: MakeConfig, source: Source) -> None:
    run = train(config(), tmp_path / "run", source=source)
    lines = (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()
    rows = [json.loads(line) for line in lines]
    training = [row for row in rows if "loss" in row]
    assert [row["step"] for row in training] == [4, 8, 12]
    for row in training:
        assert set(row) == {
            "step",
            "loss",
            "learning_rate",
            "gradient_norm",
            "images_per_second",
            "data_wait",
            "seconds",
            "loss_by_timestep",
        }
        assert len(row["loss_by_timestep"]) == 10
        assert row["gradient_norm"] > 0
    assert [row["step"] for row in rows if "held_out_loss" in row] == [6, 12]
    assert rows == run.metrics


def test_the_loss_in_timestep_bins_averages_to_the_loss(
    tmp_path: Path, config: MakeConfig, source: Source
) -> None:
    trainer = Trainer(config(), tmp_path / "run", source=source)
    for _ in range(3):
        trainer.train_step()
    window = trainer.window
    assert sum(window.bin_count) == 3 * 8
    assert sum(window.bin_loss) / 24 == pytest.approx(window.loss / 3, rel=1e-6)


def test_gradients_are_clipped_to_the_norm_asked_for(
    tmp_path: Path, config: MakeConfig, source: Source
) -> None:
    trainer = Trainer(config(gradient_clip=1e-3), tmp_path / "run", source=source)
    trainer.train_step()
    norm = math.sqrt(sum(float((p.grad**2).sum()) for p in trainer.parameters.values()))
    assert norm == pytest.approx(1e-3, rel=1e-3)
    assert trainer.window.gradient_norm > 1e-3


def test_epochs_are_passes_over_the_training_images(
    tmp_path: Path, config: MakeConfig, source: Source
) -> None:
    trainer = Trainer(config(steps=None, epochs=3), tmp_path / "run", source=source)
    assert len(trainer.train_set) == 45
    assert trainer.total == math.ceil(3 * 45 / 8)


def test_a_conditional_network_is_given_the_labels(
    tmp_path: Path, config: MakeConfig, source: Source
) -> None:
    c = config()
    c.network.classes = 3  # type: ignore[union-attr]
    run = train(c, tmp_path / "run", source=source)
    x_t, t = torch.randn(1, 1, 4, 4), 10
    answers = [run.denoiser(x_t, t, torch.tensor([i])).x_start for i in range(3)]
    assert not torch.equal(answers[0], answers[1])
    assert run.conditions(2, 3).tolist() == [2, 0, 1]  # type: ignore[union-attr]


@pytest.mark.parametrize(
    ("classes", "labels", "expected"),
    [(2, True, "set network.classes to 3"), (3, False, "no labels")],
)
def test_classes_that_the_images_do_not_have_are_refused(
    tmp_path: Path, config: MakeConfig, source: Source, classes: int, labels: bool, expected: str
) -> None:
    c = config()
    c.network.classes = classes  # type: ignore[union-attr]
    if not labels:
        source = Source(ImageSet(source.train.images, None, "unlabelled"), None)
    with pytest.raises(InkdropError, match=expected):
        Trainer(c, tmp_path / "run", source=source)


class OwnNetwork(nn.Module):
    """Someone's own module, which may break down."""

    def __init__(self, breaks_at: int | None = None, value: float = math.nan) -> None:
        super().__init__()
        self.layer = nn.Conv2d(1, 1, 3, padding=1)
        self.register_buffer("seen", torch.zeros(()))
        self.calls = 0
        self.breaks_at = breaks_at
        self.value = value

    def forward(self, x: Tensor, t: Tensor, condition: Tensor | None = None) -> Tensor:
        if self.training:
            self.calls += 1
            self.seen += 1
            if self.calls - 1 == self.breaks_at:
                return self.layer(x) * self.value
        return self.layer(x)


def test_a_network_of_ones_own_trains_and_loads(
    tmp_path: Path, config: MakeConfig, source: Source
) -> None:
    c = config()
    c.network = None
    run = train(c, tmp_path / "run", source=source, network=OwnNetwork())
    assert inkdrop.sample(run.denoiser, n=2, steps=3).shape == (2, 1, 4, 4)
    again = inkdrop.load(tmp_path / "run", network=OwnNetwork())
    x_t = torch.randn(2, 1, 4, 4)
    assert torch.equal(again.denoiser(x_t, 3).x_start, run.denoiser(x_t, 3).x_start)
    with pytest.raises(InkdropError, match="pass the module"):
        inkdrop.load(tmp_path / "run").denoiser  # noqa: B018
    with pytest.raises(InkdropError, match="does not fit the network"):
        inkdrop.load(tmp_path / "run", network=nn.Conv2d(1, 1, 1)).denoiser  # noqa: B018


def test_tied_weights_are_saved_and_loaded(
    tmp_path: Path, config: MakeConfig, source: Source
) -> None:
    class Tied(OwnNetwork):
        def __init__(self) -> None:
            super().__init__()
            self.twin = self.layer

    c = config(steps=2)
    c.network = None
    run = train(c, tmp_path / "run", source=source, network=Tied())
    weights = inkdrop.load(run.path, network=Tied()).load_denoiser("raw").network.state_dict()
    assert torch.equal(weights["twin.weight"], weights["layer.weight"])


def test_buffers_are_copied_and_not_averaged(
    tmp_path: Path, config: MakeConfig, source: Source
) -> None:
    c = config(steps=5)
    c.network = None
    train(c, tmp_path / "run", source=source, network=OwnNetwork())
    saved = tensors(tmp_path / "run")
    assert saved["ema"]["seen"] == saved["weights"]["seen"] == 5
    assert not torch.equal(saved["ema"]["layer.weight"], saved["weights"]["layer.weight"])


@pytest.mark.parametrize(
    ("value", "what"), [(math.nan, "loss is nan"), (math.inf, "loss is (inf|nan)")]
)
def test_a_loss_that_is_not_finite_stops_before_the_step(
    tmp_path: Path, config: MakeConfig, source: Source, value: float, what: str
) -> None:
    c = config()
    c.network = None
    trainer = Trainer(c, tmp_path / "run", source=source, network=OwnNetwork(8, value))
    with pytest.raises(TrainingDiverged, match=what) as caught:
        trainer.run()
    message = str(caught.value)
    assert "in step 8" in message
    assert "at timestep" in message
    assert "(bin " in message
    assert "learning rate 0.01" in message
    assert "step-00000006 is the last good checkpoint" in message
    assert "\n" not in message
    assert all(p.isfinite().all() for p in trainer.parameters.values())
    assert trainer.step == 8
    assert inkdrop.load(tmp_path / "run", network=OwnNetwork()).step == 6


def test_a_gradient_that_is_not_finite_stops_before_the_step(
    tmp_path: Path, config: MakeConfig, source: Source
) -> None:
    class Spike(torch.autograd.Function):
        @staticmethod
        def forward(ctx: Any, x: Tensor) -> Tensor:
            return x.clone()

        @staticmethod
        def backward(ctx: Any, gradient: Tensor) -> Tensor:  # type: ignore[override]
            return gradient / 0

    class SpikingNetwork(OwnNetwork):
        def forward(self, x: Tensor, t: Tensor, condition: Tensor | None = None) -> Tensor:
            return Spike.apply(super().forward(x, t, condition))

    c = config()
    c.network = None
    trainer = Trainer(c, tmp_path / "run", source=source, network=SpikingNetwork())
    with pytest.raises(TrainingDiverged, match="gradient's norm is"):
        trainer.run()
    assert all(p.isfinite().all() for p in trainer.parameters.values())


def test_mixed_precision_trains_in_float32_weights(
    tmp_path: Path, config: MakeConfig, source: Source
) -> None:
    train(config(steps=3, precision="bfloat16"), tmp_path / "run", source=source)
    weights = tensors(tmp_path / "run")["weights"]
    assert {tensor.dtype for tensor in weights.values()} == {torch.float32}


def test_tensorboard_gets_the_figures(tmp_path: Path, config: MakeConfig, source: Source) -> None:
    c = config()
    c.logging.tensorboard = True
    train(c, tmp_path / "run", source=source)
    assert list((tmp_path / "run" / "tensorboard").glob("events*"))


def test_grids_of_samples_are_written_as_training_goes(
    tmp_path: Path, config: MakeConfig, source: Source
) -> None:
    c = config()
    c.logging.samples_every = 6
    train(c, tmp_path / "run", source=source)
    grids = sorted((tmp_path / "run" / "samples" / "training").iterdir())
    assert [g.name for g in grids] == ["step-00000006.png", "step-00000012.png"]


def test_what_does_not_change_the_result_may_change_on_the_way(
    tmp_path: Path, config: MakeConfig, source: Source
) -> None:
    train(config(), tmp_path / "straight", source=source)
    stopped = Trainer(config(), tmp_path / "stopped", source=source)
    stop_after(stopped, 5)
    stopped.run()
    c = config()
    c.logging.checkpoint_every = 2
    train(c, tmp_path / "stopped", source=source)
    assert_same_bits(tmp_path / "straight", tmp_path / "stopped")


def test_another_configuration_in_the_folder_is_shown_and_refused(
    tmp_path: Path, config: MakeConfig, source: Source
) -> None:
    train(config(), tmp_path / "run", source=source)
    before = {p: p.read_bytes() for p in (tmp_path / "run").rglob("*") if p.is_file()}
    other = config(learning_rate=0.5)
    other.schedule.timesteps = 30
    with pytest.raises(InkdropError) as caught:
        Trainer(other, tmp_path / "run", source=source)
    message = str(caught.value)
    assert "schedule.timesteps: 20 → 30; training.learning_rate: 0.01 → 0.5" in message
    with pytest.raises(InkdropError, match="holds this run already"):
        Trainer(config(), tmp_path / "run", source=source, resume="never")
    assert before == {p: p.read_bytes() for p in (tmp_path / "run").rglob("*") if p.is_file()}


def test_a_finished_run_is_left_as_it_is(
    tmp_path: Path, config: MakeConfig, source: Source
) -> None:
    train(config(), tmp_path / "run", source=source)
    before = {p: p.stat().st_mtime_ns for p in (tmp_path / "run").rglob("*")}
    assert train(config(), tmp_path / "run", source=source).step == 12
    assert before == {p: p.stat().st_mtime_ns for p in (tmp_path / "run").rglob("*")}


def test_other_images_are_refused_when_going_on(
    tmp_path: Path, config: MakeConfig, source: Source
) -> None:
    train(config(), tmp_path / "run", source=source)
    others = Source(ImageSet(source.train.images.flip(0), None, "others"), None)
    with pytest.raises(InkdropError, match="trained on other images"):
        Trainer(config(), tmp_path / "run", source=others)


@pytest.mark.parametrize("kind", ["file", "folder"])
def test_a_place_in_use_is_refused(
    tmp_path: Path, config: MakeConfig, source: Source, kind: str
) -> None:
    out = tmp_path / "used"
    if kind == "file":
        out.write_text("mine")
    else:
        out.mkdir()
        (out / "thesis.txt").write_text("mine")
    with pytest.raises(InkdropError, match=r"choose another --out"):
        Trainer(config(), out, source=source)


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        ({"steps": None}, "length of training is not given"),
        ({"device": "abacus"}, "device 'abacus' cannot be used"),
    ],
)
def test_a_wrong_setting_is_refused_before_anything_is_written(
    tmp_path: Path, config: MakeConfig, source: Source, change: dict[str, Any], expected: str
) -> None:
    with pytest.raises(InkdropError, match=expected):
        Trainer(config(**change), tmp_path / "run", source=source)
    with pytest.raises(InkdropError, match="resume must be auto or never"):
        Trainer(config(), tmp_path / "run", source=source, resume="maybe")
    assert not (tmp_path / "run").exists()


# Points


@pytest.mark.parametrize("step", [1, 6, 11])
def test_training_on_points_goes_on_bit_for_bit(
    tmp_path: Path, points_config: MakeConfig, points: Source, step: int
) -> None:
    straight = train(points_config(), tmp_path / "straight", source=points)
    stopped = Trainer(points_config(), tmp_path / "stopped", source=points)
    stop_after(stopped, step)
    stopped.run()
    assert inkdrop.load(tmp_path / "stopped").step == step
    resumed = train(points_config(), tmp_path / "stopped", source=points)
    assert resumed.step == straight.step == 12
    assert_same_bits(tmp_path / "straight", tmp_path / "stopped")
    assert timeless(resumed.metrics) == timeless(straight.metrics)


def test_points_are_learnt(tmp_path: Path, points_config: MakeConfig, points: Source) -> None:
    run = train(points_config(steps=200, ema_decay=0.9), tmp_path / "run", source=points)
    losses = [row["loss"] for row in run.metrics if "loss" in row]
    held_out = [row["held_out_loss"] for row in run.metrics if "held_out_loss" in row]
    assert sum(losses[-5:]) < 0.8 * sum(losses[:5])
    assert held_out[-1] < 0.9 * held_out[0]


def test_a_step_is_taken_on_the_points_themselves(
    tmp_path: Path, points_config: MakeConfig, points: Source
) -> None:
    trainer = Trainer(points_config(), tmp_path / "run", source=points)
    x_start = trainer.stream.batch(0).x_start
    assert torch.equal(x_start, trainer.train_set.values[trainer.stream.indices(0)])


def test_a_run_on_points_loads_and_samples(
    tmp_path: Path, points_config: MakeConfig, points: Source
) -> None:
    train(points_config(), tmp_path / "run", source=points)
    run = inkdrop.load(tmp_path / "run")
    assert run.shape == (2,)
    assert inkdrop.sample(run.denoiser, n=3, steps=4).shape == (3, 2)


def test_previews_of_points_are_scatters_and_there_is_no_example_image(
    tmp_path: Path, points_config: MakeConfig, points: Source
) -> None:
    c = points_config()
    c.logging.samples_every = 6
    run = train(c, tmp_path / "run", source=points)
    pictures = sorted((run.path / "samples" / "training").iterdir())
    assert [p.name for p in pictures] == ["step-00000006.png", "step-00000012.png"]
    assert run.example is None


def test_points_outside_the_plane_train_without_previews(
    tmp_path: Path, points_config: MakeConfig
) -> None:
    c = points_config(steps=2)
    c.logging.samples_every = 1
    points = PointSet(torch.arange(60, dtype=torch.float32).reshape(20, 3) / 30, None, "line")
    run = train(c, tmp_path / "run", source=Source(points, None))
    assert run.shape == (3,)
    assert not (run.path / "samples").exists()


def test_the_first_lines_say_what_is_trained_on(
    tmp_path: Path,
    config: MakeConfig,
    source: Source,
    points_config: MakeConfig,
    points: Source,
) -> None:
    on_images = Trainer(config(), tmp_path / "images", source=source)._summary()
    assert "patterns from memory: 45 training images, 5 held out, 4×4, 1 channel\n" in on_images
    assert "12 steps of 8 images" in on_images
    on_points = Trainer(points_config(), tmp_path / "points", source=points)._summary()
    assert "rings from memory: 45 training points, 5 held out, 2 dimensions\n" in on_points
    assert "12 steps of 8 points" in on_points


@pytest.mark.parametrize("change", [{"horizontal_flip": True}, {"shift": 1}])
def test_points_cannot_be_flipped_or_shifted(
    tmp_path: Path, points_config: MakeConfig, points: Source, change: dict[str, Any]
) -> None:
    c = points_config()
    for name, value in change.items():
        setattr(c.data, name, value)
    with pytest.raises(InkdropError, match="points cannot be flipped, shifted"):
        Trainer(c, tmp_path / "run", source=points)
    assert not (tmp_path / "run").exists()


def test_other_points_and_points_without_labels_are_refused_in_their_own_words(
    tmp_path: Path, points_config: MakeConfig, points: Source
) -> None:
    train(points_config(), tmp_path / "run", source=points)
    others = Source(PointSet(-points.train.values, None, "others"), None)
    with pytest.raises(InkdropError, match="trained on other points than these"):
        Trainer(points_config(), tmp_path / "run", source=others)
    c = points_config()
    c.network.classes = 3  # type: ignore[union-attr]
    with pytest.raises(InkdropError, match="the points of others have no labels"):
        Trainer(c, tmp_path / "conditional", source=others)


@pytest.mark.parametrize("sampler", ["uniform", "stratified", "loss-aware"])
def test_every_timestep_sampler_goes_on_bit_for_bit(
    tmp_path: Path, config: MakeConfig, source: Source, sampler: str
) -> None:
    def bound() -> Config:
        made = config(batch_size=40, steps=16)
        made.objective, made.timestep_sampler = "variational-bound", sampler
        return made

    straight = Trainer(bound(), tmp_path / "straight", source=source)
    straight.run()
    for step in (5, 15):
        folder = tmp_path / f"stopped-{step}"
        stopped = Trainer(bound(), folder, source=source)
        stop_after(stopped, step)
        stopped.run()
        train(bound(), folder, source=source)
        assert_same_bits(tmp_path / "straight", folder)
    if sampler == "loss-aware":  # its history had filled, or the last stop would show nothing
        chances = straight.timestep_sampler.probabilities()  # type: ignore[attr-defined]
        assert chances.max() > 2 * chances.min()


def test_losses_are_weighed_as_the_timestep_sampler_says(
    tmp_path: Path, config: MakeConfig, source: Source, monkeypatch: pytest.MonkeyPatch
) -> None:
    trainers = [Trainer(config(), tmp_path / name, source=source) for name in ("a", "b")]
    draw = trainers[1].timestep_sampler.draw
    monkeypatch.setattr(
        trainers[1].timestep_sampler,
        "draw",
        lambda count, generator: draw(count, generator)._replace(weight=np.full(count, 2.0)),
    )
    for trainer in trainers:
        trainer.config.training.gradient_clip = None
        trainer.train_step()
    once, twice = (dict(t.network.named_parameters()) for t in trainers)
    for name in once:
        torch.testing.assert_close(twice[name].grad, 2 * once[name].grad)
    assert trainers[1].window.loss == pytest.approx(2 * trainers[0].window.loss)


def test_a_learned_variance_is_trained_saved_and_sampled(
    tmp_path: Path, config: MakeConfig, source: Source
) -> None:
    made = config(steps=30)
    made.objective, made.variance = "hybrid", "learned"
    run = train(made, tmp_path / "run", source=source)
    assert run.denoiser.learned_variance
    x = inkdrop.sample(run.denoiser, 3, "ancestral-learned", steps=5)
    assert x.shape == (3, 1, 4, 4)
    fraction = run.denoiser(torch.randn(2, 1, 4, 4), 5).variance_fraction
    assert fraction is not None
    assert not torch.allclose(fraction, torch.full_like(fraction, 0.5))


def test_an_objective_of_ones_own_is_used_and_asked_for_again(
    tmp_path: Path, config: MakeConfig, source: Source
) -> None:
    flat = inkdrop.objectives.snr_weighted(lambda snr: snr * 0 + 1)
    run = train(config(), tmp_path / "own", source=source, objective=flat)
    assert run.config.objective == "own"
    train(config(), tmp_path / "simple", source=source)
    for mine, known in zip(
        run.metrics, inkdrop.load(tmp_path / "simple").metrics, strict=True
    ):  # the same but for rounding, since all weights are 1
        for name in {"loss", "held_out_loss"} & mine.keys():
            assert mine[name] == pytest.approx(known[name], rel=1e-4)
    config_again = config()
    config_again.objective = "own"
    with pytest.raises(InkdropError, match="pass the function"):
        train(config_again, tmp_path / "own", source=source)


# Data in files


@pytest.fixture
def photos(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Forty images of 4x4 in three folders, which are their classes."""
    monkeypatch.setenv("INKDROP_CACHE", str(tmp_path / "cache"))
    pixels = np.random.default_rng(0).integers(0, 256, (40, 4, 4, 3), dtype=np.uint8)
    for i, image in enumerate(pixels):
        folder = tmp_path / "photos" / f"class {i % 3}"
        folder.mkdir(parents=True, exist_ok=True)
        Image.fromarray(image).save(folder / f"{i}.png")
    return tmp_path / "photos"


def on_files(made: Config, *paths: Path, **data: Any) -> Config:
    made.data = DataConfig(source="files", path=tuple(map(str, paths)), **data)
    return made


def test_conditional_takes_the_number_of_classes_from_the_data(
    tmp_path: Path, config: MakeConfig, photos: Path
) -> None:
    made = on_files(config(), photos)
    made.conditional = True
    run = train(made, tmp_path / "run")
    assert run.config.network is not None
    assert run.config.network.classes == 3
    train_set = Trainer(made, tmp_path / "run").train_set
    assert train_set.classes == 3
    assert train(made, tmp_path / "run").step == run.step  # the same configuration goes on
    first, second = (
        inkdrop.sample(run.denoiser, 2, steps=3, condition=torch.tensor([label, label]))
        for label in (0, 1)
    )
    assert not torch.equal(first, second)


def test_classes_that_files_do_not_have_are_asked_for_in_vain(
    tmp_path: Path, config: MakeConfig, photos: Path
) -> None:
    made = on_files(config(), photos / "class 0")
    made.conditional = True
    with pytest.raises(InkdropError, match="class 0 has no labels, so a network cannot be told"):
        train(made, tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_what_was_found_left_out_and_done_is_written_down(
    tmp_path: Path, config: MakeConfig, photos: Path
) -> None:
    (photos / "class 1/empty.png").write_bytes(b"")
    with pytest.raises(InkdropError, match="1 of 41 images cannot be used"):
        train(on_files(config(), photos), tmp_path / "run")
    assert not (tmp_path / "run").exists()
    train(on_files(config(), photos, bad_images="skip", size=(3,)), tmp_path / "run")
    written = json.loads((tmp_path / "run" / "data.json").read_text())
    (bad,) = written["check"]["train"]["bad"]
    assert bad["place"] == "class 1/empty.png"
    assert written["check"]["train"]["count"] == 41
    assert written["transform"]["height"] == 3
    assert written["proposed"][0] == "size 3×3, as asked"


def stopped_and_straight(
    tmp_path: Path, before: Config, after: Config, step: int = 7
) -> tuple[Path, Path]:
    """A run of one configuration, and one that another went on with after `step` steps."""
    train(before, tmp_path / "straight")
    stopped = Trainer(before, tmp_path / "stopped")
    stop_after(stopped, step)
    stopped.run()
    resumed = train(after, tmp_path / "stopped")
    assert resumed.step == before.training.steps
    return tmp_path / "straight", tmp_path / "stopped"


AUGMENTED = {"horizontal_flip": True, "shift": 1}


@pytest.mark.parametrize(("before", "after"), [("resident", "mapped"), ("mapped", "resident")])
def test_where_images_are_kept_may_change_on_the_way_and_changes_no_bit(
    tmp_path: Path, config: MakeConfig, photos: Path, before: str, after: str
) -> None:
    made = [on_files(config(), photos, memory=memory, **AUGMENTED) for memory in (before, after)]
    straight, stopped = stopped_and_straight(tmp_path, *made)
    assert_same_bits(straight, stopped)


@pytest.mark.parametrize("step", [1, 6, 11])
def test_streaming_goes_on_bit_for_bit(
    tmp_path: Path, config: MakeConfig, photos: Path, step: int
) -> None:
    made = on_files(config(), photos, streaming=True, window=10, **AUGMENTED)
    made.conditional = True
    straight, stopped = stopped_and_straight(tmp_path, made, made, step)
    assert_same_bits(straight, stopped)
    assert not (tmp_path / "cache" / "images").exists()


def test_another_order_is_another_training(
    tmp_path: Path, config: MakeConfig, photos: Path
) -> None:
    train(on_files(config(), photos, streaming=True), tmp_path / "run")
    with pytest.raises(InkdropError, match="streaming"):
        train(on_files(config(), photos), tmp_path / "run")


def test_images_varied_in_ways_the_network_is_told_of_train_go_on_and_sample(
    tmp_path: Path, config: MakeConfig, photos: Path
) -> None:
    made = on_files(config(), photos, non_leaking=0.5)
    made.conditional = True
    straight, stopped = stopped_and_straight(tmp_path, made, made)
    assert_same_bits(straight, stopped)
    run = inkdrop.load(straight)
    assert any("held_out_loss" in row for row in run.metrics)
    x = inkdrop.sample(run.denoiser, 2, steps=3, condition=torch.tensor([0, 2]))
    assert x.shape == (2, 3, 4, 4)
    assert x.isfinite().all()
    told = [name for name in tensors(straight)["weights"] if "augment" in name]
    assert told
    before = dict(Trainer(made, tmp_path / "new").network.named_parameters())
    for name in told:
        assert not torch.equal(before[name].cpu(), tensors(straight)["weights"][name])


def test_streamed_images_that_are_held_out_are_decoded_once(
    tmp_path: Path, config: MakeConfig, photos: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    trainer = Trainer(on_files(config(), photos, streaming=True), tmp_path / "run")
    assert trainer.held_out is not None
    before = trainer.looking.held_out_row(trainer.step)
    monkeypatch.setattr(StreamedImages, "at", lambda *_: pytest.fail("decoded again"))
    assert trainer.looking.held_out_row(trainer.step) == before
