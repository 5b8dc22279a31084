"""Images and points as NumPy arrays: .npy and .npz files, and arrays from Python.

    shape           (N, H, W), (N, H, W, C) or (N, C, H, W) with C = 1, 3 or 4
    uint8, uint16   as they are; what is mapped stays mapped
    bool            0 and 255
    floats          0 … 1 or -1 … 1, scaled to 0 … 255; or whole numbers 0 … 255
    integers        0 … 255
    floats (N, D)   points

Anything else is refused. A .npz file can hold labels and a test set by the names that Keras and
MedMNIST give them.

Nothing here imports torch: it runs in worker processes.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from ...errors import InkdropError
from ..places import files_identity
from .collection import Arrays, Found, Pixels
from .npy import Npz, Stored, check_room, in_memory, map_npy

_CHANNELS = (1, 3, 4)
_SLACK = 1e-5  # how far float32 strays outside 0 … 1; once scaled and rounded it is gone
_AS_THEY_ARE = (np.dtype(np.uint8), np.dtype(np.uint16))
_SHAPES = "images are (N, H, W), (N, H, W, C) or (N, C, H, W) with C = 1, 3 or 4"

# Images, labels, test images, test labels, validation images.
_SETS = (
    ("x_train", "y_train", "x_test", "y_test", "x_val"),
    ("train_images", "train_labels", "test_images", "test_labels", "val_images"),
)
_IMAGES = ("x", "images", "data", "arr_0")
_LABELS = ("y", "labels", "label")
_UNSURE_LABELS = "arr_1"  # savez numbers what it is not told the name of


class Points(NamedTuple):
    """Points as they were found.

    Attributes:
        values: (N, D) float32, finite.
        labels: (N,) int64, 0 or more; None for points without labels.
        name: what messages call the set.
        identity: as `Collection.identity` gives it.
        class_names: the names of classes 0 … K-1; empty where they have none.
    """

    values: NDArray[np.float32]
    labels: NDArray[np.int64] | None
    name: str
    identity: str
    class_names: tuple[str, ...] = ()


class MappedArrays(Arrays):
    """Images in a .npy file, mapped where they are needed. Pickles as its path.

    Args:
        path: the file.
        axes: the order of its axes as (N, H, W) or (N, H, W, C).
        labels, name, kind, notes: as for every collection.
    """

    def __init__(
        self, path: Path, axes: tuple[int, ...], name: str, kind: str, notes: Sequence[str]
    ) -> None:
        self._path = path.absolute()
        self._axes = axes
        mapped = map_npy(path).transpose(axes)
        super().__init__(mapped, None, name, kind, notes=notes, identity=files_identity([path]))

    @cached_property
    def pixels(self) -> Pixels:  # type: ignore[override]
        """The images; mapped again in another process, where they are first asked for.

        Raises:
            InkdropError: if the file has changed by then.
        """
        if files_identity([self._path]) != self.identity():
            raise InkdropError(f"{self._path} has changed since it was opened: start again")
        return map_npy(self._path).transpose(self._axes)

    def __getstate__(self) -> dict[str, object]:
        return {key: value for key, value in self.__dict__.items() if key != "pixels"}


def find_arrays(path: Path) -> Found | Points:
    """The images, or points, in a .npy or .npz file.

    A .npy file of uint8 or uint16 is mapped; all else is read into memory as uint8.

    Raises:
        InkdropError: if it is damaged or holds objects, or its array is of another shape or range;
            for a .npz file also if it is unclear which of its arrays are the images.
    """
    if path.suffix.lower() == ".npz":
        return _in_npz(path)
    array = map_npy(path)
    stored = in_memory(array, str(path))
    if _are_points(stored):
        return _points(stored, None, path)
    axes, notes = _layout(stored)
    if array.dtype in _AS_THEY_ARE:
        return Found(MappedArrays(path, axes, path.name, "a .npy file", notes), None)
    images = _images(stored, None, path.name, "a .npy file", files_identity([path]))
    return Found(images, None)


def from_array(
    array: NDArray[Any],
    labels: NDArray[Any] | None,
    name: str,
    kind: str,
    identity: str | None = None,
) -> Arrays:
    """The images of an array, and their labels.

    Args:
        array: (N, H, W), (N, H, W, C) or (N, C, H, W); not copied if it is of uint8 or uint16.
        labels: (N,) or (N, 1), whole numbers of 0 or more.
        name, kind, identity: as for every collection.

    Raises:
        InkdropError: if an array has another shape, type or range.
    """
    images = _images(in_memory(array, name), None, name, kind, identity)
    if labels is not None:
        images.labels = _checked_labels(in_memory(labels, f"{name}: labels"), len(images))
    return images


# Images


def _images(
    stored: Stored,
    labels: NDArray[np.int64] | None,
    name: str,
    kind: str,
    identity: str | None,
    span: _Span | None = None,
) -> Arrays:
    axes, notes = _layout(stored)
    pixels, note = _to_pixels(stored, span)
    return Arrays(
        pixels.transpose(axes), labels, name, kind, notes=(*notes, *note), identity=identity
    )


def _layout(stored: Stored) -> tuple[tuple[int, ...], list[str]]:
    """The axes in the order (N, H, W) or (N, H, W, C)."""
    shape = stored.shape
    if 0 in shape:
        raise InkdropError(f"{stored.place}: empty: an array of shape {shape}")
    if len(shape) == 3:
        if shape[2] in (3, 4) and min(shape[:2]) > 4:
            raise InkdropError(
                f"{stored.place}: {shape} looks like one image in colour, not like many in grey: "
                f"{_SHAPES}"
            )
        return (0, 1, 2), []
    if len(shape) == 2:
        raise InkdropError(_two_dimensions(stored))
    if len(shape) != 4 or not (shape[1] in _CHANNELS or shape[3] in _CHANNELS):
        raise InkdropError(f"{stored.place}: an array of shape {shape}: {_SHAPES}")
    last, first = (0, 1, 2, 3), (0, 2, 3, 1)
    if shape[1] not in _CHANNELS:
        return last, []
    if shape[3] not in _CHANNELS:
        return first, []
    # Both can be channels. Images are more often square than not.
    square_first = shape[2] == shape[3] and shape[1] != shape[2]
    read = "(N, C, H, W)" if square_first else "(N, H, W, C)"
    return first if square_first else last, [f"its shape {shape} is taken as {read}"]


def _two_dimensions(stored: Stored) -> str:
    rows, columns = stored.shape
    message = f"{stored.place}: {stored.dtype} of shape {stored.shape}: points must be floats"
    for channels in (1, 3):
        side = math.isqrt(columns // channels)
        if side > 1 and channels * side**2 == columns:
            shape = f"({rows}, {side}, {side})" if channels == 1 else f"({rows}, 3, {side}, {side})"
            return f"{message}; if these are images, reshape them to {shape}"
    return f"{message}, and {_SHAPES}"


class _Span(NamedTuple):
    """The least and greatest value, and whether all are whole numbers."""

    least: float
    most: float
    whole: bool


def _to_pixels(stored: Stored, span: _Span | None) -> tuple[Pixels, list[str]]:
    """The array as uint8 or uint16 of the same shape, and what was done to it.

    Args:
        span: of its values and of those that are to be scaled alike, if it is known.
    """
    dtype = stored.dtype
    if dtype in _AS_THEY_ARE:
        return stored.whole(), []
    if dtype.kind == "u" and dtype.itemsize == 2:
        return stored.whole().astype(np.uint16), []
    if dtype.kind not in "buif":
        raise InkdropError(f"{stored.place}: {dtype} is no type of images: use uint8, or floats")
    if dtype.kind == "b":
        return _converted(stored, 255, 0), ["its booleans became 0 and 255"]
    found = span or _span(stored)
    values = f"{found.least:g} … {found.most:g}"
    if dtype.kind == "f" and found.least >= -_SLACK and found.most <= 1 + _SLACK:
        return _converted(stored, 255, 0), [f"its {dtype}, {values}, became 0 … 255 (0 … 1 scaled)"]
    if dtype.kind == "f" and found.least >= -1 - _SLACK and found.most <= 1 + _SLACK:
        note = f"its {dtype}, {values}, became 0 … 255 (-1 … 1 scaled)"
        return _converted(stored, 127.5, 1), [note]
    if found.whole and found.least >= 0 and found.most <= 255:
        return _converted(stored, 1, 0), [f"its {dtype}, {values}, became uint8"]
    allowed = "0 … 255" if dtype.kind in "ui" else "0 … 1, -1 … 1, or whole numbers 0 … 255"
    raise InkdropError(
        f"{stored.place}: {dtype} with values {values}: they must be {allowed}: scale them first"
    )


def _span(stored: Stored) -> _Span:
    least, most, whole, seen = math.inf, -math.inf, True, 0
    for chunk in stored.chunks():
        with np.errstate(invalid="ignore"):
            low, high = chunk.min().item(), chunk.max().item()
        if not (math.isfinite(low) and math.isfinite(high)):
            finite = np.isfinite(chunk.reshape(len(chunk), -1)).all(axis=1)
            raise InkdropError(
                f"{stored.place}: image {seen + int(finite.argmin())} has values that are not "
                "finite (NaN or infinite)"
            )
        least, most = min(least, low), max(most, high)
        whole = whole and (chunk.dtype.kind != "f" or bool((chunk == np.rint(chunk)).all()))
        seen += len(chunk)
    return _Span(least, most, whole)


def _converted(stored: Stored, scale: float, shift: int) -> NDArray[np.uint8]:
    """(x + shift) · scale, rounded, a chunk at a time."""
    check_room(math.prod(stored.shape), stored.place)
    pixels = np.empty(stored.shape, np.uint8)
    start = 0
    for chunk in stored.chunks():
        if scale != 1:
            chunk = chunk.astype(np.float64 if chunk.dtype.itemsize > 4 else np.float32)
            chunk += shift
            chunk *= scale
            chunk = np.rint(chunk)
        pixels[start : start + len(chunk)] = chunk
        start += len(chunk)
    return pixels


def _checked_labels(stored: Stored, count: int) -> NDArray[np.int64]:
    if stored.shape not in ((count,), (count, 1)):
        raise InkdropError(
            f"{stored.place}: labels must have the shape ({count},) or ({count}, 1), one for each, "
            f"got {stored.shape}"
        )
    if stored.dtype.kind not in "biu":
        raise InkdropError(
            f"{stored.place}: labels must be whole numbers, got {stored.dtype}: leave them out if "
            "they are no classes"
        )
    labels = stored.whole().reshape(count)
    outside = (labels < 0) | (labels > np.iinfo(np.int64).max)
    if outside.any():
        first = int(outside.argmax())
        raise InkdropError(
            f"{stored.place}: labels must be 0 or more, but label {first} is {labels[first]}"
        )
    return labels.astype(np.int64)


# Points


def _are_points(stored: Stored) -> bool:
    return len(stored.shape) == 2 and stored.dtype.kind == "f"


def _points(stored: Stored, labels: Stored | None, path: Path) -> Points:
    if 0 in stored.shape:
        raise InkdropError(f"{stored.place}: empty: an array of shape {stored.shape}")
    with np.errstate(over="ignore"):
        values = stored.whole().astype(np.float32)
    finite = np.isfinite(values).all(axis=1)
    if not finite.all():
        raise InkdropError(
            f"{stored.place}: point {int(finite.argmin())} is not finite (NaN, infinite, or beyond "
            "float32)"
        )
    checked = None if labels is None else _checked_labels(labels, len(values))
    return Points(values, checked, path.name, files_identity([path]))


# Which of a .npz file's arrays


class _Chosen(NamedTuple):
    """What to take of a file."""

    images: Stored
    labels: Stored | None
    test_images: Stored | None
    test_labels: Stored | None


def _in_npz(path: Path) -> Found | Points:
    npz = Npz(path)
    if not npz.arrays and npz.refused:
        raise InkdropError(next(iter(npz.refused.values())))
    chosen, notes = _chosen(npz)
    if _are_points(chosen.images):
        if chosen.test_images is not None:
            raise InkdropError(f"{path}: points in two parts: save each to a file of its own")
        return _points(chosen.images, chosen.labels, path)
    span = _common_span(chosen)
    parts = []
    for part, images, labels in (
        ("train", chosen.images, chosen.labels),
        ("test", chosen.test_images, chosen.test_labels),
    ):
        if images is None:
            continue
        name = path.name if chosen.test_images is None else f"{path.name} {part}"
        checked, label_notes = _labels(labels, images.shape[0])
        identity = f"{files_identity([path])} {part}"
        found = _images(images, checked, name, "a .npz file", identity, span)
        found.notes += tuple(label_notes)
        parts.append(found)
    train, *test = parts
    train.notes += tuple(notes)
    return Found(train, test[0] if test else None)


def _common_span(chosen: _Chosen) -> _Span | None:
    """Of training and test images as floats: what is -1 … 1 in one is so in the other."""
    images, tests = chosen.images, chosen.test_images
    for stored in (images, tests):
        if stored is not None:
            _layout(stored)  # refused before much is read
    if tests is None or not images.dtype.kind == tests.dtype.kind == "f":
        return None
    one, other = _span(images), _span(tests)
    return _Span(min(one.least, other.least), max(one.most, other.most), one.whole and other.whole)


def _labels(stored: Stored | None, count: int) -> tuple[NDArray[np.int64] | None, list[str]]:
    if stored is None:
        return None, []
    if len(stored.shape) == 2 and stored.shape[1] > 1 and stored.shape[0] == count:
        place = stored.place.rpartition(": ")[2]
        return None, [f"no labels: {place} has {stored.shape[1]} for each image"]
    return _checked_labels(stored, count), []


def _chosen(npz: Npz) -> tuple[_Chosen, list[str]]:
    """The arrays that are images and labels, and notes on those that are neither."""
    lower = {name.lower(): stored for name, stored in npz.arrays.items()}
    if len(lower) < len(npz.arrays):
        raise InkdropError(f"{npz.path}: names that differ only in case: {', '.join(npz.arrays)}")
    for images, labels, test_images, test_labels, validation in _SETS:
        if images not in lower:
            continue
        notes = []
        if test_images not in lower and validation in lower:
            test_images, test_labels = validation, test_labels.replace("test", "val")
            notes.append("the validation images are taken as test images, for there are no others")
        names = (images, labels, test_images, test_labels)
        for name in names:
            if name in npz.refused:
                raise InkdropError(npz.refused[name])
        return _Chosen(lower[images], *map(lower.get, names[1:])), [*notes, *_unused(npz, names)]
    name = _image_name(npz, lower)
    likely = [label for label in _LABELS if label in lower or label in npz.refused]
    if len(likely) > 1:
        raise InkdropError(f"{npz.path}: which are the labels, {' or '.join(likely)}? Keep one")
    if not likely and name == "arr_0" and _are_labels(lower.get(_UNSURE_LABELS), lower[name]):
        likely = [_UNSURE_LABELS]
    for label in likely:
        if label in npz.refused:
            raise InkdropError(npz.refused[label])
    found = lower[likely[0]] if likely else None
    return _Chosen(lower[name], found, None, None), _unused(npz, (name, *likely))


def _image_name(npz: Npz, lower: dict[str, Stored]) -> str:
    for wanted in (_are_images, _are_points):
        candidates = [name for name, stored in lower.items() if wanted(stored)]
        named = [name for name in candidates if name in _IMAGES]
        for names in (candidates, named):
            if len(names) == 1:
                return names[0]
        if candidates:
            break
    listed = ", ".join(f"{name} {stored.shape}" for name, stored in npz.arrays.items()) or "nothing"
    if candidates:
        raise InkdropError(
            f"{npz.path}: which are the images? Call them x_train and x_test, or only one of them "
            f"x; it holds {listed}"
        )
    if npz.refused:
        raise InkdropError(next(iter(npz.refused.values())))
    raise InkdropError(f"{npz.path}: holds no images or points, but {listed}: {_SHAPES}")


def _are_images(stored: Stored) -> bool:
    return len(stored.shape) in (3, 4) and stored.dtype.kind in "buif"


def _are_labels(stored: Stored | None, images: Stored) -> bool:
    count = images.shape[0]
    return (
        stored is not None and stored.dtype.kind in "iu" and stored.shape in ((count,), (count, 1))
    )


def _unused(npz: Npz, used: Sequence[str]) -> list[str]:
    left = [name for name in (*npz.arrays, *npz.refused) if name.lower() not in used]
    return [f"not used: {', '.join(left)}"] if left else []
