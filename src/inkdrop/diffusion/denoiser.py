"""The one question all else asks: given x_t and t, what are x̂₀ and ε̂?"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import chain
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from ..errors import InkdropError, unknown_name
from .prediction import PREDICTIONS, to_pair
from .schedule import NoiseSchedule, checked_t


@dataclass(frozen=True)
class Estimate:
    """What a denoiser believes of x_t = √ᾱ_t x_start + √(1-ᾱ_t) noise; all (B, …), as x_t.

    Attributes:
        x_start, noise: x̂₀ and ε̂.
        variance_fraction: where the learned variance of a reverse step lies between β̃_t (0) and
            β_t (1), in their logarithms; None for a denoiser that learns none.
    """

    x_start: Tensor
    noise: Tensor
    variance_fraction: Tensor | None = None


class Output(NamedTuple):
    """What the network said, taken apart: both (B, …), as x_t; see `Estimate` for the second."""

    prediction: Tensor
    variance_fraction: Tensor | None


class Level(NamedTuple):
    """Where x_t (B, …) stands on a schedule.

    Attributes:
        t: the schedule's own timesteps (B,), or one number for all, where the caller knew it.
        told: (B,), what the network is told of them.
        alpha, sigma: √ᾱ_t and √(1-ᾱ_t), shaped to scale x_t.
    """

    t: Tensor | float
    told: Tensor
    alpha: Tensor
    sigma: Tensor


class Denoiser:
    """A network, the schedule it was trained under, and what it predicts.

    Args:
        network: any `nn.Module` called as network(x_t, t, condition): x_t (B, …) float, t (B,)
            int64, condition whatever it understands or None; it returns a tensor like x_t, or with
            twice its channels where it learns a variance.
        schedule: the noise schedule.
        prediction: "noise", "x_start", "velocity" or "score": what the output means.
        shape: the shape of one example, for instance (C, H, W); `sample` needs it or its own.
        learned_variance: whether a second half of the output's channels says which variance a
            reverse step has: -1 is β̃_t, 1 is β_t, in between their geometric interpolation
            (Nichol & Dhariwal 2021, Eq. 15).
    """

    def __init__(
        self,
        network: nn.Module,
        schedule: NoiseSchedule,
        prediction: str = "noise",
        shape: tuple[int, ...] | None = None,
        learned_variance: bool = False,
    ) -> None:
        if prediction not in PREDICTIONS:
            raise unknown_name("prediction", prediction, PREDICTIONS)
        self.network = network
        self.schedule = schedule
        self.prediction = prediction
        self.shape = None if shape is None else tuple(shape)
        self.learned_variance = learned_variance

    @property
    def device(self) -> torch.device:
        """Where the network's parameters or buffers are (the CPU if it has none)."""
        tensors = chain(self.network.parameters(), self.network.buffers())
        return next((tensor.device for tensor in tensors), torch.device("cpu"))

    def respaced(self, kept_timesteps: Sequence[int]) -> Denoiser:
        """The same network under the schedule that visits only `kept_timesteps` (rising)."""
        schedule = self.schedule.respaced(kept_timesteps)
        return Denoiser(self.network, schedule, self.prediction, self.shape, self.learned_variance)

    def ask(self, x_t: Tensor, t: Tensor | int, condition: Any = None) -> Output:
        """The network's own output for x_t (B, …) at timesteps t (B,) or one for all.

        The network is asked in the precision of its weights; the answer is cast back to x_t's.

        Raises:
            InkdropError: for t outside 0 … T-1, or a network that answers in another shape.
        """
        return self._output(x_t, self._level(t, x_t), condition)

    def predict(self, x_t: Tensor, t: Tensor | int, condition: Any = None) -> Tensor:
        """The network's prediction, like x_t: `ask` without a learned variance."""
        return self.ask(x_t, t, condition).prediction

    def estimate(self, output: Output, x_t: Tensor, t: Tensor | int) -> Estimate:
        """What an `ask`ed output says of x_t (B, …) at timesteps t."""
        return self._estimated(output, x_t, self._level(t, x_t))

    def __call__(self, x_t: Tensor, t: Tensor | int, condition: Any = None) -> Estimate:
        """x̂₀ and ε̂ for x_t (B, …) at timesteps t: (B,) integers, or one for all."""
        level = self._level(t, x_t)
        return self._estimated(self._output(x_t, level, condition), x_t, level)

    def between(self, x_t: Tensor, t: Tensor, condition: Any = None) -> Estimate:
        """x̂₀ and ε̂ at one real-valued timestep, for networks that take such t; ours do.

        The noise level is that of `NoiseSchedule.log_snr_between`.

        Args:
            x_t: (B, …).
            t: a scalar in 0 … T-1.
        """
        t = t.detach().cpu().double()
        log_snr = self.schedule.log_snr_between(t)[0].to(x_t)
        low = t.floor().clamp(max=self.schedule.timesteps - 2)
        ends = self.schedule.network_timesteps[int(low) : int(low) + 2].tolist()
        told = ends[0] + (t - low) * (ends[1] - ends[0])
        level = Level(
            float(t),
            told.to(x_t).expand(len(x_t)),
            alpha=log_snr.sigmoid().sqrt(),
            sigma=(-log_snr).sigmoid().sqrt(),
        )
        return self._estimated(self._output(x_t, level, condition), x_t, level)

    def _output(self, x_t: Tensor, level: Level, condition: Any) -> Output:
        """What the network says: every answer comes through here, and wrappers change it here."""
        dtype = next((p.dtype for p in self.network.parameters()), x_t.dtype)
        output = self.network(x_t.to(dtype), level.told, condition)
        expected = tuple(x_t.shape)
        if self.learned_variance:
            expected = (expected[0], 2 * expected[1], *expected[2:])
        if not isinstance(output, Tensor) or output.shape != expected:
            got = tuple(output.shape) if isinstance(output, Tensor) else type(output).__name__
            wanted = (
                f"prediction and learned variance one after the other, {expected}"
                if self.learned_variance
                else "a tensor of the shape it was given"
            )
            raise InkdropError(
                f"the network was given {tuple(x_t.shape)} and returned {got}; "
                f"it must return {wanted}"
            )
        output = output.to(x_t.dtype)
        if not self.learned_variance:
            return Output(output, None)
        prediction, variance = output.chunk(2, dim=1)
        return Output(prediction, (variance + 1) / 2)

    def _estimated(self, output: Output, x_t: Tensor, level: Level) -> Estimate:
        pair = to_pair(self.prediction, output.prediction, x_t, level.alpha, level.sigma)
        return Estimate(pair.x_start, pair.noise, output.variance_fraction)

    def _level(self, t: Tensor | int, x_t: Tensor) -> Level:
        rows = torch.as_tensor(t, device=x_t.device)
        one = rows.ndim == 0
        if one:
            rows = rows.expand(len(x_t))
        if rows.shape != (len(x_t),):
            raise InkdropError(
                f"t has shape {tuple(rows.shape)}, but x_t holds {len(x_t)} examples"
            )
        rows = checked_t(rows, self.schedule.timesteps)
        return Level(
            int(t) if one and not isinstance(t, Tensor) else rows,
            self.schedule.lookup("network_timesteps", rows, rows),
            self.schedule.lookup("sqrt_alphas_cumprod", rows, x_t),
            self.schedule.lookup("sqrt_one_minus_alphas_cumprod", rows, x_t),
        )


@contextmanager
def evaluating(network: nn.Module) -> Iterator[None]:
    """Dropout and the like are off inside, and as they were outside, each module by itself."""
    training = [module for module in network.modules() if module.training]
    for module in training:  # network.eval() would visit all of them, at every step of a sampler
        module.training = False
    try:
        yield
    finally:
        for module in training:
            module.training = True
