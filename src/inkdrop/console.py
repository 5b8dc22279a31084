"""Plain sentences on a console, and bars for what takes a while."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from rich.console import Console

_WARNING = "warning:"


def say(console: Console | None, text: str) -> None:
    """Print text as it is, with no markup read into paths and no lines broken; None is silent.

    In a terminal, "warning:" at its beginning is yellow.
    """
    if console is not None:
        from rich.text import Text

        shown = Text(text)
        if text.startswith(_WARNING):
            shown.stylize("yellow", 0, len(_WARNING))
        console.print(shown, highlight=False, soft_wrap=True)


def duration(seconds: float) -> str:
    """ "80 s", "9.5 min", "2.3 h", "4.1 days": about how long something takes."""
    for unit, length in (("days", 86400.0), ("h", 3600.0), ("min", 60.0)):
        if seconds >= 1.5 * length:
            return f"{seconds / length:.1f} {unit}"
    return f"{seconds:.0f} s"


def counted(count: int, noun: str) -> str:
    """ "1 image", "2,000 images": a number of what takes an s."""
    return f"{count:,} {noun}{'' if count == 1 else 's'}"


@contextmanager
def progress_bar(
    console: Console | None, what: str, total: int | None, noun: str = "network inputs"
) -> Iterator[Callable[[int], None]]:
    """A bar of what is done, if a person is watching; yields what moves it on by some.

    Args:
        total: how many there will be; None where nobody knows.
        noun: what they are.
    """
    from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

    bar = Progress(
        TextColumn(f"[bold]{what}"),
        BarColumn(),
        TextColumn("{task.completed:,.0f} " + noun),
        TimeRemainingColumn(),
        console=console,
        disable=console is None or not console.is_terminal,
    )
    task = bar.add_task("", total=total)
    with bar:
        yield lambda done: bar.advance(task, done)
