"""Which timesteps a batch is trained at, and what each then weighs.

A loss at t counts weight times, and E[weight f(t)] is the mean of f over 0 … T-1: whatever the
sampler, what is minimised is the same.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from ..errors import unknown_name

HISTORY = 10  # losses remembered of each timestep (Nichol & Dhariwal 2021, Sec. 3.3)
UNIFORM_SHARE = 0.001  # of the draws stays uniform, so that no timestep is forgotten

Floats = NDArray[np.float64]


class Draw(NamedTuple):
    """t (B,) int64 in 0 … T-1, and weight (B,) float64."""

    t: NDArray[np.int64]
    weight: Floats


class TimestepSampler:
    """Timesteps drawn uniformly and independently, each of weight 1.

    Args:
        timesteps: T.
    """

    def __init__(self, timesteps: int) -> None:
        self.timesteps = timesteps

    def draw(self, count: int, generator: np.random.Generator) -> Draw:
        """`count` timesteps; a pure function of the generator and of what was `observe`d."""
        return Draw(generator.integers(self.timesteps, size=count), np.ones(count))

    def observe(self, t: NDArray[np.int64], losses: Floats) -> None:
        """Learn of the unweighted losses (B,) at t (B,)."""

    def state(self) -> dict[str, NDArray[Any]]:
        """What a checkpoint must keep."""
        return {}

    def restore(self, state: dict[str, NDArray[Any]]) -> None:
        """Go on from a `state`."""


class Stratified(TimestepSampler):
    """One timestep from each of B equal parts of 0 … T-1, with one uniform offset for all.

    Each alone is uniform, and together they are spread evenly: the batch's loss varies less
    (low-discrepancy sampling; Kingma et al. 2021, App. I.1).
    """

    def draw(self, count: int, generator: np.random.Generator) -> Draw:
        t = (_strata(count, generator) * self.timesteps).astype(np.int64)
        return Draw(t.clip(max=self.timesteps - 1), np.ones(count))


class LossAware(TimestepSampler):
    """Timesteps drawn in proportion to the root mean square of their last losses.

    Nichol & Dhariwal 2021, Sec. 3.3: p_t ∝ √E[L_t²], weight 1 / (T p_t), for the bound, whose terms
    differ by orders of magnitude. Uniform until each timestep has been seen HISTORY times. The
    draws are stratified too.
    """

    def __init__(self, timesteps: int) -> None:
        super().__init__(timesteps)
        self._losses = np.zeros((timesteps, HISTORY))
        self._seen = np.zeros(timesteps, dtype=np.int64)

    def probabilities(self) -> Floats:
        """(T,), which sum to 1."""
        uniform = np.full(self.timesteps, 1 / self.timesteps)
        size = np.sqrt((self._losses**2).mean(1))
        total = size.sum()
        if (self._seen < HISTORY).any() or not 0 < total < np.inf:
            return uniform
        mixed: Floats = (1 - UNIFORM_SHARE) * size / total + UNIFORM_SHARE * uniform
        return mixed

    def draw(self, count: int, generator: np.random.Generator) -> Draw:
        p = self.probabilities()
        cumulative = p.cumsum()
        t = np.searchsorted(cumulative, _strata(count, generator) * cumulative[-1], side="right")
        t = t.clip(max=self.timesteps - 1)
        return Draw(t, 1 / (self.timesteps * p[t]))

    def observe(self, t: NDArray[np.int64], losses: Floats) -> None:
        for timestep, loss in zip(t, losses, strict=True):
            self._losses[timestep, self._seen[timestep] % HISTORY] = loss
            self._seen[timestep] += 1

    def state(self) -> dict[str, NDArray[Any]]:
        return {"losses": self._losses.copy(), "seen": self._seen.copy()}

    def restore(self, state: dict[str, NDArray[Any]]) -> None:
        self._losses, self._seen = state["losses"].copy(), state["seen"].copy()


TIMESTEP_SAMPLERS: dict[str, type[TimestepSampler]] = {
    "uniform": TimestepSampler,
    "stratified": Stratified,
    "loss-aware": LossAware,
}


def timestep_sampler(name: str, timesteps: int) -> TimestepSampler:
    """The sampler of a name, for T timesteps."""
    if name not in TIMESTEP_SAMPLERS:
        raise unknown_name("timestep sampler", name, TIMESTEP_SAMPLERS)
    return TIMESTEP_SAMPLERS[name](timesteps)


def _strata(count: int, generator: np.random.Generator) -> Floats:
    """(i + offset) / count for one uniform offset: `count` numbers in [0, 1)."""
    strata: Floats = (np.arange(count) + generator.random()) / count
    return strata
