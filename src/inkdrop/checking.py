"""`inkdrop data check`: what images are, what is wrong with them, and what training would cost."""

from __future__ import annotations

import contextlib
import json
import shlex
import sys
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .checkpoint import replace_synced
from .config import Config, DataConfig, UNetConfig
from .console import say
from .errors import InkdropError
from .options import DataCheckOptions

if TYPE_CHECKING:
    from rich.console import Console

    from .data.loading import Seen
    from .training.trial import Trial


def check_data(paths: list[str], options: DataCheckOptions, console: Console) -> int:
    """Look at images, and say and write down what was found; returns the exit code.

    Raises:
        InkdropError: if there are none, or for an option that is not allowed.
    """
    from .data.loading import look
    from .data.summary import lines
    from .presets import fitted, preset

    config = preset(options.preset)
    if not isinstance(config.network, UNetConfig):
        raise InkdropError(f"the preset {options.preset} is for points; choose one for images")
    config.data = DataConfig(
        source="files",
        path=tuple(paths),
        size=options.size,
        channels=options.channels,
        fit=options.fit,
        background=options.background,
        bad_images="skip",
        streaming=options.streaming,
        workers=options.workers,
        horizontal_flip=config.data.horizontal_flip,
    )
    out = Path(options.out) if options.out else Path("checks") / _name(paths)
    watching = None if options.json else console  # JSON is alone on stdout
    if out.exists() and not out.is_dir():
        raise InkdropError(f"--out {out} is a file; choose a folder")
    seen = look(config.data, watching, refresh=options.refresh)
    if options.preset == "folder":
        config = fitted(config, seen.shape, seen.train_count)
    measured = _measured(config, seen, watching) if options.trial else None
    found = _found(seen, config, measured)
    out.mkdir(parents=True, exist_ok=True)
    replace_synced(out / "check.json", json.dumps(found, indent=1).encode())
    _draw(seen, out / "contact-sheet.png")
    if options.json:
        json.dump(found, sys.stdout, indent=1)
        print()  # noqa: T201
    else:
        proposed = [*seen.proposal.reasons, *_cost(config, measured)]
        say(console, "\n".join(["", *lines(seen.check, proposed), ""]))
        say(
            console,
            f"the contact sheet is {out / 'contact-sheet.png'}; next: {_next(config, seen)}",
        )
    return 1 if seen.check.bad else 0


def show_cache(clear: bool, console: Console) -> None:
    """What decoded images are kept; deletes them where `clear`."""
    from .data.cache import OTHERS, cache_entries, clear_cache
    from .data.places import CACHE_VARIABLE, cache_folder

    if clear:
        say(console, f"{_size(clear_cache())} deleted from {cache_folder()}")
        return
    entries = cache_entries()
    for entry in entries:
        say(console, f"{_size(entry.bytes):>9}  {entry.name}  {entry.path}")
    total = sum(entry.bytes for entry in entries)
    for other in OTHERS:
        size = sum(file.stat().st_size for file in (cache_folder() / other).rglob("*"))
        total += size
        if size:
            say(console, f"{_size(size):>9}  {other}  {cache_folder() / other}")
    say(
        console,
        f"{_size(total)} in {cache_folder()} ({CACHE_VARIABLE} chooses another place); "
        "--clear deletes it, and it is made again when it is needed",
    )


def _measured(config: Config, seen: Seen, console: Console | None) -> Trial:
    from .training.trial import trial

    waiting = console.status("timing ten steps of training") if console else None
    with waiting or contextlib.nullcontext():
        return trial(config, seen.shape)


def _cost(config: Config, measured: Trial | None) -> list[str]:
    network = config.network
    assert network is not None
    words = f"--preset {config.name}" if config.name != "folder" else "the proposed network"
    steps = f"{config.training.steps:,} steps of {config.training.batch_size}"
    if measured is None:
        return [f"{words}, {steps}"]
    return [
        f"{words}: {measured.parameters / 1e6:.1f} M parameters, {steps}",
        f"{measured.images_per_second:,.0f} images/s on {measured.device}: "
        f"{_duration(measured.seconds)}, {_size(measured.memory)} of memory",
    ]


def _found(seen: Seen, config: Config, measured: Trial | None) -> dict[str, Any]:
    return {
        "recognised": seen.found.description,
        "check": seen.check.to_json(),
        "proposed": {
            "transform": asdict(seen.proposal.transform),
            "reasons": list(seen.proposal.reasons),
            "network": config.network.model_dump(mode="json") if config.network else None,
            "training": config.training.model_dump(mode="json"),
        },
        "trial": None if measured is None else asdict(measured),
    }


def _draw(seen: Seen, path: Path) -> None:
    from .report.contact_sheet import contact_sheet
    from .report.pictures import save

    save(contact_sheet(seen.found, seen.check, seen.proposal.transform), path)


def _next(config: Config, seen: Seen) -> str:
    """The command that trains on what was checked, as it was checked."""
    data, usual = config.data, DataConfig()
    words = ["inkdrop", "train", config.name, "--data", *data.path]
    words += ["--bad-images", "skip"] if seen.check.bad else []
    words += ["--data.size", *map(str, data.size)] if data.size else []
    words += ["--data.channels", str(data.channels)] if data.channels else []
    words += ["--data.fit", data.fit] if data.fit != usual.fit else []
    words += ["--data.background", data.background] if data.background != usual.background else []
    words += ["--data.streaming"] if data.streaming else []
    return shlex.join(words)


def _name(paths: list[str]) -> str:
    name = Path(paths[0].removeprefix("hf:")).resolve().name
    return name.split(".")[0] or "data"


def _size(count: float) -> str:
    for unit in ("B", "kB", "MB", "GB"):
        if count < 1000:
            return f"{count:.0f} {unit}" if unit == "B" else f"{count:.3g} {unit}"
        count /= 1000
    return f"{count:.3g} TB"


def _duration(seconds: float) -> str:
    if seconds < 90:
        return f"{seconds:.0f} s"
    if seconds < 5400:
        return f"{seconds / 60:.0f} min"
    return f"{seconds / 3600:.1f} h" if seconds < 86400 * 2 else f"{seconds / 86400:.1f} days"
