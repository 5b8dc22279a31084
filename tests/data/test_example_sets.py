"""What becomes of pixels and points on their way to a network."""

import torch

from inkdrop.data.examples import to_x_start
from inkdrop.data.pixels import to_float


def test_pixels_come_to_lie_between_minus_one_and_one():
    pixels = torch.arange(256, dtype=torch.uint8).reshape(1, 1, 16, 16)
    assert torch.equal(to_x_start(pixels), to_float(pixels))
    assert to_x_start(pixels).aminmax() == (-1, 1)


def test_points_stay_as_they_are():
    points = torch.tensor([[-3.0, 7.0]])
    assert torch.equal(to_x_start(points), points)
