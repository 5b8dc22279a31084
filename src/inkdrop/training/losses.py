"""Losses gathered over steps, as a whole and by timestep."""

from __future__ import annotations

from dataclasses import dataclass, field

from torch import Tensor

from ..metrics import TIMESTEP_BINS, timestep_bin


@dataclass
class LossWindow:
    """What has gathered since the last line of metrics; JSON, since it is part of a checkpoint."""

    steps: int = 0
    loss: float = 0.0
    gradient_norm: float = 0.0
    skipped: int = 0
    bin_loss: list[float] = field(default_factory=lambda: [0.0] * TIMESTEP_BINS)
    bin_count: list[int] = field(default_factory=lambda: [0] * TIMESTEP_BINS)

    def add(
        self,
        losses: Tensor,
        t: Tensor,
        timesteps: int,
        gradient_norm: float = 0.0,
        weight: Tensor | None = None,
    ) -> None:
        """Gather a step's losses (B,) at timesteps t (B,) out of `timesteps`, all on the CPU.

        Args:
            weight: (B,), what each counts in the mean over all t; 1 by default.
        """
        self.steps += 1
        self.loss += (losses if weight is None else losses * weight).mean().item()
        self.gradient_norm += gradient_norm
        for timestep, loss in zip(t.tolist(), losses.tolist(), strict=True):
            i = timestep_bin(timestep, timesteps)
            self.bin_loss[i] += loss
            self.bin_count[i] += 1

    def by_timestep(self) -> list[float | None]:
        """The mean loss in each bin; None where no timestep fell."""
        return [s / n if n else None for s, n in zip(self.bin_loss, self.bin_count, strict=True)]
