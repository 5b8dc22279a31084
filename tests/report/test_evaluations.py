"""What evaluations say on a page is what they found, and only what compares is compared."""

import json
from pathlib import Path

import pytest
from stored import LIKELIHOOD, evaluation

from inkdrop.errors import InkdropError
from inkdrop.evaluation.record import Figure
from inkdrop.report import evaluations as said

SHORT = {"timesteps": [10, 0]}
OTHER = {"extractor": {"name": "inception"}}


def test_only_figures_by_one_ruler_stand_together() -> None:
    every = [evaluation(), evaluation(**OTHER), evaluation(**SHORT), evaluation(samples=500)]
    groups = said.same_ruler(every)
    assert groups == [[every[3]], [every[0], every[2]], [every[1]]]
    assert said.differing([group[0] for group in groups]) == ["samples", "extractor"]
    assert said.differing(groups[1]) == ["timesteps"]
    assert said.differing([]) == []


def test_the_newest_step_that_tells_most_stands_for_its_group() -> None:
    old, bare = evaluation(step=1000), evaluation(more=False)
    full, guided = evaluation(**SHORT), evaluation(guidance={"scale": 2.0})
    assert said.foremost([old, full, bare, guided]) is full
    assert said.foremost([bare, old]) is bare


def test_a_row_has_all_that_is_known_of_a_figure() -> None:
    found = said.rows(evaluation().figures)
    assert [row.label for row in found] == ["Fréchet distance", "precision", "coverage"]
    distance, precision, coverage = found
    assert (distance.value, distance.interval, distance.error) == ("12.5", "11.2 to 13.8", "")
    assert distance.floors == ["2.31", "4.88"]
    assert (precision.error, precision.floors) == ("± 0.0123", ["0.9", "–"])
    assert coverage.value == "–"


def test_notes_are_said_once_for_all_that_they_are_true_of() -> None:
    assert said.noted(evaluation().figures) == [("coverage", "refused: <too> few real images")]
    few = {
        name: Figure(1.0, note=f"{name} of its own; few images") for name in ("precision", "recall")
    }
    assert said.noted(few) == [
        ("precision", "precision of its own"),
        ("all", "few images"),
        ("recall", "recall of its own"),
    ]


def test_a_figure_that_has_no_words_yet_is_shown_by_its_name() -> None:
    figures = {"energy_distance": Figure(0.5), "precision": Figure(0.25)}
    assert [row.label for row in said.rows(figures)] == ["precision", "energy distance"]


def test_a_protocol_is_said_in_words() -> None:
    protocol = evaluation(guidance={"scale": 2.5, "interval": [10, 90], "rescale": 0.0}).protocol
    words = dict(said.in_words(protocol))
    assert words["evaluations"] == "20"
    assert words["guidance"] == "2.5 (interval 10 to 90)"
    assert words["reference"] == "digits, split train, fingerprint aaaaaaaa, count 1,541"
    assert len(words) == len(vars(protocol))
    sentence = said.summary(protocol)
    for part in ("1,000 samples of seed 0", "ddim with 20", "step 1,234", "1,541 real", "128 feat"):
        assert part in sentence
    assert "step" not in said.summary(protocol, step=False)


def test_families_are_named_by_what_tells_them_apart() -> None:
    ddim = [evaluation(), evaluation(**SHORT)]
    unipc = [evaluation(sampler="unipc", eta=None, order=2, timesteps=t) for t in ([9, 0], [0])]
    assert said.named([ddim, unipc], "timesteps") == {"ddim": ddim, "unipc": unipc}
    guided = [evaluation(guidance={"scale": 2.0}), evaluation(guidance={"scale": 2.0}, **SHORT)]
    assert list(said.named([ddim, guided], "timesteps")) == ["guidance none", "guidance 2"]


def test_all_evaluations_of_a_group_are_in_one_table_with_what_differs() -> None:
    group = [evaluation(20.0, **SHORT), evaluation()]
    table = said.all_of(group, group[1])
    assert table["apart"] == ["evaluations"]
    assert table["figures"] == ["Fréchet distance", "precision", "accuracy"]
    assert [row["protocol"] + row["figures"] for row in table["rows"]] == [
        ["2", "20", "0.81", "93.0%"],
        ["20", "12.5", "0.81", "93.0%"],
    ]
    assert [row["chief"] for row in table["rows"]] == [False, True]


def test_runs_stand_side_by_side_only_where_their_protocols_agree() -> None:
    runs = {
        "a": [evaluation(20.0, step=500), evaluation(10.0)],
        "b": [evaluation(11.0, step=900), evaluation(**SHORT)],
        "c": [evaluation(samples=50)],
        "d": [],
    }
    (table,), left_out = said.side_by_side(runs)
    assert table["runs"] == [("a", "step 1,234"), ("b", "step 900")]
    assert table["rows"][0] == (
        "Fréchet distance",
        [("10", "9 to 11"), ("11", "9.9 to 12.1")],
        ["2.31", "4.88"],
    )
    assert left_out == [
        "c was not evaluated as the others: nearest is a, with samples: 50 here, 1,000 there",
        "d has no stored evaluation",
    ]


def test_without_a_common_protocol_no_table_is_made() -> None:
    tables, left_out = said.side_by_side({"a": [evaluation()], "b": [evaluation(seed=1, step=5)]})
    assert tables == []
    assert left_out[0] == (
        "a was not evaluated as the others: nearest is b, with seed: 0 here, 1 there"
    )
    assert said.side_by_side({"a": [evaluation()], "b": []})[0] == []


def test_the_likelihood_is_what_the_file_and_the_evaluation_say(tmp_path: Path) -> None:
    assert said.likelihood(tmp_path, [evaluation(more=False)]) is None
    only = said.likelihood(tmp_path, [evaluation()])
    assert only is not None
    assert only.splits == [
        ("train", "4.310 ± 0.050", "256 examples, step 1,234"),
        ("held-out", "4.520 ± 0.070", "250 examples, step 1,234"),
    ]
    assert only.total == ""
    (tmp_path / "likelihood.json").write_text(json.dumps(LIKELIHOOD))
    both = said.likelihood(tmp_path, [])
    assert both is not None
    assert (both.total, both.ode, both.averaged) == ("4.600 ± 0.031", "", False)
    assert [value for _, value, _ in both.rows] == ["0.0010", "2.0000", "1.2345"]
    ode = {"bits_per_dim": 4.1, "standard_error": None}
    (tmp_path / "likelihood.json").write_text(json.dumps({**LIKELIHOOD, "terms": 4, "ode": ode}))
    few = said.likelihood(tmp_path, [])
    assert few is not None
    assert (few.ode, few.averaged) == ("4.100", True)
    assert "4 of the 19 terms" in few.about


@pytest.mark.parametrize("content", ["{", "[]", "{}", '"text"'])
def test_a_damaged_likelihood_is_told_of(tmp_path: Path, content: str) -> None:
    (tmp_path / "likelihood.json").write_text(content)
    with pytest.raises(InkdropError, match=r"likelihood.json is damaged; delete it"):
        said.likelihood(tmp_path, [])
