"""Whether a folder may be trained in, and where to go on in it."""

from __future__ import annotations

from pathlib import Path

from ..checkpoint import newest_checkpoint
from ..config import Config, differences
from ..errors import InkdropError
from ..run import read_config


def checkpoint_to_resume(out: Path, config: Config, resume: str) -> Path | None:
    """The checkpoint to go on from, or None to start.

    Raises:
        InkdropError: for a folder that holds something else, another run's, or (with resume
            "never") this one's.
    """
    if resume not in ("auto", "never"):
        raise InkdropError(f"resume must be auto or never, got {resume!r}")
    if out.exists() and not out.is_dir():
        raise InkdropError(f"{out} is a file; choose another --out folder")
    if not out.exists() or not any(out.iterdir()):
        return None
    if not (out / "config.json").exists():
        raise InkdropError(f"{out} is not empty and holds no run; choose another --out folder")
    changes = differences(read_config(out), config)
    if changes:
        raise InkdropError(
            f"{out} holds another run, which differs in {'; '.join(changes)}; choose another --out "
            "folder, or give that run's own options to go on with it"
        )
    checkpoint = newest_checkpoint(out / "checkpoints")
    if resume == "never" and checkpoint is not None:
        raise InkdropError(
            f"{out} holds this run already ({checkpoint.name}); with --resume auto it goes on, or "
            "choose another --out folder"
        )
    return checkpoint
