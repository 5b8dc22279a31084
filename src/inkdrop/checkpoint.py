"""Checkpoints: folders of safetensors and JSON that are whole or not there.

`checkpoints/step-00001000/` holds weights, ema and optimizer as safetensors, and checkpoint.json:
the format's version, the step, and each file's size and hash. A checkpoint is written under a
temporary name, every file synced, then renamed and the parent folder synced, so that a crash at
any instant leaves the one before it as it was.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import safetensors.torch
from safetensors import SafetensorError
from torch import Tensor

from .errors import InkdropError

FORMAT_VERSION = 1
PARTS = ("weights", "ema", "optimizer")
_MANIFEST = "checkpoint.json"
_WRITING = ".writing-"


@dataclass(frozen=True)
class Checkpoint:
    """A training state.

    Attributes:
        step: optimizer steps done.
        tensors: for each part ("weights", "ema", "optimizer"), named tensors.
        state: what else training needs, as JSON.
    """

    step: int
    tensors: dict[str, dict[str, Tensor]]
    state: dict[str, Any] = field(default_factory=dict)


def write_checkpoint(folder: Path, checkpoint: Checkpoint, keep: int) -> Path:
    """Write into `folder` (RUN/checkpoints), then remove all but the newest `keep`.

    Raises:
        InkdropError: when the disk refuses; what was there before is untouched.
    """
    final = folder / f"step-{checkpoint.step:08d}"
    temporary = folder / f"{_WRITING}{final.name}"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        _remove_unfinished(folder)
        temporary.mkdir()
        files = {}
        for part, tensors in checkpoint.tensors.items():
            file = f"{part}.safetensors"
            # Copies, since safetensors refuses tensors that share memory, as tied weights do.
            content = safetensors.torch.save(
                {
                    name: tensor.detach().to("cpu", copy=True).contiguous()
                    for name, tensor in tensors.items()
                }
            )
            write_synced(temporary / file, content)
            files[file] = {"bytes": len(content), "sha256": hashlib.sha256(content).hexdigest()}
        manifest = {
            "format": "inkdrop checkpoint",
            "format_version": FORMAT_VERSION,
            "step": checkpoint.step,
            "files": files,
            "state": checkpoint.state,
        }
        write_synced(temporary / _MANIFEST, json.dumps(manifest, indent=1).encode())
        sync_folder(temporary)
        if final.exists():
            shutil.rmtree(final)
        temporary.rename(final)
        sync_folder(folder)
    except OSError as error:
        shutil.rmtree(temporary, ignore_errors=True)
        before = newest_checkpoint(folder)
        kept = (
            f"the checkpoint before it, {before}, is whole" if before else "there was none before"
        )
        raise InkdropError(
            f"could not write the checkpoint {final}: {error.strerror or error}; {kept}; make room "
            "and give the same command again to go on"
        ) from error
    for old in _finished(folder)[:-keep]:
        shutil.rmtree(old, ignore_errors=True)
    return final


def newest_checkpoint(folder: Path) -> Path | None:
    """The newest finished checkpoint in RUN/checkpoints, or None."""
    finished = _finished(folder)
    return finished[-1] if finished else None


def read_checkpoint(path: Path, parts: tuple[str, ...] = PARTS) -> Checkpoint:
    """Read the given parts of a checkpoint, after checking their size and hash.

    Raises:
        InkdropError: for a file that is missing, damaged, foreign (a pickle is refused unread), or
            from a newer version.
    """
    manifest = read_manifest(path)
    tensors = {}
    for part in parts:
        name = f"{part}.safetensors"
        tensors[part] = _read_tensors(path / name, manifest["files"].get(name), path)
    return Checkpoint(manifest["step"], tensors, manifest["state"])


def read_manifest(path: Path) -> dict[str, Any]:
    """checkpoint.json of a checkpoint, its format and version checked."""
    try:
        manifest = json.loads((path / _MANIFEST).read_bytes())
    except FileNotFoundError:
        raise InkdropError(
            f"{path} is not a checkpoint of inkdrop's: it has no {_MANIFEST}"
        ) from None
    except ValueError:
        raise _damaged(path / _MANIFEST, "it is not JSON", path) from None
    if not isinstance(manifest, dict) or manifest.get("format") != "inkdrop checkpoint":
        raise InkdropError(f"{path / _MANIFEST} is not from inkdrop: its format is not named there")
    check_version(path / _MANIFEST, manifest)
    for key, kind in (("step", int), ("files", dict), ("state", dict)):
        if not isinstance(manifest.get(key), kind):
            raise _damaged(path / _MANIFEST, f"it has no {key}", path)
    return manifest


def check_version(path: Path, content: dict[str, Any]) -> None:
    """Refuse a file that a newer inkdrop wrote."""
    version = content.get("format_version")
    if not isinstance(version, int) or version < 1:
        raise InkdropError(f"{path} has format_version {version!r}, which is none of inkdrop's")
    if version > FORMAT_VERSION:
        raise InkdropError(
            f"{path} is of format version {version}, written by a newer inkdrop; this one reads up "
            f"to version {FORMAT_VERSION}: upgrade inkdrop to use it"
        )


def write_synced(path: Path, content: bytes) -> None:
    """Write a file and wait until it is on the disk."""
    with open(path, "wb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())


def replace_synced(path: Path, content: bytes) -> None:
    """Put `content` in the place of a file: a reader sees the old one or the new one, whole."""
    temporary = path.with_name(f"{_WRITING}{path.name}")
    try:
        write_synced(temporary, content)
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)
    sync_folder(path.parent)


def sync_folder(path: Path) -> None:
    """Make a folder's list of names durable, where the system lets one."""
    if os.name == "posix":
        descriptor = os.open(path, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


def _finished(folder: Path) -> list[Path]:
    return sorted(path for path in folder.glob("step-*") if path.is_dir())


def _remove_unfinished(folder: Path) -> None:
    for path in folder.glob(f"{_WRITING}*"):
        shutil.rmtree(path)


def _read_tensors(
    path: Path, recorded: dict[str, Any] | None, checkpoint: Path
) -> dict[str, Tensor]:
    try:
        content = path.read_bytes()
    except FileNotFoundError:
        raise _damaged(path, "it is missing", checkpoint) from None
    if looks_like_pickle(content):
        raise InkdropError(
            f"{path} is a pickle, which inkdrop never loads because a pickle can run any code; "
            "only safetensors are read"
        )
    if recorded is None or len(content) != recorded["bytes"]:
        expected = "none" if recorded is None else f"{recorded['bytes']} bytes"
        raise _damaged(
            path, f"it has {len(content)} bytes where {expected} were written", checkpoint
        )
    if hashlib.sha256(content).hexdigest() != recorded["sha256"]:
        raise _damaged(path, "its content is not what was written", checkpoint)
    try:
        return safetensors.torch.load(content)
    except (SafetensorError, ValueError) as error:
        raise _damaged(path, f"it is not safetensors ({error})", checkpoint) from None


def looks_like_pickle(content: bytes) -> bool:
    """Whether a file's first bytes are a pickle's, or those of the zip that torch.save writes.

    A safetensors file may start like a pickle too (with the length of its header), but has the
    header's brace at byte 8.
    """
    pickled = content[:1] == b"\x80" and content[1:2] in (b"\2", b"\3", b"\4", b"\5")
    return content[:2] == b"PK" or (pickled and content[8:9] != b"{")


def _damaged(path: Path, why: str, checkpoint: Path) -> InkdropError:
    others = [other for other in _finished(checkpoint.parent) if other < checkpoint]
    mend = f"remove {checkpoint} to use {others[-1].name}" if others else "there is none before it"
    return InkdropError(f"{path} is damaged: {why}; {mend}")
