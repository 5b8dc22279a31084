"""What every test shares."""

import json
import os
from pathlib import Path
from typing import Any

import pytest
from hypothesis import settings

settings.register_profile("inkdrop", deadline=None, derandomize=True, max_examples=40)
settings.load_profile("inkdrop")


@pytest.fixture(scope="session")
def known_answers() -> dict[str, Any]:
    """Numbers computed once, outside this code."""
    return json.loads((Path(__file__).parent / "known_answers.json").read_text())


@pytest.fixture(scope="session")
def data_dir() -> Path:
    """The folder of real data sets, $INKDROP_DATA."""
    root = os.environ.get("INKDROP_DATA")
    if not root:
        pytest.skip("needs real data: set INKDROP_DATA to its folder")
    return Path(root)
