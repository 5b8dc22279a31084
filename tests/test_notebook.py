"""The notebooks as they are kept: run from top to bottom, small, and of no machine in particular.

That they run is tested by `make test`, which has nbmake run them.
"""

import json
import re
from pathlib import Path
from typing import Any

import pytest

EXAMPLES = Path(__file__).parent.parent / "examples"
KEPT = ["gmm.ipynb", "own_images.ipynb"]

Cell = dict[str, Any]


@pytest.fixture(params=KEPT)
def path(request: pytest.FixtureRequest) -> Path:
    return EXAMPLES / request.param


@pytest.fixture
def notebook(path: Path) -> dict[str, Any]:
    return json.loads(path.read_text())


@pytest.fixture
def code(notebook: dict[str, Any]) -> list[Cell]:
    return [cell for cell in notebook["cells"] if cell["cell_type"] == "code"]


@pytest.fixture
def outputs(code: list[Cell]) -> list[dict[str, Any]]:
    return [output for cell in code for output in cell["outputs"]]


def test_every_notebook_is_looked_at() -> None:
    assert sorted(path.name for path in EXAMPLES.glob("*.ipynb")) == KEPT


def test_it_was_run_from_top_to_bottom(code: list[Cell]) -> None:
    assert [cell["execution_count"] for cell in code] == list(range(1, len(code) + 1))


def test_nothing_went_wrong_and_nothing_was_warned_of(outputs: list[dict[str, Any]]) -> None:
    assert {output["output_type"] for output in outputs} <= {"stream", "execute_result"}
    assert all(output.get("name") != "stderr" for output in outputs)


def test_pictures_are_inside_and_the_file_is_small(
    path: Path, outputs: list[dict[str, Any]]
) -> None:
    assert sum("image/png" in output.get("data", {}) for output in outputs) >= 12
    assert path.stat().st_size < 3_000_000


@pytest.mark.parametrize("pattern", [r"/(tmp|work|home|root|Users)/", r"0x[0-9a-f]{6}", r"C:\\"])
def test_outputs_name_no_place_of_the_machine(outputs: list[dict[str, Any]], pattern: str) -> None:
    texts = [
        "".join(text)
        for output in outputs
        for kind, text in {"text": output.get("text", ""), **output.get("data", {})}.items()
        if kind != "image/png"
    ]
    assert not [text for text in texts if re.search(pattern, text)]


def test_times_of_day_are_left_out_and_the_kernel_is_any_python3(
    notebook: dict[str, Any], code: list[Cell]
) -> None:
    assert notebook["metadata"]["kernelspec"]["name"] == "python3"
    assert all("execution" not in cell["metadata"] for cell in code)


def test_cells_are_short(code: list[Cell]) -> None:
    for cell in code:
        lines = "".join(cell["source"]).split("\n")
        assert len(lines) <= 36
        assert max(map(len, lines)) <= 100
