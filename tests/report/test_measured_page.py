"""What was measured of a run is on its page, and what was not is named once."""

import json
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from matplotlib.figure import Figure
from reading import Page
from stored import LIKELIHOOD, evaluation

from inkdrop.errors import InkdropError
from inkdrop.evaluation.record import keep_evaluation
from inkdrop.report import page
from inkdrop.report.compare import Comparison, Protocol
from inkdrop.report.neighbours import draw_pairs


def written(run: SimpleNamespace) -> Page:
    return Page(page.write_report(run).read_text("utf-8"))


def flat(read: Page) -> str:
    return " ".join(read.text.split())


@pytest.fixture
def measured(run: SimpleNamespace) -> SimpleNamespace:
    """A run of which everything is measured."""
    folder: Path = run.path
    (folder / "pictures").mkdir(parents=True)
    for each in (
        evaluation(31.0, guidance={"scale": 2.0, "interval": None, "rescale": 0.0}),
        evaluation(32.0, extractor={"name": "another network"}),
        evaluation(33.0, timesteps=[10, 0]),
        evaluation(34.0),
    ):
        keep_evaluation(folder, each)
    (folder / "likelihood.json").write_text(
        json.dumps({**LIKELIHOOD, "command": "inkdrop likelihood here"})
    )
    (folder / "timesteps.json").write_text("{}")
    image = torch.zeros(2, 1, 8, 8, dtype=torch.uint8)
    draw_pairs(image, image, [1.0, 2.0]).save(folder / "pictures" / "nearest.png")
    run.metrics += [
        {"step": s, "frechet_distance": d, "evaluation_samples": 500, "extractor": "a classifier"}
        for s, d in ((600, 50.0), (900, 35.0), (1200, 40.0))
    ]
    return run


def test_everything_that_was_measured_is_shown(measured: SimpleNamespace) -> None:
    read = written(measured)
    text = flat(read)
    for said in (
        "measured by 2 rulers, which differ in extractor",
        "Copies of training images: none seen",
        "The evidence.",
        "34",
        "30.6 to 37.4",
        "refused: <too> few real images",
        "They differ in evaluations, guidance, and in nothing else",
        "train halves, and beneath it train against held-out",
        "4.600 ± 0.031",
        "4.310 ± 0.050",
        "inkdrop evaluate 'a name' --steps 20",
        "inkdrop likelihood here",
        "93.0%",
    ):
        assert said in text
    assert "What else can be measured" not in text
    alts = " ".join(img["alt"] for img in read.all("img"))
    for drawn in ("each measure", "guidance scale", "bars for each class", "pairs of images"):
        assert drawn in alts.lower()
    names = {file.stem for file in (measured.path / "pictures").iterdir()}
    assert {
        "evaluation_intervals",
        "evaluation_intervals_2",
        "evaluation_quality",
        "evaluation_guidance",
        "evaluation_classes",
        "nearest_pixels",
        "bound",
        "quality_in_training",
        "loss_map",
    } <= names


def test_what_was_not_measured_is_named_once_with_its_command(run: SimpleNamespace) -> None:
    read = written(run)
    text = flat(read)
    for title in ("Evaluation", "Nearest neighbours", "Likelihood", "What the class changes"):
        assert f" {title} " not in text
    for command in ("evaluate", "likelihood", "fit"):
        assert text.count(f"inkdrop {command} '{run.path}'") == 1


def test_figures_of_an_older_step_are_told_of(run: SimpleNamespace) -> None:
    run.path.mkdir(parents=True)
    keep_evaluation(run.path, evaluation(step=1000))
    assert "has since gone on to step 1,234" in flat(written(run))
    keep_evaluation(run.path, evaluation())
    assert "has since gone on" not in flat(written(run))


def test_an_evaluation_of_little_is_shown(run: SimpleNamespace) -> None:
    run.path.mkdir(parents=True)
    keep_evaluation(run.path, evaluation(more=False))
    text = flat(written(run))
    assert "12.5" in text
    assert "Nearest neighbours" not in text
    assert "All 1" not in text


def test_a_damaged_file_is_told_of_and_the_old_page_stays(run: SimpleNamespace) -> None:
    first = page.write_report(run).read_bytes()
    (run.path / "evaluation.json").write_text("{")
    with pytest.raises(InkdropError, match=r"evaluation.json is damaged"):
        page.write_report(run)
    assert (run.path / "report.html").read_bytes() == first


def test_a_comparison_shows_stored_evaluations_and_names_what_differs(tmp_path: Path) -> None:
    found = Comparison(
        table=[
            {"name": "a", "objective": "simple", "loss_unit": "<error>"},
            {"name": "b"},
            {"name": "c"},
        ],
        measures={},
        figures={},
        protocol=Protocol({"a": "r/a", "b": "r/b", "c": "r c"}, "digits", 7, "ddim", {"a": 5}, 3),
        evaluations={
            "a": [evaluation(15.0)],
            "b": [evaluation(16.0, step=5)],
            "c": [evaluation(seed=1)],
        },
    )
    found.figures["loss"] = Figure()
    found.narrow["loss"] = Figure()
    folder = found.write(tmp_path / "out")
    read = Page((folder / "comparison.html").read_text())
    text = flat(read)
    for cell in ("13.5 to 16.5", "14.4 to 17.6", "real, train halves", "2.31", "4.88"):
        assert cell in text
    assert "c was not evaluated as the others: nearest is a, with seed: 1 here, 0 there." in text
    assert "inkdrop compare r/a r/b 'r c' -n 7 --sampler ddim --steps 5 --seed 3" in text
    assert "The loss of a is the <error>." in text
    assert read.all("script") == []
