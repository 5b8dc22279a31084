"""Named files to read: those of a folder, or of a zip or tar that is read where it lies.

Nothing in an archive is ever written to disk under the name it has there, and an archive that
tries to lead elsewhere, by `..`, a link or a drive letter, is refused as a whole. What an archive
says of its members' sizes is checked before they are unpacked.

Nothing here imports torch: it runs in worker processes.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from ...errors import InkdropError
from .archives import UNPACKING_ERRORS
from .tars import BLOCK, TAR_NAMES, Tar, opener_of, starts_a_tar
from .tree import (
    Index,
    Inode,
    Tree,
    Unreadable,
    counted,
    filled,
    inode_of,
    natural_key,
    no_access,
    reason,
    shown,
)
from .zips import ZIP_MAGICS, Zip

__all__ = ["TAR_NAMES", "Tree", "Unreadable", "counted", "natural_key", "open_tree", "shown"]


def open_tree(path: Path) -> Tree | None:
    """The tree at `path`, told by its content, whatever its name; None if it is something else.

    Archives are zip and tar, the latter also packed by gzip, bzip2 or xz.

    Raises:
        InkdropError: if there is nothing or it cannot be read, or it is an archive that is damaged
            or holds what an archive of images should not.
    """
    try:
        if not path.exists():
            raise InkdropError(f"no such file or folder: {shown(path)}")
        kind = _kind(path)
    except OSError as error:
        raise no_access(path, error) from error
    if kind is None:
        return None
    tree = kind(path)
    _ = tree.names  # what is wrong with it is said now
    return tree


def _kind(path: Path) -> type[Tree] | None:
    if path.is_dir():
        return Folder
    if not path.is_file():
        return None
    with path.open("rb") as file:
        start = file.read(BLOCK)
    if start.startswith(ZIP_MAGICS):
        return Zip
    opener = opener_of(str(path))
    if opener is not None:
        try:
            with opener(path, "rb") as packed:
                start = packed.read(BLOCK)
        except UNPACKING_ERRORS:
            # bzip2 yields nothing until a block of up to 900 kB is whole.
            return Tar if path.name.lower().endswith(TAR_NAMES) else None
    return Tar if starts_a_tar(start) else None


class Folder(Tree):
    """A folder and all that is below it."""

    kind = "a folder"

    def size(self, name: str) -> int:
        try:
            return Path(f"{self._place}/{name}").stat().st_size
        except OSError as error:
            raise Unreadable(reason(error)) from error

    def _read(self, name: str, size: int) -> bytes:
        try:
            with open(f"{self._place}/{name}", "rb", buffering=0) as file:
                return filled(file.read, size)
        except OSError as error:
            raise Unreadable(reason(error)) from error

    def _look_through(self) -> Index:
        walk = _Walk(self._place, self.path)
        return Index(walk.names, walk.digest.hexdigest(), walk.notes)


class _Entry(NamedTuple):
    key: str
    name: str
    size: int  # -1 for a folder
    changed: int


class _Walk:
    """All files below a folder in natural order; links are followed, but never round in circles.

    With millions of files a Path for each would take minutes, so these are strings and numbers.
    """

    def __init__(self, root: str, path: Path) -> None:
        self.names: list[str] = []
        self.digest = hashlib.sha256()
        self._path = path
        self._circles: list[str] = []
        self._odd: list[str] = []
        pending: list[tuple[Iterator[_Entry], str, tuple[Inode, ...]]]
        pending = [(iter(self._entries(root, "")), "", (inode_of(root),))]
        while pending:
            entries, prefix, above = pending[-1]
            for entry in entries:
                name = prefix + entry.name
                if entry.size >= 0:
                    self._add(name, entry)
                    continue
                folder = f"{root}/{name}"
                inode = inode_of(folder)
                if inode in above:
                    self._circles.append(name)
                    continue
                below = iter(self._entries(folder, f"{name}/"))
                pending.append((below, f"{name}/", (*above, inode)))
                break
            else:
                pending.pop()

    @property
    def notes(self) -> tuple[str, ...]:
        notes = []
        if self._circles:
            names = counted(self._circles, "link", "links")
            notes.append(f"not followed, for leading back to a folder above: {names}")
        if self._odd:
            names = counted(sorted(self._odd, key=natural_key), "entry", "entries")
            notes.append(f"left out, as links that lead nowhere or devices: {names}")
        return tuple(notes)

    def _add(self, name: str, entry: _Entry) -> None:
        self.names.append(name)
        line = f"{name}\0{entry.size}\0{entry.changed}\n"
        self.digest.update(line.encode("utf-8", "surrogatepass"))

    def _entries(self, folder: str, prefix: str) -> list[_Entry]:
        found = []
        try:
            with os.scandir(folder) as entries:
                for entry in entries:
                    if (known := _entry(entry)) is not None:
                        found.append(known)
                    else:
                        self._odd.append(prefix + entry.name)
        except OSError as error:
            raise no_access(self._path / prefix, error) from error
        found.sort()
        return found


def _entry(entry: os.DirEntry[str]) -> _Entry | None:
    """What a folder holds under one name; None if it is neither file nor folder."""
    try:
        if entry.is_dir():
            return _Entry(natural_key(entry.name), entry.name, -1, 0)
        if not entry.is_file():
            return None
        facts = entry.stat()
    except OSError:
        if entry.is_symlink():  # to itself, say
            return None
        raise
    return _Entry(natural_key(entry.name), entry.name, facts.st_size, facts.st_mtime_ns)
