"""The notebook as it is kept: run from top to bottom, small, and of no machine in particular.

That it runs is tested by `make test`, which has nbmake run it.
"""

import json
import re
from pathlib import Path
from typing import Any

import pytest

PATH = Path(__file__).parent.parent / "examples" / "gmm.ipynb"
NOTEBOOK: dict[str, Any] = json.loads(PATH.read_text())
CODE = [cell for cell in NOTEBOOK["cells"] if cell["cell_type"] == "code"]
OUTPUTS = [output for cell in CODE for output in cell["outputs"]]


def test_it_was_run_from_top_to_bottom() -> None:
    assert [cell["execution_count"] for cell in CODE] == list(range(1, len(CODE) + 1))


def test_nothing_went_wrong_and_nothing_was_warned_of() -> None:
    assert {output["output_type"] for output in OUTPUTS} <= {"stream", "execute_result"}
    assert all(output.get("name") != "stderr" for output in OUTPUTS)


def test_pictures_are_inside_and_the_file_is_small() -> None:
    assert sum("image/png" in output.get("data", {}) for output in OUTPUTS) >= 12
    assert PATH.stat().st_size < 3_000_000


@pytest.mark.parametrize("pattern", [r"/(tmp|work|home|root|Users)/", r"0x[0-9a-f]{6}", r"C:\\"])
def test_outputs_name_no_place_of_the_machine(pattern: str) -> None:
    texts = [
        "".join(text)
        for output in OUTPUTS
        for kind, text in {"text": output.get("text", ""), **output.get("data", {})}.items()
        if kind != "image/png"
    ]
    assert not [text for text in texts if re.search(pattern, text)]


def test_times_of_day_are_left_out_and_the_kernel_is_any_python3() -> None:
    assert NOTEBOOK["metadata"]["kernelspec"]["name"] == "python3"
    assert all("execution" not in cell["metadata"] for cell in CODE)


def test_cells_are_short() -> None:
    assert max(len(cell["source"]) for cell in CODE) <= 36
