# SPDX-License-Identifier: GPL-2.0-or-later
"""Medians with bootstrap intervals, and ratios taken round by round.

Throughput of shared machines drifts by tens of per cent within seconds. What two modes measured in
the same round met about the same machine, so the ratio is taken inside each round first and the
median over the rounds afterwards; the ratio of two medians would keep the drift.
"""

from bisect import bisect_left
from collections.abc import Sequence
from functools import cache
from itertools import accumulate
from math import comb
from statistics import fmean, median, pstdev

from fastsocket.bench.result import Interval

__all__ = ["CONFIDENCE", "interval", "ratios", "spread"]

CONFIDENCE = 0.95
# Pairs rarer than this cannot move a 2.5 % tail, and are most of the pairs of a long run.
_NEGLIGIBLE = 1e-9


def interval(samples: Sequence[float]) -> Interval:
    """Return the median of `samples` and its percentile bootstrap interval (Efron, 1979).

    The median's bootstrap distribution over all ``n ** n`` resamples is known exactly (Maritz and
    Jarrett, "A Note on Estimating the Variance of the Sample Median", 1978), so none is drawn: no
    seed changes the interval.

    Args:
        samples: At least one finite value.

    Raises:
        ValueError: No samples.
    """
    if not samples:
        raise ValueError("no samples to take a median of")
    ordered = sorted(samples)
    medians = sorted(
        (min(max(ordered[i] / 2 + ordered[j] / 2, ordered[i]), ordered[j]), weight)
        for i, j, weight in _middle_pairs(len(ordered))
    )
    tail = (1 - CONFIDENCE) / 2
    middle = median(ordered)
    low, high = _quantile(medians, tail), _quantile(medians[::-1], tail)
    return Interval(middle, min(low, middle), max(high, middle))


@cache
def _middle_pairs(size: int) -> tuple[tuple[int, int, float], ...]:
    """Return the places in the sample of a resample's two middle values, with probabilities.

    An odd resample has one middle value: both places are the same.
    """
    even, half = size % 2 == 0, size // 2
    rank = half if even else half + 1
    shares = [place / size for place in range(size + 1)]
    # Chance that half of the draws all fall on the first `place` values.
    below = [share**half for share in shares]
    ways = [comb(size, hits) for hits in range(size + 1)]
    # Chance that `rank` or more of all draws fall on the first `place` values.
    reached = [
        sum(
            ways[hits] * share**hits * (1 - share) ** (size - hits)
            for hits in range(rank, size + 1)
        )
        for share in shares
    ]
    pairs = []
    for i in range(size):
        alone = reached[i + 1] - reached[i]
        lower = ways[half] * (below[i + 1] - below[i]) if even else 0.0
        if lower > _NEGLIGIBLE:
            for j in range(i + 1, size):
                weight = lower * (below[size - j] - below[size - j - 1])
                alone -= weight
                pairs.append((i, j, weight))
        pairs.append((i, i, alone))
    return tuple(pair for pair in pairs if pair[2] > _NEGLIGIBLE)


def _quantile(weighted: Sequence[tuple[float, float]], share: float) -> float:
    """Return the value at which the weights, summed in this order, first reach `share`."""
    reached = list(accumulate(weight for _, weight in weighted))
    return weighted[min(bisect_left(reached, share), len(weighted) - 1)][0]


def ratios(numerators: Sequence[float | None], denominators: Sequence[float | None]) -> list[float]:
    """Return the ratio of each round that has both values and no zero to divide by.

    So there may be fewer than rounds: a claim is to count them.
    """
    return [
        top / bottom
        for top, bottom in zip(numerators, denominators, strict=True)
        if top is not None and bottom
    ]


def spread(counts: Sequence[int], members: int) -> float | None:
    """Return the coefficient of variation of `counts` over `members`, the silent ones as zeros.

    Returns:
        Standard deviation over mean: 0 is perfectly even, ``sqrt(members - 1)`` is all on one;
        None when nothing was counted.
    """
    everyone = [*counts, *[0] * (members - len(counts))]
    mean = fmean(everyone) if everyone else 0
    return pstdev(everyone) / mean if mean else None
