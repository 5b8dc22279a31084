"""Evaluations while training choose the best checkpoint and change nothing of what is learnt."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

import inkdrop
from inkdrop.checkpoint import best_checkpoint, finished_checkpoints, read_checkpoint, read_manifest
from inkdrop.config import Config
from inkdrop.data.images import ImageSet, Source
from inkdrop.errors import InkdropError
from inkdrop.training.looking import Looking
from inkdrop.training.trainer import Trainer, train

MakeConfig = Callable[..., Config]


@pytest.fixture
def evaluated(config: MakeConfig) -> Config:
    """Evaluated every three steps, with forty samples."""
    made = config()
    made.logging.evaluate_every, made.logging.evaluate_samples = 3, 40
    made.logging.evaluate_steps = 3
    return made


def rows(folder: Path) -> dict[int, Any]:
    lines = map(json.loads, (folder / "metrics.jsonl").read_text().splitlines())
    return {row["step"]: row for row in lines if "frechet_distance" in row}


def weights(folder: Path) -> dict[str, torch.Tensor]:
    return read_checkpoint(finished_checkpoints(folder / "checkpoints")[-1]).tensors["ema"]


def test_evaluations_are_written_down_and_change_nothing(
    tmp_path: Path, config: MakeConfig, evaluated: Config, source: Source
) -> None:
    train(config(), tmp_path / "plain", source=source, progress=False)
    train(evaluated, tmp_path / "run", source=source, progress=False)
    before, after = weights(tmp_path / "plain"), weights(tmp_path / "run")
    assert all(torch.equal(before[name], after[name]) for name in before)
    found = rows(tmp_path / "run")
    assert sorted(found) == [3, 6, 9, 12]
    for row in found.values():
        assert row["frechet_distance"] > 0
        assert (row["evaluation_samples"], row["extractor"]) == (40, "pixels")


def test_the_distance_is_that_of_samples_of_the_averaged_weights(
    tmp_path: Path, evaluated: Config, source: Source
) -> None:
    from inkdrop.evaluation.distances import frechet_distance

    run = train(evaluated, tmp_path / "run", source=source, progress=False)
    x = inkdrop.sample(run.denoiser, 40, steps=3)
    samples = inkdrop.to_uint8(x).flatten(1).double().numpy()
    real = run.load_data(source=source).train.values.flatten(1).double().numpy()
    expected = frechet_distance(real, samples)
    assert rows(tmp_path / "run")[12]["frechet_distance"] == pytest.approx(expected, rel=1e-3)


@pytest.fixture
def best_at_six(monkeypatch: pytest.MonkeyPatch) -> None:
    """Distances that are least after six steps, while the held-out loss goes on falling."""
    distances = {3: 4.0, 6: 1.0, 9: 3.0, 12: 2.0}
    measured, losses = Looking.evaluation_row, Looking.held_out_row
    monkeypatch.setattr(
        Looking,
        "evaluation_row",
        lambda self, step: measured(self, step) | {"frechet_distance": distances[step]},
    )
    monkeypatch.setattr(
        Looking, "held_out_row", lambda self, step: losses(self, step) | {"held_out_loss": 1 / step}
    )


@pytest.mark.usefixtures("best_at_six")
def test_the_best_checkpoint_is_the_one_of_the_least_distance(
    tmp_path: Path, evaluated: Config, source: Source
) -> None:
    evaluated.logging.keep_checkpoints = 1
    train(evaluated, tmp_path / "run", source=source, progress=False)
    best = best_checkpoint(tmp_path / "run" / "checkpoints")
    assert best is not None
    manifest = read_manifest(best)
    assert (manifest["step"], manifest["state"]["best_by"]) == (6, "frechet_distance")
    assert manifest["state"]["frechet_distance"] == 1.0
    assert inkdrop.load(tmp_path / "run", checkpoint="best").step == 6
    kept = [read_manifest(p)["step"] for p in finished_checkpoints(best.parent)]
    assert kept == [6, 12]


@pytest.mark.usefixtures("best_at_six")
def test_going_on_remembers_the_least_distance(
    tmp_path: Path, evaluated: Config, source: Source
) -> None:
    stopped = Trainer(evaluated, tmp_path / "run", source=source)
    step = stopped.train_step

    def interrupted() -> None:
        step()
        if stopped.step == 7:
            stopped._stop(__import__("signal").SIGTERM)

    stopped.train_step = interrupted  # type: ignore[method-assign]
    stopped.run()
    again = Trainer(evaluated, tmp_path / "run", source=source)
    assert again.step == 7
    assert again.best_frechet == 1.0
    again.run()
    assert inkdrop.load(tmp_path / "run", checkpoint="best").step == 6
    assert sorted(rows(tmp_path / "run")) == [3, 6, 9, 12]


@pytest.mark.usefixtures("best_at_six")
def test_without_evaluations_the_held_out_loss_decides_again(
    tmp_path: Path, evaluated: Config, source: Source
) -> None:
    evaluated.training.steps = 6
    train(evaluated, tmp_path / "run", source=source, progress=False)
    evaluated.training.steps, evaluated.logging.evaluate_every = 12, 0
    (tmp_path / "run" / "config.json").write_text(
        (tmp_path / "run" / "config.json").read_text().replace('"steps": 6', '"steps": 12')
    )
    train(evaluated, tmp_path / "run", source=source, progress=False)
    assert inkdrop.load(tmp_path / "run", checkpoint="best").step == 12


def test_samples_that_are_not_finite_are_never_the_best(
    tmp_path: Path, evaluated: Config, source: Source, monkeypatch: pytest.MonkeyPatch
) -> None:
    broken = torch.full((40, 1, 4, 4), torch.nan)
    monkeypatch.setattr(Looking, "_own_samples", lambda *_: broken)
    evaluated.logging.samples_every = 0
    train(evaluated, tmp_path / "run", source=source, progress=False)
    assert all(row["frechet_distance"] is None for row in rows(tmp_path / "run").values())
    assert best_checkpoint(tmp_path / "run" / "checkpoints") is None


def test_what_cannot_be_evaluated_is_told_before_anything_is_written(
    tmp_path: Path, evaluated: Config, source: Source, points: Source
) -> None:
    evaluated.logging.evaluate_samples = 16
    with pytest.raises(InkdropError, match="16 samples cannot show how 16 features"):
        Trainer(evaluated, tmp_path / "run", source=source)
    evaluated.logging.evaluate_samples = 40
    few = Source(source.train.take(range(15)), None)
    with pytest.raises(InkdropError, match="14 real images cannot show"):
        Trainer(evaluated, tmp_path / "run", source=few)
    evaluated.network = inkdrop.config.MLPConfig(width=8, blocks=1)
    with pytest.raises(InkdropError, match="rings holds points"):
        Trainer(evaluated, tmp_path / "run", source=points)
    assert not (tmp_path / "run").exists()


def test_the_kept_classifier_of_the_data_is_used(
    tmp_path: Path, evaluated: Config, source: Source, monkeypatch: pytest.MonkeyPatch
) -> None:
    from inkdrop.classifying import train_classifier
    from inkdrop.training.looking import Frechet

    monkeypatch.setenv("INKDROP_CACHE", str(tmp_path / "cache"))
    trainer = Trainer(evaluated, tmp_path / "run", source=source)
    setting, train_set = trainer.looking.setting, trainer.train_set
    assert isinstance(train_set, ImageSet)
    assert trainer.held_out is not None
    assert Frechet(train_set, setting).name == "pixels"
    train_classifier(train_set, trainer.held_out, epochs=1, device="cpu")
    assert Frechet(train_set, setting).name == "classifier"
