"""A search for copies of training examples among samples."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from rich.console import Console

from .data.examples import Examples
from .evaluation.features import FeatureSet
from .evaluation.memorisation import judge, nearest
from .evaluation.record import Memorisation, Nearest
from .extracting import features_of
from .measuring import PIXELS, Measuring
from .processes import Processes

_WORK = 4e11  # products that a search among pixels may take: some 20 s of two cores
_BYTES = 2**28  # of samples' pixels that are held for it
_FEWEST, _MOST = 1000, 10_000  # samples, and held-out examples, that are looked at
_CHUNK = 4096  # images that are copied at once

Rows = NDArray[Any]


@dataclass(frozen=True)
class Copies:
    """What samples are held against.

    Attributes:
        wanted: how many samples are looked for among the training examples' pixels.
        train, held_out: their pixels (M, D) and (H, D), uint8.
        train_features, held_out_features: (M, D′) and (H, D′); None where features are pixels.
        count: of training examples; behind them, where training mirrored images, come their mirror
            images.
    """

    wanted: int
    train: Rows
    held_out: Rows
    train_features: Rows | None
    held_out_features: Rows | None
    count: int

    @staticmethod
    def of(
        train: Examples,
        held_out: Examples,
        by: Measuring,
        samples: int,
        mirrored: bool,
        processes: Processes,
        folder: Path,
        console: Console | None = None,
    ) -> Copies:
        """Against these examples of a run.

        Args:
            mirrored: whether training mirrored images.
            folder: for files that are of use as long as this is.
        """
        numbers = math.prod(train.shape)
        total = len(train) * (2 if mirrored else 1)
        bearable = max(_FEWEST, int(_WORK / (total * numbers)))
        wanted = min(samples, _MOST, bearable, max(1, _BYTES // numbers))
        few = held_out.take(range(min(len(held_out), _MOST, bearable)))
        found = near = None
        if by.extractor is not None and by.extractor.name != PIXELS:
            found = by.of_real(train, processes, console, "training images").values
            if mirrored:
                flipped = features_of(
                    by.extractor, train, processes, console, mirrored=True, what="mirrored images"
                )
                found = np.concatenate([found, flipped.values])
            near = by.of_real(few, processes, console, "held-out images").values
        nothing = np.empty((0, numbers), np.uint8)  # only the first process judges
        pixels = _rows(train, folder / "train", mirrored) if processes.first else nothing
        return Copies(wanted, pixels, few.values.flatten(1).numpy(), found, near, len(train))

    def judged(self, features: FeatureSet, pixels: Rows) -> Memorisation:
        """Whether samples are copies, by all their features and the first ones' pixels (P, D)."""
        found = [self._folded(nearest(pixels, self.train, self.held_out, "pixels"))]
        if self.train_features is not None and self.held_out_features is not None:
            looked_at = features.values[: self.wanted]
            found.append(
                self._folded(
                    nearest(looked_at, self.train_features, self.held_out_features, "features")
                )
            )
        return judge(found, samples=self.wanted, held_out=len(self.held_out))

    def picture(self, index: int, example: Examples, sample: torch.Tensor) -> torch.Tensor:
        """Training example `index`, uint8 (C, H, W), mirrored if it is nearer to a sample so."""
        image = example.at([index])[0]
        if len(self.train) == self.count:
            return image
        apart = [
            float((sample.float() - side.float()).square().sum())
            for side in (image, image.flip(-1))
        ]
        return image if apart[0] <= apart[1] else image.flip(-1)

    def _folded(self, found: Nearest) -> Nearest:
        """With a mirror image named as the example it is of."""
        pairs = [(i, j % self.count, distance) for i, j, distance in found.pairs]
        return replace(found, pairs=pairs)


def _rows(examples: Examples, file: Path, mirrored: bool) -> Rows:
    """The pixels (M, D) of all, and of their mirror images behind; in a file if not in memory."""
    if examples.in_memory and not mirrored:
        return examples.values.flatten(1).numpy()
    count = len(examples)
    shape = (count * (2 if mirrored else 1), math.prod(examples.shape))
    rows = np.lib.format.open_memmap(file, mode="w+", dtype=np.uint8, shape=shape)
    for first in range(0, count, _CHUNK):
        images = examples.at(np.arange(first, min(first + _CHUNK, count)))
        rows[first : first + len(images)] = images.flatten(1).numpy()
        if mirrored:
            rows[count + first :][: len(images)] = images.flip(-1).flatten(1).numpy()
    return rows
