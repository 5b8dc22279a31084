"""How good does a training get in how long?

    python benchmarks/time_to_quality.py digits
    python benchmarks/time_to_quality.py mnist --minutes 15
    python benchmarks/time_to_quality.py mnist --as-it-comes
    python benchmarks/time_to_quality.py digits --quick      # and mnist --quick

digits   the preset digits trained anew for each of --budgets seconds, with as many steps as a short
         probe says fit; then 1,797 samples by 50 steps of DDIM, and their Fréchet distance to the
         real images in pixel space (0 … 16). The floor is that of two random halves of these.
mnist    one training of --minutes, its steps from a probe too, with checkpoints all along: of those
         at geometric times the held-out loss, and the bits/dim of --images held-out images by the
         averaged weights; at the end the Fréchet distance of 2,000 samples in the features of the
         classifier of the digits, with its floor. With --as-it-comes the command `inkdrop train
         mnist` as it is, and the same of its end.

Time is that of training itself, as metrics.jsonl has it; the probe's is not in it. Where --limit
minutes are over (9 on a GPU) the program leaves with 75, "not finished": the same command goes on
from what is in --keep (runs/NAME there). Writes results/NAME.json and a plot beside it: NAME is
time_to_quality_digits or time_to_quality_mnist, then _as_it_comes, then _cuda, where they are so.
"""

from __future__ import annotations

import argparse
import json
import math
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import torch
from common import RESULTS, write_result
from plotting import figure

import inkdrop
from inkdrop import presets
from inkdrop.checkpoint import finished_checkpoints, read_manifest
from inkdrop.data.examples import to_x_start
from inkdrop.data.pixels import to_uint8
from inkdrop.evaluation.distances import frechet_distance
from inkdrop.evaluation.figures import HELD_OUT
from inkdrop.metrics import read_metrics
from inkdrop.report import style

BUDGETS = (10, 20, 45, 100, 300)  # seconds
MINUTES = {"cpu": 15.0, "cuda": 10.0}
LIMIT_MINUTES = {"cpu": math.inf, "cuda": 9.0}
CHECKPOINTS = 32  # of a training, evenly
KEPT = (1, 2, 3, 4, 6, 8, 11, 16, 23, 32)  # of these: √2 apart
NOT_FINISHED = 75  # the exit code that means: again later
LEAST = 120.0  # seconds that a part which cannot be broken off should have


class Parts:
    """What a measurement has found so far, kept in a folder, and the time that is left.

    Args:
        folder: where.
        minutes: that this process may take.
        settings: what it measures: a folder of other settings is refused.
    """

    def __init__(self, folder: Path, minutes: float, settings: dict[str, Any]) -> None:
        self.folder = folder
        self._file = folder / "parts.json"
        self._ends = time.monotonic() + 60 * minutes
        folder.mkdir(parents=True, exist_ok=True)
        before = json.loads(self._file.read_text()) if self._file.exists() else None
        self._found: dict[str, Any] = before or {"settings": settings}
        if self._found["settings"] != settings:
            raise SystemExit(f"{folder} holds a measurement of {self._found['settings']}")

    @property
    def left(self) -> float:
        """Seconds."""
        return self._ends - time.monotonic()

    def once(self, name: str, measure: Callable[[], Any], least: float = LEAST) -> Any:
        """What a part found before, or finds now where `least` seconds are left."""
        if name not in self._found:
            if self.left < least:
                self.leave(name)
            self._found[name] = measure()
            self._file.write_text(json.dumps(self._found, indent=1))
        return self._found[name]

    def leave(self, name: str) -> None:
        """End the program before a part that there is no time for."""
        print(f"not finished: {name} is next; give the same command again", flush=True)
        raise SystemExit(NOT_FINISHED)


def train(arguments: list[str], seconds: float = math.inf) -> bool:
    """`inkdrop train`, stopped after so many seconds; whether it came to its end."""
    command = [sys.executable, "-m", "inkdrop", "train", *arguments]
    process = subprocess.Popen(command)
    try:
        process.wait(None if seconds == math.inf else max(1.0, seconds))
    except subprocess.TimeoutExpired:
        process.send_signal(signal.SIGTERM)
        process.wait()
    if process.returncode in (128 + signal.SIGTERM, -signal.SIGTERM):  # the latter as it starts
        return False
    if process.returncode:
        raise SystemExit(f"exit code {process.returncode}: inkdrop train {' '.join(arguments)}")
    return True


def steps_for(seconds: float, preset: str, flags: list[str], probe: int) -> int:
    """How many steps of a preset take so long, by a training of `probe` of them."""
    with tempfile.TemporaryDirectory() as temporary:
        out = Path(temporary) / "probe"
        every = max(1, probe // 10)
        short = ["--steps", str(probe), "--logging.metrics-every", str(every)]
        train([preset, *flags, *short, "--out", str(out)])
        rows = [row for row in read_metrics(out / "metrics.jsonl") if "loss" in row]
    # The first steps may be slow once: what they take beyond their due is known to come again.
    step = median(
        (after["seconds"] - before["seconds"]) / (after["step"] - before["step"])
        for before, after in pairwise(rows)
    )
    start = max(0.0, rows[0]["seconds"] - rows[0]["step"] * step)
    return max(1, round((seconds - start) / step))


def training_seconds(run: Path) -> float:
    """What its training took, all sessions together."""
    rows = [row for row in read_metrics(run / "metrics.jsonl") if "loss" in row]
    return float(rows[-1]["seconds"])


# digits


def digits(options: argparse.Namespace) -> dict[str, Any]:
    """A training for each budget."""
    from sklearn.datasets import load_digits

    real = load_digits().data
    order = np.random.default_rng(0).permutation(len(real))
    floor = frechet_distance(*np.array_split(real[order], 2))
    count = 200 if options.quick else len(real)
    flags = ["--training.device", options.device]
    budgets = (1, 2) if options.quick else options.budgets
    parts = options.parts
    steps_of_100 = parts.once(
        "steps in 100 s",
        lambda: steps_for(100, "digits", flags, 20 if options.quick else 200),
    )

    def measured(budget: float, seed: int) -> dict[str, Any]:
        out = parts.folder / f"digits-{budget:g}-seed{seed}"
        steps = max(1, round(steps_of_100 * budget / 100))
        length = ["--steps", str(steps), "--seed", str(seed), "--out", str(out)]
        if not train(["digits", *flags, *length], parts.left):
            parts.leave(f"the training for {budget:g} s")
        run = inkdrop.load(out, device=options.device)
        images = inkdrop.sample(run.denoiser, count, "ddim", 50, batch_size=600)
        pixels = to_uint8(images).cpu().numpy().reshape(count, -1) / 255 * 16
        return {
            "budget": budget,
            "seed": seed,
            "steps": run.step,
            "training_seconds": training_seconds(out),
            "frechet_distance": round(frechet_distance(pixels, real), 2),
        }

    points = []
    for budget in budgets:
        for seed in options.seeds:
            name = f"{budget:g} s, seed {seed}"
            least = 0.0 if options.limit == math.inf else budget + 30.0
            points.append(
                parts.once(name, lambda budget=budget, seed=seed: measured(budget, seed), least)
            )
            print(points[-1], flush=True)
    return {
        "preset": "digits",
        "samples": count,
        "sampler": "ddim, 50 steps",
        "floor": round(floor, 2),
        "floor_is": "the Fréchet distance of two random halves of the real images",
        "points": points,
    }


def plot_digits(found: dict[str, Any], path: Path) -> None:
    """The distance against the time."""
    points = found["points"]
    with figure(path) as (_, ax):
        x = [point["training_seconds"] for point in points]
        y = [point["frechet_distance"] for point in points]
        by_budget: dict[float, list[tuple[float, float]]] = {}
        for point, at in zip(points, zip(x, y, strict=True), strict=True):
            by_budget.setdefault(point["budget"], []).append(at)
        middle = [np.median(of, axis=0) for of in by_budget.values()]
        ax.plot(*zip(*middle, strict=True), color=style.INK)
        ax.plot(x, y, "o", color=style.INK)
        for seconds, distance in middle:
            ax.annotate(
                _number(distance),
                (seconds, distance),
                (0, 8),
                textcoords="offset points",
                color=style.INK,
                ha="center",
            )
        _draw_floor(ax, found["floor"], f"two halves of the real images: {_number(found['floor'])}")
        ax.set_title("The preset digits: what its samples are worth after so much training")
        ax.set_xlabel("seconds of training")
        ax.set_ylabel("Fréchet distance in pixels (0 … 16)")
        _logarithmic(ax, [*y, found["floor"]])


# mnist


def mnist(options: argparse.Namespace) -> dict[str, Any]:
    """One training, looked at as it went; or the command as it comes."""
    parts, run = options.parts, options.parts.folder / "run"
    preset = options.preset
    arguments = [preset, "--training.device", options.device, "--out", str(run)]
    if options.as_it_comes:
        arguments += ["--steps", "20"] if options.quick else []
        arguments += ["--logging.keep-checkpoints", "100000"]  # to look at, nothing is learnt by it
    else:
        wanted = 60 * options.minutes

        def chosen() -> int:
            flags = ["--training.device", options.device]
            return steps_for(wanted, preset, flags, 20 if options.quick else options.probe)

        steps = parts.once("steps", chosen)
        every = max(1, math.ceil(steps / CHECKPOINTS))
        arguments += ["--steps", str(steps), "--logging.checkpoint-every", str(every)]
        arguments += ["--logging.held-out-every", str(every)]
        arguments += ["--logging.keep-checkpoints", "100000"]

    def whole() -> float:
        began = time.perf_counter()
        if not train(arguments, parts.left):
            parts.leave("the rest of the training")
        return round(time.perf_counter() - began, 1)

    last_session = parts.once("the command", whole, least=20.0)
    rows = read_metrics(run / "metrics.jsonl")
    checkpoints = finished_checkpoints(run / "checkpoints")
    if options.as_it_comes:
        checkpoints = [path for path in checkpoints if _is_shown(read_manifest(path)["step"])]
    else:
        due = {min(steps, every * k) for k in KEPT}
        checkpoints = [path for path in checkpoints if read_manifest(path)["step"] in due]
    evaluation = parts.once("samples", lambda: evaluated(run, options))
    stochastic = parts.once(
        "ancestral samples",
        lambda: evaluated(run, options, sampler="ancestral", evaluations=100),
    )
    points = [
        parts.once(path.name, lambda path=path: likelihood(run, path, options), least=60.0)
        for path in checkpoints
    ]
    return {
        "preset": preset,
        "training_seconds": training_seconds(run),
        "command_seconds_of_the_last_session": last_session,
        "images_of_the_bound": options.images,
        "terms_of_the_bound": options.terms,
        "held_out_losses": held_out_losses(rows),
        "points": points,
        "samples": evaluation,
        "ancestral_samples": stochastic,
    }


def _is_shown(step: int) -> bool:
    """Whether a step is one of 450 · 2ᵏ: alike in the logarithm of time."""
    return step % 450 == 0 and (step // 450).bit_count() == 1


def held_out_losses(rows: list[dict[str, Any]]) -> list[list[float]]:
    """(seconds of training, step, held-out loss); seconds between those of the metrics' rows."""
    known = [(row["step"], row["seconds"]) for row in rows if "loss" in row]
    steps, seconds = zip((0, 0.0), *known, strict=True)
    return [
        [round(float(np.interp(row["step"], steps, seconds)), 2), row["step"], row["held_out_loss"]]
        for row in rows
        if "held_out_loss" in row
    ]


def likelihood(run: Path, checkpoint: Path, options: argparse.Namespace) -> dict[str, Any]:
    """The bound of held-out images by the averaged weights of one checkpoint."""
    manifest = read_manifest(checkpoint)
    loaded = inkdrop.Run(run, device=options.device, checkpoint=str(manifest["step"]))
    found = {
        "step": manifest["step"],
        "training_seconds": round(manifest["state"]["seconds"], 2),
        **bound(loaded, loaded.denoiser, options.images, options.terms),
    }
    print(found, flush=True)
    return found


def bound(
    run: inkdrop.Run, denoiser: inkdrop.Denoiser, images: int, terms: int | None
) -> dict[str, Any]:
    """Bits/dim of the first held-out images of a run, by any denoiser."""
    source, _, held_out = run.load_data()
    examples = source.test or held_out
    assert examples is not None
    x_start = to_x_start(examples.at(range(min(images, len(examples)))))
    found = inkdrop.bits_per_dim(denoiser, x_start, terms=terms)
    return {
        "bits_per_dim": round(found.total, 4),
        "standard_error": round(found.standard_error, 4),
        "images": found.examples,
    }


def evaluated(
    run: Path | inkdrop.Run,
    options: argparse.Namespace,
    n: int | None = None,
    sampler: str = "ddim",
    evaluations: int = 50,
) -> dict[str, Any]:
    """The Fréchet distance of samples, with what real images get in their place."""
    loaded = run if isinstance(run, inkdrop.Run) else inkdrop.load(run, device=options.device)
    found = inkdrop.evaluate(
        loaded,
        n=options.samples if n is None else n,
        sampler=sampler,
        evaluations=2 if options.quick else evaluations,
        extractor=options.extractor,
        metrics=("frechet_distance",),
        memorisation=False,
    )
    distance = found.figures["frechet_distance"]
    result = {
        "samples": found.protocol.samples,
        "sampler": f"{found.protocol.sampler}, {found.protocol.evaluations} evaluations",
        "extractor": found.protocol.extractor["name"],
        "frechet_distance": distance.value,
        "interval": [distance.low, distance.high],
        "floor": distance.floor,
        "note": distance.note,
        "seconds": {name: round(seconds, 1) for name, seconds in found.seconds.items()},
    }
    print(result, flush=True)
    return result


def plot_mnist(found: dict[str, Any], path: Path) -> None:
    """Held-out loss and bits/dim against the time, one above the other."""
    with figure(path, height=5.6, rows=2) as (_, axes):
        above, below = axes[:, 0]
        seconds, _, losses = zip(*found["held_out_losses"], strict=True)
        above.plot([s / 60 for s in seconds], losses, "o-", color=style.INK)
        above.set_ylabel("held-out loss")
        points = found["points"]
        below.errorbar(
            [point["training_seconds"] / 60 for point in points],
            [point["bits_per_dim"] for point in points],
            [point["standard_error"] for point in points],
            fmt="o-",
            color=style.INK,
            ecolor=style.FAINT,
        )
        below.set_ylabel("held-out bits/dim")
        below.set_xlabel("minutes of training")
        samples = found["samples"]
        floor = samples["floor"].get(HELD_OUT, math.nan)
        above.set_title(
            f"The preset {found['preset']}: Fréchet distance of {samples['samples']:,} samples at "
            f"the end {_number(samples['frechet_distance'])}, of real images {_number(floor)}"
        )
        _logarithmic(above, losses)
        ends = [
            point["bits_per_dim"] + sign * point["standard_error"]
            for point in points
            for sign in (-1, 1)
        ]
        _logarithmic(below, ends)
        above.tick_params(labelbottom=False)
        below.set_xlim(above.get_xlim())


def _number(value: float) -> str:
    return f"{value:,.0f}" if value >= 100 else f"{value:.3g}"


def _draw_floor(ax: Any, value: float, words: str) -> None:
    ax.axhline(value, color=style.ACCENT, linestyle=(0, (5, 2)), linewidth=1.2)
    ax.annotate(
        words,
        (0.01, value),
        (0, -5),
        xycoords=("axes fraction", "data"),
        textcoords="offset points",
        color=style.ACCENT,
        va="top",
    )


def _logarithmic(ax: Any, values: Any) -> None:
    """Both axes, with plain numbers and a few more than powers of ten where the span is small."""
    from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

    ax.set_xscale("log")
    ax.set_yscale("log")
    low, high = min(values), max(values)
    span = high / low if low > 0 else math.inf
    ax.set_ylim(low / span**0.15, high * span**0.12)
    for axis, subs in ((ax.xaxis, (1, 2, 5)), (ax.yaxis, (1, 2, 5) if span > 8 else range(1, 10))):
        axis.set_major_locator(LogLocator(subs=subs))
        axis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
        axis.set_minor_formatter(NullFormatter())


def main() -> None:
    """Measure what is asked for, write it down and draw it."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("what", choices=("digits", "mnist"))
    parser.add_argument("--budgets", type=float, nargs="+", default=BUDGETS, help="seconds")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0], help="of digits")
    parser.add_argument("--preset", help="mnist, or another of its data (mnist-gpu on a GPU)")
    parser.add_argument("--minutes", type=float, help="of mnist's training")
    parser.add_argument("--as-it-comes", action="store_true", help="mnist by the command untouched")
    parser.add_argument("--images", type=int, default=64, help="held-out ones for bits/dim")
    parser.add_argument("--terms", type=int, default=250, help="of the bound, for each image")
    parser.add_argument("--samples", type=int, default=2000, help="of mnist, at the end")
    parser.add_argument("--probe", type=int, default=100, help="steps, to see how long one takes")
    parser.add_argument("--extractor", default="classifier", help="of features, for mnist")
    parser.add_argument("--device", choices=("auto", "cpu", "cuda"), default="auto")
    parser.add_argument("--limit", type=float, help="minutes of this process")
    parser.add_argument("--keep", type=Path, help="the folder to go on in")
    parser.add_argument("--quick", action="store_true", help="seconds, on the digits")
    options = parser.parse_args()
    if options.device == "auto":
        options.device = "cuda" if torch.cuda.is_available() else "cpu"
    on_gpu = options.device == "cuda"
    if options.preset is None:
        options.preset = "mnist-gpu" if on_gpu and "mnist-gpu" in presets.PRESETS else "mnist"
    options.minutes = options.minutes or MINUTES[options.device]
    options.limit = options.limit or LIMIT_MINUTES[options.device]
    if options.quick:
        options.preset, options.minutes, options.extractor = "digits", 0.05, "pixels"
        options.images, options.terms, options.samples = 4, 10, 100

    name = f"time_to_quality_{options.what}"
    name += "_as_it_comes" if options.as_it_comes else ""
    name += f"_{options.device}" if on_gpu else ""
    if options.keep is None and options.limit < math.inf and not options.quick:
        options.keep = Path("runs") / name
    asked = ("what", "preset", "minutes", "as_it_comes", "images", "terms", "samples", "device")
    settings = {key: getattr(options, key) for key in asked}
    with tempfile.TemporaryDirectory() as temporary:
        folder = options.keep or Path(temporary) / "kept"
        options.parts = Parts(folder, options.limit, settings)
        found = (digits if options.what == "digits" else mnist)(options)
        results = Path(temporary) if options.quick and options.keep is None else RESULTS
        results = options.keep if options.quick and options.keep is not None else results
        content = {"settings": settings, "threads": torch.get_num_threads(), **found}
        path = write_result(name, content, results)
        if options.what == "digits":
            plot_digits(found, results / f"{name}.png")
        else:
            plot_mnist(found, results / f"{name}.png")
        kept = options.keep is not None or not options.quick
        print(f"written to {path}" if kept else "quick: nothing is kept")


if __name__ == "__main__":
    main()
