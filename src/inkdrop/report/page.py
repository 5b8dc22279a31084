"""The report of a run: one HTML file with its pictures inside, to keep, print or send."""

from __future__ import annotations

import json
import shlex
import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any

from matplotlib.figure import Figure
from PIL import Image

from ..build import build_schedule
from ..checkpoint import replace_synced
from ..config import SCHEDULE_FIELDS, Config
from ..data.images import Source
from ..diffusion.denoiser import Denoiser
from ..diffusion.samplers import build_table
from ..diffusion.schedule import NoiseSchedule, ScheduleWarning
from ..evaluation.record import Evaluation, families, read_evaluations
from ..run import FITTED_FILE, Run
from ..settings import Settings
from . import charts, conditional, evaluation_charts, image_page, pictures, point_page, style
from .evaluations import (
    LIKELIHOOD_FILE,
    RULER,
    Likelihood,
    differing,
    likelihood,
    memorised,
    same_ruler,
    section,
    summary,
)
from .inline import Inline, inline, keep
from .rendering import render_template
from .truth import truth_of

SAMPLER, SEED = "ddim", 0  # the defaults of `inkdrop sample`, so that it makes the same images

_PREVIEWS = 6
_PREVIEW_SIDE = 640
_VALUES_SHOWN = 8

_ASKED_FOR = {
    "noise": "the noise in it",
    "x_start": "the clean {noun} in it",
    "velocity": "the velocity, a mixture of the noise in it and the clean {noun}",
    "score": "the score, the direction in which {noun}s like it become likelier",
}
_WHERE_IT_IS_HARD = {
    "noise": "Noise is hardest to tell where there is least of it: at the left.",
    "x_start": "The image is hardest to tell where least of it is left: at the right.",
    "velocity": "The velocity is nearly the noise at the left and nearly the image at the right, "
    "each the hardest to tell there: expect the ends to be higher than the middle.",
    "score": "The score is the noise divided by its amplitude: expect the left to be highest.",
}
_NEVER_ZERO = (
    "Zero is out of reach: beneath one noisy point there may be any of several clean ones."
)


@dataclass(frozen=True)
class Fact:
    """A key figure."""

    label: str
    value: str
    note: str = ""


def write_report(run: Run, source: Source | None = None) -> Path:
    """Write RUN/pictures and RUN/report.html, which needs neither them nor anything else.

    Args:
        source: the points it was trained on, where they were the user's own, to be shown beside
            generated ones.

    Returns:
        The path of the page. A page that was there before is replaced whole or not at all.
    """
    page = render(run, source)
    path = run.path / "report.html"
    replace_synced(path, page.encode())
    return path


def render(run: Run, source: Source | None = None) -> str:
    """The page's HTML; its pictures are written to RUN/pictures on the way."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ScheduleWarning)  # the page says it
        denoiser = run.denoiser
    folder = run.path / "pictures"
    folder.mkdir(parents=True, exist_ok=True)

    of_images = len(run.shape) == 3
    shared = _shared(run, denoiser, folder, "image" if of_images else "point")
    if of_images:
        own = image_page.parts(run, denoiser, SAMPLER, SEED, folder)
    else:
        own = point_page.parts(run, denoiser, SAMPLER, SEED, folder, truth_of(run, source))
    conditions = conditional.chosen(run)
    guidable = conditions is not None and conditional.can_be_guided(denoiser, conditions.told)
    measured = _measured(run, folder, "image" if of_images else "point", guidable)
    absent = {"loss_map": None, "quality_in_training": None}
    own["pictures"] |= {**absent, **shared.pop("pictures"), **measured.pop("found")}

    return render_template(
        "images.html" if of_images else "points.html",
        **shared,
        **measured,
        **own,
        sample_command=_sample_command(run, denoiser, own["sample_count"]),
    )


def _shared(run: Run, denoiser: Denoiser, folder: Path, noun: str) -> dict[str, Any]:
    """What the page says of any run."""
    schedule = denoiser.schedule
    sessions = _sessions(run)
    return {
        "name": run.config.name,
        "noun": noun,
        "a_noun": f"an {noun}" if noun == "image" else f"a {noun}",
        "signal": "image" if noun == "image" else "signal",
        "kind_of_example": _kind_of_example(run.shape),
        "steps": f"{run.step:,}",
        "facts": list(_facts(run, denoiser, noun)),
        "sampler": SAMPLER.upper(),
        "seed": SEED,
        "evaluations": _evaluations(denoiser),
        "classes": getattr(run.config.network, "classes", None),
        "pictures": _draw(run, schedule, noun, folder),
        "schedule_kind": run.config.schedule.kind,
        "timesteps": f"{schedule.timesteps:,}",
        "half_way": _half_way(schedule),
        "terminal": _share(schedule.sqrt_alphas_cumprod[-1].item()),
        "warnings": schedule_warnings(run.config),
        "asked_for": _ASKED_FOR[denoiser.prediction].format(noun=noun),
        "where_it_is_hard": _WHERE_IT_IS_HARD[denoiser.prediction]
        if noun == "image"
        else _NEVER_ZERO,
        "metrics_every": run.config.logging.metrics_every,
        "previews": _previews(run.path / "samples" / "training"),
        "preview_kind": "pixels" if noun == "image" else "",
        "sessions": len(sessions),
        "commands": list(dict.fromkeys(s["command"] for s in sessions if s.get("command"))),
        "report_command": shlex.join(["inkdrop", "report", str(run.path)]),
        "machines": _machines(run),
        "configuration": list(_configuration(run.config, denoiser)),
    }


def schedule_warnings(config: Config) -> list[str]:
    """What inkdrop has to say against a configuration's schedule; usually nothing."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always", ScheduleWarning)
        build_schedule(config.schedule)
    said = [str(w.message) for w in caught if issubclass(w.category, ScheduleWarning)]
    return [text[:1].upper() + text[1:] for text in said]


def _draw(run: Run, schedule: NoiseSchedule, noun: str, folder: Path) -> dict[str, Inline]:
    """The charts of any run, for the page and as files."""
    metrics, unit = run.metrics, charts.loss_unit(run.config.objective, run.config.prediction)
    signal = "image" if noun == "image" else "signal"
    return keep(
        folder,
        {
            "loss": charts.loss_curve(metrics, unit),
            "loss_by_timestep": charts.loss_by_timestep(metrics, schedule.timesteps, unit),
            "noise_schedule": charts.noise_schedule(schedule, side_by_side=True, signal=signal),
            **_over_time(metrics, schedule.timesteps, unit),
        },
        {"noise_schedule": charts.noise_schedule(schedule, signal=signal)},
    )


def _over_time(metrics: list[dict[str, Any]], timesteps: int, unit: str) -> dict[str, Figure]:
    """The charts that only some runs have something for."""
    drawn = {}
    if sum(1 for row in metrics if row.get("loss_by_timestep")) > 1:
        drawn["loss_map"] = charts.loss_map(metrics, timesteps, unit)
    if any(row.get("frechet_distance") is not None for row in metrics):
        drawn["quality_in_training"] = charts.quality_in_training(metrics)
    return drawn


def _measured(run: Run, folder: Path, noun: str, guidable: bool) -> dict[str, Any]:
    """What was measured of the run, and what was not."""
    evaluations = read_evaluations(run.path)
    found: dict[str, Inline] = {}
    groups = []
    rulers = same_ruler(evaluations)
    for i, group in enumerate(rulers):
        shown = section(group, run.step)
        kept = keep(
            folder,
            {
                f"evaluation_{name}" + (f"_{i + 1}" if i else ""): chart
                for name, chart in shown.pop("charts").items()
            },
            {},
        )
        charted = {name.split("_")[1]: picture for name, picture in kept.items()}
        kinds = ("intervals", "quality", "guidance", "classes")
        groups.append({**shown, "pictures": {kind: charted.get(kind) for kind in kinds}})
    bound = likelihood(run.path, evaluations)
    if bound is not None and bound.terms:
        chart = charts.bound_by_timestep(bound.terms, bound.averaged)
        found |= keep(folder, {"bound": chart}, {})
    copies = memorised(evaluations)
    nearest = folder / "nearest.png"
    if copies is not None and nearest.exists():
        found["nearest"] = inline(nearest.read_bytes(), style.DENSITY)
    return {
        "found": {"bound": None, "nearest": None, **found},
        "evaluated": groups,
        "rulers": ", ".join(n for n in differing([g[0] for g in rulers]) if n in RULER),
        "memorisation": None if copies is None else _memorisation(copies, folder),
        "likelihood": bound,
        "measured_by": _measured_by(run, evaluations),
        "missing": list(_missing(run, evaluations, bound, noun, guidable)),
    }


def _memorisation(copies: Evaluation, folder: Path) -> dict[str, Any]:
    """What the page says of copies."""
    found = copies.memorisation
    assert found is not None
    spaces = []
    for each in found.nearest:
        name = f"nearest_{each.space}"
        picture = keep(folder, {name: evaluation_charts.nearest_distances(each)}, {})[name]
        spaces.append(
            {
                "name": each.space,
                "picture": picture,
                "closer": f"{each.closer:.1%}",
                "p_value": f"{each.p_value:.2g}",
            }
        )
    return {
        "verdict": found.verdict,
        "evidence": found.evidence.rstrip(".") + ".",
        "by": f"Seen in {summary(copies.protocol)}",
        "spaces": spaces,
    }


def _measured_by(run: Run, evaluations: list[Evaluation]) -> list[str]:
    """The commands that the figures of the page come from, those that are known, once each."""
    commands = [each.command for each in evaluations if each.command]
    for name in (LIKELIHOOD_FILE, FITTED_FILE):
        commands += filter(None, [_command_in(run.path / name)])
    return list(dict.fromkeys(commands))


def _command_in(file: Path) -> str | None:
    """The command that a file says it was made by."""
    try:
        content = json.loads(file.read_bytes())
        command = content.get("command")
    except (OSError, ValueError, AttributeError):
        return None
    return command if isinstance(command, str) else None


def _missing(
    run: Run,
    evaluations: list[Evaluation],
    bound: Likelihood | None,
    noun: str,
    guidable: bool,
) -> Iterator[tuple[str, str]]:
    """Commands that would add a section to the page, and what each tells."""
    folder = str(run.path)

    def command(name: str, *options: str) -> str:
        return shlex.join(["inkdrop", name, folder, *options])

    if noun == "image":
        if not evaluations:
            yield command("evaluate"), "how far samples are from the data, and whether they copy it"
        elif not any(len(family) > 1 for family in families(evaluations, "timesteps")):
            counts = ("--evaluations", "5", "10", "20", "50")
            yield command("evaluate", *counts), "what fewer evaluations of the network cost"
        if guidable and not any(each.protocol.guidance for each in evaluations):
            scales = ("--guidance", "1", "1.5", "2", "3")
            yield command("evaluate", *scales), "what guidance gives and takes"
    if bound is None or not bound.total:
        yield command("likelihood"), "bits per dimension, term by term"
    if not (run.path / FITTED_FILE).exists():
        yield command("fit"), "timesteps that suit this network when there are to be few"


def _sample_command(run: Run, denoiser: Denoiser, count: int) -> str:
    steps = _evaluations(denoiser)
    options = ["-n", count, "--sampler", SAMPLER, "--steps", steps, "--seed", SEED]
    return shlex.join(["inkdrop", "sample", str(run.path), *map(str, options)])


def _facts(run: Run, denoiser: Denoiser, noun: str) -> Iterator[Fact]:
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
        f"{noun}s seen", f"{run.step * training.batch_size:,}", f"{training.batch_size} in a step"
    )
    yield Fact("training time", duration(max(seconds)) if seconds else "–", ", ".join(trained_on))
    yield Fact("speed", f"{median(speeds):,.0f}" if speeds else "–", f"{noun}s a second")
    yield Fact("training loss", _loss(loss), f"mean of the last {charts.RECENT} records")
    yield Fact("held-out loss", _loss(held_out), "averaged weights")
    yield Fact("parameters", f"{parameters:,}", type(denoiser.network).__name__)
    meaning = "channels, height, width" if noun == "image" else "dimensions"
    yield Fact(noun, " × ".join(map(str, run.shape)), meaning)
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


def _kind_of_example(shape: tuple[int, ...]) -> str:
    if len(shape) != 3:
        return "points in the plane" if shape == (2,) else f"points in {shape[0]} dimensions"
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
    return inline(pictures.png(image))


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
