"""A run that was broken in some way is found broken in that way, and a sound one sound."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

import inkdrop
from inkdrop.build import build_denoiser
from inkdrop.checkpoint import PARTS, Checkpoint, read_checkpoint, write_checkpoint
from inkdrop.config import Config, MLPConfig, UNetConfig
from inkdrop.data.images import ImageSet, Source
from inkdrop.data.points import PointSet, draw
from inkdrop.diagnosis import Finding, diagnose
from inkdrop.diffusion.schedule import ScheduleWarning
from inkdrop.randomness import torch_seeded

SHAPE = (3, 4, 4)
STEPS = 250


def gradients(n: int, seed: int = 0) -> Source:
    """Images of 4×4 in colour that change evenly from one side to the other."""
    draws = np.random.default_rng(seed)
    way, colours = draws.uniform(-1, 1, (n, 2)), draws.uniform(40, 216, (n, 3))
    across = np.linspace(-1, 1, 4)
    ramp = way[:, :1, None] * across[:, None] + way[:, 1:, None] * across[None]
    pixels = np.clip(colours[:, :, None, None] + 60 * ramp[:, None], 0, 255)
    return Source(ImageSet(torch.from_numpy(pixels.astype(np.uint8)), None, "gradients"), None)


def configuration(**changed: Any) -> Config:
    training = {
        "steps": STEPS,
        "batch_size": 32,
        "learning_rate": 5e-3,
        "warmup_steps": 20,
        "decay": "linear",
        "ema_decay": 0.98,
        "device": "cpu",
    } | changed.pop("training", {})
    return Config(
        name="gradients",
        **{"prediction": "velocity", "schedule": {"kind": "cosine", "timesteps": 100}} | changed,
        network=UNetConfig(channels=16, multipliers=(1,), blocks=1, attention_in_bottleneck=False),
        training=training,
        logging={
            "metrics_every": 10,
            "held_out_every": 50,
            "checkpoint_every": 125,
            "samples_every": 0,
        },
    )


def found(path: Path, source: Any, **options: Any) -> dict[str, Finding]:
    run = inkdrop.load(path, device="cpu")
    return {finding.name: finding for finding in diagnose(run, source=source, **options)}


def wrong(findings: dict[str, Finding]) -> set[str]:
    return {name for name, finding in findings.items() if finding.ok is False}


@pytest.fixture(scope="module")
def source() -> Source:
    return gradients(500)


@pytest.fixture(scope="module")
def sound(source: Source, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run that learnt what it was shown; not to be changed."""
    out = tmp_path_factory.mktemp("sound") / "run"
    return inkdrop.train(configuration(), out, source=source, progress=False).path


@pytest.fixture
def broken(sound: Path, tmp_path: Path) -> Callable[..., Path]:
    """A copy of the sound run whose weights were changed: in place, by part."""

    def make(change: Callable[[dict[str, dict[str, Tensor]]], None]) -> Path:
        copy = Path(shutil.copytree(sound, tmp_path / "broken"))
        read = read_checkpoint(inkdrop.load(copy).checkpoint, PARTS)
        change(read.tensors)
        rewritten = Checkpoint(read.step, read.tensors, read.state)
        write_checkpoint(copy / "checkpoints", rewritten, keep=9)
        return copy

    return make


def test_a_sound_run_is_found_sound(sound: Path, source: Source) -> None:
    findings = found(sound, source)
    assert wrong(findings) == set()
    assert all(finding.ok for finding in findings.values()), findings
    assert not any(finding.mend for finding in findings.values())
    assert f"all {STEPS:,} steps are done" in findings["steps"].evidence


def test_sound_points_are_found_sound(tmp_path: Path) -> None:
    points = Source(PointSet(draw("points-rings", 2000), None, "rings"), None)
    config = configuration(training={"batch_size": 256})
    config.network = MLPConfig(width=64, blocks=2, waves=32)
    run = inkdrop.train(config, tmp_path / "run", source=points, progress=False)
    findings = found(run.path, points)
    assert wrong(findings) == set()
    assert "noise" not in findings
    assert findings["place and spread"].ok


def test_without_its_data_a_run_is_judged_by_what_is_left(sound: Path) -> None:
    findings = found(sound, None)
    assert wrong(findings) == set()
    for name in ("data", "learning", "averaged weights", "variety", "memorisation"):
        assert findings[name].ok is None
        assert "without the run's data" in findings[name].evidence
    for name in ("checkpoints", "metrics", "schedule", "learning rate", "samples"):
        assert findings[name].ok


def scaled(part: dict[str, Tensor], like: str, factor: float) -> None:
    names = [name for name in part if name.startswith(like)]
    assert names
    for name in names:
        part[name] = part[name] * factor


@pytest.mark.parametrize(("level", "shade"), [(-3.0, "black"), (3.0, "white")])
def test_blank_samples(
    broken: Callable[..., Path], source: Source, level: float, shade: str
) -> None:
    def silence(tensors: dict[str, dict[str, Tensor]]) -> None:
        # What is left of the estimate of x_start is far outside of the range, on one side.
        for part in ("weights", "ema"):
            scaled(tensors[part], "head.2.weight", 0.0)
            tensors[part]["head.2.bias"] = torch.full((3,), -level)

    findings = found(broken(silence), source)
    assert not findings["variety"].ok
    assert f"samples are {shade}" in findings["variety"].evidence
    assert not findings["learning"].ok


def test_random_weights_give_noise(broken: Callable[..., Path], source: Source) -> None:
    def forget(tensors: dict[str, dict[str, Tensor]]) -> None:
        for part in ("weights", "ema"):
            scaled(tensors[part], "head.2", 0.0)

    findings = found(broken(forget), source)
    assert {"noise", "learning"} <= wrong(findings)
    assert "samples are noise" in findings["noise"].evidence
    assert "the network has not learnt" in findings["noise"].mend


def test_a_tint(broken: Callable[..., Path], source: Source) -> None:
    def redden(tensors: dict[str, dict[str, Tensor]]) -> None:
        for part in ("weights", "ema"):
            tensors[part]["head.2.bias"] = tensors[part]["head.2.bias"] - torch.tensor([0.6, 0, 0])

    findings = found(broken(redden), source)
    assert "colour" in wrong(findings)
    assert "samples are off: means " in findings["colour"].evidence


def test_averaged_weights_that_never_left_the_start(
    broken: Callable[..., Path], source: Source
) -> None:
    config = configuration()

    def restart(tensors: dict[str, dict[str, Tensor]]) -> None:
        with torch_seeded(config.seed, "initial weights"):
            tensors["ema"] = build_denoiser(config, SHAPE).network.state_dict()

    findings = found(broken(restart), source)
    assert {"averaged weights", "noise"} <= wrong(findings)
    assert "learning" not in wrong(findings)
    for name in ("averaged weights", "noise"):
        assert "--weights raw" in findings[name].mend


def test_averaged_weights_worse_than_raw_ones(broken: Callable[..., Path], source: Source) -> None:
    def spoil(tensors: dict[str, dict[str, Tensor]]) -> None:
        scaled(tensors["ema"], "head.2", 0.6)

    findings = found(broken(spoil), source)
    assert "averaged weights" in wrong(findings)
    assert "raw" in findings["averaged weights"].evidence
    assert "--training.ema-decay (now 0.98" in findings["averaged weights"].mend


def test_a_schedule_that_leaves_signal(source: Source, tmp_path: Path) -> None:
    linear = {"kind": "linear", "timesteps": 300, "beta_start": 1e-4, "beta_end": 0.02}
    config = configuration(schedule=linear, training={"steps": 1})
    with pytest.warns(ScheduleWarning):
        out = inkdrop.train(config, tmp_path / "run", source=source, progress=False).path
    findings = found(out, source)
    assert not findings["schedule"].ok
    assert "ᾱ at the end is 0.048" in findings["schedule"].evidence
    assert "--schedule.kind cosine" in findings["schedule"].mend


def test_a_learning_rate_that_is_far_too_low(source: Source, tmp_path: Path) -> None:
    config = configuration(prediction="noise", training={"steps": 20, "learning_rate": 1e-9})
    out = inkdrop.train(config, tmp_path / "run", source=source, progress=False).path
    findings = found(out, source)
    assert {"learning", "learning rate"} <= wrong(findings)
    assert ", 100% of the 0.9" in findings["learning"].evidence
    assert "moved the weights by" in findings["learning rate"].evidence
    assert "a higher --training.learning-rate (now 1e-09)" in findings["learning rate"].mend


def test_a_learning_rate_that_is_far_too_high(source: Source, tmp_path: Path) -> None:
    config = configuration(
        training={"steps": 40, "learning_rate": 1.0, "warmup_steps": 0, "decay": "constant"}
    )
    out = inkdrop.train(config, tmp_path / "run", source=source, progress=False).path
    findings = found(out, source)
    assert "learning rate" in wrong(findings)
    assert "a lower --training.learning-rate (now 1)" in findings["learning rate"].mend


def test_a_few_examples_learnt_by_heart(tmp_path: Path) -> None:
    eight = Source(PointSet(draw_wide(8), None, "eight"), None)
    config = configuration(training={"steps": 600, "batch_size": 64})
    config.network = MLPConfig(width=64, blocks=2)
    out = inkdrop.train(config, tmp_path / "run", source=eight, progress=False).path
    findings = found(out, eight)
    assert wrong(findings) == {"memorisation"}
    assert "samples are copies" in findings["memorisation"].evidence
    assert "8 points are few" in findings["memorisation"].mend


def draw_wide(n: int) -> Tensor:
    """Points in 16 dimensions, which lie far from each other."""
    draws = np.random.default_rng(0).uniform(-1, 1, (n, 16))
    return torch.from_numpy(draws.astype(np.float32))


def rewrite_metrics(sound: Path, to: Path, change: Callable[[dict[str, Any]], None]) -> Path:
    copy = Path(shutil.copytree(sound, to))
    rows = [json.loads(line) for line in (copy / "metrics.jsonl").read_text().splitlines()]
    for row in rows:
        change(row)
    (copy / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return copy


def test_courses_of_the_loss(sound: Path, source: Source, tmp_path: Path) -> None:
    def change(name: str, value: Callable[[int], float], key: str = "loss") -> dict[str, Finding]:
        def one(row: dict[str, Any]) -> None:
            if key in row:
                row[key] = value(row["step"])

        return found(rewrite_metrics(sound, tmp_path / name, one), source, checkpoints=False)

    assert wrong(change("nan", lambda step: float("nan") if step == 150 else 0.3)) == {"metrics"}
    rising = change("rising", lambda step: 0.2 + 0.3 * step / STEPS)
    assert wrong(rising) == {"learning rate"}
    assert "the loss rose to 0.4" in rising["learning rate"].evidence
    steep = change("steep", lambda step: 1 - 0.9 * step / STEPS)
    assert wrong(steep) == {"steps"}
    assert "train for longer" in steep["steps"].mend
    spike = change("spike", lambda step: 50.0 if step == 150 else 0.3)
    assert wrong(spike) == {"learning rate"}
    overfitted = change("overfitted", lambda step: 0.2 + abs(step - 150) / STEPS, "held_out_loss")
    assert wrong(overfitted) == {"held-out loss"}
    assert "step 150" in overfitted["held-out loss"].evidence


def test_a_damaged_checkpoint(sound: Path, source: Source, tmp_path: Path) -> None:
    copy = Path(shutil.copytree(sound, tmp_path / "damaged"))
    file = inkdrop.load(copy).checkpoint / "ema.safetensors"
    content = bytearray(file.read_bytes())
    content[-1] ^= 1
    file.write_bytes(content)
    findings = found(copy, source)
    assert wrong(findings) == {"checkpoints"}
    damaged = f"1 of 3 damaged: {file.parent.name}: ema.safetensors: its content is not what was"
    assert findings["checkpoints"].evidence.startswith(damaged)
    assert findings["samples"].ok is None


def test_a_run_that_is_not_finished_is_not_called_broken(
    sound: Path, source: Source, tmp_path: Path
) -> None:
    copy = Path(shutil.copytree(sound, tmp_path / "half"))
    content = json.loads((copy / "config.json").read_text())
    content["config"]["training"]["steps"] = 2 * STEPS
    (copy / "config.json").write_text(json.dumps(content))
    findings = found(copy, source)
    assert wrong(findings) == set()
    assert findings["steps"].ok is None
    assert f"{STEPS:,} of {2 * STEPS:,} steps are done" in findings["steps"].evidence


def test_another_version_is_told_of(sound: Path, source: Source, tmp_path: Path) -> None:
    copy = Path(shutil.copytree(sound, tmp_path / "old"))
    content = json.loads((copy / "environment.json").read_text())
    content["sessions"][-1]["versions"]["torch"] = "2.8.0"
    (copy / "environment.json").write_text(json.dumps(content))
    findings = found(copy, source)
    assert wrong(findings) == set()
    assert findings["versions"].ok is None
    assert "torch 2.8.0, here " in findings["versions"].evidence


def test_other_data_is_not_used_to_judge(sound: Path) -> None:
    findings = found(sound, gradients(500, seed=5))
    assert findings["data"].ok is None
    assert "was trained on other data" in findings["data"].evidence
