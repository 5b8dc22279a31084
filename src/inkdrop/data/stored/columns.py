"""Which columns of a table hold the images and their labels; for Parquet and for the hub's sets.

Nothing here imports torch: it runs in worker processes.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from ...errors import InkdropError
from .tree import shown

if TYPE_CHECKING:
    import pyarrow as pa

IMAGE_NAMES = ("image", "img")
LABEL_NAMES = ("label", "labels", "fine_label")

NO_LABEL = -1  # what test sets of the hub have where the labels are kept secret


@dataclass(frozen=True)
class Columns:
    """Where a table's images and labels are.

    Attributes:
        image: the column of encoded images: bytes, or a struct with a field of that name.
        label: the column of whole numbers; None where there is none.
        class_names: the names of classes 0 … K-1, where the table tells them.
        notes: what could have been meant instead, a sentence each.
    """

    image: str
    label: str | None
    class_names: tuple[str, ...] = ()
    notes: tuple[str, ...] = field(default=(), compare=False)

    def __str__(self) -> str:
        names = f" of {len(self.class_names)} named classes" if self.class_names else ""
        label = f"labels{names} in {self.label!r}" if self.label else "no labels"
        return f"images in {self.image!r} and {label}"


def find_columns(schema: pa.Schema, where: str) -> Columns:
    """The columns that the hub's own note in a table declares; else by their names and types.

    Args:
        where: what messages call the table.

    Raises:
        InkdropError: if no column holds images, or several might, or labels are no whole numbers.
    """
    declared = _declared(schema)
    image, notes = _image_column(schema, [n for n in declared if _is(declared, n, "Image")], where)
    classed = [name for name in declared if _is(declared, name, "ClassLabel")]
    label, more = _label_column(schema, classed)
    if label is None:
        return Columns(image, None, (), (*notes, *more))
    held = schema.field(label).type
    if not _is_integer(held):
        raise InkdropError(
            f"{where}: column {label!r} holds {held}, but labels must be whole numbers: convert "
            "the column, or rename it to train without labels"
        )
    return Columns(image, label, _class_names(declared.get(label)), (*notes, *more))


def labels_of(
    column: pa.ChunkedArray, columns: Columns, place: Callable[[int], str]
) -> tuple[NDArray[np.int64] | None, tuple[str, ...]]:
    """The labels (N,) of the column that holds them, and notes; None where all of them are -1.

    Args:
        place: what messages call a row.

    Raises:
        InkdropError: naming the first row whose label is missing, negative or has no name among
            those of the classes.
    """
    import pyarrow as pa
    import pyarrow.compute as pc

    if column.null_count:
        row = int(np.flatnonzero(pc.is_null(column).to_numpy())[0])
        raise InkdropError(f"{place(row)}: the label is missing")
    try:
        labels = np.array(column.cast(pa.int64()).to_numpy(), np.int64)
    except pa.ArrowInvalid as error:
        raise InkdropError(f"{place(0)} ff.: a label is too large: {first_line(error)}") from error
    if len(labels) and (labels == NO_LABEL).all():
        note = f"column {columns.label!r} is {NO_LABEL} throughout: these images have no labels"
        return None, (note,)
    names = len(columns.class_names)
    for wrong, allowed in (
        (labels < 0, f"0 or more (or {NO_LABEL} throughout, for images without labels)"),
        (labels >= names if names else labels < 0, f"0 … {names - 1}, the classes with a name"),
    ):
        if wrong.any():
            row = int(np.flatnonzero(wrong)[0])
            raise InkdropError(f"{place(row)}: the label is {labels[row]}, but must be {allowed}")
    return labels, ()


def part_of(column: pa.Array, part: str) -> pa.Array | None:
    """The "bytes" or the "path" of every image; None where the column has no such part."""
    import pyarrow as pa
    import pyarrow.compute as pc

    if not pa.types.is_struct(column.type):
        return column if part == "bytes" else None
    return pc.struct_field(column, part) if column.type.get_field_index(part) >= 0 else None


def first_line(error: BaseException) -> str:
    """What an exception says, in one line that can be shown."""
    lines = str(error).strip().splitlines()
    return shown(lines[0]) if lines else type(error).__name__


# The columns


def _image_column(
    schema: pa.Schema, declared: list[str], where: str
) -> tuple[str, tuple[str, ...]]:
    able = [name for name in _unique(schema) if _holds_images(schema.field(name).type)]
    candidates = [name for name in declared if name in able] or able
    named = [name for name in IMAGE_NAMES if name in candidates]
    usual = " or ".join(IMAGE_NAMES)
    if not named and len(candidates) > 1:
        raise InkdropError(
            f"{where}: which column holds the images? {', '.join(candidates)} all could: call the "
            f"one that is meant {usual}"
        )
    if not candidates:
        likely = next((name for name in (*IMAGE_NAMES, *declared) if name in _unique(schema)), None)
        if likely:
            raise InkdropError(
                f"{where}: column {likely!r} holds {schema.field(likely).type}, not encoded images "
                "(bytes)"
            )
        raise InkdropError(
            f"{where}: which column holds the images? none is called {usual}, none holds bytes; "
            f"its columns are {', '.join(schema.names) or 'none'}"
        )
    chosen = (named or candidates)[0]
    others = [name for name in declared if name in able and name != chosen]
    return chosen, _set_aside(chosen, others, "images")


def _label_column(schema: pa.Schema, declared: list[str]) -> tuple[str | None, tuple[str, ...]]:
    there = _unique(schema)
    declared = [name for name in declared if name in there and _is_integer(schema.field(name).type)]
    named = [name for name in LABEL_NAMES if name in declared]
    if not named and len(declared) == 1:
        named = declared
    named = named or [name for name in LABEL_NAMES if name in there]
    if named:
        others = [name for name in declared if name != named[0]]
        return named[0], _set_aside(named[0], others, "labels")
    if declared:
        usual = " or ".join(LABEL_NAMES)
        return None, (
            f"which of {', '.join(declared)} are the labels? none is used: call one {usual}",
        )
    return None, ()


def _set_aside(chosen: str, others: list[str], what: str) -> tuple[str, ...]:
    if not others:
        return ()
    return (f"{what} are taken from column {chosen!r}, not from {', '.join(map(repr, others))}",)


def _unique(schema: pa.Schema) -> list[str]:
    """The columns that a name stands for: the format allows several of one name."""
    return [name for name in schema.names if schema.names.count(name) == 1]


def _holds_images(held: pa.DataType) -> bool:
    import pyarrow as pa

    if pa.types.is_struct(held):
        return held.get_field_index("bytes") >= 0 and _holds_images(held.field("bytes").type)
    return bool(pa.types.is_binary(held) or pa.types.is_large_binary(held))


def _is_integer(held: pa.DataType) -> bool:
    import pyarrow as pa

    return bool(pa.types.is_integer(held))


# The hub's note in a table's metadata


def _declared(schema: pa.Schema) -> Mapping[str, Any]:
    """The kinds of columns by the hub's own note; nothing where another program wrote the file."""
    try:
        features = json.loads((schema.metadata or {})[b"huggingface"])["info"]["features"]
    except (LookupError, TypeError, ValueError, RecursionError):
        return {}
    return features if isinstance(features, dict) else {}


def _is(declared: Mapping[str, Any], name: str, kind: str) -> bool:
    return isinstance(declared[name], dict) and declared[name].get("_type") == kind


def _class_names(declared: Any) -> tuple[str, ...]:
    names = declared.get("names") if isinstance(declared, dict) else None
    if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
        return ()
    return tuple(map(shown, names))
