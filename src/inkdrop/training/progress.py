"""What a person sees while training: a live bar in a terminal, a line now and then elsewhere."""

from __future__ import annotations

import time

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TextColumn,
    TimeRemainingColumn,
)

from ..console import duration, say

_SECONDS_BETWEEN_LINES = 15.0


class TrainingProgress:
    """Progress of training on a console.

    Args:
        total: steps of the whole training.
        done: steps already done.
        console: where to draw; None draws nothing.
        noun: what one example is called.
    """

    def __init__(self, total: int, done: int, console: Console | None, noun: str = "image") -> None:
        self.console = console
        self.noun = noun
        self.total = total
        self._began = time.monotonic()
        self._first = done
        self._last_line = self._began
        self._bar: Progress | None = None
        if console is not None and console.is_terminal:
            self._bar = Progress(
                TextColumn("[bold]training"),
                BarColumn(bar_width=None),
                MofNCompleteColumn(),
                TextColumn("{task.fields[figures]}"),
                TimeRemainingColumn(),
                console=console,
            )
            self._task = self._bar.add_task("", total=total, completed=done, figures="")
            self._bar.start()

    def update(self, step: int, loss: float, rate: float) -> None:
        """Show that `step` steps are done, `rate` examples a second."""
        figures = f"loss {loss:.4f} · {rate:,.0f} {self.noun}s/s"
        now = time.monotonic()
        if self._bar is not None:
            self._bar.update(self._task, completed=step, figures=figures)
        elif self.console is not None and (
            now - self._last_line > _SECONDS_BETWEEN_LINES or step == self.total
        ):
            self._last_line = now
            seconds_per_step = (now - self._began) / max(1, step - self._first)
            left = f"{duration(seconds_per_step * (self.total - step))} left"
            if step == self.total:
                left = f"in {duration(now - self._began)}"
            self.say(f"step {step:,}/{self.total:,} · {figures} · {left}")

    def say(self, message: str) -> None:
        """Print a line above the bar."""
        say(self.console, message)

    def close(self) -> None:
        """Leave the bar as it is."""
        if self._bar is not None:
            self._bar.stop()
