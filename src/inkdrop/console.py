"""Plain sentences on a console."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from rich.console import Console


def say(console: Console | None, text: str) -> None:
    """Print text as it is, with no markup read into paths and no lines broken; None is silent."""
    if console is not None:
        console.print(text, highlight=False, markup=False, soft_wrap=True)
