"""How fast is inkdrop beside diffusers on the same work: a training step, and the network alone?

    python benchmarks/same_work.py
    python benchmarks/same_work.py --compiled
    python benchmarks/same_work.py --networks b --batch 512

Before anything is timed it checks that the work is the same: as many parameters, as many FLOPs, the
same outputs from the same weights. Then the sides take turns in processes of their own. inkdrop
trains by `Trainer.train_step`, with data, noise, clipping, AdamW and the average of the weights;
diffusers by what its unconditional training script does in a step, given its images. Both are in
float32 on a CPU, in bfloat16 by autocast on a GPU, and with --compiled both go through
torch.compile.

Two more take their turns: the network's convolutions alone, on random data, and a product of 2048²
matrices; so that it is known which part of what the machine can do is reached. Writes
results/same_work_DEVICE.json, or same_work_compiled_DEVICE.json.
"""

from __future__ import annotations

import argparse
import tempfile
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import paired
import torch
from common import RESULTS, write_result
from paired import Measured, Side
from peers import (
    HAS_DIFFUSERS,
    MISSING,
    NETWORKS,
    DiffusersTraining,
    inkdrop_config,
    inkdrop_network,
    random_images,
    randomised,
    setting,
)
from rates import (
    SIDE,
    Convolution,
    convolutions_alone,
    convolutions_of,
    counted_flops,
    matrix_product,
    seconds_of,
)
from torch import Tensor, nn

WARM_UP = 2  # pieces before the first that counts, after the one that compiles
CHECKED = 2  # images in the check
TOLERANCE = {"flops": 0.01, "outputs": 1e-4}
KINDS = ("training", "forward")
CONVOLUTIONS, PRODUCT = "its convolutions alone", f"a product of {SIDE}² matrices"

Prepared = Iterator[tuple[Callable[[], Any], dict[str, Any]]]


@contextmanager
def our_trainer(name: str, batch: int, device: str, compiled: bool = False) -> Iterator[Any]:
    """inkdrop's training on random images."""
    from inkdrop.training.trainer import Trainer

    config = inkdrop_config(name, batch, device, compiled)
    with tempfile.TemporaryDirectory() as temporary:
        images = random_images(name, 4 * batch + 1)
        trainer = Trainer(config, f"{temporary}/run", source=images)
        randomised(trainer.network)
        yield trainer
        trainer.folder.let_go()


@contextmanager
def inkdrop_training(name: str, batch: int, device: str, compiled: bool, steps: int) -> Prepared:
    """Training steps of inkdrop."""
    from inkdrop.allocator import keep_memory

    keep_memory()
    with our_trainer(name, batch, device, compiled) as trainer:
        compiling = seconds_of(trainer._compile)  # nothing, where it is not asked to
        piece, facts = warmed_up(trainer.train_step, steps)
        facts["seconds_of_the_first_step"] += round(compiling, 3)
        yield piece, facts


@contextmanager
def diffusers_training(name: str, batch: int, device: str, compiled: bool, steps: int) -> Prepared:
    """Training steps of diffusers."""
    training = DiffusersTraining(NETWORKS[name].build(), device, compiled)
    pixels = torch.rand(4, batch, *NETWORKS[name].shape, device=device) * 2 - 1
    taken = 0

    def step() -> None:
        nonlocal taken
        training.step(pixels[taken % len(pixels)])
        taken += 1

    yield warmed_up(step, steps)


@contextmanager
def inkdrop_forward(name: str, batch: int, device: str, compiled: bool, steps: int) -> Prepared:
    """inkdrop's network alone."""
    from inkdrop.allocator import keep_memory

    keep_memory()
    yield asked(inkdrop_network(name), name, batch, device, compiled, steps)


@contextmanager
def diffusers_forward(name: str, batch: int, device: str, compiled: bool, steps: int) -> Prepared:
    """diffusers' network alone."""
    yield asked(NETWORKS[name].build(), name, batch, device, compiled, steps)


def asked(
    network: nn.Module, name: str, batch: int, device: str, compiled: bool, steps: int
) -> tuple[Callable[[], Any], dict[str, Any]]:
    """A network asked about the same images again and again, as in sampling."""
    network = network.to(device).eval()
    function = torch.compile(network) if compiled else network
    x, t = some_input(name, batch, device)

    def forward() -> None:
        with torch.no_grad(), torch.autocast(device, torch.bfloat16, enabled=device == "cuda"):
            function(x, t)

    return warmed_up(forward, steps)


def warmed_up(step: Callable[[], Any], steps: int) -> tuple[Callable[[], Any], dict[str, Any]]:
    """The piece of so many steps, once all is compiled and allocated; how long the first took."""
    first = seconds_of(step)
    for _ in range(WARM_UP):
        step()

    def piece() -> None:
        for _ in range(steps):
            step()

    return piece, {"seconds_of_the_first_step": round(first, 3)}


def some_input(name: str, batch: int, device: str) -> tuple[Tensor, Tensor]:
    """Random images and timesteps."""
    generator = torch.Generator().manual_seed(1)
    x = torch.randn(batch, *NETWORKS[name].shape, generator=generator)
    t = torch.randint(1000, (batch,), generator=generator)
    return x.to(device), t.to(device)


SIDES = {
    "training": {"inkdrop": inkdrop_training, "diffusers": diffusers_training},
    "forward": {"inkdrop": inkdrop_forward, "diffusers": diffusers_forward},
}


def check(name: str) -> dict[str, Any]:
    """Whether both networks are the same work, on the CPU in float32."""
    from inkdrop.networks.from_diffusers import unet_from_diffusers

    networks = {"inkdrop": inkdrop_network(name)}
    if HAS_DIFFUSERS:
        theirs = networks["diffusers"] = NETWORKS[name].build()
        networks["inkdrop"] = unet_from_diffusers(theirs.config, theirs.state_dict())
    x, t = some_input(name, CHECKED, "cpu")

    def output(side: str) -> Tensor:
        told = networks[side](x, t)
        return told if side == "inkdrop" else told.sample

    parameters, forward, training, outputs = {}, {}, {}, {}
    for side, network in networks.items():
        network.eval()
        parameters[side] = sum(p.numel() for p in network.parameters())
        with torch.no_grad():
            outputs[side] = output(side)
            forward[side] = counted_flops(lambda side=side: output(side)) // CHECKED
        both = counted_flops(lambda side=side: output(side).square().mean().backward())
        training[side] = both // CHECKED
    figures: dict[str, Any] = {
        "parameters": parameters,
        "flops_of_an_image": {"forward": forward, "training": training},
    }
    if HAS_DIFFUSERS:
        difference = float((outputs["inkdrop"] - outputs["diffusers"]).abs().max())
        figures["largest_difference_of_outputs"] = difference
        figures["largest_output"] = float(outputs["diffusers"].abs().max())
        figures["the_same"] = (
            parameters["inkdrop"] == parameters["diffusers"]
            and all(agree(flops) for flops in (forward, training))
            and difference <= TOLERANCE["outputs"]
        )
    return figures


def agree(flops: dict[str, int]) -> bool:
    """Whether both sides compute as much."""
    return abs(flops["inkdrop"] / flops["diffusers"] - 1) <= TOLERANCE["flops"]


def convolutions(name: str, batch: int, device: str, training: bool) -> Counter[Convolution]:
    """Those of inkdrop's network, as they lie in memory when it is used so."""
    x, t = some_input(name, batch, device)
    if not training:
        return convolutions_of(inkdrop_network(name).to(device), x, t)
    with our_trainer(name, batch, device) as trainer:
        return convolutions_of(trainer.network, x, t)


def measure(
    name: str, kind: str, batch: int, options: argparse.Namespace, flops: int
) -> tuple[dict[str, Any], str]:
    """One comparison: its figures, and its rows of the table.

    Args:
        flops: of an image.
    """
    device, steps = options.device, options.steps
    training = kind == "training"
    counts = paired.in_new_process(convolutions, name, batch, device, training)
    products = 200 if device == "cuda" else 1 if options.quick else 5
    sides = {
        side: Side(prepare, (name, batch, device, options.compiled, steps))
        for side, prepare in SIDES[kind].items()
        if side == "inkdrop" or HAS_DIFFUSERS
    }
    sides[CONVOLUTIONS] = Side(convolutions_alone, (counts, training, device, steps))
    sides[PRODUCT] = Side(matrix_product, (device, products))
    found = paired.alternate(sides, options.repetitions)
    of_convolutions = sum(c.flops(training) * n for c, n in counts.items()) // batch
    work = dict.fromkeys(found, flops * batch * steps)  # FLOPs of a piece
    work[CONVOLUTIONS] = of_convolutions * batch * steps
    work[PRODUCT] = 2 * SIDE**3 * products
    best = rate(found[CONVOLUTIONS], work[CONVOLUTIONS])
    figures: dict[str, Any] = {
        "network": name,
        "what": kind,
        "batch_size": batch,
        "compiled": options.compiled,
        "steps_of_a_repetition": steps,
        "flops_of_an_image": flops,
        "flops_of_an_image_in_convolutions": of_convolutions,
        "sides": {},
    }
    rows = []
    for side, measured in found.items():
        ours = paired.summary({side: measured}, 1.0)[side]
        del ours["units_per_second"]
        ours["gflops_per_second"] = round(rate(measured, work[side]), 2)
        images = side != PRODUCT
        if images:
            ours["images_per_second"] = paired.spread([batch * steps / s for s in measured.seconds])
            ours["of_the_convolutions_rate"] = round(ours["gflops_per_second"] / best, 4)
        figures["sides"][side] = ours
        rows.append(row(f"{name}, {batch}, {kind}", side, ours, measured.facts))
    if HAS_DIFFUSERS:
        against = paired.ratio(found["inkdrop"], found["diffusers"])
        figures["inkdrop_against_diffusers"] = against
        ratio = f" {against['of_medians']:.2f}× ({against['median_of_pairs']:.2f}× of pairs) |"
        rows = [rows[0] + ratio, *(row + " |" for row in rows[1:])]
    return figures, "\n".join(rows)


def rate(measured: Measured, flops: int) -> float:
    """Thousand millions of FLOPs a second, by the median."""
    return flops / paired.median(measured.seconds) / 1e9


HEAD = (
    "| network, batch, what | side | images/s (quartiles) | GFLOP/s | of the convolutions' "
    "| first step | peak memory | ratio |\n|" + 8 * "---|"
)


def row(what: str, side: str, figures: dict[str, Any], facts: dict[str, Any]) -> str:
    """A row of the table, but for the ratio."""
    images = "–"
    if found := figures.get("images_per_second"):
        low, high = found["lower_quartile"], found["upper_quartile"]
        images = f"{found['median']:,.1f} ({low:,.1f} … {high:,.1f})"
    share = figures.get("of_the_convolutions_rate")
    first = facts.get("seconds_of_the_first_step")
    cells = [
        what,
        side,
        images,
        f"{figures['gflops_per_second']:,.1f}",
        "–" if share is None else f"{share:.0%}",
        "–" if first is None else f"{first:.1f} s",
        f"{figures['peak_bytes'] / 1e6:,.0f} MB",
    ]
    return f"| {' | '.join(cells)} |"


def chosen_device(asked: str) -> str:
    """The device of --device."""
    if asked == "auto":
        return "cuda" if torch.cuda.is_available() else "cpu"
    return asked


def main() -> None:
    """Check, measure in turns, and write it down."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--networks", nargs="+", choices=NETWORKS, default=list(NETWORKS))
    parser.add_argument("--what", nargs="+", choices=KINDS, default=list(KINDS))
    parser.add_argument("--batch", type=int, nargs="+", help="batch sizes (default: the network's)")
    parser.add_argument("--repetitions", type=int, help="of each side (default: 7)")
    parser.add_argument(
        "--steps-per-repetition", dest="steps", type=int, help="default: 2, or 20 on a GPU"
    )
    parser.add_argument("--device", choices=("auto", "cpu", "cuda"), default="auto")
    parser.add_argument("--compiled", action="store_true", help="both sides by torch.compile")
    parser.add_argument("--name", help="of the result (default: same_work_DEVICE)")
    parser.add_argument("--quick", action="store_true", help="tiny, and keep no result")
    options = parser.parse_args()
    device = options.device = chosen_device(options.device)
    options.steps = options.steps or (1 if options.quick else 20 if device == "cuda" else 2)
    options.repetitions = options.repetitions or (2 if options.quick else 7)
    if not HAS_DIFFUSERS:
        print(f"{MISSING}; measuring inkdrop alone")

    name = options.name or f"same_work{'_compiled' * options.compiled}_{device}"
    folder = Path(tempfile.mkdtemp()) if options.quick else RESULTS
    results: dict[str, Any] = {
        **setting(device),
        "check": {},
        "comparisons": [],
    }
    print(HEAD)
    for network in options.networks:
        checked = results["check"][network] = paired.in_new_process(check, network)
        if not checked.get("the_same", True):
            raise SystemExit(f"network {network} is not the same work on both sides: {checked}")
        default = (2,) if options.quick else NETWORKS[network].batch_sizes[device]
        for batch in options.batch or default:
            for kind in options.what:
                flops = checked["flops_of_an_image"][kind]
                counted = flops["diffusers" if HAS_DIFFUSERS else "inkdrop"]
                figures, rows = measure(network, kind, batch, options, counted)
                results["comparisons"].append(figures)
                print(rows, flush=True)
                path = write_result(name, results, folder)  # after each: what is done is kept
    print(f"written to {path}")


if __name__ == "__main__":
    main()
