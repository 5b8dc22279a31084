"""The real examples that a run's own are held against."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ..config import OWN_IMAGES
from ..data.images import Source
from ..data.pixels import to_uint8
from ..data.points import MIXTURES
from ..errors import InkdropError
from ..evaluation.measures import Measure, Modes, floor, image_measures, point_measures
from ..randomness import generator
from ..run import Run

_PAIRS = 4  # of true sets, whose distances are averaged

Floats = NDArray[np.float64]


@dataclass(frozen=True)
class Truth:
    """All examples of a data set, training and test.

    Attributes:
        values: (N, …) as `Examples.values`.
        modes: the mixture they are drawn from, where it is known.
    """

    values: Tensor
    modes: Modes | None

    def pairs(self, n: int) -> Iterator[tuple[Floats, Floats]]:
        """A few pairs of disjoint sets (n, D) of real examples; always the same ones.

        Raises:
            InkdropError: if there are not two times n.
        """
        if not 1 <= n <= len(self.values) // 2:
            raise InkdropError(
                f"n must lie between 1 and {len(self.values) // 2:,}, half of the data's "
                f"{len(self.values):,} examples, got {n}"
            )
        for pair in range(_PAIRS):
            chosen = generator(0, "true pairs", pair).permutation(len(self.values))[: 2 * n]
            rows = as_rows(self.values[torch.from_numpy(chosen)])
            yield rows[:n], rows[n:]

    def measures(self, n: int) -> dict[str, Measure]:
        """What is measured of n examples."""
        if self.values.ndim == 4:
            return image_measures()
        return point_measures(self.real(n), self.modes)

    def real(self, n: int) -> Floats:
        """n real examples (n, D): the first of the first of `pairs`."""
        return next(self.pairs(n))[0]

    def floor(self, n: int, measures: dict[str, Measure] | None = None) -> dict[str, float]:
        """What n real examples get where they are measured as generated ones are.

        Args:
            measures: those of n examples, where they are at hand.
        """
        return floor(measures or self.measures(n), self.pairs(n))


def truth_of(run: Run, source: Source | None = None) -> Truth | None:
    """The data that a run was trained on, or None where it was the user's own and is not given.

    Raises:
        InkdropError: if it is not the data that the run was trained on.
    """
    name = run.config.data.source
    if source is None and name == OWN_IMAGES:
        return None
    source = run.load_data(source=source).source
    parts = [source.train] if source.test is None else [source.train, source.test]
    mixture = None if run.config.data.path else MIXTURES.get(name)
    return Truth(
        torch.cat([part.values for part in parts]), None if mixture is None else Modes(*mixture)
    )


def as_rows(examples: Tensor) -> Floats:
    """Examples as vectors (N, D) that are measured: pixels of 0 … 255, or points as they are.

    Args:
        examples: of a data set, or generated: images (N, C, H, W) uint8 or in [-1, 1], or (N, D).
    """
    if examples.ndim == 4 and examples.is_floating_point():
        examples = to_uint8(examples)
    rows: Floats = examples.flatten(1).cpu().numpy().astype(np.float64)
    return rows
