"""Images from Parquet files: encoded ones in a column of bytes, as on the Hugging Face hub.

Nothing here imports torch: it runs in worker processes.
"""

from __future__ import annotations

import re
import threading
from bisect import bisect_right
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from ...errors import InkdropError
from ..places import files_identity
from .collection import Collection, Found, Item
from .columns import Columns, find_columns, first_line, labels_of, part_of
from .tree import natural_key

if TYPE_CHECKING:
    import pyarrow as pa

NO_BYTES = "the image's bytes are missing"

TRAIN_WORDS = ("train", "training")
TEST_WORDS = ("test", "testing")
VALIDATION_WORDS = ("validation", "val", "valid")

_MAGIC = b"PAR1"
_ABOUT_IMAGES = "metadata.parquet"  # by the hub's custom, about image files that lie beside it
_BLOCK = 512  # images; row groups may be much larger
_BYTES_AT_ONCE = 32 << 20  # of images; what is larger is read batch by batch
_BUFFER = 1 << 20
_CURSORS = 2  # row groups kept open between reads


def holds_parquet(path: Path) -> bool:
    """Whether `path` is a Parquet file, or a folder with one in it or one level down."""
    if path.is_dir():
        return bool(_parquet_in(path))
    return path.is_file() and (path.suffix.lower() == ".parquet" or _has_magic(path))


def find_parquet(paths: Sequence[Path], name: str | None = None) -> Found:
    """The images of Parquet files and folders of them, in the order of the files' names.

    Which are to train and which to test on, the words train and test in the names of the files
    tell (validation, where there is no test), or of the folder one level down; where none has
    any such word, all are to train on.

    Args:
        name: what to call the set; the file's or folder's own name by default.

    Raises:
        InkdropError: if a file is missing, damaged, empty, there twice, or no one can tell what it
            is for; or if its columns are not understood or not those of the other files.
    """
    files = [file for path in paths for file in _files_at(path)]
    parts: dict[str, list[Path]] = {"train": [], "test": [], "validation": []}
    split = any(words for _, words in files)
    for file, words in files:
        if split and len(words) != 1:
            raise InkdropError(
                f"{file}: training or test images? its name must have the word train or test in it"
            )
        parts[words[0] if split else "train"].append(file)
    given = ", ".join(map(str, paths))
    if not parts["train"]:
        raise InkdropError(
            f"no training images in {given or 'the list of paths'}: expected Parquet files with "
            "train in their names"
        )
    ordered = {part: _in_order(files) for part, files in parts.items()}
    called = name or _called(paths)
    notes, test_notes = _about_validation(ordered)
    train = ParquetImages(
        ordered["train"], called, "Parquet" if split else "Parquet, all for training", notes
    )
    test_files = ordered["test"] or ordered["validation"]
    if not test_files:
        return Found(train, None)
    test = ParquetImages(test_files, f"{called} test", "Parquet", test_notes)
    if train.class_names != test.class_names and train.class_names and test.class_names:
        raise InkdropError(
            f"{test_files[0]} names other classes than {ordered['train'][0]}: the files of one set "
            "must agree"
        )
    return Found(train, test)


class ParquetImages(Collection):
    """The images of Parquet files, one file after the other.

    What it takes of memory is the labels and, per thread that reads, one row group's images or
    some 32 MB of them.

    Args:
        files: in the order in which they follow each other.
        name, kind, notes: as for every collection.

    Raises:
        InkdropError: naming the file, column or row at fault.
    """

    _idle: list[_Cursor]
    _lock: threading.Lock

    def __init__(
        self, files: Sequence[Path], name: str, kind: str = "Parquet", notes: Sequence[str] = ()
    ) -> None:
        import pyarrow as pa

        self.name = name
        self.kind = kind
        self._files = tuple(files)
        self._places = _short_names(self._files)
        contents = [_contents(file) for file in self._files]
        self._groups = [
            _Group(file, number, rows)
            for file, content in enumerate(contents)
            for number, rows in enumerate(content.rows)
        ]
        ends = np.cumsum([0, *(group.rows for group in self._groups)]).tolist()
        self._starts, self._count = ends[:-1], ends[-1]
        self._file_starts = np.cumsum([0, *(sum(content.rows) for content in contents)]).tolist()
        if not self._count:
            raise InkdropError(f"{', '.join(map(str, files)) or name}: empty: it has no rows")
        self._columns = _agreed(contents, self._files)
        empty = [self._places[i] for i, content in enumerate(contents) if not sum(content.rows)]
        said = [f"{place} has no rows" for place in empty]
        self.block = _block([group.rows for group in self._groups], contents)
        if self._columns.label:
            column = pa.chunked_array([chunk for content in contents for chunk in content.labels])
            self.labels, more = labels_of(column, self._columns, self._place)
            said += more
        self.class_names = self._columns.class_names if self.labels is not None else ()
        self.notes = (*notes, *self._columns.notes, *said)
        self._make_idle()

    def __len__(self) -> int:
        return int(self._count)

    def read(self, start: int, stop: int) -> Iterator[Item]:
        """Images start … stop - 1; several threads may read at once.

        Raises:
            InkdropError: naming the file and row group that is damaged.
        """
        while start < stop:
            index = bisect_right(self._starts, start) - 1
            first = self._starts[index]
            end = min(stop, first + self._groups[index].rows)
            for i, content in enumerate(self._rows(index, start - first, end - first), start):
                yield Item(self._place(i), content, "" if content is not None else NO_BYTES)
            start = end

    def identity(self) -> str:
        """Of the files: where they lie, their sizes and times of change."""
        return files_identity(self._files)

    def _place(self, index: int) -> str:
        file = bisect_right(self._file_starts, index) - 1
        return f"{self._places[file]}, row {index - self._file_starts[file]}"

    def _rows(self, index: int, start: int, stop: int) -> Iterator[bytes | None]:
        cursor = self._cursor(index, start)
        yield from cursor.rows(start, stop)
        # One that is given up halfway, or fails, is not used again.
        with self._lock:
            self._idle = [*self._idle, cursor][-_CURSORS:]

    def _cursor(self, index: int, start: int) -> _Cursor:
        with self._lock:
            for cursor in self._idle:
                if cursor.index == index and cursor.first <= start:
                    self._idle.remove(cursor)
                    return cursor
        group = self._groups[index]
        return _Cursor(index, self._files[group.file], group, self._columns.image)

    def _make_idle(self) -> None:
        self._idle = []
        self._lock = threading.Lock()

    def __getstate__(self) -> dict[str, Any]:
        return {key: held for key, held in vars(self).items() if key not in ("_idle", "_lock")}

    def __setstate__(self, state: dict[str, Any]) -> None:
        vars(self).update(state)
        self._make_idle()


# Reading


class _Group(NamedTuple):
    file: int
    number: int  # within its file
    rows: int


class _Contents(NamedTuple):
    rows: list[int]  # of every row group
    rows_at_once: int
    columns: Columns | None  # None for a file without rows, which has no say
    labels: list[pa.Array]


class _Cursor:
    """One row group on its way through: the batch at hand, and what follows it."""

    def __init__(self, index: int, file: Path, group: _Group, image: str) -> None:
        self.index = index
        self.first = 0  # row of the batch at hand
        self._batch: Any = ()
        self._what = f"{file}, row group {group.number}"
        with _named(file):
            parquet = _open(file)
            if _group_rows(parquet)[group.number : group.number + 1] != [group.rows]:
                raise InkdropError(f"{file} has changed since it was looked through: start again")
        with _named(self._what):
            self._batches = parquet.iter_batches(
                _rows_at_once(parquet, group.number),
                row_groups=[group.number],
                columns=[image],
                use_threads=False,
            )

    def rows(self, start: int, stop: int) -> Iterator[bytes | None]:
        """The encoded images of rows start … stop - 1; start must not lie before `first`."""
        for row in range(start, stop):
            while row >= self.first + len(self._batch):
                self._advance()
            yield self._batch[row - self.first].as_py()

    def _advance(self) -> None:
        self.first += len(self._batch)
        self._batch = ()
        with _named(self._what):
            batch = next(self._batches, None)
            if batch is None:
                raise InkdropError(f"{self._what}: it ends after {self.first} rows: fetch it again")
            self._batch = part_of(batch.column(0), "bytes")


def _contents(file: Path) -> _Contents:
    if not file.is_file():
        raise InkdropError(f"no such file: {file}")
    with _named(file), _open(file) as parquet:
        rows = _group_rows(parquet)
        if not sum(rows):
            return _Contents(rows, _BLOCK, None, [])
        columns = find_columns(parquet.schema_arrow, str(file))
        labels: list[pa.Array] = []
        if columns.label:
            column = parquet.read(columns=[columns.label], use_threads=False).column(0)
            if len(column) != sum(rows):
                raise InkdropError(
                    f"{file}: {len(column)} labels where {sum(rows)} are promised: fetch it again"
                )
            labels = column.chunks or [column.combine_chunks()]
        return _Contents(rows, _rows_at_once(parquet, 0), columns, labels)


def _open(file: Path) -> Any:
    import pyarrow.parquet as pq

    return pq.ParquetFile(
        file, pre_buffer=False, buffer_size=_BUFFER, page_checksum_verification=True
    )


def _group_rows(parquet: Any) -> list[int]:
    groups = parquet.metadata
    return [groups.row_group(i).num_rows for i in range(groups.num_row_groups)]


def _rows_at_once(parquet: Any, number: int) -> int:
    """As many rows as hold some 32 MB."""
    group = parquet.metadata.row_group(number)
    # Not by the column's own size: pyarrow aborts the process on some damage to its description.
    rows, size = max(1, group.num_rows), max(1, group.total_byte_size)
    return int(max(1, min(rows, _BYTES_AT_ONCE * rows // size)))


def _block(rows: Sequence[int], contents: Sequence[_Contents]) -> int:
    typical = int(np.median([count for count in rows if count]))
    at_once = min(content.rows_at_once for content in contents if sum(content.rows))
    return max(1, min(typical, at_once, _BLOCK))


def _agreed(contents: Sequence[_Contents], files: Sequence[Path]) -> Columns:
    """The columns of all files with rows, of which there is one at least."""
    there = [
        (file, content.columns)
        for file, content in zip(files, contents, strict=True)
        if content.columns
    ]
    first, columns = there[0]
    for file, other in there:
        if str(other) != str(columns):
            raise InkdropError(
                f"{file} has {other}, but {first} has {columns}: the files of one set must agree"
            )
        if other != columns:
            raise InkdropError(
                f"{file} names other classes than {first}: the files of one set must agree"
            )
    return columns


@contextmanager
def _named(what: Path | str) -> Iterator[None]:
    """What goes wrong with a file, as an InkdropError."""
    import pyarrow as pa

    try:
        yield
    except (pa.ArrowException, OSError, MemoryError, UnicodeDecodeError) as error:
        raise InkdropError(
            f"{what}: not readable as Parquet: {first_line(error)}; fetch it again"
        ) from error


# Finding


def _files_at(path: Path) -> list[tuple[Path, list[str]]]:
    """The Parquet files that a path stands for, and which parts of a set their names say."""
    if not path.exists():
        raise InkdropError(f"no such file or folder: {path}")
    if path.is_file() and holds_parquet(path):
        return [(path, _parts(path.stem))]
    files = _parquet_in(path) if path.is_dir() else []
    if not files:
        raise InkdropError(
            f"no Parquet in {path}: expected files such as train.parquet and test.parquet, or a "
            "folder with them"
        )
    return [
        (file, _parts(file.stem) or (_parts(file.parent.name) if file.parent != path else []))
        for file in files
    ]


def _parquet_in(folder: Path) -> list[Path]:
    def found(pattern: str) -> list[Path]:
        return [
            file
            for file in folder.glob(pattern)
            if file.name != _ABOUT_IMAGES
            and not any(part.startswith(".") for part in file.relative_to(folder).parts)
        ]

    return found("*.parquet") or found("*/*.parquet")


def _parts(text: str) -> list[str]:
    words = set(re.findall("[a-z]+", text.lower()))
    known = {"train": TRAIN_WORDS, "test": TEST_WORDS, "validation": VALIDATION_WORDS}
    return [part for part, names in known.items() if words & set(names)]


def _has_magic(path: Path) -> bool:
    try:
        with path.open("rb") as file:
            if file.read(4) != _MAGIC:
                return False
            file.seek(-4, 2)
            return file.read(4) == _MAGIC
    except OSError:
        return False


def _in_order(files: Sequence[Path]) -> list[Path]:
    ordered = sorted(files, key=lambda file: (natural_key(file.name), file))
    seen: set[Path] = set()
    for file in ordered:
        if file.resolve() in seen:
            raise InkdropError(f"{file} is given twice: leave one out")
        seen.add(file.resolve())
    return ordered


def _about_validation(files: dict[str, list[Path]]) -> tuple[list[str], list[str]]:
    """Notes for the training and for the test images."""
    if not files["validation"]:
        return [], []
    names = ", ".join(_short_names(files["validation"]))
    if files["test"]:
        return [f"the validation images ({names}) are left aside: there are test images"], []
    return [], [f"the validation images ({names}) serve as test images: there are no others"]


def _called(paths: Sequence[Path]) -> str:
    first = paths[0].resolve().name or str(paths[0])
    return first if len(paths) == 1 else f"{first} and {len(paths) - 1} more"


def _short_names(files: Sequence[Path]) -> list[str]:
    names = [file.name for file in files]
    return names if len(set(names)) == len(names) else [str(file) for file in files]
