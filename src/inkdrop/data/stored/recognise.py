"""What a path holds, by looking at what is there."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from ...errors import InkdropError
from .arrays import Points, find_arrays
from .cifar import find_cifar, holds_cifar
from .collection import Found
from .idx import find_idx_set, holds_idx
from .image_files import find_images, looks_like_an_image
from .parquet import find_parquet, holds_parquet
from .tables import find_points
from .trees import open_tree

KINDS = (
    "a folder, zip or tar of images; WebDataset shards; .npy or .npz; IDX (MNIST); CIFAR's "
    "batches; Parquet; CSV or .npy of points; hf:NAME for a set of the hub"
)

_TABLES = (".csv", ".tsv", ".txt", ".dat")
_ARRAYS = (".npy", ".npz")
_ALONE = (*_TABLES, *_ARRAYS)


def recognise(paths: Sequence[Path], name: str | None = None) -> Found | Points:
    """The images or points at `paths`: one folder or file, or several files of one kind.

    Args:
        name: what to call them; the file's or folder's own name by default.

    Raises:
        InkdropError: if there is nothing at a path, nothing that is known, or more than one kind.
    """
    for path in paths:
        if not _exists(path):
            raise InkdropError(
                f"no such file or folder: {path}; --data takes {KINDS}, or a known name"
            )
    idx = [path for path in paths if holds_idx(path)]
    parquet = [path for path in paths if holds_parquet(path)]
    if idx and parquet:
        raise InkdropError(
            f"IDX files ({idx[0]}) as well as Parquet ({parquet[0]}): give the files of one kind"
        )
    others = [path for path in paths if path not in parquet]
    if parquet and others:
        raise InkdropError(
            f"{parquet[0]} is Parquet, but {others[0]} is not: give the files of one kind"
        )
    if idx:
        return find_idx_set(paths, name)
    if parquet:
        return _with_note(find_parquet(paths, name), paths)
    if len(paths) == 1:
        (path,) = paths
        if holds_cifar(path):
            return find_cifar(path)
        if path.suffix.lower() in _ARRAYS:
            return find_arrays(path)
        if path.suffix.lower() in _TABLES and path.is_file():
            return find_points(path)
    kinds = {path.suffix.lower() for path in paths if path.suffix.lower() in _ALONE}
    if kinds and len(paths) > 1:
        raise InkdropError(
            f"{', '.join(map(str, paths))}: {' and '.join(sorted(kinds))} files are read one at a "
            "time; give one"
        )
    trees = [open_tree(path) for path in paths]
    found = find_images([tree for tree in trees if tree is not None]) if all(trees) else None
    if found is None:
        given = ", ".join(map(str, paths))
        if len(paths) == 1 and paths[0].is_file() and _is_image(paths[0]):
            raise InkdropError(f"{given} is one image: give the folder of all of them")
        raise InkdropError(f"{given}: no images or points found; --data takes {KINDS}")
    return found


def _with_note(found: Found, paths: Sequence[Path]) -> Found:
    """Parquet that was found, with a note of what lies beside it."""
    beside = sorted(
        entry.name
        for path in paths
        if path.is_dir() and list(path.glob("*.parquet"))
        for entry in path.iterdir()
        if not entry.name.startswith(".") and entry.suffix.lower() != ".parquet"
    )
    if beside:
        named = ", ".join(beside[:3]) + (", …" if len(beside) > 3 else "")
        found.train.notes += (f"left out, beside the Parquet: {named}",)
    return found


def _is_image(path: Path) -> bool:
    with open(path, "rb") as file:
        return looks_like_an_image(file.read(32))


def _exists(path: Path) -> bool:
    try:
        return path.exists()
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or error
        raise InkdropError(f"cannot read {path}: {reason}") from error
