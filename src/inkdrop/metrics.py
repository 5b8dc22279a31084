"""metrics.jsonl: one JSON object a line, added as training goes."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

from .checkpoint import naming, replace_synced

TIMESTEP_BINS = 10


def read_metrics(path: Path) -> list[dict[str, Any]]:
    """The rows of a metrics file; a line that was cut off by a crash or damaged is left out."""
    if not path.exists():
        return []
    rows = []
    for line in path.read_bytes().splitlines():
        try:
            row = json.loads(line)
        except ValueError:
            continue
        if isinstance(row, dict) and isinstance(row.get("step"), int):
            rows.append(row)
    return rows


def append_metrics(path: Path, row: dict[str, Any]) -> None:
    """Add a row."""
    with naming(path), open(path, "a") as file:
        file.write(json.dumps(row) + "\n")


def sync_metrics(path: Path) -> None:
    """Wait until the rows are on the disk: a checkpoint must not outlive those before it."""
    if path.exists():
        with naming(path), open(path, "ab") as file:
            os.fsync(file.fileno())


def rewind_metrics(path: Path, step: int) -> None:
    """Drop the rows after `step`, which training will write again, and a half-written last line."""
    if path.exists():
        kept = [row for row in read_metrics(path) if row["step"] <= step]
        replace_synced(path, "".join(json.dumps(row) + "\n" for row in kept).encode())


def timestep_bin(timestep: int, timesteps: int) -> int:
    """Which tenth of the schedule a timestep lies in, 0 (least noise) … 9."""
    return timestep * TIMESTEP_BINS // timesteps


def bin_label(index: int, timesteps: int) -> str:
    """The timesteps of a bin, as text."""
    inside = [t for t in range(timesteps) if timestep_bin(t, timesteps) == index]
    return f"{inside[0]}…{inside[-1]}" if inside else "none"
