"""Images in [0, 1] are noticed where [-1, 1] is meant, and nothing else is."""

import warnings

import pytest
import torch

import inkdrop
from inkdrop.data.pixels import to_float
from inkdrop.data.points import draw
from inkdrop.randomness import generator
from inkdrop.ranges import range_mistake


def pixels(n: int = 12, low: int = 0, high: int = 256) -> torch.Tensor:
    drawn = generator(0, "pixels").integers(low, high, (n, 1, 8, 8))
    return torch.from_numpy(drawn).to(torch.uint8)


def test_floats_from_pixels_scaled_to_one_are_noticed_even_one_at_a_time() -> None:
    unit = pixels() / 255
    for images in (unit, unit[:1], unit.double(), (pixels(1) > 99).float()):
        assert "[0, 1], but [-1, 1] is expected" in str(range_mistake(images))


def test_floats_between_levels_are_noticed_where_there_are_several() -> None:
    blurred = torch.nn.functional.avg_pool2d(pixels() / 255, 2)
    assert range_mistake(blurred) is not None
    assert range_mistake(blurred[:3]) is None


@pytest.mark.parametrize(
    "images",
    [
        to_float(pixels()),
        to_float(pixels(low=128)),  # bright, every one of them
        to_float(pixels(low=128)).double(),
        draw("points-rings", 50).abs() / 2,
        pixels(),
        pixels(3, high=3),
        torch.zeros(9, 1, 8, 8),
        torch.zeros(0, 1, 8, 8),
        pixels() * 1.0,
        torch.full((9, 1, 2, 2), torch.nan),
    ],
    ids=str,
)
def test_what_is_right_or_cannot_be_told_is_let_pass(images: torch.Tensor) -> None:
    assert range_mistake(images) is None


def test_uint8_of_zeros_and_ones_is_noticed() -> None:
    assert "hold only 0 and 1" in str(range_mistake(pixels(high=2)))


@pytest.fixture
def denoiser() -> inkdrop.Denoiser:
    def network(x: torch.Tensor, t: torch.Tensor, condition: object = None) -> torch.Tensor:
        return 0.5 * x

    class Half(torch.nn.Module):
        forward = staticmethod(network)

    return inkdrop.Denoiser(Half(), inkdrop.NoiseSchedule.cosine(4))


def test_the_calls_that_take_images_warn(denoiser: inkdrop.Denoiser) -> None:
    unit = pixels(4) / 255
    for call in (
        lambda x: inkdrop.invert(denoiser, x, steps=3),
        lambda x: inkdrop.bits_per_dim(denoiser, x, decoder="density"),
        lambda x: inkdrop.ode_likelihood(denoiser, x, decoder="density", tolerance=1e-2),
    ):
        with pytest.warns(UserWarning, match="is expected") as caught:
            call(unit)
        assert caught[0].filename == __file__
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            call(to_float(pixels(4)))
    with pytest.raises(inkdrop.InkdropError, match="as images in"):
        inkdrop.bits_per_dim(denoiser, unit)
