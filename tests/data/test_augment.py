"""Augmentation: what is done to each image, and what a network is told of it."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from inkdrop.data.augment import NON_LEAKING_LABELS, PADDINGS, Augmentation, Draws, affine, resample
from inkdrop.data.pixels import to_float, to_uint8
from inkdrop.errors import InkdropError
from inkdrop.randomness import generator

EVERYTHING = Augmentation(
    horizontal_flip=True, shift=2, padding="zero", rotation=20, non_leaking=0.3
)
AS_THEY_ARE = np.zeros((1, NON_LEAKING_LABELS))


def noise(*shape: int, seed: int = 0) -> torch.Tensor:
    pixels = generator(seed, "test").integers(0, 256, shape, dtype=np.uint8)
    return torch.from_numpy(pixels)


def smooth(batch: int, channels: int, height: int, width: int) -> torch.Tensor:
    """Floats in [-1, 1] without fine detail."""
    coarse = to_float(noise(batch, channels, height + 8, width + 8))
    for _ in range(2):
        coarse = torch.nn.functional.avg_pool2d(coarse, 5, 1)
    return coarse / coarse.abs().max()


def labelled(**told: float) -> np.ndarray:
    names = ("mirror", "upside_down", "scale", "cosine", "sine", "u", "v", "right", "down")
    return np.array([[told.get(name, 0.0) for name in names]])


def turn(degrees: float) -> dict[str, float]:
    return {"cosine": math.cos(math.radians(degrees)) - 1, "sine": math.sin(math.radians(degrees))}


def drawn(batch: int, **draws: object) -> Draws:
    nothing = Augmentation().draw(batch, 0, 0)
    return nothing._replace(**draws)


def mapped(images: torch.Tensor, labels: np.ndarray) -> torch.Tensor:
    """Floats in [-1, 1] after what the labels say, by way of uint8."""
    repeated = np.repeat(labels, len(images), axis=0)
    draws = drawn(len(images), labels=repeated)
    return Augmentation(non_leaking=1).apply(to_uint8(images), draws)[0]


def blob(height: int, width: int, spread: float = 3.0) -> torch.Tensor:
    """A bright Gaussian in the middle of black."""
    y = torch.arange(height)[:, None] - (height - 1) / 2
    x = torch.arange(width) - (width - 1) / 2
    return 2 * torch.exp(-(x**2 + y**2) / (2 * spread**2))[None, None] - 1


def moments(image: torch.Tensor) -> tuple[np.ndarray, np.ndarray]:
    """Centre (x, y) from the image's centre, and covariance, of the brightness above black."""
    weight = (image[0, 0].double() + 1).numpy()
    weight[weight < 0.02] = 0
    weight /= weight.sum()
    height, width = weight.shape
    x = np.arange(width) - (width - 1) / 2
    y = np.arange(height) - (height - 1) / 2
    centre = np.array([(weight * x).sum(), (weight * y[:, None]).sum()])
    dx, dy = np.broadcast_arrays(x - centre[0], y[:, None] - centre[1])
    return centre, np.array([[(weight * a * b).sum() for a in (dx, dy)] for b in (dx, dy)])


# Draws -------------------------------------------------------------------------------------------


def test_flips_and_shifts_are_drawn_offsets_first_from_one_address():
    """What they were before there was more, so that a seed keeps its batches."""
    draws = Augmentation(True, 3, rotation=5, non_leaking=0.5).draw(50, seed=7, step=11)
    address = generator(7, "augmentation", 11)
    offsets = address.integers(-3, 4, size=(2, 50, 1))
    flips = address.random((50, 1)) < 0.5
    assert np.array_equal(draws.offsets, offsets[..., 0].T)
    assert np.array_equal(draws.flips, flips[:, 0])


def test_what_is_drawn_does_not_depend_on_what_else_is_wanted():
    everything = EVERYTHING.draw(40, 3, 5)
    assert np.array_equal(Augmentation(rotation=20).draw(40, 3, 5).angles, everything.angles)
    assert np.array_equal(Augmentation(non_leaking=0.3).draw(40, 3, 5).labels, everything.labels)
    for seed, step in ((4, 5), (3, 6)):
        assert not np.array_equal(EVERYTHING.draw(40, seed, step).angles, everything.angles)


@given(
    st.integers(1, 3),
    st.integers(1, 9),
    st.integers(1, 9),
    st.sampled_from(PADDINGS),
    st.data(),
)
def test_a_process_makes_the_rows_of_the_whole_batch(channels, height, width, padding, data):
    augmentation = Augmentation(True, 3, padding, rotation=30, non_leaking=0.4)
    images = noise(7, channels, height, width)
    draws = augmentation.draw(7, seed=1, step=data.draw(st.integers(0, 5)))
    x_start, told = augmentation.apply(images, draws)
    assert x_start.shape == images.shape
    assert x_start.dtype == told.dtype == torch.float32
    assert x_start.isfinite().all()
    assert x_start.abs().max() <= 1
    first = data.draw(st.integers(0, 6))
    rows = slice(first, data.draw(st.integers(first + 1, 7)))
    mine, told_mine = augmentation.apply(images[rows], draws.of(rows))
    assert torch.equal(mine, x_start[rows])
    assert torch.equal(told_mine, told[rows])


def test_each_transformation_that_is_told_is_as_frequent_as_wanted():
    labels = Augmentation(non_leaking=0.2).draw(20_000, 0, 0).labels
    frequency = (labels != 0).mean(axis=0)
    assert frequency[0] == pytest.approx(0.5, abs=0.02)  # a mirror image is no more than a flip
    assert frequency[1] == pytest.approx(0.1, abs=0.01)
    assert frequency[2:] == pytest.approx(0.2, abs=0.015)
    together = (labels[:, [2, 4, 5, 7]] != 0).sum(axis=1)  # each for itself
    assert (together == 0).mean() == pytest.approx(0.8**4, abs=0.02)
    for pair in ((3, 4), (5, 6), (7, 8)):
        assert np.array_equal(labels[:, pair[0]] != 0, labels[:, pair[1]] != 0)


def test_the_sizes_of_what_is_told_are_those_of_the_paper():
    labels = Augmentation(non_leaking=1).draw(20_000, 0, 0).labels
    for normal in (2, 7, 8):
        assert labels[:, normal].mean() == pytest.approx(0, abs=0.03)
        assert labels[:, normal].std() == pytest.approx(1, abs=0.03)
    assert np.hypot(1 + labels[:, 3], labels[:, 4]) == pytest.approx(1)
    for cosine, sine in ((1 + labels[:, 3], labels[:, 4]), (labels[:, 5], labels[:, 6])):
        quadrants = np.histogram(np.arctan2(sine, cosine), 4, (-math.pi, math.pi))[0] / 20_000
        assert quadrants == pytest.approx(0.25, abs=0.02)
    assert (labels[:, 5:7] ** 2).sum(axis=1).mean() == pytest.approx(1, abs=0.05)


def test_angles_are_spread_evenly_within_the_limit():
    angles = Augmentation(rotation=12).draw(5_000, 0, 0).angles
    assert np.abs(angles).max() <= 12
    assert np.histogram(angles, 4, (-12, 12))[0] / 5_000 == pytest.approx(0.25, abs=0.03)


# Flips and shifts --------------------------------------------------------------------------------


def test_nothing_is_done_unless_it_is_wanted():
    augmentation, images = Augmentation(), noise(5, 3, 6, 4)
    assert not augmentation.active
    assert augmentation.labels == 0
    x_start, told = augmentation.apply(images, augmentation.draw(5, 0, 0))
    assert torch.equal(x_start, to_float(images))
    assert told is None


@pytest.mark.parametrize("padding", PADDINGS)
@pytest.mark.parametrize("shift", [1, 9])
def test_a_shift_brings_in_what_the_padding_says(padding, shift):
    images = noise(30, 2, 4, 3)
    augmentation = Augmentation(shift=shift, padding=padding)
    draws = augmentation.draw(30, 0, 0)
    x_start, told = augmentation.apply(images, draws)
    assert told is None
    mode = {"edge": "edge", "reflect": "symmetric", "zero": "constant"}[padding]
    for image, (up, left), result in zip(images.numpy(), draws.offsets, x_start, strict=True):
        padded = np.pad(image, ((0, 0), (9, 9), (9, 9)), mode=mode)
        expected = padded[:, 9 + up : 13 + up, 9 + left : 12 + left]
        assert torch.equal(result, to_float(torch.from_numpy(expected.copy())))


def test_an_image_that_is_only_flipped_keeps_its_pixels():
    augmentation, images = Augmentation(non_leaking=0.12), noise(200, 3, 8, 6)
    draws = augmentation.draw(200, 0, 0)
    x_start, told = augmentation.apply(images, draws)
    counts = {}
    for image, result, label in zip(to_float(images), x_start, told, strict=True):
        if label[2:].any():
            assert not torch.equal(result, image)
            continue
        flips = tuple(bool(flip) for flip in label[:2])
        counts[flips] = counts.get(flips, 0) + 1
        dims = [dim for dim, flip in zip((2, 1), flips, strict=True) if flip]
        assert torch.equal(result, image.flip(dims))
    assert sum(counts.values()) == pytest.approx(200 * 0.88**4, abs=25)
    assert len(counts) == 4


def test_a_flip_that_is_told_comes_after_one_that_is_not():
    augmentation = Augmentation(horizontal_flip=True, shift=1, non_leaking=1)
    images, both = noise(1, 1, 3, 5), np.array([True])
    twice = drawn(1, flips=both, labels=labelled(mirror=1), offsets=np.array([[0, 1]]))
    once = drawn(1, offsets=np.array([[0, 1]]))
    assert torch.equal(augmentation.apply(images, twice)[0], augmentation.apply(images, once)[0])


# Affine maps -------------------------------------------------------------------------------------


@given(
    st.lists(st.floats(-2, 2), min_size=5, max_size=5),
    st.floats(-180, 180),
    st.booleans(),
    st.booleans(),
)
def test_the_labels_say_all_of_the_map(numbers, degrees, mirror, upside_down):
    scale, n, direction, right, down = numbers
    told = labelled(
        mirror=mirror,
        upside_down=upside_down,
        scale=scale,
        u=n * math.cos(2 * direction),
        v=n * math.sin(2 * direction),
        right=right,
        down=down,
        **turn(degrees),
    )

    def turned(radians):  # counter-clockwise, with y down
        c, s = math.cos(radians), math.sin(radians)
        return np.array([[c, s], [-s, c]])

    stretch = np.diag([2 ** (0.2 * n), 2 ** (-0.2 * n)])
    linear = turned(direction) @ stretch @ turned(-direction) @ turned(math.radians(degrees))
    linear = linear * 2 ** (0.2 * scale) @ np.diag([1 - 2 * mirror, 1 - 2 * upside_down])
    expected = np.column_stack([linear, [0.125 * right * 40, 0.125 * down * 24]])
    assert affine(told, 24, 40)[0] == pytest.approx(expected, abs=1e-9)


def test_no_labels_are_the_identity():
    assert np.array_equal(affine(AS_THEY_ARE, 5, 9)[0], [[1, 0, 0], [0, 1, 0]])


@pytest.mark.parametrize("quarters", [1, 2, 3])
@pytest.mark.parametrize("size", [8, 21])
def test_a_quarter_turn_is_counter_clockwise_about_the_centre(quarters, size):
    images = smooth(2, 3, size, size)
    expected = torch.rot90(images, quarters, (2, 3))
    assert (mapped(images, labelled(**turn(90 * quarters))) - expected).abs().max() < 0.1
    draws = drawn(2, angles=np.full(2, 90.0 * quarters))
    turned = Augmentation(rotation=180).apply(to_uint8(images), draws)[0]
    assert (turned - expected).abs().max() < 0.1


@pytest.mark.parametrize(("height", "width"), [(48, 64), (64, 48)])
@pytest.mark.parametrize("degrees", [30, -75, 160])
def test_turning_keeps_the_shape_of_what_it_turns(height, width, degrees):
    ellipse = mapped(blob(height, width), labelled(u=3.0))  # stretched from left to right
    _, covariance = moments(mapped(ellipse, labelled(**turn(degrees))))
    wide, narrow = 9 * 2**1.2, 9 * 2**-1.2
    c, s = math.cos(math.radians(degrees)), math.sin(math.radians(degrees))
    axis = np.array([[c], [-s]])
    expected = narrow * np.eye(2) + (wide - narrow) * axis @ axis.T
    assert covariance == pytest.approx(expected, rel=0.06, abs=0.4)


@pytest.mark.parametrize("n", [-2, -1, 2, 3])
def test_scaling_changes_the_size(n):
    _, before = moments(blob(64, 80, 5))
    centre, after = moments(mapped(blob(64, 80, 5), labelled(scale=n)))
    assert centre == pytest.approx([0, 0], abs=0.02)
    assert after == pytest.approx(before * 4 ** (0.2 * n), rel=0.03, abs=0.05)


def test_translation_is_by_eighths_of_the_width_and_height():
    centre, _ = moments(mapped(blob(48, 96), labelled(right=1.3, down=-0.7)))
    assert centre == pytest.approx([1.3 * 12, -0.7 * 6], abs=0.05)


def test_a_direction_is_counter_clockwise_to_the_eye():
    diagonal = labelled(u=3 * math.cos(math.pi / 2), v=3 * math.sin(math.pi / 2))  # 45 degrees
    _, covariance = moments(mapped(blob(64, 64), diagonal))
    assert covariance[0, 1] < -5  # up to the right: y points down


def test_the_first_turn_comes_before_what_is_told():
    draws = drawn(1, angles=np.array([90.0]), labels=labelled(right=2.0))
    augmentation = Augmentation(rotation=90, non_leaking=1)
    centre, _ = moments(augmentation.apply(to_uint8(blob(64, 64)), draws)[0])
    assert centre == pytest.approx([16, 0], abs=0.05)
    mirrored_then = affine(labelled(mirror=1), 4, 4, 90.0)[0, :, :2]
    assert mirrored_then == pytest.approx(np.array([[0, -1], [-1, 0]]))


def test_what_is_non_leaking_shows_the_image_mirrored_around_its_edges():
    images = smooth(1, 1, 16, 16)
    moved = mapped(images, labelled(right=3.0))  # by 6 pixels
    expected = torch.cat([images[..., :6].flip(-1), images[..., :10]], dim=-1)
    assert (moved - expected).abs().max() < 0.1
    far = mapped(images, labelled(right=16.0))  # two widths: as it was
    assert (far - images).abs().max() < 0.1


@pytest.mark.parametrize(("padding", "corner"), [("edge", 1.0), ("reflect", 1.0), ("zero", -1.0)])
def test_a_rotation_brings_in_what_the_padding_says(padding, corner):
    white = torch.full((1, 1, 24, 24), 255, dtype=torch.uint8)
    augmentation = Augmentation(rotation=45, padding=padding)
    turned, told = augmentation.apply(white, drawn(1, angles=np.array([45.0])))
    assert told is None
    assert turned[0, 0, 0, 0] == pytest.approx(corner, abs=1e-5)
    assert turned[0, 0, 12, 12] == pytest.approx(1, abs=1e-5)


# Quality -----------------------------------------------------------------------------------------


def waves(frequency: float, size: int, shift: float = 0) -> torch.Tensor:
    phase = 2 * math.pi * frequency * (torch.arange(size) - (size - 1) / 2 - shift)
    return phase.cos().expand(1, 1, size, size).contiguous()


@pytest.mark.parametrize("frequency", [0.05, 0.15, 0.25, 0.3])
def test_detail_survives_a_move_by_a_fraction_of_a_pixel(frequency):
    back = np.array([[[1, 0, -0.37], [0, 1, 0]]])
    moved = resample(waves(frequency, 64), back, "reflect")[..., 16:48, 16:48]
    expected = waves(frequency, 64, 0.37)[..., 16:48, 16:48]
    assert (moved - expected).abs().max() < 0.06


@pytest.mark.parametrize("frequency", [0.3, 0.4, 0.45])
def test_detail_too_fine_for_a_smaller_image_does_not_come_back_coarse(frequency):
    larger = np.array([[[2.2, 0, 0], [0, 2.2, 0]]])
    smaller = resample(waves(frequency, 128), larger, "reflect")[..., 54:74, 54:74]
    assert smaller.std() < 0.1 * waves(frequency, 128).std()


@given(st.integers(0, 255), st.sampled_from(("edge", "reflect")), st.integers(0, 20))
def test_a_plain_image_stays_plain(level, padding, step):
    plain = torch.full((4, 1, 5, 7), level, dtype=torch.uint8)
    augmentation = Augmentation(True, 2, padding, rotation=90, non_leaking=0.8)
    x_start, _ = augmentation.apply(plain, augmentation.draw(4, 0, step))
    torch.testing.assert_close(x_start, to_float(plain), rtol=0, atol=1e-5)


def test_a_large_batch_is_resampled_in_parts_alike(monkeypatch):
    augmentation, images = Augmentation(non_leaking=1), noise(9, 3, 8, 8)
    draws = augmentation.draw(9, 0, 0)
    whole, _ = augmentation.apply(images, draws)
    monkeypatch.setattr("inkdrop.data.augment._POINTS_AT_ONCE", 1500)
    assert torch.equal(augmentation.apply(images, draws)[0], whole)


def test_images_are_left_as_they_were():
    images = noise(20, 3, 8, 8)
    before = images.clone()
    EVERYTHING.apply(images, EVERYTHING.draw(20, 0, 0))
    assert torch.equal(images, before)


# Mistakes ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("given_", "message"),
    [
        ({"padding": "reflects"}, "unknown padding 'reflects': did you mean 'reflect'"),
        ({"shift": -1}, "shift must be 0 or more pixels, got -1"),
        ({"rotation": 181}, "from 0 to 180 degrees, got 181"),
        ({"rotation": float("nan")}, "from 0 to 180 degrees, got nan"),
        ({"non_leaking": 12}, "probability from 0 to 1, got 12; 0.12"),
        ({"non_leaking": -0.1}, "probability from 0 to 1, got -0.1"),
    ],
    ids=str,
)
def test_a_value_that_is_not_allowed_is_an_error(given_, message):
    with pytest.raises(InkdropError, match=message) as error:
        Augmentation(**given_)
    assert "\n" not in str(error.value)


def test_draws_for_other_images_are_an_error():
    augmentation = Augmentation(shift=1)
    with pytest.raises(InkdropError, match="drawn for 4 images, but there are 3"):
        augmentation.apply(noise(3, 1, 2, 2), augmentation.draw(4, 0, 0))
    with pytest.raises(InkdropError, match=r"must be uint8, got torch\.float32"):
        augmentation.apply(torch.zeros(4, 1, 2, 2), augmentation.draw(4, 0, 0))
