"""uint8 and [-1, 1] meet without loss."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from inkdrop.data.pixels import to_float, to_picture, to_uint8
from inkdrop.errors import InkdropError

ALL_LEVELS = torch.arange(256, dtype=torch.uint8)


def test_all_256_levels_survive_the_round_trip():
    assert torch.equal(to_uint8(to_float(ALL_LEVELS)), ALL_LEVELS)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_all_256_levels_survive_small_errors(dtype):
    for error in (-1e-3, 1e-3):
        assert torch.equal(to_uint8(to_float(ALL_LEVELS).to(dtype) + error), ALL_LEVELS)


def test_black_is_minus_one_and_white_is_one():
    x = to_float(ALL_LEVELS)
    assert x[0] == -1
    assert x[255] == 1
    assert x.dtype == torch.float32


def test_the_levels_are_evenly_spaced():
    torch.testing.assert_close(
        to_float(ALL_LEVELS).double(), torch.linspace(-1, 1, 256).double(), atol=1e-6, rtol=0
    )


def test_any_shape_is_kept():
    images = torch.zeros(2, 3, 5, 7, dtype=torch.uint8)
    assert to_float(images).shape == images.shape
    assert to_uint8(to_float(images)).shape == images.shape
    assert to_uint8(torch.tensor(0.0)).shape == ()


def test_values_beyond_the_range_are_clamped():
    assert to_uint8(torch.tensor([-7.0, -1.001, 1.001, 300.0])).tolist() == [0, 0, 255, 255]


@given(st.floats(-1, 1))
def test_a_value_becomes_the_nearest_level(value):
    level = int(to_uint8(torch.tensor(value, dtype=torch.float64)))
    assert abs(level - (value + 1) * 127.5) <= 0.5 + 1e-9


def test_half_precision_is_rounded_in_full_precision():
    x = torch.tensor(-1 / 1024, dtype=torch.bfloat16)  # in which 1 + x would be 1
    assert to_uint8(x).item() == 127


def test_values_that_are_not_finite_are_counted_in_the_error():
    x = torch.tensor([0.0, float("nan"), float("inf"), -float("inf"), 1.0])
    with pytest.raises(InkdropError, match="3 of 5 values are not finite") as error:
        to_uint8(x)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("dtype", [torch.float32, torch.int64])
def test_only_uint8_becomes_float(dtype):
    with pytest.raises(InkdropError, match="must be uint8"):
        to_float(torch.zeros(3, dtype=dtype))


def test_pixels_are_not_taken_for_floats():
    with pytest.raises(InkdropError, match=r"must be floating point, got torch\.uint8"):
        to_uint8(ALL_LEVELS)


@pytest.mark.parametrize(("channels", "mode"), [(1, "L"), (3, "RGB"), (4, "RGBA")])
def test_a_picture_has_the_pixels_of_its_tensor(channels: int, mode: str) -> None:
    image = torch.arange(channels * 6).to(torch.uint8).reshape(channels, 2, 3)
    picture = to_picture(image)
    assert (picture.mode, picture.size) == (mode, (3, 2))
    assert torch.equal(
        torch.tensor(np.array(picture)).reshape(2, 3, channels).permute(2, 0, 1), image
    )


def test_a_picture_of_two_channels_is_refused() -> None:
    with pytest.raises(InkdropError, match="this image has 2"):
        to_picture(torch.zeros(2, 3, 3, dtype=torch.uint8))
