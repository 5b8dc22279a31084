"""Any module of (x, t, condition) can be the network: here, twenty lines of plain convolutions.

    python examples/02_your_own_network.py

Trains it on the embedded digits through `inkdrop.train`, so that it gets averaged weights,
checkpoints, resuming and a run folder like any other, and samples from it.
"""

import argparse
from pathlib import Path

import torch
from torch import Tensor, nn

import inkdrop
from inkdrop.data.pixels import to_uint8
from inkdrop.report.pictures import grid, save

parser = argparse.ArgumentParser(description="Train a network of one's own on the digits.")
parser.add_argument("--out", type=Path, default=Path("runs/own-network"), help="the run folder")
parser.add_argument("--steps", type=int, default=1000, help="training steps")
options = parser.parse_args()


class PlainConvolutions(nn.Module):
    """Four convolutions, told the timestep by a learnt vector for each."""

    def __init__(self, channels: int = 64, timesteps: int = 1000) -> None:
        super().__init__()
        self.time = nn.Embedding(timesteps, channels)
        self.first = nn.Conv2d(1, channels, 3, padding=1)
        self.middle = nn.ModuleList(nn.Conv2d(channels, channels, 3, padding=1) for _ in range(3))
        self.last = nn.Conv2d(channels, 1, 3, padding=1)

    def forward(self, x: Tensor, t: Tensor, condition: Tensor | None = None) -> Tensor:
        h = self.first(x) + self.time(t)[:, :, None, None]
        for layer in self.middle:
            h = h + layer(torch.nn.functional.silu(h))
        return self.last(h)


config = inkdrop.presets.digits()
config.name = "own-network"
config.network = None  # the module is passed instead
config.training.steps = options.steps

torch.manual_seed(0)
run = inkdrop.train(config, options.out, network=PlainConvolutions())
print(f"trained {run.step} steps, held-out loss {run.metrics[-1].get('held_out_loss')}")

images = inkdrop.sample(run.denoiser, n=16, sampler="ddim", steps=50, seed=0)
save(grid(to_uint8(images)), options.out / "samples" / "grid.png")
print(f"16 samples are in {options.out / 'samples' / 'grid.png'}")
