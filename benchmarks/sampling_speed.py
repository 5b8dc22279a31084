"""How fast does inkdrop sample beside diffusers, with the same network, weights and evaluations?

    python benchmarks/sampling_speed.py
    python benchmarks/sampling_speed.py --compiled
    python benchmarks/sampling_speed.py --networks b --many 50000

Images by 50 steps of DDIM and by 10 evaluations of DPM-Solver++, from noise to numpy arrays:
`inkdrop.sample` against diffusers' `DDIMPipeline`, and its `DDPMPipeline` with a
`DPMSolverMultistepScheduler`, in turns and in processes of their own. In float32 on a CPU; on a GPU
in bfloat16 by autocast, and diffusers once more with its weights in bfloat16. --many times so many
images by DPM-Solver++ alone, once for each side. Writes results/sampling_speed_DEVICE.json, with
_compiled or _many before the device.
"""

from __future__ import annotations

import argparse
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import paired
import torch
from common import RESULTS, write_result
from paired import Measured, Side
from peers import HAS_DIFFUSERS, MISSING, NETWORKS, inkdrop_network, setting
from safetensors.torch import load_file, save_file

SAMPLERS = {"ddim": 50, "dpm-solver++": 10}  # network evaluations
MANY = 2500  # images at a time
ON_CPU = {"a": 64, "b": 8}  # images: half a minute or a minute of 50 evaluations
HALF = "diffusers, weights in bfloat16"

Prepared = Iterator[tuple[Callable[[], Any], dict[str, Any]]]


@dataclass(frozen=True)
class Work:
    """What is sampled: `images` of a network, `at_once` at a time."""

    network: str
    sampler: str
    evaluations: int
    images: int
    at_once: int
    device: str
    compiled: bool
    weights: str

    def batches(self) -> list[tuple[int, int]]:
        """First index and size of each."""
        firsts = range(0, self.images, self.at_once)
        return [(first, min(self.at_once, self.images - first)) for first in firsts]


@contextmanager
def inkdrop_side(work: Work) -> Prepared:
    """Sampling by inkdrop."""
    import inkdrop
    from inkdrop.acceleration import accelerated
    from inkdrop.allocator import keep_memory

    keep_memory()
    network = inkdrop_network(work.network)
    network.load_state_dict(load_file(work.weights))
    plain = inkdrop.Denoiser(
        network.to(work.device),
        inkdrop.NoiseSchedule.linear(1000),
        shape=NETWORKS[work.network].shape,
    )
    precision = "bfloat16" if work.device == "cuda" else "float32"
    denoiser = accelerated(plain, precision, work.compiled)

    def draw(first: int, count: int, evaluations: int) -> None:
        x = inkdrop.sample(
            denoiser, count, work.sampler, evaluations=evaluations, first_index=first
        )
        (x / 2 + 0.5).clamp(0, 1).permute(0, 2, 3, 1).cpu().numpy()

    yield measured_piece(work, draw, network)


@contextmanager
def diffusers_side(work: Work, half: bool = False) -> Prepared:
    """Sampling by diffusers' pipelines."""
    from diffusers import (
        DDIMPipeline,
        DDIMScheduler,
        DDPMPipeline,
        DPMSolverMultistepScheduler,
    )

    network = NETWORKS[work.network].build().eval()
    pipeline = (
        DDIMPipeline(network, DDIMScheduler(1000, beta_schedule="linear"))
        if work.sampler == "ddim"
        else DDPMPipeline(network, DPMSolverMultistepScheduler(1000, beta_schedule="linear"))
    )
    pipeline.set_progress_bar_config(disable=True)
    pipeline.to(work.device)
    if half:
        pipeline.to(torch.bfloat16)
    if work.compiled:
        pipeline.unet = torch.compile(pipeline.unet)
    autocast = work.device == "cuda" and not half

    def draw(first: int, count: int, evaluations: int) -> None:
        generator = torch.Generator(work.device).manual_seed(first)
        with torch.autocast("cuda", torch.bfloat16) if autocast else nullcontext():
            pipeline(
                batch_size=count,
                generator=generator,
                num_inference_steps=evaluations,
                output_type="np",
            )

    yield measured_piece(work, draw, network)


def measured_piece(
    work: Work, draw: Callable[[int, int, int], None], network: torch.nn.Module
) -> tuple[Callable[[], None], dict[str, Any]]:
    """The piece that is timed, and how often it asks the network for each image; warmed up."""
    asked = 0

    def note(*_: Any) -> None:
        nonlocal asked
        asked += 1

    for size in {count for _, count in work.batches()}:
        draw(0, size, 2)
    facts = {}
    if not work.compiled:  # which a hook would make it do once more
        hook = network.register_forward_pre_hook(note)
        draw(0, 1, work.evaluations)
        hook.remove()
        facts["network_evaluations"] = asked

    def piece() -> None:
        for first, count in work.batches():
            draw(first, count, work.evaluations)

    return piece, facts


def check(name: str, weights: str) -> dict[str, Any]:
    """Hand the peer's weights over, and compare what the two networks say."""
    from inkdrop.networks.from_diffusers import unet_from_diffusers

    if not HAS_DIFFUSERS:
        save_file(inkdrop_network(name).state_dict(), weights)
        return {"largest_difference_of_outputs": MISSING}
    theirs = NETWORKS[name].build().eval()
    ours = unet_from_diffusers(theirs.config, theirs.state_dict()).eval()
    save_file({key: value.contiguous() for key, value in ours.state_dict().items()}, weights)
    x = torch.randn(2, *NETWORKS[name].shape, generator=torch.Generator().manual_seed(1))
    t = torch.tensor([20, 700])
    with torch.no_grad():
        difference = float((ours(x, t) - theirs(x, t).sample).abs().max())
    if difference > 1e-4:
        raise SystemExit(f"network {name} differs by {difference:g} from its peer")
    return {"largest_difference_of_outputs": difference}


def measure(work: Work, repetitions: int) -> tuple[dict[str, Any], list[str]]:
    """One comparison: its figures, and its rows of the table."""
    sides = {"inkdrop": Side(inkdrop_side, (work,))}
    if HAS_DIFFUSERS:
        sides["diffusers"] = Side(diffusers_side, (work,))
        if work.device == "cuda":
            sides[HALF] = Side(diffusers_side, (work, True))
    found = paired.alternate(sides, repetitions)
    evaluations = {
        side: measured.facts.get("network_evaluations") for side, measured in found.items()
    }
    if set(evaluations.values()) - {None, work.evaluations}:
        raise SystemExit(f"the sides ask their networks {evaluations} times")
    figures = {
        "network": work.network,
        "sampler": work.sampler,
        "evaluations": work.evaluations,
        "images": work.images,
        "at_once": work.at_once,
        "compiled": work.compiled,
        "sides": paired.summary(found, work.images),
        "inkdrop_against": {
            side: paired.ratio(found["inkdrop"], found[side]) for side in found if side != "inkdrop"
        },
    }
    return figures, [row(work, side, found, figures) for side in found]


HEAD = (
    "| network, sampler, images | side | images/s (quartiles) | seconds | peak memory "
    "| inkdrop is faster by |\n|" + 6 * "---|"
)


def row(work: Work, side: str, found: dict[str, Measured], figures: dict[str, Any]) -> str:
    """A row of the table."""
    of_side = figures["sides"][side]
    rate = of_side["units_per_second"]
    against = figures["inkdrop_against"].get(side)
    cells = [
        f"{work.network}, {work.sampler} in {work.evaluations}, {work.images:,}",
        side,
        f"{rate['median']:,.2f} ({rate['lower_quartile']:,.2f} … {rate['upper_quartile']:,.2f})",
        f"{of_side['seconds']['median']:.2f}",
        f"{found[side].peak_bytes / 1e6:,.0f} MB",
        "–"
        if against is None
        else f"{against['of_medians']:.2f}× ({against['median_of_pairs']:.2f}× of pairs)",
    ]
    return f"| {' | '.join(cells)} |"


def main() -> None:
    """Check, sample in turns, and write it down."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--networks", nargs="+", choices=NETWORKS, default=list(NETWORKS))
    parser.add_argument("--samplers", nargs="+", choices=SAMPLERS, default=list(SAMPLERS))
    parser.add_argument("--images", type=int, help="default: 64; 8 of network b on a CPU")
    parser.add_argument("--many", type=int, help="time so many images by DPM-Solver++, once")
    parser.add_argument("--repetitions", type=int, help="of each side (default: 3, 7 on a GPU)")
    parser.add_argument("--device", choices=("auto", "cpu", "cuda"), default="auto")
    parser.add_argument("--compiled", action="store_true", help="both sides by torch.compile")
    parser.add_argument("--quick", action="store_true", help="tiny, and keep no result")
    options = parser.parse_args()
    device = options.device
    if device == "auto":
        device = "cuda" if torch.cuda.is_available() else "cpu"
    if not HAS_DIFFUSERS:
        print(f"{MISSING}; measuring inkdrop alone")
    samplers = ["dpm-solver++"] if options.many else options.samplers
    repetitions = options.repetitions or (2 if options.quick else 7 if device == "cuda" else 3)

    variant = "_many" * bool(options.many) + "_compiled" * options.compiled
    folder = Path(tempfile.mkdtemp()) if options.quick else RESULTS
    results: dict[str, Any] = {
        **setting(device),
        "check": {},
        "comparisons": [],
    }
    print(HEAD)
    with tempfile.TemporaryDirectory() as temporary:
        for name in options.networks:
            weights = f"{temporary}/{name}.safetensors"
            results["check"][name] = paired.in_new_process(check, name, weights)
            usual = 2 if options.quick else 64 if device == "cuda" else ON_CPU[name]
            images = options.many or options.images or usual
            at_once = min(images, MANY)
            for sampler in samplers:
                evaluations = 3 if options.quick else SAMPLERS[sampler]
                work = Work(
                    name, sampler, evaluations, images, at_once, device, options.compiled, weights
                )
                figures, rows = measure(work, 1 if options.many else repetitions)
                results["comparisons"].append(figures)
                print("\n".join(rows), flush=True)
                path = write_result(f"sampling_speed{variant}_{device}", results, folder)
    print(f"written to {path}")


if __name__ == "__main__":
    main()
