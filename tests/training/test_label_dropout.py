"""Labels are left out now and then in training, so that a network also knows what it is untold."""

import json
import math
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

import inkdrop
from inkdrop.checkpoint import newest_checkpoint, read_checkpoint
from inkdrop.config import Config, differences
from inkdrop.data.images import ImageSet, Source
from inkdrop.data.points import PointSet, draw_told
from inkdrop.diffusion import objectives
from inkdrop.errors import InkdropError
from inkdrop.networks.embedding import Condition
from inkdrop.training.trainer import Trainer, train

MakeConfig = Callable[..., Config]


def written(out: Path) -> Any:
    return json.loads((out / "config.json").read_text())["config"]


def weights(out: Path) -> dict[str, Tensor]:
    path = newest_checkpoint(out / "checkpoints")
    assert path is not None
    tensors = read_checkpoint(path).tensors
    return {f"{part}/{name}": t for part in tensors for name, t in tensors[part].items()}


def assert_same_weights(a: Path, b: Path) -> None:
    first, second = weights(a), weights(b)
    assert first.keys() == second.keys()
    for name, tensor in first.items():
        assert torch.equal(tensor, second[name]), name


def conditional(config: Config, dropout: float | None = None) -> Config:
    config.conditional, config.label_dropout = True, dropout
    return config


def told(trainer: Trainer, steps: int) -> list[Tensor]:
    """What the network is told of each example of some batches."""
    seen: list[Tensor] = []

    def watching(denoiser: Any, x: Tensor, t: Tensor, noise: Tensor, condition: Any) -> Tensor:
        seen.append(condition.classes if isinstance(condition, Condition) else condition)
        return objectives.simple(denoiser, x, t, noise, condition)

    trainer._objective = watching
    for _ in range(steps):
        trainer.train_step()
    return seen


def vector_points(n: int = 200) -> Source:
    points, vectors = draw_told("points-dial", n)
    return Source(PointSet(points, vectors, "dial"), None)


def test_a_new_conditional_run_leaves_out_a_tenth_of_its_labels(
    tmp_path: Path, config: MakeConfig, source: Source
) -> None:
    given = conditional(config())
    run = train(given, tmp_path / "new", source=source)
    assert written(tmp_path / "new")["label_dropout"] == 0.1
    assert given.label_dropout is None  # the caller's own is left alone
    assert run.denoiser.network.embedding.class_embedding.num_embeddings == 4
    assert train(given, tmp_path / "new", source=source).step == run.step  # it agrees with any
    train(conditional(config(), 0.0), tmp_path / "none", source=source)
    assert written(tmp_path / "none")["label_dropout"] == 0.0
    train(config(), tmp_path / "untold", source=source)
    assert written(tmp_path / "untold")["label_dropout"] is None
    with pytest.raises(InkdropError, match=r"label_dropout: 0\.1 → 0\.3"):
        train(conditional(config(), 0.3), tmp_path / "new", source=source)


def test_a_run_of_before_goes_on_without(
    tmp_path: Path, config: MakeConfig, source: Source
) -> None:
    made = conditional(config(), 0.0)
    train(made, tmp_path / "whole", source=source)
    shutil.copytree(tmp_path / "whole", tmp_path / "before")
    shutil.rmtree(tmp_path / "before" / "checkpoints" / "step-00000012")
    content = json.loads((tmp_path / "before" / "config.json").read_text())
    del content["config"]["label_dropout"]
    del content["config"]["network"]["vector"]
    (tmp_path / "before" / "config.json").write_text(json.dumps(content))
    assert inkdrop.load(tmp_path / "before").step == 6
    run = train(conditional(config()), tmp_path / "before", source=source)
    assert run.step == 12
    assert written(tmp_path / "before")["label_dropout"] is None
    assert_same_weights(tmp_path / "whole", tmp_path / "before")
    with pytest.raises(InkdropError, match=r"label_dropout: None → 0\.1"):
        train(conditional(config(), 0.1), tmp_path / "before", source=source)


def test_resuming_is_exact(tmp_path: Path, config: MakeConfig, source: Source) -> None:
    made = conditional(config(), 0.5)
    train(made, tmp_path / "whole", source=source)
    shutil.copytree(tmp_path / "whole", tmp_path / "half")
    shutil.rmtree(tmp_path / "half" / "checkpoints" / "step-00000012")
    train(conditional(config()), tmp_path / "half", source=source)
    assert_same_weights(tmp_path / "whole", tmp_path / "half")


def test_as_many_are_left_out_as_is_asked_for_and_the_rest_are_as_they_were(
    tmp_path: Path, config: MakeConfig, source: Source
) -> None:
    made = conditional(config(batch_size=40, steps=60), 0.3)
    seen = told(trainer := Trainer(made, tmp_path / "run", source=source), 60)
    labels = torch.stack(seen)
    share = (labels < 0).double().mean().item()
    assert share == pytest.approx(0.3, abs=3.5 * math.sqrt(0.21 / labels.numel()))
    assert not torch.equal(labels[0] < 0, labels[1] < 0)
    true = torch.stack([trainer.stream.batch(step).labels for step in range(60)])
    assert torch.equal(torch.where(labels < 0, true, labels), true)
    # In parts, and beside augmentation, they are the same.
    made = conditional(config(batch_size=40, steps=60, accumulation=5), 0.3)
    made.data.non_leaking = 0.5
    parts = told(Trainer(made, tmp_path / "run", source=source), 3)
    assert torch.equal(torch.cat(parts), labels[:3].flatten())


def test_vectors_are_left_out_as_classes_are(tmp_path: Path, points_config: MakeConfig) -> None:
    made = conditional(points_config(batch_size=20, steps=50), 0.4)
    seen = torch.cat(told(Trainer(made, tmp_path / "run", source=vector_points()), 50))
    missing = seen.isnan()
    assert torch.equal(missing.all(dim=1), missing.any(dim=1))
    assert missing.any(dim=1).double().mean().item() == pytest.approx(0.4, abs=0.06)


def test_held_out_loss_is_told_all_labels(
    tmp_path: Path, config: MakeConfig, source: Source
) -> None:
    trainer = Trainer(conditional(config(), 0.9), tmp_path / "run", source=source)
    seen: list[Tensor] = []

    def watching(denoiser: Any, x: Tensor, t: Tensor, noise: Tensor, condition: Any) -> Tensor:
        seen.append(condition)
        return objectives.simple(denoiser, x, t, noise, condition)

    assert trainer.held_out is not None
    trainer.looking._objective = watching
    trainer.looking.held_out_row(0)
    assert torch.equal(torch.cat(seen), trainer.held_out.labels)


@pytest.mark.parametrize("vectors", [False, True])
def test_told_nothing_the_estimate_is_another(
    tmp_path: Path, config: MakeConfig, source: Source, vectors: bool
) -> None:
    if vectors:
        numbers = torch.stack([source.train.labels.float(), torch.ones(50)], dim=1)
        source = Source(ImageSet(source.train.values, numbers, "vectors"), None)
    run = train(conditional(config(), 0.3), tmp_path / "run", source=source)
    assert run.config.told == ("vector" if vectors else "classes")
    condition = run.conditions(0, 3)
    network = run.denoiser.network
    x_t = torch.randn(3, 1, 4, 4)
    with torch.no_grad():
        one = run.denoiser(x_t, 10, condition).x_start
        none = run.denoiser(x_t, 10, network.null_condition(condition)).x_start
    assert one.isfinite().all()
    assert none.isfinite().all()
    assert not torch.allclose(one, none)


@pytest.mark.parametrize("choice", [{"vector": 2}, {"vector": None}])
def test_conditional_takes_vectors_from_the_data(
    tmp_path: Path, points_config: MakeConfig, choice: dict[str, Any]
) -> None:
    made = points_config()
    made.network.vector = choice["vector"]
    made.conditional = choice["vector"] is None
    made.logging.samples_every = 12
    run = train(made, tmp_path / "run", source=vector_points())
    assert run.config.network.vector == 2
    assert run.config.label_dropout == 0.1
    # They are kept for samples, mixed: what is sorted would tell the first samples of one kind.
    trained_on = run.load_data(source=vector_points()).train.labels
    assert not torch.equal(run.vectors, trained_on)
    assert sorted(run.vectors.tolist()) == sorted(trained_on.tolist())
    assert torch.equal(run.conditions(179, 2), run.vectors[[179, 0]])
    assert (tmp_path / "run" / "samples" / "training" / "step-00000012.png").exists()
    assert train(made, tmp_path / "run", source=vector_points()).step == run.step
    (tmp_path / "run" / "vectors.safetensors").unlink()
    with pytest.raises(InkdropError, match="is missing"):
        inkdrop.load(tmp_path / "run").conditions(0, 1)


def test_a_condition_that_the_data_cannot_give_is_refused_in_one_line(
    tmp_path: Path, config: MakeConfig, points_config: MakeConfig, source: Source
) -> None:
    def refused(made: Config, data: Source, message: str, **network: Any) -> None:
        for name, value in network.items():
            setattr(made.network, name, value)
        with pytest.raises(InkdropError, match=message) as error:
            train(made, tmp_path / "run", source=data)
        assert "\n" not in str(error.value)
        assert not (tmp_path / "run").exists()

    dial = vector_points()
    refused(points_config(), dial, "vector is 3, but .* are vectors of 2 numbers", vector=3)
    refused(points_config(), dial, "classes is 3, but .* are vectors of 2", classes=3)
    refused(config(), source, "vector is 2, but the labels of patterns are classes", vector=2)
    made = config()
    made.label_dropout = 0.1
    refused(made, source, "label_dropout is 0.1, but the network is told no labels")
    with pytest.raises(InkdropError, match="classes or a vector, not both"):
        refused(config(), source, "", classes=3, vector=2)


def test_a_label_dropout_that_is_not_given_agrees_with_any() -> None:
    for before in (None, 0.0, 0.1, 0.3):
        assert differences(Config(label_dropout=before), Config()) == []
    assert differences(Config(), Config(label_dropout=0.0)) == []
    assert differences(Config(label_dropout=0.1), Config(label_dropout=0.0)) != []
    assert differences(Config(), Config(label_dropout=0.1)) == ["label_dropout: None → 0.1"]


def test_training_and_test_examples_are_told_alike() -> None:
    dial = vector_points().train
    classes = PointSet(dial.values, torch.arange(200) % 3, "classes")
    with pytest.raises(
        InkdropError, match=r"labels of dial are vectors of 2 numbers, but .* of classes classes"
    ):
        Source(classes, dial)
    assert Source(dial).test is None
