"""What worker processes do to build a cache of decoded images.

Nothing here imports torch, so that they start quickly.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from ..errors import InkdropError
from .decode import BadImage, decode
from .stored.collection import Collection
from .transform import Transform

_BUFFER = 1 << 20


class Part(NamedTuple):
    """A run of a collection's images, and where their pixels go.

    Attributes:
        start, stop: the images start … stop - 1.
        row: of the first that is not left out.
        skip: which of them are left out.
        places: (stop - start, 2), where each is cropped; None for the middle.
    """

    start: int
    stop: int
    row: int
    skip: frozenset[int]
    places: NDArray[np.float64] | None


def write_part(
    collection: Collection,
    transform: Transform,
    file: Path,
    part: Part,
    advance: Callable[[int], None] | None = None,
) -> int:
    """Decode a part into the rows of `file` that are its own, and return how many images it has.

    Args:
        advance: is called with 1 after every image.

    Raises:
        InkdropError: naming the first image that cannot be decoded.
    """
    row_bytes = transform.channels * transform.height * transform.width
    with open(file, "r+b", buffering=_BUFFER) as rows:
        rows.seek(part.row * row_bytes)
        items = collection.read(part.start, part.stop)
        for index, item in zip(range(part.start, part.stop), items, strict=True):
            if index not in part.skip:
                place = (0.5, 0.5) if part.places is None else part.places[index - part.start]
                try:
                    rows.write(transform(decode(item), (float(place[0]), float(place[1]))).data)
                except BadImage as bad:
                    raise InkdropError(
                        f"{item.place}: {bad.reason}; it could be read when the images were "
                        "checked: have the files changed since? start again"
                    ) from None
            if advance is not None:
                advance(1)
    return part.stop - part.start
