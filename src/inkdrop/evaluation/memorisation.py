"""Whether samples are copies of training examples.

A sample that lies near a training example proves nothing: held-out examples do so too. So samples
are judged by held-out examples' distances to the same training set (Meehan et al. 2020), in pixels
and in features.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..errors import InkdropError
from .record import Memorisation, Nearest

Floats = NDArray[np.float64]

NONE, SUSPECTED, COPIES = "none seen", "suspected", "copies"
PAIRS = 64  # the closest that are kept
_CHUNK_BYTES = 2**26
_SURE = 1e-3  # chance that chance alone explains it, below which it is told
_HALF = 0.5  # of the distance that 99% of held-out examples keep: so near are copies
_NEVER = 0.25  # of the least held-out distance: one sample so near is worth a look
_CLOSER = 0.03  # share of samples nearer than 99% of held-out examples that is worth a look
_MUCH_NEARER, _LIKELY = 0.7, 0.01  # the medians' ratio, and chance, below which samples are odd
_FEW = 100  # held-out examples below which nothing finer than 1% can be seen


def nearest(
    samples: NDArray[Any],
    train: NDArray[Any],
    held_out: NDArray[Any],
    space: str,
    *,
    pairs: int = PAIRS,
) -> Nearest:
    """The distances of samples (N, D) and held-out examples (H, D) to the nearest of train (M, D).

    Euclidean, of float32 or uint8 numbers in memory or in a `np.memmap`, a chunk at a time.

    Raises:
        InkdropError: if a set is empty or the sets differ in D.
    """
    from scipy.stats import mannwhitneyu

    sets = (samples, train, held_out)
    if not all(x.ndim == 2 and len(x) and x.shape[1] == train.shape[-1] for x in sets):
        raise InkdropError(
            "nearest neighbours need samples, training and held-out examples (N, D) of one D, got "
            + ", ".join(str(x.shape) for x in sets)
        )
    distances, indices = nearest_of(samples, train)
    honest, _ = nearest_of(held_out, train)
    edge = np.percentile(honest, 1)
    middle = np.median(honest)
    closest = np.argsort(distances, kind="stable")[:pairs]
    percent = np.arange(101)
    return Nearest(
        space=space,
        samples=np.percentile(distances, percent).tolist(),
        held_out=np.percentile(honest, percent).tolist(),
        ratio=float(np.median(distances) / middle) if middle > 0 else 1.0,
        closer=float((distances <= edge).mean()),
        p_value=float(mannwhitneyu(distances, honest, alternative="less").pvalue),
        pairs=[(int(i), int(indices[i]), float(distances[i])) for i in closest],
    )


def nearest_of(a: NDArray[Any], b: NDArray[Any]) -> tuple[Floats, NDArray[np.int64]]:
    """The Euclidean distance (N,) from each of a (N, D) to its nearest in b (M, D), and its index.

    The nearest is found in float32 and its distance then taken in float64, so that a copy is at
    distance zero. Of equally near ones any may be named.
    """
    middle = np.asarray(b[:1000], dtype=np.float32).mean(0)
    rows = max(1, min(int((_CHUNK_BYTES / 4) ** 0.5), _CHUNK_BYTES // 4 // a.shape[1]))
    best = np.full(len(a), np.inf, dtype=np.float32)
    index = np.zeros(len(a), dtype=np.int64)
    for start in range(0, len(b), rows):
        part = np.asarray(b[start : start + rows], dtype=np.float32) - middle
        norms = (part**2).sum(1)
        for first in range(0, len(a), rows):
            x = np.asarray(a[first : first + rows], dtype=np.float32) - middle
            table = x @ part.T
            table *= -2
            table += norms  # ‖x‖² is the same for all, and left out
            found = table.argmin(1)
            least = table[np.arange(len(x)), found]
            here = slice(first, first + len(x))
            nearer = least < best[here]
            best[here][nearer] = least[nearer]
            index[here][nearer] = found[nearer] + start
    distances = np.empty(len(a))
    for first in range(0, len(a), rows):
        here = slice(first, first + rows)
        apart = np.asarray(a[here], dtype=np.float64) - np.asarray(b[index[here]], np.float64)
        distances[here] = np.sqrt((apart**2).sum(1))
    return distances, index


def judge(nearest: Sequence[Nearest], *, samples: int, held_out: int) -> Memorisation:
    """Say whether the samples look copied, by the space that speaks loudest against them.

    A sample counts as a copy where it is nearer to a training example than half the distance that
    99% of held-out examples keep. The chance of so many is that of honest samples, which come in
    any order with the held-out examples: of n of them, the number nearer than the (r+1)-th nearest
    of m held-out ones is beta-binomial, whatever the distances' distribution.

    - "copies": more such samples than chance gives in one case of a thousand;
    - "suspected": one within a quarter of the least held-out distance; or at least 3% of samples,
      and more than chance gives in one case of a thousand, are nearer than 99% of held-out
      examples, as they are also where a model is less varied than its data; or their median
      distance is less than 0.7 of that of held-out examples, of which a few can show it;
    - "none seen" otherwise. It is what was looked for that was not seen: rare copies among few
      samples, and copies that are moved or mirrored, are not.

    Args:
        nearest: of each space.
        samples, held_out: how many of each were measured.

    Raises:
        InkdropError: if there is nothing to judge.
    """
    if not nearest:
        raise InkdropError("a verdict needs the nearest neighbours in at least one space")
    found = [_judge(each, samples, held_out) for each in nearest]
    verdict = max((verdict for verdict, _ in found), key=(NONE, SUSPECTED, COPIES).index)
    evidence = "; ".join(words for each, words in found if each == verdict)
    for count, what in ((samples, "samples"), (held_out, "held-out examples")):
        if count < _FEW:
            evidence += f"; {count} {what} are few to judge by"
    return Memorisation(verdict, evidence[0].upper() + evidence[1:], list(nearest))


def _judge(nearest: Nearest, samples: int, held_out: int) -> tuple[str, str]:
    """The verdict of one space, and its evidence in words."""
    where = f"in {nearest.space}"
    edge, least = nearest.held_out[1], nearest.held_out[0]
    copies = _within(nearest, edge * _HALF, samples)
    if copies and _chance(copies, samples, nearest.held_out, edge * _HALF, held_out) < _SURE:
        return COPIES, (
            f"{where} {copies:,} of {samples:,} samples are nearer to a training example than half "
            f"the distance that 99% of {held_out:,} held-out examples keep"
        )
    odd = _within(nearest, least * _NEVER, samples)
    if odd and least > 0:
        return SUSPECTED, (
            f"{where} {odd:,} of {samples:,} samples are nearer to a training example than a "
            f"quarter of the least distance of {held_out:,} held-out examples"
        )
    share = (
        f"{where} {nearest.closer:.1%} of {samples:,} samples are nearer to a training example "
        f"than 99% of {held_out:,} held-out examples are, where 1% is to be expected"
    )
    closer = round(nearest.closer * samples)
    chance = _chance(closer, samples, nearest.held_out, edge, held_out)
    if nearest.closer >= _CLOSER and chance < _SURE:
        return SUSPECTED, share
    whole = f"{share}, and their median distance is {nearest.ratio:.2f} times that of those"
    much = nearest.ratio < _MUCH_NEARER and nearest.p_value < _LIKELY
    return SUSPECTED if much else NONE, whole


def _within(nearest: Nearest, distance: float, samples: int) -> int:
    """How many samples are no farther from a training example; from the percentiles if many."""
    listed = sum(d <= distance for _, _, d in nearest.pairs)
    if listed < len(nearest.pairs):
        return listed
    return max(listed, int(_percent(nearest.samples, distance) / 100 * (samples - 1)) + 1)


def _percent(percentiles: Sequence[float], distance: float) -> int:
    """The last percentile that is no farther; -1 where there is none."""
    return int(np.searchsorted(percentiles, distance, side="right")) - 1


def _chance(
    count: int, samples: int, percentiles: Sequence[float], distance: float, held_out: int
) -> float:
    """How probably `count` honest samples or more are no farther than this distance."""
    from scipy.stats import betabinom

    nearer = min(held_out - 1, int(np.ceil((_percent(percentiles, distance) + 1) / 100 * held_out)))
    return float(betabinom.sf(count - 1, samples, nearer + 1, held_out - nearer))
