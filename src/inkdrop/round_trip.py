"""How long processes take to agree: the round trip of an all-reduce.

`python -m inkdrop.round_trip PORT RANK` is one of two processes that try it over gloo on this
machine; the first prints what it measured, as JSON.
"""

from __future__ import annotations

import json
import re
import socket
import statistics
import subprocess
import sys
import time
from dataclasses import asdict, dataclass
from datetime import timedelta

import torch
import torch.distributed as dist
from torch.distributed import TCPStore  # type: ignore[attr-defined]

from .errors import InkdropError

SECONDS = 30.0  # after which two processes that have not found each other never will
LARGE = 16 * 2**20  # bytes
_SMALL_TIMES, _LARGE_TIMES, _WARM_UP = 50, 5, 2
_HOST = "localhost"


@dataclass(frozen=True)
class RoundTrip:
    """The median all-reduce, in seconds: of one number, and of 16 MiB."""

    small: float
    large: float

    def __str__(self) -> str:
        return (
            f"{self.small * 1e3:.2f} ms for a number, {self.large * 1e3:.1f} ms for 16 MiB "
            f"({LARGE / self.large / 1e9:.2g} GB/s)"
        )


def measure(device: torch.device) -> RoundTrip:
    """Time all-reduces of the processes of this job (collective: all have to call it)."""

    def median(numbers: int, times: int) -> float:
        tensor = torch.zeros(numbers, device=device)
        took = []
        for _ in range(_WARM_UP + times):
            began = time.perf_counter()
            dist.all_reduce(tensor)
            if device.type == "cuda":
                torch.cuda.synchronize(device)
            took.append(time.perf_counter() - began)
        return statistics.median(took[_WARM_UP:])

    return RoundTrip(median(1, _SMALL_TIMES), median(LARGE // 4, _LARGE_TIMES))


def between_two_processes(seconds: float = SECONDS, host: str = _HOST) -> RoundTrip:
    """Start two processes on this machine that measure the round trip between them over gloo.

    Raises:
        InkdropError: if they do not come to an end in time, or fail.
    """
    try:
        with socket.create_server((host, 0)) as free:
            port = free.getsockname()[1]
    except OSError as error:
        raise _cannot(f"{host}: {error.strerror or error}") from error
    started = [
        subprocess.Popen(
            [sys.executable, "-m", __name__, host, str(port), str(rank)],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for rank in range(2)
    ]
    end = time.monotonic() + seconds
    try:
        said = [p.communicate(timeout=max(0.0, end - time.monotonic())) for p in started]
    except subprocess.TimeoutExpired:
        raise _cannot(f"they had not found each other after {seconds:g} s") from None
    finally:
        for process in started:
            process.kill()
            process.wait()
    for process, (_, complaint) in zip(started, said, strict=True):
        if process.returncode:
            lines = complaint.strip().splitlines() or [f"exit code {process.returncode}"]
            errors = [line for line in lines if re.match(r"[\w.]+Error: ", line)]
            raise _cannot((errors or lines)[-1])
    return RoundTrip(**json.loads(said[0][0]))


def _cannot(why: str) -> InkdropError:
    return InkdropError(
        f"two processes on this machine cannot talk to each other over gloo: {why[:300]}; see that "
        f"{_HOST} and this machine's own name can be looked up (/etc/hosts), that no firewall "
        "stands between, or name the loopback interface (GLOO_SOCKET_IFNAME=lo)"
    )


def _main(host: str, port: str, rank: str) -> None:
    wait = timedelta(seconds=SECONDS)
    store = TCPStore(host, int(port), is_master=rank == "0", timeout=wait)
    dist.init_process_group("gloo", store=store, rank=int(rank), world_size=2, timeout=wait)
    found = measure(torch.device("cpu"))
    if rank == "0":
        print(json.dumps(asdict(found)))  # noqa: T201
    dist.destroy_process_group()


if __name__ == "__main__":
    _main(*sys.argv[1:])
