"""The data sets known by name, and where their files are looked for."""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Sequence
from functools import partial
from itertools import pairwise
from pathlib import Path

import torch

from ..config import OWN_IMAGES
from ..errors import InkdropError, unknown_name
from .hub import DATA_VARIABLE, load_hub, load_parquet
from .idx import holds_idx, load_idx
from .images import ImageSet, Source
from .points import POINTS, PointSet, draw

_HUB_REFERENCES = {"mnist": "ylecun/mnist", "cifar10": "uoft-cs/cifar10"}
_TRAIN_POINTS, _TEST_POINTS = 50_000, 10_000


def load_source(source: str, path: Sequence[str] = ()) -> Source:
    """The images or points of a data set known by name.

        digits     scikit-learn's 1,797 digits, 8x8 grey; no files, no test set
        mnist      IDX files under MNIST's names, or Parquet
        cifar10    Parquet
        points-…   50,000 and 10,000 points in the plane, see `points.draw`; no files

    Args:
        source: one of `SOURCES`.
        path: files, or folders with them; `~` is the home folder. Parquet files have train or
            test in their names; in a folder they may lie one level down, as on the hub. Empty
            for $INKDROP_DATA/mnist or …/cifar10 if INKDROP_DATA is set, else the hub.

    Raises:
        InkdropError: if the source is unknown, or its files are missing, ambiguous or damaged.
    """
    if source == OWN_IMAGES:
        raise InkdropError(
            "this run's images are the user's own: pass them: train(config, source=Source(…))"
        )
    if source not in SOURCES:
        raise unknown_name("data source", source, SOURCES)
    return SOURCES[source](_given(path))


def origin(source: str, path: Sequence[str] = ()) -> str:
    """Where `load_source` would read a source from, in words."""
    if source in POINTS:
        return "its formula"
    if source not in _HUB_REFERENCES:
        return "scikit-learn"
    places = _places(source, _given(path))
    if places:
        return ", ".join(map(str, places))
    return f"the hub ({_HUB_REFERENCES[source]}) or its cache"


def _given(path: Sequence[str]) -> list[Path]:
    return [_expanded(part) for part in ([path] if isinstance(path, str) else path)]


def _digits(paths: Sequence[Path]) -> Source:
    from sklearn.datasets import load_digits

    if paths:
        raise InkdropError(
            f"the source digits takes no path, got {paths[0]}: its images come with scikit-learn; "
            "leave the path out, or choose another source"
        )
    digits = load_digits()
    pixels = torch.from_numpy(digits.images) * 255 / 16  # they are 0 … 16
    images = pixels.round().to(torch.uint8).unsqueeze(1)
    labels = torch.from_numpy(digits.target).to(torch.int64)
    return Source(ImageSet(images, labels, "digits"), None)


def _points(name: str, paths: Sequence[Path]) -> Source:
    if paths:
        raise InkdropError(
            f"the source {name} takes no path, got {paths[0]}: its points are drawn from a "
            "formula; leave the path out, or choose another source"
        )
    train = PointSet(draw(name, _TRAIN_POINTS, purpose="training points"), None, f"{name} train")
    test = PointSet(draw(name, _TEST_POINTS, purpose="test points"), None, f"{name} test")
    return Source(train, test)


def _mnist(paths: Sequence[Path]) -> Source:
    places = _places("mnist", paths)
    if not places:
        return _from_hub("mnist")
    idx = [place for place in places if holds_idx(place)]
    parquet = [file for place in places for file in _parquet_in(place)]
    if idx and parquet:
        raise InkdropError(
            f"IDX files ({idx[0]}) as well as Parquet ({parquet[0]}): give the files of one kind"
        )
    return _from_parquet("mnist", places) if parquet else load_idx(places, "mnist")


def _cifar10(paths: Sequence[Path]) -> Source:
    places = _places("cifar10", paths)
    return _from_parquet("cifar10", places) if places else _from_hub("cifar10")


SOURCES: dict[str, Callable[[Sequence[Path]], Source]] = {
    "digits": _digits,
    "mnist": _mnist,
    "cifar10": _cifar10,
    **{name: partial(_points, name) for name in POINTS},
}
"""What loads each source from the paths given for it; where there are none, from its own place."""


def _places(source: str, paths: Sequence[Path]) -> Sequence[Path]:
    """`paths`, or the source's folder in $INKDROP_DATA, or nothing: all that is returned exists."""
    for path in paths:
        if not _exists(path):
            raise InkdropError(f"no such file or folder: {path} (the path of the data, --data)")
    root = os.environ.get(DATA_VARIABLE)
    if paths or not root:
        return paths
    own = _expanded(root) / source
    if not _exists(own):
        raise InkdropError(
            f"{DATA_VARIABLE} is {root}, but there is no {own}: put {source} there, give its files "
            f"with --data PATH, or unset {DATA_VARIABLE} to fetch it from the hub"
        )
    return [own]


def _expanded(path: str) -> Path:
    try:
        return Path(path).expanduser()
    except RuntimeError as error:  # ~name, of a name that the system does not know
        raise InkdropError(f"no home folder for {path}: write the path out") from error


def _exists(path: Path) -> bool:
    try:
        return path.exists()
    except OSError as error:
        raise InkdropError(f"cannot read {path}: {error.strerror}") from error


def _from_hub(source: str) -> Source:
    reference = _HUB_REFERENCES[source]
    return Source(load_hub(reference, "train"), load_hub(reference, "test"))


def _from_parquet(source: str, places: Sequence[Path]) -> Source:
    """The set in Parquet files, in the order of their names, whatever order they are given in."""
    parts: dict[str, list[Path]] = {"train": [], "test": []}
    for place in places:
        files = _parquet_in(place)
        if not files:
            raise InkdropError(
                f"no Parquet in {place}: expected files such as train.parquet and test.parquet, "
                "or a folder with them"
            )
        for file in files:
            parts[_part(file)].append(file)
    if not parts["train"]:
        raise InkdropError(
            f"no training images in {', '.join(map(str, places))}: expected Parquet files with "
            "train in their names"
        )
    ordered = {
        part: sorted(files, key=lambda file: (file.name, file)) for part, files in parts.items()
    }
    for files in ordered.values():
        for first, second in pairwise(files):
            if first.samefile(second):
                raise InkdropError(f"{second} is given twice: leave one out")
    train = load_parquet(ordered["train"], f"{source} train")
    test = load_parquet(ordered["test"], f"{source} test") if ordered["test"] else None
    return Source(train, test)


def _parquet_in(place: Path) -> list[Path]:
    """The Parquet files that a path stands for."""
    if not place.is_dir():
        return [place] if place.suffix == ".parquet" else []
    return list(place.glob("*.parquet")) or list(place.glob("*/*.parquet"))


def _part(file: Path) -> str:
    parts = {"train", "test"} & set(re.findall("[a-z]+", file.stem.lower()))
    if len(parts) != 1:
        raise InkdropError(
            f"{file}: training or test images? its name must have the word train or test in it"
        )
    return parts.pop()
