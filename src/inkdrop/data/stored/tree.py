"""What a tree of named files is, whether a folder or an archive, and how it is spoken of.

Nothing here imports torch: it runs in worker processes.
"""

from __future__ import annotations

import re
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any, ClassVar, NamedTuple

from ...errors import InkdropError

# A file beyond it is no image that anyone trains on, and would be taken into memory whole.
LARGEST_FILE = 1 << 30


class Unreadable(Exception):
    """One file of a tree that cannot be read, while others can.

    Attributes:
        reason: why not, in a few words.
    """

    def __init__(self, reason: str) -> None:
        super().__init__(reason)
        self.reason = reason


class Tree(ABC):
    """The files of a folder or an archive. Several threads and processes can read at once.

    Pickles as its path, and is looked through again where it is first needed; if it has changed
    by then, that is an InkdropError.

    Attributes:
        path: as it was given.
        kind: "a folder", "a zip" or "a tar".
    """

    kind: ClassVar[str]

    def __init__(self, path: Path, place: str | None = None, expected: str = "") -> None:
        self.path = path
        self._place = place or str(path.absolute())
        self._expected = expected

    @property
    def names(self) -> Sequence[str]:
        """The regular files' paths within, with "/" between the parts, in natural order."""
        return self._index.names

    @property
    def notes(self) -> tuple[str, ...]:
        """What was set aside when it was looked through, a sentence each."""
        return self._index.notes

    def identity(self) -> str:
        """A digest (hex) of the files' names, sizes and times of change; not of where they lie."""
        return self._expected or self._index.identity

    @abstractmethod
    def size(self, name: str) -> int:
        """A file's length in bytes.

        Raises:
            Unreadable: if the file is gone.
        """

    def read(self, name: str) -> bytes:
        """All of a file.

        Raises:
            Unreadable: if it cannot be read, is damaged, or larger than LARGEST_FILE.
        """
        size = self.size(name)
        if size > LARGEST_FILE:
            raise Unreadable(f"{size:,} bytes are too many for an image")
        return self._read(name, size)

    def head(self, name: str, n: int = 32) -> bytes:
        """A file's first n bytes; fewer, if it has no more.

        Raises:
            Unreadable: if it cannot be read.
        """
        return self._read(name, min(n, self.size(name)))

    @abstractmethod
    def _read(self, name: str, size: int) -> bytes:
        """The first `size` bytes, no more than there are."""

    @abstractmethod
    def _look_through(self) -> Index: ...

    @cached_property
    def _index(self) -> Index:
        index = self._look_through()
        if self._expected and index.identity != self._expected:
            raise InkdropError(
                f"{shown(self.path)} has changed since it was looked through: start again"
            )
        return index

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Tree) and self._key == other._key

    def __hash__(self) -> int:
        return hash(self._key)

    @property
    def _key(self) -> tuple[str, str]:
        return self._place, self.identity()

    def __reduce__(self) -> tuple[type[Tree], tuple[Path, str, str]]:
        return type(self), (self.path, self._place, self.identity())


def natural_key(path: str) -> str:
    """What to sort paths by: part by part, and numbers in them as numbers ("2" before "10")."""
    # Of "01" and "1", equal as numbers, the plain strings decide, before the next part does.
    return "\0".join(f"{_DIGITS.sub(_sortable, part)}\1{part}" for part in path.split("/"))


def shown(name: str | Path) -> str:
    """A name as messages can show it: in one line, and in valid Unicode."""
    return _UNPRINTABLE.sub(lambda match: ascii(match[0])[1:-1], str(name))


def counted(names: Sequence[str], one: str, several: str) -> str:
    """How many, of what, and the first few by name: "5 links (a.png, b.png, c.png, …)"."""
    examples = ", ".join([*map(shown, names[:3]), *(["…"] if len(names) > 3 else [])])
    return f"{len(names):,} {one if len(names) == 1 else several} ({examples})"


_DIGITS = re.compile("[0-9]+")
_UNPRINTABLE = re.compile(r"[\x00-\x1f\x7f-\x9f\u2028\u2029\ud800-\udfff]")


def _sortable(digits: re.Match[str]) -> str:
    number = digits[0].lstrip("0")
    return f"0{len(number):05}{number}"


Inode = tuple[int, int]


class Stamp(NamedTuple):
    """What tells a file from what it was before."""

    size: int
    changed: int  # in ns


@dataclass(frozen=True)
class Index:
    """What looking through a tree has found."""

    names: Sequence[str]
    identity: str
    notes: tuple[str, ...] = ()
    members: dict[str, Any] = field(default_factory=dict)  # where an archive has each of them


def stamp_of(place: str) -> Stamp:
    facts = Path(place).stat()
    return Stamp(facts.st_size, facts.st_mtime_ns)


def filled(read: Any, size: int) -> bytes:
    """`size` bytes by as many reads as it takes; fewer at the end of the file."""
    content: bytes = read(size)
    if len(content) in (0, size):
        return content
    chunks = [content]
    left = size - len(content)
    while left and (chunk := read(left)):
        chunks.append(chunk)
        left -= len(chunk)
    return b"".join(chunks)


def no_access(path: Path | str, error: OSError) -> InkdropError:
    """The error for what the system does not let us read."""
    return InkdropError(f"cannot read {shown(path)}: {reason(error)}")


def reason(error: OSError) -> str:
    """Why the system refused, without the number and the path."""
    return shown(error.strerror or str(error))


def inode_of(place: str) -> Inode:
    """What a file or folder is, by whatever name."""
    try:
        facts = Path(place).stat()
    except OSError as error:
        raise no_access(place, error) from error
    return facts.st_dev, facts.st_ino
