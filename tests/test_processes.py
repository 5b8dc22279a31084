"""Processes agree: on what each does, on what one found, and on what went wrong."""

import json
import os
import socket
import subprocess
import sys
import threading

import pytest
import torch
import torch.distributed as dist

import inkdrop.processes
from inkdrop.errors import InkdropError
from inkdrop.launcher import launched, rank_told
from inkdrop.processes import (
    Processes,
    ProcessLost,
    current,
    joined,
    telling_of_lost_processes,
)

ALONE = Processes()


@pytest.mark.parametrize("variable", ["WORLD_SIZE", "RANK"])
def test_nonsense_in_the_environment_is_told_in_one_line(
    monkeypatch: pytest.MonkeyPatch, variable: str
) -> None:
    for name in ("WORLD_SIZE", "RANK"):
        monkeypatch.setenv(name, "x" if name == variable else "2")
    with pytest.raises(InkdropError, match=f"{variable} must be a whole number.*got 'x'"):
        rank_told()


def test_one_alone_gives_back_what_it_is_given() -> None:
    rows = torch.arange(6).reshape(3, 2)
    assert ALONE.first
    assert ALONE.share(7) == range(7)
    assert ALONE.gather(rows) is rows
    assert ALONE.gather_equal(rows) is rows
    assert ALONE.broadcast("x") == "x"
    assert ALONE.gather_objects("x") == ["x"]
    assert ALONE.on_first(lambda: 3) == 3
    tensors = {"a": rows}
    assert ALONE.tensors_of_first(tensors) is tensors
    ALONE.broadcast_tensor(rows)
    ALONE.wait_for_all("nothing")
    with ALONE.one_here_first("nothing"):
        pass
    assert ALONE.is_first_to_say("x")
    assert ALONE.is_first_to_say("x")
    with pytest.raises(InkdropError, match="mine"):
        ALONE.on_first(mistaken)


def mistaken() -> None:
    raise InkdropError("mine")


@pytest.mark.parametrize("size", [1, 2, 3, 4, 7])
@pytest.mark.parametrize("count", [0, 1, 2, 5, 7, 64, 101])
def test_shares_are_neighbours_that_make_up_the_whole(size: int, count: int) -> None:
    shares = [Processes(rank, size).share(count) for rank in range(size)]
    assert [i for share in shares for i in share] == list(range(count))
    assert max(map(len, shares)) - min(map(len, shares)) <= 1


@pytest.mark.parametrize(
    ("environment", "many", "rank"),
    [
        ({}, False, 0),
        ({"WORLD_SIZE": "1", "RANK": "0"}, False, 0),
        ({"WORLD_SIZE": "4"}, False, 0),  # nobody says which
        ({"WORLD_SIZE": "4", "RANK": "3"}, True, 3),
    ],
)
def test_the_environment_tells_what_was_launched(
    monkeypatch: pytest.MonkeyPatch, environment: dict[str, str], many: bool, rank: int
) -> None:
    for name in ("WORLD_SIZE", "RANK"):
        monkeypatch.delenv(name, raising=False)
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    assert launched() is many
    assert rank_told() == rank


def test_without_a_launcher_one_joins_itself() -> None:
    with joined() as processes, joined() as again:
        assert processes == again == current() == Processes(0, 1, 0, 1)
    assert current() == Processes()


@pytest.fixture
def two(monkeypatch: pytest.MonkeyPatch) -> None:
    """As if this were one of two processes."""
    monkeypatch.setattr(inkdrop.processes, "_current", Processes(1, 2))


def test_a_lost_process_is_told_of_on_one_line(two: None) -> None:
    lost = RuntimeError("[gloo/transport] Connection closed by peer [::1]:1234\nmore\nlines")
    with pytest.raises(ProcessLost) as caught, telling_of_lost_processes():
        raise lost
    assert caught.value.exit_code == 1
    message = str(caught.value)
    assert message.startswith("process 1 cannot go on without the others")
    assert "Connection closed by peer" in message
    assert "\n" not in message
    with pytest.raises(ProcessLost), telling_of_lost_processes():
        raise dist.DistBackendError("whatever it says")


def test_other_errors_and_those_of_one_alone_stay_what_they_are(
    monkeypatch: pytest.MonkeyPatch, two: None
) -> None:
    with pytest.raises(RuntimeError, match="shape") as caught, telling_of_lost_processes():
        raise RuntimeError("shape mismatch")
    assert not isinstance(caught.value, ProcessLost)
    monkeypatch.setattr(inkdrop.processes, "_current", ALONE)
    with pytest.raises(RuntimeError, match="gloo") as caught, telling_of_lost_processes():
        raise RuntimeError("gloo")
    assert not isinstance(caught.value, ProcessLost)


# What needs no collective, with threads for processes


def on_threads(size: int, do) -> list:
    """What `do` returns for each of `size` processes, which are threads here."""
    store, results = dist.HashStore(), [None] * size

    def run(rank: int) -> None:
        results[rank] = do(Processes(rank, size, rank, size, dist.PrefixStore("inkdrop", store)))

    threads = [threading.Thread(target=run, args=(rank,)) for rank in range(size)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return results


def test_all_wait_for_the_last_and_one_is_first() -> None:
    events: list[tuple[str, int]] = []
    late = threading.Event()

    def do(processes: Processes) -> bool:
        if processes.rank == 2:
            late.wait(0.05)
        with processes.one_here_first("cache"):
            events.append(("here", processes.rank))
        events.append(("came", processes.rank))
        processes.wait_for_all("met")
        events.append(("left", processes.rank))
        return processes.is_first_to_say("all the same")

    told = on_threads(3, do)
    assert events[0] == ("here", 0)
    assert {name for name, _ in events[:6]} == {"here", "came"}
    assert {name for name, _ in events[6:]} == {"left"}
    assert sorted(told) == [False, False, True]


def test_what_fails_for_the_first_one_does_not_keep_the_others() -> None:
    def do(processes: Processes) -> str:
        try:
            with processes.one_here_first("cache"):
                if processes.first:
                    raise InkdropError("no room")
        except InkdropError as error:
            return str(error)
        return "went on"

    assert on_threads(2, do) == ["no room", "went on"]


# Two processes that are real

WORKER = """
import json, torch
import torch.distributed as dist
from inkdrop.errors import InkdropError
from inkdrop.processes import current, joined

def mistaken():
    raise InkdropError("only the first one sees it")

with joined() as p:
    assert current() is p
    found = {"rank": p.rank, "size": p.size, "first": p.first}
    rows = torch.arange(3 * p.rank, dtype=torch.float64).reshape(-1, 3) + 10 * p.rank
    found["gathered"] = p.gather(rows).tolist()
    found["equal"] = p.gather_equal(torch.tensor([p.rank, 5])).tolist()
    found["told"] = p.broadcast({"rank": p.rank})
    found["objects"] = p.gather_objects(f"of {p.rank}")
    found["done"] = p.on_first(lambda: [p.rank, "done"])
    try:
        p.on_first(mistaken)
    except InkdropError as error:
        found["mistake"] = str(error)
    mine = {"a": torch.full((2, 3), 7.5), "empty": torch.zeros(0), "scalar": torch.tensor(3),
            "strided": torch.arange(6).reshape(2, 3).T}
    received = p.tensors_of_first(mine if p.first else None)
    found["tensors"] = {k: [str(t.dtype), t.tolist()] for k, t in received.items()}
    own = torch.full((2,), float(p.rank))
    p.broadcast_tensor(own)
    found["own"] = own.tolist()
    p.wait_for_all("met")
    with joined() as again:
        assert again is p
found["after"] = [dist.is_initialized(), current().size]
print(json.dumps(found))
"""


def test_two_processes_agree() -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    told = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "WORLD_SIZE": "2"}
    job = [
        subprocess.Popen(
            [sys.executable, "-c", WORKER],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            env=os.environ | told | {"RANK": str(rank), "OMP_NUM_THREADS": "1"},
        )
        for rank in range(2)
    ]
    try:
        answers = [process.communicate(timeout=120) for process in job]
    finally:
        for process in job:
            process.kill()
    assert [process.returncode for process in job] == [0, 0], answers
    found = [json.loads(out) for out, _ in answers]
    assert [(f.pop("rank"), f.pop("first")) for f in found] == [(0, True), (1, False)]
    assert found[0] == found[1]
    assert found[0] == {
        "size": 2,
        "gathered": [[10.0, 11.0, 12.0]],  # the first one has no row
        "equal": [0, 5, 1, 5],
        "told": {"rank": 0},
        "objects": ["of 0", "of 1"],
        "done": [0, "done"],
        "mistake": "only the first one sees it",
        "tensors": {
            "a": ["torch.float32", [[7.5] * 3] * 2],
            "empty": ["torch.float32", []],
            "scalar": ["torch.int64", 3],
            "strided": ["torch.int64", [[0, 3], [1, 4], [2, 5]]],
        },
        "own": [0.0, 0.0],
        "after": [False, 1],
    }
