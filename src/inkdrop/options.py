"""The commands' options, and their parser: tyro's, with its messages made one line."""

from __future__ import annotations

import contextlib
import io
import re
from dataclasses import dataclass
from itertools import chain
from typing import Annotated, TypeVar

import tyro

from .config import Config
from .errors import InkdropError

Options = TypeVar("Options")


@dataclass
class TrainOptions:
    """Options of `inkdrop train`."""

    config: Annotated[Config, tyro.conf.arg(name="")]
    out: str | None = None
    """The run folder; runs/PRESET where not given."""
    data: tuple[str, ...] = ()
    """The images: a folder or files; the preset's own place where not given."""
    steps: int | None = None
    """Optimizer steps, instead of the preset's."""
    resume: str = "auto"
    """auto goes on with the run in the folder; never refuses a folder that holds one."""


@dataclass
class SampleOptions:
    """Options of `inkdrop sample`."""

    n: Annotated[int, tyro.conf.arg(aliases=("-n",))] = 64
    """How many images."""
    sampler: str = "ddim"
    """ddim, ancestral or ancestral-beta."""
    steps: int | None = None
    """Network evaluations; 50 for ddim and every timestep for ancestral where not given."""
    seed: int = 0
    """Names the images: image i of a seed is always the same."""
    out: str | None = None
    """A new folder for them; one inside RUN/samples where not given."""
    weights: str = "ema"
    """ema (averaged) or raw."""
    batch_size: int = 256
    """Images computed at once."""
    trajectory: bool = False
    """Also draw how they came about: trajectory.png and trajectory.gif."""
    device: str = "auto"
    """auto, cpu, cuda or mps."""


@dataclass
class NoOptions:
    """A command without options."""


def parse(
    kind: type[Options], arguments: list[str], program: str, description: str, default: Options
) -> Options:
    """The options that `arguments` give, on top of `default`; `--help` prints them and exits."""
    markers = (tyro.conf.AvoidSubcommands, tyro.conf.HelptextFromCommentsOff)
    complaint = io.StringIO()
    try:
        with contextlib.redirect_stderr(complaint):
            return tyro.cli(
                kind,
                prog=program,
                description=description,
                args=arguments,
                default=default,
                config=markers,
            )
    except SystemExit as leaving:
        if not leaving.code:
            raise
        raise _one_line(complaint.getvalue(), program) from None


def _one_line(box: str, program: str) -> InkdropError:
    """What tyro drew in a box, or without UTF-8 under a title, as one sentence."""
    sections: list[list[str]] = [[]]
    for line in (line.strip(" │") for line in box.splitlines()):
        if line.startswith(("╭", "╰")) or (line and set(line) <= {"─", "-"}):
            sections.append([])
        elif line:
            sections[-1].append(line)
    said = " ".join(sections[1]) if len(sections) > 1 else ""
    said = re.sub(r"^Error parsing (config\S*: )?", "", said)
    unknown = re.match(r"Unrecognized options: (-\S*?)(,|$)", said)
    if unknown:
        nearest = re.search(r"Perhaps you meant: (--[\w.-]+)", " ".join(chain(*sections[2:])))
        hint = f": did you mean {nearest[1]}?" if nearest else ";"
        return InkdropError(f"unknown option {unknown[1]}{hint} {program} --help lists them all")
    return InkdropError(f"{said or 'the options cannot be read'} ({program} --help)")
