"""Images and labels in MNIST's IDX format, gzipped or not; those of EMNIST are turned upright.

    bytes   images                   labels
    0-3     00 00 08 03              00 00 08 01
    4-7     N, big-endian            N, big-endian
    8-15    H and W, big-endian
    then    N·H·W bytes of pixels    N bytes of labels

A file is believed only as far as its bytes bear it out: no memory is taken on a header's word.

Nothing here imports torch: it runs in worker processes.
"""

from __future__ import annotations

import gzip
import io
import math
import os
import re
import zlib
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from ...errors import InkdropError
from ..places import files_identity
from .collection import Arrays, Found

KIND = "IDX files"
EXPECTED_NAMES = (
    "train-images-idx3-ubyte, train-labels-idx1-ubyte and, for the test set, "
    "t10k-images-idx3-ubyte, t10k-labels-idx1-ubyte (each with or without .gz), or EMNIST's names"
)

_ENDING = r"-(?:(images)[-.]idx3|(labels)[-.]idx1)-ubyte(?:\.gz)?"
_MNIST_NAME = re.compile("()(train|t10k)" + _ENDING)
_EMNIST_NAME = re.compile(
    "(emnist-(?:byclass|bymerge|balanced|letters|digits|mnist))-(train|test)" + _ENDING
)
_PARTS = {"train": "train", "t10k": "test", "test": "test"}

_UPRIGHT = (
    "turned upright: EMNIST's files hold their images transposed, column by column as Matlab does"
)
_LETTERS = "its labels are 1 … 26 for the letters a … z: class 0 is empty"

_GZIP_MAGIC = b"\x1f\x8b"
_DEFLATE_RATIO = 1032  # the most that one compressed byte can become (zlib's technical details)
_CHUNK = 1 << 20

_Stream = gzip.GzipFile | io.BufferedReader


@dataclass(frozen=True)
class IdxFiles:
    """The files of an MNIST-like set; None for those it lacks.

    Attributes:
        variant: "emnist-letters" and so on for EMNIST's sets; else empty.
    """

    train_images: Path
    train_labels: Path | None
    test_images: Path | None
    test_labels: Path | None
    variant: str = ""


def holds_idx(path: Path) -> bool:
    """Whether `path` is an IDX file of images, or of a name of theirs, or a folder with one."""
    if not path.is_dir():
        return _is_idx(path) or _has_images(path)
    try:
        with os.scandir(path) as entries:  # a folder of images can have millions
            return any(_parsed(entry.name) and entry.is_file() for entry in entries)
    except OSError as error:
        raise InkdropError(f"cannot read {path}: {error.strerror}") from error


def find_idx_set(paths: Sequence[Path], name: str | None = None) -> Found:
    """The images (N, H, W) in the IDX files among `paths`, as `find_idx` finds them.

    A single file of images can have any name; it makes a set without labels.

    Args:
        name: what to call the set; by default the folder's name, or that of the single file.

    Raises:
        InkdropError: if the files cannot be found or read, or do not fit each other.
    """
    if len(paths) == 1 and _parsed(paths[0].name) is None and _has_images(paths[0]):
        (path,) = paths
        called = name or path.name
        return Found(
            Arrays(read_idx_images(path), None, called, KIND, identity=files_identity(paths)), None
        )
    files = find_idx(paths)
    folder = paths[0] if paths[0].is_dir() else files.train_images.parent
    called = name or folder.resolve().name
    train = _load_part(files.train_images, files.train_labels, f"{called} train", files.variant)
    if files.test_images is None:
        return Found(train, None)
    test = _load_part(files.test_images, files.test_labels, f"{called} test", files.variant)
    if train.pixels.shape[1:] != test.pixels.shape[1:]:
        (h, w), (test_h, test_w) = train.pixels.shape[1:], test.pixels.shape[1:]
        raise InkdropError(
            f"{files.train_images} holds images of {h}x{w} but {files.test_images} of "
            f"{test_h}x{test_w}: they must be the same; are the files of the same set?"
        )
    return Found(train, test)


def find_idx(paths: Sequence[Path]) -> IdxFiles:
    """The IDX files among `paths` (folders, files, or both; any order), told apart by their names.

    The test images are optional. Labels are optional too, but only for all images at once: a set
    of which one part has labels and the other has none is a mistake. Of a folder that holds a
    file both packed and unpacked, as torchvision leaves it, the unpacked one is taken.

    Raises:
        InkdropError: if a path does not exist or has another name, a folder holds no such file,
            a file is there twice, they are of several sets, or one that is needed is missing.
    """
    found: dict[str, Path] = {}
    named = [(file, _name_of(file)) for path in paths for file in _files_at(path)]
    variants = sorted({name.variant for _, name in named})
    given = ", ".join(str(path) for path in paths) or "the list of paths"
    if len(variants) > 1:
        raise InkdropError(
            f"{given}: several sets, {', '.join(variant or 'mnist' for variant in variants)}: "
            f"give the files of one, such as {variants[-1]}-train-images-idx3-ubyte and so on"
        )
    for file, name in named:
        if name.role in found:
            raise InkdropError(
                f"the {name.role} are given twice, as {found[name.role]} and {file}: leave one out"
            )
        found[name.role] = file
    if "train images" not in found:
        raise InkdropError(f"no training images in {given}: expected {EXPECTED_NAMES}")
    if "test labels" in found and "test images" not in found:
        raise InkdropError(f"{found['test labels']} are labels without their images")
    if "test images" in found and ("train labels" in found) != ("test labels" in found):
        with_labels = "training" if "train labels" in found else "test"
        raise InkdropError(
            f"{given}: only the {with_labels} images have labels: give labels for both parts "
            f"or for neither ({EXPECTED_NAMES})"
        )
    return IdxFiles(
        found["train images"],
        found.get("train labels"),
        found.get("test images"),
        found.get("test labels"),
        *variants,
    )


def read_idx_images(path: Path) -> NDArray[np.uint8]:
    """The images of an IDX file, (N, H, W) uint8.

    Raises:
        InkdropError: if it is missing, something else, truncated, too long, corrupt or empty.
    """
    sizes, pixels = _read(path, _IMAGES)
    return np.frombuffer(pixels, np.uint8).reshape(sizes)


def read_idx_labels(path: Path) -> NDArray[np.int64]:
    """The labels of an IDX file, (N,) int64.

    Raises:
        InkdropError: if it is missing, something else, truncated, too long, corrupt or empty.
    """
    _, labels = _read(path, _LABELS)
    return np.frombuffer(labels, np.uint8).astype(np.int64)


# Finding the files


@dataclass(frozen=True)
class _Name:
    variant: str
    role: str


def _parsed(name: str) -> _Name | None:
    """What a file's name says of it."""
    match = _MNIST_NAME.fullmatch(name) or _EMNIST_NAME.fullmatch(name)
    if match is None:
        return None
    return _Name(match[1], f"{_PARTS[match[2]]} {match[3] or match[4]}")


def _name_of(file: Path) -> _Name:
    name = _parsed(file.name)
    if name is None:
        alone = "; one of another name must be given alone" if _has_images(file) else ""
        raise InkdropError(f"{file}: not a name of an IDX file: expected {EXPECTED_NAMES}{alone}")
    return name


def _files_at(path: Path) -> list[Path]:
    entries = _entries(path)
    if entries == [path]:
        return entries
    # "x" stands before "x.gz", so the unpacked one of the two is kept.
    unpacked: dict[str, Path] = {}
    for entry in entries:
        if _is_idx(entry):
            unpacked.setdefault(entry.name.removesuffix(".gz"), entry)
    if not unpacked:
        raise InkdropError(f"no IDX files in the folder {path}: expected {EXPECTED_NAMES}")
    return list(unpacked.values())


def _is_idx(file: Path) -> bool:
    return _parsed(file.name) is not None and file.is_file()


def _has_images(path: Path) -> bool:
    """Whether it is a file that starts as IDX images do."""
    if not path.is_file():
        return False
    try:
        with _opened(path) as stream:
            return stream.read(4) == _IMAGES.magic.to_bytes(4, "big")
    except (InkdropError, EOFError):
        return False  # whoever else knows the file can say what is wrong with it


def _entries(path: Path) -> list[Path]:
    """What is in a folder, in order; or the one file that `path` is."""
    try:
        if not path.exists():
            raise InkdropError(f"no such file or folder: {path}")
        return sorted(path.iterdir()) if path.is_dir() else [path]
    except OSError as error:
        raise InkdropError(f"cannot read {path}: {error.strerror}") from error


def _load_part(images_file: Path, labels_file: Path | None, name: str, variant: str) -> Arrays:
    images = read_idx_images(images_file)
    files = [images_file] if labels_file is None else [images_file, labels_file]
    labels = None if labels_file is None else read_idx_labels(labels_file)
    if labels is not None and len(images) != len(labels):
        raise InkdropError(
            f"{images_file} holds {len(images)} images but {labels_file} {len(labels)} labels: "
            "there must be one for each; are the files of the same set?"
        )
    notes = []
    if variant:
        images = images.transpose(0, 2, 1)
        notes.append(_UPRIGHT)
    if variant == "emnist-letters" and labels is not None:
        notes.append(_LETTERS)
    return Arrays(images, labels, name, KIND, notes=notes, identity=files_identity(files))


# Reading one file


@dataclass(frozen=True)
class _Kind:
    name: str
    magic: int
    dimensions: int

    @property
    def header_bytes(self) -> int:
        return 4 + 4 * self.dimensions


_IMAGES = _Kind("images", 0x00000803, 3)
_LABELS = _Kind("labels", 0x00000801, 1)

_LOOKS = (
    (_GZIP_MAGIC, "gzip inside gzip: unpack it once"),
    (b"\x89PNG", "a PNG image"),
    (b"\xff\xd8\xff", "a JPEG image"),
    (b"PK\x03\x04", "a ZIP archive: unpack it"),
    (b"PAR1", "a Parquet file"),
    (b"version ", "a Git LFS pointer: fetch the file itself with git lfs pull"),
    (b"<", "a web page, perhaps the error page of a download: fetch it again"),
)
_IDX_TYPES = {8: "uint8", 9: "int8", 11: "int16", 12: "int32", 13: "float32", 14: "float64"}


def _read(path: Path, kind: _Kind) -> tuple[tuple[int, ...], bytearray]:
    """The sizes in the header and all that follows it."""
    with _opened(path) as stream:
        sizes = _read_sizes(stream, path, kind)
        payload = _read_payload(stream, path, _counted(sizes, kind), math.prod(sizes))
    return sizes, payload


@contextmanager
def _opened(path: Path) -> Iterator[_Stream]:
    """The file's bytes, unpacked if they are gzip; what goes wrong with it as an InkdropError."""
    try:
        if path.is_dir():
            raise InkdropError(f"{path} is a folder, not an IDX file")
        if not path.is_file():
            raise InkdropError(f"no such file: {path}")
        with open(path, "rb") as raw:
            # A short file may end within the two bytes; then it is no gzip either.
            if raw.peek(2)[:2] != _GZIP_MAGIC:
                yield raw
                return
            with gzip.GzipFile(fileobj=raw, mode="rb") as unpacked:
                yield unpacked
    except (gzip.BadGzipFile, zlib.error) as error:
        raise InkdropError(
            f"{path}: the gzip data are corrupt ({error}): fetch the file again"
        ) from error
    except OSError as error:
        raise InkdropError(f"cannot read {path}: {error.strerror or error}") from error


def _read_sizes(stream: _Stream, path: Path, kind: _Kind) -> tuple[int, ...]:
    try:
        header = stream.read(kind.header_bytes)
    except EOFError:
        raise InkdropError(
            f"{path}: truncated: the gzip stream breaks off within the header; fetch it again"
        ) from None
    if len(header) >= 4 and int.from_bytes(header[:4], "big") != kind.magic:
        raise _wrong_magic(path, header, kind)
    if len(header) < kind.header_bytes:
        raise InkdropError(
            f"{path}: too short: the header of IDX {kind.name} takes {kind.header_bytes} bytes, "
            f"found {len(header)}; fetch the file again"
        )
    sizes = tuple(int.from_bytes(header[i : i + 4], "big") for i in range(4, len(header), 4))
    if 0 in sizes:
        raise InkdropError(f"{path}: empty: its header promises {_counted(sizes, kind)}")
    return sizes


def _wrong_magic(path: Path, header: bytes, kind: _Kind) -> InkdropError:
    magic = int.from_bytes(header[:4], "big")
    for other in (_IMAGES, _LABELS):
        if magic == other.magic:
            return InkdropError(
                f"{path}: mislabelled: it holds {other.name} (magic number 0x{magic:08x}) where "
                f"{kind.name} (0x{kind.magic:08x}) are expected; are two files swapped?"
            )
    look = _look(header)
    return InkdropError(
        f"{path}: not IDX {kind.name}: it starts with 0x{magic:08x} instead of "
        f"0x{kind.magic:08x}" + (f"; it looks like {look}" if look else "")
    )


def _look(header: bytes) -> str | None:
    """What a file that is not the IDX file expected seems to be."""
    for start, look in _LOOKS:
        if header.lstrip().startswith(start):
            return look
    type_, dimensions = header[2], header[3]
    if header[:2] == b"\0\0" and type_ in _IDX_TYPES:
        return f"an IDX file of {_IDX_TYPES[type_]} with {dimensions} dimensions"
    return None


def _read_payload(stream: _Stream, path: Path, promise: str, promised: int) -> bytearray:
    """The `promised` bytes up to the end of the file; neither fewer nor more."""
    _check_room(stream, path, promise, promised)
    payload = bytearray()
    try:
        # One byte more than promised, which tells of trailing bytes and has gzip check its CRC.
        while chunk := stream.read1(min(_CHUNK, promised + 1 - len(payload))):
            payload += chunk
    except EOFError:
        raise InkdropError(
            f"{path}: truncated: the gzip stream breaks off after {len(payload)} of the "
            f"{promised} bytes of {promise}; fetch the file again"
        ) from None
    if len(payload) < promised:
        raise _truncated(path, promise, promised, len(payload))
    if len(payload) > promised:
        raise InkdropError(
            f"{path}: too long: its header promises {promise}, {promised} bytes, but more follow; "
            "header and content are not of the same file"
        )
    return payload


def _check_room(stream: _Stream, path: Path, promise: str, promised: int) -> None:
    """Refuse a header that promises more than the file can hold, before anything is read."""
    size = path.stat().st_size
    if isinstance(stream, gzip.GzipFile):
        if promised > size * _DEFLATE_RATIO:
            raise InkdropError(
                f"{path}: its header promises {promise}, {promised} bytes, which {size} bytes of "
                "gzip cannot hold: the file is truncated or its header is wrong; fetch it again"
            )
    elif promised > size - stream.tell():
        raise _truncated(path, promise, promised, size - stream.tell())


def _truncated(path: Path, promise: str, promised: int, found: int) -> InkdropError:
    return InkdropError(
        f"{path}: truncated: its header promises {promise}, {promised} bytes, but {found} bytes "
        "follow; fetch the file again"
    )


def _counted(sizes: Sequence[int], kind: _Kind) -> str:
    count, *sides = sizes
    return f"{count} {kind.name}" + (f" of {sides[0]}x{sides[1]}" if sides else "")
