"""The command line. Nothing heavy is imported until a command needs it."""

from __future__ import annotations

import io
import sys
import warnings
from collections.abc import Callable, Sequence
from dataclasses import fields
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .console import say
from .errors import InkdropError, unknown_name

if TYPE_CHECKING:
    from rich.console import Console

_HELP = """\
inkdrop: denoising diffusion models, from images to samples, pictures and numbers

usage: inkdrop COMMAND ...

  train PRESET    train on images, or go on where a run left off
  sample RUN      generate images from a run
  report RUN      make a run's pictures and its report.html
  presets         list what train can start from
  doctor          check this machine

inkdrop COMMAND --help tells more. Start with: inkdrop train digits
"""


def main() -> None:
    """The entry point of the `inkdrop` command."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="replace")  # a terminal without × or ᾱ shows a ? there
    sys.exit(run(sys.argv[1:]))


def run(arguments: Sequence[str]) -> int:
    """Run one command; returns its exit code. A user's mistake is one line on stderr and 2."""
    warnings.showwarning = _show_warning  # type: ignore[assignment]
    try:
        if not arguments or arguments[0] in ("-h", "--help", "help"):
            print(_HELP, end="")  # noqa: T201
            return 0
        if arguments[0] == "--version":
            from . import __version__

            print(f"inkdrop {__version__}")  # noqa: T201
            return 0
        if arguments[0] not in _COMMANDS:
            raise unknown_name("command", arguments[0], _COMMANDS)
        return _COMMANDS[arguments[0]](list(arguments[1:]))
    except InkdropError as error:
        return _fail(str(error))
    except OSError as error:
        return _fail(f"{error.strerror or error}: {error.filename or ''}".rstrip(": "))
    except KeyboardInterrupt:
        print("inkdrop: stopped", file=sys.stderr)  # noqa: T201
        return 130


def _fail(message: str) -> int:
    print(f"inkdrop: {' '.join(message.split())}", file=sys.stderr)  # noqa: T201
    return 2


def _train(arguments: list[str]) -> int:
    from .presets import PRESETS, preset

    if not arguments or arguments[0] in ("-h", "--help"):
        names = "\n".join(
            f"  {name:12} {(make.__doc__ or '').strip()}" for name, make in PRESETS.items()
        )
        _print(
            "usage: inkdrop train PRESET [options]\n\npresets:\n"
            f"{names}\n\ninkdrop train PRESET --help lists every option and its default."
        )
        return 0 if arguments else _fail(f"train needs a preset: {', '.join(PRESETS)}")
    if arguments[0].startswith("-"):
        raise InkdropError(f"the preset comes first: inkdrop train PRESET {arguments[0]} …")
    config = preset(arguments[0])
    if any(argument.startswith("--training.epochs") for argument in arguments):
        config.training.steps = None  # the preset's length gives way to the one asked for

    from .options import TrainOptions, parse

    description = (PRESETS[arguments[0]].__doc__ or "").strip()
    options = parse(
        TrainOptions,
        arguments[1:],
        f"inkdrop train {arguments[0]}",
        description,
        TrainOptions(config=config),
    )
    config = options.config
    if options.data:
        config.data.path = options.data
    if options.steps is not None:
        config.training.epochs = None
        config.training.steps = options.steps

    from .training.trainer import Trainer

    console = _console()
    trainer = Trainer(config, options.out, resume=options.resume, console=console)
    trainer.run()
    if trainer.stopped_by is not None and trainer.step < trainer.total:
        return 128 + int(trainer.stopped_by)
    say(console, f"the run is in {trainer.out}; next: inkdrop sample {trainer.out}")
    return 0


def _sample(arguments: list[str]) -> int:
    path, rest = _run_folder("sample", arguments)
    from .options import SampleOptions, parse

    options = parse(
        SampleOptions, rest, "inkdrop sample RUN", "Generate images from a run.", SampleOptions()
    )
    from .run import load
    from .sampling import write_samples

    console = _console()
    made = write_samples(
        load(path, device=options.device),
        **{f.name: getattr(options, f.name) for f in fields(options) if f.name != "device"},
        console=console,
    )
    say(console, f"{options.n} images and a grid are in {made}; next: inkdrop report {path}")
    return 0


def _report(arguments: list[str]) -> int:
    path, rest = _run_folder("report", arguments)
    _no_options(rest, "inkdrop report RUN", "Make RUN/report.html.")
    from .report.page import write_report
    from .run import load

    console = _console()
    with console.status("drawing"):
        page = write_report(load(path))
    say(console, f"the report is {page}: open it in a browser")
    return 0


def _presets(arguments: list[str]) -> int:
    _no_options(arguments, "inkdrop presets", "List the presets.")
    from .presets import PRESETS

    _print(
        "\n".join(
            f"{name:12} {(make.__doc__ or '').strip()}\n{'':12} {_summary(make())}"
            for name, make in PRESETS.items()
        )
    )
    return 0


def _summary(config: Any) -> str:
    training = config.training
    return (
        f"{config.prediction} prediction, {config.schedule.kind} schedule, "
        f"T = {config.schedule.timesteps:,}, {training.steps:,} steps of {training.batch_size}"
    )


def _doctor(arguments: list[str]) -> int:
    _no_options(arguments, "inkdrop doctor", "Check this machine.")
    from .doctor import examine

    return examine(_console())


_COMMANDS: dict[str, Callable[[list[str]], int]] = {
    "train": _train,
    "sample": _sample,
    "report": _report,
    "presets": _presets,
    "doctor": _doctor,
}


def _no_options(arguments: list[str], program: str, description: str) -> None:
    from .options import NoOptions, parse

    parse(NoOptions, arguments, program, description, NoOptions())


def _run_folder(command: str, arguments: list[str]) -> tuple[Path, list[str]]:
    """The RUN argument, which comes first, and the rest."""
    if arguments and arguments[0] in ("-h", "--help"):
        return Path(), arguments
    if not arguments or arguments[0].startswith("-"):
        raise InkdropError(f"{command} needs a run folder first: inkdrop {command} runs/digits")
    return Path(arguments[0]), arguments[1:]


def _show_warning(message: Warning | str, category: type[Warning], *_: Any) -> None:
    print(f"inkdrop: warning: {message}", file=sys.stderr)  # noqa: T201


def _console() -> Console:
    from rich.console import Console

    return Console()


def _print(text: str) -> None:
    print(text)  # noqa: T201
