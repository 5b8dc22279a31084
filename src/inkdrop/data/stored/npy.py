"""NumPy's .npy and .npz files, believed only as far as their bytes bear them out.

No memory is taken on a header's word, and pickled objects are never loaded.

Nothing here imports torch: it runs in worker processes.
"""

from __future__ import annotations

import math
import os
import struct
import tokenize
import warnings
import zipfile
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

import numpy as np
import psutil
from numpy.lib import format as npy
from numpy.typing import NDArray

from ...errors import InkdropError

_DEFLATE_RATIO = 1032  # the most that one compressed byte can become (zlib's technical details)
_CHUNK_BYTES = 16 << 20
_HEADERS = {(1, 0): npy.read_array_header_1_0, (2, 0): npy.read_array_header_2_0}
_HEADER_ERRORS = (
    ValueError, TypeError, SyntaxError, KeyError, EOFError, MemoryError, RecursionError,
    OverflowError, UserWarning, tokenize.TokenError,
)  # fmt: skip
_ZIP_ERRORS = (
    zipfile.BadZipFile, zlib.error, struct.error, EOFError, NotImplementedError, OSError,
    OverflowError, RuntimeError, ValueError,
)  # fmt: skip


@dataclass(frozen=True)
class Stored:
    """An array of numbers as it lies in a file or in memory.

    Attributes:
        place: what messages call it.
        shape, dtype: as its header says, and its bytes bear out.
        chunks: some rows of it after the other, each time it is called; of a size that does not
            grow with the array.
        whole: all of it: mapped, not read, where that can be.
    """

    place: str
    shape: tuple[int, ...]
    dtype: np.dtype[Any]
    chunks: Callable[[], Iterator[NDArray[Any]]]
    whole: Callable[[], NDArray[Any]]


def in_memory(array: NDArray[Any], place: str) -> Stored:
    """An array that is there already, in memory or mapped."""
    rows = _rows(array.shape, array.dtype)

    def chunks() -> Iterator[NDArray[Any]]:
        for start in range(0, len(array), rows):
            yield array[start : start + rows]

    return Stored(place, array.shape, array.dtype, chunks, lambda: array)


def map_npy(path: Path) -> NDArray[Any]:
    """The array of a .npy file, mapped to be read only.

    Raises:
        InkdropError: if it is missing, something else, of objects, or longer or shorter than its
            header says.
    """
    try:
        with open(path, "rb") as file:
            shape, fortran, dtype = _header(file, str(path))
            start = file.tell()
            _check_length(
                math.prod(shape) * dtype.itemsize, os.fstat(file.fileno()).st_size - start, path
            )
            if 0 in shape:
                return np.empty(shape, dtype)
            order = "F" if fortran else "C"
            mapped = np.memmap(file, dtype, "r", start, shape, order)  # type: ignore[call-overload]
    except InkdropError:
        raise
    except (OSError, OverflowError, ValueError) as error:
        reason = getattr(error, "strerror", None) or _line(error)
        raise InkdropError(f"cannot read {path}: {reason}") from error
    return np.asarray(mapped)


class Npz:
    """The arrays of a .npz file, by name. Only their headers are read at first.

    Attributes:
        arrays: those of numbers, text or dates, by name, in the file's order.
        refused: for the others why they cannot be read.

    Raises:
        InkdropError: if it is missing or no zip.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.arrays: dict[str, Stored] = {}
        self.refused: dict[str, str] = {}
        with _opened(path) as archive:
            for info in archive.infolist():
                if info.is_dir():
                    continue
                name = info.filename.removesuffix(".npy")
                name = name if name.isprintable() else ascii(name)
                if name in self.arrays or name in self.refused:
                    raise InkdropError(f"{path}: holds {name!r} twice")
                try:
                    self.arrays[name] = _looked_at(path, archive, info, f"{path}: {name}")
                except InkdropError as error:
                    self.refused[name] = str(error)


def _looked_at(path: Path, archive: zipfile.ZipFile, info: zipfile.ZipInfo, place: str) -> Stored:
    if info.flag_bits & 1:
        raise InkdropError(f"{place}: encrypted")
    if info.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
        raise InkdropError(f"{place}: packed in a way that NumPy does not use")
    with _unpacked(archive, info, place) as file:
        shape, fortran, dtype = _header(file, place)
        start = file.tell()
    size = math.prod(shape) * dtype.itemsize
    _check_length(size, info.file_size - start, place)
    if info.file_size > info.compress_size * _DEFLATE_RATIO:
        raise InkdropError(f"{place}: {info.compress_size:,} bytes cannot hold {size:,}")
    member = _Member(path, info, place, shape, fortran, dtype)
    return Stored(place, shape, dtype, member.chunks, member.whole)


@dataclass(frozen=True)
class _Member:
    """An array of a .npz file, of which the header was read."""

    path: Path
    info: zipfile.ZipInfo
    place: str
    shape: tuple[int, ...]
    fortran: bool
    dtype: np.dtype[Any]

    def chunks(self) -> Iterator[NDArray[Any]]:
        """As `Stored.chunks`; but an array whose columns come first cannot be read by rows."""
        if self.fortran:
            yield from in_memory(self.whole(), self.place).chunks()
            return
        count, rows = self.shape[0], _rows(self.shape, self.dtype)
        with self._content() as file:
            for row in range(0, count, rows):
                part = np.empty((min(rows, count - row), *self.shape[1:]), self.dtype)
                _fill(part, file, self.place)
                yield part

    def whole(self) -> NDArray[Any]:
        """As `Stored.whole`, in memory."""
        count = math.prod(self.shape)
        check_room(count * self.dtype.itemsize, self.place)
        array = np.empty(count, self.dtype)
        with self._content() as file:
            _fill(array, file, self.place)
        return array.reshape(self.shape, order="F" if self.fortran else "C")

    @contextmanager
    def _content(self) -> Iterator[IO[bytes]]:
        with _opened(self.path) as archive, _unpacked(archive, self.info, self.place) as file:
            _header(file, self.place)
            yield file


@contextmanager
def _opened(path: Path) -> Iterator[zipfile.ZipFile]:
    try:
        archive = zipfile.ZipFile(path)
    except OSError as error:
        raise InkdropError(f"cannot read {path}: {error.strerror or error}") from error
    except _ZIP_ERRORS as error:
        raise InkdropError(
            f"{path}: no .npz file, or one that is cut off ({_line(error)})"
        ) from error
    with archive:
        yield archive


@contextmanager
def _unpacked(archive: zipfile.ZipFile, info: zipfile.ZipInfo, place: str) -> Iterator[IO[bytes]]:
    try:
        with archive.open(info) as file:
            yield file
    except InkdropError:
        raise
    except _ZIP_ERRORS as error:
        raise InkdropError(f"{place}: damaged ({_line(error)}): fetch it again") from error


def check_room(size: int, place: str) -> None:
    """Refuse an array of more bytes than there is memory.

    Raises:
        InkdropError: then.
    """
    free = psutil.virtual_memory().available
    if size > free:
        raise InkdropError(
            f"{place}: {size:,} bytes, but {free:,} bytes of memory are free: save it as uint8 in "
            "a .npy file, which is read where it lies"
        )


def _rows(shape: tuple[int, ...], dtype: np.dtype[Any]) -> int:
    return max(1, _CHUNK_BYTES // max(1, math.prod(shape[1:]) * dtype.itemsize))


def _header(file: IO[bytes], place: str) -> tuple[tuple[int, ...], bool, np.dtype[Any]]:
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", UserWarning)  # it was written by Python 2: so what
            version = npy.read_magic(file)
            if version not in _HEADERS:
                raise ValueError(f"version {version[0]}.{version[1]}")
            shape, fortran, dtype = _HEADERS[version](file)
    except _HEADER_ERRORS as error:
        raise InkdropError(f"{place}: no array of NumPy, or damaged ({_line(error)})") from error
    if dtype.hasobject:
        raise InkdropError(
            f"{place}: an array of Python objects, which could run code: refused; save one array "
            "of numbers, of images of one size"
        )
    if any(type(size) is not int or size < 0 for size in shape):
        raise InkdropError(f"{place}: damaged: its header promises the shape {shape}")
    return shape, fortran, dtype


def _check_length(promised: int, found: int, place: str | Path) -> None:
    if promised > found:
        raise InkdropError(
            f"{place}: truncated: its header promises {promised:,} bytes, but {found:,} follow; "
            "fetch or save it again"
        )
    if promised < found:
        raise InkdropError(
            f"{place}: too long: its header promises {promised:,} bytes, but {found:,} follow; "
            "were several arrays saved to one file?"
        )


def _fill(array: NDArray[Any], file: IO[bytes], place: str) -> None:
    """From what follows in a stream; memory is really taken only as bytes arrive.

    With the last byte that it declared, zipfile compares the checksum.
    """
    target = array.reshape(-1).view(np.uint8)
    for start in range(0, len(target), _CHUNK_BYTES):
        stop = min(start + _CHUNK_BYTES, len(target))
        content = file.read(stop - start)
        if len(content) < stop - start:
            raise InkdropError(f"{place}: truncated: fetch or save it again")
        target[start:stop] = np.frombuffer(content, np.uint8)


def _line(error: BaseException) -> str:
    return " ".join(str(error).split())[:100] or type(error).__name__
