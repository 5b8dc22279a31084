"""Charts: what they draw is in the metrics, and they cope with metrics that are not there yet."""

from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from matplotlib.figure import Figure

from inkdrop.diffusion.schedule import NoiseSchedule, ScheduleWarning
from inkdrop.report import charts, drawing, pictures

TRAINING = [
    {"step": 10 * k, "loss": 1 / k, "loss_by_timestep": [0.1 * k + i for i in range(10)]}
    for k in range(1, 41)
]
HELD_OUT = [
    {"step": 100 * k, "held_out_loss": 2 / k, "held_out_loss_by_timestep": [1 / k] * 10}
    for k in range(1, 5)
]


def texts(figure: Figure) -> str:
    """All that is written on a figure."""
    return "\n".join(text.get_text() for text in figure.findobj(match=type(figure.text(0, 0, ""))))


def line(figure: Figure, index: int) -> np.ndarray:
    return np.asarray(figure.axes[0].lines[index].get_xydata())


def test_the_loss_curve_draws_each_row_its_average_and_the_held_out_loss() -> None:
    figure = charts.loss_curve(TRAINING + HELD_OUT)
    assert np.allclose(line(figure, 0), [(row["step"], row["loss"]) for row in TRAINING])
    assert np.allclose(line(figure, 1)[:, 1], charts.smoothed(line(figure, 0)[:, 1]))
    assert np.allclose(line(figure, 2), [(r["step"], r["held_out_loss"]) for r in HELD_OUT])
    for label in ("training", "held out", "optimizer step", "mean squared error"):
        assert label in texts(figure)


def test_a_loss_that_falls_far_is_drawn_on_a_logarithmic_axis() -> None:
    far = charts.loss_curve(TRAINING)
    near = charts.loss_curve([{"step": k, "loss": 1 + 0.01 * k} for k in range(9)])
    assert [f.axes[0].get_yscale() for f in (far, near)] == ["log", "linear"]
    assert "logarithmic" in texts(far)
    assert "logarithmic" not in texts(near)


@pytest.mark.parametrize(
    "metrics",
    [
        [],
        [{"step": 5}],
        [{"step": 5, "loss": None, "loss_by_timestep": [None] * 10}],
        [{"step": 5, "loss": float("nan"), "loss_by_timestep": []}],
    ],
)
def test_without_data_the_charts_say_so(metrics: list[dict[str, Any]]) -> None:
    for figure in (charts.loss_curve(metrics), charts.loss_by_timestep(metrics)):
        assert "no data yet" in texts(figure)
        assert pictures.png(figure)


@pytest.mark.parametrize(
    "metrics",
    [
        TRAINING[:1],
        HELD_OUT[:1],
        [{"step": 0, "loss": 0.0, "loss_by_timestep": [0.0] * 10}],
        [{"step": 1, "loss": -3.5, "loss_by_timestep": [None] * 9 + [-2.0]}],
        [{"step": 10**9, "loss": 1e-9, "loss_by_timestep": [1e-9] * 9 + [1e9]}],
    ],
)
def test_a_single_row_is_drawn(metrics: list[dict[str, Any]]) -> None:
    for figure in (charts.loss_curve(metrics), charts.loss_by_timestep(metrics, 20)):
        assert "no data yet" not in texts(figure)
        assert pictures.png(figure)


def test_the_bars_are_the_mean_of_the_latest_rows_and_the_marks_the_last_held_out_loss() -> None:
    figure = charts.loss_by_timestep(TRAINING + HELD_OUT, timesteps=1000)
    axes = figure.axes[0]
    tops = [bar.get_y() + bar.get_height() for bar in axes.patches]
    latest = [row["loss_by_timestep"] for row in TRAINING[-charts.RECENT :]]
    assert np.allclose(tops, np.mean(latest, axis=0))
    (marks,) = axes.collections
    assert np.allclose([segment[:, 1] for segment in marks.get_segments()], 0.25)
    assert [label.get_text() for label in axes.get_xticklabels()][-1] == "1,000"


def test_a_bin_without_a_loss_has_no_bar() -> None:
    losses = [None, 2.0, *[1.0] * 8]
    figure = charts.loss_by_timestep([{"step": 1, "loss_by_timestep": losses}])
    heights = [bar.get_height() for bar in figure.axes[0].patches]
    assert np.isnan(heights[0])
    assert heights[1] == 2
    assert "$T$" in texts(figure)


@given(st.lists(st.floats(-100, 100), min_size=1, max_size=80))
def test_smoothing_stays_within_the_values(values: list[float]) -> None:
    smooth = charts.smoothed(np.array(values))
    assert len(smooth) == len(values)
    assert min(values) - 1e-9 <= smooth.min() <= smooth.max() <= max(values) + 1e-9


def test_smoothing_leaves_a_straight_line_straight_until_the_window_meets_the_end() -> None:
    values = np.arange(200.0)
    assert np.allclose(charts.smoothed(values)[:195], values[:195])


@pytest.mark.parametrize("side_by_side", [False, True])
def test_the_schedule_chart_draws_the_schedule(side_by_side: bool) -> None:
    schedule = NoiseSchedule.linear(1000)
    figure = charts.noise_schedule(schedule, side_by_side)
    betas, amplitudes, snr = figure.axes
    assert np.allclose(betas.lines[0].get_ydata(), schedule.betas)
    noise, image, end = amplitudes.lines
    assert np.allclose(noise.get_ydata(), schedule.sqrt_one_minus_alphas_cumprod)
    assert np.allclose(image.get_ydata(), schedule.sqrt_alphas_cumprod)
    assert np.allclose(end.get_xydata(), [[999, schedule.sqrt_alphas_cumprod[-1]]])
    assert np.allclose(snr.lines[-1].get_ydata(), schedule.log_snr)
    assert r"$4\cdot10^{-5}$ at the end" in texts(figure)
    assert "signal is left" not in texts(figure)


def test_the_schedule_chart_warns_of_signal_at_the_end() -> None:
    with pytest.warns(ScheduleWarning):
        schedule = NoiseSchedule.linear(300, 1e-4, 0.02)
    assert "signal is left" in texts(charts.noise_schedule(schedule))
    assert "0.048" in texts(charts.noise_schedule(schedule))


def test_a_schedule_of_one_step_is_drawn() -> None:
    assert pictures.png(charts.noise_schedule(NoiseSchedule.from_betas([0.9995])))


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (0, "0"),
        (0.05, "0.05"),
        (-5, "−5"),
        (20000, "20,000"),
        (1e-4, "$10^{-4}$"),
        (2e-5, r"$2\cdot10^{-5}$"),
        (-2e7, r"$-2\cdot10^{7}$"),
    ],
)
def test_numbers_on_axes_are_short(value: float, text: str) -> None:
    assert drawing.number(value) == text


def test_charts_are_reproducible() -> None:
    first, again = (pictures.png(charts.loss_curve(TRAINING)) for _ in range(2))
    assert first == again


def test_losses_of_different_units_are_drawn_apart_and_each_run_keeps_its_colour() -> None:
    runs = {"a": TRAINING + HELD_OUT, "b": HELD_OUT[:2], "c": HELD_OUT}
    figure = charts.losses_compared(runs, {"a": "one unit", "b": "another", "c": "one unit"})
    ours, other = figure.axes
    assert [len(axes.lines) for axes in (ours, other)] == [2, 1]
    assert np.allclose(
        ours.lines[1].get_xydata(), [(r["step"], r["held_out_loss"]) for r in HELD_OUT]
    )
    colors = {line.get_color() for axes in figure.axes for line in axes.lines}
    assert len(colors) == 3
    for label in ("Held-out loss", "one unit", "another", "a", "b", "c"):
        assert label in texts(figure)


def test_training_losses_are_compared_where_a_run_has_no_held_out_one() -> None:
    figure = charts.losses_compared({"a": TRAINING + HELD_OUT, "b": TRAINING}, {"a": "u", "b": "u"})
    assert "Training loss" in texts(figure)
    assert len(figure.axes[0].lines[0].get_xdata()) == len(TRAINING)
    assert "no data yet" in texts(charts.losses_compared({"a": [], "b": []}, {"a": "u", "b": "u"}))


def test_a_losss_unit_names_what_is_predicted() -> None:
    assert charts.loss_unit("simple", "velocity") == "mean squared error of the velocity"
    assert charts.loss_unit("simple", "x_start") == "mean squared error of the clean example"
    assert charts.loss_unit("own", "noise") == "the own objective"
