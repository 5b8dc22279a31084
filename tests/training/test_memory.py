"""Out of memory is told with its numbers, and the largest part that fits is found."""

import math
from pathlib import Path

import pytest
import torch

from inkdrop.errors import InkdropError
from inkdrop.training import memory
from inkdrop.training.memory import find_parts, find_parts_on_cpu, is_out_of_memory, out_of_memory

CPU = torch.device("cpu")
CUDA = (
    "CUDA out of memory. Tried to allocate 20.50 MiB. GPU 0 has a total capacity of 15.77 GiB of "
    "which 12.94 MiB is free.\nProcess 1 has more."
)
MPS = "MPS backend out of memory (MPS allocated: 8.9 GB). Tried to allocate 2.00 GB on private pool"


def allocation_failure() -> RuntimeError:
    """PyTorch's own, for more than any machine has."""
    with pytest.raises(RuntimeError) as caught:
        torch.empty(2**60, dtype=torch.uint8)
    return caught.value


@pytest.mark.parametrize(
    ("error", "asked"),
    [
        (torch.OutOfMemoryError(CUDA), "20.5 MiB more were asked for"),
        (RuntimeError(MPS), "2.0 GiB more were asked for"),
        (allocation_failure(), "1073741824.0 GiB more were asked for"),
        (MemoryError(), "there are"),
        (RuntimeError("cuDNN error: CUDNN_STATUS_ALLOC_FAILED"), "there are"),
    ],
    ids=["cuda", "mps", "cpu", "python", "cudnn"],
)
def test_every_kind_is_known_and_told_on_one_line(error: BaseException, asked: str) -> None:
    assert is_out_of_memory(error)
    message = str(out_of_memory(error, CPU, 128, 2))
    assert "cpu is out of memory in a step of 128 examples at once" in message
    assert asked in message
    assert "--batch-size auto" in message
    assert "--training.accumulation 4" in message
    assert "\n" not in message


def test_other_errors_are_not_taken_for_it() -> None:
    assert not is_out_of_memory(RuntimeError("shape mismatch"))
    assert not is_out_of_memory(ValueError("out of memory"))


def test_single_examples_cannot_be_split() -> None:
    message = str(out_of_memory(MemoryError(), CPU, 1, 128))
    assert "1 example at once" in message
    assert "accumulation" not in message
    assert "smaller network" in message


class Device:
    """Has room for `room` examples at once, and holds what a failed attempt leaves behind."""

    def __init__(self, room: int) -> None:
        self.room, self.asked = room, []

    def step(self, rows: int) -> None:
        self.asked.append(rows)
        if rows > self.room:
            raise torch.OutOfMemoryError(CUDA)


@pytest.mark.parametrize(
    ("rows", "room", "parts"), [(64, 64, 1), (64, 63, 2), (9, 2, 9), (6, 2, 3), (1, 1, 1)]
)
def test_the_fewest_parts_that_fit_are_found(rows: int, room: int, parts: int) -> None:
    device = Device(room)
    assert find_parts(device.step, rows, CPU) == parts
    assert device.asked[-1] == rows // parts
    assert device.asked == sorted(device.asked, reverse=True)


def test_processes_agree_on_the_most_parts() -> None:
    said: list[int] = []

    def agree(parts: int) -> int:
        said.append(parts)
        return max(parts, 8)

    assert find_parts(Device(32).step, 64, CPU, agree) == 8
    assert said == [2]


def test_what_does_not_fit_at_all_is_told_by_all_processes() -> None:
    said: list[int] = []
    with pytest.raises(InkdropError, match="1 example at once"):
        find_parts(Device(0).step, 2, CPU, lambda parts: said.append(parts) or parts)
    assert said == [3]  # the others are not left waiting
    with pytest.raises(InkdropError, match="another process's device"):
        find_parts(Device(8).step, 8, CPU, lambda _: 9)


def test_other_errors_of_an_attempt_are_raised_as_they_are() -> None:
    def broken(rows: int) -> None:
        raise RuntimeError("shape mismatch")

    with pytest.raises(RuntimeError, match="shape mismatch"):
        find_parts(broken, 8, CPU)


MIB = 2**20


def touching(rows: int) -> None:
    """A step of 20 MiB and 10 MiB an example."""
    held = torch.ones((20 + 10 * rows) * MIB, dtype=torch.uint8)
    for _ in range(5):
        held.add_(1)


@pytest.mark.parametrize(("free", "parts"), [(1200, 1), (330, 4), (90, 8)])
def test_a_cpus_parts_are_estimated_from_a_few_examples(
    monkeypatch: pytest.MonkeyPatch, free: int, parts: int
) -> None:
    asked: list[int] = []

    def step(rows: int) -> None:
        asked.append(rows)
        touching(rows)

    monkeypatch.setattr(memory, "_available", lambda: 2.0 * free * MIB)
    assert find_parts_on_cpu(step, 64, processes=2) == parts
    assert max(asked) == 8


def test_a_containers_limit_counts(monkeypatch: pytest.MonkeyPatch) -> None:
    texts = {
        "memory.max": "1000\n",
        "memory.current": "900\n",
        "memory.stat": "anon 700\ninactive_file 150\nactive_file 50\n",
    }
    monkeypatch.setattr(Path, "read_text", lambda path: texts[path.name])
    assert memory._available() == 300
    texts["memory.max"] = "max\n"
    assert 1e6 < memory._available() < math.inf
