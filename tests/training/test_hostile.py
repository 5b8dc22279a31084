"""What a user, a disk or a clock may do to a run at the worst moment."""

import errno
import json
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
from torch.distributed import HashStore

from inkdrop import checkpoint, metrics
from inkdrop.build import choose_device
from inkdrop.cli import run
from inkdrop.config import Config
from inkdrop.data.images import Source
from inkdrop.errors import InkdropError
from inkdrop.metrics import append_metrics, read_metrics
from inkdrop.processes import _unused
from inkdrop.training.trainer import Trainer


def test_a_process_killed_as_it_starts_leaves_a_folder_to_start_in(
    tmp_path: Path, config: Callable[..., Config], source: Source
) -> None:
    (tmp_path / ".training.lock").touch()
    (tmp_path / ".writing-config.json").write_text('{"format_ver')
    trainer = Trainer(config(steps=1), tmp_path, source=source)
    trainer.run()
    assert not list(tmp_path.glob(".writing-*"))


def test_a_run_begun_meanwhile_by_another_training_is_not_begun_again(
    tmp_path: Path, config: Callable[..., Config], source: Source
) -> None:
    slower = Trainer(config(steps=2), tmp_path, source=source)
    Trainer(config(steps=1), tmp_path, source=source).run()
    before = (tmp_path / "config.json").read_bytes()
    with pytest.raises(InkdropError, match=r"another training has begun in .* meanwhile: give the"):
        slower.run()
    assert (tmp_path / "config.json").read_bytes() == before
    assert [path.name for path in tmp_path.glob("checkpoints/*")] == ["step-00000001"]
    Trainer(config(steps=1), tmp_path, source=source).run()  # it holds the folder no longer


@pytest.mark.parametrize("damage", ["\xff\xfe", '{"loss": 1.0}', "3", '{"step": 1, "lo'])
def test_a_damaged_row_of_metrics_takes_no_other_with_it(tmp_path: Path, damage: str) -> None:
    file = tmp_path / "metrics.jsonl"
    append_metrics(file, {"step": 1})
    with open(file, "ab") as content:
        content.write(damage.encode("latin-1") + b"\n")
    append_metrics(file, {"step": 2})
    append_metrics(file, {"step": 3})
    assert read_metrics(file) == [{"step": 1}, {"step": 2}, {"step": 3}]
    metrics.rewind_metrics(file, 2)
    rows = [json.loads(line) for line in file.read_text().splitlines()]
    assert rows == [{"step": 1}, {"step": 2}]


def test_damaged_sessions_are_named(
    tmp_path: Path, config: Callable[..., Config], source: Source
) -> None:
    Trainer(config(steps=1), tmp_path, source=source).run()
    checkpoints = tmp_path / "checkpoints"
    (checkpoints / "step-00000001").rename(checkpoints / "elsewhere")
    for damage in ("{", "[]", "{}"):
        (tmp_path / "environment.json").write_text(damage)
        with pytest.raises(InkdropError, match=r"environment.json is damaged: .* delete it"):
            Trainer(config(steps=1), tmp_path, source=source).run()
    (tmp_path / "environment.json").unlink()
    Trainer(config(steps=1), tmp_path, source=source).run()


@pytest.mark.parametrize("name", ["metrics.jsonl", "config.json"])
def test_a_full_disk_is_told_with_the_file_and_what_to_do(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    name: str,
) -> None:
    class Full:
        def __init__(self, *_: Any) -> None:
            pass

        def __enter__(self) -> "Full":
            return self

        def __exit__(self, *_: Any) -> None:
            pass

        def write(self, _: Any) -> None:
            raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(checkpoint if name == "config.json" else metrics, "open", Full, False)

    def write(_: list[str]) -> int:
        if name == "config.json":
            checkpoint.replace_synced(tmp_path / name, b"")
        else:
            append_metrics(tmp_path / name, {"step": 1})
        return 0

    monkeypatch.setattr("inkdrop.cli._COMMANDS", {"train": write})
    assert run(["train"]) == 2
    said = capsys.readouterr().err
    assert said.startswith("inkdrop: No space left on device: ")
    assert name in said
    assert said.endswith("; make room and give the same command again\n")


def test_a_device_without_values_is_refused() -> None:
    with pytest.raises(InkdropError, match="device 'meta' cannot be used here"):
        choose_device("meta")


def test_a_start_sees_nothing_that_an_earlier_one_left_in_the_launchers_store() -> None:
    store = HashStore()
    store.set("asked/1", "from one that was killed before it was answered")
    seen: list[set[str]] = []
    for start in range(2):
        with ThreadPoolExecutor(3) as threads:
            parts = list(threads.map(lambda rank: _unused(store, rank, 3), range(3)))
        seen.append({str(part.check(["address"])) for part in parts})
        parts[start].set("address", str(start))
        seen.append({part.get("address").decode() for part in parts})
    assert seen == [{"False"}, {"0"}, {"False"}, {"1"}]


def test_those_that_do_not_join_are_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("inkdrop.processes._JOINING", timedelta(seconds=0.1))
    with pytest.raises(RuntimeError, match=r"of the others \[1, 2\] did not come within 0:00:00.1"):
        _unused(HashStore(), 0, 3)
