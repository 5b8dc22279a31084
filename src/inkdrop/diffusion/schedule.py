"""The noise schedule: how much of the image is left, and how much noise added, at each timestep.

Timesteps are 0 … T-1 and t = 0 is the least noise, so `alphas_cumprod[t]` is the paper's ᾱ_{t+1}.

    paper          here                       paper                 here
    β_t            betas                      ᾱ_t / (1 - ᾱ_t)       snr
    α_t = 1 - β_t  alphas                     β̃_t (Ho Eq. 7)        posterior_variance
    ᾱ_t = Π α_s    alphas_cumprod             μ̃_t's weights         posterior_mean_coef_x_start…
"""

from __future__ import annotations

import math
import operator
import warnings
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ..errors import InkdropError

DEFAULT_BETA_START = 1e-4  # Ho et al. 2020, Sec. 4, for T = 1000
DEFAULT_BETA_END = 0.02
MAX_BETA = 0.999  # Nichol & Dhariwal 2021, Sec. 3.2: keeps the last step away from a singularity
TERMINAL_SIGNAL = 1e-3  # ᾱ_T above which samples would start from noise that training never saw
_BELOW_ONE = 1 - 2**-53  # the largest float64 below 1


class ScheduleWarning(UserWarning):
    """A schedule that is valid but will not do what its user expects."""


class NoiseSchedule:
    """The forward process' numbers for T timesteps, all float64 tensors of shape (T,) on the CPU.

    Immutable; made by `linear`, `cosine`, `sigmoid`, `from_betas` or `from_alphas_cumprod`.

    Attributes:
        timesteps: T.
        betas, alphas, alphas_cumprod: β_t, 1 - β_t and ᾱ_t (Ho et al. 2020, Eq. 2 and 4).
        alphas_cumprod_prev: ᾱ_{t-1}, with ᾱ_{-1} = 1 (the clean image).
        one_minus_alphas_cumprod: 1 - ᾱ_t, without cancellation.
        sqrt_alphas_cumprod, sqrt_one_minus_alphas_cumprod: the weights of image and noise in x_t.
        snr, log_snr: ᾱ_t / (1 - ᾱ_t) and its natural logarithm.
        posterior_variance: β̃_t, zero at t = 0 (Eq. 7).
        posterior_mean_coef_x_start, posterior_mean_coef_x_t: the weights in μ̃_t (Eq. 7).
        posterior_variance_clipped: β̃_t, with β̃_1 in place of the zero at t = 0, where the decoder
            needs a width (Ho's code; β_0 where there is no t = 1).
        log_betas, log_posterior_variance_clipped: natural logarithms, the two ends of a learned
            variance (Nichol & Dhariwal 2021, Eq. 15).
        bound_weight_posterior, bound_weight_beta: β_t² / (2σ_t² α_t (1-ᾱ_t)), what ‖ε - ε̂‖² weighs
            in the bound (Ho Eq. 12), for σ_t² = β̃_t (clipped) and for σ_t² = β_t.
        network_timesteps: (T,) int64, what the network is told at each t. It differs from
            0 … T-1 only for a respaced schedule, whose steps keep the names they were trained
            under.
    """

    def __init__(
        self,
        betas: Tensor,
        network_timesteps: Tensor | None = None,
        log_alphas_cumprod: Tensor | None = None,
    ) -> None:
        betas = _checked_betas(betas)
        self.timesteps = len(betas)
        self.betas = betas
        # In logarithms, so that 1 - ᾱ keeps its relative precision where ᾱ is nearly 1.
        if log_alphas_cumprod is None:
            self.alphas = 1 - betas
            self._log_alphas_cumprod = torch.log1p(-betas).cumsum(0)
        else:
            self.alphas = (log_alphas_cumprod - _shifted(log_alphas_cumprod, 0.0)).exp()
            self._log_alphas_cumprod = log_alphas_cumprod
        self.alphas_cumprod = self._log_alphas_cumprod.exp()
        self.alphas_cumprod_prev = _shifted(self.alphas_cumprod, 1.0)
        one_minus = -torch.expm1(self._log_alphas_cumprod)
        one_minus_prev = _shifted(one_minus, 0.0)
        self.sqrt_alphas_cumprod = (self._log_alphas_cumprod / 2).exp()
        self.one_minus_alphas_cumprod = one_minus
        self.sqrt_one_minus_alphas_cumprod = one_minus.sqrt()
        self.snr = self.alphas_cumprod / one_minus
        self.log_snr = self._log_alphas_cumprod - one_minus.log()
        self.posterior_variance = betas * one_minus_prev / one_minus
        self.posterior_mean_coef_x_start = self.alphas_cumprod_prev.sqrt() * betas / one_minus
        self.posterior_mean_coef_x_t = self.alphas.sqrt() * one_minus_prev / one_minus
        self.posterior_variance_clipped = self.posterior_variance.clone()
        first = self.posterior_variance[1] if self.timesteps > 1 else betas[0]
        self.posterior_variance_clipped[0] = first
        self.log_betas = betas.log()
        self.log_posterior_variance_clipped = self.posterior_variance_clipped.log()
        self.bound_weight_beta = betas / (2 * self.alphas * one_minus)
        # ½ (SNR_{t-1} / SNR_t - 1), from logarithms: equal to Eq. 12's weight where σ² = β̃.
        self.bound_weight_posterior = torch.expm1(_shifted(self.log_snr, 0.0) - self.log_snr) / 2
        self.bound_weight_posterior[0] = betas[0] / (
            2 * self.posterior_variance_clipped[0] * self.alphas[0]
        )
        if network_timesteps is None:
            network_timesteps = torch.arange(self.timesteps)
        self.network_timesteps = network_timesteps
        self._cast: dict[tuple[str, torch.device, torch.dtype], Tensor] = {}
        self._curve: Any = None

    def __repr__(self) -> str:
        last = self.alphas_cumprod[-1].item()
        return f"NoiseSchedule(timesteps={self.timesteps}, last alphas_cumprod={last:.3g})"

    @classmethod
    def linear(
        cls,
        timesteps: int = 1000,
        beta_start: float | None = None,
        beta_end: float | None = None,
    ) -> NoiseSchedule:
        """β rising linearly from `beta_start` to `beta_end` (Ho et al. 2020, Sec. 4).

        A value that is given is kept as it is. One that is not is the paper's (1e-4, 0.02 at
        T = 1000) scaled by 1000/T, which leaves about the same noise at the end for any T. For
        T of 20 and less that passes 1: such betas are capped at 0.999, with a warning.
        """
        timesteps = checked_count("timesteps", timesteps)
        scale = 1000 / timesteps
        scaled = {
            "beta_start": DEFAULT_BETA_START * scale if beta_start is None else beta_start,
            "beta_end": DEFAULT_BETA_END * scale if beta_end is None else beta_end,
        }
        given = {"beta_start": beta_start is not None, "beta_end": beta_end is not None}
        for name, value in scaled.items():
            if given[name] and not 0 < value < 1:
                raise InkdropError(f"{name} must lie between 0 and 1, got {value!r}")
            if not given[name] and value > MAX_BETA:
                scaled[name] = MAX_BETA
                warnings.warn(
                    f"linear schedule of {timesteps} timesteps: the default {name} scaled by "
                    f"1000/{timesteps} is {value:.3g}, capped at {MAX_BETA}; give beta_start and "
                    "beta_end, or use the cosine schedule for so few timesteps",
                    ScheduleWarning,
                    stacklevel=2,
                )
        betas = torch.linspace(
            scaled["beta_start"], scaled["beta_end"], timesteps, dtype=torch.float64
        )
        return cls(betas)._warned_of_terminal_signal()

    @classmethod
    def cosine(
        cls, timesteps: int = 1000, s: float = 0.008, max_beta: float = MAX_BETA
    ) -> NoiseSchedule:
        """ᾱ(u) = cos²((u + s)/(1 + s) · π/2) (Nichol & Dhariwal 2021, Eq. 17)."""
        if s < 0:
            raise InkdropError(f"the cosine schedule's s must be at least 0, got {s!r}")
        return cls.from_alphas_cumprod(
            lambda u: torch.cos((u + s) / (1 + s) * math.pi / 2) ** 2, timesteps, max_beta
        )

    @classmethod
    def sigmoid(
        cls,
        timesteps: int = 1000,
        start: float = -3.0,
        end: float = 3.0,
        tau: float = 1.0,
        max_beta: float = MAX_BETA,
    ) -> NoiseSchedule:
        """ᾱ(u) falling along a sigmoid from `start` to `end` (Jabri et al. 2022; Chen 2023)."""
        if not start < end or not tau > 0:
            raise InkdropError(
                "the sigmoid schedule needs start < end and tau > 0, "
                f"got start={start!r}, end={end!r}, tau={tau!r}"
            )

        def alphas_cumprod(u: Tensor) -> Tensor:
            # σ(a) - σ(b) as σ(a) σ(-b) (1 - e^(b-a)): no cancellation where both are near 1.
            # The exponent is written so that it is exactly zero at u = 1.
            here = (u * (end - start) + start) / tau
            return torch.sigmoid(-here) * -torch.expm1((u - 1) * (end - start) / tau)

        return cls.from_alphas_cumprod(alphas_cumprod, timesteps, max_beta)

    @classmethod
    def from_betas(cls, betas: Sequence[float] | Tensor) -> NoiseSchedule:
        """A schedule from any betas between 0 and 1.

        Raises:
            InkdropError: naming the first index whose beta is out of range.
        """
        return cls(torch.as_tensor(betas, dtype=torch.float64))._warned_of_terminal_signal()

    @classmethod
    def from_alphas_cumprod(
        cls,
        alphas_cumprod: Sequence[float] | Tensor | Callable[[Tensor], Tensor | float],
        timesteps: int | None = None,
        max_beta: float = MAX_BETA,
    ) -> NoiseSchedule:
        """A schedule from ᾱ: one falling value for each timestep, or a function.

        Args:
            alphas_cumprod: a sequence (T,) in (0, 1), or a function ᾱ(u) of u from 0 (the clean
                image) to 1 (the end), called with scalar float64 tensors. A function is divided
                by ᾱ(0), so that nothing is lost before the first step.
            timesteps: T, needed with a function.
            max_beta: with a function, the cap on β that keeps its end (where ᾱ may reach 0) valid.

        Raises:
            InkdropError: naming the first index where ᾱ does not fall or leaves (0, 1).
        """
        if not callable(alphas_cumprod):
            values = torch.as_tensor(alphas_cumprod, dtype=torch.float64)
            if timesteps is not None and timesteps != len(values):
                raise InkdropError(
                    f"timesteps={timesteps} does not fit the {len(values)} values of "
                    "alphas_cumprod; leave timesteps out"
                )
            log = _checked_alphas_cumprod(values).log()
            return cls._from_log_alphas_cumprod(log)._warned_of_terminal_signal()

        if timesteps is None:
            raise InkdropError("alphas_cumprod given as a function needs timesteps=T")
        timesteps = checked_count("timesteps", timesteps)
        if not 0 < max_beta < 1:
            raise InkdropError(f"max_beta must lie between 0 and 1, got {max_beta!r}")
        grid = torch.arange(timesteps + 1, dtype=torch.float64) / timesteps
        values = torch.tensor([float(alphas_cumprod(u)) for u in grid], dtype=torch.float64)
        if not 0 < values[0] <= 1:
            raise InkdropError(f"alphas_cumprod(0) must lie in (0, 1], got {values[0].item()!r}")
        falls = (values[1:] < values[:-1]) & (values[1:] >= 0)
        if not falls.all():
            i = int((~falls).nonzero()[0])
            raise InkdropError(
                f"alphas_cumprod must fall and stay at or above 0, but at timestep {i} it goes "
                f"from {values[i].item():.6g} to {values[i + 1].item():.6g}"
            )
        betas = (1 - values[1:] / values[:-1]).clamp(max=max_beta)
        return cls(betas)._warned_of_terminal_signal()

    def respaced(self, kept_timesteps: Sequence[int]) -> NoiseSchedule:
        """The schedule that visits only `kept_timesteps` (strictly rising), with the same ᾱ there.

        Its timestep i stands for this schedule's `kept_timesteps[i]`, and a network asked through
        it is told that (Nichol & Dhariwal 2021, Sec. 4).
        """
        kept = checked_timesteps(kept_timesteps, self.timesteps, rising=True)
        index = torch.tensor(kept)
        return NoiseSchedule._from_log_alphas_cumprod(
            self._log_alphas_cumprod[index], self.network_timesteps[index]
        )

    def log_snr_between(self, t: Tensor) -> tuple[Tensor, Tensor]:
        """log SNR and its derivative at real-valued timesteps, by a cubic curve through all T.

        It falls everywhere, as the log SNR does (Fritsch & Carlson 1980): a spline would swing up
        again at a capped last β.

        Args:
            t: floats of any shape, in 0 … T-1.

        Returns:
            Both as t, float64 on the CPU.

        Raises:
            InkdropError: for a schedule of fewer than 2 timesteps, which nothing lies between.
        """
        if self.timesteps < 2:
            raise InkdropError("a schedule of one timestep has nothing between its timesteps")
        if self._curve is None:
            from scipy.interpolate import PchipInterpolator

            self._curve = PchipInterpolator(np.arange(self.timesteps), self.log_snr.numpy())
        at = t.detach().cpu().double().numpy()
        return torch.as_tensor(self._curve(at)), torch.as_tensor(self._curve(at, 1))

    def lookup(self, name: str, t: Tensor, like: Tensor) -> Tensor:
        """The attribute `name` at timesteps t (B,), cast as `like` (B, …), shaped to scale it.

        Raises:
            InkdropError: for t that are not integers in 0 … T-1, or `like` that is not a float.
        """
        t = checked_t(t, self.timesteps)
        key = (name, like.device, like.dtype)
        if key not in self._cast:
            numbers: Tensor = getattr(self, name)
            if numbers.is_floating_point() and not like.is_floating_point():
                raise InkdropError(
                    f"the diffusion needs floating point, images in [-1, 1], but got {like.dtype}"
                )
            self._cast[key] = numbers.to(dtype=like.dtype).to(device=like.device)
        values: Tensor = self._cast[key][t]
        return values.reshape(-1, *[1] * (like.ndim - 1))

    @classmethod
    def _from_log_alphas_cumprod(
        cls, log: Tensor, network_timesteps: Tensor | None = None
    ) -> NoiseSchedule:
        betas = -torch.expm1(log - _shifted(log, 0.0))
        # Between ᾱ that are far apart, β rounds to 1; log ᾱ still knows what is left.
        return cls(betas.clamp(max=_BELOW_ONE), network_timesteps, log)

    def _warned_of_terminal_signal(self) -> NoiseSchedule:
        last = self.alphas_cumprod[-1].item()
        if last > TERMINAL_SIGNAL:
            warnings.warn(
                f"this schedule's last alphas_cumprod is {last:.3g}: {math.sqrt(last):.1%} of the "
                "image's amplitude is left at the end, but samples start from pure noise, which "
                "training never saw; use more timesteps, larger betas, or the cosine schedule",
                ScheduleWarning,
                stacklevel=3,
            )
        return self


def checked_timesteps(
    timesteps: Sequence[int] | Tensor, total: int, *, rising: bool = False
) -> list[int]:
    """`timesteps` as a list of ints in 0 … total-1, strictly falling (or `rising`), or an error."""
    given = list(timesteps)
    steps = [int(t) for t in given]
    order = "rise" if rising else "fall"
    if not steps:
        raise InkdropError("the list of timesteps is empty: give at least one")
    for i, t in enumerate(steps):
        if t != given[i]:
            raise InkdropError(f"timesteps must be whole numbers, but index {i} is {given[i]!r}")
        if not 0 <= t < total:
            raise InkdropError(f"timestep {t} at index {i} is outside 0 … {total - 1}")
        if i and (t <= steps[i - 1] if rising else t >= steps[i - 1]):
            raise InkdropError(
                f"timesteps must strictly {order}, but index {i} goes from {steps[i - 1]} to {t}"
            )
    return steps


def checked_t(t: Tensor, total: int) -> Tensor:
    """t as int64; an error for what is no integer, or (on the CPU) lies outside 0 … total-1."""
    if t.dtype == torch.bool or t.is_floating_point() or t.is_complex():
        raise InkdropError(f"t must hold integers, got {t.dtype}")
    # Looking at values makes the host wait for an accelerator, and breaks a compiled graph.
    on_host = t.device.type == "cpu" and not torch.compiler.is_compiling()
    if on_host and t.numel() and not 0 <= t.min() <= t.max() < total:
        raise InkdropError(f"t must lie in 0 … {total - 1}, got {t.min()} … {t.max()}")
    return t.long()


def checked_count(name: str, value: int) -> int:
    """`value` as an int of at least 1, or an error that calls it `name`."""
    try:
        count = operator.index(value)
    except TypeError:
        count = 0
    if count < 1:
        raise InkdropError(f"{name} must be a whole number of at least 1, got {value!r}")
    return count


def _checked_betas(betas: Tensor) -> Tensor:
    if betas.ndim != 1 or len(betas) == 0:
        raise InkdropError(
            f"betas must be a sequence of at least one, got shape {tuple(betas.shape)}"
        )
    valid = (betas > 0) & (betas < 1)
    if not valid.all():
        i = int((~valid).nonzero()[0])
        raise InkdropError(f"betas must lie between 0 and 1, but betas[{i}] is {betas[i].item()!r}")
    return betas.detach().to("cpu", torch.float64).clone()


def _checked_alphas_cumprod(values: Tensor) -> Tensor:
    if values.ndim != 1 or len(values) == 0:
        raise InkdropError(
            f"alphas_cumprod must be a sequence of at least one, got shape {tuple(values.shape)}"
        )
    valid = (values > 0) & (values < _shifted(values, 1.0))
    if not valid.all():
        i = int((~valid).nonzero()[0])
        before = 1.0 if i == 0 else values[i - 1].item()
        raise InkdropError(
            "alphas_cumprod must fall from below 1 and stay above 0, but "
            f"alphas_cumprod[{i}] is {values[i].item()!r} after {before!r}"
        )
    return values


def _shifted(values: Tensor, first: float) -> Tensor:
    return torch.cat([values.new_tensor([first]), values[:-1]])
