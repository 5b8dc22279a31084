"""Whatever call fails, and wherever a process or the power ends, a whole checkpoint stands."""

import builtins
import errno
import io
import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from unittest import mock

import pytest
import torch

from inkdrop.checkpoint import Checkpoint, newest_whole, read_checkpoint, write_checkpoint
from inkdrop.errors import InkdropError

# All that `os` has to change files with, used so far or not.
CHANGING = (
    *("open", "write", "pwrite", "truncate", "ftruncate", "mkdir", "makedirs", "rename", "replace"),
    *("link", "symlink", "unlink", "remove", "rmdir", "fsync", "fdatasync"),
)
KEEP = 2


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """What the disk really does is not looked at here."""
    monkeypatch.setattr(os, "fsync", lambda descriptor: None)


class Killed(BaseException):
    """The process has ended: nothing of it runs any more, so nothing handles this."""


class Disk:
    """Counts the calls that change files, lets one of them fail or be the last, and forgets.

    Args:
        root: the folder whose files are watched.
        at: the index of the call, from 0.
        error: what it fails with; None for the end of the process instead of it.
    """

    def __init__(self, root: Path, at: int, error: int | None) -> None:
        self.root, self.at, self.error = root, at, error
        self.calls: list[str] = []
        self.dead = False
        self._unsynced: set[int] = set()  # inodes of files
        self._unlisted: dict[int, int] = {}  # inodes of what is new, to those of its folders
        self._renamed: list[tuple[Path, Path]] = []

    @contextmanager
    def watching(self) -> Iterator[None]:
        with mock.patch.multiple(
            os, **{name: self._watched(name, getattr(os, name)) for name in CHANGING}
        ):
            real = builtins.open
            with mock.patch.object(builtins, "open", lambda *a, **k: self._open(real, *a, **k)):
                yield

    @property
    def struck(self) -> bool:
        return len(self.calls) > self.at

    def lose_power(self) -> None:
        """What was not synced is gone: content, the names of new files, and new names."""
        for path in self.root.rglob("*"):
            if path.is_file() and path.stat().st_ino in self._unsynced:
                os.truncate(path, path.stat().st_size // 2)
        for source, target in reversed(self._renamed):
            target.rename(source)
        for path in sorted(self.root.rglob("*"), reverse=True):
            if path.stat().st_ino in self._unlisted:
                shutil.rmtree(path) if path.is_dir() else path.unlink()

    def _call(self, name: str, half: Callable[[], Any] = lambda: None) -> None:
        if self.dead:
            raise Killed
        self.calls.append(name)
        if len(self.calls) - 1 == self.at:
            half()
            if self.error is None:
                self.dead = True
                raise Killed
            raise OSError(self.error, os.strerror(self.error))

    def _watched(self, name: str, real: Callable[..., Any]) -> Callable[..., Any]:
        def call(*args: Any, **kwargs: Any) -> Any:
            self._call(name)
            if name == "fsync":
                return self._sync(args[0])
            result = real(*args, **kwargs)
            if name in ("rename", "replace"):
                self._renamed.append((Path(args[0]), Path(args[1])))
            elif name == "mkdir":
                self._new(Path(args[0]))
            return result

        return call

    def _open(self, real: Callable[..., Any], file: Any, mode: str = "r", *args: Any) -> Any:
        if "r" in mode and "+" not in mode:
            return real(file, mode, *args)
        self._call("open for writing")
        opened = real(file, mode, buffering=0)  # a killed process's buffer is lost
        self._new(Path(file))
        return _File(self, opened)

    def _new(self, path: Path) -> None:
        self._unlisted[path.stat().st_ino] = path.parent.stat().st_ino

    def _sync(self, descriptor: int) -> None:
        inode = os.fstat(descriptor).st_ino
        self._unsynced.discard(inode)
        self._unlisted = {new: at for new, at in self._unlisted.items() if at != inode}
        self._renamed = [
            (source, target)
            for source, target in self._renamed
            if target.parent.stat().st_ino != inode
        ]


class _File:
    """A file whose writing is watched."""

    def __init__(self, disk: Disk, file: io.FileIO) -> None:
        self._disk, self._file = disk, file

    def write(self, content: Any) -> int:
        self._disk._unsynced.add(os.fstat(self._file.fileno()).st_ino)
        self._disk._call("write", lambda: self._file.write(content[: len(content) // 2]))
        return self._file.write(content)

    def flush(self) -> None:
        self._disk._call("flush")

    def __enter__(self) -> "_File":
        return self

    def __exit__(self, *error: object) -> None:
        self._file.close()

    def __getattr__(self, name: str) -> Any:
        return getattr(self._file, name)


def checkpoint(step: int, value: float, loss: float | None = None) -> Checkpoint:
    tensors = {"w": torch.full((50,), value), "count": torch.tensor(step)}
    return Checkpoint(step, {"weights": tensors, "ema": tensors}, {"value": value}, loss)


def value_of(path: Path) -> float:
    """What a whole checkpoint holds; an error for one that is not."""
    back = read_checkpoint(path, ("weights", "ema"))
    for part in back.tensors.values():
        assert (part["w"] == back.state["value"]).all()
        assert part["count"].item() == back.step
    return back.state["value"]


def finished(folder: Path) -> list[Path]:
    return sorted(folder.glob("step-*"))


def first(folder: Path) -> Checkpoint:
    """The first ever, in a folder that is not there yet."""
    return checkpoint(1, 1.0)


def another(folder: Path) -> Checkpoint:
    """One that makes another be removed, after a process that left much behind."""
    for step in (1, 2, 3):
        write_checkpoint(folder, checkpoint(step, float(step), 0.5 / step), KEEP)
    for leftover in (".writing-step-00000004", ".removing-step-00000000"):
        (folder / leftover).mkdir()
        (folder / leftover / "weights.safetensors").write_bytes(b"half")
    return checkpoint(4, 4.0, 0.01)


def again(folder: Path) -> Checkpoint:
    """One in the place of the only one, of the same step."""
    write_checkpoint(folder, checkpoint(1, 1.0), KEEP)
    return checkpoint(1, 1.5)


SCENES = [first, another, again]


def every_call(
    root: Path, scene: Callable[[Path], Checkpoint], error: int | None
) -> Iterator[tuple[Disk, Path, set[float], bool]]:
    """Strike each call in turn: the disk, the folder, what it held, whether writing returned."""
    template = root / "template"
    template.mkdir()
    new = scene(template / "checkpoints")
    at = 0
    while True:
        folder = root / f"{at}" / "checkpoints"
        shutil.copytree(template, folder.parent)
        before = {value_of(path) for path in finished(folder)}
        disk = Disk(folder.parent, at, error)
        told = None
        with disk.watching():
            try:
                write_checkpoint(folder, new, KEEP)
            except Killed:
                assert error is None
            except InkdropError as failure:
                told = str(failure)
        returned = told is None and not disk.dead
        if told is not None:
            assert error is not None
            assert os.strerror(error) in told, (told, disk.calls)
            assert "\n" not in told
        if not disk.struck:
            assert returned
            assert at > 10  # each call was struck
            return
        yield disk, folder, before, returned
        at += 1


def assert_whole(folder: Path, before: set[float], new: float) -> None:
    """All that stands is whole, and the newest is the new one or the newest there was."""
    for path in finished(folder):
        value_of(path)
    notes: list[str] = []
    newest = newest_whole(folder, notes.append)
    assert notes == []
    if newest is None:
        assert not before
    else:
        assert value_of(newest) in {new, max(before, default=new)}
    assert [path.name for path in folder.glob(".*")] == []
    write_checkpoint(folder, checkpoint(9, 9.0), KEEP)
    left = [value_of(path) for path in folder.iterdir()]  # whatever is there is a checkpoint
    assert 9.0 in left
    assert len(left) <= KEEP + 1


@pytest.mark.parametrize("scene", SCENES)
@pytest.mark.parametrize("error", [errno.ENOSPC, errno.EIO, errno.EACCES, errno.EROFS])
def test_any_call_may_fail(tmp_path: Path, scene: Callable[[Path], Checkpoint], error: int) -> None:
    for disk, folder, before, returned in every_call(tmp_path, scene, error):
        new = {first: 1.0, another: 4.0, again: 1.5}[scene]
        values = {value_of(path) for path in finished(folder)}
        assert returned or not before or max(before) in values, disk.calls
        assert new in values or not returned, disk.calls
        assert_whole(folder, before, new)


@pytest.mark.parametrize("scene", SCENES)
@pytest.mark.parametrize("power_cut", [False, True], ids=["killed", "power-cut"])
def test_any_call_may_be_the_last(
    tmp_path: Path, scene: Callable[[Path], Checkpoint], power_cut: bool
) -> None:
    outcomes = set()
    for disk, folder, before, _ in every_call(tmp_path, scene, None):
        if power_cut:
            disk.lose_power()
        new = {first: 1.0, another: 4.0, again: 1.5}[scene]
        values = {value_of(path) for path in finished(folder)}
        assert {new, max(before, default=new)} & values or not before, disk.calls
        outcomes.add(new in values)
        assert_whole(folder, before, new)
    assert outcomes == {True, False}


def test_what_is_struck_is_all_that_saving_does(tmp_path: Path) -> None:
    new = another(tmp_path)
    disk = Disk(tmp_path, 10**9, None)
    with disk.watching():
        write_checkpoint(tmp_path, new, KEEP)
    assert {"open", "open for writing", "write", "fsync", "mkdir", "rename", "rmdir", "unlink"} <= {
        *disk.calls
    }
    assert disk._unsynced == set()
    assert disk._unlisted == {}
    assert disk._renamed == []


@pytest.mark.parametrize("forgotten", ["file", "folder"])
def test_a_power_cut_would_show_what_is_not_synced(tmp_path: Path, forgotten: str) -> None:
    """The test of the test: without its syncs, saving does lose checkpoints here."""
    folder = tmp_path / "checkpoints"
    write_checkpoint(folder, checkpoint(1, 1.0), KEEP)
    disk = Disk(tmp_path, 10**9, None)
    sync = disk._sync

    def forgetful(descriptor: int) -> None:
        is_folder = Path(f"/proc/self/fd/{descriptor}").is_dir()
        if is_folder == (forgotten == "file"):
            sync(descriptor)

    disk._sync = forgetful  # type: ignore[method-assign]
    with disk.watching():
        write_checkpoint(folder, checkpoint(2, 2.0), KEEP)
    disk.lose_power()
    notes: list[str] = []
    assert newest_whole(folder, notes.append) == folder / "step-00000001"
    assert len(notes) == (forgotten == "file")


KILLS = 25
LOOP = f"""
import os, random, signal, sys, time
from pathlib import Path
sys.path.insert(0, sys.argv[2])
import torch
from inkdrop.checkpoint import newest_whole, read_manifest, write_checkpoint
from test_checkpoint_faults import checkpoint, value_of

folder = Path(sys.argv[1])
draw = random.Random(0)

def note(text):
    raise SystemExit(text)

def write_on(newest):
    step = read_manifest(newest)["step"] if newest else 0
    while True:
        step += 1
        write_checkpoint(folder, checkpoint(step, float(step), draw.random()), 2)

steps = [0]
for kill in range({KILLS}):
    newest = newest_whole(folder, note)
    child = os.fork()
    if child == 0:
        try:
            write_on(newest)
        finally:
            os._exit(1)
    time.sleep(draw.uniform(0.005, 0.06))
    os.kill(child, signal.SIGKILL)
    _, status = os.waitpid(child, 0)
    assert os.WIFSIGNALED(status), "the writer failed by itself"
    torn = [path.name for path in folder.glob(".*")] if folder.exists() else []
    newest = newest_whole(folder, note)
    steps.append(int(value_of(newest)) if newest else 0)
    assert steps[-1] >= steps[-2]
    for path in folder.glob("*"):
        value_of(path)
    print(steps[-1], *torn)
"""


def test_a_writer_killed_at_random_instants_loses_nothing(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-c", LOOP, str(tmp_path / "checkpoints"), str(Path(__file__).parent)],
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    lines = done.stdout.splitlines()
    assert len(lines) == KILLS
    assert int(lines[-1].split()[0]) > 5
    assert any(".writing-" in line for line in lines)  # some were in the midst of it
