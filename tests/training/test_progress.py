"""What a person sees while training."""

import io

import pytest
from rich.console import Console

from inkdrop.training.progress import TrainingProgress


def shown(terminal: bool, clock: list[float], monkeypatch: pytest.MonkeyPatch) -> str:
    monkeypatch.setattr("inkdrop.training.progress.time.monotonic", lambda: clock[0])
    screen = io.StringIO()
    console = Console(file=screen, force_terminal=terminal, width=100)
    progress = TrainingProgress(total=1000, done=0, console=console)
    for step in (100, 200, 1000):
        clock[0] += 10
        progress.update(step, 0.25, 1234.5)
    progress.say("half way")
    progress.close()
    return screen.getvalue()


def test_a_terminal_gets_a_bar_with_loss_speed_and_time_left(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    text = shown(True, [0.0], monkeypatch)
    assert "training" in text
    assert "1000/1000" in text
    assert "loss 0.2500 · 1,234 images/s" in text
    assert "0:00:00" in text


def test_elsewhere_a_line_comes_now_and_then_and_at_the_end(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    lines = shown(False, [0.0], monkeypatch).splitlines()
    assert lines == [
        "step 200/1,000 · loss 0.2500 · 1,234 images/s · 80 s left",
        "step 1,000/1,000 · loss 0.2500 · 1,234 images/s · in 30 s",
        "half way",
    ]


def test_the_speed_is_told_in_what_is_trained_on() -> None:
    screen = io.StringIO()
    progress = TrainingProgress(10, 0, Console(file=screen, width=100), "point")
    progress.update(10, 0.25, 1234.5)
    assert "1,234 points/s" in screen.getvalue()


def test_nothing_is_shown_without_a_console() -> None:
    progress = TrainingProgress(total=10, done=0, console=None)
    progress.update(10, 0.1, 1.0)
    progress.say("unheard")
    progress.close()
