"""Guidance: denoisers that are drawn towards their condition.

A guided denoiser is a denoiser: what samples from it, measures it or inverts it knows nothing of
guidance. The condition is given where any denoiser takes it.

    guided              two answers of one network, with and without the condition
    classifier_guided   the gradient of a classifier of noisy images
    through_x_start     makes such a classifier of one of clean images
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from numbers import Integral, Real
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from ..conditions import mapped, tensors_of
from ..errors import InkdropError
from .denoiser import Denoiser, Level, Output
from .prediction import Pair, convert, from_pair, to_pair
from .schedule import NoiseSchedule

LogProb = Callable[[Tensor, Tensor, Any], Tensor]


@dataclass(frozen=True)
class Guidance:
    """How far, where and how an estimate is drawn towards the condition.

    Attributes:
        scale: s in x̂ = x̂_null + s (x̂_told - x̂_null) (Ho & Salimans 2022, Eq. 6, whose w is
            s - 1): 0 leaves the condition out, 1 is the plain conditional estimate, above it is
            overdone.
        interval: (low, high), the timesteps of the full schedule where to guide, both included
            (Kynkäänniemi et al. 2024); elsewhere the estimate is the plain conditional one. None
            guides everywhere.
        rescale: φ, from 0 (none) to 1: by how much the standard deviation of each guided x̂₀, over
            the numbers of an example, is brought back to that of the conditional one (Lin et al.
            2024, Sec. 3.4). They do it on what the network predicts; on x̂₀ it means the same
            whatever that is. Meant for images: the few numbers of a point have hardly a spread. A
            scale of 0 has nothing to rescale.

    Raises:
        InkdropError: for numbers out of range.
    """

    scale: float
    interval: tuple[int, int] | None = None
    rescale: float = 0.0

    def __post_init__(self) -> None:
        _check_scale("guidance scale", self.scale)
        if not _is_number(self.rescale) or not 0 <= self.rescale <= 1:
            raise InkdropError(
                "guidance rescale must lie between 0 (none) and 1 (the conditional estimate's "
                f"standard deviation), got {self.rescale!r}"
            )
        object.__setattr__(self, "interval", _checked_interval(self.interval))


def guided(
    denoiser: Denoiser, guidance: float | Guidance, null: Tensor | Any | None = None
) -> Denoiser:
    """Classifier-free guidance (Ho & Salimans 2022): a denoiser drawn towards its condition.

    The network is asked once, about each x_t with the condition and without it: 2B rows where
    guidance has something to do, B where the scale is 0 or 1, and B outside the interval where t is
    one number for the whole batch, as in sampling. With a (B,) tensor of timesteps every row goes
    through the same computation, since looking at them would make an accelerator wait.

    A learned variance is that of the estimate with the condition.

    Args:
        guidance: the scale, or a `Guidance`.
        null: the condition that stands for none, the same for all examples; by default
            `network.null_condition(condition)`, which inkdrop's networks have.

    Raises:
        InkdropError: for a network that knows no null condition, a denoiser that is guided already,
            or (when it is asked) no condition.
    """
    chosen = guidance if isinstance(guidance, Guidance) else Guidance(guidance)
    if isinstance(denoiser, _Wrapper):
        raise InkdropError(
            "this denoiser is guided already: give guidance once; a classifier comes last, as in "
            "classifier_guided(guided(denoiser, …), …)"
        )
    knows = callable(getattr(denoiser.network, "null_condition", None))
    if chosen.scale != 1 and null is None and not knows:
        raise InkdropError(
            f"{type(denoiser.network).__name__} does not say what stands for no condition: give "
            "it a method null_condition(condition), or give null"
        )
    _check_reached(denoiser.schedule, chosen.interval)
    return Guided(denoiser, chosen, null)


def classifier_guided(
    denoiser: Denoiser,
    log_prob: LogProb,
    scale: float,
    *,
    tell: bool = False,
    interval: tuple[int, int] | None = None,
) -> Denoiser:
    """Classifier guidance (Dhariwal & Nichol 2021, Eq. 14): ε̂ - s √(1-ᾱ_t) ∇ log p(c|x_t).

    It is their Algorithm 2, and with it every sampler is guided. With scale 1 and an exact
    classifier the estimate is exactly the conditional one.

    Args:
        log_prob: (x_t (B, …), t (B,), condition) → (B,), log p(condition|x_t) in nats,
            differentiable in x_t; t are timesteps of the full schedule, as the network is told
            them, and real-valued where it is asked between two.
        scale: s, at least 0.
        tell: whether the network is told the condition too; else it is told its null condition,
            where it knows one, or nothing.
        interval: as for `Guidance`; outside it the classifier is left out.

    Raises:
        InkdropError: for a scale or interval out of range, or (when it is asked) a log_prob that
            returns no (B,) numbers or does not depend on x_t.
    """
    _check_scale("classifier guidance scale", scale)
    checked = _checked_interval(interval)
    _check_reached(denoiser.schedule, checked)
    return ClassifierGuided(denoiser, log_prob, scale, tell, checked)


def through_x_start(denoiser: Denoiser, logits_of: Callable[[Tensor], Tensor]) -> LogProb:
    """A classifier of clean images as one of noisy images, for `classifier_guided`.

    log p(class|x_t) is taken to be that of x̂₀(x_t): the forward guidance of Bansal et al. 2023. Its
    gradient goes through the network, so that a step costs about four evaluations. x̂₀ is the mean
    of what the image may be, so this is exact only where little noise is left.

    Args:
        denoiser: whose x̂₀; a conditional network is told its null condition.
        logits_of: (B, …) in [-1, 1] → (B, K); a module is given its own precision.

    Returns:
        log_prob(x_t, t, condition), whose condition is (B,) class indices; 0 for a class of -1.
    """

    def log_prob(x_t: Tensor, t: Tensor, condition: Any) -> Tensor:
        classes = getattr(condition, "classes", condition)
        if not isinstance(classes, Tensor) or classes.is_floating_point():
            raise InkdropError(
                "a classifier guides towards classes: give condition, one class index for each "
                "example"
            )
        x_start = _x_start(denoiser, x_t, t, _untold(denoiser.network, condition))
        if isinstance(logits_of, nn.Module):
            weights = next((weight.dtype for weight in logits_of.parameters()), x_t.dtype)
            x_start = x_start.to(weights)
        logits = logits_of(x_start)
        if logits.ndim != 2 or len(logits) != len(x_t):
            raise InkdropError(
                f"logits_of must return (B, K) logits, got {tuple(logits.shape)} for {len(x_t)} "
                "examples"
            )
        index = classes.long()[:, None]
        chosen = logits.log_softmax(1).gather(1, index.clamp(min=0))
        return torch.where(index < 0, 0.0, chosen)[:, 0]

    return log_prob


class _Wrapper(Denoiser):
    """A denoiser whose answers are another's, changed.

    Attributes:
        base: the other.
    """

    def __init__(self, base: Denoiser, interval: tuple[int, int] | None) -> None:
        super().__init__(
            base.network, base.schedule, base.prediction, base.shape, base.learned_variance
        )
        self.base = base
        self._interval = interval
        names = self.schedule.network_timesteps.numpy()
        # In the schedule's own timesteps, which need not be whole: so it holds between them too.
        self._first, self._last = np.interp(
            (-math.inf, math.inf) if interval is None else interval,
            names,
            np.arange(len(names)),
            left=-math.inf,
            right=math.inf,
        ).tolist()

    def _inside(self, t: Tensor | float) -> bool | Tensor:
        """Whether a timestep lies in the interval, for each row (B,) where it is not one number."""
        if self._interval is None:
            return True
        return (self._first <= t) & (t <= self._last)


class Guided(_Wrapper):
    """What `guided` makes."""

    def __init__(self, base: Denoiser, guidance: Guidance, null: Any = None) -> None:
        super().__init__(base, guidance.interval)
        self.guidance = guidance
        self._null = null

    def respaced(self, kept_timesteps: Sequence[int]) -> Denoiser:
        """The same under the schedule that visits only `kept_timesteps` (rising)."""
        return Guided(self.base.respaced(kept_timesteps), self.guidance, self._null)

    def check(self, condition: Any) -> None:
        """Raise the error that asking with this condition would, before any work."""
        self._null_for(condition)

    def _null_for(self, condition: Any) -> Any:
        """What is told in place of this condition; None where nothing is."""
        if not tensors_of(condition):
            raise InkdropError(
                "guidance needs something to guide towards: give condition, for a network that "
                "was trained with one"
            )
        if self.guidance.scale == 1:
            return None
        if self._null is not None:
            return mapped(_spread, condition, self._null)
        null = self.network.null_condition(condition)  # type: ignore[operator]
        return mapped(_alike, condition, null)

    def _output(self, x_t: Tensor, level: Level, condition: Any) -> Output:
        null = self._null_for(condition)
        scale, inside = self.guidance.scale, self._inside(level.t)
        if scale == 1 or inside is False:
            return self.base._output(x_t, level, condition)
        if scale == 0:
            return self.base._output(x_t, level, _chosen(inside, null, condition))
        rows = len(x_t)
        both = self.base._output(
            torch.cat([x_t, x_t]), _twice(level), mapped(_stacked, condition, null)
        )
        told, untold = both.prediction[:rows], both.prediction[rows:]
        # Conversions between predictions keep sums of weights 1: this is guidance of x̂₀ and of ε̂.
        prediction = untold + scale * (told - untold)
        if self.guidance.rescale:
            prediction = self._rescaled(prediction, told, x_t, level)
        fraction = both.variance_fraction
        return Output(
            _chosen(inside, prediction, told), None if fraction is None else fraction[:rows]
        )

    def _rescaled(self, prediction: Tensor, told: Tensor, x_t: Tensor, level: Level) -> Tensor:
        scales = x_t, level.alpha, level.sigma
        wanted, x_start = (
            to_pair(self.prediction, value, *scales).x_start for value in (told, prediction)
        )
        goal, spread = (value.flatten(1).std(1, correction=0) for value in (wanted, x_start))
        factor = 1 + self.guidance.rescale * (torch.where(spread > 0, goal / spread, 1.0) - 1)
        return convert(_as_rows(factor, x_t) * x_start, "x_start", self.prediction, *scales)


class ClassifierGuided(_Wrapper):
    """What `classifier_guided` makes."""

    def __init__(
        self,
        base: Denoiser,
        log_prob: LogProb,
        scale: float,
        tell: bool,
        interval: tuple[int, int] | None,
    ) -> None:
        super().__init__(base, interval)
        self.log_prob = log_prob
        self.scale = scale
        self.tell = tell

    def respaced(self, kept_timesteps: Sequence[int]) -> Denoiser:
        """The same under the schedule that visits only `kept_timesteps` (rising)."""
        base = self.base.respaced(kept_timesteps)
        return ClassifierGuided(base, self.log_prob, self.scale, self.tell, self._interval)

    def _output(self, x_t: Tensor, level: Level, condition: Any) -> Output:
        told = condition if self.tell else _untold(self.network, condition)
        output = self.base._output(x_t, level, told)
        inside = self._inside(level.t)
        if inside is False or self.scale == 0:
            return output
        pull = self.scale * self._gradient(x_t, level.told, condition)
        alpha, sigma = level.alpha, level.sigma
        # Conversions are linear: the change of the pair, converted, is that of the prediction.
        change = from_pair(
            self.prediction, Pair(sigma**2 / alpha * pull, -sigma * pull), alpha, sigma
        )
        prediction = output.prediction + change
        return Output(_chosen(inside, prediction, output.prediction), output.variance_fraction)

    def _gradient(self, x_t: Tensor, told: Tensor, condition: Any) -> Tensor:
        """∇ log p(condition|x_t), as x_t; differentiable where x_t is."""
        deeper = torch.is_grad_enabled() and x_t.requires_grad
        with torch.inference_mode(mode=False), torch.enable_grad():
            x = _normal(x_t) if deeper else _normal(x_t).detach().requires_grad_()
            value = self.log_prob(x, _normal(told), mapped(_normal, condition))
            if not isinstance(value, Tensor) or value.shape != (len(x),):
                got = tuple(value.shape) if isinstance(value, Tensor) else type(value).__name__
                raise InkdropError(
                    f"log_prob must return one number for each of {len(x)} examples, got {got}"
                )
            gradient = None
            if value.requires_grad:
                (gradient,) = torch.autograd.grad(
                    value.sum(), x, create_graph=deeper, allow_unused=True
                )
        if gradient is None:
            raise InkdropError(
                "log_prob must be differentiable in x_t, but what it returned does not depend on it"
            )
        return gradient if deeper else gradient.detach()


def _x_start(denoiser: Denoiser, x_t: Tensor, told: Tensor, condition: Any) -> Tensor:
    """x̂₀ at timesteps (B,) that are named as the network is told them."""
    names = denoiser.schedule.network_timesteps
    if told.is_floating_point():  # then it is one for all, as `Denoiser.between` takes it
        at = np.interp(told[0].item(), names.numpy(), np.arange(len(names)))
        return denoiser.between(x_t, torch.tensor(at), condition).x_start
    own = torch.searchsorted(names.to(told.device), told)
    return denoiser(x_t, own, condition).x_start


def _untold(network: nn.Module, condition: Any) -> Any:
    """What a network is told when it is not told this condition: its null condition, or None."""
    null_condition = getattr(network, "null_condition", None)
    if condition is None or not callable(null_condition):
        return None
    try:
        return null_condition(condition)
    except InkdropError:  # it knows none: it takes no condition, or will say that it needs one
        return None


def _chosen(inside: bool | Tensor, here: Any, elsewhere: Any) -> Any:
    """Row by row, one condition or tensor inside and another elsewhere."""
    if isinstance(inside, bool):
        return here if inside else elsewhere
    return mapped(lambda a, b: torch.where(_as_rows(inside, a), a, b), here, elsewhere)


def _as_rows(values: Tensor, like: Tensor) -> Tensor:
    """(B,) shaped to go with (B, …)."""
    return values.reshape(-1, *[1] * (like.ndim - 1))


def _twice(level: Level) -> Level:
    """The level of a batch that stands there twice."""

    def doubled(values: Tensor) -> Tensor:
        return torch.cat([values, values]) if values.ndim else values

    t = doubled(level.t) if isinstance(level.t, Tensor) else level.t
    return Level(t, doubled(level.told), doubled(level.alpha), doubled(level.sigma))


def _stacked(told: Tensor, null: Tensor) -> Tensor:
    return torch.cat([told, null])


def _normal(tensor: Tensor) -> Tensor:
    """A tensor that gradients may go through: inference mode's may not."""
    return tensor.clone() if tensor.is_inference() else tensor


def _spread(told: Tensor, null: Tensor) -> Tensor:
    """A null condition for each row of what is told."""
    if null.is_floating_point() == told.is_floating_point():
        try:
            return null.to(told).expand(told.shape)
        except RuntimeError:
            pass
    return _alike(told, null)


def _alike(told: Tensor, null: Tensor) -> Tensor:
    if null.shape != told.shape or null.dtype != told.dtype:
        raise InkdropError(
            f"the null condition is {tuple(null.shape)} of {null.dtype}, but the condition is "
            f"{tuple(told.shape)} of {told.dtype}: they must be alike"
        )
    return null


def _is_number(value: Any) -> bool:
    return isinstance(value, Real) and not isinstance(value, bool)


def _check_scale(name: str, scale: float) -> None:
    if not _is_number(scale) or not 0 <= scale < math.inf:
        raise InkdropError(
            f"{name} must be a number of at least 0 (1 is the plain conditional estimate), "
            f"got {scale!r}"
        )


def _checked_interval(interval: Sequence[Any] | None) -> tuple[int, int] | None:
    """(low, high), or an error."""
    if interval is None:
        return None
    ends = list(interval) if isinstance(interval, Sequence) else [interval]
    whole = [isinstance(end, Integral) and not isinstance(end, bool) for end in ends]
    if len(ends) != 2 or not all(whole) or not 0 <= ends[0] <= ends[1]:
        raise InkdropError(
            "a guidance interval is (low, high), two timesteps with 0 ≤ low ≤ high, "
            f"got {interval!r}"
        )
    return int(ends[0]), int(ends[1])


def _check_reached(schedule: NoiseSchedule, interval: tuple[int, int] | None) -> None:
    last = int(schedule.network_timesteps[-1])
    if interval is not None and interval[0] > last:
        raise InkdropError(
            f"the guidance interval {interval} begins after the schedule's last timestep, {last}: "
            "it would guide nowhere"
        )
