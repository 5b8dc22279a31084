"""A tar of files, read where it lies, or where it was unpacked to from a packed tar.

Nothing here imports torch: it runs in worker processes.
"""

from __future__ import annotations

import bz2
import gzip
import hashlib
import json
import lzma
import os
import tarfile
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from functools import cached_property
from pathlib import Path
from typing import IO, Any

from ...errors import InkdropError
from ..places import cache_folder
from .archives import UNPACKING_ERRORS, archive_index, handle, name_fault, plain_name, refused
from .tree import Index, Stamp, Tree, Unreadable, inode_of, no_access, reason, shown, stamp_of

# A tar of small drawings packs better than they do one by one, for its headers are alike.
PACKED_RATIO, PACKED_BYTES = 200, 1 << 30
# tarfile takes 18 µs for a member: with fewer than these nobody waits for it.
_WORTH_KEEPING = 1000
_INDEX_VERSION = 1  # of what is kept; to be raised when it, or what is refused, changes
# What tars are called, in lower case.
TAR_NAMES = (".tar", ".tar.gz", ".tgz", ".tar.bz2", ".tbz2", ".tar.xz", ".txz")

BLOCK = 512  # of a tar
_CHUNK = 1 << 20
_OPENERS = {b"\x1f\x8b": gzip.open, b"BZh": bz2.open, b"\xfd7zXZ\0": lzma.open}


class Tar(Tree):
    """A tar; its members are read by their offsets."""

    kind = "a tar"

    def size(self, name: str) -> int:
        _, size = self._index.members[name]
        return int(size)

    def _read(self, name: str, size: int) -> bytes:
        offset, _ = self._index.members[name]
        try:
            content = handle(*self._plain).read_at(offset, size)
        except OSError as error:
            raise Unreadable(reason(error)) from error
        if len(content) < size:
            raise Unreadable("cut off with the tar that it lies in")
        return content

    @cached_property
    def _plain(self) -> tuple[str, Stamp]:
        """The tar that is read: itself, or what it was unpacked to."""
        place = _unpacked(self._place, self.path)
        return place, stamp_of(place)

    def _look_through(self) -> Index:
        try:
            plain, stamp = self._plain
            changed = stamp_of(self._place).changed
            named, notes = _tar_members(plain, stamp, self.path)
        except OSError as error:
            raise no_access(self.path, error) from error
        if plain != self._place:
            where = f"it was unpacked to {shown(plain)}"
            notes = (*notes, f"a packed tar can only be read from its start, so {where}")
        facts = (f"{name}\0{offset}\0{size}\n" for name, (offset, size) in named)
        return archive_index(named, facts, changed, notes)


_Members = list[tuple[str, tuple[int, int]]]  # name, (offset, size) in order of offset


def _tar_members(plain: str, stamp: Stamp, path: Path) -> tuple[_Members, tuple[str, ...]]:
    """Where a plain tar has its files; kept for the next process if it took long to find out."""
    # By its inode, so that a tar of several names is looked through once.
    inode = inode_of(plain)
    key = hashlib.sha256(repr((_INDEX_VERSION, *inode, *stamp)).encode()).hexdigest()
    kept = cache_folder() / "tars" / f"{key}.json"
    with suppress(OSError, ValueError, KeyError, TypeError):
        known = json.loads(kept.read_bytes())
        spans = zip(known["offsets"], known["sizes"], strict=True)
        return list(zip(known["names"], spans, strict=True)), tuple(known["notes"])
    members, notes = _walk_tar(plain, path)
    if len(members) >= _WORTH_KEEPING:
        names, places = zip(*members, strict=True)
        offsets, sizes = zip(*places, strict=True)
        content = {"names": names, "offsets": offsets, "sizes": sizes, "notes": notes}
        with suppress(OSError), _appearing(kept) as file:  # without it, it takes longer
            file.write(json.dumps(content).encode())
    return members, notes


def _walk_tar(plain: str, path: Path) -> tuple[_Members, tuple[str, ...]]:
    members: _Members = []
    try:
        with (
            open(plain, "rb") as file,
            tarfile.open(
                fileobj=file, mode="r:", encoding="utf-8", errors="surrogateescape"
            ) as archive,
        ):
            while (member := archive.next()) is not None:
                archive.members = []  # type: ignore[attr-defined]  # else it keeps them all
                fault = name_fault(member.name) or _tar_fault(member)
                if fault:
                    raise refused(path, member.name, fault)
                if member.isreg():
                    members.append((plain_name(member.name), (member.offset_data, member.size)))
            end = archive.offset
            size = file.seek(0, os.SEEK_END)
            file.seek(end)
            # At damage in the middle tarfile stops as it does at the end.
            if end + BLOCK > size or any(file.read(BLOCK)):
                raise tarfile.ReadError(f"at byte {end:,} there is neither a member nor its end")
            more = any(chunk.strip(b"\0") for chunk in iter(lambda: file.read(_CHUNK), b""))
    except (tarfile.TarError, ValueError, EOFError, OverflowError) as error:
        if isinstance(error, InkdropError):
            raise
        raise InkdropError(
            f"{shown(path)}: the tar is damaged or cut off ({shown(str(error))}): fetch it again"
        ) from error
    note = f"after the end of the tar, at byte {end:,}, there is more, which is not read"
    return members, (note,) if more else ()


def _tar_fault(member: tarfile.TarInfo) -> str | None:
    if member.issym() or member.islnk():
        return "is a link"
    if member.issparse():
        return "is stored as a sparse file"
    return None if member.isreg() or member.isdir() else "is no regular file"


def _unpacked(place: str, path: Path) -> str:
    """Where a tar's plain content lies: `place` itself, or a file in the cache.

    Raises:
        InkdropError: if it is damaged, or unpacks to implausibly much.
    """
    opener = opener_of(place)
    if opener is None:
        return place
    size, changed = stamp_of(place)
    key = hashlib.sha256(f"{place}\0{size}\0{changed}".encode("utf-8", "replace")).hexdigest()
    target = cache_folder() / "unpacked" / f"{key}.tar"
    if target.exists():
        return str(target)
    limit = max(PACKED_BYTES, PACKED_RATIO * size)
    try:
        with opener(place, "rb") as packed, _appearing(target) as file:
            for chunk in iter(lambda: _unpack(packed, path), b""):
                if file.tell() + len(chunk) > limit:
                    raise InkdropError(
                        f"{shown(path)} is refused: its {size:,} bytes unpack to more than "
                        f"{limit:,}, which no tar of images does; if it is one, unpack it yourself"
                    )
                file.write(chunk)
    except OSError as error:
        raise InkdropError(
            f"cannot unpack {shown(path)} to {shown(target)}: {reason(error)}"
        ) from error
    return str(target)


def _unpack(packed: IO[bytes], path: Path) -> bytes:
    try:
        return packed.read(_CHUNK)
    except UNPACKING_ERRORS as error:
        raise InkdropError(
            f"{shown(path)}: the packed tar is damaged or cut off ({shown(str(error))}): "
            "fetch it again"
        ) from error


def opener_of(place: str) -> Any:
    """What opens a packed file; None for one that is not."""
    with open(place, "rb") as file:
        start = file.read(6)
    return next((opener for magic, opener in _OPENERS.items() if start.startswith(magic)), None)


def starts_a_tar(block: bytes) -> bool:
    """Whether it is a tar's first header: its checksum tells, also in tars older than the magic."""
    try:
        tarfile.TarInfo.frombuf(block, "utf-8", "surrogateescape")
    except tarfile.HeaderError:
        # A damaged header is still one.
        return block[257:262] == b"ustar"
    return True


@contextmanager
def _appearing(target: Path) -> Iterator[IO[bytes]]:
    """A file that is there when it is complete, whoever else writes the same at the same time."""
    target.parent.mkdir(parents=True, exist_ok=True)
    descriptor, name = tempfile.mkstemp(prefix=target.stem, suffix=".part", dir=target.parent)
    try:
        with os.fdopen(descriptor, "wb") as file:
            yield file
        try:
            Path(name).replace(target)
        except PermissionError:  # Windows: another process reads it already
            if not target.exists():
                raise
            Path(name).unlink()
    except BaseException:
        Path(name).unlink(missing_ok=True)
        raise
