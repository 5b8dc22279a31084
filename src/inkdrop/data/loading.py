"""From a configuration, or from what a person has in Python, to checked examples."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import psutil
import torch
from numpy.typing import NDArray
from torch import Tensor

from ..config import DataConfig
from ..console import say
from ..errors import InkdropError
from .cache import cached_images
from .check import check
from .checked import Check, Part
from .examples import Examples
from .images import ImageSet, Source
from .points import PointSet
from .proposal import Proposal, converted, propose
from .sources import HUB, find, place_of
from .stored.arrays import from_array
from .stored.collection import Arrays, Collection, Found, Head
from .stored.sequences import Sequenced
from .streaming import StreamedImages
from .summary import stop_for_bad
from .transform import Transform, parse_colour

if TYPE_CHECKING:
    from rich.console import Console

_GLANCE = 256  # images looked at where a set cannot be checked before it is trained on
_SHARE_OF_MEMORY = 0.25  # of what is free, that images may take rather than be mapped


class Loaded(NamedTuple):
    """Examples, and how they came about.

    Attributes:
        source: what to train and test on.
        origin: where it came from, in words.
        check: what is known of the images; None for points and the embedded digits.
        proposal: what was done to them; None likewise.
    """

    source: Source
    origin: str
    check: Check | None = None
    proposal: Proposal | None = None


def load_source(
    data: DataConfig, console: Console | None = None, *, conditional: bool = False
) -> Loaded:
    """The examples that a configuration names: found, checked, brought to one size.

    Args:
        console: is told what was found and done, and shows how far it is.
        conditional: refuse images without labels before they are decoded.

    Raises:
        InkdropError: if they cannot be found or read, or some are bad and are not to be skipped.
    """
    place = place_of(data)
    if place.startswith(("the hub", HUB)):
        say(console, f"fetching from {place}")
    found = find(data)
    if isinstance(found, Source):
        if data.path and isinstance(found.train, PointSet):
            for line in _points_in_words(found.train):
                say(console, line)
        return Loaded(found, place)
    if conditional and found.train.labels is None and not found.train.streams_labels:
        raise InkdropError(
            f"{found.train.name} has no labels, so a network cannot be told its classes: leave out "
            "--conditional and network.classes, or give images in a folder for each class"
        )
    return prepare(look_at(found, data, place, console), data, console)


def load_data(*places: str, **settings: Any) -> Source:
    """The examples at a path or of a known set, checked and of one size: `load_data("photos/")`.

    Args:
        places: as for --data: a folder, an archive or files of any kind, hf:NAME, or a set's name.
        settings: fields of `DataConfig`, such as size=64.

    Raises:
        InkdropError: as `load_source`.
    """
    return load_source(DataConfig(source="files", path=places, **settings)).source


def _points_in_words(points: PointSet) -> list[str]:
    classes = "no labels" if points.classes is None else f"{points.classes} classes"
    if points.vector is not None:
        classes = f"told vectors of {points.vector}"
    spread = points.points.std(dim=0, correction=0)
    words = [f"{points.name}: {len(points):,} points, {points.size}, {classes}"]
    if not 0.2 < float(spread.max()) < 5:
        listed = ", ".join(f"{value:.3g}" for value in spread[:4].tolist())
        words.append(f"  their standard deviations are {listed}: networks learn best near 1")
    return words


@dataclass(frozen=True)
class Seen:
    """Images that were found and checked, but not yet made one size."""

    found: Found
    origin: str
    check: Check
    proposal: Proposal

    @property
    def shape(self) -> tuple[int, int, int]:
        """(C, H, W) that they are to have."""
        transform = self.proposal.transform
        return transform.channels, transform.height, transform.width

    @property
    def train_count(self) -> int:
        """How many there are to train on."""
        return len(self.found.train) - len(self.check.train.skipped)


def look(data: DataConfig, console: Console | None = None, *, refresh: bool = False) -> Seen:
    """The images that a configuration names, checked; anew where `refresh`.

    Raises:
        InkdropError: as `load_source`, or if they are points.
    """
    found = find(data)
    if isinstance(found, Source):
        train = found.train
        points = "; train on them with a preset such as points-gmm"
        raise InkdropError(
            f"{train.name}: {train.noun}s of {train.size} need no check"
            + (points if isinstance(train, PointSet) else "")
        )
    return look_at(found, data, place_of(data), console, refresh=refresh)


def look_at(
    found: Found,
    data: DataConfig,
    origin: str,
    console: Console | None = None,
    *,
    refresh: bool = False,
) -> Seen:
    """What was found, checked; the console is told what it is."""
    if data.background != "auto":
        parse_colour(data.background)  # a mistake there is not to wait for the check
    say(console, found.description)
    for note in (*found.train.notes, *(found.test.notes if found.test else ())):
        say(console, f"  {note}")
    glanced = data.streaming and found.train.sequential
    if glanced:
        say(console, f"  too large to check: its size is that of its first {_GLANCE:,} images")
    looked_at = _heads(found) if glanced else found
    report = check(looked_at, console=console, workers=data.workers, refresh=refresh)
    if data.bad_images == "stop":
        stop_for_bad(report, console)
    proposal = propose(report, data)
    return Seen(found, origin, report, proposal)


def prepare(seen: Seen, data: DataConfig, console: Console | None = None) -> Loaded:
    """What was seen as examples of one size."""
    found, report, proposal = seen.found, seen.check, seen.proposal
    for done in (proposal.reasons, converted(report)):
        if done:
            say(console, "  " + "; ".join(done))
    train = _examples(found.train, report.train, proposal.transform, data, console)
    test = None
    if found.test is not None and report.test is not None:
        test = _examples(found.test, report.test, proposal.transform, data, console)
    return Loaded(Source(train, test), seen.origin, report, proposal)


def load_own(given: Any, data: DataConfig, console: Console | None = None) -> Loaded:
    """What a person has in Python, as examples of one size.

    Args:
        given: a `Source`; an `ImageSet` or a `PointSet`; an array or tensor of images (N, H, W),
            (N, H, W, C) or (N, C, H, W), or of points (N, D), alone or in a pair with labels (N,);
            or a sequence or map-style data set of images, with labels or without: see `Sequenced`.

    Raises:
        InkdropError: for anything else, or as `load_source`.
    """
    if isinstance(given, Source):
        return Loaded(given, "memory")
    if isinstance(given, Examples):
        return Loaded(Source(given, None), "memory")
    array, labels = _array(given), None
    if isinstance(given, tuple) and len(given) == 2 and np.ndim(given[1]) == 1:
        array, labels = _array(given[0]), _array(given[1])
    if array is not None:
        if array.ndim == 2 and array.dtype.kind == "f":
            told = None if labels is None else torch.from_numpy(labels.astype(np.int64))
            points = PointSet(torch.from_numpy(array.astype(np.float32)), told, "points")
            return Loaded(Source(points, None), "memory")
        images = from_array(array, labels, "images", "an array in Python")
        return prepare(look_at(Found(images, None), data, "memory", console), data, console)
    if not (hasattr(given, "__len__") and hasattr(given, "__getitem__")):
        raise InkdropError(
            "source must be a Source, an ImageSet, an array, a tensor, a sequence of images or a "
            f"map-style data set, got {type(given).__name__}"
        )
    found = Found(Sequenced(given), None)
    return prepare(look_at(found, data, "memory", console), data, console)


def _array(given: Any) -> NDArray[Any] | None:
    if isinstance(given, Tensor):
        if given.ndim == 4 and given.shape[1] in (1, 3, 4):
            given = given.permute(0, 2, 3, 1)  # a tensor's channels come first, where they can
        given = given.detach().cpu().numpy()
    return given if isinstance(given, np.ndarray) else None


def _heads(found: Found) -> Found:
    test = None if found.test is None else Head(found.test, _GLANCE)
    return Found(Head(found.train, _GLANCE), test)


def _examples(
    collection: Collection,
    part: Part,
    transform: Transform,
    data: DataConfig,
    console: Console | None,
) -> Examples:
    skip = part.skipped
    if data.streaming:
        kept = np.setdiff1d(np.arange(len(collection)), sorted(skip)).astype(np.int64)
        content = collection.identity() if collection.sequential else part.content
        text = f"{content} {transform.key} {len(kept)} {sorted(skip)}"
        return StreamedImages(
            collection,
            kept,
            transform,
            hashlib.sha256(text.encode()).hexdigest(),
            data.window,
            data.workers,
        )
    if not skip and isinstance(collection, Arrays) and data.memory != "mapped":
        images = _as_they_are(collection, transform)
        if images is not None:
            return images
    return cached_images(
        collection, part.content, transform, skip, console=console, workers=data.workers
    )


def _as_they_are(arrays: Arrays, transform: Transform) -> ImageSet | None:
    """Pixels that need no transform and fit in memory."""
    pixels = arrays.pixels if arrays.pixels.ndim == 4 else arrays.pixels[..., None]
    wanted = (transform.height, transform.width, transform.channels)
    if pixels.dtype != np.uint8 or pixels.shape[1:] != wanted:
        return None
    if pixels.nbytes > _SHARE_OF_MEMORY * psutil.virtual_memory().available:
        return None
    images = torch.from_numpy(np.array(pixels.transpose(0, 3, 1, 2), order="C"))
    labels = None if arrays.labels is None else torch.from_numpy(arrays.labels)
    made = ImageSet(images, labels, arrays.name)
    if arrays.class_names:
        made.__dict__["classes"] = len(arrays.class_names)
    return made
