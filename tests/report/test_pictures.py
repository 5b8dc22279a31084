"""Pictures show the pixels they were given."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from inkdrop.checkpoint import replace_synced
from inkdrop.data.pixels import to_uint8
from inkdrop.diffusion.denoiser import Denoiser
from inkdrop.diffusion.samplers import initial_noise, sample, sample_steps
from inkdrop.diffusion.schedule import NoiseSchedule
from inkdrop.errors import InkdropError
from inkdrop.report import pictures

SHAPES = [(1, 8, 8), (3, 8, 8), (1, 5, 12), (3, 12, 5)]


def random_images(n: int, *shape: int) -> Tensor:
    return torch.randint(256, (n, *shape), generator=torch.Generator().manual_seed(0)).byte()


def as_array(image: Tensor) -> np.ndarray:
    """(C, H, W) as the pixels of a picture."""
    return image.permute(1, 2, 0).numpy() if image.shape[0] == 3 else image[0].numpy()


def shows(picture: Image.Image, image: Tensor, left: int, top: int, factor: int) -> bool:
    """Whether every pixel of an image is a square of factor × factor pixels at (left, top)."""
    height, width = image.shape[1] * factor, image.shape[2] * factor
    mode = "RGB" if image.shape[0] == 3 else "L"
    part = picture.crop((left, top, left + width, top + height)).convert(mode)
    enlarged = as_array(image).repeat(factor, 0).repeat(factor, 1)
    return part.size == (width, height) and np.array_equal(np.asarray(part), enlarged)


def find(picture: Image.Image, image: Tensor) -> list[tuple[int, int]]:
    """Where (left, top) a picture shows an image exactly, enlarged by any factor."""
    pixels = packed(np.asarray(picture.convert("RGB" if image.shape[0] == 3 else "L")))
    wanted = packed(as_array(image))
    places = []
    for factor in range(4, 20):
        height, width = (side * factor for side in wanted.shape)
        if height > picture.height or width > picture.width:
            break
        free = pixels[: picture.height - height + 1, : picture.width - width + 1]
        tops, lefts = np.nonzero(free == wanted[0, 0])
        for (y, x), value in np.ndenumerate(wanted):
            here = pixels[tops + y * factor, lefts + x * factor] == value
            tops, lefts = tops[here], lefts[here]
        corners = zip(lefts.tolist(), tops.tolist(), strict=True)
        places += [(x, y) for x, y in corners if shows(picture, image, x, y, factor)]
    return places


def packed(pixels: np.ndarray) -> np.ndarray:
    """Pixels (H, W) or (H, W, 3) as one number each."""
    return pixels.reshape(*pixels.shape[:2], -1).astype(int) @ (65536, 256, 1)[-pixels[0, 0].size :]


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize(("n", "columns"), [(1, None), (7, None), (7, 3), (2, 5)])
def test_a_tile_of_the_grid_is_the_image(shape: tuple[int, ...], n: int, columns: int) -> None:
    images = random_images(n, *shape)
    grid = pictures.grid(images, columns)
    factor = int(np.ceil(48 / np.sqrt(shape[1] * shape[2])))
    height, width = shape[1] * factor, shape[2] * factor
    across = min(n, columns or int(np.ceil(np.sqrt(n))))
    down = int(np.ceil(n / across))
    gap = max(2, round(min(height, width) / 24))
    assert grid.size == (across * (width + gap) - gap, down * (height + gap) - gap)
    assert grid.mode == ("RGB" if shape[0] == 3 else "L")
    for i, image in enumerate(images):
        left, top = i % across * (width + gap), i // across * (height + gap)
        assert shows(grid, image, left, top, factor)


def test_what_no_tile_covers_is_white() -> None:
    grid = np.asarray(pictures.grid(torch.zeros(3, 1, 8, 8, dtype=torch.uint8), columns=2))
    assert (grid[-1, -1], grid[0, 48], grid[48, 0]) == (255, 255, 255)
    assert (grid == 0).sum() == 3 * 48 * 48


@pytest.mark.parametrize("side", [28, 32, 48, 100])
def test_large_images_are_not_made_larger_than_needed(side: int) -> None:
    grid = pictures.grid(random_images(1, 1, side, side))
    assert grid.size == ((2 * side,) * 2 if side < 48 else (side, side))


@pytest.mark.parametrize(("channels", "shown"), [(2, 1), (4, 3), (7, 3)])
def test_other_channel_counts_show_the_first_three_or_the_first(channels: int, shown: int) -> None:
    images = random_images(2, channels, 8, 8)
    assert pictures.grid(images) == pictures.grid(images[:, :shown])


@pytest.mark.parametrize(
    "images", [torch.zeros(2, 1, 8, 8), torch.zeros(1, 8, 8).byte(), torch.zeros(0, 1, 8, 8).byte()]
)
def test_what_is_not_images_is_refused(images: Tensor) -> None:
    with pytest.raises(InkdropError, match="uint8 images"):
        pictures.grid(images)


def test_a_trajectory_holds_the_states_of_sampling(make_denoiser: Callable[..., Denoiser]) -> None:
    denoiser = make_denoiser()
    x_init = initial_noise(3, (1, 8, 8), seed=5)
    states = list(sample_steps(denoiser, 3, "ddim", 6, seed=5))
    recorded = pictures.trajectory(x_init, states)
    assert torch.equal(recorded.x[0], to_uint8(x_init))
    assert torch.equal(recorded.x[1:], torch.stack([to_uint8(s.x) for s in states]))
    assert torch.equal(recorded.x_start[:-1], torch.stack([to_uint8(s.x_start) for s in states]))
    assert torch.equal(recorded.x_start[-1], to_uint8(states[-1].x_start))
    assert recorded.timesteps == tuple(s.timestep for s in states)


@pytest.mark.parametrize("sampler", ["ddim", "ancestral"])
def test_recording_samples_what_sample_does(
    make_denoiser: Callable[..., Denoiser], sampler: str
) -> None:
    denoiser = make_denoiser()
    recorded = pictures.record(denoiser, 5, sampler, 8, seed=3)
    assert torch.equal(recorded.x[-1], to_uint8(sample(denoiser, 5, sampler, 8, seed=3)))


@pytest.mark.parametrize("count", [2, 3, 7, 9, 100])
def test_recording_few_moments_is_recording_all_and_keeping_few(
    make_denoiser: Callable[..., Denoiser], count: int
) -> None:
    denoiser = make_denoiser()
    few = pictures.record(denoiser, 2, "ddim", 8, moments=count)
    kept = pictures.record(denoiser, 2, "ddim", 8).moments(count)
    assert len(few.x) == min(count, 9)
    assert torch.equal(few.x, kept.x)
    assert torch.equal(few.x_start, kept.x_start)
    assert few.timesteps == kept.timesteps
    assert few.timesteps[0] == 19


@pytest.mark.parametrize("shape", SHAPES)
def test_the_reverse_strip_runs_from_noise_to_the_sample(
    make_denoiser: Callable[..., Denoiser], shape: tuple[int, int, int]
) -> None:
    denoiser = make_denoiser(shape)
    strip = pictures.draw_trajectory(pictures.record(denoiser, 2, "ddim", 5, seed=7), 4, 200)
    for i in range(2):
        noise = to_uint8(initial_noise(2, shape, seed=7))[i]
        finished = to_uint8(sample(denoiser, 2, "ddim", 5, seed=7))[i]
        (first,) = find(strip, noise)
        # DDIM's last estimate is the sample, so it is in both of the image's rows.
        above, beneath = find(strip, finished)
        assert above[1] == first[1] < beneath[1]
        assert first[0] < strip.width / 3
        assert above[0] == beneath[0] > strip.width * 2 / 3


@pytest.mark.parametrize("shape", SHAPES)
def test_the_forward_strip_starts_with_the_image(shape: tuple[int, ...]) -> None:
    image = random_images(1, *shape)[0]
    strip = pictures.forward_strip(NoiseSchedule.cosine(100), image, columns=4, width=200)
    places = find(strip, image)
    assert len(places) == 1
    assert places[0][0] < strip.width / 3


def test_strips_are_reproducible_and_differ_by_seed() -> None:
    image, schedule = random_images(1, 1, 8, 8)[0], NoiseSchedule.cosine(100)
    again = [pictures.png(pictures.forward_strip(schedule, image, seed)) for seed in (0, 0, 1)]
    assert again[0] == again[1] != again[2]


def test_the_reverse_strip_draws_what_is_recorded(make_denoiser: Callable[..., Denoiser]) -> None:
    denoiser = make_denoiser()
    recorded = pictures.record(denoiser, 2, "ancestral", 9, seed=1)
    strip = pictures.reverse_strip(denoiser, 2, "ancestral", 9, seed=1, columns=4)
    assert strip == pictures.draw_trajectory(recorded, 4)


def test_a_strip_has_no_more_columns_than_there_are_timesteps(
    make_denoiser: Callable[..., Denoiser],
) -> None:
    image = random_images(1, 1, 8, 8)[0]
    few, more = (pictures.forward_strip(NoiseSchedule.cosine(2), image, columns=c) for c in (3, 8))
    assert few == more
    denoiser = make_denoiser(timesteps=2)
    assert pictures.reverse_strip(denoiser, 1, columns=3) == pictures.reverse_strip(denoiser, 1)


@pytest.mark.parametrize("columns", [-1, 0, 1])
def test_a_strip_of_one_column_is_refused(
    make_denoiser: Callable[..., Denoiser], columns: int
) -> None:
    denoiser, image = make_denoiser(), random_images(1, 1, 8, 8)[0]
    with pytest.raises(InkdropError, match=f"at least 2 .*, got {columns}"):
        pictures.reverse_strip(denoiser, columns=columns)
    with pytest.raises(InkdropError, match=f"at least 2 .*, got {columns}"):
        pictures.forward_strip(denoiser.schedule, image, columns=columns)


def test_points_are_refused(make_denoiser: Callable[..., Denoiser]) -> None:
    denoiser = make_denoiser()
    denoiser.shape = (2,)
    with pytest.raises(InkdropError, match=r"images \(C, H, W\)"):
        pictures.record(denoiser, 1)


@pytest.mark.parametrize("shape", SHAPES)
def test_the_film_ends_with_the_finished_grid(
    make_denoiser: Callable[..., Denoiser], tmp_path: Path, shape: tuple[int, int, int]
) -> None:
    denoiser, path = make_denoiser(shape), tmp_path / "film.gif"
    pictures.denoising_gif(denoiser, path, n=5, steps=10, seed=2)
    finished = pictures.grid(to_uint8(sample(denoiser, 5, "ddim", 10, seed=2)))
    with Image.open(path) as film:
        assert film.n_frames == 11
        assert film.info["loop"] == 0
        film.seek(10)
        assert film.info["duration"] == 1500
        last = np.asarray(film.convert(finished.mode), int)
    error = np.abs(last - np.asarray(finished, int))
    # Greys are exact; colours go through a palette, of which noise needs a lot.
    assert error.max() == 0 if shape[0] == 1 else error.mean() < 16


def test_a_film_has_at_most_51_frames(
    make_denoiser: Callable[..., Denoiser], tmp_path: Path
) -> None:
    path = tmp_path / "film.gif"
    pictures.denoising_gif(make_denoiser(timesteps=60), path, n=1, sampler="ancestral")
    with Image.open(path) as film:
        assert film.n_frames == pictures.FRAMES == 51


def test_saving_leaves_no_metadata_and_the_same_bytes(tmp_path: Path) -> None:
    picture = pictures.grid(random_images(3, 3, 8, 8))
    for name in ("a.png", "b.png"):
        pictures.save(picture, tmp_path / name)
    assert (tmp_path / "a.png").read_bytes() == (tmp_path / "b.png").read_bytes()
    with Image.open(tmp_path / "a.png") as saved:
        assert saved.info == {}
        assert np.array_equal(np.asarray(saved), np.asarray(picture))


def test_saving_leaves_nothing_half_written(tmp_path: Path) -> None:
    replace_synced(tmp_path / "a.png", b"before")
    broken = Image.new("F", (2, 2))  # PNG has no such mode
    with pytest.raises(OSError, match="mode F"):
        pictures.save(broken, tmp_path / "a.png")
    assert [path.name for path in tmp_path.iterdir()] == ["a.png"]
    assert (tmp_path / "a.png").read_bytes() == b"before"


def test_a_margin_is_white_and_leaves_the_picture_as_it_is(tmp_path):
    picture = pictures.grid(torch.zeros(1, 1, 8, 8, dtype=torch.uint8))
    pictures.save(picture, tmp_path / "new" / "framed.png", margin=5)
    with Image.open(tmp_path / "new" / "framed.png") as framed:
        assert framed.size == (picture.width + 10, picture.height + 10)
        assert framed.getpixel((4, 4)) == 255
        assert framed.crop((5, 5, 5 + picture.width, 5 + picture.height)) == picture
