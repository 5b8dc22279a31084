"""What torchrun tells each process of a job by its environment. Nothing heavy is imported."""

from __future__ import annotations

import os

from .errors import InkdropError


def launched() -> bool:
    """Whether torchrun, or what is like it, started this process as one of several."""
    return number("WORLD_SIZE", 1) > 1 and "RANK" in os.environ


def rank_told() -> int:
    """This process's rank; 0 for one alone."""
    return number("RANK", 0) if launched() else 0


def number(variable: str, otherwise: int) -> int:
    """An environment variable of torchrun's.

    Raises:
        InkdropError: if it is no whole number.
    """
    text = os.environ.get(variable, str(otherwise))
    if not text.isdecimal():
        raise InkdropError(
            f"{variable} must be a whole number, as torchrun sets it, got {text!r}: start the "
            "processes with torchrun, or unset it"
        )
    return int(text)
