"""The data that a run's examples are held against is what it was trained on."""

from pathlib import Path

import numpy as np
import pytest
import torch

import inkdrop
from inkdrop.config import DataConfig
from inkdrop.data.loading import load_source
from inkdrop.data.points import MIXTURES
from inkdrop.errors import InkdropError
from inkdrop.report.truth import Truth, as_rows, truth_of

TRUTH = Truth(torch.arange(40.0).reshape(20, 2), None)


def test_the_truth_is_all_of_the_data_and_its_mixture(points_run: Path, finished_run: Path) -> None:
    points = truth_of(inkdrop.load(points_run))
    assert points is not None
    assert points.values.shape == (60_000, 2)
    assert points.modes == MIXTURES["points-gmm"]
    digits = truth_of(inkdrop.load(finished_run))
    assert digits is not None
    assert digits.values.equal(load_source(DataConfig()).source.train.values)
    assert digits.modes is None


def test_pairs_share_no_example_and_are_always_the_same() -> None:
    pairs = list(TRUTH.pairs(10))
    assert len(pairs) > 2
    for real, other in pairs:
        together = np.concatenate([real, other])
        assert len(np.unique(together, axis=0)) == 20
    for (a, b), (c, d) in zip(pairs, TRUTH.pairs(10), strict=True):
        assert np.array_equal(a, c)
        assert np.array_equal(b, d)
    assert np.array_equal(TRUTH.real(10), pairs[0][0])
    assert not np.array_equal(pairs[0][0], pairs[1][0])


@pytest.mark.parametrize("n", [0, -1, 11])
def test_more_than_half_of_the_data_is_refused(n: int) -> None:
    with pytest.raises(InkdropError, match=f"n must lie between 1 and 10, .* got {n}"):
        TRUTH.real(n)


def test_images_are_measured_as_the_pixels_that_are_written() -> None:
    levels = torch.arange(256, dtype=torch.uint8).reshape(1, 1, 16, 16)
    expected = np.arange(256.0)[None]
    assert np.array_equal(as_rows(levels), expected)
    assert np.array_equal(as_rows(inkdrop.to_float(levels)), expected)
    assert np.array_equal(as_rows(torch.tensor([[0.3, -7.0]])), np.float32([[0.3, -7.0]]))
