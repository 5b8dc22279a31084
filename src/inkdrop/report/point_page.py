"""What the report of a run of points shows of them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from ..diffusion.denoiser import Denoiser
from ..diffusion.samplers import build_table, sample
from ..evaluation.distances import Floats
from ..evaluation.measures import in_short, score
from ..run import Run
from . import conditional, pictures, points
from .image_page import told
from .inline import Picture, inline, keep
from .truth import Truth, as_rows

_SAMPLES = 5000
_FEWEST = 4  # real points, in two sets of two, without which there is no distance
_SHOWN = 2000  # in one panel
_COLUMNS, _NARROW_COLUMNS = 6, 3
_FRAME_MS = 90


def parts(
    run: Run, denoiser: Denoiser, sampler: str, seed: int, folder: Path, truth: Truth | None
) -> dict[str, Any]:
    """What points.html needs; the pictures are also written to the folder.

    Points in the plane have pictures, and where the truth is known they are held against it.
    """
    plane = run.shape == (2,)
    if truth is not None and len(truth.values) < _FEWEST:
        truth = None
    count = _SAMPLES if truth is None else min(_SAMPLES, len(truth.values) // 2)
    condition = run.conditions(0, count)
    context: dict[str, Any] = {"pictures": {"forward": None}, "plane": plane, "real": truth}
    if plane:
        course = points.record(denoiser, count, sampler, seed=seed, condition=condition)
        made = course.x[-1]
        drawn, narrow = _draw(denoiser, course, None if truth is None else truth.real(count), seed)
        if condition is None:
            telling = points.telling_timesteps(denoiser.schedule)
            drawn["field"] = points.draw_field(denoiser, course, telling)
            narrow["field"] = points.draw_field(denoiser, course, telling[1::2], points.NARROW)
        conditions = conditional.chosen(run, _COLUMNS)
        if conditions is not None:
            can = conditional.can_be_guided(denoiser, conditions.told)
            guidances = [None, conditional.GUIDANCE] if can else [None]
            context["guided"] = can
            rows = conditional.point_rows(denoiser, conditions, sampler, seed, guidances)
            limits = points.frame_of(*(x for _, _, panels in rows for x in panels))
            drawn["conditional"] = points.draw_rows(rows, points.WIDE, limits)
            narrow["conditional"] = points.draw_rows(rows, points.NARROW, limits)
        context["pictures"] |= {"field": None, "conditional": None}
        context["pictures"] |= keep(folder, drawn, narrow)
        context |= {"conditions": conditions, "guidance": f"{conditional.GUIDANCE:g}"}
        film = points.film(course.first(_SHOWN))
        pictures.write_film(film, folder / "denoising.gif", _FRAME_MS)
        context["film"] = inline((folder / "denoising.gif").read_bytes())
        context["film_end"] = inline(pictures.png(film[-1]))
    else:
        table = build_table(denoiser.schedule, sampler)
        made = as_rows(sample(denoiser, count, table=table, seed=seed, condition=condition))
    distances = [] if truth is None else _distances(truth, made)
    return {**context, "told": told(run), "sample_count": count, "distances": distances}


def _draw(
    denoiser: Denoiser, course: points.Course, real: Floats | None, seed: int
) -> tuple[dict[str, Picture], dict[str, Picture]]:
    """The pictures for a screen, and some of them for a phone."""
    few, made = course.first(_SHOWN), course.x[-1, :_SHOWN]
    drawn: dict[str, Picture] = {"paths": points.draw_paths(course)}
    narrow: dict[str, Picture] = {}
    for kind, columns, width in (
        (drawn, _COLUMNS, points.WIDE),
        (narrow, _NARROW_COLUMNS, points.NARROW),
    ):
        kind["reverse"] = points.draw_courses({"": few}, columns, width)
        if real is None:
            kind["samples"] = points.scatter(made, width=min(width, points.WIDTH))
        else:
            schedule, shown = denoiser.schedule, real[:_SHOWN]
            kind["samples"] = points.beside(shown, {"generated": made}, width=width)
            kind["marginals"] = points.marginals(real, {"generated": course.x[-1]}, width)
            kind["forward"] = points.forward_steps(schedule, shown, columns, seed, width)
    return drawn, narrow


def _distances(truth: Truth, made: Floats) -> list[dict[str, str]]:
    """The rows of the table of distances."""
    count = len(made)
    measures = truth.measures(count)
    floor = truth.floor(count, measures)
    found = score(measures, truth.real(count), made)
    return [
        {
            "label": measure.label,
            "meaning": measure.meaning,
            "value": in_short(found[name]),
            "floor": in_short(floor[name]),
        }
        for name, measure in measures.items()
    ]
