"""The data sets known by name, and where their files are looked for."""

from __future__ import annotations

import difflib
import os
from pathlib import Path

import torch

from ..config import OWN_IMAGES, SOURCES, DataConfig
from ..errors import InkdropError
from .images import ImageSet, Source
from .places import DATA_VARIABLE, expanded
from .points import POINTS, PointSet, draw_told
from .stored.arrays import Points
from .stored.collection import Found
from .stored.hub import find_hub
from .stored.recognise import recognise

HUB = "hf:"
_HUB_REFERENCES = {
    "mnist": "ylecun/mnist",
    "fashion-mnist": "zalando-datasets/fashion_mnist",
    "cifar10": "uoft-cs/cifar10",
}
_NAMES = tuple(name for name in SOURCES if name != "files")
_TRAIN_POINTS, _TEST_POINTS = 50_000, 10_000


def find(data: DataConfig) -> Found | Source:
    """The images or points of a configuration, as they are stored; in memory where they are.

        digits          scikit-learn's 1,797 digits, 8x8 grey; no files, no test set
        points-…        50,000 and 10,000 points in the plane, see `points.draw`; no files
        mnist, fashion-mnist, cifar10
                        $INKDROP_DATA/NAME if INKDROP_DATA is set, else the hub
        files           what `data.path` says: see `recognise`

    A path goes before the source: files or folders of any kind; hf:NAME for a set of the hub; or
    the name of one of these sources.

    Raises:
        InkdropError: if the source is unknown, or its files are missing, ambiguous or damaged.
    """
    if data.source == OWN_IMAGES:
        raise InkdropError(
            "this run's images are the user's own: pass them: train(config, source=…)"
        )
    if data.source == "digits" and data.path:
        raise InkdropError(
            f"the digits take no path, got {data.path[0]}: they come with scikit-learn; choose "
            "another preset, such as folder"
        )
    if not all(data.path):
        raise InkdropError("a path is empty: give --data PATH, or . for the folder you are in")
    known = _known(data)
    if known is not None:
        return _named(known, data)
    if len(data.path) == 1:
        (place,) = data.path
        if place.startswith(HUB):
            if place == HUB:
                raise InkdropError(f"{HUB} needs the name of a set: {HUB}ylecun/mnist")
            return find_hub(place.removeprefix(HUB), data.streaming)
        nearest = difflib.get_close_matches(place, _NAMES, n=1, cutoff=0.8)
        if nearest and not expanded(place).exists():
            raise InkdropError(
                f"no such file or folder: {place}; did you mean the data set {nearest[0]!r}?"
            )
    if any(place.startswith(HUB) for place in data.path):
        raise InkdropError(f"a set of the hub ({HUB}…) stands alone, got {', '.join(data.path)}")
    name = data.source if data.source in _HUB_REFERENCES else None
    found = recognise([expanded(place) for place in data.path], name)
    return _point_source(found) if isinstance(found, Points) else found


def _known(data: DataConfig) -> str | None:
    """The name of the source that is asked for, by itself or as the path; None for files."""
    if not data.path:
        return data.source
    (place, *more) = data.path
    return place if not more and place in _NAMES and not Path(place).exists() else None


def _named(name: str, data: DataConfig) -> Found | Source:
    if name == "files":
        raise InkdropError("which images? give them: --data PATH (a folder, an archive, …)")
    if name == "digits":
        return _digits()
    if name in POINTS:
        train = draw_told(name, _TRAIN_POINTS, purpose="training points")
        test = draw_told(name, _TEST_POINTS, purpose="test points")
        return Source(PointSet(*train, f"{name} train"), PointSet(*test, f"{name} test"))
    root = os.environ.get(DATA_VARIABLE)
    if not root:
        return find_hub(_HUB_REFERENCES[name], data.streaming)
    own = expanded(root) / name
    if not own.exists():
        raise InkdropError(
            f"{DATA_VARIABLE} is {root}, but there is no {own}: put {name} there, give its files "
            f"with --data PATH, or unset {DATA_VARIABLE} to fetch it from the hub"
        )
    found = recognise([own], name)
    if isinstance(found, Points):
        raise InkdropError(f"{own} holds points, not the images of {name}")
    return found


def place_of(data: DataConfig) -> str:
    """Where `find` looks, in words."""
    known = _known(data)
    if known is None:
        return ", ".join(data.path)
    if known in POINTS:
        return "its formula"
    if known == "digits":
        return "scikit-learn"
    if known not in _HUB_REFERENCES:
        return "nowhere"  # `find` says why
    root = os.environ.get(DATA_VARIABLE)
    if root:
        return str(expanded(root) / known)
    return f"the hub ({_HUB_REFERENCES[known]}) or its cache"


def _digits() -> Source:
    from sklearn.datasets import load_digits

    digits = load_digits()
    pixels = torch.from_numpy(digits.images) * 255 / 16  # they are 0 … 16
    images = pixels.round().to(torch.uint8).unsqueeze(1)
    labels = torch.from_numpy(digits.target).to(torch.int64)
    return Source(ImageSet(images, labels, "digits"), None)


def _point_source(points: Points) -> Source:
    labels = None if points.labels is None else torch.from_numpy(points.labels)
    found = PointSet(torch.from_numpy(points.values), labels, points.name)
    if points.class_names:
        found.__dict__["classes"] = len(points.class_names)
    return Source(found, None)
