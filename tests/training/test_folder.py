"""One training at a time in a folder, which goes on from what is whole."""

import io
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console
from test_trainer import assert_same_bits, stop_after, timeless

import inkdrop
from inkdrop.checkpoint import finished_checkpoints
from inkdrop.config import Config
from inkdrop.data.images import ImageSet, Source
from inkdrop.errors import InkdropError
from inkdrop.training import trainer as trainer_module
from inkdrop.training.folder import RunFolder
from inkdrop.training.trainer import Trainer, train

MakeConfig = Callable[..., Config]


def flip(file: Path) -> None:
    """Change one bit in the middle of a file."""
    content = bytearray(file.read_bytes())
    content[len(content) // 2] ^= 1
    file.write_bytes(content)


def mistaken(*_: Any) -> None:
    raise InkdropError("no room")


def test_two_trainings_do_not_share_a_folder(
    tmp_path: Path, config: MakeConfig, source: Source
) -> None:
    out = tmp_path / "run"
    first = Trainer(config(), out, source=source)
    step = first.train_step
    refused: list[str] = []

    def another_comes() -> None:
        if first.step == 7:
            with pytest.raises(InkdropError) as caught:
                Trainer(config(), out, source=source)
            refused.append(str(caught.value))
        step()

    first.train_step = another_comes  # type: ignore[method-assign]
    late = Trainer(config(), out, source=source)  # made before the first one had begun
    first.run()
    (message,) = refused
    assert message.startswith(f"another training is at work in {out}: wait for it")
    assert first.step == 12
    with pytest.raises(InkdropError, match=r"another training has begun in .* meanwhile"):
        late.run()
    assert train(config(), out, source=source, progress=False).step == 12


def test_who_comes_second_to_a_new_folder_is_refused_before_it_writes(
    tmp_path: Path, config: MakeConfig, source: Source
) -> None:
    out = tmp_path / "run"
    trainer = Trainer(config(), out, source=source)
    other = RunFolder(out)
    other.hold()
    with pytest.raises(InkdropError, match="another training is at work"):
        trainer.run()
    assert [path.name for path in out.iterdir()] == [".training.lock"]
    other.let_go()
    trainer.run()
    assert trainer.step == 12


def test_a_mistake_leaves_the_folder_free(
    tmp_path: Path, config: MakeConfig, source: Source, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "run"
    stopped = Trainer(config(), out, source=source)
    stop_after(stopped, 7)
    stopped.run()
    others = Source(ImageSet(source.train.images.flip(0), None, "others"), None)
    # What was caught keeps the trainer alive, as a notebook does.
    with pytest.raises(InkdropError, match="trained on other images") as caught:
        Trainer(config(), out, source=others)
    with pytest.raises(InkdropError, match="differs") as refused:
        Trainer(config(learning_rate=1.0), out, source=source)

    monkeypatch.setattr(trainer_module, "write_config", mistaken)
    with pytest.raises(InkdropError, match="no room") as failed:
        train(config(), out, source=source)
    monkeypatch.undo()
    assert train(config(), out, source=source, progress=False).step == 12
    assert all(kept.value.__traceback__ is not None for kept in (caught, refused, failed))


@pytest.mark.parametrize("file", ["weights.safetensors", "checkpoint.json"])
def test_a_damaged_checkpoint_is_set_aside_and_training_goes_on_from_the_one_before(
    tmp_path: Path, config: MakeConfig, source: Source, file: str
) -> None:
    straight = train(config(), tmp_path / "straight", source=source, progress=False)
    out = tmp_path / "damaged"
    stopped = Trainer(config(), out, source=source)
    stop_after(stopped, 8)
    stopped.run()
    flip(out / "checkpoints" / "step-00000008" / file)

    console = Console(file=io.StringIO())
    trainer = Trainer(config(), out, source=source, console=console)
    trainer.run()
    told = console.file.getvalue()  # type: ignore[attr-defined]
    assert f"step-00000008 set aside as damaged-step-00000008: {file}: " in told
    assert "going on from step-00000006" in told
    assert (out / "checkpoints" / "damaged-step-00000008" / file).exists()
    assert_same_bits(tmp_path / "straight", out)
    assert timeless(inkdrop.load(out).metrics) == timeless(straight.metrics)


def test_where_every_checkpoint_is_damaged_nothing_is_touched(
    tmp_path: Path, config: MakeConfig, source: Source
) -> None:
    out = tmp_path / "run"
    train(config(), out, source=source, progress=False)
    for path in finished_checkpoints(out / "checkpoints"):
        flip(path / "ema.safetensors")
    before = {path: path.read_bytes() for path in out.rglob("*") if path.is_file()}
    with pytest.raises(InkdropError) as caught:
        train(config(), out, source=source, progress=False)
    message = str(caught.value)
    assert "no checkpoint in" in message
    assert "step-00000012: ema.safetensors: " in message
    assert "step-00000006: ema.safetensors: " in message
    assert "another --out folder" in message
    assert "\n" not in message
    assert before == {path: path.read_bytes() for path in out.rglob("*") if path.is_file()}
    RunFolder(out).hold()  # which is free, though what was caught is kept
