"""What training would cost: a few steps on noise, timed."""

from __future__ import annotations

import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import psutil
import torch

from ..config import Config
from ..data.images import ImageSet, Source
from ..errors import InkdropError
from ..randomness import generator
from .trainer import Trainer

STEPS, WARM_UP = 10, 3  # timed steps, and those before them


@dataclass(frozen=True)
class Trial:
    """What was measured, and what it comes to.

    Attributes:
        parameters: of the network.
        images_per_second: the median step's.
        memory: bytes that training takes at its peak, on an accelerator its own memory.
        seconds: what all steps of the configuration would take at this rate.
        device: what they were measured on.
    """

    parameters: int
    images_per_second: float
    memory: int
    seconds: float
    device: str


def trial(config: Config, shape: tuple[int, int, int]) -> Trial:
    """Ten steps of a configuration's training on noise of `shape` (C, H, W); nothing is written.

    Raises:
        InkdropError: if its length is given in epochs.
    """
    steps = config.training.steps
    if steps is None:
        raise InkdropError("a trial needs training.steps: how long epochs are, noise cannot tell")
    config = config.model_copy(deep=True)
    batch = config.training.batch_size
    config.conditional, config.label_dropout = False, None
    if config.network is not None:
        config.network.classes = config.network.vector = None
    draws = generator(0, "trial").integers(0, 256, (2 * batch, *shape), dtype=np.uint8)
    noise = torch.from_numpy(draws)
    with tempfile.TemporaryDirectory() as folder:
        source = Source(ImageSet(noise, None, "noise"), None)
        trainer = Trainer(config, Path(folder) / "trial", source=source)
        on_gpu = trainer.device.type == "cuda"
        if on_gpu:
            torch.cuda.reset_peak_memory_stats(trainer.device)
        times, peak = [], 0
        for _ in range(WARM_UP + STEPS):
            began = time.perf_counter()
            trainer.train_step()
            if on_gpu:
                torch.cuda.synchronize(trainer.device)
            times.append(time.perf_counter() - began)
            peak = max(peak, psutil.Process().memory_info().rss)
    step = sorted(times[WARM_UP:])[STEPS // 2]
    return Trial(
        sum(p.numel() for p in trainer.network.parameters()),
        batch / step,
        torch.cuda.max_memory_allocated(trainer.device) if on_gpu else peak,
        steps * step,
        str(trainer.device),
    )
