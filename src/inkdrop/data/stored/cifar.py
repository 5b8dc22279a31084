"""CIFAR-10 and CIFAR-100 as their authors hand them out: python or binary batches.

    cifar-10-batches-py/    data_batch_1 … data_batch_5, test_batch, batches.meta
    cifar-10-batches-bin/   data_batch_1.bin …, test_batch.bin, batches.meta.txt
    cifar-100-python/       train, test, meta
    cifar-100-binary/       train.bin, test.bin, fine_label_names.txt

as folders or in the original .tar.gz, which is read in memory. An image is 3072 bytes: 32×32 of
red, of green and of blue. In the binary form its label stands before it in a byte, in CIFAR-100
the coarse and the fine one; the python form is a pickle, which is parsed and never run.

Nothing here imports torch: it runs in worker processes.
"""

from __future__ import annotations

import gzip
import io
import lzma
import tarfile
import zlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any, cast

import numpy as np
from numpy.typing import NDArray

from ...errors import InkdropError
from ..places import files_identity
from .collection import Arrays, Found
from .pickles import BadPickle, parse_pickle
from .tree import shown

# CIFAR's largest file has 155 MB, its largest archive 184 MB.
LARGEST_FILE = 256 << 20
LARGEST_ARCHIVE = 512 << 20

_FINE = "its labels are the 100 fine classes, not the 20 coarse ones"

_SIDE = 32
_IMAGE = 3 * _SIDE * _SIDE


@dataclass(frozen=True)
class _Form:
    """One of the four forms.

    Attributes:
        folder: what the original archive calls the folder.
        name, kind: of the collections.
        train, test, names: the files of the training images, test images and class names.
        python: whether they are python batches.
        classes: how many there are.
        label: the key of the labels in a python batch.
        labels_before: how many bytes of a record come before the image; the last is the label.
    """

    folder: str
    name: str
    kind: str
    train: tuple[str, ...]
    test: str
    names: str
    python: bool
    classes: int
    label: str
    labels_before: int


_FIVE = tuple(f"data_batch_{i}" for i in range(1, 6))
_FORMS = (
    _Form(
        "cifar-10-batches-py", "cifar-10", "CIFAR-10's python batches",
        _FIVE, "test_batch", "batches.meta", True, 10, "labels", 0,
    ),
    _Form(
        "cifar-10-batches-bin", "cifar-10", "CIFAR-10's binary batches",
        tuple(f"{name}.bin" for name in _FIVE), "test_batch.bin", "batches.meta.txt",
        False, 10, "", 1,
    ),
    _Form(
        "cifar-100-python", "cifar-100", "CIFAR-100's python batches",
        ("train",), "test", "meta", True, 100, "fine_labels", 0,
    ),
    _Form(
        "cifar-100-binary", "cifar-100", "CIFAR-100's binary batches",
        ("train.bin",), "test.bin", "fine_label_names.txt", False, 100, "", 2,
    ),
)  # fmt: skip
_FOLDERS = {form.folder: form for form in _FORMS}
_ARCHIVES = (".tar.gz", ".tgz", ".tar")
_ARCHIVE_NAMES = {
    f"{name}-{form}.tar.gz" for name in ("cifar-10", "cifar-100") for form in ("python", "binary")
}
_DAMAGE = (EOFError, OSError, lzma.LZMAError, tarfile.TarError, zlib.error, ValueError)


def holds_cifar(path: Path) -> bool:
    """Whether `path` is a folder of CIFAR's batches, or with one such, or an archive of them."""
    if path.is_dir():
        return bool(_folders(path))
    if not path.name.lower().endswith(_ARCHIVES) or not path.is_file():
        return False
    return path.name in _ARCHIVE_NAMES or _first_folder(path) in _FOLDERS


def find_cifar(path: Path) -> Found:
    """The images (N, 32, 32, 3) uint8 at `path`, with the fine ones of CIFAR-100's labels.

    Raises:
        InkdropError: if it is damaged or incomplete, larger than CIFAR is, or holds code.
    """
    if path.is_dir():
        form, files, identity = _in_folder(path)
    else:
        form, files = _in_archive(path)
        identity = files_identity([path])
    missing = [name for name in form.train if name not in files]
    if missing:
        raise InkdropError(
            f"{path}: incomplete: {form.kind} lack {', '.join(missing)}: fetch {form.name} again"
        )
    names = _class_names(form, files)
    notes = [_FINE] if form.classes == 100 else []
    if form.test not in files:
        notes.append(f"no test images: there is no {form.test}")
    train = _part(form, [files[name] for name in form.train], names, notes, "train", identity)
    if form.test not in files:
        return Found(train, None)
    return Found(train, _part(form, [files[form.test]], names, (), "test", identity))


@dataclass(frozen=True)
class _File:
    """A file's bytes, or where they are; `place` is what messages call it."""

    place: str
    content: bytes | Path

    def read(self) -> bytes:
        if isinstance(self.content, bytes):
            return self.content
        try:
            with open(self.content, "rb") as file:
                content = file.read(LARGEST_FILE + 1)
        except OSError as error:
            raise InkdropError(f"cannot read {self.place}: {error.strerror}") from error
        if len(content) > LARGEST_FILE:
            raise InkdropError(f"{self.place}: larger than any file of CIFAR")
        return content


_Files = Mapping[str, _File]


# Folders


def _folders(path: Path) -> list[tuple[_Form, Path]]:
    """The folders of batches that `path` is or that lie in it."""
    if form := _form_of(path):
        return [(form, path)]
    within = [path / name for name in _FOLDERS]
    return [(form, folder) for folder in within if folder.is_dir() and (form := _form_of(folder))]


def _form_of(folder: Path) -> _Form | None:
    for form in _FORMS:
        named = [name for name in (*form.train, form.test, form.names) if (folder / name).is_file()]
        # Files called train and test can be anything; with the class names, they are CIFAR's.
        certain = len(named) > 1 and (len(form.train) > 1 or form.names in named)
        if certain or (named and folder.name == form.folder):
            return form
    return None


def _in_folder(path: Path) -> tuple[_Form, _Files, str]:
    found = _folders(path)
    if not found:
        raise InkdropError(f"{path}: no batches of CIFAR, such as data_batch_1")
    if len(found) > 1:
        several = ", ".join(str(folder) for _, folder in found)
        raise InkdropError(f"{path}: several sets: give one of {several}")
    ((form, folder),) = found
    wanted = (*form.train, form.test, form.names)
    paths = {name: folder / name for name in wanted if (folder / name).is_file()}
    files = {name: _File(str(file), file) for name, file in paths.items()}
    return form, files, files_identity(list(paths.values()))


# Archives


class _Limited(io.RawIOBase):
    """A stream of which no more than `left` bytes can be read: for one that may be a bomb."""

    def __init__(self, stream: gzip.GzipFile | io.BufferedReader, left: int) -> None:
        self._stream = stream
        self._left = left

    def readable(self) -> bool:
        return True

    def read(self, size: int = -1) -> bytes:
        wanted = self._left + 1 if size < 0 else min(size, self._left + 1)
        chunk = self._stream.read(wanted)
        self._left -= len(chunk)
        if self._left < 0:
            raise _TooLarge
        return chunk


class _TooLarge(Exception):
    pass


def _first_folder(path: Path) -> str:
    """The folder that the first member of a tar lies in; "" if it is none."""
    try:
        with open(path, "rb") as raw, _unpacked(raw, 1 << 20) as tar:
            member = tar.next()
    except (*_DAMAGE, _TooLarge):
        return ""
    return PurePosixPath(member.name).parts[0] if member and member.name.strip("/.") else ""


def _unpacked(raw: io.BufferedReader, limit: int) -> tarfile.TarFile:
    packed = raw.peek(2)[:2] == b"\x1f\x8b"
    stream = gzip.GzipFile(fileobj=raw, mode="rb") if packed else raw
    # As a stream, so that tarfile never looks ahead further than the limit.
    return tarfile.open(fileobj=cast(Any, _Limited(stream, limit)), mode="r|")


def _in_archive(path: Path) -> tuple[_Form, _Files]:
    found: dict[str, dict[str, _File]] = {name: {} for name in _FOLDERS}
    try:
        with open(path, "rb") as raw, _unpacked(raw, LARGEST_ARCHIVE) as tar:
            for member in tar:
                parts = [part for part in PurePosixPath(member.name).parts if part != "."]
                if len(parts) != 2 or parts[0] not in found:
                    continue
                folder, name = parts
                form = _FOLDERS[folder]
                if name not in (*form.train, form.test, form.names):
                    continue
                if name in found[folder]:
                    raise InkdropError(f"{path}: holds {member.name} twice")
                if not member.isreg() or member.issparse():
                    raise InkdropError(f"{path}: {member.name} is no plain file")
                if member.size > LARGEST_FILE:
                    raise InkdropError(f"{path}: {member.name} is larger than any file of CIFAR")
                stream = tar.extractfile(member)
                content = b"" if stream is None else stream.read()
                found[folder][name] = _File(f"{path}: {member.name}", content)
    except _TooLarge:
        raise InkdropError(
            f"{path}: unpacks to more than {LARGEST_ARCHIVE:,} bytes, which CIFAR does not"
        ) from None
    except InkdropError:
        raise
    except _DAMAGE as error:
        raise InkdropError(
            f"{path}: the archive is damaged or cut off ({_line(error)}): fetch it again"
        ) from error
    sets = [folder for folder, files in found.items() if files]
    if len(sets) != 1:
        expected = ", ".join(_FOLDERS)
        raise InkdropError(
            f"{path}: holds {', '.join(sets) or 'none'} of the folders {expected}: one is expected"
        )
    return _FOLDERS[sets[0]], found[sets[0]]


def _line(error: BaseException) -> str:
    return " ".join(str(error).split()) or type(error).__name__


# Batches


def _part(
    form: _Form,
    files: Sequence[_File],
    names: Sequence[str],
    notes: Sequence[str],
    part: str,
    identity: str,
) -> Arrays:
    batches = []
    for file in files:
        pixels, labels = _python_batch(form, file) if form.python else _binary_batch(form, file)
        batches.append((_checked_pixels(pixels, file), _checked_labels(labels, form, pixels, file)))
    images = np.concatenate([pixels.reshape(-1, 3, _SIDE, _SIDE) for pixels, _ in batches])
    return Arrays(
        images.transpose(0, 2, 3, 1),
        np.concatenate([labels for _, labels in batches]),
        f"{form.name} {part}",
        form.kind,
        class_names=names,
        notes=notes,
        identity=f"{identity} {part}",
    )


def _binary_batch(form: _Form, file: _File) -> tuple[NDArray[Any], NDArray[Any]]:
    record = form.labels_before + _IMAGE
    content = file.read()
    if len(content) % record:
        raise InkdropError(
            f"{file.place}: {len(content):,} bytes are not whole records of {record}: cut off, or "
            "not of this set"
        )
    records = np.frombuffer(content, np.uint8).reshape(-1, record)
    return records[:, form.labels_before :], records[:, form.labels_before - 1]


def _python_batch(form: _Form, file: _File) -> tuple[NDArray[Any], NDArray[Any]]:
    batch = _parsed(file)
    for key in ("data", form.label):
        if key not in batch:
            raise InkdropError(f"{file.place}: no {key!r} in it: not one of {form.kind}")
    pixels, labels = batch["data"], batch[form.label]
    if not isinstance(pixels, np.ndarray):
        raise InkdropError(f"{file.place}: 'data' is a {type(pixels).__name__}, not an array")
    if isinstance(labels, list) and all(type(value) is int for value in labels):
        # A number beyond 64 bits would not fit; brought near, it is still outside.
        labels = np.array([min(max(value, -1), form.classes) for value in labels], np.int64)
    if not isinstance(labels, np.ndarray) or labels.ndim != 1 or labels.dtype.kind not in "iu":
        raise InkdropError(f"{file.place}: {form.label!r} is not a list of whole numbers")
    return pixels, labels


def _parsed(file: _File) -> dict[str, Any]:
    try:
        found = parse_pickle(file.read())
    except BadPickle as error:
        raise InkdropError(f"{file.place}: {error}") from error
    if not isinstance(found, dict):
        raise InkdropError(f"{file.place}: holds a {type(found).__name__}, not a batch of CIFAR")
    return {_text(key): value for key, value in found.items()}


def _text(value: object) -> str:
    return value.decode("latin1") if isinstance(value, bytes) else str(value)


def _checked_pixels(pixels: NDArray[Any], file: _File) -> NDArray[np.uint8]:
    if pixels.dtype != np.uint8 or pixels.ndim != 2 or pixels.shape[1] != _IMAGE:
        raise InkdropError(
            f"{file.place}: images must be (N, {_IMAGE}) of uint8, got {pixels.shape} of "
            f"{pixels.dtype}"
        )
    if not len(pixels):
        raise InkdropError(f"{file.place}: empty: it holds no image")
    return pixels


def _checked_labels(
    labels: NDArray[Any], form: _Form, pixels: NDArray[Any], file: _File
) -> NDArray[np.int64]:
    if len(labels) != len(pixels):
        raise InkdropError(f"{file.place}: {len(pixels)} images but {len(labels)} labels")
    outside = (labels < 0) | (labels >= form.classes)
    if outside.any():
        i = int(outside.argmax())
        raise InkdropError(
            f"{file.place}: the label of image {i} is outside 0 … {form.classes - 1}: not "
            f"{form.name}, or damaged"
        )
    return labels.astype(np.int64)


def _class_names(form: _Form, files: _Files) -> tuple[str, ...]:
    if form.names not in files:
        return ()
    file = files[form.names]
    if form.python:
        found = _parsed(file).get("fine_label_names" if form.classes == 100 else "label_names")
        names = [_text(name) for name in found] if isinstance(found, list) else []
    else:
        lines = file.read().decode("utf-8", errors="replace").splitlines()
        names = [line.strip() for line in lines if line.strip()]
    if len(names) != form.classes:
        raise InkdropError(f"{file.place}: {len(names)} class names instead of {form.classes}")
    return tuple(map(shown, names))
