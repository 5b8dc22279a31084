"""Where data lies, and where what was made of it is kept."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Sequence
from pathlib import Path

from ..errors import InkdropError

DATA_VARIABLE = "INKDROP_DATA"  # the environment variable with the folder of sets already there
CACHE_VARIABLE = "INKDROP_CACHE"  # the one with the folder for checks and decoded images


def cache_folder() -> Path:
    """$INKDROP_CACHE, or inkdrop in the user's own cache folder; it need not exist yet."""
    chosen = os.environ.get(CACHE_VARIABLE)
    if chosen:
        return expanded(chosen)
    root = os.environ.get("XDG_CACHE_HOME")
    return (Path(root) if root else expanded("~/.cache")) / "inkdrop"


def expanded(path: str | Path) -> Path:
    """A path with `~` as the home folder.

    Raises:
        InkdropError: for a ~name that the system does not know.
    """
    try:
        return Path(path).expanduser()
    except RuntimeError as error:
        raise InkdropError(f"no home folder for {path}: write the path out") from error


def files_identity(paths: Sequence[Path]) -> str:
    """A digest (hex) of where files lie, their sizes and times of change, without reading them."""
    digest = hashlib.sha256()
    for path in paths:
        try:
            found = path.stat()
            place = path.resolve()
        except OSError as error:
            raise InkdropError(f"cannot read {path}: {error.strerror}") from error
        digest.update(f"{place}\0{found.st_size}\0{found.st_mtime_ns}\n".encode(errors="replace"))
    return digest.hexdigest()
