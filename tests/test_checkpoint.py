"""A checkpoint is whole or not there, and nothing but safetensors and JSON is ever read."""

import builtins
import errno
import json
import math
import os
import pickle
import resource
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import safetensors.torch
import torch
from torch import Tensor

import inkdrop
from inkdrop.checkpoint import (
    FORMAT_VERSION,
    PARTS,
    Checkpoint,
    NonFiniteError,
    begin,
    best_checkpoint,
    commit,
    entry,
    newest_checkpoint,
    newest_whole,
    read_checkpoint,
    read_manifest,
    write_checkpoint,
    write_part,
    write_synced,
)
from inkdrop.errors import InkdropError
from inkdrop.run import read_config, write_config

VERSIONS = Path(__file__).parent / "checkpoints"
SUM = 10.796790110922302  # of all weights of these


def checkpoint(step: int, held_out_loss: float | None = None) -> Checkpoint:
    tensors = {"layer.weight": torch.full((4, 3), float(step)), "count": torch.tensor(step)}
    parts = {"weights": tensors, "ema": tensors}
    return Checkpoint(step, parts, {"seconds": 0.1}, held_out_loss)


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def whole(folder: Path) -> tuple[Path | None, list[str]]:
    notes: list[str] = []
    return newest_whole(folder, notes.append), notes


def test_what_is_written_is_read_back_to_the_bit(tmp_path: Path) -> None:
    path = write_checkpoint(tmp_path, checkpoint(7), keep=3)
    back = read_checkpoint(path, ("weights", "ema"))
    assert back.step == 7
    assert back.state == {"seconds": 0.1}
    for part in ("weights", "ema"):
        for name, tensor in checkpoint(7).tensors[part].items():
            assert torch.equal(back.tensors[part][name], tensor)
            assert back.tensors[part][name].dtype == tensor.dtype


def test_only_the_newest_are_kept(tmp_path: Path) -> None:
    for step in (5, 100, 20, 1000):
        write_checkpoint(tmp_path, checkpoint(step), keep=3)
    assert [p.name for p in sorted(tmp_path.iterdir())] == [
        "step-00000020",
        "step-00000100",
        "step-00001000",
    ]
    assert newest_checkpoint(tmp_path) == tmp_path / "step-00001000"


@pytest.mark.parametrize("allowed", range(0, 701, 100))
def test_a_disk_that_fills_leaves_the_checkpoint_before_it_whole(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, allowed: int
) -> None:
    write_checkpoint(tmp_path, checkpoint(1), keep=3)
    room = allowed
    real_open = builtins.open

    def filling(file, mode="r", *args, **kwargs):  # type: ignore[no-untyped-def]
        handle = real_open(file, mode, *args, **kwargs)
        if "w" in mode and str(tmp_path) in str(file):
            write = handle.write

            class Full:
                def __enter__(self):  # type: ignore[no-untyped-def]
                    return self

                def __exit__(self, *error: object) -> None:
                    handle.close()

                def write(self, content: bytes) -> None:
                    nonlocal room
                    write(content[: max(0, room)])
                    room -= len(content)
                    if room < 0:
                        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

                def __getattr__(self, name: str) -> object:
                    return getattr(handle, name)

            return Full()
        return handle

    monkeypatch.setattr(builtins, "open", filling)
    with pytest.raises(InkdropError, match=r"No space left on device.*step-00000001, is whole"):
        write_checkpoint(tmp_path, checkpoint(2), keep=3)
    monkeypatch.undo()
    assert [p.name for p in tmp_path.iterdir()] == ["step-00000001"]
    read_checkpoint(tmp_path / "step-00000001", ("weights", "ema"))


def test_a_limit_of_the_system_itself_leaves_the_checkpoint_before_it_whole(tmp_path: Path) -> None:
    write_checkpoint(tmp_path, checkpoint(1), keep=3)
    program = f"""
import resource, sys, torch
from pathlib import Path
from inkdrop.checkpoint import Checkpoint, write_checkpoint
resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, {resource.RLIM_INFINITY}))
try:
    tensors = {{"weights": {{"w": torch.zeros(10**6)}}}}
    write_checkpoint(Path({str(tmp_path)!r}), Checkpoint(2, tensors), 3)
except ValueError as error:
    print(error)
"""
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=True
    )
    assert "could not write the checkpoint" in done.stdout
    assert [p.name for p in tmp_path.iterdir()] == ["step-00000001"]
    read_checkpoint(tmp_path / "step-00000001", ("weights", "ema"))


def test_what_a_killed_process_left_half_written_is_never_taken_and_soon_removed(
    tmp_path: Path,
) -> None:
    write_checkpoint(tmp_path, checkpoint(1), keep=3)
    (tmp_path / ".writing-step-00000002").mkdir()
    (tmp_path / ".writing-step-00000002" / "weights.safetensors").write_bytes(b"half")
    assert newest_checkpoint(tmp_path) == tmp_path / "step-00000001"
    write_checkpoint(tmp_path, checkpoint(2), keep=3)
    assert [p.name for p in sorted(tmp_path.iterdir())] == ["step-00000001", "step-00000002"]


def damaged(tmp_path: Path) -> Path:
    write_checkpoint(tmp_path, checkpoint(1), keep=3)
    return write_checkpoint(tmp_path, checkpoint(2), keep=3)


def refused(path: Path) -> str:
    with pytest.raises(InkdropError) as caught:
        read_checkpoint(path, ("weights",))
    assert "\n" not in str(caught.value)
    return str(caught.value)


@pytest.mark.parametrize("bytes_left", [0, 1, 8, 50, 150])
def test_a_truncated_file_is_named_with_the_checkpoint_to_use_instead(
    tmp_path: Path, bytes_left: int
) -> None:
    path = damaged(tmp_path)
    file = path / "weights.safetensors"
    file.write_bytes(file.read_bytes()[:bytes_left])
    message = refused(path)
    assert f"it has {bytes_left} bytes" in message
    assert "to use step-00000001" in message


def test_a_flipped_bit_is_noticed(tmp_path: Path) -> None:
    path = damaged(tmp_path)
    content = bytearray((path / "weights.safetensors").read_bytes())
    content[-1] ^= 1
    (path / "weights.safetensors").write_bytes(content)
    assert "its content is not what was written" in refused(path)


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    path = damaged(tmp_path)
    (path / "weights.safetensors").unlink()
    assert "weights.safetensors is damaged: it is missing" in refused(path)


class _Bomb:
    def __reduce__(self) -> tuple[object, ...]:
        return (os.abort, ())


@pytest.mark.parametrize("how", ["pickle", "torch.save"])
def test_a_pickle_is_refused_and_never_run(tmp_path: Path, how: str) -> None:
    path = damaged(tmp_path)
    file = path / "weights.safetensors"
    if how == "pickle":
        file.write_bytes(pickle.dumps(_Bomb()))
    else:
        torch.save({"w": _Bomb()}, file)
    assert "is a pickle, which inkdrop never loads" in refused(path)


def test_a_newer_format_says_to_upgrade(tmp_path: Path) -> None:
    path = damaged(tmp_path)
    manifest = json.loads((path / "checkpoint.json").read_text())
    manifest["format_version"] = FORMAT_VERSION + 1
    (path / "checkpoint.json").write_text(json.dumps(manifest))
    message = refused(path)
    assert f"format version {FORMAT_VERSION + 1}" in message
    assert "upgrade" in message


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        ("{", "it is not JSON"),
        ("[]", "not from inkdrop"),
        ('{"format": "other"}', "not from inkdrop"),
        ('{"format": "inkdrop checkpoint"}', "format_version None"),
        ('{"format": "inkdrop checkpoint", "format_version": 1}', "it has no step"),
    ],
)
def test_a_foreign_or_damaged_manifest_is_named(
    tmp_path: Path, content: str, expected: str
) -> None:
    path = damaged(tmp_path)
    (path / "checkpoint.json").write_text(content)
    assert expected in refused(path)


def test_a_foreign_folder_is_named(tmp_path: Path) -> None:
    path = damaged(tmp_path)
    (path / "checkpoint.json").unlink()
    assert "it has no checkpoint.json" in refused(path)


TENSORS = {
    "float32": torch.arange(6.0).reshape(2, 3),
    "turned": torch.arange(6.0).reshape(2, 3).T,
    "bfloat16": torch.arange(5).bfloat16(),
    "float16": torch.arange(5).half(),
    "float64": torch.tensor(math.pi, dtype=torch.float64),
    "int64": torch.tensor(2**62 + 1),
    "uint8": torch.arange(3, dtype=torch.uint8),
    "bool": torch.tensor([True, False, True]),
    "complex64": torch.tensor([1 + 2j, 3 - 4j]),
    "float8": torch.arange(4.0).to(torch.float8_e4m3fn),
    "empty": torch.empty(0, 3),
    "größe/β": torch.ones(1),
}


@pytest.mark.parametrize("tensors", [TENSORS, {}, {"alone": torch.tensor(1.0)}])
def test_a_part_is_a_file_that_safetensors_reads(
    tmp_path: Path, tensors: dict[str, Tensor]
) -> None:
    files = write_part(tmp_path, "weights", tensors)
    back = safetensors.torch.load_file(tmp_path / "weights.safetensors")
    assert back.keys() == tensors.keys()
    for name, tensor in tensors.items():
        assert back[name].dtype == tensor.dtype
        assert back[name].shape == tensor.shape
        assert back[name].contiguous().view(-1).tolist() == tensor.reshape(-1).tolist()
    content = (tmp_path / "weights.safetensors").read_bytes()
    if "float8" not in tensors:
        assert content == safetensors.torch.save(tensors)
    assert files == {"weights.safetensors": entry(tmp_path / "weights.safetensors")}
    assert int.from_bytes(content[:8], "little") % 8 == 0  # what is mapped stays aligned


def test_tensors_that_share_memory_are_written_apart(tmp_path: Path) -> None:
    shared = torch.arange(8.0)
    tied = {"a": shared, "b": shared, "view": shared[2:5]}
    path = write_checkpoint(tmp_path, Checkpoint(1, {"weights": tied}), keep=1)
    back = read_checkpoint(path, ("weights",)).tensors["weights"]
    assert all(torch.equal(back[name], tied[name]) for name in tied)


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.float64, torch.complex64])
def test_what_is_not_finite_is_not_written(tmp_path: Path, bad: float, dtype: torch.dtype) -> None:
    write_checkpoint(tmp_path, checkpoint(1), keep=1)
    tensor = torch.ones(10, dtype=dtype)
    tensor[3] = bad
    with pytest.raises(NonFiniteError, match=r"^up\.bias of the ema holds 1 value of 10 that are"):
        write_checkpoint(tmp_path, Checkpoint(2, {"ema": {"up.bias": tensor}}), keep=1)
    assert names(tmp_path) == ["step-00000001"]
    exempt = Checkpoint(2, {"ema": {"up.bias": tensor}}, exempt=frozenset({"up.bias"}))
    assert write_checkpoint(tmp_path, exempt, keep=1).name == "step-00000002"


def test_finite_numbers_whose_sum_is_not_are_written(tmp_path: Path) -> None:
    kinds = (torch.float32, torch.bfloat16, torch.float16, torch.float64)
    largest = {str(kind): torch.full((9,), torch.finfo(kind).max, dtype=kind) for kind in kinds}
    write_checkpoint(tmp_path, Checkpoint(1, {"ema": largest}), keep=1)
    assert names(tmp_path) == ["step-00000001"]


def test_the_one_of_the_lowest_held_out_loss_stays_beside_the_newest(tmp_path: Path) -> None:
    losses = {1: 0.5, 2: 0.2, 3: None, 4: 0.3, 5: math.nan, 6: 0.2, 7: 0.9, 8: None}
    best = {1: 1, 2: 2, 3: 2, 4: 2, 5: 2, 6: 6, 7: 6, 8: 6}
    for step, loss in losses.items():
        path = write_checkpoint(tmp_path, checkpoint(step, loss), keep=2)
        assert best_checkpoint(tmp_path) == tmp_path / f"step-{best[step]:08d}"
        expected = {max(1, step - 1), step, best[step]}
        assert names(tmp_path) == [f"step-{n:08d}" for n in sorted(expected)]
        known = loss if loss is not None and math.isfinite(loss) else None
        assert read_checkpoint(path, ()).held_out_loss == known


def test_without_a_held_out_loss_there_is_no_best(tmp_path: Path) -> None:
    assert best_checkpoint(tmp_path / "missing") is None
    write_checkpoint(tmp_path, checkpoint(1), keep=2)
    assert best_checkpoint(tmp_path) is None


def test_what_was_just_written_stays_whatever_its_step(tmp_path: Path) -> None:
    write_checkpoint(tmp_path, checkpoint(9), keep=1)
    assert write_checkpoint(tmp_path, checkpoint(4), keep=1).exists()


def test_another_of_the_same_step_takes_its_place(tmp_path: Path) -> None:
    first = write_checkpoint(tmp_path, checkpoint(5), keep=3)
    for times in (1, 2):
        again = checkpoint(5)
        again.tensors["weights"]["layer.weight"].fill_(10.0 + times)
        path = write_checkpoint(tmp_path, again, keep=3)
        assert path != first
        assert newest_checkpoint(tmp_path) == path
        assert [tmp_path / name for name in names(tmp_path)] == [path]
        back = read_checkpoint(path, ("weights",))
        assert back.step == 5
        assert back.tensors["weights"]["layer.weight"][0, 0] == 10.0 + times
    write_checkpoint(tmp_path, checkpoint(6), keep=3)
    assert names(tmp_path) == ["step-00000005-2", "step-00000006"]
    assert newest_checkpoint(tmp_path) == tmp_path / "step-00000006"


def test_steps_are_ordered_as_numbers(tmp_path: Path) -> None:
    for step in (99_999_999, 100_000_000):
        write_checkpoint(tmp_path, checkpoint(step), keep=3)
    (tmp_path / "step-of-mine").mkdir()
    assert newest_checkpoint(tmp_path) == tmp_path / "step-100000000"


def test_the_newest_whole_one_is_found_and_nothing_half_written_is_left(tmp_path: Path) -> None:
    assert whole(tmp_path / "missing") == (None, [])
    write_checkpoint(tmp_path, checkpoint(1), keep=3)
    write_checkpoint(tmp_path, checkpoint(2), keep=3)
    (tmp_path / ".writing-step-00000003").mkdir()
    (tmp_path / ".removing-step-00000001").mkdir()
    (tmp_path / ".removing-step-00000001" / "ema.safetensors").write_bytes(b"half")
    assert whole(tmp_path) == (tmp_path / "step-00000002", [])
    assert names(tmp_path) == ["step-00000001", "step-00000002"]


def truncate(file: Path) -> None:
    file.write_bytes(file.read_bytes()[:-3])


def flip(file: Path) -> None:
    content = bytearray(file.read_bytes())
    content[-2] ^= 4
    file.write_bytes(content)


def empty(file: Path) -> None:
    file.write_bytes(b"")


@pytest.mark.parametrize(
    ("file", "harm", "what"),
    [
        (
            "weights.safetensors",
            truncate,
            "weights.safetensors: it has 189 bytes where 192 bytes were",
        ),
        ("ema.safetensors", flip, "ema.safetensors: its content is not what was written"),
        ("weights.safetensors", Path.unlink, "weights.safetensors: it is missing"),
        ("checkpoint.json", empty, "checkpoint.json: it is not JSON"),
        ("checkpoint.json", truncate, "checkpoint.json: it is not JSON"),
        ("checkpoint.json", Path.unlink, "it has no checkpoint.json"),
        ("", shutil.rmtree, None),
    ],
)
def test_damaged_ones_are_set_aside_with_the_reason(
    tmp_path: Path, file: str, harm, what: str | None
) -> None:
    for step in (1, 2, 3):
        write_checkpoint(tmp_path, checkpoint(step), keep=3)
    harm(tmp_path / "step-00000003" / file)
    found, notes = whole(tmp_path)
    assert found == tmp_path / "step-00000002"
    if what is None:
        assert notes == []
        return
    (note,) = notes
    assert f"set aside as damaged-step-00000003: {what}" in note
    assert note.endswith("; going on from step-00000002")
    assert "\n" not in note
    assert names(tmp_path) == ["damaged-step-00000003", "step-00000001", "step-00000002"]
    assert whole(tmp_path) == (found, [])
    write_checkpoint(tmp_path, checkpoint(3), keep=3)
    harm(tmp_path / "step-00000003" / file)
    assert "damaged-step-00000003.2" in whole(tmp_path)[1][0]


def test_a_number_that_changed_in_the_manifest_is_noticed(tmp_path: Path) -> None:
    path = damaged(tmp_path)
    text = (path / "checkpoint.json").read_text()
    (path / "checkpoint.json").write_text(text.replace('"seconds": 0.1', '"seconds": 0.3'))
    assert "checkpoint.json is damaged: its content is not what was written" in refused(path)
    assert whole(tmp_path)[0] == tmp_path / "step-00000001"


def test_where_none_is_whole_all_stay_and_it_is_an_error(tmp_path: Path) -> None:
    for step in (1, 2):
        truncate(write_checkpoint(tmp_path, checkpoint(step), keep=3) / "ema.safetensors")
    before = names(tmp_path)
    with pytest.raises(InkdropError, match=r"is whole \(step-00000002: ema.*step-00000001: ema"):
        newest_whole(tmp_path, print)
    assert names(tmp_path) == before


def test_one_from_a_newer_version_is_never_set_aside(tmp_path: Path) -> None:
    path = damaged(tmp_path)
    manifest = json.loads((path / "checkpoint.json").read_text())
    manifest["format_version"] = FORMAT_VERSION + 1
    (path / "checkpoint.json").write_text(json.dumps(manifest))
    with pytest.raises(InkdropError, match="upgrade inkdrop"):
        newest_whole(tmp_path, print)
    assert names(tmp_path) == ["step-00000001", "step-00000002"]


def test_a_checkpoint_is_made_in_stages_of_files_that_others_write(tmp_path: Path) -> None:
    temporary = begin(tmp_path, 4)
    (temporary / "ema").mkdir()
    write_synced(temporary / "ema" / "shard-1.safetensors", b"one")
    files = write_part(temporary, "weights", {"w": torch.ones(3)})
    files["ema/shard-1.safetensors"] = entry(temporary / "ema" / "shard-1.safetensors")
    assert newest_checkpoint(tmp_path) is None
    path = commit(tmp_path, temporary, files, 4, {"seconds": 1.0}, 0.25, keep=1)
    assert whole(tmp_path) == (path, [])
    assert read_checkpoint(path, ("weights",)).held_out_loss == 0.25
    truncate(path / "ema" / "shard-1.safetensors")
    with pytest.raises(InkdropError, match=r"ema/shard-1.safetensors is damaged: it has 0 bytes"):
        read_checkpoint(path, ("ema",))
    write_checkpoint(tmp_path, checkpoint(3), keep=1)
    assert whole(tmp_path)[0] == tmp_path / "step-00000003"


def write_version(folder: Path) -> None:
    """How tests/checkpoints/version-N was made, once the format had become N: of version 1."""
    first = VERSIONS / "version-1"
    folder.mkdir()
    write_config(folder, read_config(first))
    shutil.copy(first / "metrics.jsonl", folder)
    state = read_checkpoint(first / "checkpoints" / "step-00000006", (*PARTS, "timesteps"))
    write_checkpoint(folder / "checkpoints", state, keep=1)


@pytest.mark.parametrize("version", range(1, FORMAT_VERSION + 1))
def test_runs_of_every_version_are_read(version: int) -> None:
    run = inkdrop.load(VERSIONS / f"version-{version}")
    path = run.checkpoint
    written = json.loads((path / "checkpoint.json").read_text())
    assert written["format_version"] == version
    assert read_manifest(path)["format_version"] == FORMAT_VERSION
    assert run.step == 6
    estimate = run.denoiser(torch.zeros(3, 2), torch.tensor([0, 10, 19]))
    assert estimate.x_start.isfinite().all()
    back = read_checkpoint(path, (*PARTS, "timesteps"))
    assert back.state["seconds"] == 0.938608041000407
    assert back.state["best_held_out_loss"] is None
    assert back.state["nonfinite"]["rollbacks"] == 0
    assert back.held_out_loss is None
    weights = back.tensors["weights"]
    assert sum(w.double().sum().item() for w in weights.values()) == pytest.approx(SUM, abs=1e-12)


def test_a_checkpoint_of_an_older_version_may_be_the_one_to_go_on_from(tmp_path: Path) -> None:
    shutil.copytree(VERSIONS / "version-1" / "checkpoints", tmp_path / "checkpoints")
    path = tmp_path / "checkpoints" / "step-00000006"
    assert whole(tmp_path / "checkpoints") == (path, [])
    assert best_checkpoint(tmp_path / "checkpoints") is None
    flip(path / "optimizer.safetensors")
    with pytest.raises(InkdropError, match=r"optimizer\.safetensors: its content"):
        newest_whole(tmp_path / "checkpoints", print)


def test_what_mends_a_failure_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for number, mend in ((errno.ENOSPC, "make room"), (errno.EROFS, "mend that")):

        def failing(path: object, number: int = number) -> None:
            raise OSError(number, os.strerror(number))

        monkeypatch.setattr(os, "fsync", failing)
        with pytest.raises(InkdropError, match=f"{os.strerror(number)}; .*none before; {mend}"):
            write_checkpoint(tmp_path / "checkpoints", checkpoint(2), keep=3)
        monkeypatch.undo()
        shutil.rmtree(tmp_path / "checkpoints", ignore_errors=True)
