"""The report of a run: one HTML file with its pictures inside, to keep, print or send."""

from __future__ import annotations

import base64
import io
import math
import shlex
import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined
from matplotlib.figure import Figure
from PIL import Image

from .. import __version__
from ..build import build_schedule
from ..checkpoint import replace_synced
from ..config import SCHEDULE_FIELDS, Config
from ..diffusion.denoiser import Denoiser
from ..diffusion.samplers import build_table
from ..diffusion.schedule import NoiseSchedule, ScheduleWarning
from ..run import Run
from ..settings import Settings
from . import charts, pictures, style
from .pictures import Trajectory

SAMPLER, SEED = "ddim", 0  # the defaults of `inkdrop sample`, so that it makes the same images

_SAMPLES = 64
_SAMPLE_PIXELS = 64 * 64 * 64  # of all samples together: fewer of them where they are large
_FILM_PIXELS = 16 * 32 * 32
_STRIP_SAMPLES = 3
_WIDE_STRIP, _NARROW_STRIP = (9, 800), (6, 400)  # columns and width, for screens and for phones
_TILE = 96  # twice the size shown, for dense screens
_PREVIEWS = 6
_PREVIEW_SIDE = 640
_VALUES_SHOWN = 8

_ASKED_FOR = {
    "noise": "the noise in it",
    "x_start": "the clean image in it",
    "velocity": "the velocity, a mixture of the noise in it and the clean image",
    "score": "the score, the direction in which images like it become likelier",
}
_WHERE_IT_IS_HARD = {
    "noise": "Noise is hardest to tell where there is least of it: at the left.",
    "x_start": "The image is hardest to tell where least of it is left: at the right.",
    "velocity": "The velocity is nearly the noise at the left and nearly the image at the right, "
    "each the hardest to tell there: expect the ends to be higher than the middle.",
    "score": "The score is the noise divided by its amplitude: expect the left to be highest.",
}
_LOSS_UNITS = {"simple": "mean squared error"}


@dataclass(frozen=True)
class Inline:
    """An image inside the page: a data: address, and its size in CSS pixels."""

    source: str
    width: int
    height: int


@dataclass(frozen=True)
class Fact:
    """A key figure."""

    label: str
    value: str
    note: str = ""


def write_report(run: Run) -> Path:
    """Write RUN/pictures and RUN/report.html, which needs neither them nor anything else.

    Returns:
        The path of the page. A page that was there before is replaced whole or not at all.
    """
    page = render(run)
    path = run.path / "report.html"
    replace_synced(path, page.encode())
    return path


def render(run: Run) -> str:
    """The page's HTML; its pictures are written to RUN/pictures on the way."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ScheduleWarning)  # the page says it
        denoiser = run.denoiser
    folder = run.path / "pictures"
    folder.mkdir(parents=True, exist_ok=True)

    classes = getattr(run.config.network, "classes", None)
    columns, count = sheet(run.shape, classes)
    recorded = pictures.record(
        denoiser,
        count,
        SAMPLER,
        seed=SEED,
        condition=run.cycled_classes(0, count),
        batch_size=run.config.training.batch_size,
        moments=pictures.FRAMES,
    )
    film = recorded.images(film_count(run.shape))
    strip = recorded.images(min(_STRIP_SAMPLES, count))
    film_end = pictures.grid(film.x[-1])
    pictures.write_gif(film, folder / "denoising.gif")

    environment = Environment(
        loader=PackageLoader("inkdrop.report", ""),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
    )
    return environment.get_template("template.html").render(
        style=style,
        version=__version__,
        name=run.config.name,
        kind_of_image=_kind_of_image(run.shape),
        steps=f"{run.step:,}",
        facts=list(_facts(run, denoiser)),
        seed=SEED,
        evaluations=_evaluations(denoiser),
        sample_count=count,
        columns=columns,
        classes=classes,
        film_count=film.x.shape[1],
        strip_count=strip.x.shape[1],
        pictures=_draw(run, denoiser.schedule, recorded, strip, columns, folder),
        film=_inline((folder / "denoising.gif").read_bytes()),
        film_end=_inline(pictures.png(film_end)),
        schedule_kind=run.config.schedule.kind,
        timesteps=f"{denoiser.schedule.timesteps:,}",
        half_way=_half_way(denoiser.schedule),
        terminal=_share(denoiser.schedule.sqrt_alphas_cumprod[-1].item()),
        warnings=schedule_warnings(run.config),
        asked_for=_ASKED_FOR[denoiser.prediction],
        where_it_is_hard=_WHERE_IT_IS_HARD[denoiser.prediction],
        metrics_every=run.config.logging.metrics_every,
        previews=_previews(run.path / "samples" / "training"),
        sessions=len(_sessions(run)),
        commands=list(dict.fromkeys(s["command"] for s in _sessions(run) if s.get("command"))),
        sample_command=_sample_command(run.path, count, _evaluations(denoiser)),
        report_command=shlex.join(["inkdrop", "report", str(run.path)]),
        machines=_machines(run),
        configuration=list(_configuration(run.config, denoiser)),
    )


def schedule_warnings(config: Config) -> list[str]:
    """What inkdrop has to say against a configuration's schedule; usually nothing."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always", ScheduleWarning)
        build_schedule(config.schedule)
    said = [str(w.message) for w in caught if issubclass(w.category, ScheduleWarning)]
    return [text[:1].upper() + text[1:] for text in said]


def _draw(
    run: Run,
    schedule: NoiseSchedule,
    recorded: Trajectory,
    strip: Trajectory,
    columns: int,
    folder: Path,
) -> dict[str, Inline | None]:
    """Write the pictures as PNG files, and give them back for the page."""
    unit = _LOSS_UNITS.get(run.config.objective, run.config.objective)
    metrics = run.metrics
    drawn: dict[str, Figure | Image.Image] = {
        "samples": pictures.grid(recorded.x[-1], columns, _TILE),
        "loss": charts.loss_curve(metrics, unit),
        "loss_by_timestep": charts.loss_by_timestep(metrics, schedule.timesteps, unit),
        "noise_schedule": charts.noise_schedule(schedule, side_by_side=True),
    }
    narrow: dict[str, Figure | Image.Image] = {"noise_schedule": charts.noise_schedule(schedule)}
    for kind, (count, width) in ((drawn, _WIDE_STRIP), (narrow, _NARROW_STRIP)):
        kind["reverse"] = pictures.draw_trajectory(strip, count, width)
        if run.example is not None:
            kind["forward"] = pictures.forward_strip(schedule, run.example, SEED, count, width)
    inlined: dict[str, Inline | None] = {"forward": None}
    for name, picture in drawn.items():
        content = pictures.png(picture)
        replace_synced(folder / f"{name}.png", content)
        inlined[name] = _inline(content, style.DENSITY)
    for name, picture in narrow.items():
        inlined[f"{name}_narrow"] = _inline(pictures.png(picture), style.DENSITY)
    return inlined


def _sample_command(path: Path, count: int, steps: int) -> str:
    options = ["-n", count, "--sampler", SAMPLER, "--steps", steps, "--seed", SEED]
    return shlex.join(["inkdrop", "sample", str(path), *map(str, options)])


def sheet(shape: tuple[int, ...], classes: int | None) -> tuple[int, int]:
    """Columns and number of samples: a class to a column where there are not too many."""
    count = max(4, min(_SAMPLES, _SAMPLE_PIXELS // math.prod(shape[1:])))
    if classes is not None and 1 < classes <= 16:
        return classes, classes * max(1, count // classes)
    side = math.isqrt(count)
    return side, side * side


def film_count(shape: tuple[int, ...]) -> int:
    """1, 4, 9 or 16 images, so that the film stays near a megabyte."""
    return math.isqrt(max(1, min(16, _FILM_PIXELS // math.prod(shape[1:])))) ** 2


def _facts(run: Run, denoiser: Denoiser) -> Iterator[Fact]:
    metrics, training = run.metrics, run.config.training
    seconds = [row["seconds"] for row in metrics if row.get("seconds") is not None]
    speeds = [row["images_per_second"] for row in metrics if row.get("images_per_second")]
    loss = charts.latest_loss(metrics, "loss")
    held_out = charts.latest_loss(metrics, "held_out_loss", rows=1)
    parameters = sum(p.numel() for p in denoiser.network.parameters())
    trained_on = dict.fromkeys(s["device"] for s in _sessions(run) if s.get("device"))

    yield Fact(
        "training steps", f"{run.step:,}", f"of {training.steps:,}" if training.steps else ""
    )
    yield Fact(
        "images seen", f"{run.step * training.batch_size:,}", f"{training.batch_size} in a step"
    )
    yield Fact("training time", duration(max(seconds)) if seconds else "–", ", ".join(trained_on))
    yield Fact("speed", f"{median(speeds):,.0f}" if speeds else "–", "images a second")
    yield Fact("training loss", _loss(loss), f"mean of the last {charts.RECENT} records")
    yield Fact("held-out loss", _loss(held_out), "averaged weights")
    yield Fact("parameters", f"{parameters:,}", type(denoiser.network).__name__)
    yield Fact("image", " × ".join(map(str, run.shape)), "channels, height, width")
    yield Fact("timesteps", f"{denoiser.schedule.timesteps:,}", "T")
    yield Fact("schedule", run.config.schedule.kind)
    yield Fact("prediction", denoiser.prediction)
    yield Fact("sampler", SAMPLER, f"{_evaluations(denoiser)} steps, seed {SEED}")


def _loss(value: float | None) -> str:
    return "–" if value is None else f"{value:.4g}"


def _share(value: float) -> str:
    return f"{value:.2%}" if value >= 0.0001 else "less than 0.01%"


def duration(seconds: float) -> str:
    """Seconds in the two largest units that fit: 42 s, 1 min 52 s, 3 h 7 min, 2 d 4 h."""
    if seconds < 60:
        return f"{seconds:.0f} s"
    units = [("d", 86400), ("h", 3600), ("min", 60), ("s", 1)]
    first = next(i for i, (_, size) in enumerate(units) if seconds >= size)
    (big, size), (small, part) = units[first], units[first + 1]
    return f"{int(seconds // size)} {big} {int(seconds % size // part)} {small}"


def _kind_of_image(shape: tuple[int, ...]) -> str:
    colours = {1: "grey ", 3: "colour "}.get(shape[0], f"{shape[0]}-channel ")
    return f"{colours}images of {shape[1]} × {shape[2]} pixels"


def _evaluations(denoiser: Denoiser) -> int:
    return len(build_table(denoiser.schedule, SAMPLER))


def _half_way(schedule: NoiseSchedule) -> int | None:
    """The first timestep with more noise than image."""
    below = (schedule.log_snr < 0).nonzero()
    return int(below[0]) if len(below) else None


def _previews(folder: Path) -> list[dict[str, Any]]:
    """A handful of the grids drawn during training, the last among them, small enough to inline."""
    steps = {file.stem.removeprefix("step-"): file for file in sorted(folder.glob("step-*.png"))}
    known = [(int(step), file) for step, file in steps.items() if step.isdecimal()]
    shown = [known[i] for i in pictures.evenly(len(known), _PREVIEWS)]
    return [{"step": f"{step:,}", "picture": _thumbnail(file)} for step, file in shown]


def _thumbnail(path: Path) -> Inline:
    image = Image.open(path)
    image.thumbnail((_PREVIEW_SIDE, _PREVIEW_SIDE), Image.Resampling.LANCZOS)
    return _inline(pictures.png(image))


def _inline(content: bytes, density: int = 1) -> Inline:
    """A PNG or GIF file, `density` of its pixels to a CSS pixel."""
    image = Image.open(io.BytesIO(content))
    mime = Image.MIME[image.format or "PNG"]
    source = f"data:{mime};base64,{base64.b64encode(content).decode()}"
    return Inline(source, image.width // density, image.height // density)


def _sessions(run: Run) -> list[dict[str, Any]]:
    sessions: list[dict[str, Any]] = run.environment.get("sessions", [])
    return sessions


def _machines(run: Run) -> list[list[tuple[str, str]]]:
    """Machine and versions of each session, where they are not those of the one before."""
    described = []
    for session in _sessions(run):
        facts = [
            ("device", session.get("device")),
            ("processor", session.get("processor")),
            ("threads", session.get("threads")),
            ("system", session.get("platform")),
            ("Python", session.get("python")),
            *session.get("versions", {}).items(),
        ]
        described.append([(label, str(value)) for label, value in facts if value is not None])
    return [m for i, m in enumerate(described) if not i or m != described[i - 1]]


def _configuration(config: Config, denoiser: Denoiser) -> Iterator[dict[str, Any]]:
    """Groups of rows: a field's name, its value as text, and what it means."""
    kept = SCHEDULE_FIELDS[config.schedule.kind] | {"kind"}
    general, groups = [], []
    for name, field in type(config).model_fields.items():
        value = getattr(config, name)
        if isinstance(value, Settings):
            names = [n for n in type(value).model_fields if name != "schedule" or n in kept]
            groups.append({"name": name, "rows": [_row(value, n) for n in names]})
        elif name == "network":
            own = f"{type(denoiser.network).__name__}, a module of one’s own"
            general.append({"name": name, "value": own, "meaning": field.description or ""})
        else:
            general.append(_row(config, name))
    yield {"name": "run", "rows": general}
    yield from groups


def _row(settings: Settings, name: str) -> dict[str, str]:
    meaning = type(settings).model_fields[name].description or ""
    return {"name": name, "value": _as_text(getattr(settings, name)), "meaning": meaning}


def _as_text(value: Any) -> str:
    if value is None or value == ():
        return "not given"
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, tuple):
        shown = ", ".join(map(str, value[:_VALUES_SHOWN]))
        return shown if len(value) <= _VALUES_SHOWN else f"{shown}, … ({len(value)} values)"
    return str(value)
