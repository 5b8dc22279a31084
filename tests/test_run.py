"""A run folder is enough, and what is not one is named."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

import inkdrop
from inkdrop.checkpoint import FORMAT_VERSION
from inkdrop.errors import InkdropError


@pytest.fixture
def copied_run(finished_run: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(finished_run, tmp_path / "moved"))


def test_a_run_says_all_about_itself(finished_run: Path) -> None:
    run = inkdrop.load(finished_run)
    assert run.step == 6
    assert run.shape == (1, 8, 8)
    assert run.config.name == "digits"
    assert run.denoiser.prediction == "velocity"
    assert run.denoiser.schedule.timesteps == 20
    assert run.metrics[-1]["held_out_loss"] > 0
    assert run.example is not None
    assert (run.example.shape, run.example.dtype) == ((1, 8, 8), torch.uint8)
    (session,) = run.environment["sessions"]
    assert session["versions"]["torch"] == torch.__version__
    assert session["first_step"] == 0


def test_a_run_that_was_moved_still_samples_the_same(finished_run: Path, copied_run: Path) -> None:
    here = inkdrop.sample(inkdrop.load(finished_run).denoiser, n=2, steps=4)
    there = inkdrop.sample(inkdrop.load(copied_run).denoiser, n=2, steps=4)
    assert torch.equal(here, there)


def test_raw_and_averaged_weights_are_both_there(finished_run: Path) -> None:
    run = inkdrop.load(finished_run)
    x_t = torch.randn(2, 1, 8, 8)
    raw, averaged = run.load_denoiser("raw"), run.load_denoiser("ema")
    assert not torch.equal(raw(x_t, 10).x_start, averaged(x_t, 10).x_start)
    assert torch.equal(run.denoiser(x_t, 10).x_start, averaged(x_t, 10).x_start)
    with pytest.raises(InkdropError, match="must be ema or raw"):
        run.load_denoiser("best")


def test_a_run_folder_holds_no_pickle_and_nothing_half_written(finished_run: Path) -> None:
    names = [p.name for p in finished_run.rglob("*") if p.is_file()]
    names.remove(".training.lock")  # empty; held by whoever trains
    suffixes = {Path(name).suffix for name in names}
    assert suffixes == {".json", ".jsonl", ".safetensors", ".png"}
    assert not [name for name in names if name.startswith(".")]


def spoil_missing(run: Path) -> Path:
    return run / "nowhere"


def spoil_config(run: Path) -> Path:
    (run / "config.json").unlink()
    return run


def spoil_json(run: Path) -> Path:
    (run / "config.json").write_text("{")
    return run


def spoil_fields(run: Path) -> Path:
    content = json.loads((run / "config.json").read_text())
    content["config"]["schedule"]["kind"] = "cosin"
    (run / "config.json").write_text(json.dumps(content))
    return run


def spoil_version(run: Path) -> Path:
    content = json.loads((run / "config.json").read_text())
    content["format_version"] = FORMAT_VERSION + 1
    (run / "config.json").write_text(json.dumps(content))
    return run


def spoil_checkpoints(run: Path) -> Path:
    shutil.rmtree(run / "checkpoints")
    return run


def spoil_with_pickle(run: Path) -> Path:
    shutil.rmtree(run / "checkpoints")
    (run / "checkpoints").mkdir()
    torch.save({}, run / "checkpoints" / "model.pt")
    return run


def spoil_weights(run: Path) -> Path:
    file = run / "checkpoints" / "step-00000006" / "ema.safetensors"
    file.write_bytes(file.read_bytes()[:100])
    return run


@pytest.mark.parametrize(
    ("spoil", "expected"),
    [
        (spoil_missing, "there is no run folder"),
        (spoil_config, "it has no config.json"),
        (spoil_json, "is damaged or not inkdrop's"),
        (spoil_fields, "unknown schedule 'cosin': did you mean 'cosine'"),
        (spoil_version, "written by a newer inkdrop"),
        (spoil_checkpoints, "has no checkpoint yet"),
        (spoil_with_pickle, "only model.pt: a pickle, which inkdrop never loads"),
        (spoil_weights, "ema.safetensors is damaged: it has 100 bytes"),
    ],
)
def test_what_is_not_a_whole_run_is_named_in_one_line(
    copied_run: Path, spoil: Callable[[Path], Path], expected: str
) -> None:
    path = spoil(copied_run)
    with pytest.raises(InkdropError) as caught:
        inkdrop.load(path).denoiser  # noqa: B018
    assert expected in str(caught.value)
    assert "\n" not in str(caught.value)
