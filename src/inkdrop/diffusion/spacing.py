"""Which timesteps a sampler visits, when it does not visit all.

Every choice gives K distinct timesteps that fall. All but `leading` start at T-1, where pure noise
is what training saw.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
from numpy.typing import NDArray

from ..errors import InkdropError, unknown_name
from .schedule import NoiseSchedule, checked_count

KARRAS_RHO = 7.0  # Karras et al. 2022, Table 1
FITTED = ("fitted", "fitted-path")  # what only a run knows

Floats = NDArray[np.float64]


def trailing(schedule: NoiseSchedule, count: int) -> Floats:
    """T-1, T-1 - T/K, … (Lin et al. 2024, Table 2)."""
    total = schedule.timesteps
    return (total - 1 - (np.arange(count) * total) // count).astype(np.float64)


def leading(schedule: NoiseSchedule, count: int) -> Floats:
    """…, 2⌊T/K⌋, ⌊T/K⌋, 0: DDIM's own, which never asks at T-1 (Lin et al. 2024, Table 2)."""
    return (np.arange(count)[::-1] * (schedule.timesteps // count)).astype(np.float64)


def linspace(schedule: NoiseSchedule, count: int) -> Floats:
    """Evenly from T-1 to 0, both among them (Nichol & Dhariwal 2021, Sec. 4)."""
    return np.linspace(schedule.timesteps - 1.0, 0.0, count, dtype=np.float64)


def quadratic(schedule: NoiseSchedule, count: int) -> Floats:
    """Squares of evenly spaced numbers: denser near the image (Song et al. 2021, App. D.2)."""
    return np.linspace((schedule.timesteps - 1) ** 0.5, 0.0, count, dtype=np.float64) ** 2


def log_snr(schedule: NoiseSchedule, count: int) -> Floats:
    """Evenly in the logarithm of the SNR (Lu et al. 2022, Sec. 3.3)."""
    levels = schedule.log_snr.numpy()
    return _where(schedule, np.linspace(levels[-1], levels[0], count))


def karras(schedule: NoiseSchedule, count: int) -> Floats:
    """Evenly in (σ/α)^(1/7) (Karras et al. 2022, Eq. 5)."""
    levels = schedule.log_snr.numpy()
    high, low = (float(np.exp(-levels[end] / 2 / KARRAS_RHO)) for end in (-1, 0))
    return _where(schedule, -2 * KARRAS_RHO * np.log(np.linspace(high, low, count)))


SPACINGS: dict[str, Callable[[NoiseSchedule, int], Floats]] = {
    "trailing": trailing,
    "leading": leading,
    "linspace": linspace,
    "quadratic": quadratic,
    "log-snr": log_snr,
    "karras": karras,
}


def spaced_timesteps(
    schedule: NoiseSchedule, count: int, spacing: str | Sequence[int] = "trailing"
) -> list[int]:
    """`count` falling timesteps of a schedule, by the name of a spacing.

    Timesteps that would fall together on one integer are moved apart.

    Raises:
        InkdropError: for an unknown spacing, "fitted" (which a run alone knows), or
            a count outside 1 … T.
    """
    total = schedule.timesteps
    if not 1 <= checked_count("steps", count) <= total:
        raise InkdropError(
            f"steps must lie between 1 and the schedule's {total} timesteps, got {count}"
        )
    if spacing in FITTED:
        raise InkdropError(
            "fitted timesteps belong to a run: `inkdrop fit RUN` makes them, and "
            "inkdrop.load(RUN).fitted_timesteps(K) gives them"
        )
    if not isinstance(spacing, str) or spacing not in SPACINGS:
        raise unknown_name("timestep spacing", str(spacing), [*SPACINGS, *FITTED])
    if count == 1:
        return [total - 1]
    ideal = SPACINGS[spacing](schedule, count).round().astype(int).tolist()
    distinct: list[int] = []
    for i, t in enumerate(ideal):
        highest = distinct[-1] - 1 if distinct else total - 1
        distinct.append(max(min(t, highest), count - 1 - i))
    return distinct


def _where(schedule: NoiseSchedule, log_snr: Floats) -> Floats:
    """The real-valued timesteps at which the schedule has these log SNRs (K,), rising."""
    t: Floats = np.interp(
        log_snr, schedule.log_snr.numpy()[::-1], np.arange(schedule.timesteps)[::-1].astype(float)
    )
    return t
