"""Pictures of points show every point where it lies."""

import time
from collections.abc import Callable

import numpy as np
import pytest
import torch
from matplotlib.figure import Figure

from inkdrop.data.points import MIXTURES, draw
from inkdrop.diffusion.denoiser import Denoiser
from inkdrop.diffusion.forward import q_sample
from inkdrop.diffusion.oracle import GaussianMixture
from inkdrop.diffusion.samplers import sample, sample_steps
from inkdrop.diffusion.schedule import NoiseSchedule
from inkdrop.errors import InkdropError
from inkdrop.report import pictures, points

SCHEDULE = NoiseSchedule.cosine(100)


@pytest.fixture(scope="module")
def denoiser() -> Denoiser:
    """The perfect one."""
    return GaussianMixture(**MIXTURES["points-gmm"]._asdict()).denoiser(SCHEDULE)


@pytest.fixture(scope="module")
def course(denoiser: Denoiser) -> points.Course:
    return points.record(denoiser, 50, steps=10, seed=3)


def texts(figure: Figure) -> list[str]:
    return [text.get_text() for text in figure.findobj(match=type(figure.text(0, 0, "")))]


def dots(figure: Figure, panel: int) -> np.ndarray:
    """The places (N, 2) of the dots in a panel."""
    sets = [c for c in figure.axes[panel].collections if len(c.get_offsets()) > 1]
    return np.asarray(sets[0].get_offsets())


@pytest.mark.parametrize("make", [np.asarray, torch.as_tensor])
def test_a_scatter_has_a_dot_for_every_point_on_equal_axes(make: Callable[..., object]) -> None:
    x = np.random.default_rng(0).standard_normal((300, 2)) * [3, 1]
    figure = points.scatter(make(x))
    (axes,) = figure.axes
    assert np.allclose(dots(figure, 0), x)
    assert axes.get_aspect() == 1
    box = axes.get_window_extent()
    assert box.width == pytest.approx(box.height)
    assert np.ptp(axes.get_xlim()) == pytest.approx(np.ptp(axes.get_ylim()))


def test_what_cannot_be_shown_is_counted() -> None:
    x = np.array([[0.0, 0], [5, 0], [np.nan, 0], [0.1, 0.1]])
    figure = points.scatter(x, limits=((-1, 1), (-1, 1)))
    assert "2 of 4 lie outside" in texts(figure)
    assert not any("outside" in text for text in texts(points.scatter(x[[0, 3]])))


@pytest.mark.parametrize(
    "x", [np.zeros((1, 2)), np.ones((40, 2)), np.full((3, 2), np.nan), 1e9 * np.eye(2)]
)
def test_odd_points_are_drawn(x: np.ndarray) -> None:
    assert pictures.png(points.scatter(x))
    assert pictures.png(points.beside(x, {"generated": x}))
    assert pictures.png(points.marginals(x, {"generated": x}))


@pytest.mark.parametrize("shape", [(5, 3), (5,), (0, 2), (5, 1)])
def test_what_is_not_in_the_plane_is_refused(shape: tuple[int, ...]) -> None:
    with pytest.raises(InkdropError, match=r"points in the plane \(N, 2\), got"):
        points.scatter(np.zeros(shape))


def test_a_preview_is_quick() -> None:
    x = draw("points-swiss-roll", 2000)
    pictures.png(points.scatter(x))
    began = time.process_time()
    pictures.png(points.scatter(x))
    assert time.process_time() - began < 0.5


def test_a_frame_is_a_square_around_nearly_all_points() -> None:
    x = np.random.default_rng(0).standard_normal((5000, 2)) + np.array([5, 0])
    (left, right), (low, high) = points.frame_of(np.concatenate([x, [[1e6, 0]]]))
    assert right - left == pytest.approx(high - low)
    assert (left + right) / 2 == pytest.approx(5, abs=0.5)
    assert 5 < right - left < 10


def test_sets_stand_side_by_side_in_the_frame_of_the_real_ones() -> None:
    real, other = draw("points-gmm", 200), 100 * draw("points-gmm", 300)
    figure = points.beside(real, {"good": real, "bad": other})
    assert [axes.get_xlim() for axes in figure.axes] == [points.frame_of(real)[0]] * 3
    assert np.allclose(dots(figure, 1), real)
    assert {"real", "good", "bad"} <= set(texts(figure))
    tops = {round(axes.get_position().y1, 3) for axes in figure.axes}
    assert len(tops) == 1
    narrow = points.beside(real, {"good": real, "bad": real}, width=400)
    assert len({round(axes.get_position().y1, 3) for axes in narrow.axes}) == 2


def test_marginals_are_densities() -> None:
    real = draw("points-gmm", 4000)
    figure = points.marginals(real, {"same": real, "moved": real + 0.3})
    for axis, axes in enumerate(figure.axes):
        same, moved = (np.asarray(line.get_xydata()) for line in axes.lines)
        assert np.trapezoid(same[:, 1], same[:, 0]) == pytest.approx(1, abs=0.01)
        area = axes.collections[0].get_paths()[0].vertices
        assert area[:, 1].max() == pytest.approx(same[:, 1].max())
        mean = np.trapezoid(same.prod(1), same[:, 0])
        assert mean == pytest.approx(real[:, axis].mean().item(), abs=0.02)
        assert np.trapezoid(moved.prod(1), moved[:, 0]) > mean + 0.2


def test_a_course_is_what_sampling_went_through(denoiser: Denoiser, course: points.Course) -> None:
    states = list(sample_steps(denoiser, 50, steps=10, seed=3))
    assert course.x.shape == (11, 50, 2)
    assert course.timesteps == tuple(state.timestep for state in states)
    assert np.allclose(course.x[1:], [state.x.numpy() for state in states])
    assert np.allclose(course.x[-1], sample(denoiser, 50, steps=10, seed=3))
    assert course.noise[-1] == 0
    assert course.heads == [*(f"$t$ = {t}" for t in course.timesteps), "done"]


def test_between_moments_equally_much_noise_goes(denoiser: Denoiser) -> None:
    course = points.record(denoiser, 2, steps=100)
    kept = course.moments(5)
    assert np.allclose(kept.noise, [1, 0.75, 0.5, 0.25, 0], atol=0.02)
    assert kept.timesteps[0] == 99
    assert len(course.moments(1000).x) <= 101
    with pytest.raises(InkdropError, match="columns must be at least 2"):
        course.moments(1)


def test_reverse_steps_are_a_row_for_each_model(denoiser: Denoiser) -> None:
    other = GaussianMixture(
        means=torch.zeros(1, 2), covariances=torch.eye(2)[None], weights=torch.ones(1)
    ).denoiser(NoiseSchedule.linear(40))
    figure = points.reverse_steps({"one": denoiser, "two": denoiser}, 4, n=30, steps=20)
    assert len(figure.axes) == 8
    assert np.allclose(dots(figure, 3), sample(denoiser, 30, steps=20))
    assert texts(figure).count("done") == 1
    mixed = points.reverse_steps({"one": denoiser, "two": other}, 4, n=30, steps=20)
    assert texts(mixed).count("done") == 2
    assert {"one", "two"} <= set(texts(mixed))


def test_the_forward_process_is_drawn_from_clean_to_noise() -> None:
    real = draw("points-rings", 100)
    figure = points.forward_steps(SCHEDULE, real, columns=4)
    assert np.allclose(dots(figure, 0), real)
    last = dots(figure, 3)
    t = torch.full((100,), 99)
    noise = torch.from_numpy(last - q_sample(SCHEDULE, real, t, torch.zeros(100, 2)).numpy())
    assert noise.std().item() == pytest.approx(1, abs=0.15)
    assert {"clean", "$t$ = 99"} <= set(texts(figure))


def test_paths_lead_from_the_noise_to_the_samples(course: points.Course) -> None:
    figure = points.draw_paths(course, n=20)
    starts, ends = (np.asarray(line.get_xydata()) for line in figure.axes[0].lines)
    assert np.allclose(starts, course.x[0, :20])
    assert np.allclose(ends, course.x[-1, :20])
    assert {"pure noise", "finished"} <= set(texts(figure))


def test_arrows_point_from_the_noisy_to_the_clean_point() -> None:
    mean = torch.tensor([[0.5, -0.25]])
    tight = GaussianMixture(means=mean, covariances=1e-4 * torch.eye(2)[None], weights=[1.0])
    figure = points.vector_field(tight.denoiser(SCHEDULE), [90, 60], n=200)
    assert len(figure.axes) == 2
    for axes in figure.axes:
        (field,) = (c for c in axes.collections if hasattr(c, "U"))
        toward = mean.numpy() - np.stack([field.X, field.Y], axis=1)
        arrows = np.stack([field.U, field.V], axis=1)
        cosine = (toward * arrows).sum(1) / np.linalg.norm(toward, axis=1)
        assert np.allclose(cosine, np.linalg.norm(arrows, axis=1), atol=1e-3)
    assert {"$t$ = 90", "$t$ = 60"} <= set(texts(figure))


def test_the_field_is_shown_from_noisy_to_clean() -> None:
    timesteps = points.telling_timesteps(NoiseSchedule.linear(1000))
    assert timesteps == sorted(timesteps, reverse=True)
    assert len(timesteps) == 4


def test_the_field_of_a_single_step_is_drawn() -> None:
    schedule = NoiseSchedule.from_betas([0.9995])
    denoiser = GaussianMixture([[0.0, 0]], torch.eye(2)[None], [1.0]).denoiser(schedule)
    assert len(points.vector_field(denoiser, n=20).axes) == 1


def test_a_film_ends_with_the_finished_points(course: points.Course) -> None:
    frames = points.film(course, frames=5)
    assert len(frames) == 5
    assert {frame.size for frame in frames} == {(460, 490)}


@pytest.mark.parametrize("shape", [(3,), (1, 8, 8), None])
def test_the_way_of_other_examples_is_refused(
    denoiser: Denoiser, shape: tuple[int, ...] | None
) -> None:
    other = Denoiser(denoiser.network, SCHEDULE, shape=shape)
    with pytest.raises(InkdropError, match=r"shape \(2,\), but the denoiser's shape is"):
        points.record(other, 3)


def test_pictures_are_reproducible(denoiser: Denoiser) -> None:
    first, again = (pictures.png(points.paths(denoiser, 5, steps=5)) for _ in range(2))
    assert first == again
