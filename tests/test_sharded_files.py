"""Folders of shards: what is read is what was written, and nothing else is read."""

from pathlib import Path

import pytest
import safetensors.torch
import torch
import torch.distributed as dist

from inkdrop.errors import InkdropError
from inkdrop.sharded_files import (
    full,
    host_copy,
    is_shared,
    local,
    read_shards,
    read_shards_into,
    shard_names,
    share_like,
    write_shards,
)

TENSORS = {
    "weight": torch.arange(12, dtype=torch.float64).reshape(4, 3),
    "exp_avg/half": torch.ones(5, dtype=torch.bfloat16),
    "step": torch.tensor(7.0),
    "count": torch.tensor([1, 2], dtype=torch.int64),
    "none": torch.zeros(0, 3),
}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Shards that a job of one process wrote."""
    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    try:
        write_shards(tmp_path / "weights", TENSORS)
    finally:
        dist.destroy_process_group()
    return tmp_path / "weights"


def in_parts(folder: Path, pieces: dict[str, list[tuple[list[int], torch.Tensor]]]) -> Path:
    """Shards of any cut, each in a file of its own, as torch.distributed.checkpoint has them."""
    folder.mkdir()
    for name, parts in pieces.items():
        for i, (start, part) in enumerate(parts):
            told = f'{{"{name}": {{"saved_offsets": {start}}}}}'
            path = folder / f"shard-{name}-{i}.safetensors"
            safetensors.torch.save_file({name: part}, path, {"DCP_SHARDING_INFO": told})
    return folder


def test_what_is_read_is_what_was_written(folder: Path) -> None:
    read = read_shards(folder)
    torch.testing.assert_close(read, TENSORS, rtol=0, atol=0)
    assert shard_names(folder) == TENSORS.keys()
    assert [path.suffix for path in folder.iterdir()] == [".safetensors"]


def test_tensors_are_filled_in_place(folder: Path) -> None:
    into = {name: torch.full_like(t, 3) for name, t in TENSORS.items() if name != "count"}
    memory = {name: t.data_ptr() for name, t in into.items()}
    read_shards_into(folder, into)
    for name, tensor in into.items():
        assert torch.equal(tensor, TENSORS[name]), name
        assert tensor.data_ptr() == memory[name]


def test_a_file_is_plain_safetensors(folder: Path) -> None:
    (path,) = folder.iterdir()
    torch.testing.assert_close(safetensors.torch.load_file(path), TENSORS, rtol=0, atol=0)


def test_pieces_are_put_where_they_belong(tmp_path: Path) -> None:
    whole = torch.arange(20).reshape(4, 5)
    pieces = [([2, 0], whole[2:]), ([0, 3], whole[:2, 3:]), ([0, 0], whole[:2, :3])]
    pieces = [(start, part.contiguous()) for start, part in pieces]
    assert torch.equal(read_shards(in_parts(tmp_path / "a", {"w": pieces}))["w"], whole)


@pytest.mark.parametrize("missing", [0, 1, 2])
def test_a_missing_file_is_noticed(tmp_path: Path, missing: int) -> None:
    whole = torch.arange(9.0).reshape(3, 3)
    rows = [([i, 0], whole[i : i + 1]) for i in range(3) if i != missing]
    folder = in_parts(tmp_path / "a", {"w": rows, "other": [([0], torch.ones(3))]})
    into = {"w": torch.zeros(3, 3)}
    with pytest.raises(InkdropError, match=r"w is \(2, 3\)|6 of the 9 numbers of w"):
        read_shards_into(folder, into)
    assert not into["w"].any()


def test_foreign_and_damaged_folders_are_refused_in_one_line(tmp_path: Path) -> None:
    with pytest.raises(InkdropError, match="holds no shards") as none:
        read_shards(tmp_path / "nowhere")
    path = tmp_path / "shard.safetensors"
    safetensors.torch.save_file({"w": torch.ones(2)}, path)
    with pytest.raises(InkdropError, match="no shard of a checkpoint") as foreign:
        read_shards(tmp_path)
    path.write_bytes(b"\x80\x02not safetensors")
    with pytest.raises(InkdropError, match="is damaged") as damaged:
        read_shards(tmp_path)
    for caught in (none, foreign, damaged):
        assert "\n" not in str(caught.value)


def test_tensors_of_another_network_are_refused(folder: Path) -> None:
    with pytest.raises(InkdropError, match="has no tensor bias"):
        read_shards_into(folder, {"bias": torch.ones(3)})
    with pytest.raises(InkdropError, match=r"weight is \(4, 3\) in .*, but \(3, 4\) here"):
        read_shards_into(folder, {"weight": torch.ones(3, 4)})


def test_plain_tensors_are_whole_and_copied() -> None:
    tensor = torch.arange(3.0)
    assert not is_shared(tensor)
    assert local(tensor) is full(tensor) is share_like(tensor, torch.ones(3)) is tensor
    copy = host_copy(tensor)
    tensor += 1
    assert copy.tolist() == [0, 1, 2]
    assert host_copy(tensor, copy) is copy
    assert copy.tolist() == [1, 2, 3]
