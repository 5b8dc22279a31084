"""Tensors in a folder of safetensors: many processes write it, each its part; any number read it.

torch.distributed.checkpoint writes the files (`shard-…safetensors`, at most one of each process).
Each file says where in the whole tensors its pieces belong, so that one process can put them
together without the others, and others can cut them anew. A tensor that is shared among processes
is a `torch.distributed.tensor.DTensor`, as FSDP2 makes them.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import torch
import torch.distributed as dist
from safetensors import SafetensorError, safe_open
from torch import Tensor

from .errors import InkdropError

# torch.distributed.checkpoint and .tensor are imported where they are used: that takes most of a
# second, and most of what uses this package shares no tensors.


def write_shards(
    folder: Path, tensors: dict[str, Tensor], group: dist.ProcessGroup | None = None
) -> None:
    """Write the tensors of all processes of a group into a folder, and wait for the disk.

    Collective: every process calls it with the same names. Of a DTensor each writes its own part;
    of a plain tensor, which all have alike, one writes the whole. The files are synced, the folder
    is not.

    Args:
        folder: where; made if it is missing, and otherwise empty.
        tensors: by their names. They must not change meanwhile: `host_copy` them to train on.
        group: the processes; all of them by default. In a thread, a gloo group that nothing else
            uses at the same time.

    Raises:
        OSError: on every process, when a disk refuses one of them.
        RuntimeError: when another process is lost.
    """
    from torch.distributed.checkpoint.hf_storage import HuggingFaceStorageWriter
    from torch.distributed.checkpoint.state_dict_saver import save

    with _failures_of_others(f"cannot write {folder}"):
        writer = HuggingFaceStorageWriter(str(folder), save_distributed=True)
        save(dict(tensors), storage_writer=writer, process_group=group)


def read_shards(folder: Path) -> dict[str, Tensor]:
    """The whole tensors of a folder of shards, on the CPU, by one process alone.

    Raises:
        InkdropError: for a folder that is not one of shards, or lacks a part of a tensor.
    """
    pieces = _pieces(folder)
    sizes = _sizes(folder, pieces)
    whole: dict[str, Tensor] = {}
    for path in dict.fromkeys(piece.path for piece in pieces):
        with safe_open(path, framework="pt") as file:
            for piece in (piece for piece in pieces if piece.path == path):
                part = file.get_tensor(piece.name)
                if piece.name not in whole:
                    whole[piece.name] = part.new_empty(sizes[piece.name])
                whole[piece.name][piece.place] = part
    return whole


def read_shards_into(
    folder: Path, tensors: dict[str, Tensor], group: dist.ProcessGroup | None = None
) -> None:
    """Fill tensors from a folder of shards; each process reads only its parts.

    How many processes wrote the folder does not matter. Collective where there is a process group:
    every process names the same tensors, of those that the folder holds.

    Args:
        folder: the shards.
        tensors: DTensors or plain ones, which are filled in place.
        group: the processes; all of them by default.

    Raises:
        InkdropError: for a folder that is damaged, or lacks one of the tensors or has it in another
            shape.
    """
    from torch.distributed.checkpoint.hf_storage import HuggingFaceStorageReader
    from torch.distributed.checkpoint.state_dict_loader import load

    sizes = _sizes(folder, _pieces(folder))
    for name, tensor in tensors.items():
        if name not in sizes:
            raise InkdropError(f"{folder} has no tensor {name}: it is of another network")
        if sizes[name] != tuple(tensor.shape):
            raise InkdropError(
                f"{name} is {sizes[name]} in {folder}, but {tuple(tensor.shape)} here: it is of "
                "another network"
            )
    with torch.no_grad():
        if not dist.is_initialized():
            whole = read_shards(folder)
            for name, tensor in tensors.items():
                tensor.copy_(whole[name])
            return
        with _failures_of_others(f"cannot read {folder}"):
            load(
                {name: tensor.detach() for name, tensor in tensors.items()},
                storage_reader=HuggingFaceStorageReader(str(folder)),
                process_group=group,
            )


def shard_names(folder: Path) -> frozenset[str]:
    """The names of the tensors that a folder of shards holds."""
    return frozenset(_sizes(folder, _pieces(folder)))


def is_shared(tensor: Tensor) -> bool:
    """Whether this is a DTensor, of which other processes hold other parts."""
    return hasattr(tensor, "to_local")


def local(tensor: Tensor) -> Tensor:
    """This process's part of a tensor, as memory that both use; a plain tensor is its own."""
    if not is_shared(tensor):
        return tensor
    with torch.no_grad():
        part: Tensor = tensor.to_local()  # type: ignore[attr-defined]
        return part


def full(tensor: Tensor) -> Tensor:
    """The whole tensor, on every process. Collective for a DTensor; a plain tensor is whole."""
    if not is_shared(tensor):
        return tensor
    with torch.no_grad():
        whole: Tensor = tensor.full_tensor()  # type: ignore[attr-defined]
        return whole


def share_like(whole: Tensor, like: Tensor) -> Tensor:
    """A whole tensor that all processes have, cut as `like` is: each keeps its part."""
    if not is_shared(like) or is_shared(whole):
        return whole
    from torch.distributed.tensor import DTensor, distribute_tensor

    assert isinstance(like, DTensor)
    return distribute_tensor(
        whole.to(like.device), like.device_mesh, like.placements, src_data_rank=None
    )


def host_copy(tensor: Tensor, buffer: Tensor | None = None) -> Tensor:
    """A copy in the CPU's memory; of a DTensor, of this process's part, still a DTensor.

    Args:
        tensor: what to copy.
        buffer: an earlier copy of a tensor like it, which is written over and returned.
    """
    if buffer is None:
        return tensor.detach().to("cpu", copy=True)
    local(buffer).copy_(local(tensor.detach()))
    return buffer


@dataclass(frozen=True)
class _Piece:
    """A part of a tensor in a file."""

    name: str
    path: Path
    start: tuple[int, ...]
    shape: tuple[int, ...]

    @property
    def end(self) -> tuple[int, ...]:
        return tuple(a + n for a, n in zip(self.start, self.shape, strict=True))

    @property
    def place(self) -> tuple[slice, ...]:
        return tuple(slice(a, b) for a, b in zip(self.start, self.end, strict=True))


def _pieces(folder: Path) -> list[_Piece]:
    """What the files of a folder hold, by their headers."""
    pieces = []
    for path in sorted(folder.glob("*.safetensors")):
        try:
            with safe_open(path, framework="pt") as file:
                told = json.loads((file.metadata() or {})["DCP_SHARDING_INFO"])
                for name in file.keys():  # noqa: SIM118 (it is no dict)
                    shape = tuple(file.get_slice(name).get_shape())
                    pieces.append(_Piece(name, path, tuple(told[name]["saved_offsets"]), shape))
        except (OSError, SafetensorError, KeyError, ValueError) as error:
            raise InkdropError(
                f"{path} is damaged: it is no shard of a checkpoint "
                f"({type(error).__name__}: {error}); use an earlier checkpoint"
            ) from None
    if not pieces:
        raise InkdropError(f"{folder} holds no shards (….safetensors): use an earlier checkpoint")
    return pieces


def _sizes(folder: Path, pieces: list[_Piece]) -> dict[str, tuple[int, ...]]:
    """The shapes of the whole tensors, once all of each is found to be there."""
    sizes: dict[str, tuple[int, ...]] = {}
    held: dict[str, int] = {}
    for piece in pieces:
        before = sizes.get(piece.name, piece.end)
        sizes[piece.name] = tuple(map(max, before, piece.end))
        held[piece.name] = held.get(piece.name, 0) + math.prod(piece.shape)
    for name, size in sizes.items():
        if held[name] != math.prod(size):
            raise InkdropError(
                f"{folder} is damaged: it holds {held[name]:,} of the {math.prod(size):,} numbers "
                f"of {name}, so a file is missing; use an earlier checkpoint"
            )
    return sizes


@contextmanager
def _failures_of_others(what: str) -> Iterator[None]:
    """Raise what went wrong in any of the processes as what it was."""
    from torch.distributed.checkpoint.api import CheckpointException

    try:
        yield
    except CheckpointException as failed:  # which is no Exception
        rank, (error, _) = min(failed.failures.items())
        if isinstance(error, OSError):
            reason = f"{what}: {error.strerror or error} (process {rank})"
            raise OSError(error.errno, reason) from error
        raise RuntimeError(f"{what}: {error} (process {rank})") from error
