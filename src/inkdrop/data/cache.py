"""Decoded images on disk, built once for the same images and the same settings.

Each entry is a folder of the cache, named by all that its pixels depend on, not by where the images
lie. It is built beside its place and moved there when it is complete.
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import json
import math
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import filelock
import numpy as np
import PIL
import torch
from numpy.typing import NDArray

from .. import __version__
from ..console import progress_bar, say
from ..errors import InkdropError
from ..randomness import generator
from .cache_worker import Part, write_part
from .mapped import MappedImages, MappedRows
from .places import CACHE_VARIABLE, cache_folder
from .stored.collection import Collection
from .transform import Transform

if TYPE_CHECKING:
    from rich.console import Console

_FORMAT = 1  # changes whenever the files of an entry do
_FEW = 500  # images that are decoded sooner than worker processes start
_PATIENCE = 1.0  # seconds after which waiting for another process is worth a word
_PIXELS, _LABELS, _FACTS = "images.bin", "labels.npy", "cache.json"
_BUILDING = ".building"
OTHERS = ("checks", "tars", "unpacked", "features")  # folders that decoding has no part in


class CacheEntry(NamedTuple):
    """Decoded images in the cache.

    Attributes:
        path: the folder.
        name: of the set they came from.
        bytes: what the folder takes on disk.
        last_used: seconds since 1970.
    """

    path: Path
    name: str
    bytes: int
    last_used: float


@dataclass(frozen=True)
class _Wanted:
    """What is to be in an entry."""

    collection: Collection
    content: str
    transform: Transform
    skip: NDArray[np.int64]  # rising

    @property
    def kept(self) -> NDArray[np.int64]:
        return np.setdiff1d(np.arange(len(self.collection)), self.skip, assume_unique=True)

    @property
    def count(self) -> int:
        return len(self.collection) - len(self.skip)

    @property
    def shape(self) -> tuple[int, int, int]:
        return self.transform.channels, self.transform.height, self.transform.width

    @property
    def pixel_bytes(self) -> int:
        return self.count * math.prod(self.shape)

    @property
    def folder(self) -> Path:
        skipped = ",".join(map(str, self.skip.tolist()))
        text = f"{_FORMAT}\n{self.content}\n{self.transform.key}\n{skipped}\n"
        return _entries_folder() / hashlib.sha256(text.encode()).hexdigest()


class _Damaged(Exception):
    """An entry whose files do not fit each other."""


def cached_images(
    collection: Collection,
    content: str,
    transform: Transform,
    skip: frozenset[int] = frozenset(),
    *,
    console: Console | None = None,
    workers: int | None = None,
) -> MappedImages:
    """A collection's images, decoded; from the cache where they are there, else built into it.

    Two processes that need the same images build them once: the second waits.

    Args:
        content: a digest of all images and labels, wherever they lie.
        transform: what makes them (C, H, W) uint8.
        skip: the images that are left out.
        console: is told when building begins, and shows how far it is.
        workers: processes that decode; as many as there are cores by default.

    Raises:
        InkdropError: if an image cannot be decoded, none is left, or the disk has no room.
    """
    wanted = _Wanted(collection, content, transform, np.array(sorted(skip), dtype=np.int64))
    if wanted.count < 1:
        raise InkdropError(f"{collection.name}: no images to decode")
    with _disk_errors(wanted), contextlib.suppress(_Damaged):
        ready = _ready(wanted)
        if ready is not None:
            return ready
    with _disk_errors(wanted), _locked(wanted.folder, console):
        try:
            ready = _ready(wanted)
        except _Damaged as damage:
            say(console, f"the cache of {collection.name} is damaged ({damage}): built anew")
            ready = None
        if ready is None:
            _build(wanted, console, workers)
            ready = _ready(wanted)
    if ready is None:
        raise InkdropError(f"{wanted.folder} has gone while it was built: is the cache cleared?")
    return ready


def cache_entries() -> list[CacheEntry]:
    """What is in the cache, the longest unused first."""
    entries = []
    for folder in _entry_folders():
        try:
            name = str(json.loads((folder / _FACTS).read_text(encoding="utf-8"))["name"])
        except (OSError, ValueError, KeyError, TypeError):
            name = "unfinished" if folder.name.endswith(_BUILDING) else "damaged"
        with contextlib.suppress(OSError):  # another process may have just removed it
            size = sum(file.stat().st_size for file in folder.iterdir())
            entries.append(CacheEntry(folder, name, size, folder.stat().st_mtime))
    return sorted(entries, key=lambda entry: entry.last_used)


def clear_cache() -> int:
    """Remove all that is kept but what a process is building; returns its bytes.

    Besides decoded images these are the checks, the tars' indexes and what packed tars were
    unpacked to. A process that is training on some of it keeps it until it ends.
    """
    freed = 0
    for folder in (cache_folder() / name for name in OTHERS):
        freed += sum(file.stat().st_size for file in folder.rglob("*") if file.is_file())
        shutil.rmtree(folder, ignore_errors=True)
    for entry in cache_entries():
        with contextlib.suppress(filelock.Timeout, OSError), _lock(entry.path).acquire(timeout=0):
            shutil.rmtree(entry.path)
            freed += entry.bytes
    return freed


# Reading an entry


def _ready(wanted: _Wanted) -> MappedImages | None:
    """The entry, if it is there.

    Raises:
        _Damaged: if its files do not fit each other.
    """
    folder = wanted.folder
    if not folder.is_dir():
        return None
    collection = wanted.collection
    try:
        facts = json.loads((folder / _FACTS).read_text(encoding="utf-8"))
        fingerprint = facts["fingerprint"]
        fits = (facts["count"], facts["shape"]) == (wanted.count, list(wanted.shape))
    except (OSError, ValueError, KeyError, TypeError):
        raise _Damaged(f"{_FACTS} cannot be read") from None
    if not fits or not isinstance(fingerprint, str):
        raise _Damaged(f"{_FACTS} is of other images")
    file = folder / _PIXELS
    if not file.is_file() or file.stat().st_size != wanted.pixel_bytes:
        raise _Damaged(f"{_PIXELS} is not of the size it should be")
    labels = _read_labels(folder) if collection.labels is not None else None
    if labels is not None and labels.shape != (wanted.count,):
        raise _Damaged(f"{_LABELS} has not a label for each image")
    with contextlib.suppress(OSError):  # a cache that cannot be written to still serves
        os.utime(folder)
    return MappedImages(
        MappedRows(file, wanted.shape),
        wanted.shape,
        None if labels is None else torch.from_numpy(labels),
        collection.name,
        fingerprint,
        collection.class_names,
    )


def _read_labels(folder: Path) -> NDArray[np.int64]:
    try:
        labels = np.load(folder / _LABELS, allow_pickle=False)
    except (OSError, ValueError, EOFError):
        raise _Damaged(f"{_LABELS} cannot be read") from None
    if labels.dtype != np.int64:
        raise _Damaged(f"{_LABELS} is of type {labels.dtype}")
    return np.asarray(labels, dtype=np.int64)


# Building an entry


def _build(wanted: _Wanted, console: Console | None, workers: int | None) -> None:
    """Build the entry; nothing half-written is left. Its lock must be held."""
    folder = wanted.folder
    building = folder.with_name(folder.name + _BUILDING)
    for old in (building, folder):  # of a process that was killed; damaged
        if old.exists():
            shutil.rmtree(old)
    _check_room(wanted)
    try:
        building.mkdir()
        _write_pixels(wanted, building / _PIXELS, console, workers)
        _write_facts(wanted, building)
        for path in (*building.iterdir(), building):
            _to_disk(path)
        building.replace(folder)
        _to_disk(folder.parent)
    finally:
        shutil.rmtree(building, ignore_errors=True)


def _check_room(wanted: _Wanted) -> None:
    if shutil.disk_usage(_entries_folder()).free < wanted.pixel_bytes:
        raise _no_room(wanted)


def _write_pixels(
    wanted: _Wanted, file: Path, console: Console | None, workers: int | None
) -> None:
    from joblib import Parallel, cpu_count, delayed
    from joblib.externals.loky.process_executor import TerminatedWorkerError

    collection, transform, count = wanted.collection, wanted.transform, len(wanted.collection)
    workers = workers or cpu_count()
    with open(file, "wb") as pixels:
        pixels.truncate(wanted.pixel_bytes)
    alone = collection.sequential or workers == 1 or count < _FEW
    say(console, f"decoding {count:,} images of {collection.name} into {_entries_folder()}")
    with progress_bar(console, "decoding", count, "images") as advance:
        if alone:
            (part,) = _parts(wanted, count)
            write_part(collection, transform, file, part, advance)
            return
        parallel = Parallel(n_jobs=workers, backend="loky", return_as="generator_unordered")
        try:
            for done in parallel(
                delayed(write_part)(collection, transform, file, part)
                for part in _parts(wanted, _chunk(count, collection.block, workers))
            ):
                advance(done)
        except TerminatedWorkerError as error:
            raise InkdropError(
                f"{collection.name}: a process that decodes images was killed, perhaps for lack "
                "of memory: try fewer workers"
            ) from error


def _parts(wanted: _Wanted, chunk: int) -> Iterator[Part]:
    """The collection in runs of `chunk` images."""
    count, skip = len(wanted.collection), wanted.skip
    places = None
    if wanted.transform.fit == "random-crop":
        places = generator(0, "crop place").random((count, 2))
    for start in range(0, count, chunk):
        stop = min(start + chunk, count)
        first, last = np.searchsorted(skip, [start, stop]).tolist()
        yield Part(
            start,
            stop,
            start - first,
            frozenset(skip[first:last].tolist()),
            None if places is None else places[start:stop],
        )


def _chunk(count: int, block: int, workers: int) -> int:
    """How many images a worker takes at a time: whole blocks, and enough turns for each."""
    wanted = min(max(count // (4 * workers), 64), 4096)
    return math.ceil(wanted / block) * block


def _write_facts(wanted: _Wanted, building: Path) -> None:
    collection = wanted.collection
    labels = None if collection.labels is None else collection.labels[wanted.kept]
    if labels is not None:
        np.save(building / _LABELS, labels.astype(np.int64))
    facts: dict[str, Any] = {
        "format": _FORMAT,
        "name": collection.name,
        "count": wanted.count,
        "shape": wanted.shape,
        "fingerprint": _fingerprint(wanted, building / _PIXELS, labels),
        "content": wanted.content,
        "transform": wanted.transform.key,
        "class_names": collection.class_names,
        "pillow": PIL.__version__,
        "inkdrop": __version__,
    }
    text = json.dumps(facts, indent=2, ensure_ascii=False)
    (building / _FACTS).write_text(text + "\n", encoding="utf-8", errors="backslashreplace")


def _fingerprint(wanted: _Wanted, file: Path, labels: NDArray[np.int64] | None) -> str:
    """The digest that `Examples.fingerprint` is for the same images in memory."""
    labelled = "labelled" if labels is not None else "unlabelled"
    digest = hashlib.sha256(f"{(wanted.count, *wanted.shape)} {labelled}\n".encode())
    with open(file, "rb") as pixels:
        while some := pixels.read(1 << 22):
            digest.update(some)
    if labels is not None:
        digest.update(labels.astype("<i8").tobytes())
    return digest.hexdigest()


def _to_disk(path: Path) -> None:
    """Have the system write a file, or a folder's list of files, to the disk itself."""
    if path.is_dir() and os.name == "nt":
        return  # Windows does so without being asked
    handle = os.open(path, os.O_RDONLY if path.is_dir() else os.O_RDWR)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


# The cache's folder


def _entries_folder() -> Path:
    return cache_folder() / "images"


def _entry_folders() -> list[Path]:
    folder = _entries_folder()
    return [path for path in folder.iterdir() if path.is_dir()] if folder.is_dir() else []


def _lock(folder: Path) -> filelock.BaseFileLock:
    """The lock of an entry, finished or not."""
    return filelock.FileLock(folder.with_name(folder.name.removesuffix(_BUILDING) + ".lock"))


@contextmanager
def _locked(folder: Path, console: Console | None) -> Iterator[None]:
    folder.parent.mkdir(parents=True, exist_ok=True)
    lock = _lock(folder)
    try:
        lock.acquire(timeout=_PATIENCE)
    except filelock.Timeout:
        say(console, "waiting for another process, which is decoding the same images")
        lock.acquire()
    try:
        yield
    finally:
        lock.release()


@contextmanager
def _disk_errors(wanted: _Wanted) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise _no_room(wanted) from error
        raise InkdropError(
            f"cannot keep decoded images in {_entries_folder()} ({error.strerror or error}): set "
            f"{CACHE_VARIABLE} to another folder"
        ) from error


def _no_room(wanted: _Wanted) -> InkdropError:
    return InkdropError(
        f"no room in {_entries_folder()}: the decoded images of {wanted.collection.name} take "
        f"{wanted.pixel_bytes / 1e9:,.2f} GB; free some, or set {CACHE_VARIABLE} to another folder"
    )
