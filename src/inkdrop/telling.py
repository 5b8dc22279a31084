"""What an evaluation found, on a console."""

from __future__ import annotations

from collections.abc import Sequence

from rich.console import Console
from rich.table import Table

from .console import say
from .evaluation.measures import in_short
from .evaluation.record import (
    METRICS,
    POINT_METRICS,
    Evaluation,
    Figure,
    Metric,
    Protocol,
    extractor_in_words,
    notes,
)
from .run import Run

_WORST = 3  # classes that are named
_KNOWN = METRICS | POINT_METRICS


def say_evaluation(console: Console, run: Run, evaluation: Evaluation) -> None:
    """One evaluation: its protocol, a table of figures with what to know of them, and the rest."""
    for line in _protocol_in_words(run, evaluation.protocol):
        say(console, line)
    console.print(_figures(evaluation))
    for note in _notes(evaluation):
        say(console, note)
    for line in (*_classes(evaluation), *_memorisation(evaluation), *_likelihood(evaluation)):
        say(console, line)


def say_sweep(console: Console, run: Run, found: Sequence[Evaluation]) -> None:
    """Evaluations that differ in how samples were made, as one table."""
    for line in _protocol_in_words(run, found[0].protocol, swept=True):
        say(console, line)
    guided = any(evaluation.protocol.guidance is not None for evaluation in found)
    table = Table(box=None, pad_edge=False, header_style="bold")
    table.add_column("evaluations" if not guided else "evaluations, guidance", no_wrap=True)
    for evaluation in found:
        protocol = evaluation.protocol
        scale = "" if protocol.guidance is None else f", {protocol.guidance['scale']:g}"
        table.add_column(f"{protocol.evaluations:,}{scale}", justify="right", no_wrap=True)
    for name in found[0].figures:
        table.add_row(_headed(name), *(_value(evaluation.figures[name]) for evaluation in found))
    if any(evaluation.accuracy is not None for evaluation in found):
        cells = ("" if e.accuracy is None else f"{e.accuracy:.1%}" for e in found)
        table.add_row("accuracy ↑", *cells)
    console.print(table)
    for note in dict.fromkeys(note for evaluation in found for note in _notes(evaluation)):
        say(console, note)
    verdicts = [e for e in found if e.memorisation is not None]
    worst = max(verdicts, key=lambda e: _severity(e), default=None)
    for line in (*(_memorisation(worst) if worst else ()), *_likelihood(found[0])):
        say(console, line)


def _protocol_in_words(run: Run, protocol: Protocol, swept: bool = False) -> list[str]:
    how = f"{protocol.sampler}"
    if not swept:
        how += f" in {protocol.evaluations:,} evaluations"
        if protocol.guidance is not None:
            how += f", guidance {protocol.guidance['scale']:g}"
    told = "" if protocol.condition == "nothing" else f", told {protocol.condition}"
    reference, extractor = protocol.reference, protocol.extractor
    known = extractor.get("accuracy")
    features = f"{extractor['features']:,} features of {extractor_in_words(extractor['name'])}"
    if known is not None:
        features += f", which knows {known:.1%} of real ones"
    splits = {"train": "training ", "held-out": "held-out "}
    split = splits.get(reference["split"], "")
    return [
        f"{run.path} at step {protocol.step:,} ({protocol.weights} weights): "
        f"{protocol.samples:,} samples of seed {protocol.seed} by {how}{told}",
        f"held against {reference['count']:,} {split}examples of {reference['name']}, "
        f"by {features}",
    ]


def _figures(evaluation: Evaluation) -> Table:
    floors = dict.fromkeys(pair for figure in evaluation.figures.values() for pair in figure.floor)
    intervals = any(figure.low is not None for figure in evaluation.figures.values())
    table = Table(box=None, pad_edge=False, header_style="bold")
    table.add_column("", no_wrap=True)
    table.add_column("samples", justify="right")
    if intervals:
        confidence = evaluation.protocol.settings.get("confidence", 0.95)
        table.add_column(f"{confidence:.0%} interval", justify="right", no_wrap=True)
    for pair in floors:
        table.add_column(f"real: {pair}", justify="right")
    for name, figure in evaluation.figures.items():
        cells = [_headed(name), f"[bold]{_value(figure)}"]
        if intervals:
            known = figure.low is not None and figure.high is not None
            cells.append(f"{in_short(figure.low)} … {in_short(figure.high)}" if known else "")  # type: ignore[arg-type]
        cells += [in_short(figure.floor[pair]) if pair in figure.floor else "" for pair in floors]
        table.add_row(*cells)
    return table


def _headed(name: str) -> str:
    metric = _KNOWN.get(name, Metric(name, ""))
    return f"{metric.label} {'↑' if metric.higher_is_better else '↓'}"


def _label(name: str) -> str:
    return _KNOWN[name].label if name in _KNOWN else name


def _value(figure: Figure) -> str:
    return "–" if figure.value is None else in_short(figure.value)


def _notes(evaluation: Evaluation) -> list[str]:
    """What to know before quoting figures, each said once, for all that it is true of."""
    everything = len(evaluation.figures)
    return [
        f"  {'all' if len(names) == everything > 1 else ', '.join(map(_label, names))}: {note}"
        for names, note in notes(evaluation.figures)
    ]


def _classes(evaluation: Evaluation) -> list[str]:
    if not evaluation.classes:
        return []
    lines = []
    if evaluation.class_coverage is not None:
        lines.append(
            f"{evaluation.class_coverage:.0%} of classes have at least a tenth of their due"
        )
    if evaluation.accuracy is not None:
        told = [
            (each.accuracy, each.label) for each in evaluation.classes if each.accuracy is not None
        ]
        worst = [each for each in sorted(told)[:_WORST] if each[0] < 1]
        named = ", ".join(f"{label} ({accuracy:.0%})" for accuracy, label in worst)
        lines.append(
            f"{evaluation.accuracy:.1%} of samples are of the class they were told"
            + (f"; least of classes {named}" if len(told) > _WORST and worst else "")
        )
    return lines


def _memorisation(evaluation: Evaluation) -> list[str]:
    found = evaluation.memorisation
    if found is None:
        return []
    return [f"copies of training examples: {found.verdict}. {found.evidence}"]


def _severity(evaluation: Evaluation) -> int:
    assert evaluation.memorisation is not None
    return ("none seen", "suspected", "copies").index(evaluation.memorisation.verdict)


def _likelihood(evaluation: Evaluation) -> list[str]:
    found = evaluation.likelihood
    if found is None:
        return []
    bits = ", ".join(
        f"{split} {found[split]['bits_per_dim']:.3f} ± {found[split]['standard_error'] or 0:.3f}"
        for split in ("train", "held-out")
        if split in found
    )
    return [f"bits/dim: {bits}; {found['verdict']}"]
