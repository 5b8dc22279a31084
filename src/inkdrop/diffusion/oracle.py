"""Data whose perfect denoiser is known: mixtures of Gaussians, in any dimension.

x_t = α x_0 + σ ε of a mixture is a mixture again: its component k is N(α μ_k, α² Σ_k + σ² I). So
the density at every t, the posterior of x_0 given x_t, the score and the best loss all have closed
forms, and everything else in inkdrop is tested against them. All of it is float64.

Given a label of the components, a mixture is one of other weights: the closed forms stay.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from ..errors import InkdropError, unknown_name
from ..randomness import generator
from .best_loss import best_variance_fraction, least_loss
from .denoiser import Denoiser
from .prediction import PREDICTIONS, Pair, from_pair
from .schedule import NoiseSchedule

_ROUNDING = 1e-6  # by which float32 weights may miss a sum of 1, and covariances symmetry
_BATCH = 4096  # examples of a best loss that are computed together


@dataclass(frozen=True)
class Posterior:
    """x_0 given x_t: mean (B, …) as x_t, covariance (B, D, D) over an example's D numbers."""

    mean: Tensor
    covariance: Tensor


@dataclass(frozen=True)
class BestLoss:
    """The least loss that any network can reach, at each of some timesteps.

    Attributes:
        timesteps: (K,) int64.
        value: (K,) float64, as the objective counts: per dimension.
        standard_error: (K,), of `value`, which is a mean over draws of x_t.
    """

    timesteps: Tensor
    value: Tensor
    standard_error: Tensor


class GaussianMixture:
    """Σ_k w_k N(μ_k, Σ_k), over numbers of any shape.

    Args:
        means: (K, D), or (K, C, H, W) for images, whose D = C·H·W numbers are then flattened.
        covariances: (K, D, D), symmetric and positive definite.
        weights: (K,), at least 0, with sum 1.

    Raises:
        InkdropError: for anything else.
    """

    def __init__(
        self,
        means: Tensor | Sequence[Any],
        covariances: Tensor | Sequence[Any],
        weights: Tensor | Sequence[float],
    ) -> None:
        means, covariances, weights = (
            _as_float64(values) for values in (means, covariances, weights)
        )
        if means.ndim < 2 or means.numel() == 0:
            raise InkdropError(f"means must be (K, D) or (K, C, H, W), got {tuple(means.shape)}")
        self.shape = tuple(means.shape[1:])
        self.means = means.flatten(1)
        count, dimensions = self.means.shape
        if covariances.shape != (count, dimensions, dimensions):
            raise InkdropError(
                f"covariances must be (K, D, D) = {(count, dimensions, dimensions)} for these "
                f"means, got {tuple(covariances.shape)}"
            )
        if weights.shape != (count,):
            raise InkdropError(f"weights must be ({count},), got {tuple(weights.shape)}")
        if not (means.isfinite().all() and covariances.isfinite().all()):
            raise InkdropError("means and covariances must be finite")
        total = weights.sum().item()
        if not (weights >= 0).all() or not abs(total - 1) < _ROUNDING:
            raise InkdropError(
                f"weights must be at least 0 and sum to 1, got {weights.tolist()} with sum "
                f"{total:.10g}: divide them by it"
            )
        transposed = covariances.mT
        for k, size in enumerate(covariances.abs().amax((1, 2)).tolist()):
            if not torch.allclose(covariances[k], transposed[k], rtol=0, atol=_ROUNDING * size):
                raise InkdropError(f"covariances[{k}] is not symmetric")
        covariances = (covariances + transposed) / 2
        values, vectors = torch.linalg.eigh(covariances)
        if not (values[:, 0] > 0).all():
            k = int(values[:, 0].argmin())
            raise InkdropError(
                f"covariances[{k}] is not positive definite: its smallest eigenvalue is "
                f"{values[k, 0].item():.3g}"
            )
        self.covariances = covariances
        self.weights = weights / total
        self._values, self._vectors = values, vectors  # (K, D), (K, D, D) of columns

    def __repr__(self) -> str:
        return f"GaussianMixture({len(self.weights)} components over {self.shape})"

    @classmethod
    def fit(
        cls, data: Tensor, components: int, seed: int = 0, regularisation: float = 1e-4
    ) -> GaussianMixture:
        """A mixture fitted to data (N, …) by scikit-learn's expectation maximisation.

        Args:
            regularisation: added to the variances, which are zero in pixels that never change.
        """
        from sklearn import mixture

        flat = data.detach().cpu().double().flatten(1).numpy()
        if not 1 <= components <= len(flat):
            raise InkdropError(f"components must lie in 1 … {len(flat)}, got {components}")
        found = mixture.GaussianMixture(
            components, reg_covar=regularisation, random_state=seed
        ).fit(flat)
        covariances = (found.covariances_ + found.covariances_.transpose(0, 2, 1)) / 2
        means = torch.from_numpy(found.means_).reshape(components, *data.shape[1:])
        return cls(means, torch.from_numpy(covariances), torch.from_numpy(found.weights_))

    def sample(self, n: int, seed: int = 0, purpose: str = "mixture") -> Tensor:
        """n examples (n, *shape), float64, by address."""
        draws = generator(seed, purpose)
        weights = self.weights.numpy()
        component = torch.from_numpy(draws.choice(len(weights), size=n, p=weights))
        z = torch.from_numpy(draws.standard_normal((n, self.means.shape[1])))
        x = self.means[component]
        for k in range(len(weights)):  # one component's axes at a time: they are D² numbers
            drawn = component == k
            x[drawn] += (z[drawn] * self._values[k].sqrt()) @ self._vectors[k].mT
        return x.reshape(n, *self.shape)

    def marginal(self, schedule: NoiseSchedule, t: int) -> GaussianMixture:
        """The mixture that x_t is drawn from, t an integer in 0 … T-1."""
        alpha, one_minus = self._level(schedule, t)
        identity = torch.eye(self.means.shape[1], dtype=torch.float64)
        return GaussianMixture(
            (alpha.sqrt() * self.means).reshape(-1, *self.shape),
            alpha * self.covariances + one_minus * identity,
            self.weights,
        )

    def log_density(self, x: Tensor) -> Tensor:
        """log p(x) (B,) in nats, for x (B, *shape)."""
        density: Tensor = self._log_components(*self._projected(x, 1.0, 0.0)).logsumexp(1)
        return density

    def score(self, x: Tensor) -> Tensor:
        """∇ log p(x), as x (B, *shape). The score at t is that of `marginal(schedule, t)`."""
        y, spread = self._projected(x, 1.0, 0.0)
        shares = self._log_components(y, spread).softmax(1)
        return -self._mixed(shares, y / spread).reshape(x.shape)

    def posterior(self, schedule: NoiseSchedule, x_t: Tensor, t: int) -> Posterior:
        """x_0 given x_t (B, *shape) at one t: its exact mean and covariance."""
        alpha, one_minus = self._level(schedule, t)
        y, spread = self._projected(x_t, alpha, one_minus)
        shares = self._log_components(y, spread).softmax(1)
        means = self.means + torch.einsum(
            "kde,bke->bkd", self._vectors, alpha.sqrt() * self._values / spread * y
        )
        mean = torch.einsum("bk,bkd->bd", shares, means)
        within = torch.einsum(
            "kde,ke,kfe->kdf", self._vectors, self._values * one_minus / spread[0], self._vectors
        )
        apart = means - mean[:, None]
        covariance = torch.einsum("bk,kde->bde", shares, within)
        covariance += torch.einsum("bk,bkd,bke->bde", shares, apart, apart)
        return Posterior(mean.reshape(x_t.shape), covariance)

    def denoiser(
        self, schedule: NoiseSchedule, prediction: str = "noise", learned_variance: bool = False
    ) -> Denoiser:
        """The perfect denoiser: its x̂₀ is E[x_0|x_t], its ε̂ is E[ε|x_t].

        Args:
            prediction: what its network is made to predict.
            learned_variance: whether it also gives, for each number of x_t, the variance of the
                reverse step that makes the bound least.
        """
        if prediction not in PREDICTIONS:
            raise unknown_name("prediction", prediction, PREDICTIONS)
        network = _PerfectNetwork(self, schedule, prediction, learned_variance)
        return Denoiser(network, schedule, prediction, self.shape, learned_variance)

    def best_loss(
        self,
        schedule: NoiseSchedule,
        objective: str = "simple",
        *,
        prediction: str = "noise",
        variance: str = "posterior",
        t: Sequence[int] | Tensor | None = None,
        n: int = 2048,
        seed: int = 0,
        **parameters: float,
    ) -> BestLoss:
        """The least loss of any network at each t: what the exact posterior's variance leaves.

        For given x_t the least squared error is the posterior's variance, which is known; only its
        mean over x_t is an average over draws. The decoder is the density.

        Args:
            objective: "simple", "weighted_noise", "min_snr", "p2", "variational_bound" or "hybrid".
            prediction: whose error "simple" and "hybrid" count.
            variance: of the reverse steps, for weighted_noise and variational_bound: "posterior",
                "beta" or (for the bound alone) "learned".
            t: timesteps; all by default.
            n: draws of x_t at each t, the same x_0 and noise at all.
            parameters: gamma, k or bound_weight, where the objective has them.
        """
        steps = torch.arange(schedule.timesteps) if t is None else torch.as_tensor(t)
        x_start = self.sample(n, seed, "best loss")
        noise = torch.from_numpy(generator(seed, "best loss noise").standard_normal(x_start.shape))
        values, errors = [], []
        for step in steps.tolist():
            alpha, one_minus = self._level(schedule, step)
            x_t = alpha.sqrt() * x_start + one_minus.sqrt() * noise
            variances = torch.cat(
                [self._variances(part, alpha, one_minus) for part in torch.split(x_t, _BATCH)]
            )
            losses = least_loss(
                schedule, objective, prediction, variance, step, variances, **parameters
            )
            values.append(losses.mean())
            errors.append(losses.std() / math.sqrt(n))
        return BestLoss(steps, torch.stack(values), torch.stack(errors))

    def _level(self, schedule: NoiseSchedule, t: int) -> tuple[Tensor, Tensor]:
        """ᾱ_t and 1 - ᾱ_t, for a t of the schedule."""
        if not 0 <= t < schedule.timesteps:
            raise InkdropError(f"t must lie in 0 … {schedule.timesteps - 1}, got {t}")
        return schedule.alphas_cumprod[t], schedule.one_minus_alphas_cumprod[t]

    def _projected(
        self, x: Tensor, alpha: Tensor | float, one_minus: Tensor | float
    ) -> tuple[Tensor, Tensor]:
        """x - √ᾱ μ_k in the axes of each component, and the variances along them: (B, K, D) both.

        alpha and one_minus (ᾱ and 1 - ᾱ) are numbers, or (B, 1, 1).
        """
        if tuple(x.shape[1:]) != self.shape:
            raise InkdropError(
                f"examples must be (B, {', '.join(map(str, self.shape))}), got {tuple(x.shape)}"
            )
        alpha = torch.as_tensor(alpha, dtype=torch.float64)
        apart = x.double().flatten(1)[:, None] - alpha.sqrt() * self.means
        y = torch.einsum("kde,bkd->bke", self._vectors, apart)
        return y, (alpha * self._values + one_minus).expand_as(y)

    def _log_components(
        self, y: Tensor, spread: Tensor, log_weights: Tensor | None = None
    ) -> Tensor:
        """log w_k N(x; …) (B, K), where log w_k is the mixture's own or one given, (B, K)."""
        exponent = (y**2 / spread + spread.log() + math.log(2 * math.pi)).sum(2) / -2
        return (self.weights.log() if log_weights is None else log_weights) + exponent

    def _variances(
        self,
        x_t: Tensor,
        alpha: Tensor,
        one_minus: Tensor,
        log_weights: Tensor | None = None,
    ) -> Tensor:
        """The posterior variance of each number of x_0 (B, D): the covariance's diagonal alone.

        alpha, one_minus and log_weights are as for `_projected` and `_log_components`.
        """
        y, spread = self._projected(x_t, alpha, one_minus)
        shares = self._log_components(y, spread, log_weights).softmax(1)
        pulls = alpha.sqrt() * self._values / spread * y
        means = self.means + torch.einsum("kde,bke->bkd", self._vectors, pulls)
        within = torch.einsum("kde,bke->bkd", self._vectors**2, self._values * one_minus / spread)
        apart = means - torch.einsum("bk,bkd->bd", shares, means)[:, None]
        return torch.einsum("bk,bkd->bd", shares, within + apart**2)

    def _mixed(self, shares: Tensor, y: Tensor) -> Tensor:
        """Σ_k shares_k Q_k y_k (B, D): vectors in the components' axes, averaged."""
        return torch.einsum("kde,bke->bd", self._vectors, shares[:, :, None] * y)


class ConditionalMixture:
    """A Gaussian mixture whose examples come with a label: a class, or a vector.

    Its perfect denoisers are conditional ones, and know a null condition: a class of -1, or a
    vector of NaN.

    Args:
        mixture: of all labels together.
        labels: (K,) integers, the class of each component, by default 0 … K-1; or (K, V) floats,
            the mean of the vector that an example of each component comes with.
        spread: with vectors, the standard deviation of their numbers around that mean.

    Raises:
        InkdropError: for labels of another shape or kind, or a spread that is not above 0.
    """

    def __init__(
        self,
        mixture: GaussianMixture,
        labels: Tensor | Sequence[Any] | None = None,
        spread: float | None = None,
    ) -> None:
        count = len(mixture.weights)
        labels = torch.arange(count) if labels is None else torch.as_tensor(labels)
        vectors = labels.is_floating_point()
        if len(labels) != count or labels.ndim != (2 if vectors else 1):
            raise InkdropError(
                f"labels must be ({count},) integers, or ({count}, V) floats, for this mixture; "
                f"got {tuple(labels.shape)} of {labels.dtype}"
            )
        if not vectors and (labels < 0).any():
            raise InkdropError(f"classes must be at least 0, got {labels.tolist()}")
        if vectors and not (spread is not None and spread > 0):
            raise InkdropError(f"labels that are vectors need a spread above 0, got {spread!r}")
        if not vectors and spread is not None:
            raise InkdropError(f"classes have no spread (got {spread!r}): leave it out")
        self.mixture = mixture
        self.labels = labels.detach().cpu().double() if vectors else labels.long()
        self.spread = spread

    def given(self, condition: Tensor | int | Sequence[float]) -> GaussianMixture:
        """The mixture of the examples with one label, which may be the null one."""
        told = torch.as_tensor(condition)
        weights = self._log_weights(told[None])[0].exp()
        means = self.mixture.means.reshape(-1, *self.mixture.shape)
        return GaussianMixture(means, self.mixture.covariances, weights)

    def log_prob(
        self, schedule: NoiseSchedule, x_t: Tensor, t: Tensor, condition: Tensor
    ) -> Tensor:
        """The exact classifier: log p(condition|x_t) (B,) in nats, differentiable in x_t.

        For vectors it is the density's logarithm. 0 where the condition is the null one.

        Args:
            x_t: (B, *shape).
            t: (B,), as networks are told it.
            condition: classes (B,), or vectors (B, V).
        """
        alpha, one_minus = (part[:, None, None] for part in _level_of(schedule, t.cpu()))
        terms = self.mixture._log_components(*self.mixture._projected(x_t.cpu(), alpha, one_minus))
        found = (terms.log_softmax(1) + self._log_likelihood(condition.cpu())).logsumexp(1)
        return found.to(x_t)

    def denoiser(
        self, schedule: NoiseSchedule, prediction: str = "noise", learned_variance: bool = False
    ) -> Denoiser:
        """The perfect denoiser: its x̂₀ is E[x_0|x_t, condition].

        The condition is classes (B,) or vectors (B, V), each row with a label or the null one; None
        is the null one for all. The arguments are those of `GaussianMixture.denoiser`.
        """
        if prediction not in PREDICTIONS:
            raise unknown_name("prediction", prediction, PREDICTIONS)
        network = _PerfectConditionalNetwork(self, schedule, prediction, learned_variance)
        return Denoiser(network, schedule, prediction, self.mixture.shape, learned_variance)

    def _log_weights(self, condition: Tensor) -> Tensor:
        """log p(k|condition) (B, K), for conditions (B,) or (B, V)."""
        return (self.mixture.weights.log() + self._log_likelihood(condition)).log_softmax(1)

    def _log_likelihood(self, condition: Tensor) -> Tensor:
        """log p(condition|k) (B, K); 0 where the condition is the null one."""
        if self.spread is None:
            if condition.ndim != 1 or condition.is_floating_point():
                raise InkdropError(f"condition must be (B,) classes, got {_kind(condition)}")
            unknown = (condition != -1) & ~torch.isin(condition, self.labels)
            if unknown.any():
                raise InkdropError(
                    f"this mixture has the classes {sorted(set(self.labels.tolist()))}, and -1 "
                    f"for none, got {condition[unknown][0].item()}"
                )
            null = condition == -1
            told = torch.where(condition[:, None] == self.labels, 0.0, -math.inf).double()
        else:
            size = self.labels.shape[1]
            if condition.ndim != 2 or condition.shape[1] != size:
                raise InkdropError(f"condition must be (B, {size}), got {_kind(condition)}")
            null = condition.isnan().all(1)
            apart = (condition.double()[:, None] - self.labels) / self.spread
            constant = math.log(2 * math.pi * self.spread**2)
            told = (apart**2 + constant).sum(2) / -2
        return told.masked_fill(null[:, None], 0.0)


def _kind(condition: Tensor) -> str:
    return f"{tuple(condition.shape)} of {condition.dtype}"


def _as_float64(values: Tensor | Sequence[Any]) -> Tensor:
    if not isinstance(values, Tensor) and any(isinstance(value, Tensor) for value in values):
        values = torch.stack([torch.as_tensor(value) for value in values])
    return torch.as_tensor(values, dtype=torch.float64).detach().cpu()


class _PerfectNetwork(nn.Module):
    """A network (x_t, t, condition) that knows the posterior; t may be real-valued."""

    def __init__(
        self,
        mixture: GaussianMixture,
        schedule: NoiseSchedule,
        prediction: str,
        learned_variance: bool,
    ) -> None:
        super().__init__()
        self.mixture = mixture
        self.schedule = schedule
        self.prediction = prediction
        self.learned_variance = learned_variance

    def forward(self, x_t: Tensor, t: Tensor, condition: Tensor | None = None) -> Tensor:
        x, mixture, at = x_t.cpu(), self.mixture, _own_timesteps(self.schedule, t.cpu())
        log_weights = self._log_weights(condition)
        alpha, one_minus = (part[:, None, None] for part in _level_at(self.schedule, at))
        y, spread = mixture._projected(x, alpha, one_minus)
        shares = mixture._log_components(y, spread, log_weights).softmax(1)
        pull = mixture._mixed(shares, y / spread)  # -score
        noise = one_minus[:, 0].sqrt() * pull
        shift = mixture._mixed(shares, alpha.sqrt() * mixture._values * y / spread)
        x_start = shares @ mixture.means + shift
        pair = Pair(x_start, noise)
        answer = from_pair(self.prediction, pair, alpha[:, 0].sqrt(), one_minus[:, 0].sqrt())
        answer = answer.reshape(x_t.shape)
        if self.learned_variance:
            variances = mixture._variances(x, alpha, one_minus, log_weights)
            fraction = best_variance_fraction(self.schedule, at.long()[:, None], variances)
            answer = torch.cat([answer, 2 * fraction.reshape(x.shape) - 1], dim=1)
        return answer.to(x_t)

    def _log_weights(self, condition: Tensor | None) -> Tensor | None:
        """The components' weights (B, K) under the condition, where they are not the mixture's."""
        if condition is not None:
            raise InkdropError("a Gaussian mixture's denoiser takes no condition")
        return None


class _PerfectConditionalNetwork(_PerfectNetwork):
    """A network that knows the posterior given the condition too."""

    def __init__(
        self,
        conditional: ConditionalMixture,
        schedule: NoiseSchedule,
        prediction: str,
        learned_variance: bool,
    ) -> None:
        super().__init__(conditional.mixture, schedule, prediction, learned_variance)
        self.conditional = conditional

    def null_condition(self, condition: Tensor) -> Tensor:
        """The condition that tells nothing, of the shape and kind of another."""
        return torch.full_like(condition, math.nan if condition.is_floating_point() else -1)

    def _log_weights(self, condition: Tensor | None) -> Tensor | None:
        return None if condition is None else self.conditional._log_weights(condition.cpu())


def _level_of(schedule: NoiseSchedule, told: Tensor) -> tuple[Tensor, Tensor]:
    """ᾱ and 1 - ᾱ (B,), for timesteps as networks are told them."""
    return _level_at(schedule, _own_timesteps(schedule, told))


def _level_at(schedule: NoiseSchedule, at: Tensor) -> tuple[Tensor, Tensor]:
    """ᾱ and 1 - ᾱ (B,), at the schedule's own timesteps, which may be real-valued."""
    between = at.is_floating_point()
    log_snr = schedule.log_snr_between(at)[0] if between else schedule.log_snr[at]
    return log_snr.sigmoid(), (-log_snr).sigmoid()


def _own_timesteps(schedule: NoiseSchedule, told: Tensor) -> Tensor:
    """The schedule's own timesteps, for those it names to networks."""
    names = schedule.network_timesteps.numpy()
    if told.is_floating_point():
        at = np.interp(told.double().numpy(), names, np.arange(len(names)))
        return torch.from_numpy(at)
    at = np.searchsorted(names, told.numpy()).clip(max=len(names) - 1)
    unknown = told.numpy()[names[at] != told.numpy()]
    if len(unknown):
        raise InkdropError(f"this mixture's denoiser does not know timestep {unknown[0]}")
    return torch.from_numpy(at)
