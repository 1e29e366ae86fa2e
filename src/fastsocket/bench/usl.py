# SPDX-License-Identifier: GPL-2.0-or-later
"""Fitting the Universal Scalability Law to a measured curve, with intervals and a verdict."""

import math
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import least_squares, nnls

from fastsocket.bench.law import Fit, Interval, Verdict
from fastsocket.errors import FastsocketError

__all__ = ["HOLDS_FROM_R2", "MIN_CORE_COUNTS", "judge"]

MIN_CORE_COUNTS = 6
"""Distinct core counts below which three parameters would be fitted to little more than noise."""

HOLDS_FROM_R2 = 0.95
"""Share of the variance that the law must explain before it is said to hold."""

Floats = NDArray[np.float64]


def judge(
    cores: Sequence[int], throughput: Sequence[float], *, resamples: int = 500, seed: int = 0
) -> Verdict:
    """Fit the law to measured points and say whether it holds.

    Args:
        cores: Core count of each point, >= 1; a count may stand there many times, once a round.
        throughput: Throughput of each point, > 0, in any unit.
        resamples: Bootstrap resamples behind the intervals.
        seed: Seed of the bootstrap, so that a result file gives the same intervals every time.

    Raises:
        FastsocketError: The points are not a curve: lengths differ, or a value is out of range.
    """
    n, x = np.asarray(cores, dtype=np.float64), np.asarray(throughput, dtype=np.float64)
    if (
        n.shape != x.shape
        or n.ndim != 1
        or not np.isfinite(x).all()
        or (x <= 0).any()
        or (n < 1).any()
    ):
        raise FastsocketError(
            "the scalability law cannot be fitted",
            "it needs one throughput above 0 for each core count of at least 1",
            "look for failed rounds in the result file",
        )
    counts = len(np.unique(n))
    if counts < MIN_CORE_COUNTS:
        reason = f"{counts} core counts were measured, and a verdict needs {MIN_CORE_COUNTS}"
        return Verdict("refused", reason, None)
    fit = _fit_with_intervals(n, x, resamples, np.random.default_rng(seed))
    if fit.r2 >= HOLDS_FROM_R2:
        return Verdict("holds", f"it explains {100 * fit.r2:.1f} % of the variance", fit)
    reason = f"it explains only {100 * fit.r2:.1f} % of the variance"
    mean = {int(count): float(x[n == count].mean()) for count in np.unique(n)}
    best, last = max(mean, key=mean.__getitem__), max(mean)
    if mean[last] < mean[best] / 2:
        reason += (
            f": throughput collapses beyond {best} cores, to {100 * mean[last] / mean[best]:.0f} % "
            f"of its best at {last}"
        )
    return Verdict("fails", reason, fit)


def _law(n: Floats, parameters: Floats) -> Floats:
    """Return the throughput at core counts `n` for (lambda, sigma, kappa)."""
    per_core, contention, coherency = parameters
    throughput: Floats = per_core * n / (1 + contention * (n - 1) + coherency * n * (n - 1))
    return throughput


def _jacobian(n: Floats, parameters: Floats) -> Floats:
    """Return the derivatives of `_law` by its three parameters, one row a point."""
    slope = n / (1 + parameters[1] * (n - 1) + parameters[2] * n * (n - 1))
    curve = -parameters[0] * slope**2
    return np.stack([slope, curve * (n - 1) / n, curve * (n - 1)], axis=1)


def _fit(n: Floats, x: Floats) -> Floats:
    """Return the least-squares (lambda, sigma, kappa), all >= 0.

    n / X(n) is linear in (1, sigma, kappa) / lambda, so non-negative least squares gives a start
    near the optimum. Of scipy's bounded methods dogbox is the one that puts a parameter on its
    bound exactly: a curve without contention has sigma = 0, not 1e-20.
    """
    scale = float(x.max())
    y = x / scale
    columns = np.stack([np.ones_like(n), n - 1, n * (n - 1)], axis=1) * (y / n)[:, None]
    start, _ = nnls(columns, np.ones_like(n))
    inverse = max(float(start[0]), 1e-6)
    found = least_squares(
        lambda p: _law(n, p) - y,
        [1 / inverse, start[1] / inverse, start[2] / inverse],
        jac=lambda p: _jacobian(n, p),
        bounds=(0, np.inf),
        x_scale="jac",
        method="dogbox",
    )
    parameters: Floats = found.x * np.array([scale, 1, 1])
    return parameters


def _peak(parameters: Floats) -> float:
    """Return the core count of greatest throughput, at least 1; infinite where there is none."""
    _, contention, coherency = parameters
    if coherency <= 0:
        return math.inf
    return max(1.0, math.sqrt(max(0.0, 1 - contention) / coherency))


def _fit_with_intervals(n: Floats, x: Floats, resamples: int, random: np.random.Generator) -> Fit:
    """Fit, then refit to curves with resampled residuals, for the intervals.

    Residuals and not points are resampled: core counts are chosen by the experiment, not drawn.
    Three fitted parameters make the residuals smaller than the errors were, so they are widened
    by sqrt(n / (n - 3)).
    """
    best = _fit(n, x)
    fitted = _law(n, best)
    residuals = x - fitted
    spread = float(((x - x.mean()) ** 2).sum())
    r2 = 1 - float((residuals**2).sum()) / spread if spread else 1.0
    widened = (residuals - residuals.mean()) * math.sqrt(len(n) / (len(n) - 3))
    floor = float(x.min()) / 100
    rows = []
    for _ in range(resamples):
        again = np.maximum(fitted + random.choice(widened, len(n)), floor)
        refit = _fit(n, again)
        rows.append([*refit, _peak(refit)])
    # Order statistics without interpolation: a peak may be infinite, and inf - inf is no number.
    low, high = np.quantile(np.array(rows), [0.025, 0.975], axis=0, method="nearest")
    values = [*best, _peak(best)]
    parts = [
        Interval(*(float(end) if math.isfinite(end) else None for end in ends))
        for ends in zip(values, low, high, strict=True)
    ]
    per_core, contention, coherency, peak_cores = parts
    return Fit(per_core, contention, coherency, peak_cores, r2)
