"""The order of the training examples: batch k is a pure function of (seed, k)."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from ..errors import InkdropError
from ..randomness import generator
from .examples import Examples, to_x_start
from .images import ImageSet


class Batch(NamedTuple):
    """x_start (B, C, H, W) in [-1, 1] or (B, D), float32; labels (B,) int64 or None."""

    x_start: Tensor
    labels: Tensor | None


class Stream:
    """Batches of a set that is kept on the device, images as uint8.

    Each epoch is a new permutation, and batches run on from one epoch into the next, so that every
    example is seen once in each. There is no state: asking again gives the same batch.

    Args:
        examples: the set.
        batch_size: examples of a batch.
        seed: names the order and the augmentation.
        horizontal_flip: mirror half of the images.
        shift: move each image by up to this many pixels each way, repeating its edges.
        device: where the set is kept and batches are made.

    Raises:
        InkdropError: for a flip or a shift of what are no images.
    """

    def __init__(
        self,
        examples: Examples,
        batch_size: int,
        seed: int,
        *,
        horizontal_flip: bool = False,
        shift: int = 0,
        device: torch.device | str = "cpu",
    ) -> None:
        if (horizontal_flip or shift) and not isinstance(examples, ImageSet):
            raise InkdropError(
                f"{examples.name}: {examples.noun}s cannot be flipped or shifted, got "
                f"horizontal_flip = {horizontal_flip} and shift = {shift}: only images can; leave "
                "both out"
            )
        self.batch_size = batch_size
        self.seed = seed
        self.horizontal_flip = horizontal_flip
        self.shift = shift
        self._values = examples.values.to(device)
        self._labels = None if examples.labels is None else examples.labels.to(device)
        self._epoch = -1
        self._permutation = np.empty(0, dtype=np.int64)

    def indices(self, step: int) -> np.ndarray:
        """The examples of batch `step`, as indices (B,) into the set."""
        count = len(self._values)
        positions = np.arange(step * self.batch_size, (step + 1) * self.batch_size)
        epochs, places = np.divmod(positions, count)
        indices = np.empty(self.batch_size, dtype=np.int64)
        for epoch in np.unique(epochs):
            here = epochs == epoch
            indices[here] = self._order(int(epoch))[places[here]]
        return indices

    def batch(self, step: int) -> Batch:
        """Batch `step`, augmented."""
        indices = torch.from_numpy(self.indices(step)).to(self._values.device)
        values = self._values[indices]
        if self.horizontal_flip or self.shift:
            values = self._moved(values, step)
        labels = None if self._labels is None else self._labels[indices]
        return Batch(to_x_start(values), labels)

    def _order(self, epoch: int) -> np.ndarray:
        if epoch != self._epoch:
            self._permutation = generator(self.seed, "order", epoch).permutation(len(self._values))
            self._epoch = epoch
        return self._permutation

    def _moved(self, images: Tensor, step: int) -> Tensor:
        batch, _, height, width = images.shape
        draws = generator(self.seed, "augmentation", step)
        offsets = draws.integers(-self.shift, self.shift + 1, size=(2, batch, 1))
        flips = draws.random((batch, 1)) < (0.5 if self.horizontal_flip else 0)
        rows = np.clip(np.arange(height) + offsets[0], 0, height - 1)
        columns = np.clip(np.arange(width) + offsets[1], 0, width - 1)
        columns = np.where(flips, columns[:, ::-1], columns)
        device = images.device
        return images[
            torch.arange(batch, device=device)[:, None, None],
            :,
            torch.from_numpy(rows).to(device)[:, :, None],
            torch.from_numpy(columns).to(device)[:, None, :],
        ].permute(0, 3, 1, 2)


def held_out_split(
    train: Examples, test: Examples | None, wanted: int
) -> tuple[Examples, Examples | None]:
    """The examples to train on, and up to `wanted` for the held-out loss.

    They come from the test set where there is one. Otherwise up to a tenth of the training examples
    is set aside, the same ones for every seed; none when there are fewer than ten.
    """
    pool = train if test is None else test
    order = generator(0, "held out").permutation(len(pool))
    if test is not None:
        return train, test.take(order[:wanted])
    count = min(wanted, len(train) // 10)
    if count == 0:
        return train, None
    return train.take(np.sort(order[count:])), train.take(order[:count])
