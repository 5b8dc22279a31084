"""Whether a folder may be trained in, by whom, and where to go on in it."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from filelock import FileLock, Timeout

from ..checkpoint import is_leftover, newest_checkpoint, newest_whole
from ..config import LABEL_DROPOUT, Config, differences
from ..errors import InkdropError
from ..run import read_config

_LOCK = ".training.lock"


class RunFolder:
    """A folder to train in, held by one training at a time.

    Args:
        path: the folder.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._lock = FileLock(path / _LOCK)
        self._was_empty = False

    def checkpoint_to_resume(
        self, config: Config, resume: str, note: Callable[[str], None]
    ) -> Path | None:
        """The checkpoint to go on from, or None to start; the folder is held from then on.

        Args:
            note: is told of checkpoints that are damaged; they are set aside.

        Raises:
            InkdropError: for a folder that holds something else, another run's, or (with resume
                "never") this one's; where another training is at work; or where there were
                checkpoints and none is whole.
        """
        if resume not in ("auto", "never"):
            raise InkdropError(f"resume must be auto or never, got {resume!r}")
        out = self.path
        if out.exists() and not out.is_dir():
            raise InkdropError(f"{out} is a file; choose another --out folder")
        self._was_empty = self._is_empty()
        if self._was_empty:
            return None
        if not (out / "config.json").exists():
            raise InkdropError(f"{out} is not empty and holds no run; choose another --out folder")
        changes = differences(read_config(out), config)
        if changes:
            raise InkdropError(
                f"{out} holds another run, which differs in {'; '.join(changes)}; choose another "
                "--out folder, or give that run's own options to go on with it"
            )
        newest = newest_checkpoint(out / "checkpoints")
        if resume == "never" and newest is not None:
            raise InkdropError(
                f"{out} holds this run already ({newest.name}); with --resume auto it goes on, or "
                "choose another --out folder"
            )
        self.hold()
        return newest_whole(out / "checkpoints", note)

    def label_dropout(self) -> float | None:
        """What a run here has where none is given: a new one the usual, a run of before its own."""
        if (self.path / "config.json").exists():
            return read_config(self.path).label_dropout
        return LABEL_DROPOUT

    def hold(self) -> None:
        """Let no other training work in the folder, until this process lets go or ends.

        Raises:
            InkdropError: where another one is at work, or has begun a run since this one looked.
        """
        if self._lock.is_locked:
            return
        self.path.mkdir(parents=True, exist_ok=True)
        try:
            self._lock.acquire(blocking=False)
        except Timeout:
            raise InkdropError(
                f"another training is at work in {self.path}: wait for it, stop it, or choose "
                "another --out folder"
            ) from None
        except NotImplementedError:
            pass  # a file system without locks
        if self._was_empty and not self._is_empty():
            self.let_go()
            raise InkdropError(
                f"another training has begun in {self.path} meanwhile: give the same command again "
                "to go on with it, or choose another --out folder"
            )

    def let_go(self) -> None:
        """Let other trainings work in the folder."""
        self._lock.release()

    def _is_empty(self) -> bool:
        """Whether there is nothing but what a process leaves that is killed as it starts."""
        if not self.path.exists():
            return True
        return all(path.name == _LOCK or is_leftover(path) for path in self.path.iterdir())
