"""The real examples that samples of a run are held against."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from rich.console import Console

from .config import OWN_IMAGES
from .data.examples import Examples
from .data.loading import load_source
from .data.stream import held_out_split
from .errors import InkdropError
from .processes import current
from .run import Run, Told
from .sharing import unique

TRAIN, HELD_OUT, GIVEN = "train", "held-out", "given"
REFERENCES = (TRAIN, HELD_OUT)


@dataclass(frozen=True)
class RealExamples:
    """Real examples, and what they are to the run.

    Attributes:
        reference: what samples are held against.
        split: "train" or "held-out" of the run's data, or "given": other data.
        other: what the reference is held against for comparison: the other of the two splits, of
            the same classes; None for other data, or where nothing was held out.
        train, held_out: the run's own, whole; None where they are not at hand.
    """

    reference: Examples
    split: str
    other: Examples | None
    train: Examples | None
    held_out: Examples | None


def real_examples(
    run: Run,
    data: Sequence[str] = (),
    source: Any = None,
    reference: str = TRAIN,
    told: Told | None = None,
    console: Console | None = None,
) -> RealExamples:
    """The real examples of an evaluation; the arguments are those of `write_evaluations`.

    Raises:
        InkdropError: if they cannot be had, or are not what samples of this run could be.
    """
    if reference not in REFERENCES:
        raise InkdropError(f"reference must be train or held-out, got {reference!r}")
    if source is None and not data and run.config.data.source == OWN_IMAGES:
        raise InkdropError(
            f"the data of {run.path} is the user's own: pass it, evaluate(run, source=…), or give "
            "the files of such data with --data"
        )
    with current().one_here_first(unique("data")):  # which may decode them into the cache
        given = _given(run, data, console) if data else None
        train = held_out = None
        if given is not None and given[0].fingerprint == run.fingerprint:
            (train, held_out), given = given, None
        elif given is None or run.config.data.source != OWN_IMAGES:
            try:
                loaded = run.load_data(source=source)
                train, held_out = loaded.train, loaded.source.test or loaded.held_out
            except InkdropError:
                if given is None:
                    raise
    if given is not None:
        chosen = given[0] if reference == TRAIN else given[1]
        split, other = GIVEN, None
    else:
        chosen, other = (train, held_out) if reference == TRAIN else (held_out, train)
        split = reference
    if chosen is None:
        raise InkdropError(
            f"nothing is held out of the data of {run.path}: choose --reference train"
        )
    if told is not None and isinstance(told.classes, tuple):
        chosen = _of_classes(chosen, told.classes)
        other = None if other is None else _of_classes(other, told.classes)
    if len(chosen) < 2:
        raise InkdropError(f"{chosen.name}: one example is nothing to hold samples against")
    return RealExamples(chosen, split, other, train, held_out)


def _given(
    run: Run, places: Sequence[str], console: Console | None
) -> tuple[Examples, Examples | None]:
    """What lies there, made of the run's size: all of it or its training split, and its test split.

    Of the run's own data these are what it was trained on, and what was held out.
    """
    config, images = run.config.data, len(run.shape) == 3
    size = {"size": run.shape[1:], "channels": run.shape[0]} if images else {}
    if images and run.shape[0] not in (1, 3, 4):
        size = {}
    found = load_source(
        config.model_copy(update={"source": "files", "path": tuple(places), **size}), console
    ).source
    noun = "image" if images else "point"
    if found.train.noun != noun or found.train.shape != run.shape:
        raise InkdropError(
            f"--data {' '.join(places)}: {found.train.noun}s of shape {found.train.shape} are "
            f"nothing to hold this run's {noun}s of {run.shape} against"
        )
    train, held_out = held_out_split(found.train, found.test, config.held_out)
    if train.fingerprint == run.fingerprint:
        return train, found.test or held_out
    return found.train, found.test


def _of_classes(examples: Examples, classes: tuple[int, ...]) -> Examples:
    """Those with one of these labels."""
    if examples.labels is None or examples.labels.is_floating_point():
        return examples
    index = torch.isin(examples.labels, torch.tensor(classes)).nonzero()[:, 0]
    if len(index) == 0:
        raise InkdropError(
            f"{examples.name} has no examples of class {', '.join(map(str, classes))}"
        )
    return examples.take(index)
