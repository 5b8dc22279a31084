"""Training that is killed with SIGKILL again and again ends as if it had never been.

The processes are forked from a server that has imported everything, so that a start takes a moment.
benchmarks/kills.py does the same to the command line, for as long as you like.
"""

import json
import multiprocessing
import os
import signal
import socket
import sys
import time
from collections.abc import Callable, Sequence
from functools import partial
from multiprocessing.context import ForkServerProcess
from pathlib import Path
from typing import Any

import pytest
import torch

from inkdrop.config import Config
from inkdrop.data.images import Source
from inkdrop.processes import joined
from inkdrop.randomness import generator
from inkdrop.training.trainer import Trainer

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="there is no SIGKILL")

# What takes seconds to import: optimizers load torch._dynamo when they are made.
PRELOADED = ["inkdrop.training.trainer", "inkdrop.report.pictures", "torch._dynamo", "pytest"]
LOST_SECONDS = 15.0  # in which a job has to end that lost a process
# What may differ in metrics and manifests: times, and the hash of a manifest that holds them.
TIMES = {"seconds", "images_per_second", "data_wait", "manifest_sha256"}

Start = Callable[[Path], Sequence[ForkServerProcess]]


def train_as(rank: int, size: int, port: int, out: Path, config: Config, source: Source) -> None:
    """What a process of a job does."""
    torch.set_num_threads(1)
    if size > 1:
        os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
        os.environ |= {"RANK": str(rank), "LOCAL_RANK": str(rank)}
        os.environ |= {"WORLD_SIZE": str(size), "LOCAL_WORLD_SIZE": str(size)}
    with joined():
        trainer = Trainer(config, out, source=source)
        if rank == 0:
            with open(out.with_suffix(".starts"), "a") as file:
                file.write(f"{trainer.step}\n")
        trainer.run()


def start_processes(
    size: int, config: Config, source: Source, out: Path
) -> Sequence[ForkServerProcess]:
    """Start a job of `size` processes."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(PRELOADED)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    job = [
        context.Process(target=train_as, args=(rank, size, port, out, config, source), daemon=True)
        for rank in range(size)
    ]
    for process in job:
        process.start()
    return job


@pytest.fixture
def long_config(config: Callable[..., Config]) -> Config:
    """A few seconds of training, with many checkpoints."""
    made = config(steps=100)
    made.logging.checkpoint_every = 4
    made.logging.checkpoint_minutes = None
    return made


def newest_step(out: Path) -> int:
    """The step of the newest finished checkpoint."""
    return max((int(path.name[5:]) for path in out.glob("checkpoints/step-*")), default=0)


def is_saving(out: Path) -> bool:
    """Whether a checkpoint is half written."""
    return any(out.glob("checkpoints/.writing-*"))


def wait_until(true: Callable[[], bool], job: Sequence[ForkServerProcess]) -> None:
    """Wait until it is true, or the job has ended."""
    while not true() and any(process.is_alive() for process in job):
        time.sleep(0.0005)


def kill(job: Sequence[ForkServerProcess]) -> None:
    """SIGKILL to all of them."""
    for process in job:
        process.kill()
    for process in job:
        process.join()


def finish(start: Start, out: Path) -> None:
    """Let it train to its end."""
    job = start(out)
    for process in job:
        process.join()
    assert [process.exitcode for process in job] == [0] * len(job)


def killed_at(start: Start, out: Path, draw: Any, kind: int) -> bool:
    """Start it, and kill all of it at an instant of one of three kinds; False if it had ended."""
    before = newest_step(out)
    job = start(out)
    if kind == 0:
        time.sleep(draw.uniform(0, 0.3))
    elif kind == 1:
        wait_until(lambda: newest_step(out) > before, job)
        time.sleep(draw.uniform(0, 0.05))
    else:
        wait_until(lambda: is_saving(out), job)
        time.sleep(draw.uniform(0, 0.01))
    assert all(process.exitcode in (None, 0) for process in job)
    kill(job)
    return all(process.exitcode == -signal.SIGKILL for process in job)


def untimed(value: Any) -> Any:
    """A JSON value without what tells how long something took."""
    if isinstance(value, dict):
        return {key: untimed(inner) for key, inner in value.items() if key not in TIMES}
    return value


def contents(out: Path) -> dict[str, Any]:
    """All files of a run but the list of its sessions; of those that hold times, all else."""
    found: dict[str, Any] = {}
    for path in out.rglob("*"):
        name = str(path.relative_to(out))
        if path.name == "metrics.jsonl":
            found[name] = [untimed(json.loads(line)) for line in path.read_text().splitlines()]
        elif path.name == "checkpoint.json":
            found[name] = untimed(json.loads(path.read_bytes()))
        elif path.is_file() and path.name != "environment.json":
            found[name] = path.read_bytes()
    return found


def assert_same(out: Path, uninterrupted: Path) -> None:
    """No file more, no file fewer, all of them the same to the bit."""
    here, there = contents(out), contents(uninterrupted)
    assert sorted(here) == sorted(there)
    assert [name for name in here if here[name] != there[name]] == []


def test_one_process_killed_again_and_again(
    tmp_path: Path, long_config: Config, source: Source
) -> None:
    start = partial(start_processes, 1, long_config, source)
    finish(start, tmp_path / "uninterrupted")

    out, newest, kills = tmp_path / "killed", [0], 0
    for i in range(6):
        starts = started_at(out)
        kills += killed_at(start, out, generator(0, "kill", i), i % 3)
        newest.append(newest_step(out))
        # It goes on from the newest checkpoint there was, if it came that far.
        assert started_at(out)[len(starts) :] in ([], [newest[-2]])
        assert newest[-1] >= newest[-2]
        assert not any(out.glob("checkpoints/damaged-*"))
    assert kills >= 3
    finish(start, out)
    assert_same(out, tmp_path / "uninterrupted")


def test_two_processes_killed_together_and_alone(
    tmp_path: Path, long_config: Config, source: Source
) -> None:
    start = partial(start_processes, 2, long_config, source)
    finish(start, tmp_path / "uninterrupted")

    out = tmp_path / "killed"
    assert killed_at(start, out, generator(1, "kill"), 2)
    for lost in (0, 1):
        before = newest_step(out)
        job = start(out)
        wait_until(lambda before=before: newest_step(out) > before, job)
        job[lost].kill()
        other = job[1 - lost]
        other.join(LOST_SECONDS)
        still_there, exit_code = other.is_alive(), other.exitcode
        kill(job)
        assert not still_there, f"without rank {lost} the other one waits on"
        assert exit_code != 0, f"without rank {lost} the other one ends as if all were well"
    finish(start, out)
    assert_same(out, tmp_path / "uninterrupted")


def started_at(out: Path) -> list[int]:
    """The step that each start of a run which came that far went on from."""
    file = out.with_suffix(".starts")
    return [int(line) for line in file.read_text().splitlines()] if file.exists() else []
