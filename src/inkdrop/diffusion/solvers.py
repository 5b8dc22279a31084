"""The coefficients of deterministic samplers: solvers of the probability-flow ODE, as tables.

With λ = log(α/σ), the ODE's solution from one noise level to the next is (Lu et al. 2022b, Sec. 4)

    x' = σ'/σ x + α' ∫_0^1 h e^(-h(1-τ)) x̂₀(λ + τh) dτ,    h = λ' - λ

and a solver is a polynomial in τ that stands for x̂₀: through the present and earlier estimates for
a predictor, through the next one too for a corrector.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from ..errors import InkdropError
from .schedule import NoiseSchedule, checked_count

DEFAULT_ORDER, MAX_ORDER = 2, 3


@dataclass(frozen=True, eq=False)
class SamplerTable:
    """K network evaluations over R registers, all coefficients float64.

    Attributes:
        timesteps: the K timesteps the network is asked at.
        M: (K, R, R), what each register takes from the registers.
        v: (K, R), what it takes from x̂₀.
        s: (K, R), what it takes from fresh unit noise.
        variance_range: (K,) for a learned variance: the noise is scaled by exp(range · f), with f
            the denoiser's variance fraction; None for a fixed variance.
    """

    timesteps: tuple[int, ...]
    M: Tensor
    v: Tensor
    s: Tensor
    variance_range: Tensor | None = None

    def __post_init__(self) -> None:
        rows, registers = len(self.timesteps), self.M.shape[-1]
        shapes = tuple(map(tuple, (self.M.shape, self.v.shape, self.s.shape)))
        fitting = ((rows, registers, registers), (rows, registers), (rows, registers))
        if not rows or shapes != fitting:
            raise InkdropError(
                "a table needs K timesteps, M (K, R, R), v (K, R) and s (K, R), "
                f"got {rows}, {', '.join(map(str, shapes))}"
            )
        if self.variance_range is not None and self.variance_range.shape != (rows,):
            raise InkdropError(
                f"a table of {rows} rows needs variance_range ({rows},), got "
                f"{tuple(self.variance_range.shape)}"
            )

    def __len__(self) -> int:
        return len(self.timesteps)


@dataclass(frozen=True)
class Levels:
    """The noise levels (N,) that a deterministic sampler goes through, float64.

    λ = log(α/σ) is infinite, and σ zero, where the last is the clean image.
    """

    alpha: list[float]
    sigma: list[float]
    log_snr: list[float]  # λ, half the logarithm of the SNR


def levels_at(schedule: NoiseSchedule, visited: list[int], to_image: bool) -> Levels:
    end = ([1.0], [0.0], [math.inf]) if to_image else ([], [], [])
    names = ("sqrt_alphas_cumprod", "sqrt_one_minus_alphas_cumprod", "log_snr")
    alpha, sigma, log_snr = (getattr(schedule, name)[visited].tolist() for name in names)
    half = [value / 2 for value in log_snr]
    return Levels(alpha + end[0], sigma + end[1], half + end[2])


def multistep_table(
    levels: Levels, visited: list[int], order: int | None, corrector: bool
) -> SamplerTable:
    """Registers: the image; with a corrector, the corrected image but for what the coming x̂₀ adds
    to it; then the last order - 1 estimates.
    """
    rows = len(levels.alpha) - 1
    if order is None:
        order = min(DEFAULT_ORDER, rows)
    order = checked_count("order", order)
    if order > MAX_ORDER:
        raise InkdropError(f"order must be 1, 2 or 3, got {order!r}")
    if order > rows:
        raise InkdropError(
            f"order {order} needs at least {order} steps, got {rows}; take more steps or a lower "
            "order"
        )
    past = 1 + corrector  # the register of the last estimate
    registers = past + order - 1
    M = np.zeros((rows, registers, registers))
    v = np.zeros((rows, registers))
    gain = 0.0  # what x̂₀ adds to the corrected image
    for i in range(rows):
        here = min(order, i + 1, rows - i if levels.sigma[-1] == 0 else order)
        ratio, weights = _prediction(levels, i, here)
        # The image that the step starts from, as weights of the registers and of x̂₀.
        base, base_gain = np.zeros(registers), gain
        base[1 if corrector and i else 0] = 1
        M[i, 0] = ratio * base
        M[i, 0, past : past + here - 1] += weights[1:]
        v[i, 0] = ratio * base_gain + weights[0]
        if corrector and i + 1 < rows:
            ratio, weights, gain = _correction(levels, i, here)
            M[i, 1] = ratio * base
            M[i, 1, past : past + here - 1] += weights[1:]
            v[i, 1] = ratio * base_gain + weights[0]
        if order > 1:
            v[i, past] = 1
            for register in range(past + 1, registers):
                M[i, register, register - 1] = 1
    asked = tuple(visited[:rows])
    return SamplerTable(
        asked, torch.from_numpy(M), torch.from_numpy(v), torch.zeros(v.shape).double()
    )


def _prediction(levels: Levels, i: int, order: int) -> tuple[float, list[float]]:
    """x_{i+1} = ratio x_i + Σ_j weights[j] m_{i-j}, of `order` estimates m."""
    alpha, h, nodes = levels.alpha[i + 1], *_step(levels, i, order)
    ratio = levels.sigma[i + 1] / levels.sigma[i]
    # B₂(h) makes do with ½ at order 2, where the exact line has φ_1 / φ_0.
    shares = [0.5] * (order - 1) if order <= 2 else _solved(nodes, h)
    return ratio, _in_estimates(alpha * _phi(0, h), nodes, shares)


def _correction(levels: Levels, i: int, order: int) -> tuple[float, list[float], float]:
    """As `_prediction`, and the weight of the estimate made at the predicted x_{i+1}."""
    alpha, h, nodes = levels.alpha[i + 1], *_step(levels, i, order)
    ratio = levels.sigma[i + 1] / levels.sigma[i]
    nodes = [*nodes, 1.0]
    shares = [0.5] if order == 1 else _solved(nodes, h)
    *weights, ahead = _in_estimates(alpha * _phi(0, h), nodes, shares)
    return ratio, weights, ahead


def _step(levels: Levels, i: int, order: int) -> tuple[float, list[float]]:
    """The step h in λ, and where the earlier estimates lie, in steps from the present one."""
    h = levels.log_snr[i + 1] - levels.log_snr[i]
    return h, [(levels.log_snr[i - j] - levels.log_snr[i]) / h for j in range(1, order)]


def _solved(nodes: list[float], h: float) -> list[float]:
    """Shares ρ_j with Σ_j ρ_j r_j^(k-1) = φ_k / φ_0: exact for polynomials in λ.

    The order conditions of Zhao et al. 2023, Theorem 3.1, whose unknowns are these for any B(h).
    """
    powers = np.vander(nodes, increasing=True).T
    phis = [_phi(k, h) / _phi(0, h) for k in range(1, len(nodes) + 1)]
    shares: list[float] = np.linalg.solve(powers, phis).tolist()
    return shares


def _in_estimates(scale: float, nodes: list[float], shares: list[float]) -> list[float]:
    """scale (m + Σ_j ρ_j (m_j - m)/r_j) as weights of m, m_1, …"""
    slopes = [scale * share / node for share, node in zip(shares, nodes, strict=True)]
    return [scale - sum(slopes), *slopes]


def _phi(k: int, h: float) -> float:
    """∫_0^1 h e^(-h(1-τ)) τ^k dτ: what τ^k, in steps h of λ, adds to x/α. φ_0 = 1 - e^(-h)."""
    if k == 0:
        return -math.expm1(-h)
    if abs(h) < 1:  # the recursion below cancels; the series h k! Σ (-h)^n / (n+k+1)! does not
        term = h / (k + 1)
        total = 0.0
        for n in range(25):
            total += term
            term *= -h / (n + k + 2)
        return total
    return 1 - k * _phi(k - 1, h) / h


def heun_table(levels: Levels, visited: list[int]) -> SamplerTable:
    """Registers: the image; and, between a step's two rows, all of its end but what x̂₀ adds."""
    asked: list[int] = []
    M, v = [], []
    for i in range(len(levels.alpha) - 1):
        alpha, sigma = levels.alpha[i], levels.sigma[i]
        next_alpha, next_sigma = levels.alpha[i + 1], levels.sigma[i + 1]
        asked.append(visited[i])
        # In y = x/α and s = σ/α: dy/ds = (y - x̂₀)/s.
        euler = next_sigma / sigma, next_alpha - next_sigma * alpha / sigma
        if next_sigma == 0:
            M.append([[euler[0], 0], [0, 0]])
            v.append([euler[1], 0])
            continue
        ds = next_sigma / next_alpha - sigma / alpha
        half = ds / 2 * alpha / sigma  # half of the step, times the slope's y
        ahead = ds / 2 * next_alpha / next_sigma
        kept = next_alpha * (1 + half) / alpha + ahead * euler[0]
        M.append([[euler[0], 0], [kept, 0]])
        v.append([euler[1], -next_alpha * half + ahead * euler[1]])
        asked.append(visited[i + 1])
        M.append([[0, 1], [0, 0]])
        v.append([-next_alpha * ahead, 0])
    return SamplerTable(
        tuple(asked),
        torch.tensor(M, dtype=torch.float64),
        torch.tensor(v, dtype=torch.float64),
        torch.zeros(len(asked), 2, dtype=torch.float64),
    )
