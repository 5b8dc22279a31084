"""Where does the time of a training step go?

    python benchmarks/profile_step.py
    python benchmarks/profile_step.py --networks b --batch 512

Profiles `Trainer.train_step` on random images for the presets digits and mnist and the networks a
and b of `peers`, each in a process of its own, and sorts every operation's own time by its kind; on
a GPU that of its kernels. What is left of the wall time is Python, and waiting. On a CPU the time
of a profiled step is shared out; on a GPU, where tracing slows the host but no kernel, that of a
step without the profiler.

In turns with steps it times their convolutions alone and a product of 2048² matrices, and tells
which part of either rate the step reaches. Writes results/profile_step_DEVICE.json and .png.
"""

from __future__ import annotations

import argparse
import re
import tempfile
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from statistics import median
from typing import Any

import paired
import torch
from common import RESULTS, write_result
from peers import NETWORKS, inkdrop_config, randomised
from plotting import figure
from rates import (
    SIDE,
    convolutions_alone,
    convolutions_of,
    counted_flops,
    matrix_product,
    seconds_of,
)
from torch.autograd import DeviceType
from torch.profiler import ProfilerActivity, profile, record_function

from inkdrop import presets
from inkdrop.config import Config
from inkdrop.report import style

PRESETS = {"digits": (1, 8, 8), "mnist": (1, 28, 28)}
OUTSIDE = "Python and waiting"
DATA, UPDATE = "data and noise", "optimizer, clipping, average"
# The first kind whose pattern an operation's name has; what has none is elementwise.
KINDS = {
    OUTSIDE: r"^(?!aten::)|::(view|reshape|_?unsafe_view|transpose|permute|t|expand|as_strided|"
    r"slice|select|narrow|split|chunk|unsqueeze|squeeze|detach|detach_|empty\w*|resize_|alias|"
    r"result_type|item|_local_scalar_dense|flatten|unflatten|unbind|_reshape_alias)$",
    "convolutions, backward": r"convolution_backward",
    "convolutions, forward": r"conv",
    "attention": r"softmax|attention|bmm",
    "other matrix products": r"::(addmm|mm|linear|matmul)",
    "normalisation": r"group_norm|batch_norm|layer_norm",
    "activation": r"silu",
    "copies, joining, resampling": r"copy|::to$|clone|contiguous|cat$|upsample|pixel|pad|repeat|"
    r"index|gather|stack|roll",
}
ELEMENTWISE = "other elementwise"
COLOURS = {  # in the order of the bars
    "convolutions, forward": style.INK,
    "convolutions, backward": "#3F5179",
    "attention": "#4A90A4",
    "other matrix products": "#7A5C99",
    "normalisation": style.ACCENT,
    "activation": "#DD8A5E",
    ELEMENTWISE: "#C99A2E",
    "copies, joining, resampling": "#E3C987",
    UPDATE: style.MUTED,
    DATA: style.FAINT,
    OUTSIDE: style.RULE,
}
NAMED = 0.045  # shares from here on are written into their bar


def configuration(name: str, batch: int | None, device: str) -> tuple[Config, tuple[int, ...]]:
    """How a network is trained, and the shape of its images."""
    if name in NETWORKS:
        usual = NETWORKS[name].batch_sizes[device][0]
        return inkdrop_config(name, batch or usual, device), NETWORKS[name].shape
    config = presets.preset(name)
    config.training.device, config.training.compile = device, "off"
    if batch:
        config.training.batch_size = batch
    return config, PRESETS[name]


def named(owner: Any, method: str, kind: str) -> None:
    """Let the profiler know that what a method does is of one kind."""
    plain = getattr(owner, method)

    def told(*arguments: Any, **options: Any) -> Any:
        with record_function(kind):
            return plain(*arguments, **options)

    setattr(owner, method, told)


def measure(name: str, batch: int | None, device: str, steps: int, repetitions: int) -> Any:
    """The figures of one network."""
    from inkdrop.allocator import keep_memory
    from inkdrop.training import trainer as training
    from inkdrop.training.trainer import Trainer

    keep_memory()
    config, (channels, height, width) = configuration(name, batch, device)
    batch = config.training.batch_size
    images = torch.randint(256, (4 * batch + 512, height, width, channels), dtype=torch.uint8)
    with tempfile.TemporaryDirectory() as temporary:
        trainer = Trainer(config, f"{temporary}/run", source=images.squeeze(-1))
        randomised(trainer.network)
        for owner, method, kind in (
            (trainer.stream, "batch", DATA),
            (training, "normal", DATA),
            (trainer.timestep_sampler, "draw", DATA),
            (trainer.optimizer, "step", UPDATE),
            (trainer.parallel, "clip", UPDATE),
            (trainer.ema, "update", UPDATE),
        ):
            named(owner, method, kind)
        for _ in range(3):
            trainer.train_step()

        x = torch.randn(batch, channels, height, width, device=device)
        t = torch.randint(1000, (batch,), device=device)
        counts = convolutions_of(trainer.network, x, t)
        products = 200 if device == "cuda" else 2
        with (
            convolutions_alone(counts, True, device) as (convolve, _),
            matrix_product(device, products) as (multiply, _),
        ):
            parts = {"step": trainer.train_step, "convolutions": convolve, "products": multiply}
            seconds = in_turns(parts, repetitions)
        spent, profiled = kinds_of_time(trainer.train_step, steps, device)
        trainer.folder.let_go()
        few = slice(0, 2)
        flops = counted_flops(lambda: trainer.network(x[few], t[few]).square().mean().backward())
    flops = flops * batch // len(x[few])

    of_convolutions = sum(c.flops(True) * n for c, n in counts.items())
    step = median(seconds["step"])
    whole = step if device == "cuda" else profiled
    spent[OUTSIDE] = max(0.0, whole - sum(spent[kind] for kind in COLOURS if kind != OUTSIDE))
    inside = spent["convolutions, forward"] + spent["convolutions, backward"]
    rates = {
        "step": flops / step,
        "convolutions_within_the_step": of_convolutions / inside,
        "convolutions_alone": of_convolutions / median(seconds["convolutions"]),
        "matrix_product": 2 * SIDE**3 * products / median(seconds["products"]),
    }
    return {
        "batch_size": batch,
        "parameters": sum(p.numel() for p in trainer.network.parameters()),
        "step_ms": round(1e3 * step, 3),
        "profiled_step_ms": round(1e3 * profiled, 3),
        "images_per_second": round(batch / step, 2),
        "flops_of_a_step": flops,
        "flops_of_a_step_in_convolutions": of_convolutions,
        "ms": {kind: round(1e3 * spent[kind], 3) for kind in COLOURS},
        "share": {kind: round(spent[kind] / sum(spent.values()), 4) for kind in COLOURS},
        "gflops_per_second": {what: round(rate / 1e9, 2) for what, rate in rates.items()},
        "step_of_the_convolutions_rate": round(rates["step"] / rates["convolutions_alone"], 4),
        "step_of_the_matrix_product": round(rates["step"] / rates["matrix_product"], 4),
        "seconds_of_each_repetition": {
            what: [round(s, 6) for s in of_each] for what, of_each in seconds.items()
        },
    }


def in_turns(parts: dict[str, Callable[[], Any]], repetitions: int) -> dict[str, list[float]]:
    """The seconds of each part, A B C A B C …; the first round is not counted."""
    rounds = [
        {what: seconds_of(part) for what, part in parts.items()} for _ in range(repetitions + 1)
    ]
    return {what: [one[what] for one in rounds[1:]] for what in parts}


def kinds_of_time(step: Callable[[], Any], steps: int, device: str) -> tuple[Counter[str], float]:
    """Seconds that a step spends on each kind of operation, and that it takes while profiled."""
    on_gpu = device == "cuda"
    activities = [ProfilerActivity.CPU, *([ProfilerActivity.CUDA] if on_gpu else [])]
    paired.wait_for_device()
    with profile(activities=activities) as profiler:
        began = time.perf_counter()
        for _ in range(steps):
            step()
        paired.wait_for_device()
        took = time.perf_counter() - began
    spent: Counter[str] = Counter()
    for event in profiler.events():
        if event.device_type != DeviceType.CPU:
            continue  # kernels count where they were launched
        kind = kind_of(event)
        if not on_gpu:
            spent[kind] += event.self_cpu_time_total / 1e6 / steps
        elif not event.is_user_annotation:  # whose kernels are those of what it encloses
            kind = ELEMENTWISE if kind == OUTSIDE else kind
            spent[kind] += sum(kernel.duration for kernel in event.kernels) / 1e6 / steps
    return spent, took / steps


def kind_of(event: Any) -> str:
    """What a profiler's event counts as: by where it stands, or else by its name."""
    around = event
    while around is not None:
        if around.name in (DATA, UPDATE):
            return str(around.name)
        around = around.cpu_parent
    for kind, pattern in KINDS.items():
        if re.search(pattern, event.name):
            return kind
    return ELEMENTWISE


def draw(results: dict[str, Any], path: Path) -> None:
    """Each network's step as a bar of its kinds."""
    names = list(results)
    with figure(path, 8, 1.5 + 0.62 * len(names)) as (fig, ax):
        left = [0.0] * len(names)
        for kind, colour in COLOURS.items():
            shares = [100 * results[name]["share"][kind] for name in names]
            bars = ax.barh(names, shares, 0.62, left, color=colour, label=kind)
            ink = style.INK if light(colour) else style.PAPER
            labels = [f"{share:.0f}" if share >= 100 * NAMED else "" for share in shares]
            ax.bar_label(bars, labels, label_type="center", color=ink, fontsize=9.5)
            left = [a + b for a, b in zip(left, shares, strict=True)]
        ax.set_yticks(range(len(names)), [caption(n, results[n]) for n in names])
        ax.invert_yaxis()
        ax.set_xlim(0, 100)
        ax.grid(visible=False)
        ax.set_xlabel("share of a training step, %")
        fig.legend(loc="outside lower center", ncols=3, fontsize=9.5, handlelength=1.1)


def caption(name: str, figures: dict[str, Any]) -> str:
    """Whose a bar is, and what its whole length stands for."""
    of = f"network {name}" if name in NETWORKS else name
    ms = figures["step_ms"]
    return f"{of}\nbatch {figures['batch_size']}, {ms:,.{0 if ms >= 100 else 1}f} ms"


def light(colour: str) -> bool:
    """Whether dark letters are to be read on a colour #rrggbb."""
    red, green, blue = (int(colour[i : i + 2], 16) for i in (1, 3, 5))
    return 0.3 * red + 0.59 * green + 0.11 * blue > 140


def table(results: dict[str, Any]) -> str:
    """The figures, a network a column."""
    rates = [found["gflops_per_second"] for found in results.values()]
    rows = [["kind", *results], ["---"] * (len(results) + 1)]
    rows += [[kind, *(f"{r['share'][kind]:.1%}" for r in results.values())] for kind in COLOURS]
    rows += [
        ["a step", *(f"{r['step_ms']:,.1f} ms" for r in results.values())],
        *(
            [f"GFLOP/s, {what.replace('_', ' ')}", *(f"{rate[what]:,.1f}" for rate in rates)]
            for what in rates[0]
        ),
        [
            "the step, of the convolutions' rate",
            *(f"{r['step_of_the_convolutions_rate']:.0%}" for r in results.values()),
        ],
    ]
    return "\n".join(f"| {' | '.join(row)} |" for row in rows)


def main() -> None:
    """Profile, draw, and write it down."""
    known = [*PRESETS, *NETWORKS]
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--networks", nargs="+", choices=known, default=known)
    parser.add_argument("--batch", type=int, help="default: the preset's or the network's")
    parser.add_argument("--steps", type=int, help="profiled (default: 3, or 10 on a GPU)")
    parser.add_argument("--repetitions", type=int, help="timed of each part (default: 9)")
    parser.add_argument("--device", choices=("auto", "cpu", "cuda"), default="auto")
    parser.add_argument("--quick", action="store_true", help="tiny, and keep no result")
    options = parser.parse_args()
    device = options.device
    if device == "auto":
        device = "cuda" if torch.cuda.is_available() else "cpu"
    steps = options.steps or (1 if options.quick else 10 if device == "cuda" else 3)
    repetitions = options.repetitions or (1 if options.quick else 9)
    batch = options.batch or (4 if options.quick else None)

    results = {}
    for name in options.networks:
        results[name] = paired.in_new_process(measure, name, batch, device, steps, repetitions)
        print(f"{name}: {results[name]['step_ms']:,.1f} ms a step", flush=True)
    print(table(results))
    folder = Path(tempfile.mkdtemp()) if options.quick else RESULTS
    draw(results, folder / f"profile_step_{device}.png")
    figures = {
        "device": torch.cuda.get_device_name() if device == "cuda" else "cpu",
        "threads": torch.get_num_threads(),
        "networks": results,
    }
    print(f"written to {write_result(f'profile_step_{device}', figures, folder)}")


if __name__ == "__main__":
    main()
