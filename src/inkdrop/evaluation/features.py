"""What an extractor makes of images: vectors to compare sets by."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..errors import InkdropError

Floats32 = NDArray[np.float32]


@dataclass(frozen=True, eq=False)
class FeatureSet:
    """Features of images, of one batch or of a whole set.

    Attributes:
        values: (N, D) float32, in memory or a `np.memmap`.
        logits: (N, K) of the extractor's classes, where it has any.

    Raises:
        InkdropError: if the shapes do not fit.
    """

    values: Floats32
    logits: Floats32 | None = None

    def __post_init__(self) -> None:
        logits = self.logits
        if self.values.ndim != 2 or (
            logits is not None and (logits.ndim != 2 or len(logits) != len(self.values))
        ):
            raise InkdropError(
                "features must be (N, D) and logits (N, K), got "
                f"{self.values.shape} and {None if logits is None else logits.shape}"
            )

    def __len__(self) -> int:
        return len(self.values)

    @property
    def features(self) -> int:
        """D, how many numbers an image becomes."""
        return int(self.values.shape[1])

    @property
    def classes(self) -> int | None:
        """K, or None without logits."""
        return None if self.logits is None else int(self.logits.shape[1])

    def take(self, rows: Any) -> FeatureSet:
        """These rows (indices, a mask or a slice) as a set of their own."""
        logits = None if self.logits is None else np.asarray(self.logits[rows])
        return FeatureSet(np.asarray(self.values[rows]), logits)


def chunks(x: NDArray[Any], budget: int = 2**26) -> Iterator[NDArray[np.float64]]:
    """The rows of x (N, …) in order as float64, no more than `budget` bytes at once."""
    rows = max(1, budget // 8 // max(1, x[:1].size))
    for start in range(0, len(x), rows):
        yield np.asarray(x[start : start + rows], dtype=np.float64)
