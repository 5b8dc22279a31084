"""Charts of evaluations draw the numbers that were found, and can be read without colour."""

import numpy as np
import pytest
from matplotlib.axes import Axes
from matplotlib.figure import Figure as Drawn
from stored import evaluation, nearest

from inkdrop.evaluation.record import ClassFigures, Figure
from inkdrop.report import evaluation_charts as charts
from inkdrop.report import pictures


def points_of(axes: Axes, line: int) -> np.ndarray:
    return np.asarray(axes.lines[line].get_xydata(), dtype=float)


def texts(figure: Drawn) -> str:
    return "\n".join(text.get_text() for text in figure.findobj(match=type(figure.text(0, 0, ""))))


def test_each_figure_is_a_dot_with_its_interval_over_its_floors() -> None:
    figure = charts.intervals(evaluation().figures)
    assert figure is not None
    distance, precision = figure.axes
    drawn = [points_of(distance, i)[:, 0].tolist() for i in range(len(distance.lines))]
    assert drawn[:2] == [[2.31, 2.31], [4.88, 4.88]]
    assert [11.25, pytest.approx(13.75)] in drawn
    assert drawn[-1] == [12.5]
    assert distance.get_xlim()[0] == 0
    assert precision.get_xlim() == (0, 1)
    dashes = {str(line.get_linestyle()) + str(line._dash_pattern) for line in distance.lines[:2]}
    assert len(dashes) == 2
    assert "real, train against held-out" in texts(figure)
    assert pictures.png(figure)


def test_figures_that_were_refused_are_not_drawn() -> None:
    assert charts.intervals({"coverage": Figure(None, note="refused")}) is None


@pytest.mark.parametrize("value", [0.0, -0.002, 3e-7, 1e9])
def test_any_value_can_be_drawn(value: float) -> None:
    figure = charts.intervals({"kernel_distance": Figure(value)})
    assert figure is not None
    low, high = figure.axes[0].get_xlim()
    assert low <= value <= high
    assert pictures.png(figure)


def test_quality_is_drawn_against_evaluations_on_a_logarithmic_axis() -> None:
    counts = (40, 5, 10)
    ddim = [evaluation(100 / n, timesteps=list(range(n))) for n in counts]
    unipc = [evaluation(50 / n, timesteps=list(range(n)), sampler="unipc") for n in counts]
    figure = charts.quality({"ddim": ddim, "unipc": unipc})
    assert figure is not None
    (axes,) = figure.axes
    lines = [line for line in axes.lines if len(np.asarray(line.get_xdata())) == 3]
    assert np.allclose(np.asarray(lines[0].get_xydata()), [[5, 20], [10, 10], [40, 2.5]])
    assert np.allclose(np.asarray(lines[1].get_ydata()), [10, 5, 1.25])
    assert axes.get_xscale() == "log"
    assert len({line.get_marker() for line in lines}) == 2
    floors = [line for line in axes.lines if len(set(np.asarray(line.get_ydata()))) == 1]
    assert {float(np.asarray(line.get_ydata())[0]) for line in floors} == {2.31, 4.88}
    assert {"ddim", "unipc", "real, train halves"} <= set(texts(figure).split("\n"))
    assert charts.quality({"ddim": ddim}, "recall") is None


def test_guidance_has_a_panel_for_accuracy_and_one_for_the_distance() -> None:
    guided = [evaluation(10 + s, guidance={"scale": s}) for s in (3.0, 1.5)]
    figure = charts.guidance({"ddim": [evaluation(10.0), *guided]})
    assert figure is not None
    accuracy, distance = figure.axes
    assert np.allclose(points_of(accuracy, -1), [[1, 0.93], [1.5, 0.93], [3, 0.93]])
    assert np.allclose(points_of(distance, -1), [[1, 10], [1.5, 11.5], [3, 13]])
    bare = [evaluation(9.0, more=False, guidance={"scale": s}) for s in (1.0, 2.0)]
    figure = charts.guidance({"ddim": bare})
    assert figure is not None
    assert len(figure.axes) == 1


def test_classes_are_bars_with_a_line_at_their_due() -> None:
    found = evaluation().classes
    assert found is not None
    shares, accuracy = charts.classes(found).axes
    assert np.allclose([bar.get_width() for bar in shares.patches], [0.1, 0.15, 0.2])
    assert np.allclose([bar.get_width() for bar in accuracy.patches], 0.9)
    untold = [ClassFigures(c.label, c.share, c.reference_share) for c in found]
    assert len(charts.classes(untold).axes) == 1


def test_of_many_classes_those_furthest_from_their_due_are_shown() -> None:
    many = [ClassFigures(k, 0.02 + 0.0001 * k, 0.02) for k in range(50)]
    assert [c.label for c in charts.telling_classes(many)] == list(range(30, 50))
    figure = charts.classes(many)
    assert "20 of 50 classes" in texts(figure)
    assert pictures.png(figure)


def test_distances_are_shares_within_each_distance() -> None:
    found = nearest("pixels")
    figure = charts.nearest_distances(found)
    (axes,) = figure.axes
    held_out, samples = (points_of(axes, i) for i in range(2))
    assert np.allclose(samples, np.stack([found.samples, np.arange(101)], axis=1))
    assert np.allclose(held_out[:, 0], found.held_out)
    shaded = axes.patches[0].get_extents().transformed(axes.transData.inverted())
    assert shaded.x1 == pytest.approx(found.held_out[1])
    assert axes.lines[0].get_linestyle() != axes.lines[1].get_linestyle()
