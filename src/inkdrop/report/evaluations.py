"""What stored evaluations and likelihoods say, in words and tables for a page."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..errors import InkdropError
from ..evaluation.measures import in_short
from ..evaluation.record import (
    METRICS,
    Evaluation,
    Figure,
    Protocol,
    extractor_in_words,
    families,
    notes,
)
from . import evaluation_charts

# Figures compare only where all of these are the same; the rest is what one may wish to compare.
RULER = ("samples", "reference", "extractor", "settings", "versions")

_NAMES = {"timesteps": "evaluations"}
LIKELIHOOD_FILE = "likelihood.json"
_LIKELIHOOD_FIELDS = {
    *("step", "weights", "split", "examples", "terms", "variance"),
    *("bits_per_dim", "standard_error", "prior", "decoder", "per_timestep"),
}


@dataclass(frozen=True)
class Row:
    """One figure, as text.

    Attributes:
        value, interval, error: of samples; empty where there is none.
        floors: what real images get, in the order of the kinds of floor; a dash for one not known.
    """

    label: str
    meaning: str
    value: str
    interval: str
    error: str
    floors: list[str]


def same_ruler(evaluations: Sequence[Evaluation]) -> list[list[Evaluation]]:
    """Evaluations whose figures compare, in groups; the group of the newest first."""
    groups: list[list[Evaluation]] = []
    for evaluation in reversed(evaluations):
        for group in groups:
            if not set(RULER) & set(group[0].protocol.differences(evaluation.protocol)):
                group.insert(0, evaluation)
                break
        else:
            groups.append([evaluation])
    return groups


def foremost(group: Sequence[Evaluation]) -> Evaluation:
    """The evaluation that stands for a group: of the newest step, the one that tells most.

    Of several that tell as much, the least guided one: a sweep of guidance has extremes.
    """

    def telling(i: int) -> tuple[float, ...]:
        each = group[i]
        known = sum(figure.value is not None for figure in each.figures.values())
        parts = (each.classes, each.memorisation, each.likelihood)
        more = sum(part is not None for part in parts)
        guided = abs(evaluation_charts.guidance_scale(each) - 1)
        return (each.protocol.step, known + more, -guided, each.protocol.evaluations, i)

    return group[max(range(len(group)), key=telling)]


def label_of(metric: str) -> str:
    """A metric's name for people."""
    return METRICS[metric].label if metric in METRICS else metric.replace("_", " ")


def metrics_of(evaluations: Iterable[Evaluation]) -> list[str]:
    """The metrics that any of them has a value of, in the order of `METRICS`, then others."""
    found = {
        name: None
        for each in evaluations
        for name, figure in each.figures.items()
        if figure.value is not None
    }
    return [*(name for name in METRICS if name in found), *(n for n in found if n not in METRICS)]


def kinds_of_floor(figures: Mapping[str, Figure]) -> list[str]:
    """What was held against what for the floors of these figures."""
    return list(dict.fromkeys(kind for figure in figures.values() for kind in figure.floor))


def rows(figures: Mapping[str, Figure]) -> list[Row]:
    """A table of figures, in the order of `METRICS`."""
    known = [name for name in METRICS if name in figures]
    kinds = kinds_of_floor(figures)
    others = [name for name in figures if name not in METRICS]
    return [_row(name, figures[name], kinds) for name in [*known, *others]]


def _row(name: str, figure: Figure, kinds: Sequence[str] = ()) -> Row:
    metric = METRICS.get(name)
    value = "–" if figure.value is None else in_short(figure.value)
    interval = ""
    if figure.low is not None and figure.high is not None:
        interval = f"{in_short(figure.low)} to {in_short(figure.high)}"
    return Row(
        label_of(name),
        metric.meaning if metric else "",
        value,
        interval,
        "" if figure.standard_error is None else f"± {in_short(figure.standard_error)}",
        [in_short(figure.floor[kind]) if kind in figure.floor else "–" for kind in kinds],
    )


def noted(figures: Mapping[str, Figure]) -> list[tuple[str, str]]:
    """What to know before quoting figures: of which of them it is true, and the note."""
    return [
        ("all" if len(names) == len(figures) > 1 else ", ".join(map(label_of, names)), note)
        for names, note in notes(figures)
    ]


def in_words(protocol: Protocol, names: Sequence[str] | None = None) -> list[tuple[str, str]]:
    """The fields of a protocol, or some of them: each its name and its value, for people."""
    told = {
        "step": f"{protocol.step:,}",
        "weights": {"ema": "averaged (ema)", "raw": "raw"}.get(protocol.weights, protocol.weights),
        "sampler": protocol.sampler,
        "timesteps": _evaluations_in_words(protocol),
        "eta": "–" if protocol.eta is None else f"{protocol.eta:g}",
        "order": "–" if protocol.order is None else str(protocol.order),
        "clip": protocol.clip or "none",
        "guidance": guidance_in_words(protocol.guidance),
        "condition": protocol.condition,
        "samples": f"{protocol.samples:,}",
        "seed": str(protocol.seed),
        "reference": _described(protocol.reference),
        "extractor": _described(protocol.extractor),
        "settings": _listed(protocol.settings),
        "versions": _listed(protocol.versions),
    }
    return [(_NAMES.get(name, name), told[name]) for name in (names or list(told))]


def guidance_in_words(guidance: Mapping[str, Any] | None) -> str:
    """A guidance's scale, and what else is told of it."""
    if guidance is None:
        return "none"
    others = {name: value for name, value in guidance.items() if name != "scale" and value}
    said = f"{guidance.get('scale', 1):g}"
    return f"{said} ({_listed(others)})" if others else said


def differing(evaluations: Sequence[Evaluation]) -> list[str]:
    """The protocol's fields in which not all of these agree, in the protocol's order."""
    if not evaluations:
        return []
    first = evaluations[0].protocol
    found = {name for each in evaluations for name in first.differences(each.protocol)}
    return [name for name in vars(first) if name in found]


def named(groups: Sequence[Sequence[Evaluation]], varying: str) -> dict[str, list[Evaluation]]:
    """Groups of evaluations by what tells them apart but for `varying`."""
    apart = [n for n in differing([group[0] for group in groups]) if n != varying]
    result: dict[str, list[Evaluation]] = {}
    for group in groups:
        told = in_words(group[0].protocol, apart) if apart else []
        # A sampler's name says enough by itself, and η and order come with it.
        name = ", ".join(
            value if label == "sampler" else f"{label} {value}"
            for label, value in told
            if not ("sampler" in apart and label in ("eta", "order"))
        )
        while name in result:
            name += " again"
        result[name or group[0].protocol.sampler] = list(group)
    return result


def section(group: Sequence[Evaluation], run_step: int) -> dict[str, Any]:
    """What the page shows of evaluations by one ruler, and the charts of it."""
    chief = foremost(group)
    protocol = chief.protocol
    by_timesteps = named(families(group, "timesteps"), "timesteps")
    by_guidance = named(families(group, "guidance"), "guidance")
    charts = {
        "intervals": evaluation_charts.intervals(chief.figures),
        "quality": evaluation_charts.quality(by_timesteps) if by_timesteps else None,
        "guidance": evaluation_charts.guidance(by_guidance) if by_guidance else None,
        "classes": evaluation_charts.classes(chief.classes) if chief.classes else None,
    }
    return {
        "title": f"By features of {protocol.extractor.get('name', 'an unnamed network')}",
        "summary": summary(protocol),
        "confidence": _confidence(protocol),
        "protocol": in_words(protocol),
        "rows": rows(chief.figures),
        "notes": noted(chief.figures),
        "floors": kinds_of_floor(chief.figures),
        "told": list(_told(chief)),
        "classes": class_rows(chief),
        "classes_told": any(each.accuracy is not None for each in chief.classes or []),
        "classes_measured": any(c.frechet_distance is not None for c in chief.classes or []),
        "command": chief.command,
        "old_step": protocol.step if protocol.step != run_step else None,
        "all": all_of(group, chief) if len(group) > 1 else None,
        "charts": {name: chart for name, chart in charts.items() if chart is not None},
    }


def summary(protocol: Protocol, step: bool = True) -> str:
    """A protocol in a sentence, with or without the step."""
    reference, extractor = protocol.reference, protocol.extractor
    guided = (
        "" if protocol.guidance is None else f", guidance {guidance_in_words(protocol.guidance)}"
    )
    told = "" if protocol.condition == "nothing" else f", told {protocol.condition}"
    real = " ".join(str(reference[k]) for k in ("name", "split") if reference.get(k))
    count = f"{reference['count']:,} " if isinstance(reference.get("count"), int) else ""
    features = f"{extractor['features']:,} " if isinstance(extractor.get("features"), int) else ""
    weights = "averaged weights" if protocol.weights == "ema" else f"{protocol.weights} weights"
    at = f" of step {protocol.step:,}" if step else ""
    return (
        f"{protocol.samples:,} samples of seed {protocol.seed} by {protocol.sampler} with "
        f"{_evaluations_in_words(protocol)} evaluations{guided}{told}, from the {weights}{at}; "
        f"against {count}real images ({real or 'unnamed'}), by {features}features of "
        f"{extractor_in_words(extractor.get('name', 'an unnamed network'))}."
    )


def all_of(group: Sequence[Evaluation], chief: Evaluation) -> dict[str, Any]:
    """A table of all evaluations by one ruler: what differs between them, and their figures."""
    apart = differing(group)
    metrics = metrics_of(group)
    accuracy = any(each.accuracy is not None for each in group)
    heads = [_NAMES.get(name, name) for name in apart]
    body = []
    for each in sorted(group, key=_in_order):
        cells = [value for _, value in in_words(each.protocol, apart)] if apart else []
        body.append(
            {
                "chief": each is chief,
                "protocol": cells,
                "figures": [_cell(each, name) for name in metrics]
                + ([_share(each.accuracy)] if accuracy else []),
            }
        )
    labels = [label_of(name) for name in metrics] + (["accuracy"] if accuracy else [])
    return {"apart": heads, "figures": labels, "rows": body}


def _in_order(evaluation: Evaluation) -> tuple[Any, ...]:
    protocol = evaluation.protocol
    scale = evaluation_charts.guidance_scale(evaluation)
    return (protocol.step, protocol.sampler, scale, protocol.evaluations)


def class_rows(evaluation: Evaluation) -> list[dict[str, str]]:
    """One class's figures a row: those that the chart shows."""
    return [
        {
            "label": str(each.label),
            "share": _share(each.share),
            "due": _share(each.reference_share),
            "accuracy": _share(each.accuracy),
            "distance": "–" if each.frechet_distance is None else in_short(each.frechet_distance),
        }
        for each in evaluation_charts.telling_classes(evaluation.classes or [])
    ]


def memorised(evaluations: Sequence[Evaluation]) -> Evaluation | None:
    """The newest evaluation that looked for copies."""
    known = [each for each in evaluations if each.memorisation is not None]
    return known[-1] if known else None


@dataclass(frozen=True)
class Likelihood:
    """Bits per dimension, as text.

    Attributes:
        rows: the bound's parts: label, value, meaning.
        total: the bound with its error; empty where only an evaluation measured it, as are the
            others above and beneath.
        ode: by the probability-flow ODE; empty where it was not asked.
        about: how they were measured.
        terms: the KL terms by timestep.
        averaged: whether not each of them was asked of each example.
        splits: what an evaluation found: split, value, how many examples.
        verdict: what it says of over-fitting; empty where it was not measured.
    """

    rows: list[tuple[str, str, str]]
    total: str
    ode: str
    about: str
    terms: list[float]
    averaged: bool
    splits: list[tuple[str, str, str]]
    verdict: str = ""


def likelihood(folder: Path, evaluations: Sequence[Evaluation]) -> Likelihood | None:
    """What RUN/likelihood.json and the evaluations say of bits per dimension; None if nothing.

    Raises:
        InkdropError: if the file is damaged.
    """
    measured = [(each.protocol.step, each.likelihood) for each in evaluations if each.likelihood]
    at, found = measured[-1] if measured else (0, {})
    splits = [
        (
            split,
            _with_error(each["bits_per_dim"], each.get("standard_error")),
            f"{each['examples']:,} examples, step {at:,}",
        )
        for split in ("train", "held-out")
        if (each := found.get(split))
    ]
    verdict = str(found.get("verdict", ""))
    content = _read(folder / LIKELIHOOD_FILE)
    if content is None:
        return Likelihood([], "", "", "", [], False, splits, verdict) if splits else None
    terms = content["per_timestep"]
    averaged = content["terms"] < len(terms) - 1
    about = (
        f"{content['examples']:,} {content['split']} examples, "
        f"{'averaged' if content['weights'] == 'ema' else content['weights']} weights of step "
        f"{content['step']:,}, {content['variance']} variance"
    )
    if averaged:
        about += f", {content['terms']:,} of the {len(terms) - 1:,} terms asked of each"
    ode = content.get("ode")
    return Likelihood(
        [
            ("prior", f"{content['prior']:.4f}", "what is left of the data in the last noise"),
            ("steps", f"{sum(terms):.4f}", "all steps of the reverse process together"),
            ("decoder", f"{content['decoder']:.4f}", "the last step, to the data itself"),
        ],
        _with_error(content["bits_per_dim"], content["standard_error"]),
        _with_error(ode["bits_per_dim"], ode["standard_error"]) if ode else "",
        about,
        terms,
        averaged,
        splits,
        verdict,
    )


def side_by_side(
    runs: Mapping[str, Sequence[Evaluation]],
) -> tuple[list[dict[str, Any]], list[str]]:
    """Evaluations of several runs that agree on all but the step, and why others are not shown.

    Returns:
        Tables, the newest first, with a column for each run; and sentences.
    """
    groups: list[dict[str, Evaluation]] = []
    for name, evaluations in runs.items():
        for evaluation in evaluations:
            for group in groups:
                first = next(iter(group.values()))
                if set(first.protocol.differences(evaluation.protocol)) <= {"step"}:
                    kept = group.get(name)
                    if kept is None or kept.protocol.step <= evaluation.protocol.step:
                        group[name] = evaluation
                    break
            else:
                groups.append({name: evaluation})
    tables = []
    shown: set[str] = set()
    for group in reversed(groups):
        if len(group) < 2:
            continue
        shown |= set(group)
        names = metrics_of(group.values())
        kinds = list(
            dict.fromkeys(kind for each in group.values() for kind in kinds_of_floor(each.figures))
        )
        body = [
            (
                label_of(m),
                [_cell(each, m, interval=True) for each in group.values()],
                _floors_of(group.values(), m, kinds),
            )
            for m in names
        ]
        dashes = ["–"] * len(kinds)
        if any(each.accuracy is not None for each in group.values()):
            body.append(("accuracy", [(_share(e.accuracy), "") for e in group.values()], dashes))
        protocol = next(iter(group.values())).protocol
        tables.append(
            {
                "runs": [(name, f"step {e.protocol.step:,}") for name, e in group.items()],
                "rows": body,
                "floors": kinds,
                "summary": summary(protocol, step=False),
            }
        )
    return tables, list(_left_out(runs, shown))


def _left_out(runs: Mapping[str, Sequence[Evaluation]], shown: set[str]) -> Iterator[str]:
    known = {name: found for name, found in runs.items() if found}
    for name in runs:
        if name in shown:
            continue
        if name not in known:
            yield f"{name} has no stored evaluation"
            continue
        others = [(other, each) for other in known if other != name for each in known[other]]
        if not others:
            continue
        # The pair that is nearest to agreeing tells best what to change.
        mine, other, nearest = min(
            ((m, o, e) for m in known[name] for o, e in others),
            key=lambda pair: len(pair[0].protocol.differences(pair[2].protocol)),
        )
        apart = [n for n in mine.protocol.differences(nearest.protocol) if n != "step"]
        told = "; ".join(
            f"{label}: {ours} here, {theirs} there"
            for (label, ours), (_, theirs) in zip(
                in_words(mine.protocol, apart), in_words(nearest.protocol, apart), strict=True
            )
        )
        yield f"{name} was not evaluated as the others: nearest is {other}, with {told}"


def _floors_of(group: Iterable[Evaluation], name: str, kinds: Sequence[str]) -> list[str]:
    """What real images get, by the first that knows it: one protocol has one floor."""
    floors = (each.figures[name].floor for each in group if name in each.figures)
    known = next((floor for floor in floors if floor), {})
    return [in_short(known[kind]) if kind in known else "–" for kind in kinds]


def _told(evaluation: Evaluation) -> Iterator[tuple[str, str, str]]:
    """What else was found: a label, a value, a meaning."""
    if evaluation.accuracy is not None:
        meaning = "of samples that were told a class, the share on which the classifier agrees"
        yield "accuracy", _share(evaluation.accuracy), meaning
    if evaluation.class_coverage is not None:
        meaning = "the share of classes that samples give at least a tenth of their due"
        yield "class coverage", _share(evaluation.class_coverage), meaning


def _cell(evaluation: Evaluation, name: str, interval: bool = False) -> Any:
    figure = evaluation.figures.get(name)
    value = None if figure is None else figure.value
    text = "–" if value is None else in_short(value)
    if not interval:
        return text
    row = None if figure is None else _row(name, figure)
    return text, "" if row is None else row.interval or row.error


def _share(value: float | None) -> str:
    return "–" if value is None else f"{value:.1%}"


def _confidence(protocol: Protocol) -> str:
    level = protocol.settings.get("confidence")
    return f"{level:.0%} " if isinstance(level, float) else ""


def _evaluations_in_words(protocol: Protocol) -> str:
    return f"{protocol.evaluations:,}"


def _described(told: Mapping[str, Any]) -> str:
    """A reference or an extractor: its name first, fingerprints cut short."""
    parts = [
        f"{key} {str(value)[:8]}" if key == "fingerprint" else f"{key} {_value(value)}"
        for key, value in told.items()
        if key != "name" and value is not None
    ]
    return ", ".join([str(told.get("name", "unnamed")), *parts])


def _listed(told: Mapping[str, Any]) -> str:
    return ", ".join(f"{key} {_value(value)}" for key, value in told.items()) or "none"


def _value(value: Any) -> str:
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, int):
        return f"{value:,}"
    if isinstance(value, list | tuple):
        return " to ".join(map(str, value)) if len(value) == 2 else ", ".join(map(str, value))
    if isinstance(value, dict):
        return _listed(value)
    return f"{value:g}" if isinstance(value, float) else str(value)


def _with_error(value: float, error: float | None) -> str:
    return f"{value:.3f}" if error is None else f"{value:.3f} ± {error:.3f}"


def _read(file: Path) -> dict[str, Any] | None:
    if not file.exists():
        return None
    try:
        content: dict[str, Any] = json.loads(file.read_bytes())
        missing = _LIKELIHOOD_FIELDS - set(content)
    except (ValueError, TypeError):
        missing = {"everything"}
    if missing:
        raise InkdropError(f"{file} is damaged; delete it and measure the likelihood again")
    return content
