"""Leaving cleanly when asked to."""

from __future__ import annotations

import os
import signal
import socket
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType

# SLURM announces with SIGUSR1 that a job's time is over; Windows has no such signal.
STOP_SIGNALS = tuple(
    signal.Signals[name]
    for name in ("SIGINT", "SIGTERM", "SIGUSR1")
    if name in signal.Signals.__members__
)


@contextmanager
def handling_stop_signals(
    stop: Callable[[signal.Signals], None], *, patient: bool = False, grace: float | None = None
) -> Iterator[None]:
    """Inside, SIGINT, SIGTERM and SIGUSR1 call `stop`; a second one acts as it always does.

    Only the main thread may handle signals: in another one nothing is changed.

    Args:
        patient: a second signal of a kind calls `stop` again: a launcher repeats what the terminal
            has sent already.
        grace: seconds after which the process ends if Python has not come to handle a signal, as
            when it waits in a collective for a process that is no more; None to wait forever.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = {number: signal.getsignal(number) for number in STOP_SIGNALS}
    heard = threading.Event()

    def handle(number: int, frame: FrameType | None) -> None:
        heard.set()
        if not patient:
            signal.signal(number, before[signal.Signals(number)])
        stop(signal.Signals(number))

    for number in before:
        signal.signal(number, handle)
    try:
        with _leaving_when_stuck(heard, grace):
            yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


@contextmanager
def _leaving_when_stuck(heard: threading.Event, grace: float | None) -> Iterator[None]:
    """End the process `grace` seconds after a signal that Python does not come to handle."""
    if grace is None:
        yield
        return
    reading, writing = socket.socketpair()
    writing.setblocking(False)
    before = signal.set_wakeup_fd(writing.fileno(), warn_on_full_buffer=False)

    def watch() -> None:
        while number := reading.recv(1):
            if number[0] in STOP_SIGNALS and not heard.wait(grace):
                name = signal.Signals(number[0]).name
                told = f"inkdrop: stopped by {name}, though stuck for {grace:g} s, as when another "
                told += "process does not answer; the same command goes on from the last checkpoint"
                os.write(2, f"{told}\n".encode())
                os._exit(128 + number[0])

    watching = threading.Thread(target=watch, name="inkdrop-signals", daemon=True)
    watching.start()
    try:
        yield
    finally:
        signal.set_wakeup_fd(before)
        writing.close()
        watching.join()
        reading.close()
