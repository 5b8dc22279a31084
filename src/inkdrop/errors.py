"""The one exception for a user's mistake, and what several places say alike."""

from __future__ import annotations

import difflib
import errno
from collections.abc import Iterable


class InkdropError(ValueError):
    """A mistake the user can mend; the message is one line: what, which value, what is allowed.

    Attributes:
        exit_code: of a command that ends with it.
    """

    exit_code = 2


def is_full(error: OSError) -> bool:
    """Whether it is for want of room on a disk."""
    return error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


def unknown_name(kind: str, name: str, choices: Iterable[str]) -> InkdropError:
    """The error for a name that is not among `choices`: the nearest match first, then all."""
    known = list(choices)
    nearest = difflib.get_close_matches(name, known, n=1, cutoff=0.5)
    hint = f"did you mean {nearest[0]!r}? " if nearest else ""
    return InkdropError(f"unknown {kind} {name!r}: {hint}choose from {', '.join(known)}")
