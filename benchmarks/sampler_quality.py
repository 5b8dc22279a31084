"""How good are samples of the trained digits, by sampler, timesteps and network evaluations?

    python benchmarks/sampler_quality.py runs/digits                 # everything: hours
    python benchmarks/sampler_quality.py runs/digits --only seed=0   # some of it
    python benchmarks/sampler_quality.py runs/digits --time          # how long samplers take

Each job generates 10,000 samples of a seed and takes their Fréchet distance in pixels (0 … 16) to
the 1,797 real digits. Jobs that results/sampler_quality.json has already are not run again, so it
can be stopped and given again. Draws docs/pictures/sampler-quality.png. `inkdrop fit` comes first.
"""

import argparse
import json
import math
import time
from pathlib import Path
from statistics import mean, median
from typing import Any

import torch
from common import RESULTS, write_result
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from sklearn.datasets import load_digits

import inkdrop
from inkdrop.data.pixels import to_uint8
from inkdrop.diffusion.denoiser import Denoiser
from inkdrop.diffusion.spacing import FITTED, SPACINGS
from inkdrop.evaluation.distances import frechet_distance
from inkdrop.report import style
from inkdrop.report.pictures import save

SAMPLES, BATCH, TIMED = 10_000, 500, 128
SEEDS = (0, 1, 2)
FEW = (5, 10, 20)
SAMPLERS = [
    ("ddim", {}),
    ("ancestral", {}),
    ("dpm-solver++", {"order": 2}),
    ("dpm-solver++", {"order": 3}),
    ("unipc", {"order": 2}),
    ("unipc", {"order": 3}),
    ("heun", {}),
]


def jobs() -> list[dict[str, object]]:
    """The reference; every sampler on its own timesteps; and every choice of timesteps."""
    listed: list[dict[str, object]] = []
    for seed in SEEDS:
        listed.append({"sampler": "ancestral", "timesteps": "trailing", "evaluations": 1000})
        for sampler, options in SAMPLERS:
            for count in FEW:
                spacing = "log-snr" if sampler == "heun" else "trailing"
                job = {"sampler": sampler, "timesteps": spacing, "evaluations": count}
                listed.append(job | options)
        for spacing in (*FITTED, *SPACINGS):
            for sampler in ("ddim", "unipc"):
                for count in FEW:
                    job = {"sampler": sampler, "timesteps": spacing, "evaluations": count}
                    listed.append(job | ({"order": 2} if sampler == "unipc" else {}))
        for job in listed:
            job.setdefault("seed", seed)
    return [job for i, job in enumerate(listed) if job not in listed[:i]]


def name(job: dict[str, object]) -> str:
    return " ".join(f"{key}={value}" for key, value in job.items())


def measured(run: inkdrop.Run, denoiser: Denoiser, job: dict[str, object]) -> dict[str, object]:
    options = {key: value for key, value in job.items() if key != "seed"}
    table = run.table(**options)  # type: ignore[arg-type]
    began = time.perf_counter()
    images = [
        inkdrop.sample(denoiser, BATCH, table=table, seed=job["seed"], first_index=first)
        for first in range(0, SAMPLES, BATCH)
    ]
    seconds = time.perf_counter() - began
    pixels = to_uint8(torch.cat(images)).numpy().reshape(SAMPLES, -1) / 255 * 16
    return {
        **job,
        "rows": len(table),
        "frechet_distance": round(frechet_distance(pixels, REAL), 3),
        "seconds_while_others_ran": round(seconds, 1),
    }


def seconds() -> dict[str, float]:
    """Seconds for 1,000 images by each sampler: the median of three batches, on one thread."""
    torch.set_num_threads(1)
    taken = {}
    for sampler, options in SAMPLERS:
        for count in FEW:
            table = run.table(sampler, evaluations=count, **options)  # type: ignore[arg-type]
            batches = []
            for first in range(0, 3 * TIMED, TIMED):
                began = time.perf_counter()
                inkdrop.sample(run.denoiser, TIMED, table=table, first_index=first)
                batches.append((time.perf_counter() - began) * 1000 / TIMED)
            label = f"{sampler} {options.get('order', '')}".strip()
            taken[f"{label}, {count} evaluations"] = round(median(batches), 2)
            print(label, count, taken[f"{label}, {count} evaluations"], flush=True)
    return taken


def drawn(rows: list[dict[str, object]]) -> Figure:
    """Fréchet distance against evaluations: by sampler, and by timesteps of one sampler."""
    by_name: dict[str, dict[int, list[float]]] = {}
    for row in rows:
        if row["seed"] != SEEDS[0]:
            continue  # the same noise for all
        label = f"{row['sampler']} {row.get('order', '')}".strip() + f", {row['timesteps']}"
        values = by_name.setdefault(label, {}).setdefault(int(row["evaluations"]), [])  # type: ignore[call-overload]
        values.append(float(row["frechet_distance"]))  # type: ignore[arg-type]
    reference = mean(by_name["ancestral, trailing"][1000])
    figure = style.new_figure(920, 380)
    style.add_text(
        figure, 2, 17, "Few evaluations, good digits", va="baseline", fontsize=17, fontweight="bold"
    )
    panels = {
        "Fréchet distance of 10,000 samples, by sampler": [
            n for n in by_name if n.endswith(", trailing") or n == "heun, log-snr"
        ],
        "the same with UniPC 2, by timesteps": [n for n in by_name if n.startswith("unipc 2")],
    }
    for left, (title, names) in zip((0, 460), panels.items(), strict=True):
        axes = style.add_axes(figure, left + 52, 50, 460 - left + 130, 66)
        style.add_text(figure, left + 2, 44, title, va="baseline", fontsize=style.SMALL_SIZE)
        axes.axhline(reference, color=style.ACCENT, linewidth=1.5)
        look = style.text_style() | {"fontsize": 12, "color": style.ACCENT}
        axes.text(4.8, reference / 1.03, "ancestral, 1,000", va="top", **look)
        ends = []
        for label in names:
            points = sorted((k, mean(v)) for k, v in by_name[label].items() if k <= max(FEW))
            x, y = zip(*points, strict=True)
            shown = label.split(", ")[0 if left == 0 else 1]
            strong = shown in ("unipc 2", "fitted-path")
            color = style.INK if strong else style.FAINT
            axes.plot(x, y, color=color, linewidth=2 if strong else 1.2, marker="o", markersize=3)
            ends.append((y[-1], shown, strong))
        axes.set_xscale("log")
        axes.set_yscale("log")
        axes.set_xlim(4.7, 21)
        axes.set_ylim(4, 80)
        axes.set_xticks(FEW, [str(count) for count in FEW])
        axes.set_yticks([5, 7, 10, 20, 40, 80], ["5", "7", "10", "20", "40", "80"])
        axes.minorticks_off()
        place_labels(axes, ends)
        style.add_text(figure, left + 190, 372, "network evaluations", ha="center", va="baseline")
    return figure


def place_labels(axes: Axes, ends: list[tuple[float, str, bool]]) -> None:
    """The names of the curves at the right, where they end, but not on top of each other."""
    low, high = axes.get_ylim()
    labels = [(value, shown, style.INK if strong else style.MUTED) for value, shown, strong in ends]
    place = -1.0
    for value, shown, color in sorted(labels):
        here = math.log(min(value, high) / low) / math.log(high / low)
        place = max(here - 0.02, place + 0.068)
        look = style.text_style() | {"fontsize": 12, "color": color}
        axes.text(1.03, place, shown, transform=axes.transAxes, **look)


parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
parser.add_argument("run", type=Path)
parser.add_argument(
    "--only", nargs="+", default=[], help="parts of a job, such as seed=0 timesteps=fitted"
)
parser.add_argument("--time", action="store_true", help="time the samplers instead")
parser.add_argument("--compile", action="store_true", help="compile the network first")
options = parser.parse_args()

REAL = load_digits().data
run = inkdrop.load(options.run)
denoiser = run.denoiser
if options.compile:
    compiled = torch.compile(denoiser.network)
    denoiser = Denoiser(compiled, denoiser.schedule, denoiser.prediction, denoiser.shape)


def known() -> dict[str, Any]:
    """What has been measured, by this process or another."""
    content: dict[str, Any] = json.loads(FILE.read_text()) if FILE.exists() else {}
    return {name: content.get(name, empty) for name, empty in (("seconds", {}), ("jobs", []))}


def keep(figures: dict[str, Any]) -> None:
    write_result("sampler_quality", {"samples": SAMPLES, "step": run.step, **figures})


FILE = RESULTS / "sampler_quality.json"
if options.time:
    keep(known() | {"seconds": seconds()})
for job in [] if options.time else jobs():
    done = any(all(row.get(key) == value for key, value in job.items()) for row in known()["jobs"])
    if done or not set(options.only) <= set(name(job).split()):
        continue
    row = measured(run, denoiser, job)
    print(row, flush=True)
    keep(known() | {"jobs": [*known()["jobs"], row]})
picture = Path(__file__).parent.parent / "docs" / "pictures" / "sampler-quality.png"
save(drawn(known()["jobs"]), picture)
