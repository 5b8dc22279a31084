"""What does the table loop cost beside the network? The digits preset's network, 64 images.

    python benchmarks/sampler_loop.py

Times a row of the loop with the network's answer at hand (so that all but the network is counted:
conversions, clipping, registers, noise, switching modules to evaluation), and the network alone, in
turns. Writes results/sampler_loop.json.
"""

import statistics
import time
from collections.abc import Callable
from functools import partial

import torch
from common import write_result
from torch import Tensor, nn

import inkdrop
from inkdrop.build import build_denoiser
from inkdrop.diffusion.denoiser import Denoiser

IMAGES, STEPS, REPETITIONS = 64, 20, 15
TABLES = {
    "ddim": {},
    "ddim, eta 1": {"sampler": "ddim", "eta": 1.0},
    "ancestral": {},
    "dpm-solver++ 2": {"sampler": "dpm-solver++", "order": 2},
    "dpm-solver++ 3": {"sampler": "dpm-solver++", "order": 3},
    "unipc 2": {"sampler": "unipc", "order": 2},
    "unipc 3": {"sampler": "unipc", "order": 3},
    "heun": {},
}


class Known(nn.Module):
    """The network's modules and weights, with its answer at hand."""

    def __init__(self, network: nn.Module, answer: Tensor) -> None:
        super().__init__()
        self.network = network
        self.answer = answer

    def forward(self, x: Tensor, t: Tensor, condition: Tensor | None = None) -> Tensor:
        return self.answer


def milliseconds(call: Callable[[], object]) -> float:
    began = time.perf_counter()
    call()
    return (time.perf_counter() - began) * 1000


torch.set_num_threads(1)
denoiser = build_denoiser(inkdrop.presets.digits(), (1, 8, 8))
network = denoiser.network.eval()
x, t = torch.randn(IMAGES, 1, 8, 8), torch.full((IMAGES,), 500)
known = Denoiser(
    Known(network, torch.zeros_like(x)).eval(), denoiser.schedule, "velocity", (1, 8, 8)
)


def forward() -> None:
    with torch.no_grad():
        network(x, t)


rows = {}
for name, options in TABLES.items():
    options = {"sampler": name} | options
    table = inkdrop.samplers.build_table(denoiser.schedule, steps=STEPS, **options)
    pairs = []
    for _ in range(REPETITIONS):
        loop = milliseconds(partial(inkdrop.sample, known, IMAGES, table=table)) / len(table)
        alone = statistics.median(milliseconds(forward) for _ in range(5))
        pairs.append((loop, alone))
    pairs = pairs[2:]
    loop, alone = (statistics.median(part) for part in zip(*pairs, strict=True))
    rows[name] = {
        "loop_ms": round(loop, 3),
        "network_ms": round(alone, 2),
        "share_of_a_step": round(loop / (loop + alone), 4),
    }
    print(name, rows[name])
path = write_result(
    "sampler_loop", {"images": IMAGES, "threads": 1, "repetitions": REPETITIONS, "tables": rows}
)
print(f"written to {path}")
