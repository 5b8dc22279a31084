"""Many processes as one: which of them this is, and how they come to agree.

torch.distributed does the work, started by torchrun: NCCL between GPUs, gloo between CPUs. One
process alone goes the same way, and nothing here costs it anything.
"""

from __future__ import annotations

import hashlib
import os
import time
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from functools import cache
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed.distributed_c10d import PrefixStore, _get_default_store
from torch.distributed.rendezvous import rendezvous

from .errors import InkdropError
from .launcher import launched, number, rank_told

T = TypeVar("T")

_LOST = ("gloo", "Connection closed by peer", "Connection reset by peer", "NCCL")
# gloo's threads drop the last tensors a little after they were reduced, which takes Python's lock;
# where the interpreter is torn down meanwhile, one of them aborts the process.
_LETTING_GO = 0.2  # seconds
_FOREVER = timedelta(days=365)
_JOINING = timedelta(minutes=5)
_LOOKS = 0.01  # seconds between looks for those that join
_COLLECTIVE = timedelta(minutes=30)  # a collective that takes longer is lost


class ProcessLost(InkdropError):
    """Another process of the job ended, so that this one cannot go on."""

    exit_code = 1


@dataclass(frozen=True)
class Processes:
    """The processes of a job, seen from one of them.

    Attributes:
        rank: which this is, 0 … size - 1.
        size: how many there are.
        local_rank: which it is on its machine.
        local_size: how many are on its machine.
    """

    rank: int = 0
    size: int = 1
    local_rank: int = 0
    local_size: int = 1
    _store: Any = None

    @property
    def first(self) -> bool:
        """Whether this is the one that writes and speaks for all."""
        return self.rank == 0

    def share(self, count: int) -> range:
        """This process's part of `count` things: neighbours; the parts differ by at most one."""
        return range(self.rank * count // self.size, (self.rank + 1) * count // self.size)

    def gather(self, rows: Tensor) -> Tensor:
        """The rows (n, …) of all processes, joined in order, on every process.

        On the device they are on. How many rows a process has may differ.
        """
        if self.size == 1:
            return rows
        with telling_of_lost_processes():
            counts = self.gather_equal(torch.tensor([len(rows)], device=rows.device)).tolist()
            longest = max(counts)
            padded = rows.new_zeros((longest, *rows.shape[1:]))
            padded[: len(rows)] = rows
            parts = [torch.empty_like(padded) for _ in self._all]
            dist.all_gather(parts, padded)
        return torch.cat([part[:n] for part, n in zip(parts, counts, strict=True)])

    def gather_equal(self, rows: Tensor) -> Tensor:
        """As `gather`, where every process has as many rows: one round trip instead of two."""
        if self.size == 1:
            return rows
        parts = [torch.empty_like(rows) for _ in self._all]
        with telling_of_lost_processes():
            dist.all_gather(parts, rows.contiguous())
        return torch.cat(parts)

    def broadcast(self, value: T) -> T:
        """What the first process gives here, on every process: anything small that pickles."""
        if self.size == 1:
            return value
        held: list[Any] = [value]
        with telling_of_lost_processes():
            dist.broadcast_object_list(held, src=0, device=torch.device("cpu"))
        received: T = held[0]
        return received

    def gather_objects(self, value: T) -> list[T]:
        """What every process gives here, in order, on all of them: anything small that pickles."""
        if self.size == 1:
            return [value]
        held: list[Any] = [None] * self.size
        with telling_of_lost_processes():
            dist.all_gather_object(held, value)
        return held

    def on_first(self, do: Callable[[], T]) -> T:
        """What `do` returns in the first process, on every process; its mistakes too are theirs.

        Raises:
            InkdropError: the one that `do` raised in the first.
        """
        if self.size == 1:
            return do()
        mistake, result = None, None
        if self.first:
            try:
                result = do()
            except InkdropError as error:
                mistake = error
        mistake, result = self.broadcast((mistake, result))
        if mistake is not None:
            raise mistake
        answer: T = result  # type: ignore[assignment]
        return answer

    def tensors_of_first(self, tensors: dict[str, Tensor] | None) -> dict[str, Tensor]:
        """The first process's tensors, on every process's CPU; the others give None."""
        if self.size == 1:
            assert tensors is not None
            return tensors
        told = self.broadcast(
            [(name, tensor.shape, tensor.dtype) for name, tensor in (tensors or {}).items()]
        )
        received = {}
        for name, shape, dtype in told:
            tensor = torch.empty(shape, dtype=dtype)
            if tensors is not None:
                tensor.copy_(tensors[name])
            self.broadcast_tensor(tensor)
            received[name] = tensor
        return received

    def broadcast_tensor(self, tensor: Tensor) -> None:
        """Fill a contiguous tensor with the first process's, which has its shape and dtype."""
        if self.size > 1:
            with telling_of_lost_processes():
                dist.broadcast(tensor, src=0)

    def wait_for_all(self, what: str) -> None:
        """Go on when every process has come here, however long one takes; once for each `what`.

        No collective is held open meanwhile.
        """
        if self.size == 1:
            return
        with telling_of_lost_processes():
            if self._store.add(f"arrived/{what}", 1) == self.size:
                self._store.set(f"all/{what}", "")
            self._store.wait([f"all/{what}"], _FOREVER)

    @contextmanager
    def one_here_first(self, what: str) -> Iterator[None]:
        """Let one process of each machine do this, then the others: they find what it left.

        Once for each `what`.
        """
        key = f"here first/{what}/{self.rank - self.local_rank}"
        if self.size > 1 and self.local_rank > 0:
            with telling_of_lost_processes():
                self._store.wait([key], _FOREVER)
        try:
            yield
        finally:  # the others meet what went wrong themselves
            if self.size > 1 and self.local_rank == 0:
                self._store.set(key, "")

    def is_first_to_say(self, message: str) -> bool:
        """Whether no other process has said this: what goes wrong in all is told once."""
        if self.size == 1:
            return True
        digest = hashlib.sha256(message.encode()).hexdigest()
        try:
            return int(self._store.add(f"said/{digest}", 1)) == 1
        except RuntimeError:
            return True  # whoever kept count is gone

    @property
    def _all(self) -> range:
        return range(self.size)


_current = Processes()


def current() -> Processes:
    """The job that this process has joined; itself alone outside of `joined`."""
    return _current


@contextmanager
def joined() -> Iterator[Processes]:
    """Inside, this process is one of its job: as torchrun says, or alone where nothing was said.

    Each process takes a GPU of its own where there are enough. A process group that the program has
    made itself is used, and left as it is.

    Raises:
        InkdropError: for more processes on a machine than it has GPUs, or if the others cannot be
            reached.
    """
    global _current
    if _current.size > 1 or (not launched() and not dist.is_initialized()):
        yield _current
        return
    own = not dist.is_initialized()
    _current = _join() if own else _found()
    ended_well = False
    try:
        yield _current
        ended_well = True
    finally:
        # After a failure others may be waiting in a collective: closing it properly would wait too.
        if own and ended_well:
            dist.destroy_process_group()
            time.sleep(_LETTING_GO)
        _current = Processes()


def _join() -> Processes:
    rank, size = rank_told(), number("WORLD_SIZE", 1)
    local_rank, local_size = number("LOCAL_RANK", rank), number("LOCAL_WORLD_SIZE", size)
    backend = "gloo"
    if torch.cuda.is_available():
        if local_size > torch.cuda.device_count():
            raise InkdropError(
                f"{local_size} processes were started on a machine with "
                f"{torch.cuda.device_count()} GPUs: give torchrun at most that many "
                "--nproc-per-node, or hide the GPUs (CUDA_VISIBLE_DEVICES=) to train on its cores"
            )
        torch.cuda.set_device(local_rank)
        backend = "cpu:gloo,cuda:nccl"
    try:
        where = (os.environ.get("MASTER_ADDR"), os.environ.get("MASTER_PORT"))
        store = _unused(PrefixStore("inkdrop", _connected(*where, rank, size)), rank, size)
        dist.init_process_group(
            backend,
            store=PrefixStore("torch", store),
            rank=rank,
            world_size=size,
            timeout=_COLLECTIVE,
        )
    except (RuntimeError, ValueError) as error:
        address = f"{os.environ.get('MASTER_ADDR')}:{os.environ.get('MASTER_PORT')}"
        raise InkdropError(
            f"process {rank} of {size} cannot join the others at {address}: "
            f"{str(error).splitlines()[0]}; start them with torchrun, and see that they can reach "
            "that address"
        ) from error
    return Processes(rank, size, local_rank, local_size, PrefixStore("inkdrop", store))


@cache
def _connected(*job: str | int | None) -> Any:
    """The store of a job that the environment tells of too; once, for torch may hang the next time.

    Seen in some hundred connections: the launcher's store does not answer a new one.
    """
    store, _, _ = next(iter(rendezvous("env://", timeout=_JOINING)))
    return store


def _unused(store: Any, rank: int, size: int) -> Any:
    """A part of a store in which nothing is left of an earlier start.

    torchrun keeps the store when it starts its processes again, where the addresses of those that
    ended would be taken for those of the new ones. So the first process names every start, and
    answers the others' questions, which are new each time: those of before wait for no answer.

    Raises:
        RuntimeError: if some do not come.
    """
    name = uuid.uuid4().hex
    if rank > 0:
        store.set(f"asked/{rank}", name)
        store.wait([f"answered/{name}"], _JOINING)
        name = store.get(f"answered/{name}").decode()
        store.set(f"joined/{name}/{rank}", "")
        return PrefixStore(name, store)
    missing, until = list(range(1, size)), time.monotonic() + _JOINING.total_seconds()
    while missing:
        for other in missing:
            if store.check([f"asked/{other}"]):
                store.set(f"answered/{store.get(f'asked/{other}').decode()}", name)
        missing = [other for other in missing if not store.check([f"joined/{name}/{other}"])]
        if missing and time.monotonic() > until:
            raise RuntimeError(f"of the others {missing} did not come within {_JOINING}")
        time.sleep(_LOOKS)
    return PrefixStore(name, store)


def _found() -> Processes:
    """The process group that the program made."""
    rank, size = dist.get_rank(), dist.get_world_size()
    store = _unused(PrefixStore("inkdrop", _get_default_store()), rank, size)
    return Processes(
        rank,
        size,
        number("LOCAL_RANK", rank),
        number("LOCAL_WORLD_SIZE", size),
        PrefixStore("inkdrop", store),
    )


@contextmanager
def telling_of_lost_processes() -> Iterator[None]:
    """Turn what a failed collective raises into `ProcessLost`.

    torch's own messages name a socket or a NCCL call; the reason is on another process's screen.
    """
    try:
        yield
    except RuntimeError as error:
        known = any(text in str(error) for text in _LOST)
        if _current.size == 1 or not (known or isinstance(error, dist.DistError)):
            raise
        raise ProcessLost(
            f"process {_current.rank} cannot go on without the others: one of them has ended, and "
            f"its own message says why ({str(error).splitlines()[0][:160]})"
        ) from error
