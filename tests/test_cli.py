"""The command line as its user meets it."""

import contextlib
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from inkdrop import cli

INKDROP = [sys.executable, "-m", "inkdrop"]
STEPS = 300
TINY = [
    "--network.channels=4",
    "--network.multipliers=1",
    "--schedule.timesteps=10",
    "--logging.samples-every=0",
]


def call(*arguments: object) -> int:
    return cli.run([str(a) for a in arguments])


def complaint(capsys: pytest.CaptureFixture[str], *arguments: object) -> str:
    """The one line that a mistake is answered with."""
    capsys.readouterr()
    assert call(*arguments) == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err.startswith("inkdrop: ")
    assert captured.err.count("\n") == 1
    return captured.err


def test_help_names_every_command(capsys: pytest.CaptureFixture[str]) -> None:
    assert call("--help") == 0
    text = capsys.readouterr().out
    for command in cli._COMMANDS:
        assert f"  {command} " in text
    assert call() == 0


def test_help_and_options_import_nothing_heavy() -> None:
    program = (
        "import sys; from inkdrop import cli; cli.run(['--help'])\n"
        "try: cli.run(['train', 'digits', '--help'])\n"
        "except SystemExit: pass\n"
        "heavy = {'torch', 'numpy', 'matplotlib', 'datasets', 'sklearn'} & set(sys.modules)\n"
        "sys.exit(str(heavy) if heavy else 0)"
    )
    subprocess.run([sys.executable, "-c", program], check=True, capture_output=True)


@pytest.mark.parametrize("command", ["train", "sample", "report", "compare", "presets", "doctor"])
def test_every_command_has_help(command: str, capsys: pytest.CaptureFixture[str]) -> None:
    with contextlib.suppress(SystemExit):  # tyro leaves by itself
        call(command, "--help")
    assert f"inkdrop {command}" in capsys.readouterr().out


def test_every_field_of_the_configuration_is_an_option(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        call("train", "digits", "--help")
    text = capsys.readouterr().out
    for option in (
        "--network.channels",
        "--training.batch-size",
        "--schedule.beta-start",
        "--seed",
    ):
        assert option in text
    assert "Channels at full resolution. (default: 32)" in " ".join(text.split())


def test_train_sample_report_from_the_command_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "run"
    assert call("train", "digits", "--out", out, "--steps", 4, "--seed", 7, *TINY) == 0
    assert "next: inkdrop sample" in " ".join(capsys.readouterr().out.split())
    config = json.loads((out / "config.json").read_text())["config"]
    assert config["training"]["steps"] == 4
    assert config["seed"] == 7
    assert config["network"]["channels"] == 4
    assert config["network"]["multipliers"] == [1]

    assert call("sample", out, "-n", 3, "--steps", 2, "--sampler", "ancestral", "--trajectory") == 0
    made = out / "samples" / "ancestral-2-n3-seed0"
    assert len(list(made.glob("0*.png"))) == 3
    assert {p.name for p in made.iterdir()} >= {"grid.png", "trajectory.png", "trajectory.gif"}

    assert call("report", out) == 0
    assert "<html" in (out / "report.html").read_text()

    assert call("train", "digits", "--out", out, "--steps", 4, "--seed", 7, *TINY) == 0
    assert "is finished" in " ".join(capsys.readouterr().out.split())


def test_points_are_sampled_reported_and_compared_from_the_command_line(
    points_run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    runs = [Path(shutil.copytree(points_run, tmp_path / name)) for name in ("a", "b")]
    assert call("sample", runs[0], "-n", 30, "--steps", 2, "--trajectory") == 0
    assert "30 points are in" in " ".join(capsys.readouterr().out.split())
    made = runs[0] / "samples" / "ddim-2-n30-seed0"
    assert {"samples.npy", "scatter.png", "paths.png"} <= {p.name for p in made.iterdir()}

    assert call("compare", *runs, "-n", 20, "--steps", 2) == 0
    text = capsys.readouterr().out
    assert "oracle" in text
    assert "energy distance" in text
    assert (tmp_path / "comparison" / "comparison.json").exists()
    line = complaint(capsys, "compare", *runs, "--out", runs[0] / "config.json")
    assert "config.json is a file; choose a folder" in line


def test_epochs_take_the_place_of_the_presets_steps(tmp_path: Path) -> None:
    out = tmp_path / "run"
    epochs = ["--training.epochs", "0.1", "--training.batch-size", "32"]
    assert call("train", "digits", "--out", out, *epochs, *TINY) == 0
    config = json.loads((out / "config.json").read_text())["config"]["training"]
    assert (config["steps"], config["epochs"]) == (None, 0.1)


def test_presets_and_doctor_answer(capsys: pytest.CaptureFixture[str]) -> None:
    assert call("presets") == 0
    assert "ho-cifar10" in capsys.readouterr().out
    assert call("doctor") == 0
    text = " ".join(capsys.readouterr().out.split())
    assert "images/s" in text
    assert "bit for bit" in text


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (["trian"], "unknown command 'trian': did you mean 'train'?"),
        (["train", "digts"], "unknown preset 'digts': did you mean 'digits'?"),
        (["train", "--steps", "3"], "the preset comes first"),
        (["train", "digits", "--network.chanels", "3"], "did you mean --network.channels?"),
        (
            ["train", "digits", "--network.channels", "many"],
            "--network.channels takes a whole number, got many (",
        ),
        (["train", "digits", "--network.multipliers", "1", "x"], "takes whole numbers, got 1 x ("),
        (["train", "digits", "--label-dropout", "x"], "--label-dropout takes a number, got x ("),
        (["train", "digits", "--training.betas", "1"], "--training.betas needs 2 values ("),
        (["train", "digits", "--network.channels", "0"], "channels must be greater than 0, got 0"),
        (["train", "digits", "--schedule.kind", "cosin"], "did you mean 'cosine'?"),
        (["train", "digits", "--schedule.kind", "linear", "--schedule.beta-end", "1.5"], "got 1.5"),
        (["train", "digits", "--schedule.beta-end", "0.5"], "does not belong to the cosine"),
        (["train", "digits", "--prediction", "nois"], "did you mean 'noise'?"),
        (["train", "digits", "--steps", "0"], "steps must be greater than 0, got 0"),
        (["train", "digits", "--steps"], "--steps needs a value ("),
        (["train", "digits", "stray"], "unexpected 'stray': only options follow options ("),
        (["train", "digits", "--resume", "maybe"], "resume must be auto or never"),
        (["train", "digits", "--data", "x"], "take no path"),
        (["train", "mnist", "--data", "/no/such/place"], "/no/such/place"),
        (["train", "digits", "--training.device", "abacus"], "device 'abacus'"),
        (["sample"], "needs a run folder"),
        (["sample", "/no/such/run"], "there is no run folder /no/such/run"),
        (["report", "/no/such/run"], "there is no run folder /no/such/run"),
        (["compare"], "compare needs at least two run folders first"),
        (["compare", "runs/a", "--seed", "1"], "compare needs at least two run folders first"),
        (["compare", "/no/a", "/no/b"], "there is no run folder /no/a"),
        (["doctor", "--verbos"], "unknown option --verbos"),
    ],
)
def test_a_mistake_gets_one_line_and_writes_nothing(
    arguments: list[str],
    expected: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    assert expected in complaint(capsys, *arguments)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (["--steps", 21], "steps must lie between 1 and the schedule's 20 timesteps, got 21"),
        (["--steps", 0], "got 0"),
        (["--steps", -3], "got -3"),
        (["-n", 0], "n must be at least 1, got 0"),
        (["-n", -1], "n must be at least 1, got -1"),
        (["--batch-size", 0], "batch_size must be at least 1"),
        (["--sampler", "dddim"], "unknown sampler 'dddim': did you mean 'ddim'?"),
        (["--weights", "best"], "weights must be ema or raw, got 'best'"),
        (["--sed", 1], "unknown option --sed: did you mean --seed?"),
        (["-n", "x"], "-n takes a whole number, got x ("),
        (["--guidance-interval", 1], "--guidance-interval takes 2 whole numbers, got 1 ("),
        (["--vector", "x"], "--vector takes numbers, got x ("),
        (["--device", "abacus"], "device 'abacus'"),
    ],
)
def test_a_mistake_in_sampling_gets_one_line_and_writes_nothing(
    finished_run: Path,
    arguments: list[object],
    expected: str,
    capsys: pytest.CaptureFixture[str],
) -> None:
    before = sorted(finished_run.rglob("*"))
    assert expected in complaint(capsys, "sample", finished_run, *arguments)
    assert sorted(finished_run.rglob("*")) == before


def test_another_run_in_the_folder_is_never_overwritten(
    finished_run: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    before = {p: p.read_bytes() for p in finished_run.rglob("*") if p.is_file()}
    line = complaint(capsys, "train", "digits", "--out", finished_run)
    assert "holds another run, which differs in" in line
    assert "schedule.timesteps: 20 → 1000" in line
    assert before == {p: p.read_bytes() for p in finished_run.rglob("*") if p.is_file()}


def test_a_damaged_checkpoint_is_one_line_also_when_going_on(
    finished_run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = Path(shutil.copytree(finished_run, tmp_path / "run"))
    file = run / "checkpoints" / "step-00000006" / "ema.safetensors"
    file.write_bytes(file.read_bytes()[:-1])
    assert "to use step-00000003" in complaint(capsys, "sample", run)


def test_a_warning_of_the_schedule_is_one_line(tmp_path: Path) -> None:
    command = [*INKDROP, "train", "digits", "--out", str(tmp_path / "run"), "--steps", "1", *TINY]
    command += [
        "--schedule.kind",
        "linear",
        "--schedule.beta-start=1e-4",
        "--schedule.beta-end=0.02",
    ]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert done.stderr.startswith("inkdrop: warning: this schedule's last alphas_cumprod is")
    assert done.stderr.count("\n") == 1


def start_training(out: Path, steps: int) -> "subprocess.Popen[str]":
    command = [*INKDROP, "train", "digits", "--out", str(out), "--steps", str(steps), *TINY]
    return subprocess.Popen(
        [*command, "--logging.checkpoint-every=20", "--logging.metrics-every=5"],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )


def wait_for_checkpoint(out: Path, process: "subprocess.Popen[str]") -> None:
    deadline = time.monotonic() + 60
    while not list(out.glob("checkpoints/step-*")):
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < deadline
        time.sleep(0.01)


def final_weights(out: Path, steps: int) -> list[bytes]:
    folder = out / "checkpoints" / f"step-{steps:08d}"
    return [
        (folder / f"{part}.safetensors").read_bytes() for part in ("weights", "ema", "optimizer")
    ]


@pytest.fixture(scope="module")
def straight_run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A training that nothing disturbed."""
    out = tmp_path_factory.mktemp("straight") / "run"
    process = start_training(out, STEPS)
    _, err = process.communicate(timeout=120)
    assert process.returncode == 0, err
    return out


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGKILL])
def test_a_process_that_is_stopped_or_killed_goes_on_with_the_same_command(
    tmp_path: Path, straight_run: Path, number: signal.Signals
) -> None:
    stopped = start_training(tmp_path / "run", STEPS)
    wait_for_checkpoint(tmp_path / "run", stopped)
    stopped.send_signal(number)
    out, err = stopped.communicate(timeout=60)
    if number is signal.SIGKILL:
        assert stopped.returncode == -signal.SIGKILL
    else:
        assert stopped.returncode == 128 + number
        assert err == ""
        assert f"stopped by {number.name}" in out
    again = start_training(tmp_path / "run", STEPS)
    _, err = again.communicate(timeout=120)
    assert again.returncode == 0, err
    assert final_weights(tmp_path / "run", STEPS) == final_weights(straight_run, STEPS)


def test_mnist_trains_from_the_files_as_they_are(
    tmp_path: Path, data_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    short = ["--steps", 2, "--training.batch-size", 4, "--data.held-out", 4, *TINY]
    assert (
        call("train", "mnist", "--out", tmp_path / "a", "--data", data_dir / "mnist", *short) == 0
    )
    files = sorted((data_dir / "mnist").iterdir())
    assert call("train", "mnist", "--out", tmp_path / "b", "--data", *files, *short) == 0
    monkeypatch.setenv("INKDROP_DATA", str(data_dir))
    assert call("train", "mnist", "--out", tmp_path / "c", *short) == 0
    assert final_weights(tmp_path / "a", 2) == final_weights(tmp_path / "b", 2)
    assert final_weights(tmp_path / "a", 2) == final_weights(tmp_path / "c", 2)
