"""Which timesteps are visited."""

import itertools
import warnings

import numpy as np
import pytest
import torch
from hypothesis import example, given
from hypothesis import strategies as st

from inkdrop.diffusion.schedule import NoiseSchedule, ScheduleWarning
from inkdrop.diffusion.spacing import SPACINGS, spaced_timesteps
from inkdrop.errors import InkdropError

LINEAR = NoiseSchedule.linear()
COSINE = NoiseSchedule.cosine(1000)
with warnings.catch_warnings():
    warnings.simplefilter("ignore", ScheduleWarning)
    SCHEDULES = [
        LINEAR,
        COSINE,
        NoiseSchedule.cosine(4000),
        NoiseSchedule.sigmoid(37),
        NoiseSchedule.linear(300, 1e-4, 0.02),
        NoiseSchedule.from_betas([0.999, 1e-12, 0.5, 1e-3, 0.999]),
        NoiseSchedule.from_betas([0.5, 0.5]),
        NoiseSchedule.from_betas([0.9]),
    ]


@st.composite
def counts(draw):
    schedule = draw(st.sampled_from(SCHEDULES))
    return schedule, draw(st.integers(1, schedule.timesteps))


@st.composite
def any_schedule(draw):
    betas = draw(st.lists(st.floats(1e-9, 0.999), min_size=1, max_size=40))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ScheduleWarning)
        schedule = NoiseSchedule.from_betas(betas)
    return schedule, draw(st.integers(1, len(betas)))


@given(st.sampled_from(sorted(SPACINGS)), counts() | any_schedule())
@example("karras", (COSINE, 999))
@example("log-snr", (COSINE, 2))
@example("quadratic", (LINEAR, 998))
def test_every_spacing_gives_distinct_timesteps_that_fall(name, case):
    schedule, count = case
    timesteps = spaced_timesteps(schedule, count, name)
    assert len(timesteps) == count
    assert all(type(t) is int for t in timesteps)
    assert all(a > b for a, b in itertools.pairwise(timesteps))
    assert timesteps[-1] >= 0
    assert timesteps[0] <= schedule.timesteps - 1


@given(st.sampled_from(sorted(set(SPACINGS) - {"leading"})), counts() | any_schedule())
def test_all_but_leading_start_at_the_noisiest(name, case):
    schedule, count = case
    assert spaced_timesteps(schedule, count, name)[0] == schedule.timesteps - 1


@given(st.sampled_from(sorted(set(SPACINGS) - {"trailing"})), counts() | any_schedule())
def test_all_but_trailing_end_at_the_least_noise(name, case):
    schedule, count = case
    if count > 1:
        assert spaced_timesteps(schedule, count, name)[-1] == 0


@given(st.sampled_from(sorted(SPACINGS)), st.sampled_from(SCHEDULES) | any_schedule())
def test_as_many_as_there_are_is_every_timestep(name, schedule):
    schedule = schedule[0] if isinstance(schedule, tuple) else schedule
    total = schedule.timesteps
    assert spaced_timesteps(schedule, total, name) == list(range(total - 1, -1, -1))


@given(counts())
def test_trailing_falls_evenly_from_the_noisiest(case):
    schedule, count = case
    total, timesteps = schedule.timesteps, spaced_timesteps(schedule, count)
    gaps = [a - b for a, b in itertools.pairwise(timesteps)]
    assert all(total // count <= gap <= -(-total // count) for gap in gaps)
    assert 0 <= timesteps[-1] < -(-total // count)


@given(counts())
def test_leading_is_equal_steps_from_zero(case):
    schedule, count = case
    timesteps = spaced_timesteps(schedule, count, "leading")
    if count > 1:
        step = schedule.timesteps // count
        assert timesteps == [step * i for i in range(count)][::-1]


def test_the_examples_of_lin_et_al():
    """Their Table 2, for T = 1000 and 10 steps; its timesteps count from 1."""

    def theirs(name):
        return [t + 1 for t in spaced_timesteps(LINEAR, 10, name)][::-1]

    assert theirs("leading") == [1, 101, 201, 301, 401, 501, 601, 701, 801, 901]
    assert theirs("linspace") == [1, 112, 223, 334, 445, 556, 667, 778, 889, 1000]
    assert theirs("trailing") == [100, 200, 300, 400, 500, 600, 700, 800, 900, 1000]


def assert_even_in(coordinate, timesteps, schedule):
    """Each timestep is the nearest there is to its place, in an even division."""
    ideal = np.linspace(coordinate[-1], coordinate[0], len(timesteps))
    nearest = [min(range(schedule.timesteps), key=lambda t: abs(coordinate[t] - c)) for c in ideal]
    # Nearest in the coordinate and nearest in time differ by one where the coordinate bends.
    assert np.abs(np.array(timesteps) - nearest).max() <= 1


@pytest.mark.parametrize("schedule", [LINEAR, COSINE], ids=["linear", "cosine"])
@pytest.mark.parametrize(
    ("name", "coordinate"),
    [
        ("linspace", lambda s: np.arange(s.timesteps)),
        ("quadratic", lambda s: np.sqrt(np.arange(s.timesteps))),
        ("log-snr", lambda s: torch.logit(s.alphas_cumprod).numpy()),
        ("karras", lambda s: torch.exp(-torch.logit(s.alphas_cumprod) / 14).numpy()),
    ],
)
def test_a_spacing_is_even_in_its_own_coordinate(schedule, name, coordinate):
    # So few that none fall together near 0, where the schedule's timesteps are far apart.
    timesteps = spaced_timesteps(schedule, 6, name)
    assert_even_in(np.asarray(coordinate(schedule), dtype=float), timesteps, schedule)


def test_karras_is_edms_own_grid():
    """Karras et al. 2022, Eq. 5, on a schedule fine enough to have all its levels."""
    schedule = NoiseSchedule.linear(20_000)
    sigma = (schedule.one_minus_alphas_cumprod / schedule.alphas_cumprod).sqrt()
    steps, low, high = 18, sigma[0] ** (1 / 7), sigma[-1] ** (1 / 7)
    i = torch.arange(steps).double()
    expected = (high + i / (steps - 1) * (low - high)) ** 7
    made = sigma[spaced_timesteps(schedule, steps, "karras")]
    torch.testing.assert_close(made[:-6], expected[:-6], rtol=0.01, atol=0)


def test_timesteps_that_would_fall_together_are_moved_apart():
    """Of the squares of 0 … √9 in 8 steps, the first round to the same timestep."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ScheduleWarning)
        schedule = NoiseSchedule.linear(10)
    assert spaced_timesteps(schedule, 8, "quadratic") == [9, 7, 5, 4, 3, 2, 1, 0]


@pytest.mark.parametrize(
    ("count", "spacing", "message"),
    [
        (1001, "trailing", "steps must lie between 1 and the schedule's 1000 .* got 1001"),
        (0, "trailing", "steps must be a whole number of at least 1, got 0"),
        (2.5, "karras", "steps must be a whole number of at least 1, got 2.5"),
        (5, "log_snr", "timestep spacing 'log_snr': did you mean 'log-snr'. choose from trailing"),
        (5, "uniform", "unknown timestep spacing 'uniform': .*choose from .*karras, fitted"),
        (5, "fitted", r"belong to a run: `inkdrop fit RUN` makes them"),
        (1, "nonsense", "unknown timestep spacing 'nonsense'"),
        (5, None, "unknown timestep spacing 'None'"),
        (5, [3, 1], r"unknown timestep spacing '\[3, 1\]'"),
    ],
)
def test_a_mistake_is_named_in_one_line(count, spacing, message):
    with pytest.raises(InkdropError, match=message) as error:
        spaced_timesteps(LINEAR, count, spacing)
    assert "\n" not in str(error.value)
