"""The command line. Nothing heavy is imported until a command needs it."""

from __future__ import annotations

import io
import json
import os
import shlex
import sys
import warnings
from collections.abc import Callable, Sequence
from dataclasses import fields
from itertools import takewhile
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .allocator import keep_memory
from .console import say
from .errors import InkdropError, is_full, unknown_name
from .launcher import launched, rank_told

if TYPE_CHECKING:
    from rich.console import Console

    from .config import Config
    from .run import Run

_HELP = """\
inkdrop: denoising diffusion models, from images to samples, pictures and numbers

usage: inkdrop COMMAND ...

  train PRESET    train on images, or go on where a run left off
  data check PATH look at images before training on them
  sample RUN      generate images from a run
  edit RUN …      vary, inpaint, interpolate, colourise or upscale images with a run
  evaluate RUN    hold samples against real images, and look for copies
  likelihood RUN  measure bits per dimension, term by term
  fit RUN         fit timesteps to a run, for sample --timesteps fitted
  classifier      train a classifier of the data's own classes, or list what is kept
  report RUN      make a run's pictures and its report.html
  compare RUN …   hold runs against their data and each other
  presets         list what train can start from
  doctor          check this machine, a preset's needs, or what is wrong with a run

inkdrop COMMAND --help tells more. Start with: inkdrop train digits
"""


def main() -> None:
    """The entry point of the `inkdrop` command."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="replace")  # a terminal without × or ᾱ shows a ? there
    keep_memory()
    code = run(sys.argv[1:])
    if "RANK" in os.environ:
        # Torn down with the interpreter, threads of a process group can abort the process or keep
        # it waiting for one that is gone. All that was to be written is on the disk.
        for stream in (sys.stdout, sys.stderr):
            stream.flush()
        os._exit(code)
    sys.exit(code)


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
        return _command(arguments[0], list(arguments[1:]))
    except _SaidElsewhere:
        return 2
    except InkdropError as error:
        _fail(str(error))
        return error.exit_code
    except OSError as error:
        mend = "; make room and give the same command again" if is_full(error) else ""
        return _fail(f"{error.strerror or error}: {error.filename or ''}".rstrip(": ") + mend)
    except KeyboardInterrupt:
        print("inkdrop: stopped", file=sys.stderr)  # noqa: T201
        return 130


class _SaidElsewhere(InkdropError):
    """A mistake that another process of the job has told already."""


def _command(name: str, arguments: list[str]) -> int:
    """Run a command, in all processes that torchrun started where it can be shared."""
    if not launched():
        return _COMMANDS[name](arguments)
    if name not in _SHARED:
        if rank_told():
            return 0
        print(f"inkdrop: {name} works in one process; the others leave", file=sys.stderr)  # noqa: T201
        return _COMMANDS[name](arguments)
    from .processes import ProcessLost, joined

    with joined() as processes:
        try:
            return _COMMANDS[name](arguments)
        except ProcessLost:
            raise
        except (InkdropError, OSError) as error:
            if processes.is_first_to_say(str(error)):
                raise
            raise _SaidElsewhere from error


def _fail(message: str) -> int:
    rank = os.environ.get("RANK", "0")
    speaker = "inkdrop" if rank == "0" else f"inkdrop (process {rank})"
    print(f"{speaker}: {' '.join(message.split())}", file=sys.stderr)  # noqa: T201
    return 2


def _train(arguments: list[str]) -> int:
    from .presets import PRESETS, fitted, preset

    if not arguments or arguments[0] in ("-h", "--help"):
        names = "\n".join(
            f"  {name:20} {(make.__doc__ or '').strip()}" for name, make in PRESETS.items()
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
    program = f"inkdrop train {arguments[0]}"

    def parsed(start: Config) -> TrainOptions:
        options = parse(
            TrainOptions, arguments[1:], program, description, TrainOptions(config=start)
        )
        config = options.config
        if options.data:
            config.data.path = options.data
        if options.bad_images is not None:
            config.data.bad_images = options.bad_images
        if options.steps is not None:
            config.training.epochs = None
            config.training.steps = options.steps
        if options.batch_size == "auto":
            config.training.accumulation = "auto"
        elif options.batch_size is not None:
            config.training.batch_size = _number("--batch-size", options.batch_size, "auto")
        if options.deterministic:
            config.training.deterministic = True
        if options.on_nonfinite is not None:
            config.training.on_nonfinite = options.on_nonfinite
        if options.evaluate_every is not None:
            config.logging.evaluate_every = options.evaluate_every
        return options

    options = parsed(config)
    console, loaded = _console(), None
    if arguments[0] == "folder":
        from .data.loading import load_source

        loaded = load_source(options.config.data, console, conditional=options.config.conditional)
        train_set = loaded.source.train
        if train_set.noun != "image":
            raise InkdropError(
                f"{train_set.name} holds {train_set.noun}s, and the preset folder is for images: "
                f"inkdrop train points-gmm --data {' '.join(options.config.data.path)}"
            )
        # The network is proposed from them; flags go before that.
        options = parsed(fitted(config, train_set.shape, len(train_set)))

    from .training.trainer import Trainer

    trainer = Trainer(
        options.config, options.out, resume=options.resume, loaded=loaded, console=console
    )
    trainer.run()
    if trainer.stopped_by is not None and trainer.step < trainer.total:
        return 128 + int(trainer.stopped_by)
    say(console, f"the run is in {trainer.out}; next: inkdrop sample {trainer.out}")
    return 0


def _number(option: str, text: str, other: str) -> int:
    if not text.isdecimal() or int(text) < 1:
        raise InkdropError(f"{option} must be a number from 1, or {other}, got {text!r}")
    return int(text)


def _data(arguments: list[str]) -> int:
    return _one_of(
        "data",
        {"check": _data_check, "cache": _data_cache},
        "  check PATH   look at images: what they are, what is wrong, what training costs\n"
        "  cache        what decoded images are kept, and how to be rid of them\n\n"
        "PATH is a folder, an archive or files of any kind, or hf:NAME for a set of the hub.",
        arguments,
    )


def _one_of(
    group: str,
    commands: dict[str, Callable[[list[str]], int]],
    told: str,
    arguments: list[str],
) -> int:
    """Run a command of a group, or tell what there is."""
    if not arguments or arguments[0] in ("-h", "--help"):
        _print(f"usage: inkdrop {group} COMMAND\n\n{told}")
        return 0 if arguments else _fail(f"{group} needs a command: {', '.join(commands)}")
    if arguments[0] not in commands:
        raise unknown_name(f"{group} command", arguments[0], commands)
    return commands[arguments[0]](arguments[1:])


def _data_check(arguments: list[str]) -> int:
    paths = list(takewhile(lambda argument: not argument.startswith("-"), arguments))
    from .options import DataCheckOptions, parse

    options = parse(
        DataCheckOptions,
        arguments[len(paths) :],
        "inkdrop data check PATH",
        "Look at images before training on them. Leaves with 1 if some cannot be used.",
        DataCheckOptions(),
    )
    if not paths:
        raise InkdropError("data check needs a path first: inkdrop data check photos/")
    from .checking import check_data

    return check_data(paths, options, _console())


def _data_cache(arguments: list[str]) -> int:
    from .options import DataCacheOptions, parse

    options = parse(
        DataCacheOptions,
        arguments,
        "inkdrop data cache",
        "What decoded images are kept.",
        DataCacheOptions(),
    )
    from .checking import show_cache

    show_cache(options.clear, _console())
    return 0


def _sample(arguments: list[str]) -> int:
    path, rest = _run_folder("sample", arguments)
    from .options import SampleOptions, parse

    options = parse(
        SampleOptions, rest, "inkdrop sample RUN", "Generate images from a run.", SampleOptions()
    )
    from .sampling import write_samples

    console = _console()
    run = _loaded(path, options)
    made = write_samples(run, **_named(options), console=console)
    what = "images and a grid" if len(run.shape) == 3 else "points"
    n = json.loads((made / "samples.json").read_bytes())["n"]
    say(console, f"{n} {what} are in {made}; next: inkdrop report {path}")
    return 0


def _evaluate(arguments: list[str]) -> int:
    path, rest = _run_folder("evaluate", arguments)
    from .options import EvaluateOptions, parse

    options = parse(
        EvaluateOptions,
        rest,
        "inkdrop evaluate RUN",
        "Hold samples of a run against real images, and look for copies of them.",
        EvaluateOptions(),
    )
    from .evaluating import write_evaluations

    command = shlex.join(["inkdrop", "evaluate", *arguments])
    console = _console()
    write_evaluations(_loaded(path, options), **_named(options), command=command, console=console)
    say(console, f"kept in {path / 'evaluation.json'}; next: inkdrop report {path}")
    return 0


def _edit(arguments: list[str]) -> int:
    path, rest = _run_folder("edit", arguments)
    words = list(takewhile(lambda word: not word.startswith("-"), rest))
    from .options import EditOptions, parse

    options = parse(
        EditOptions,
        rest[len(words) :],
        "inkdrop edit RUN EDIT IMAGE …",
        "Change images with a run. EDIT is vary, inpaint, interpolate, reconstruct, colourise or "
        "upscale. IMAGE is a file, or held-out:3 for one of the run's own held-out images.",
        EditOptions(),
    )
    from .edits import OPERATIONS, PICTURE, write_edit

    if not words:
        raise InkdropError(
            f"edit needs to know which: inkdrop edit {path} {' or '.join(OPERATIONS)} IMAGE …"
        )
    console = _console()
    made = write_edit(
        _loaded(path, options), words[0], words[1:], **_named(options), console=console
    )
    say(console, f"kept in {made}; to see it: {made / PICTURE}")
    return 0


def _likelihood(arguments: list[str]) -> int:
    path, rest = _run_folder("likelihood", arguments)
    from .options import LikelihoodOptions, parse

    options = parse(
        LikelihoodOptions,
        rest,
        "inkdrop likelihood RUN",
        "Measure a run's bits per dimension.",
        LikelihoodOptions(),
    )
    from .scoring import write_likelihood

    console = _console()
    file = write_likelihood(_loaded(path, options), **_named(options), console=console)
    say(console, f"all terms are in {file}, drawn in {path / 'pictures' / 'likelihood.png'}")
    return 0


def _fit(arguments: list[str]) -> int:
    path, rest = _run_folder("fit", arguments)
    from .options import FitOptions, parse

    options = parse(
        FitOptions, rest, "inkdrop fit RUN", "Fit timesteps to a run's bound.", FitOptions()
    )
    from .scoring import write_fit

    console = _console()
    file = write_fit(_loaded(path, options), **_named(options), console=console)
    following = f"inkdrop sample {path} --sampler unipc --steps 10 --timesteps fitted-path"
    say(console, f"kept in {file}; next: {following}")
    return 0


def _classifier(arguments: list[str]) -> int:
    return _one_of(
        "classifier",
        {"train": _classifier_train, "list": _classifier_list},
        "  train PRESET|RUN  train a classifier of the data's own classes, and keep it\n"
        "  list              what classifiers are kept\n\n"
        "Its features are what images are compared in: inkdrop evaluate RUN "
        "--extractor classifier.",
        arguments,
    )


def _classifier_train(arguments: list[str]) -> int:
    given = arguments[:1] if arguments and not arguments[0].startswith("-") else []
    from .options import ClassifierOptions, parse

    options = parse(
        ClassifierOptions,
        arguments[len(given) :],
        "inkdrop classifier train PRESET|RUN",
        "Train a classifier of the classes of a preset's data or a run's own, and keep it.",
        ClassifierOptions(),
    )
    if not given:
        raise InkdropError(
            "classifier train needs a preset or a run folder first: inkdrop classifier train digits"
        )
    from .classifying import train_for

    console = _console()
    kept = train_for(given[0], **vars(options), console=console)
    following = ""
    if options.out is None:  # where evaluate looks
        run = given[0] if (Path(given[0]) / "config.json").exists() else "RUN"
        following = f"; next: inkdrop evaluate {shlex.quote(run)} --extractor classifier"
    say(console, f"the classifier is in {kept.path}{following}")
    return 0


def _classifier_list(arguments: list[str]) -> int:
    _no_options(arguments, "inkdrop classifier list", "What classifiers are kept.")
    from .classifying import show_classifiers

    show_classifiers(_console())
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


def _compare(arguments: list[str]) -> int:
    paths = list(takewhile(lambda argument: not argument.startswith("-"), arguments))
    from .options import CompareOptions, parse

    options = parse(
        CompareOptions,
        arguments[len(paths) :],
        "inkdrop compare RUN RUN …",
        "Hold runs on the same data against it and each other.",
        CompareOptions(),
    )
    if len(paths) < 2:
        raise InkdropError(
            "compare needs at least two run folders first: inkdrop compare runs/a runs/b"
        )
    from .report.compare import compare, default_folder
    from .run import load

    folder = Path(options.out) if options.out else default_folder(paths)
    if folder.exists() and not folder.is_dir():
        raise InkdropError(f"--out {folder} is a file; choose a folder")
    console = _console()
    comparison = compare(
        [load(path, device=options.device) for path in paths],
        n=options.n,
        sampler=options.sampler,
        steps=options.steps,
        seed=options.seed,
        console=console,
    )
    console.print(comparison.printed())
    page = comparison.write(folder) / "comparison.html"
    say(console, f"the comparison is {page}: open it in a browser")
    return 0


def _presets(arguments: list[str]) -> int:
    _no_options(arguments, "inkdrop presets", "List the presets.")
    from .presets import PRESETS

    _print(
        "\n".join(
            f"{name:20} {(make.__doc__ or '').strip()}\n{'':20} {_summary(make())}"
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
    given = arguments[:1] if arguments and not arguments[0].startswith("-") else []
    from .options import DoctorOptions, parse

    options = parse(
        DoctorOptions,
        arguments[len(given) :],
        "inkdrop doctor [RUN or PRESET]",
        "Check this machine, what a preset takes of it, or what is wrong with a run. Leaves with 1 "
        "if something is.",
        DoctorOptions(),
    )
    from .doctor import examine

    return examine(given[0] if given else None, options, _console())


_COMMANDS: dict[str, Callable[[list[str]], int]] = {
    "train": _train,
    "data": _data,
    "sample": _sample,
    "edit": _edit,
    "evaluate": _evaluate,
    "likelihood": _likelihood,
    "fit": _fit,
    "classifier": _classifier,
    "report": _report,
    "compare": _compare,
    "presets": _presets,
    "doctor": _doctor,
}


_SHARED = ("train", "sample", "evaluate", "likelihood", "fit", "doctor")


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


def _loaded(path: Path, options: Any) -> Run:
    from .run import load

    return load(path, device=options.device, checkpoint=options.checkpoint)


def _named(options: Any) -> dict[str, Any]:
    """The options by name, but for those that the run was loaded with."""
    loading = ("device", "checkpoint")
    return {f.name: getattr(options, f.name) for f in fields(options) if f.name not in loading}


def _show_warning(message: Warning | str, category: type[Warning], *_: Any) -> None:
    if rank_told():
        return  # the first process warns for all
    print(f"inkdrop: warning: {message}", file=sys.stderr)  # noqa: T201


def _console() -> Console:
    from rich.console import Console

    return Console(quiet=bool(rank_told()))  # the first process speaks for all


def _print(text: str) -> None:
    print(text)  # noqa: T201
