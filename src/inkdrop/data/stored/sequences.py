"""Images that a person has in Python: a sequence, or a map-style `torch.utils.data.Dataset`."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping
from typing import Any, Protocol

import numpy as np
from PIL import Image, ImageOps

from ...errors import InkdropError
from .collection import MOST_CLASSES, Collection, Item, Pixels

_IMAGE_KEYS = ("image", "img", "pixel_values")
_LABEL_KEYS = ("label", "labels", "fine_label")
_WHOLE = {"L": "L", "RGB": "RGB", "RGBA": "RGBA", "I;16": "I;16"}  # modes that are arrays already


class Indexed(Protocol):
    """What has a length and items by number."""

    def __len__(self) -> int: ...
    def __getitem__(self, index: int, /) -> Any: ...


class Sequenced(Collection):
    """The items of a sequence: images, (image, label) pairs, or mappings with image and label.

    An image is a Pillow image, or an array or tensor (H, W), (H, W, C) or (C, H, W) of uint8,
    uint16, or floats that all lie in [0, 1] or all in [-1, 1]. Every pass must give the same
    images: a data set's own random transforms are to be left out. One pass is made at once, which
    finds the labels, the range of floats and a digest of it all.

    Raises:
        InkdropError: naming the first item that is none of these.
    """

    kind = "a sequence in Python"
    sequential = True  # what it reads from may be anything, so this process alone reads it

    def __init__(self, items: Indexed, name: str = "images") -> None:
        self._items = items
        self.name = name
        if len(items) == 0:
            raise InkdropError(f"{name}: empty: there are no images")
        digest = hashlib.sha256(f"{len(items)}\n".encode())
        labels: list[int | None] = []
        self._low = 0.0
        for i in range(len(items)):
            pixels, label = self._parts(i)
            if pixels.dtype.kind == "f":
                self._check_range(pixels, i)
            digest.update(f"{pixels.shape} {pixels.dtype} {label}\n".encode())
            digest.update(np.ascontiguousarray(pixels).data)
            labels.append(label)
        self._identity = digest.hexdigest()
        known = [label for label in labels if label is not None]
        if known and len(known) < len(labels):
            raise InkdropError(
                f"{name}, item {labels.index(None)}: it has no label, but others have: give all "
                "of them one, or none"
            )
        if known and min(known) < 0:
            raise InkdropError(f"{name}: labels must be 0 or more, got {min(known)}")
        if known and max(known) >= MOST_CLASSES:
            raise InkdropError(f"{name}: labels must be below {MOST_CLASSES:,}, got {max(known)}")
        self.labels = np.array(known, dtype=np.int64) if known else None

    def __len__(self) -> int:
        return len(self._items)

    def read(self, start: int, stop: int) -> Iterator[Item]:
        """Images start … stop - 1."""
        for i in range(start, stop):
            pixels, _ = self._parts(i)
            if pixels.dtype.kind == "f":
                unit = (pixels - self._low) / (1 - self._low)
                pixels = np.rint(unit * 255).astype(np.uint8)
            yield Item(f"{self.name}, item {i}", pixels)

    def identity(self) -> str:
        """Of all pixels and labels."""
        return self._identity

    def _parts(self, index: int) -> tuple[Pixels, int | None]:
        place = f"{self.name}, item {index}"
        image, label = _image_and_label(self._items[index], place)
        return _pixels(image, place), _whole(label, place)

    def _check_range(self, pixels: Pixels, index: int) -> None:
        low, high = float(pixels.min()), float(pixels.max())
        if not (low >= -1 and high <= 1):
            raise InkdropError(
                f"{self.name}, item {index}: floats must lie in [0, 1] or [-1, 1], got "
                f"{low:g} … {high:g}"
            )
        if low < 0:
            self._low = -1.0


def _image_and_label(item: Any, place: str) -> tuple[Any, Any]:
    if isinstance(item, Mapping):
        image = next((item[key] for key in _IMAGE_KEYS if key in item), None)
        if image is None:
            raise InkdropError(
                f"{place}: a mapping needs a key {' or '.join(_IMAGE_KEYS)}, got "
                f"{', '.join(map(str, item)) or 'none'}"
            )
        return image, next((item[key] for key in _LABEL_KEYS if key in item), None)
    if isinstance(item, (tuple, list)):
        if len(item) == 2:
            return item[0], item[1]
        if len(item) == 1:
            return item[0], None
        raise InkdropError(f"{place}: expected an image or (image, label), got {len(item)} things")
    return item, None


def _pixels(image: Any, place: str) -> Pixels:
    """(H, W) or (H, W, C)."""
    if isinstance(image, Image.Image):
        image = ImageOps.exif_transpose(image)
        if image.mode == "F":
            return _pixels(np.asarray(image), place)
        if image.mode == "I":  # 32 bits, in which Pillow holds 16
            return _pixels(_sixteen_bits(image, place), place)
        if image.mode not in _WHOLE:
            image = image.convert("RGBA" if image.has_transparency_data else "RGB")
        return np.asarray(image)
    if hasattr(image, "numpy"):
        image = image.detach().cpu().numpy() if hasattr(image, "detach") else image.numpy()
    if not isinstance(image, np.ndarray):
        raise InkdropError(
            f"{place}: expected a Pillow image, an array or a tensor, got {type(image).__name__}"
        )
    if image.dtype not in (np.uint8, np.uint16) and image.dtype.kind != "f":
        raise InkdropError(
            f"{place}: pixels must be uint8, uint16 or floats in [0, 1] or [-1, 1], got "
            f"{image.dtype}"
        )
    if image.ndim == 3 and image.shape[-1] not in (1, 3, 4) and image.shape[0] in (1, 3, 4):
        image = image.transpose(1, 2, 0)
    pixels: Pixels = image
    channels = pixels.shape[-1] if pixels.ndim == 3 else 1
    if pixels.ndim not in (2, 3) or channels not in (1, 3, 4) or pixels.size == 0:
        raise InkdropError(
            f"{place}: an image has shape (H, W), (H, W, C) or (C, H, W) with 1, 3 or 4 channels, "
            f"got {pixels.shape}"
        )
    return pixels[..., 0] if pixels.ndim == 3 and channels == 1 else pixels


def _sixteen_bits(image: Image.Image, place: str) -> Pixels:
    levels = np.asarray(image)
    low, high = levels.min(), levels.max()
    if low < 0 or high > 65535:
        raise InkdropError(f"{place}: pixels must lie in 0 … 65535, got {low} … {high}")
    return levels.astype(np.uint16)


def _whole(label: Any, place: str) -> int | None:
    if label is None:
        return None
    value = label.item() if hasattr(label, "item") else label
    if isinstance(value, bool) or not isinstance(value, int):
        raise InkdropError(f"{place}: a label must be a whole number, got {value!r}")
    return value
