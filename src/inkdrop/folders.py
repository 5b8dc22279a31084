"""Folders of results, which appear whole or not at all."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from .errors import InkdropError


def check_unused(folder: Path) -> None:
    """Refuse a chosen folder that holds anything.

    Raises:
        InkdropError: if it does.
    """
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise InkdropError(f"--out {folder} exists and is not empty; choose another folder")


def writing_place(folder: Path) -> Path:
    """Where a folder is written before it appears."""
    return folder.with_name(f".writing-{folder.name}")


def make_empty(folder: Path) -> None:
    """Make a folder, without what may be left in it."""
    remove(folder)
    folder.mkdir(parents=True)


def remove(folder: Path) -> None:
    """Delete a folder, if it is there."""
    shutil.rmtree(folder, ignore_errors=True)


def replace(folder: Path, written: Path) -> None:
    """Put what was written in the folder's place."""
    if folder.exists():
        shutil.rmtree(folder)
    written.rename(folder)


@contextmanager
def appearing(folder: Path) -> Iterator[Path]:
    """A place to write in, which takes the folder's place at the end, if nothing goes wrong."""
    writing = writing_place(folder)
    make_empty(writing)
    try:
        yield writing
        replace(folder, writing)
    finally:
        remove(writing)
