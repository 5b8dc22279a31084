"""Checkpoints: folders of safetensors and JSON that are whole or not there.

`checkpoints/step-00001000/` holds weights, ema and optimizer as safetensors (each one file, or a
folder of shards), and checkpoint.json: the format's version, the step, what else training needs,
and each file's size and hash. A checkpoint is written under a temporary name, every file and
folder synced, then renamed and the parent folder synced, so that a crash at any instant leaves the
one before it as it was. One that is removed loses its name first.
"""

from __future__ import annotations

import errno
import hashlib
import json
import math
import os
import re
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
from safetensors import SafetensorError
from torch import Tensor

from .errors import InkdropError, is_full

FORMAT_VERSION = 2
PARTS = ("weights", "ema", "optimizer")
_MANIFEST = "checkpoint.json"
_OWN_HASH = "manifest_sha256"  # of all else in it
_WRITING, _REMOVING = ".writing-", ".removing-"
_NAME = re.compile(r"step-(\d+)(?:-(\d+))?")
_BLOCK = 8 << 20  # bytes

Entry = dict[str, Any]
"""What a manifest says of a file: {"bytes": its size, "sha256": its hash}."""


class NonFiniteError(InkdropError):
    """A tensor to be saved holds values that are not finite numbers."""


class Damaged(InkdropError):
    """A checkpoint is not as it was written.

    Attributes:
        what: the file and what is wrong with it, without where it is.
    """

    def __init__(self, message: str, what: str) -> None:
        super().__init__(message)
        self.what = what


@dataclass(frozen=True)
class Checkpoint:
    """A training state.

    Attributes:
        step: optimizer steps done.
        tensors: for each part ("weights", "ema", "optimizer"), named tensors.
        state: what else training needs, as JSON.
        held_out_loss: the held-out loss at this step, if it was measured.
        exempt: names of tensors, in any part, that may hold values that are not finite.
    """

    step: int
    tensors: dict[str, dict[str, Tensor]]
    state: dict[str, Any] = field(default_factory=dict)
    held_out_loss: float | None = None
    exempt: frozenset[str] = frozenset()


# ---- writing -------------------------------------------------------------------------------------


def write_checkpoint(folder: Path, checkpoint: Checkpoint, keep: int) -> Path:
    """Write into `folder` (RUN/checkpoints), then remove what `commit` says.

    Returns:
        Where it is: step-…, with a number behind it where that step was there already.

    Raises:
        NonFiniteError: for values that are not finite.
        InkdropError: when the disk refuses. Either way what was there before is untouched.
    """
    for part, tensors in checkpoint.tensors.items():
        check_finite(part, tensors, checkpoint.exempt)
    with telling_what_stands(folder, checkpoint.step):
        temporary = begin(folder, checkpoint.step)
        files: dict[str, Entry] = {}
        for part, tensors in checkpoint.tensors.items():
            files |= write_part(temporary, part, tensors)
        return commit(
            folder,
            temporary,
            files,
            checkpoint.step,
            checkpoint.state,
            checkpoint.held_out_loss,
            keep,
        )


def check_finite(part: str, tensors: dict[str, Tensor], exempt: frozenset[str]) -> None:
    """Refuse to save what is not a finite number.

    Raises:
        NonFiniteError: naming the first such tensor.
    """
    for name, tensor in tensors.items():
        if name in exempt or not (tensor.is_floating_point() or tensor.is_complex()):
            continue
        if tensor.element_size() == 1:
            tensor = tensor.float()  # float8 has no sum
        # A finite sum is made of finite numbers and costs one reading; finite numbers may overflow.
        if not (tensor.sum().isfinite() or tensor.isfinite().all()):
            bad = int((~tensor.isfinite()).sum())
            raise NonFiniteError(
                f"{name} of the {part} holds {bad:,} value{'s' if bad > 1 else ''} of "
                f"{tensor.numel():,} that are not finite numbers: the checkpoint was not written, "
                "and what was saved before stands; try a lower --training.learning-rate in a new "
                "--out folder"
            )


@contextmanager
def telling_what_stands(folder: Path, step: int) -> Iterator[None]:
    """Around the stages of writing: what fails leaves no temporary folder, and one readable line.

    Raises:
        InkdropError: for an OSError.
    """
    before = newest_checkpoint(folder)
    try:
        yield
    except OSError as error:
        kept = (
            f"the checkpoint before it, {before}, is whole" if before else "there was none before"
        )
        raise InkdropError(
            f"could not write the checkpoint {folder / _name(step)}: {error.strerror or error}; "
            f"{kept}; {'make room' if is_full(error) else 'mend that'} and give the same command "
            "again to go on"
        ) from error
    finally:
        shutil.rmtree(_temporary(folder, step), ignore_errors=True)


def begin(folder: Path, step: int) -> Path:
    """Remove what a killed process left, and make the temporary folder of a new checkpoint."""
    _make_folder(folder)
    _remove_leftovers(folder)
    temporary = _temporary(folder, step)
    if temporary.exists():
        shutil.rmtree(temporary)  # which says why it could not be removed
    temporary.mkdir()
    return temporary


def write_part(temporary: Path, part: str, tensors: dict[str, Tensor]) -> dict[str, Entry]:
    """Write tensors as PART.safetensors and sync it; the entry for the manifest, by file name.

    Other threads go on meanwhile: writing and hashing hold no lock of Python's.
    """
    # The layout is https://huggingface.co/docs/safetensors/index#format. The library would refuse
    # tensors that share memory, as tied weights do, and leave the file to be read again for a hash.
    ordered = sorted(tensors.items(), key=lambda item: (-item[1].element_size(), item[0]))
    header, end = {}, 0
    for name, tensor in ordered:
        begins, end = end, end + tensor.numel() * tensor.element_size()
        header[name] = {
            "dtype": _dtype_name(tensor.dtype),
            "shape": list(tensor.shape),
            "data_offsets": [begins, end],
        }
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    file_name = f"{part}.safetensors"
    digest = hashlib.sha256()
    with open(temporary / file_name, "wb") as file:
        for block in (len(text).to_bytes(8, "little"), text):
            file.write(block)
            digest.update(block)
        for _, tensor in ordered:
            values = tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8)
            content = values.numpy().data
            for at in range(0, len(content), _BLOCK):
                file.write(content[at : at + _BLOCK])
                digest.update(content[at : at + _BLOCK])
        file.flush()
        os.fsync(file.fileno())
    return {file_name: {"bytes": 8 + len(text) + end, "sha256": digest.hexdigest()}}


def entry(path: Path) -> Entry:
    """Sync a file that something else wrote, and read its size and hash."""
    with open(path, "r+b") as file:
        os.fsync(file.fileno())
        digest = hashlib.file_digest(file, "sha256")
        return {"bytes": file.tell(), "sha256": digest.hexdigest()}


def commit(
    folder: Path,
    temporary: Path,
    files: dict[str, Entry],
    step: int,
    state: dict[str, Any],
    held_out_loss: float | None,
    keep: int,
) -> Path:
    """Make what was written into `temporary` a checkpoint, whole from its first instant.

    Then all are removed but this one, the newest `keep`, and the best one.

    Args:
        files: every file, by its path from `temporary`, as `write_part` and `entry` give them.
    """
    measured = held_out_loss is not None and math.isfinite(held_out_loss)
    content = {
        "format": "inkdrop checkpoint",
        "format_version": FORMAT_VERSION,
        "step": step,
        "held_out_loss": held_out_loss if measured else None,
        "files": files,
        "state": state,
    }
    manifest = json.loads(json.dumps(content))  # as it will be read
    manifest[_OWN_HASH] = _digest(manifest)
    write_synced(temporary / _MANIFEST, json.dumps(manifest, indent=1).encode())
    for inner in {temporary, *((temporary / name).parent for name in files)}:
        sync_folder(inner)
    # A name of its own, so that one of the same step stays until this one stands.
    same = [path for path in _all_finished(folder) if _number(path)[0] == step]
    final = folder / _name(step, _number(same[-1])[1] + 1 if same else 0)
    temporary.rename(final)
    sync_folder(folder)
    _prune(folder, final, keep)
    return final


def _prune(folder: Path, written: Path, keep: int) -> None:
    """What cannot be removed now is left: to be removed when the next one is written."""
    kept = {written, best_checkpoint(folder), *finished_checkpoints(folder)[-keep:]}
    try:
        for path in _all_finished(folder):
            if path not in kept:
                path.rename(path.with_name(f"{_REMOVING}{path.name}"))
        # Or a power cut could bring a name back, with only some of its files.
        sync_folder(folder)
    except OSError:
        return
    _remove_leftovers(folder)


def _remove_leftovers(folder: Path) -> None:
    for mark in (_WRITING, _REMOVING):
        for path in folder.glob(f"{mark}*"):
            shutil.rmtree(path, ignore_errors=True)


def _make_folder(folder: Path) -> None:
    if not folder.is_dir():
        _make_folder(folder.parent)
        folder.mkdir(exist_ok=True)
        sync_folder(folder.parent)


@cache
def _dtype_name(dtype: torch.dtype) -> str:
    """What safetensors calls a dtype: it is asked, by way of an empty file."""
    content = safetensors.torch.save({"x": torch.empty(0, dtype=dtype)})
    name: str = json.loads(content[8:])["x"]["dtype"]
    return name


def _digest(manifest: dict[str, Any]) -> str:
    content = {key: value for key, value in manifest.items() if key != _OWN_HASH}
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()


# ---- names ---------------------------------------------------------------------------------------


def newest_checkpoint(folder: Path) -> Path | None:
    """The newest finished checkpoint in RUN/checkpoints, or None."""
    finished = finished_checkpoints(folder)
    return finished[-1] if finished else None


def best_checkpoint(folder: Path) -> Path | None:
    """The finished checkpoint of the lowest held-out loss, or None where none has one.

    Of the least Fréchet distance instead, where the newest one says so, among those whose samples
    were measured in the same way.
    """
    best, lowest, extractor = None, math.inf, None
    for path in reversed(finished_checkpoints(folder)):
        try:
            manifest = read_manifest(path)
        except InkdropError:
            continue
        state = manifest["state"]
        if extractor is None:
            evaluated = state.get("best_by") == "frechet_distance"
            extractor = state["extractor"] if evaluated else ""
        figure = manifest["held_out_loss"]
        if extractor:
            figure = state.get("frechet_distance") if state.get("extractor") == extractor else None
        if figure is not None and figure < lowest:
            best, lowest = path, figure
    return best


def _name(step: int, version: int = 0) -> str:
    return f"step-{step:08d}" + (f"-{version}" if version else "")


def _temporary(folder: Path, step: int) -> Path:
    return folder / f"{_WRITING}{_name(step)}"


def _number(path: Path) -> tuple[int, int]:
    """A checkpoint's step, and how many of that step it took the place of."""
    found = _NAME.fullmatch(path.name)
    assert found is not None
    return int(found[1]), int(found[2] or 0)


def _all_finished(folder: Path) -> list[Path]:
    named = (path for path in folder.glob("step-*") if _NAME.fullmatch(path.name))
    return sorted((path for path in named if path.is_dir()), key=_number)


def finished_checkpoints(folder: Path) -> list[Path]:
    """The checkpoints in RUN/checkpoints, oldest first, one of each step."""
    return list({_number(path)[0]: path for path in _all_finished(folder)}.values())


# ---- reading -------------------------------------------------------------------------------------


def newest_whole(folder: Path, note: Callable[[str], None]) -> Path | None:
    """The newest checkpoint whose every file is what was written; None where there is none at all.

    Damaged ones that are newer are renamed to damaged-step-…, and what a killed process left is
    removed: not to be called while a checkpoint is being written.

    Args:
        note: is told, in one line, of each that is set aside.

    Raises:
        InkdropError: where there are checkpoints but none is whole (all stay where they are), or
            for one from a newer version.
    """
    _remove_leftovers(folder)
    damaged: dict[Path, str] = {}
    for path in reversed(_all_finished(folder)):
        try:
            manifest = read_manifest(path)
            for name, recorded in manifest["files"].items():
                _verify(path, name, recorded)
        except Damaged as error:
            damaged[path] = error.what
            continue
        for bad, what in damaged.items():
            aside = _set_aside(bad)
            note(f"{bad} set aside as {aside.name}: {what}; going on from {path.name}")
        return path
    if damaged:
        listed = "; ".join(f"{path.name}: {what}" for path, what in damaged.items())
        raise InkdropError(
            f"no checkpoint in {folder} is whole ({listed}); put a copy of one back, or give "
            "another --out folder to train anew"
        )
    return None


def _set_aside(path: Path) -> Path:
    aside, count = path.with_name(f"damaged-{path.name}"), 1
    while aside.exists():
        count += 1
        aside = path.with_name(f"damaged-{path.name}.{count}")
    try:
        path.rename(aside)
        sync_folder(path.parent)
    except OSError as error:
        raise InkdropError(
            f"{path} is damaged and cannot be set aside as {aside.name}: {error.strerror or error}"
        ) from error
    return aside


def read_checkpoint(path: Path, parts: tuple[str, ...] = PARTS) -> Checkpoint:
    """Read the given parts of a checkpoint, after checking their size and hash.

    Raises:
        InkdropError: for a file that is missing, damaged, foreign (a pickle is refused unread), or
            from a newer version.
    """
    manifest = read_manifest(path)
    tensors = {part: _read_part(path, part, manifest["files"]) for part in parts}
    return Checkpoint(manifest["step"], tensors, manifest["state"], manifest["held_out_loss"])


def read_manifest(path: Path) -> dict[str, Any]:
    """checkpoint.json of a checkpoint, checked, as this version writes it.

    Raises:
        InkdropError: if it is missing, damaged, foreign, or from a newer version.
    """
    file = path / _MANIFEST
    try:
        manifest: dict[str, Any] = json.loads(file.read_bytes())
    except FileNotFoundError:
        what = f"it has no {_MANIFEST}"
        raise Damaged(f"{path} is not a checkpoint of inkdrop's: {what}", what) from None
    except OSError as error:
        raise _unreadable(path, _MANIFEST, error) from error
    except ValueError:
        raise _damaged(path, _MANIFEST, "it is not JSON") from None
    if not isinstance(manifest, dict) or manifest.get("format") != "inkdrop checkpoint":
        what = "its format is not named there"
        raise Damaged(f"{file} is not from inkdrop: {what}", f"{_MANIFEST}: {what}")
    check_version(file, manifest)
    for key, kind in (("step", int), ("files", dict), ("state", dict)):
        if not isinstance(manifest.get(key), kind):
            raise _damaged(path, _MANIFEST, f"it has no {key}")
    if manifest["format_version"] >= 2 and manifest.get(_OWN_HASH) != _digest(manifest):
        raise _damaged(path, _MANIFEST, "its content is not what was written")
    while manifest["format_version"] < FORMAT_VERSION:
        manifest = _MIGRATIONS[manifest["format_version"]](manifest)
    return manifest


def _from_1(manifest: dict[str, Any]) -> dict[str, Any]:
    nothing = {"skipped": 0, "skipped_in_a_row": 0, "rollbacks": 0, "checkpoint": None, "shift": 0}
    state = {"best_held_out_loss": None, "nonfinite": nothing, **manifest["state"]}
    return {**manifest, "format_version": 2, "held_out_loss": None, "state": state}


_MIGRATIONS: dict[int, Callable[[dict[str, Any]], dict[str, Any]]] = {1: _from_1}
"""How the manifest of each older version becomes that of the next."""


def check_version(path: Path, content: dict[str, Any]) -> None:
    """Refuse a file that a newer inkdrop wrote."""
    version = content.get("format_version")
    if not isinstance(version, int) or version < 1:
        what = f"format_version {version!r}, which is none of inkdrop's"
        raise Damaged(f"{path} has {what}", f"{path.name}: it has {what}")
    if version > FORMAT_VERSION:
        raise InkdropError(
            f"{path} is of format version {version}, written by a newer inkdrop; this one reads up "
            f"to version {FORMAT_VERSION}: upgrade inkdrop to use it"
        )


@contextmanager
def naming(path: Path) -> Iterator[None]:
    """Let an OSError say which file it is about: one of writing, as of a full disk, does not."""
    try:
        yield
    except OSError as error:
        if error.errno is not None and error.filename is None:
            error.filename = str(path)
        raise


def is_leftover(path: Path) -> bool:
    """Whether a killed process was writing this."""
    return path.name.startswith(_WRITING)


def write_synced(path: Path, content: bytes) -> None:
    """Write a file and wait until it is on the disk."""
    with naming(path), open(path, "wb") as file:
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
        except OSError as error:
            if error.errno not in (errno.EINVAL, errno.ENOTSUP):
                raise
        finally:
            os.close(descriptor)


def _read_part(path: Path, part: str, files: dict[str, Entry]) -> dict[str, Tensor]:
    shards = [name for name in files if name.startswith(f"{part}/")]
    if shards:
        from .sharded_files import read_shards

        for name in shards:
            _verify(path, name, files[name])
        return read_shards(path / part)
    name = f"{part}.safetensors"
    try:
        content = (path / name).read_bytes()
    except OSError as error:
        raise _unreadable(path, name, error) from error
    if looks_like_pickle(content):
        raise InkdropError(
            f"{path / name} is a pickle, which inkdrop never loads because a pickle can run any "
            "code; only safetensors are read"
        )
    _compare(path, name, files.get(name), len(content), hashlib.sha256(content).hexdigest)
    try:
        return safetensors.torch.load(content)
    except (SafetensorError, ValueError) as error:
        raise _damaged(path, name, f"it is not safetensors ({error})") from None


def _verify(path: Path, name: str, recorded: Entry) -> None:
    """Check a file's size and hash, a piece at a time."""
    try:
        with open(path / name, "rb") as file:
            size = os.fstat(file.fileno()).st_size
            digest = hashlib.file_digest
            _compare(path, name, recorded, size, lambda: digest(file, "sha256").hexdigest())
    except OSError as error:
        raise _unreadable(path, name, error) from error


def _compare(path: Path, name: str, recorded: Any, size: int, hexdigest: Callable[[], str]) -> None:
    if not isinstance(recorded, dict):
        recorded = {}
    if size != recorded.get("bytes"):
        expected = f"{recorded['bytes']} bytes" if "bytes" in recorded else "none"
        raise _damaged(path, name, f"it has {size} bytes where {expected} were written")
    if hexdigest() != recorded.get("sha256"):
        raise _damaged(path, name, "its content is not what was written")


def looks_like_pickle(content: bytes) -> bool:
    """Whether a file's first bytes are a pickle's, or those of the zip that torch.save writes.

    A safetensors file may start like a pickle too (with the length of its header), but has the
    header's brace at byte 8.
    """
    pickled = content[:1] == b"\x80" and content[1:2] in (b"\2", b"\3", b"\4", b"\5")
    return content[:2] == b"PK" or (pickled and content[8:9] != b"{")


def _unreadable(path: Path, name: str, error: OSError) -> InkdropError:
    if isinstance(error, FileNotFoundError):
        return _damaged(path, name, "it is missing")
    if isinstance(error, PermissionError):  # which is no damage
        return InkdropError(f"{path / name} cannot be read: {error.strerror}; allow it")
    return _damaged(path, name, f"it cannot be read ({error.strerror or error})")


def _damaged(path: Path, name: str, why: str) -> Damaged:
    others = [
        other for other in finished_checkpoints(path.parent) if _number(other) < _number(path)
    ]
    mend = f"remove {path} to use {others[-1].name}" if others else "there is none before it"
    return Damaged(f"{path / name} is damaged: {why}; {mend}", f"{name}: {why}")
