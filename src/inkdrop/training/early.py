"""A look at a few samples early in training, at what is wrong for certain even then.

The limits stand well beyond what good trainings showed: of digits (predicting velocity or noise),
of emoji in colour and of points in the plane, with as many steps as is usual and with far fewer.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from ..sharded_files import local

LOOKS = (0.01, 0.05, 0.25)  # of training
SHORTEST = 200  # steps of training; one of fewer is over before a look would save anything
_YOUNG = 200  # steps before which samples may look like anything
_AT_AN_END, _ALMOST_ALL = 0.99, 0.999  # of [-1, 1] and of an image's values, for black and white
_FLAT = 0.1  # of the data's spread within an image: one colour
_CORRELATED = 0.2  # neighbouring pixels of data of which noise can be told
_ERRORS = 3  # standard errors that are put down to chance
_COLOURS = ("red", "green", "blue")
_WATCHED = 8  # values of each parameter


@dataclass(frozen=True)
class _Limits:
    """How far samples may differ from the data.

    Attributes:
        correlation: the least between neighbouring pixels, as a part of the data's.
        mean: how far off, in standard deviations of the data.
        spread: the least and greatest ratio of standard deviations.
    """

    correlation: float
    mean: float
    spread: tuple[float, float]


_LIMITS = {0.05: _Limits(0.05, 0.75, (0.4, 2.5)), 0.25: _Limits(0.25, 0.5, (0.6, 1.7))}


def due(step: int, total: int) -> float | None:
    """The part of training, of `LOOKS`, that ends with step `step` of `total`; None for none."""
    at = {math.ceil(fraction * total): fraction for fraction in LOOKS}
    return at.get(step)


def look(samples: Tensor, data: Tensor, step: int, fraction: float) -> list[str]:
    """What is wrong with samples: warnings of one line each, none as a rule.

    At 1% of training, and before step 200, only samples that are not finite, or all black or white.
    Later also samples of one colour, noise, and a tint or contrast that is not the data's.

    Args:
        samples: (N, C, H, W), or points (N, D); best 64 or more, of the averaged weights.
        data: (M, …) of the same shape and range, some of what is trained on.
        step, fraction: of training, as for `due`.
    """
    samples, data = samples.detach().cpu().float(), data.detach().cpu().float()
    found = _gross(samples, data)
    if found is None and step >= _YOUNG and fraction in _LIMITS:
        limits = _LIMITS[fraction]
        found = _flat(samples, data) or _noise(samples, data, limits) or _drift(
            samples, data, limits
        )  # fmt: skip
    return [] if found is None else [f"early look at step {step:,} ({fraction:.0%}): {found}"]


def _gross(samples: Tensor, data: Tensor) -> str | None:
    bad = int((~samples.flatten(1).isfinite().all(1)).sum())
    if bad:
        return (
            f"{bad} of {len(samples)} samples hold values that are not finite; training is not "
            "likely to recover: try a lower --training.learning-rate in a new --out folder"
        )
    if samples.ndim != 4:
        return None
    for name, sign in (("black", -1), ("white", 1)):
        share, usual = (
            (x.flatten(1) * sign > _AT_AN_END).float().mean(1).min().item() for x in (samples, data)
        )
        if share > _ALMOST_ALL >= usual:
            return (
                f"every sample is {name}, which the data are not; see that the loss falls, that "
                "--prediction is what the network is meant for, and try a lower "
                "--training.learning-rate"
            )
    return None


def _flat(samples: Tensor, data: Tensor) -> str | None:
    if samples.ndim != 4:
        return None
    spread, usual = (x.flatten(2).std(2).mean(1).median().item() for x in (samples, data))
    if spread >= _FLAT * usual:
        return None
    return (
        f"samples are of one colour each (values vary by {spread:.2g} within one, in the data by "
        f"{usual:.2g}); see that the loss falls, and try another --training.learning-rate"
    )


def _noise(samples: Tensor, data: Tensor, limits: _Limits) -> str | None:
    if samples.ndim != 4:
        return None
    found, usual = _neighbours(samples), _neighbours(data)
    if usual < _CORRELATED or found >= limits.correlation * usual:
        return None
    return (
        f"samples are still noise (neighbouring pixels correlate by {found:.2f}, in the data by "
        f"{usual:.2f}); see that the loss falls, and try a higher --training.learning-rate or a "
        "larger network"
    )


def _neighbours(x: Tensor) -> float:
    """The correlation of pixels side by side, and one above the other."""
    x = x - x.mean((0, 2, 3), keepdim=True)
    variance = (x**2).mean()
    if min(x.shape[2:]) < 2 or variance == 0:
        return 0.0
    beside, above = (x[..., 1:] * x[..., :-1]).mean(), (x[..., 1:, :] * x[..., :-1, :]).mean()
    return float((beside + above) / (2 * variance))


def _drift(samples: Tensor, data: Tensor, limits: _Limits) -> str | None:
    """The channel or coordinate whose mean is furthest from the data's, or else its spread."""
    mean, spread, error = _moments(samples)
    true_mean, true_spread, true_error = _moments(data)
    chance = _ERRORS * (error**2 + true_error**2).sqrt()
    off = ((mean - true_mean).abs() - chance) / true_spread
    worst = int(off.argmax())
    name = _name(worst, samples.shape)
    if off[worst] > limits.mean:
        return (
            f"samples have a tint: the mean of {name} is {mean[worst]:.2f}, in the data "
            f"{true_mean[worst]:.2f} ± {true_spread[worst]:.2f}; an average over fewer steps "
            "(--training.ema-decay) may follow faster, or --prediction velocity may drift less"
        )
    # Of a spread, the relative error is about that of the mean over the spread.
    ratio, chance = spread / true_spread, chance / true_spread
    least, most = limits.spread
    worst = int((ratio.log().abs() - chance).argmax())
    name = _name(worst, samples.shape)
    if ratio[worst] < least - chance[worst] or ratio[worst] > most + chance[worst]:
        much = "little" if ratio[worst] < 1 else "much"
        return (
            f"samples vary too {much}: the standard deviation of {name} is {spread[worst]:.2f}, in "
            f"the data {true_spread[worst]:.2f}; see that the loss falls, and try another "
            "--training.learning-rate"
        )
    return None


def _moments(x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Mean and standard deviation (C,) of each channel, and the standard error of the mean."""
    values = x.reshape(len(x), x.shape[1], -1)
    spread = values.std((0, 2), correction=0).clamp(min=1e-6)
    each = values.mean(2)
    error = each.std(0, correction=1 if len(each) > 1 else 0) / math.sqrt(len(each))
    return values.mean((0, 2)), spread, error


def _name(channel: int, shape: Sequence[int]) -> str:
    if len(shape) != 4:
        return f"coordinate {channel}"
    if shape[1] == 3:
        return _COLOURS[channel]
    return "all pixels" if shape[1] == 1 else f"channel {channel}"


class WeightsWatch:
    """Notices weights, or an average of them, that stand still.

    A few values of each parameter are kept from when it is made. That the average still holds the
    initial weights needs no watch: see `initial_share`.
    """

    def __init__(self, network: nn.Module, averaged: nn.Module) -> None:
        self._before = _some_values(network), _some_values(averaged)

    def look(self, network: nn.Module, averaged: nn.Module) -> str | None:
        """A warning, after steps were taken, if either is as it was."""
        weights, average = (
            torch.equal(before, _some_values(module))
            for before, module in zip(self._before, (network, averaged), strict=True)
        )
        if weights:
            return (
                "no weight has changed yet: see that the loss depends on the network (nothing "
                "detached, nothing frozen) and that --training.learning-rate is not too small"
            )
        if average:
            return (
                "the averaged weights, which samples are made with, have not changed though the "
                "weights have: try a smaller --training.ema-decay"
            )
        return None


def _some_values(network: nn.Module) -> Tensor:
    some = [local(p.detach()).flatten()[:_WATCHED].float().cpu() for p in network.parameters()]
    return torch.cat(some) if some else torch.zeros(0)


def initial_share(decay: float, steps: int) -> float:
    """What of the initial weights is left in the average after `steps` steps.

    The product of the decays min(decay, (1 + k)/(10 + k)) of steps k = 0 … steps - 1; as long as
    they rise it is n! 9!/(n + 9)!: a tenth after one step and 10⁻⁵ after ten, however large `decay`
    is.
    """
    if decay <= 0.1:
        return decay**steps
    rising = min(steps, max(1, math.ceil((10 * decay - 1) / (1 - decay)))) if decay < 1 else steps
    log = math.lgamma(rising + 1) + math.lgamma(10) - math.lgamma(rising + 10)
    return math.exp(log + (steps - rising) * math.log(decay))
