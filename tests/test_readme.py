"""The README's example runs as it is written, and names what is there."""

import math
import re
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from inkdrop.evaluation.distances import energy_distance

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text()
EXAMPLES = re.findall(r"```python\n(.*?)```", README, re.DOTALL)


def test_the_ten_lines_run_as_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    example, _ = EXAMPLES
    assert len([line for line in example.splitlines() if line.strip()]) <= 10
    monkeypatch.chdir(tmp_path)
    names: dict[str, object] = {}
    exec(compile(example, "README.md", "exec"), names)
    assert tuple(names["x"].shape) == (16, 1, 8, 8)  # type: ignore[attr-defined]
    assert names["state"].timestep == 0  # type: ignore[attr-defined]
    with Image.open("taste.png") as picture:
        assert picture.width > 100


def test_the_example_with_the_truth_runs_and_says_what_it_says() -> None:
    _, example = EXAMPLES
    names: dict[str, Any] = {}
    exec(compile(example, "README.md", "exec"), names)
    assert names["x"].shape == (1000, 2)
    x = names["mixture"].sample(1000, seed=1)
    assert energy_distance(names["x"], x) < 0.01
    assert (names["least"].value > 0).all()
    entropy = -names["mixture"].log_density(names["mixture"].sample(500)).mean() / 2 / math.log(2)
    assert names["bits"].total > entropy
