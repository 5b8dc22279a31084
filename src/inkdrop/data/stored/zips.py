"""A zip of files, read where it lies; what it says of sizes is checked before it is believed.

Nothing here imports torch: it runs in worker processes.
"""

from __future__ import annotations

import io
import os
import stat
import struct
import threading
import zipfile
from collections.abc import Sequence
from pathlib import Path
from typing import IO, Any, cast

from ...errors import InkdropError
from .archives import UNPACKING_ERRORS, archive_index, handle, name_fault, plain_name, refused
from .tree import Index, Tree, Unreadable, no_access, reason, shown, stamp_of

# Deflate packs photographs hardly at all and drawings some 50 times; what packs better than that
# and is large once unpacked was made to fill the memory.
BOMB_RATIO, BOMB_BYTES = 100, 32 << 20
_ZIP_HEADER = 30  # bytes, before a member's name and content
ZIP_MAGICS = (b"PK\x03\x04", b"PK\x05\x06", b"PK\x07\x08")
_ZIP_ERRORS = (
    *UNPACKING_ERRORS, zipfile.BadZipFile, NotImplementedError, RuntimeError, OverflowError,
    struct.error,
)  # fmt: skip


class Zip(Tree):
    """A zip; its own list of members is believed only as far as it is plausible."""

    kind = "a zip"

    def __init__(self, path: Path, place: str | None = None, expected: str = "") -> None:
        super().__init__(path, place, expected)
        self._lock = threading.Lock()
        self._archive: tuple[int, zipfile.ZipFile] | None = None

    def size(self, name: str) -> int:
        member: zipfile.ZipInfo = self._index.members[name]
        return member.file_size

    def _read(self, name: str, size: int) -> bytes:
        member: zipfile.ZipInfo = self._index.members[name]
        try:
            with self._opened().open(member) as file:
                # Only what is read to its end has its checksum compared.
                content = file.read() if size == member.file_size else file.read(size)
        except _ZIP_ERRORS as error:
            if isinstance(error, OSError) and error.errno:  # of the system, not of zipfile
                raise Unreadable(reason(error)) from error
            raise Unreadable(f"damaged in the zip: {shown(str(error)) or 'cut off'}") from error
        if len(content) != size:
            raise Unreadable(f"damaged in the zip: {len(content):,} bytes instead of {size:,}")
        return content

    def _opened(self) -> zipfile.ZipFile:
        """The archive; a process forked off opens it anew, for locks are not to be inherited."""
        process = os.getpid()
        with self._lock:
            if self._archive is None or self._archive[0] != process:
                self._archive = process, zipfile.ZipFile(cast(IO[bytes], _Window(self._place)))
            return self._archive[1]

    def _look_through(self) -> Index:
        try:
            archive = self._opened()
            changed = stamp_of(self._place).changed
        except _ZIP_ERRORS as error:
            if isinstance(error, OSError) and error.errno:
                raise no_access(self.path, error) from error
            raise InkdropError(
                f"{shown(self.path)}: the zip is damaged or cut off ({shown(str(error))}): "
                "fetch it again"
            ) from error
        files = [member for member in archive.infolist() if not member.is_dir()]
        self._check(archive.infolist(), archive.start_dir)
        # Old Windows tools part names with "\", and on Windows zipfile itself replaces it.
        named = [(plain_name(member.filename.replace("\\", "/")), member) for member in files]
        facts = (f"{name}\0{m.file_size}\0{m.CRC}\n" for name, m in named)
        return archive_index(named, facts, changed)

    def _check(self, members: Sequence[zipfile.ZipInfo], end: int) -> None:
        ends = [*sorted(member.header_offset for member in members)[1:], end]
        in_order = sorted(members, key=lambda member: member.header_offset)
        for member, following in zip(in_order, ends, strict=False):
            fault = name_fault(member.orig_filename) or _zip_fault(member, following)
            if fault:
                raise refused(self.path, member.orig_filename, fault)


def _zip_fault(member: zipfile.ZipInfo, following: int) -> str | None:
    """What is wrong with a member that the next one, or the directory, follows at that offset."""
    mode = stat.S_IFMT(member.external_attr >> 16)
    if mode not in (0, stat.S_IFREG, stat.S_IFDIR):
        return "is a link" if mode == stat.S_IFLNK else "is no regular file"
    if member.flag_bits & 0x41:
        return "is encrypted"
    if member.header_offset + _ZIP_HEADER + member.compress_size > following:
        return "shares its bytes with another, as in a zip bomb"
    if member.file_size > max(BOMB_BYTES, BOMB_RATIO * member.compress_size):
        return (
            f"would unpack from {member.compress_size:,} to {member.file_size:,} bytes, as a zip "
            "bomb does"
        )
    return None


class _Window(io.RawIOBase):
    """A file by its place alone: what lasts is the position, and the file may be closed."""

    def __init__(self, place: str) -> None:
        self._place = place
        self._stamp = stamp_of(place)
        self._position = 0

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def tell(self) -> int:
        return self._position

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        origin = {os.SEEK_SET: 0, os.SEEK_CUR: self._position, os.SEEK_END: self._stamp.size}
        if origin[whence] + offset < 0:
            raise OSError("a position before the start of the file")
        self._position = origin[whence] + offset
        return self._position

    def readinto(self, buffer: Any) -> int:
        view = memoryview(buffer)
        content = handle(self._place, self._stamp).read_at(self._position, len(view))
        view[: len(content)] = content
        self._position += len(content)
        return len(content)
