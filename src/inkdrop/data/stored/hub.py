"""Images from a set of the Hugging Face hub: fetched into its cache, or streamed.

Nothing here imports torch: it runs in worker processes.
"""

from __future__ import annotations

import gc
import hashlib
import io
import logging
import threading
import time
import weakref
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from ...errors import InkdropError
from ..places import DATA_VARIABLE
from .collection import Collection, Found, Item
from .columns import NO_LABEL, Columns, find_columns, first_line, labels_of, part_of
from .parquet import NO_BYTES, VALIDATION_WORDS

if TYPE_CHECKING:
    import pyarrow as pa

_BLOCK = 256  # images
_ROWS_AT_ONCE = 32
_LEFT_OPEN = 2  # reads of a stream that stopped somewhere, and may go on
_LETS_GO_WITHIN = 5.0  # seconds
_HUB_ANSWERS_WITHIN = 6.0  # seconds, name lookup included


def find_hub(reference: str, streaming: bool = False) -> Found:
    """The images of a set of the hub: to train on its split train, to test on test.

    Where there is no test split, validation serves. What was fetched once is kept in the hub's own
    cache and needs no network again.

    Args:
        reference: NAME or NAME:CONFIG; a local folder in the hub's layout is a name too.
        streaming: fetch images as they are read, and keep none.

    Raises:
        InkdropError: if the set cannot be fetched (without a network within some 10 seconds), has
            no split to train on, or its columns are not understood.
    """
    fetched = _fetched(reference, streaming)
    train, test, notes, test_notes = _chosen(reference, list(fetched.splits))
    kind = HubStream if streaming else HubImages
    return Found(
        kind(fetched, reference, train, notes),
        kind(fetched, reference, test, test_notes) if test else None,
    )


class Fetched(NamedTuple):
    """A set of the hub as `datasets` has it.

    Attributes:
        splits: a `datasets.Dataset` or, streamed, a `datasets.IterableDataset` each.
        version: what tells it from what the hub has under its name at other times.
    """

    splits: Mapping[str, Any]
    version: str


class HubImages(Collection):
    """The images of one split, which lie in the hub's cache as Arrow.

    Args:
        fetched: the set, not streamed.
        reference, split: what it was fetched as, and which of its splits these are.
        notes: as for every collection.

    Raises:
        InkdropError: if its columns are not understood, or it is empty.
    """

    block = _BLOCK

    def __init__(
        self, fetched: Fetched, reference: str, split: str, notes: Sequence[str] = ()
    ) -> None:
        dataset = fetched.splits[split]
        self.name = f"{reference} {split}"
        self.kind = "a set of the hub"
        if not len(dataset):
            raise InkdropError(f"{self.name}: empty: it has no rows")
        columns = find_columns(dataset.features.arrow_schema, self.name)
        self._images = dataset.select_columns([columns.image]).with_format("arrow")
        self._identity = f"{reference} {split} {dataset._fingerprint} {columns}"
        said: tuple[str, ...] = ()
        if columns.label:
            table = dataset.select_columns([columns.label]).with_format("arrow")[:]
            self.labels, said = labels_of(table.column(0), columns, self._place)
        self.class_names = columns.class_names if self.labels is not None else ()
        self.notes = (*notes, *columns.notes, *said)

    def __len__(self) -> int:
        return len(self._images)

    def read(self, start: int, stop: int) -> Iterator[Item]:
        """Images start … stop - 1; several threads may read at once.

        Raises:
            InkdropError: if the hub's cache is damaged.
        """
        for first in range(start, stop, _ROWS_AT_ONCE):
            try:
                table = self._images[first : min(first + _ROWS_AT_ONCE, stop)]
            # The cache and the disk fail in more ways than can be listed.
            except Exception as error:
                raise InkdropError(
                    f"{self._place(first)} ff.: the hub's cache cannot be read: "
                    f"{first_line(error)}; remove it, and fetch the set again"
                ) from error
            for i, (content, path) in enumerate(_stored(table.column(0)), first):
                yield _item(self._place(i), content, path)

    def identity(self) -> str:
        """Of the set's name, and of what was fetched by the hub's own fingerprint."""
        return hashlib.sha256(self._identity.encode()).hexdigest()

    def _place(self, index: int) -> str:
        return f"{self.name}, row {index}"


class HubStream(Collection):
    """The images of one split as they come from the hub; none is kept.

    Their labels come with them (`read_labelled`), and are not known before.

    Args:
        fetched: the set, streamed.
        reference, split: what it was fetched as, and which of its splits these are.
        notes: as for every collection.

    Attributes:
        streams_labels: whether images come with labels.

    Raises:
        InkdropError: if it is not known how many images there are, or its columns are not
            understood.
    """

    block = _BLOCK
    sequential = True
    streams_labels: bool
    _dataset: Any
    _lock: threading.Lock
    _left_off: dict[int, Iterator[_Row]]

    def __init__(
        self, fetched: Fetched, reference: str, split: str, notes: Sequence[str] = ()
    ) -> None:
        dataset = fetched.splits[split]
        self.name = f"{reference} {split}"
        self.kind = "a set of the hub, streamed"
        self._reference = reference
        self._split = split
        self._count = _promised(dataset, split)
        if not self._count:
            raise InkdropError(
                f"{self.name}: the hub does not say how many images there are, so they cannot be "
                "streamed: fetch the set whole, without --data.streaming"
            )
        self._columns = find_columns(_schema(dataset, self.name), self.name)
        self.streams_labels = self._columns.label is not None
        self.class_names = self._columns.class_names
        self.notes = (*notes, *self._columns.notes)
        self._identity = f"{reference} {split} {fetched.version} {self._count} {self._columns}"
        self._open(dataset)

    def __len__(self) -> int:
        return self._count

    def read(self, start: int, stop: int) -> Iterator[Item]:
        """Images start … stop - 1: at once where the last read stopped, else from the beginning.

        Raises:
            InkdropError: if the hub does not answer, or has fewer images than it says.
        """
        return (item for item, _ in self.read_labelled(start, stop))

    def read_labelled(self, start: int, stop: int) -> Iterator[tuple[Item, int | None]]:
        """As `read`, every image with its label; None without one, and where the hub says -1.

        Raises:
            InkdropError: also for a label that is missing, negative or above the classes named.
        """
        if start >= stop:
            return
        row = start
        rows = self._rows_from(start)
        while row < stop:
            content, path, label = self._next(rows, row)
            place = f"{self.name}, row {row}"
            if self._columns.label:
                label = self._checked(label, place)
            row += 1
            if row == stop:  # before the last one goes out: no one may ask for what follows it
                self._keep(rows, row)
            yield _item(place, content, path), label

    def identity(self) -> str:
        """Of the set's name, the files' places and their number, as the hub tells them."""
        return hashlib.sha256(self._identity.encode()).hexdigest()

    def _rows_from(self, start: int) -> Iterator[_Row]:
        with self._lock:
            rows = self._left_off.pop(start, None)
            dataset = self._dataset
        if rows is not None:
            return rows
        if dataset is None:  # in another process
            dataset = _fetched(self._reference, streaming=True).splits[self._split]
            with self._lock:
                self._dataset = dataset
        wanted = [name for name in (self._columns.image, self._columns.label) if name]
        shown = dataset.select_columns(wanted).with_format("arrow")
        return _streamed(shown.skip(start) if start else shown, self._columns)

    def _keep(self, rows: Iterator[_Row], row: int) -> None:
        with self._lock:
            self._left_off[row] = rows
            for old in list(self._left_off)[:-_LEFT_OPEN]:
                del self._left_off[old]

    def _next(self, rows: Iterator[_Row], row: int) -> _Row:
        try:
            found = next(rows, None)
        # The network and the files that come over it fail in more ways than can be listed.
        except Exception as error:
            raise InkdropError(
                f"{self.name}, row {row}: it does not come from the hub: {_why_not_fetched(error)}"
            ) from error
        if found is None:
            raise InkdropError(
                f"{self.name} ends after {row:,} images where {self._count:,} are promised: fetch "
                "the set whole, without --data.streaming"
            )
        return found

    def _checked(self, label: int | None, place: str) -> int | None:
        if label is None:
            raise InkdropError(f"{place}: the label is missing")
        names = len(self.class_names)
        if label < NO_LABEL or (names and label >= names):
            allowed = f"0 … {names - 1}, the classes with a name" if names else "0 or more"
            raise InkdropError(f"{place}: the label is {label}, but must be {allowed}")
        return None if label == NO_LABEL else label

    def _open(self, dataset: Any) -> None:
        self._dataset = dataset
        self._lock = threading.Lock()
        self._left_off = {}
        weakref.finalize(self, _let_go, self._left_off)

    def __getstate__(self) -> dict[str, Any]:
        own = ("_dataset", "_lock", "_left_off")
        return {key: held for key, held in vars(self).items() if key not in own}

    def __setstate__(self, state: dict[str, Any]) -> None:
        vars(self).update(state)
        self._open(None)


class _Row(NamedTuple):
    content: bytes | None
    path: str | None
    label: int | None


def _let_go(left_off: dict[int, Iterator[_Row]]) -> None:
    """Close the reads that were left open, and wait until Arrow's threads have let go of them.

    They do so a little later than Python; where the interpreter is torn down meanwhile, one of
    them aborts the process.
    """
    left_off.clear()
    until = time.monotonic() + _LETS_GO_WITHIN
    while _held_by_arrow() and time.monotonic() < until:
        time.sleep(0.002)


def _held_by_arrow() -> bool:
    """Whether there is a closed file that is alive although nothing in Python refers to it."""
    held = (held for held in gc.get_objects() if issubclass(type(held), io.IOBase))
    closed = [file for file in held if file.closed]
    return any(all(by is closed for by in gc.get_referrers(file)) for file in closed)


def _item(place: str, content: bytes | None, path: str | None) -> Item:
    if content is not None:
        return Item(place, content)
    if not path:
        return Item(place, None, NO_BYTES)
    try:
        return Item(place, _file_content(path))
    # Files on the hub fail in more ways than can be listed.
    except Exception as error:
        reason = getattr(error, "strerror", None) or first_line(error)
        return Item(place, None, f"cannot read {path}: {reason}")


def _file_content(path: str) -> bytes:
    """A file of the set: here, or on the hub; its path is not believed to lead anywhere else."""
    if "://" not in path:
        if not Path(path).is_file():
            raise FileNotFoundError("no such file")
        return Path(path).read_bytes()
    if not path.rpartition("::")[2].startswith("hf://"):
        raise ValueError("it lies elsewhere than on the hub")
    import fsspec  # type: ignore[import-untyped]

    with fsspec.open(path, "rb") as file:
        return bytes(file.read())


def _stored(column: pa.ChunkedArray) -> Iterator[tuple[bytes | None, str | None]]:
    """The bytes and the path of every image; the path alone for files that lie beside the set."""
    for chunk in column.chunks:
        held, paths = part_of(chunk, "bytes"), part_of(chunk, "path")
        for i in range(len(chunk)):
            content = held[i].as_py() if held is not None else None
            yield content, paths[i].as_py() if paths is not None else None


def _streamed(dataset: Any, columns: Columns) -> Iterator[_Row]:
    for table in dataset.iter(_ROWS_AT_ONCE):
        labels = table.column(columns.label).to_pylist() if columns.label else [None] * len(table)
        for (content, path), label in zip(
            _stored(table.column(columns.image)), labels, strict=True
        ):
            yield _Row(content, path, label)


# Fetching


def _fetched(reference: str, streaming: bool) -> Fetched:
    import datasets

    name, config = _name_and_config(reference)
    with _quiet(), _offline_unless_hub_answers(name):
        try:
            builder = datasets.load_dataset_builder(name, config)
            if streaming:
                return Fetched(builder.as_streaming_dataset(), str(builder.hash))
            builder.download_and_prepare()
            return Fetched(builder.as_dataset(), str(builder.hash))
        # The hub, its cache, the network and the disk fail in more ways than can be listed.
        except Exception as error:
            raise InkdropError(
                f"cannot fetch the data set {reference!r} from the hub: "
                f"{_why_not_fetched(error)}; give files that are here with --data PATH, or set "
                f"{DATA_VARIABLE} to the folder that has them"
            ) from error


def _name_and_config(reference: str) -> tuple[str, str | None]:
    name, colon, config = reference.rpartition(":")
    if not colon or not name or Path(reference).is_dir():
        return reference, None
    return name, config or None


def _chosen(
    reference: str, splits: Sequence[str]
) -> tuple[str, str | None, tuple[str, ...], tuple[str, ...]]:
    """The split to train on and the one to test on, and notes on each."""
    validation = next((name for name in VALIDATION_WORDS if name in splits), None)
    if "train" not in splits:
        if len(splits) != 1:
            raise InkdropError(
                f"{reference}: it has no split train; its splits are {', '.join(splits)}"
            )
        return splits[0], None, (f"trained on its only split, {splits[0]}",), ()
    if "test" in splits:
        note = f"the split {validation} is left aside: there is a test split"
        return "train", "test", (note,) if validation else (), ()
    note = f"the split {validation} serves as test images: there is no test split"
    return "train", validation, (), (note,) if validation else ()


def _promised(dataset: Any, split: str) -> int:
    told = (dataset.info.splits or {}).get(split)
    return int((told and told.num_examples) or 0)


def _schema(dataset: Any, where: str) -> pa.Schema:
    if dataset.features is not None:
        return dataset.features.arrow_schema
    try:
        return next(iter(dataset.with_format("arrow").iter(1))).schema
    except Exception as error:  # as when it is read
        raise InkdropError(f"{where}: nothing comes from the hub: {first_line(error)}") from error


# The hub's manners


@contextmanager
def _offline_unless_hub_answers(reference: str) -> Iterator[None]:
    """Without an answer from the hub, have `datasets` look in its cache only.

    Left to itself it would retry each request for half a minute first.
    """
    import datasets

    before = datasets.config.HF_HUB_OFFLINE
    if not before and not Path(reference).is_dir():
        datasets.config.HF_HUB_OFFLINE = not _hub_answers()
    try:
        yield
    finally:
        datasets.config.HF_HUB_OFFLINE = before


def _hub_answers() -> bool:
    """Whether the hub gives any answer in time."""
    import datasets
    import huggingface_hub

    endpoint = datasets.config.HF_ENDPOINT
    answers: list[object] = []

    def ask() -> None:
        try:
            session = huggingface_hub.get_session()
            answers.append(session.head(endpoint, timeout=_HUB_ANSWERS_WITHIN))
        except Exception:  # which ones depends on the library that the hub's session is made of
            return

    # A thread, because no timeout covers the lookup of a name; a daemon, to be left behind.
    thread = threading.Thread(target=ask, daemon=True)
    thread.start()
    thread.join(_HUB_ANSWERS_WITHIN)
    return bool(answers)


@contextmanager
def _quiet() -> Iterator[None]:
    """No bars and warnings of the hub's libraries on the terminal; errors come as exceptions."""
    import datasets
    import huggingface_hub.utils as hub

    loggers = [logging.getLogger(library) for library in ("datasets", "huggingface_hub")]
    levels = [logger.level for logger in loggers]
    bars = [
        library for library in (datasets.utils, hub) if not library.are_progress_bars_disabled()
    ]
    for logger in loggers:
        logger.setLevel(logging.ERROR)
    for library in bars:
        library.disable_progress_bars()
    try:
        yield
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)
        for library in bars:
            library.enable_progress_bars()


def _why_not_fetched(error: Exception) -> str:
    if isinstance(error, ConnectionError):
        return "the hub does not answer (is there a network?) and its cache has no copy"
    lines = str(error).strip().splitlines()
    if len(lines) > 1 and lines[0].startswith("Config name is missing"):
        return f"it has several configurations: {lines[1]}: name one as hf:NAME:CONFIG"
    return first_line(error).removesuffix(".")
