"""The one question all else asks: given x_t and t, what are x̂₀ and ε̂?"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from ..errors import InkdropError, unknown_name
from .prediction import PREDICTIONS, to_pair
from .schedule import NoiseSchedule, checked_t


@dataclass(frozen=True)
class Estimate:
    """What a denoiser believes of x_t = √ᾱ_t x_start + √(1-ᾱ_t) noise; both (B, …), as x_t."""

    x_start: Tensor
    noise: Tensor


class Denoiser:
    """A network, the schedule it was trained under, and what it predicts.

    Args:
        network: any `nn.Module` called as network(x_t, t, condition): x_t (B, …) float, t (B,)
            int64, condition whatever it understands or None; it returns a tensor like x_t.
        schedule: the noise schedule.
        prediction: "noise", "x_start", "velocity" or "score": what the output means.
        shape: the shape of one example, for instance (C, H, W); `sample` needs it or its own.
    """

    def __init__(
        self,
        network: nn.Module,
        schedule: NoiseSchedule,
        prediction: str = "noise",
        shape: tuple[int, ...] | None = None,
    ) -> None:
        if prediction not in PREDICTIONS:
            raise unknown_name("prediction", prediction, PREDICTIONS)
        self.network = network
        self.schedule = schedule
        self.prediction = prediction
        self.shape = None if shape is None else tuple(shape)

    @property
    def device(self) -> torch.device:
        """Where the network's parameters are (the CPU if it has none)."""
        return next((p.device for p in self.network.parameters()), torch.device("cpu"))

    def predict(self, x_t: Tensor, t: Tensor | int, condition: Tensor | None = None) -> Tensor:
        """The network's own output for x_t (B, …) at timesteps t (B,) or one for all, like x_t.

        The network is asked in the precision of its weights; the answer is cast back to x_t's.
        """
        t = self._checked(t, x_t)
        told = self.schedule.lookup("network_timesteps", t, t)
        dtype = next((p.dtype for p in self.network.parameters()), x_t.dtype)
        output = self.network(x_t.to(dtype), told, condition)
        if not isinstance(output, Tensor) or output.shape != x_t.shape:
            got = tuple(output.shape) if isinstance(output, Tensor) else type(output).__name__
            raise InkdropError(
                f"the network was given {tuple(x_t.shape)} and returned {got}; "
                "it must return a tensor of the shape it was given"
            )
        return output.to(x_t.dtype)

    def __call__(self, x_t: Tensor, t: Tensor | int, condition: Tensor | None = None) -> Estimate:
        """x̂₀ and ε̂ for x_t (B, …) at timesteps t: (B,) integers, or one for all."""
        t = self._checked(t, x_t)
        output = self.predict(x_t, t, condition)
        alpha = self.schedule.lookup("sqrt_alphas_cumprod", t, x_t)
        sigma = self.schedule.lookup("sqrt_one_minus_alphas_cumprod", t, x_t)
        pair = to_pair(self.prediction, output, x_t, alpha, sigma)
        return Estimate(pair.x_start, pair.noise)

    def _checked(self, t: Tensor | int, x_t: Tensor) -> Tensor:
        t = torch.as_tensor(t, device=x_t.device)
        if t.ndim == 0:
            t = t.expand(len(x_t))
        if t.shape != (len(x_t),):
            raise InkdropError(f"t has shape {tuple(t.shape)}, but x_t holds {len(x_t)} examples")
        return checked_t(t, self.schedule.timesteps)
