"""Images from Parquet in the layout of the Hugging Face hub: local files, or a set of the hub.

Local files are read with pyarrow itself: it streams them, and leaves no second copy in a cache.
"""

from __future__ import annotations

import io
import json
import logging
import threading
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from ..errors import InkdropError
from .images import ImageSet

if TYPE_CHECKING:
    import pyarrow as pa

DATA_VARIABLE = "INKDROP_DATA"  # the environment variable with the folder of sets already there

_IMAGE_COLUMNS = ("image", "img")
_LABEL_COLUMNS = ("label", "labels")
_MODES = ("L", "RGB")
_ROWS_AT_ONCE = 1024
_HUB_ANSWERS_WITHIN = 6.0  # seconds, name lookup included


def load_parquet(files: Sequence[Path], name: str) -> ImageSet:
    """The images of Parquet files, one file after the other, and their labels.

    The image column is the one declared as such, or called image or img; it holds encoded files
    (PNG, JPEG, …), grey or RGB, all of one size. The label column is called label or labels;
    where there is none, the set has no labels. What memory it takes is the result's and that of
    one row group.

    Raises:
        InkdropError: naming the file or column at fault, or the first image that cannot be
            decoded or is unlike the one before it.
    """
    if not files:
        raise InkdropError(f"{name}: no Parquet files given")
    contents = [_contents(file) for file in files]
    columns = contents[0].columns
    for file, content in zip(files, contents, strict=True):
        if content.columns != columns:
            raise InkdropError(
                f"{file} has {content.columns}, but {files[0]} has {columns}: the files of one "
                "set must agree"
            )
    rows = (row for file in files for row in _rows(_batches(file, columns), columns, str(file)))
    return _collected(rows, sum(content.rows for content in contents), name)


def load_hub(reference: str, split: str) -> ImageSet:
    """The images of one split of a data set on the Hugging Face hub, as `load_parquet` finds them.

    What was fetched once is kept in the hub's own cache and needs no network again.

    Raises:
        InkdropError: if the set cannot be fetched (without a network within some 10 seconds),
            or as `load_parquet`.
    """
    import datasets

    with _quiet(), _offline_unless_hub_answers(reference):
        try:
            fetched = datasets.load_dataset(reference, split=split)
        # The hub, its cache, the network and the disk fail in more ways than can be listed.
        except Exception as error:
            raise InkdropError(
                f"cannot fetch the data set {reference!r} ({split}) from the hub: "
                f"{_why_not_fetched(error)}; give files that are here with --data PATH, or set "
                f"{DATA_VARIABLE} to the folder that has them"
            ) from error
    name = f"{reference} {split}"
    columns = _columns(fetched.features.arrow_schema, name)
    batches = fetched.with_format("arrow").iter(_ROWS_AT_ONCE)
    return _collected(_rows(batches, columns, name), len(fetched), name)


# Columns and rows


@dataclass(frozen=True)
class _Columns:
    image: str
    label: str | None

    def __str__(self) -> str:
        label = f"labels in {self.label!r}" if self.label else "no labels"
        return f"images in {self.image!r} and {label}"


@dataclass(frozen=True)
class _Contents:
    rows: int
    columns: _Columns


@dataclass(frozen=True)
class _Row:
    place: str
    encoded: bytes | None
    label: int | None


def _contents(file: Path) -> _Contents:
    with _parquet(file) as parquet:
        if parquet.metadata.num_rows == 0:
            raise InkdropError(f"{file}: empty: it has no rows")
        return _Contents(parquet.metadata.num_rows, _columns(parquet.schema_arrow, str(file)))


def _batches(file: Path, columns: _Columns) -> Iterator[pa.RecordBatch]:
    wanted = [column for column in (columns.image, columns.label) if column]
    with _parquet(file) as parquet:
        yield from parquet.iter_batches(_ROWS_AT_ONCE, columns=wanted)


@contextmanager
def _parquet(file: Path) -> Iterator[Any]:
    """The open file; what goes wrong with it as an InkdropError."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        if not file.is_file():
            raise InkdropError(f"no such file: {file}")
        with pq.ParquetFile(file, pre_buffer=False) as parquet:
            yield parquet
    except (pa.ArrowException, OSError) as error:
        raise InkdropError(
            f"{file}: not a readable Parquet file: {_first_line(error)}; fetch it again"
        ) from error


def _columns(schema: pa.Schema, where: str) -> _Columns:
    import pyarrow as pa

    declared = _declared_images(schema)
    candidates = declared or schema.names
    named = [name for name in _IMAGE_COLUMNS if name in candidates]
    if not named and len(declared) != 1:
        raise InkdropError(
            f"{where}: which column holds the images? none is called "
            f"{' or '.join(_IMAGE_COLUMNS)}; its columns are {', '.join(schema.names) or 'none'}"
        )
    image = (named or declared)[0]
    held = schema.field(image).type
    if pa.types.is_struct(held) and held.get_field_index("bytes") >= 0:
        held = held.field("bytes").type
    if not (pa.types.is_binary(held) or pa.types.is_large_binary(held)):
        raise InkdropError(f"{where}: column {image!r} holds {held}, not encoded images (bytes)")
    label = next((name for name in _LABEL_COLUMNS if name in schema.names), None)
    if label and not pa.types.is_integer(schema.field(label).type):
        raise InkdropError(
            f"{where}: column {label!r} holds {schema.field(label).type}, but labels must be "
            "whole numbers"
        )
    return _Columns(image, label)


def _declared_images(schema: pa.Schema) -> list[str]:
    """The columns that the hub's own note in the file declares as images."""
    try:
        note = json.loads((schema.metadata or {})[b"huggingface"])
        features = note["info"]["features"].items()
        return [name for name, kind in features if kind["_type"] == "Image"]
    except (LookupError, TypeError, AttributeError, ValueError):
        return []  # another program wrote the file; its columns go by their names


def _rows(batches: Iterable[Any], columns: _Columns, where: str) -> Iterator[_Row]:
    import pyarrow as pa
    import pyarrow.compute as pc

    number = 0
    for batch in batches:
        images = batch.column(columns.image)
        if pa.types.is_struct(images.type):
            images = pc.struct_field(images, "bytes")
        labels = batch.column(columns.label).to_pylist() if columns.label else [None] * len(images)
        for encoded, label in zip(images.to_pylist(), labels, strict=True):
            place = f"{where}, row {number}"
            if columns.label and label is None:
                raise InkdropError(f"{place}: the label is missing")
            yield _Row(place, encoded, label)
            number += 1


# Decoding


def _collected(rows: Iterable[_Row], count: int, name: str) -> ImageSet:
    """The decoded images of `count` rows, which are written in place as they come."""
    images: np.ndarray[Any, np.dtype[np.uint8]] | None = None
    labels: list[int] = []
    filled = 0
    for row in rows:
        pixels = _decoded(row)
        if images is None:
            images = _room_for(count, pixels.shape, name)
        if pixels.shape != images.shape[1:]:
            raise InkdropError(
                f"{row.place}: an image of {_size(pixels.shape)} among images of "
                f"{_size(images.shape[1:])}: all must have the same size and mode"
            )
        # As a slice, so that a row beyond those promised is counted below, not an IndexError.
        images[filled : filled + 1] = pixels
        filled += 1
        if row.label is not None:
            labels.append(row.label)
    if images is None:
        raise InkdropError(f"{name}: empty: there are no images")
    if filled != count:
        raise InkdropError(f"{name}: {filled} images where {count} are promised")
    return ImageSet(torch.from_numpy(images), torch.tensor(labels) if labels else None, name)


def _decoded(row: _Row) -> np.ndarray[Any, np.dtype[np.uint8]]:
    """(C, H, W)."""
    from PIL import Image, UnidentifiedImageError

    if row.encoded is None:
        raise InkdropError(f"{row.place}: the image's bytes are missing")
    try:
        with Image.open(io.BytesIO(row.encoded)) as image:
            mode = image.mode
            pixels = np.asarray(image)
    except UnidentifiedImageError:
        raise InkdropError(f"{row.place}: not an image in a format that Pillow knows") from None
    # Pillow's decoders raise whatever their format's parser happens to raise.
    except Exception as error:
        raise InkdropError(
            f"{row.place}: the image cannot be decoded: {_first_line(error)}"
        ) from error
    if mode not in _MODES:
        raise InkdropError(
            f"{row.place}: an image of mode {mode!r}; {' and '.join(_MODES)} are supported: "
            "convert it first"
        )
    return pixels.transpose(2, 0, 1) if pixels.ndim == 3 else pixels[None]


def _room_for(count: int, shape: tuple[int, ...], name: str) -> np.ndarray[Any, np.dtype[np.uint8]]:
    try:
        return np.empty((count, *shape), np.uint8)
    except (MemoryError, ValueError) as error:
        raise InkdropError(
            f"{name}: {count} images of {_size(shape)} do not fit in memory"
        ) from error


def _size(shape: tuple[int, ...]) -> str:
    channels, height, width = shape
    return f"{height}x{width} {'grey' if channels == 1 else 'RGB'}"


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
    return _first_line(error).removesuffix(".")


def _first_line(error: Exception) -> str:
    lines = str(error).strip().splitlines()
    return lines[0] if lines else type(error).__name__
