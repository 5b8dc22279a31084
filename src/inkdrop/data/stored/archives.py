"""What zips and tars have in common: names that must not lead elsewhere, and one open file.

Nothing here imports torch: it runs in worker processes.
"""

from __future__ import annotations

import errno
import hashlib
import io
import lzma
import os
import re
import threading
import zlib
from collections.abc import Iterator, Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any

from ...errors import InkdropError
from .tree import Index, Stamp, counted, filled, natural_key, shown

_HANDLES = 64  # macOS lets a process open 256 files
UNPACKING_ERRORS = (OSError, EOFError, zlib.error, lzma.LZMAError, ValueError)


def archive_index(
    named: Sequence[tuple[str, Any]],
    facts: Iterator[str],
    changed: int,
    notes: tuple[str, ...] = (),
) -> Index:
    digest = hashlib.sha256(str(changed).encode())
    for fact in facts:
        digest.update(fact.encode("utf-8", "surrogatepass"))
    members = dict(named)
    if len(members) < len(named):
        seen: set[str] = set()
        twice = [name for name, _ in named if name in seen or seen.add(name)]  # type: ignore[func-returns-value]
        names = counted(twice, "name", "names")
        notes = (*notes, f"there twice, so that the later one is taken: {names}")
    return Index(sorted(members, key=natural_key), digest.hexdigest(), notes, members)


def name_fault(name: str) -> str | None:
    """How a name would lead out of the archive, on whichever system."""
    if name.startswith(("/", "\\")):
        return "has an absolute path"
    if ".." in name and ".." in re.split(r"[/\\]", name):
        return "leads out of it by '..'"
    if name[1:2] == ":" and name[0].isascii() and name[0].isalpha():
        return "has a drive letter"
    return "has a NUL in its name" if "\0" in name else None


def refused(path: Path, member: str, fault: str) -> InkdropError:
    return InkdropError(
        f"{shown(path)} is refused, for its member {shown(member)} {fault}: pack the images "
        "again without it"
    )


def plain_name(name: str) -> str:
    """A name without the "./" that tar puts before it when it packs a folder as "."."""
    return "/".join(part for part in name.split("/") if part not in ("", "."))


class _Handle:
    """An open file, read from anywhere by several threads, and by processes forked off."""

    def __init__(self, place: str) -> None:
        self._file = io.FileIO(place)
        self._lock = threading.Lock()

    def stamp(self) -> Stamp:
        facts = os.fstat(self._file.fileno())
        return Stamp(facts.st_size, facts.st_mtime_ns)

    def read_at(self, offset: int, size: int) -> bytes:
        """The bytes from `offset`, as many as there are up to `size`."""
        if hasattr(os, "pread"):
            position = offset

            def read(n: int) -> bytes:
                nonlocal position
                chunk = os.pread(self._file.fileno(), n, position)
                position += len(chunk)
                return chunk

            return filled(read, size)
        with self._lock:
            self._file.seek(offset)
            return filled(self._file.read, size)

    def __del__(self) -> None:
        if hasattr(self, "_file"):
            self._file.close()


@lru_cache(maxsize=_HANDLES)
def handle(place: str, stamp: Stamp) -> _Handle:
    """A file, left open between reads until others crowd it out."""
    handle = _Handle(place)
    if handle.stamp() != stamp:
        raise OSError(errno.EIO, "the archive has changed since it was looked through")
    return handle
