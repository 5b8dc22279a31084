"""Points from text: a row a line, numbers between commas, semicolons, tabs or spaces.

    x,y,label           the header can be left out
    0.5,-1.25,red
    1e-3,2,blue

A column called label, class or target is the points' class; every other must be numbers. Lines
that are empty, or start with #, are passed over; but names after a # right above the first row are
the header.

Nothing here imports torch: it runs in worker processes.
"""

from __future__ import annotations

import csv
import re
from array import array
from collections.abc import Iterator, Sequence
from itertools import chain
from pathlib import Path
from typing import NamedTuple, TextIO

import numpy as np
from numpy.typing import NDArray

from ...errors import InkdropError
from ..places import files_identity
from .arrays import Points
from .tree import shown

_LABELS = ("label", "class", "target")
_DELIMITERS = (";", "\t", ",")
_WHOLE = re.compile(r"\+?([0-9]{1,18})(?:\.0*)?")

_Row = tuple[int, list[str]]  # the line's number, from 1, and its fields


def find_points(path: Path) -> Points:
    """The points (N, D) of a table, as float32, and their classes.

    Classes that are whole numbers of 0 or more stay as they are; names are numbered in sorted
    order.

    Raises:
        InkdropError: if the file is empty or no text, a row is longer or shorter than the first,
            or a value is no finite number; it says in which line and column.
    """
    try:
        with open(path, encoding="utf-8-sig", newline="") as file:
            return _read(path, file)
    except UnicodeDecodeError as error:
        raise InkdropError(f"{path}: not text in UTF-8, which a table must be") from error
    except csv.Error as error:
        raise InkdropError(f"{path}: no table ({error})") from error
    except OSError as error:
        raise InkdropError(f"cannot read {path}: {error.strerror}") from error


def _read(path: Path, file: TextIO) -> Points:
    comment, rows = _rows(file)
    first = next(rows, None)
    if first is None:
        raise InkdropError(f"{path}: empty: there is no row in it")
    columns = _columns(path, first, comment)
    label = columns.label
    numbers, lines = array("d"), array("q")
    classes: list[str] = []
    for line, fields in rows if columns.header_is_first else chain([first], rows):
        if len(fields) != columns.width:
            raise InkdropError(
                f"{path}, line {line}: {len(fields)} values, but line {first[0]} has "
                f"{columns.width}: every row must have as many"
            )
        if label is not None:
            classes.append(fields.pop(label).strip())
        try:
            numbers.extend(map(float, fields))
        except ValueError:
            raise _no_number(path, line, fields, columns) from None
        lines.append(line)
    if not lines:
        raise InkdropError(f"{path}: empty: there is a header, but no row")
    values = _finite(path, np.frombuffer(numbers).reshape(len(lines), -1), lines, columns)
    labels, names = (None, ()) if label is None else _numbered(path, classes, lines)
    return Points(values, labels, path.name, files_identity([path]), names)


# Lines and columns


def _rows(file: TextIO) -> tuple[list[str], Iterator[_Row]]:
    """The fields of a comment right above the first row, and the rows that are not empty."""
    comment, start = "", []
    for line in file:
        start.append(line)
        if line.strip() and not line.lstrip().startswith("#"):
            break
        comment = line.strip().lstrip("#")
    first = start[-1] if start else ""
    delimiter = next((each for each in _DELIMITERS if each in first), None)
    lines = chain(start, file)
    if delimiter is None:
        return comment.split(), _kept((i, line.split()) for i, line in enumerate(lines, 1))
    above = [field.strip() for field in comment.split(delimiter)]
    reader = csv.reader(lines, delimiter=delimiter, skipinitialspace=True)
    return above, _kept((reader.line_num, fields) for fields in reader)


def _kept(rows: Iterator[_Row]) -> Iterator[_Row]:
    for row in rows:
        fields = row[1]
        if fields and not fields[0].startswith("#") and (len(fields) > 1 or fields[0].strip()):
            yield row


class _Columns(NamedTuple):
    """What the columns are: how many, which of them is the class, and their names, if any."""

    width: int
    label: int | None
    names: Sequence[str]
    header_is_first: bool

    def called(self, i: int) -> str:
        """The i-th column of numbers, in words."""
        place = i + (self.label is not None and i >= self.label)
        return f"column {place + 1}" + (f" ({self.names[place]})" if self.names else "")


def _columns(path: Path, first: _Row, comment: Sequence[str]) -> _Columns:
    fields = [field.strip() for field in first[1]]
    header_is_first = not all(map(_is_number, fields))
    if header_is_first:
        names: Sequence[str] = fields
    elif len(comment) == len(fields) and not any(map(_is_number, comment)):
        names = comment
    else:
        return _Columns(len(fields), None, (), False)
    if "" in names:
        raise InkdropError(
            f"{path}: column {names.index('') + 1} has no name in the header: leave it out if it "
            "is an index (index=False in pandas), or name it"
        )
    labels = [i for i, name in enumerate(names) if name.lower() in _LABELS]
    if len(labels) > 1:
        listed = " and ".join(names[i] for i in labels)
        raise InkdropError(f"{path}: {listed} could both be the class: leave one out")
    if labels and len(names) == 1:
        raise InkdropError(f"{path}: no numbers: {names[0]} is the only column")
    return _Columns(len(names), labels[0] if labels else None, names, header_is_first)


def _is_number(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return True


# Values


def _no_number(path: Path, line: int, fields: list[str], columns: _Columns) -> InkdropError:
    i = next(i for i, field in enumerate(fields) if not _is_number(field))
    shown = repr(fields[i][:40])
    if re.fullmatch(r"\s*[-+]?[0-9]+,[0-9]+\s*", fields[i]):
        hint = "decimals are written with a point"
    elif columns.label is None:
        hint = "a column of classes must be called label, class or target"
    else:
        hint = f"every column but {columns.names[columns.label]} must be numbers"
    return InkdropError(
        f"{path}, line {line}, {columns.called(i)}: {shown} is not a number: {hint}"
    )


def _finite(
    path: Path, numbers: NDArray[np.float64], lines: Sequence[int], columns: _Columns
) -> NDArray[np.float32]:
    with np.errstate(over="ignore"):
        values = numbers.astype(np.float32)
    finite = np.isfinite(values)
    if not finite.all():
        row, column = (int(i) for i in np.argwhere(~finite)[0])
        raise InkdropError(
            f"{path}, line {lines[row]}, {columns.called(column)}: {numbers[row, column]} is not "
            "finite in float32"
        )
    return values


def _numbered(
    path: Path, classes: list[str], lines: Sequence[int]
) -> tuple[NDArray[np.int64], tuple[str, ...]]:
    """The classes as numbers, and their names if they have any."""
    if "" in classes:
        raise InkdropError(f"{path}, line {lines[classes.index('')]}: no class")
    distinct = sorted(set(classes))
    whole = [_WHOLE.fullmatch(name) for name in distinct]
    if all(whole):
        number = {name: int(match[1]) for name, match in zip(distinct, whole, strict=True) if match}
        names: tuple[str, ...] = ()
    else:
        number = {name: i for i, name in enumerate(distinct)}
        names = tuple(map(shown, distinct))
    return np.array([number[name] for name in classes], np.int64), names
