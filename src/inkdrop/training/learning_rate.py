"""The learning rate as a pure function of the step."""

from __future__ import annotations

import math

from ..config import TrainingConfig


def learning_rate_factor(training: TrainingConfig, step: int, total: int) -> float:
    """What the learning rate is multiplied by in optimizer step `step` (from 0) of `total`."""
    warmup = min(1.0, (step + 1) / training.warmup_steps) if training.warmup_steps else 1.0
    if training.decay == "constant":
        return warmup
    last = training.final_learning_rate / training.learning_rate
    progress = step / total
    falling = 1 - progress if training.decay == "linear" else (1 + math.cos(math.pi * progress)) / 2
    return warmup * (last + (1 - last) * falling)
