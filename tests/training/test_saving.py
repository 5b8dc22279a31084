"""Training goes on while a checkpoint of what it was is written."""

import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

import pytest
import torch

from inkdrop.checkpoint import (
    Checkpoint,
    NonFiniteError,
    newest_checkpoint,
    read_checkpoint,
    write_checkpoint,
)
from inkdrop.errors import InkdropError
from inkdrop.training.saving import Saver, to_host


class Gate:
    """Writes checkpoints when it is opened."""

    def __init__(self) -> None:
        self.open = threading.Event()
        self.begun = threading.Event()

    def __call__(self, folder: Path, checkpoint: Checkpoint, keep: int) -> None:
        self.begun.set()
        assert self.open.wait(60)
        write_checkpoint(folder, checkpoint, keep)


def checkpoint(step: int, tensor: torch.Tensor, **state: Any) -> Checkpoint:
    return Checkpoint(step, {"weights": {"w": tensor}, "ema": {"w": tensor}}, state, 0.5)


def test_what_is_written_is_what_it_was_when_it_was_saved(tmp_path: Path) -> None:
    gate = Gate()
    saver = Saver(tmp_path, 3, gate)
    w, window = torch.ones(5), {"losses": [1.0]}
    saver.save(checkpoint(1, w, window=window))
    assert gate.begun.wait(60)
    assert newest_checkpoint(tmp_path) is None
    w.fill_(2.0)
    window["losses"].append(2.0)
    gate.open.set()
    saver.wait()
    back = read_checkpoint(tmp_path / "step-00000001", ("weights", "ema"))
    assert back.tensors["weights"]["w"].tolist() == [1.0] * 5
    assert back.tensors["ema"]["w"].tolist() == [1.0] * 5
    assert back.state == {"window": {"losses": [1.0]}}
    assert back.held_out_loss == 0.5


def test_the_one_before_is_waited_for_and_left_as_it_was(tmp_path: Path) -> None:
    gate = Gate()
    saver = Saver(tmp_path, 3, gate)
    w = torch.ones(5)
    saver.save(checkpoint(1, w))
    threading.Timer(0.2, gate.open.set).start()
    w.fill_(2.0)
    saver.save(checkpoint(2, w))
    assert saver.stalled > 0.1
    assert saver.copied < saver.stalled
    saver.wait()
    for step in (1, 2):
        back = read_checkpoint(tmp_path / f"step-{step:08d}", ("weights",))
        assert back.tensors["weights"]["w"].tolist() == [float(step)] * 5


def test_the_copies_are_kept_for_the_next_time() -> None:
    tied = torch.ones(4)
    tensors = {"weights": {"a": tied, "b": tied, "turned": torch.ones(2, 3).T}}
    first = to_host(tensors, {})
    second = to_host({"weights": {**tensors["weights"], "a": torch.zeros(5)}}, first)
    assert second["weights"]["b"] is first["weights"]["b"]
    assert second["weights"]["turned"] is first["weights"]["turned"]
    assert second["weights"]["a"].tolist() == [0.0] * 5
    first["weights"]["a"].fill_(7.0)
    assert first["weights"]["b"].tolist() == [1.0] * 4


@pytest.mark.parametrize("how", ["wait", "check", "save"])
def test_a_failure_is_told_once_by_what_is_called_next(tmp_path: Path, how: str) -> None:
    (tmp_path / "checkpoints").write_text("a file is in the way")
    saver = Saver(tmp_path / "checkpoints", 3)
    saver.save(checkpoint(1, torch.ones(5)))
    next_call = {"wait": saver.wait, "check": saver.check}.get(
        how, lambda: saver.save(checkpoint(2, torch.ones(5)))
    )
    while saver.busy:
        time.sleep(0.001)
    with pytest.raises(InkdropError, match=r"could not write the checkpoint .*step-00000001"):
        next_call()
    saver.check()
    saver.wait()


def test_check_does_not_wait_and_finish_tells_nothing(tmp_path: Path) -> None:
    gate = Gate()
    saver = Saver(tmp_path, 3, gate)
    saver.save(checkpoint(1, torch.tensor([torch.nan])))
    saver.check()
    gate.open.set()
    saver.finish()
    saver.wait()
    assert list(tmp_path.iterdir()) == []


def test_what_is_not_finite_is_told(tmp_path: Path) -> None:
    saver = Saver(tmp_path, 3)
    saver.save(checkpoint(1, torch.tensor([1.0, torch.inf])))
    with pytest.raises(NonFiniteError, match="w of the weights holds 1 value of 2"):
        saver.wait()


LEAVING = """
import sys
from pathlib import Path
sys.path.insert(0, sys.argv[2])
import torch
from inkdrop.training.saving import Saver
from test_saving import checkpoint
saver = Saver(Path(sys.argv[1]), 3)
saver.save(checkpoint(1, torch.ones(3_000_000)))
raise RuntimeError("something else")
"""


def test_what_is_being_written_when_the_program_fails_is_finished(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-c", LEAVING, str(tmp_path), str(Path(__file__).parent)],
        capture_output=True,
        text=True,
    )
    assert done.stderr.endswith("RuntimeError: something else\n")
    assert [path.name for path in tmp_path.iterdir()] == ["step-00000001"]
    back = read_checkpoint(tmp_path / "step-00000001", ("weights", "ema"))
    assert back.tensors["ema"]["w"].sum() == 3_000_000


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_from_a_gpu_it_is_copied_to_pinned_memory() -> None:
    tensors = {"weights": {"w": torch.arange(10_000_000, device="cuda")}}
    copies = to_host(tensors, {})
    tensors["weights"]["w"].zero_()
    assert copies["weights"]["w"].is_pinned()
    assert torch.equal(copies["weights"]["w"], torch.arange(10_000_000))
