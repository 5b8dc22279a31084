"""The doctor looks at the machine, at what a preset takes of it, and at a run."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

import inkdrop
from inkdrop import cli, doctor, round_trip
from inkdrop.config import Config, UNetConfig
from inkdrop.errors import InkdropError
from inkdrop.round_trip import RoundTrip, between_two_processes


def answer(capsys: pytest.CaptureFixture[str], *arguments: object) -> tuple[int, dict[str, Any]]:
    code = cli.run(["doctor", *map(str, arguments), "--json", "--device", "cpu"])
    return code, json.loads(capsys.readouterr().out)


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """No processes are started."""
    monkeypatch.setattr(doctor, "between_two_processes", lambda: RoundTrip(1e-3, 1e-2))


def test_two_processes_measure_their_round_trip() -> None:
    found = between_two_processes()
    assert 0 < found.small < found.large < 10
    assert f"{found.small * 1e3:.2f} ms for a number" in str(found)


def test_processes_that_never_meet_are_a_fault_with_its_mend(
    quick: None, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(doctor, "between_two_processes", lambda: between_two_processes(0.01))
    code, found = answer(capsys, "--no-trial")
    assert code == 1
    (fault,) = found["faults"]
    assert "they had not found each other after 0.01 s" in fault
    assert "GLOO_SOCKET_IFNAME" in fault
    with pytest.raises(InkdropError, match="cannot talk to each other"):
        between_two_processes(host="no-such-host.invalid")


def test_a_process_that_fails_says_why(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(round_trip, "__name__", "inkdrop.no_such_module")
    with pytest.raises(InkdropError, match="No module named"):
        between_two_processes()


def test_the_machine_is_told_of(quick: None, capsys: pytest.CaptureFixture[str]) -> None:
    code, found = answer(capsys, "--no-trial")  # the command line's own test has one
    assert (code, found["faults"]) == (0, [])
    facts = found["facts"]
    assert facts["torch"] == torch.__version__
    assert facts["cpu"].startswith("float32")
    assert "gloo" in facts["processes"]
    assert "1.00 ms for a number, 10.0 ms for 16 MiB (1.7 GB/s)" in facts["processes"]
    assert "trial" not in facts
    assert "GiB free" in facts["memory"]


def test_little_disk_is_a_fault(
    quick: None, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    little = SimpleNamespace(free=10**6, total=10**9, used=10**9 - 10**6)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: little)
    code, found = answer(capsys, "--no-trial")
    assert code == 1
    assert "of disk is free: checkpoints need room" in found["faults"][0]
    code, found = answer(capsys, "ho-cifar10", "--no-trial")
    assert code == 1
    assert "keep fewer (--logging.keep-checkpoints)" in found["faults"][0]


def test_what_a_preset_takes(capsys: pytest.CaptureFixture[str]) -> None:
    code, found = answer(capsys, "digits")
    assert (code, found["faults"]) == (0, [])
    network = doctor.build_denoiser(inkdrop.presets.digits(), (1, 8, 8)).network
    parameters = sum(p.numel() for p in network.parameters())
    facts = found["facts"]
    assert facts["parameters"] == f"{parameters:,} on cpu"
    assert facts["training state"].startswith(doctor._size(20 * parameters))
    assert "images/s" in facts["speed"]
    assert f"3 checkpoints of {doctor._size(16 * parameters)}" in facts["disk"]
    assert facts["disk"].startswith(doctor._size(5 * 16 * parameters))


def test_every_preset_is_known(capsys: pytest.CaptureFixture[str]) -> None:
    for name in inkdrop.presets.PRESETS:
        code, found = answer(capsys, name, "--no-trial")
        assert code == 0, name
        kind = "points" if name.startswith("points") else "images"
        assert found["facts"]["examples"].startswith(kind)


def test_what_does_not_fit_in_memory(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(doctor, "_memory", lambda: (10**6, 10**9))
    code, found = answer(capsys, "digits", "--no-trial")
    assert code == 1
    assert "of memory, but 1 MB is free on cpu: give --batch-size auto" in found["faults"][0]


def test_a_run_is_examined(
    finished_run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    code, found = answer(capsys, finished_run)
    assert found["step"] == 6
    assert found["sound"] == (code == 0)
    assert code == 1  # six steps teach nothing
    by_name = {finding["name"]: finding for finding in found["findings"]}
    assert by_name["learning"]["ok"] is False
    assert by_name["checkpoints"]["ok"] is True

    assert cli.run(["doctor", str(finished_run)]) == 1
    text = " ".join(capsys.readouterr().out.split())
    assert "✓ checkpoints" in text
    assert "✗ learning: " in text

    copy = Path(shutil.copytree(finished_run, tmp_path / "run"))
    for manifest in copy.glob("checkpoints/*/checkpoint.json"):
        manifest.write_text("{")
    code, found = answer(capsys, copy)
    assert (code, found["sound"]) == (1, False)
    assert "none is whole" in found["findings"][0]["mend"]


def test_why_checks_could_not_be_made_is_told_once(
    finished_run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    copy = Path(shutil.copytree(finished_run, tmp_path / "run"))
    max(copy.glob("checkpoints/*/ema.safetensors")).write_bytes(b"")
    assert cli.run(["doctor", str(copy)]) == 1
    text = " ".join(capsys.readouterr().out.split())
    assert text.count("not checked without the weights") == 1
    assert text.count("not checked, for the same reason") > 3


@pytest.mark.parametrize(
    ("target", "expected"),
    [
        ("digts", "unknown preset or run folder 'digts': did you mean 'digits'?"),
        ("runs/no-such-run", "there is no run folder runs/no-such-run"),
        (".", "is not a run folder"),
    ],
)
def test_what_is_neither_run_nor_preset(
    target: str, expected: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(InkdropError, match=expected.replace("?", r"\?").replace(".", r"\.")):
        doctor.examine(target, doctor.DoctorOptions(), doctor.Console())


def test_the_processes_of_a_job_are_looked_at_together(tmp_path: Path) -> None:
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2"]
    done = subprocess.run(
        [*torchrun, "-m", "inkdrop", "doctor", "--no-trial", "--json", "--device", "cpu"],
        cwd=tmp_path,
        env=os.environ | {"OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""},
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)  # one of them speaks
    assert "between the 2 of this job" in found["facts"]["processes"]
    assert found["faults"] == []


def test_the_needs_of_a_large_network_are_told_without_making_it() -> None:
    config = Config(network=UNetConfig(channels=1024, multipliers=(1, 2, 4, 8)))
    found = doctor._needs(config, torch.device("cpu"), trial=False, console=None)
    assert any("of memory, but" in fault for fault in found.faults)
