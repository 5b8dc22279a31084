"""Plain sentences on a console, and bars for what takes a while."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from rich.console import Console


def say(console: Console | None, text: str) -> None:
    """Print text as it is, with no markup read into paths and no lines broken; None is silent."""
    if console is not None:
        console.print(text, highlight=False, markup=False, soft_wrap=True)


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
