"""A checkpoint is whole or not there, and nothing but safetensors and JSON is ever read."""

import builtins
import errno
import json
import os
import pickle
import resource
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from inkdrop.checkpoint import (
    FORMAT_VERSION,
    Checkpoint,
    newest_checkpoint,
    read_checkpoint,
    write_checkpoint,
)
from inkdrop.errors import InkdropError


def checkpoint(step: int) -> Checkpoint:
    tensors = {"layer.weight": torch.full((4, 3), float(step)), "count": torch.tensor(step)}
    return Checkpoint(step, {"weights": tensors, "ema": tensors}, {"seconds": 0.1})


def test_what_is_written_is_read_back_to_the_bit(tmp_path: Path) -> None:
    path = write_checkpoint(tmp_path, checkpoint(7), keep=3)
    back = read_checkpoint(path, ("weights", "ema"))
    assert back.step == 7
    assert back.state == {"seconds": 0.1}
    for part in ("weights", "ema"):
        for name, tensor in checkpoint(7).tensors[part].items():
            assert torch.equal(back.tensors[part][name], tensor)
            assert back.tensors[part][name].dtype == tensor.dtype


def test_only_the_newest_are_kept(tmp_path: Path) -> None:
    for step in (5, 100, 20, 1000):
        write_checkpoint(tmp_path, checkpoint(step), keep=3)
    assert [p.name for p in sorted(tmp_path.iterdir())] == [
        "step-00000020",
        "step-00000100",
        "step-00001000",
    ]
    assert newest_checkpoint(tmp_path) == tmp_path / "step-00001000"


@pytest.mark.parametrize("allowed", range(0, 701, 100))
def test_a_disk_that_fills_leaves_the_checkpoint_before_it_whole(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, allowed: int
) -> None:
    write_checkpoint(tmp_path, checkpoint(1), keep=3)
    room = allowed
    real_open = builtins.open

    def filling(file, mode="r", *args, **kwargs):  # type: ignore[no-untyped-def]
        handle = real_open(file, mode, *args, **kwargs)
        if "w" in mode and str(tmp_path) in str(file):
            write = handle.write

            class Full:
                def __enter__(self):  # type: ignore[no-untyped-def]
                    return self

                def __exit__(self, *error: object) -> None:
                    handle.close()

                def write(self, content: bytes) -> None:
                    nonlocal room
                    write(content[: max(0, room)])
                    room -= len(content)
                    if room < 0:
                        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

                def __getattr__(self, name: str) -> object:
                    return getattr(handle, name)

            return Full()
        return handle

    monkeypatch.setattr(builtins, "open", filling)
    with pytest.raises(InkdropError, match=r"No space left on device.*step-00000001, is whole"):
        write_checkpoint(tmp_path, checkpoint(2), keep=3)
    monkeypatch.undo()
    assert [p.name for p in tmp_path.iterdir()] == ["step-00000001"]
    read_checkpoint(tmp_path / "step-00000001", ("weights", "ema"))


def test_a_limit_of_the_system_itself_leaves_the_checkpoint_before_it_whole(tmp_path: Path) -> None:
    write_checkpoint(tmp_path, checkpoint(1), keep=3)
    program = f"""
import resource, sys, torch
from pathlib import Path
from inkdrop.checkpoint import Checkpoint, write_checkpoint
resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, {resource.RLIM_INFINITY}))
try:
    tensors = {{"weights": {{"w": torch.zeros(10**6)}}}}
    write_checkpoint(Path({str(tmp_path)!r}), Checkpoint(2, tensors), 3)
except ValueError as error:
    print(error)
"""
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=True
    )
    assert "could not write the checkpoint" in done.stdout
    assert [p.name for p in tmp_path.iterdir()] == ["step-00000001"]
    read_checkpoint(tmp_path / "step-00000001", ("weights", "ema"))


def test_what_a_killed_process_left_half_written_is_never_taken_and_soon_removed(
    tmp_path: Path,
) -> None:
    write_checkpoint(tmp_path, checkpoint(1), keep=3)
    (tmp_path / ".writing-step-00000002").mkdir()
    (tmp_path / ".writing-step-00000002" / "weights.safetensors").write_bytes(b"half")
    assert newest_checkpoint(tmp_path) == tmp_path / "step-00000001"
    write_checkpoint(tmp_path, checkpoint(2), keep=3)
    assert [p.name for p in sorted(tmp_path.iterdir())] == ["step-00000001", "step-00000002"]


def damaged(tmp_path: Path) -> Path:
    write_checkpoint(tmp_path, checkpoint(1), keep=3)
    return write_checkpoint(tmp_path, checkpoint(2), keep=3)


def refused(path: Path) -> str:
    with pytest.raises(InkdropError) as caught:
        read_checkpoint(path, ("weights",))
    assert "\n" not in str(caught.value)
    return str(caught.value)


@pytest.mark.parametrize("bytes_left", [0, 1, 8, 50, 150])
def test_a_truncated_file_is_named_with_the_checkpoint_to_use_instead(
    tmp_path: Path, bytes_left: int
) -> None:
    path = damaged(tmp_path)
    file = path / "weights.safetensors"
    file.write_bytes(file.read_bytes()[:bytes_left])
    message = refused(path)
    assert f"it has {bytes_left} bytes" in message
    assert "to use step-00000001" in message


def test_a_flipped_bit_is_noticed(tmp_path: Path) -> None:
    path = damaged(tmp_path)
    content = bytearray((path / "weights.safetensors").read_bytes())
    content[-1] ^= 1
    (path / "weights.safetensors").write_bytes(content)
    assert "its content is not what was written" in refused(path)


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    path = damaged(tmp_path)
    (path / "weights.safetensors").unlink()
    assert "weights.safetensors is damaged: it is missing" in refused(path)


class _Bomb:
    def __reduce__(self) -> tuple[object, ...]:
        return (os.abort, ())


@pytest.mark.parametrize("how", ["pickle", "torch.save"])
def test_a_pickle_is_refused_and_never_run(tmp_path: Path, how: str) -> None:
    path = damaged(tmp_path)
    file = path / "weights.safetensors"
    if how == "pickle":
        file.write_bytes(pickle.dumps(_Bomb()))
    else:
        torch.save({"w": _Bomb()}, file)
    assert "is a pickle, which inkdrop never loads" in refused(path)


def test_a_newer_format_says_to_upgrade(tmp_path: Path) -> None:
    path = damaged(tmp_path)
    manifest = json.loads((path / "checkpoint.json").read_text())
    manifest["format_version"] = FORMAT_VERSION + 1
    (path / "checkpoint.json").write_text(json.dumps(manifest))
    message = refused(path)
    assert f"format version {FORMAT_VERSION + 1}" in message
    assert "upgrade" in message


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        ("{", "it is not JSON"),
        ("[]", "not from inkdrop"),
        ('{"format": "other"}', "not from inkdrop"),
        ('{"format": "inkdrop checkpoint"}', "format_version None"),
        ('{"format": "inkdrop checkpoint", "format_version": 1}', "it has no step"),
    ],
)
def test_a_foreign_or_damaged_manifest_is_named(
    tmp_path: Path, content: str, expected: str
) -> None:
    path = damaged(tmp_path)
    (path / "checkpoint.json").write_text(content)
    assert expected in refused(path)


def test_a_foreign_folder_is_named(tmp_path: Path) -> None:
    path = damaged(tmp_path)
    (path / "checkpoint.json").unlink()
    assert "it has no checkpoint.json" in refused(path)
