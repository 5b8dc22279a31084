"""Damaged files: each is read, skipped by name, or refused in one line; none crashes or hangs."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

MUTANTS = {"png": 400, "jpeg": 300, "idx": 300, "parquet": 350, "npz": 350, "zip": 300}
# Of those that have a sound image beside them none is refused as a whole.
OUTCOMES = {
    "png": {"read", "skipped"},
    "jpeg": {"read", "skipped"},
    "idx": {"read", "refused"},
    "parquet": {"read", "skipped", "refused"},
    "npz": {"read", "refused"},
    "zip": {"read", "skipped", "refused"},
}


def test_there_are_two_thousand_mutants():
    assert sum(MUTANTS.values()) == 2000


@pytest.mark.parametrize("kind", MUTANTS)
def test_damaged_files_are_read_skipped_by_name_or_refused(kind, data_dir, tmp_path):
    done = subprocess.run(
        [
            *(sys.executable, "-W", "error", Path(__file__).with_name("fuzzing.py")),
            *(kind, str(MUTANTS[kind]), data_dir, tmp_path),
        ],
        env={**os.environ, "INKDROP_CACHE": str(tmp_path / "cache"), "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        encoding="utf-8",
        timeout=300,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-1500:]
    outcomes = json.loads(done.stdout.splitlines()[-1])
    assert sum(outcomes.values()) == MUTANTS[kind]
    assert set(outcomes) == OUTCOMES[kind]
    assert done.stderr == ""
