"""Asked to stop, a process saves and leaves; one that is stuck leaves too."""

import os
import signal
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path

import pytest
from test_trainer import assert_same_bits, stop_after

import inkdrop
from inkdrop import cli
from inkdrop.config import Config
from inkdrop.data.images import Source
from inkdrop.training.signals import STOP_SIGNALS, handling_stop_signals
from inkdrop.training.trainer import Trainer, train

MakeConfig = Callable[..., Config]

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="signals are POSIX's")

TINY = ["--network.channels=4", "--network.multipliers=1", "--logging.samples-every=0"]


def test_the_signal_of_a_job_whose_time_is_over_stops_and_saves(
    tmp_path: Path, config: MakeConfig, source: Source
) -> None:
    stopped = Trainer(config(), tmp_path / "stopped", source=source)
    stop_after(stopped, 5, signal.SIGUSR1)
    stopped.run()
    assert stopped.stopped_by is signal.SIGUSR1
    assert inkdrop.load(tmp_path / "stopped").step == 5
    train(config(), tmp_path / "stopped", source=source, progress=False)
    train(config(), tmp_path / "straight", source=source, progress=False)
    assert_same_bits(tmp_path / "straight", tmp_path / "stopped")


@pytest.mark.parametrize("number", STOP_SIGNALS)
def test_the_exit_code_of_a_command_tells_the_signal(
    tmp_path: Path,
    number: signal.Signals,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    step = Trainer.train_step

    def stopping(trainer: Trainer) -> None:
        step(trainer)
        if trainer.step == 2:
            os.kill(os.getpid(), number)

    monkeypatch.setattr(Trainer, "train_step", stopping)
    out = tmp_path / "run"
    command = ["train", "digits", "--out", str(out), "--steps", "4", "--batch-size", "8", *TINY]
    assert cli.run(command) == 128 + number
    told = " ".join(capsys.readouterr().out.split())
    assert f"stopped by {number.name} after 2 of 4 steps" in told
    assert cli.run(command) == 0
    assert inkdrop.load(out).step == 4


def test_a_second_signal_acts_as_it_always_does() -> None:
    heard: list[signal.Signals] = []
    with handling_stop_signals(heard.append):
        os.kill(os.getpid(), signal.SIGINT)
        assert heard == [signal.SIGINT]
        with pytest.raises(KeyboardInterrupt):
            os.kill(os.getpid(), signal.SIGINT)
    assert heard == [signal.SIGINT]


def test_a_launcher_may_repeat_itself() -> None:
    heard: list[signal.Signals] = []
    before = [signal.getsignal(number) for number in STOP_SIGNALS]
    wakeup = signal.set_wakeup_fd(-1)
    signal.set_wakeup_fd(wakeup)
    with handling_stop_signals(heard.append, patient=True, grace=60):
        for _ in range(3):
            os.kill(os.getpid(), signal.SIGINT)
        assert heard == [signal.SIGINT] * 3
    assert [signal.getsignal(number) for number in STOP_SIGNALS] == before
    assert signal.set_wakeup_fd(wakeup) == wakeup
    assert not [t for t in threading.enumerate() if t.name == "inkdrop-signals"]


def test_in_another_thread_nothing_is_changed() -> None:
    before = [signal.getsignal(number) for number in STOP_SIGNALS]
    seen = []

    def inside() -> None:
        with handling_stop_signals(print, grace=1):
            seen.append([signal.getsignal(number) for number in STOP_SIGNALS])

    thread = threading.Thread(target=inside)
    thread.start()
    thread.join()
    assert seen == [before]


# hashlib computes for an hour, and no signal is handled in Python meanwhile. A timer says when it
# is at it: a signal before that would be heard.
STUCK = """
import hashlib, sys, threading, time
from inkdrop.training.signals import handling_stop_signals
with handling_stop_signals(lambda number: print("heard", flush=True), grace=0.3):
    if sys.argv[1] == "stuck":
        threading.Timer(0.5, print, ["ready"], {"flush": True}).start()
        hashlib.pbkdf2_hmac("sha256", b"", b"", 2**31 - 1)
    else:
        print("ready", flush=True)
        sys.stdin.readline()
        time.sleep(0.6)
"""


@pytest.mark.parametrize(("state", "code"), [("stuck", 128 + signal.SIGTERM), ("waiting", 0)])
def test_a_process_that_is_stuck_ends_by_itself_and_another_does_not(state: str, code: int) -> None:
    process = subprocess.Popen(
        [sys.executable, "-c", STUCK, state],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    try:
        assert process.stdout is not None
        assert process.stdout.readline() == "ready\n"
        process.terminate()
        out, _ = process.communicate(None if state == "stuck" else "go on\n", timeout=30)
    finally:
        process.kill()
    assert process.returncode == code
    assert out == ("" if state == "stuck" else "heard\n")
