# SPDX-License-Identifier: GPL-2.0-or-later
"""Two sentences on a result, which claim no more than its intervals show."""

from fastsocket.bench.result import Interval, Result
from fastsocket.bench.table import figure

__all__ = ["MIN_ROUNDS", "difference", "verdict"]

# With n rounds all lie on one side of the true median by chance with probability 2^(1-n);
# six are the fewest for which that is below 5 %.
MIN_ROUNDS = 6


def difference(ratio: Interval, noun: str, other: str, less: str) -> str:
    """Say how a ratio compares with 1: more `noun`, `less` of it, or no difference shown."""
    if ratio.median is None or ratio.low is None or ratio.high is None:
        return f"an unmeasured difference in {noun} from {other}"
    within = f"(95 % interval {_percent(ratio.low)} to {_percent(ratio.high)})"
    if ratio.low > 1 or ratio.high < 1:
        amount = f"{100 * abs(ratio.median - 1):.0f} %"
        return f"{amount} {'more' if ratio.low > 1 else less} {noun} than {other} {within}"
    return f"no measurable difference in {noun} from {other} {within}"


def verdict(result: Result) -> tuple[str, str]:
    """Return the two sentences on a `short` result that has the modes stock and fastsocket.

    The first is about speed, the second about cost and its cause.
    """
    stock = result.ratios["fastsocket/stock"]
    compared = [stock["cps"], stock["cpu_us_per_conn"]]
    if "fastsocket/reuseport" in result.ratios:
        compared.append(result.ratios["fastsocket/reuseport"]["cps"])
    rounds = min([result.rounds, *(one.pairs for one in compared if one.pairs)])
    if rounds < MIN_ROUNDS:
        few = f"{rounds} rounds are too few for a claim: it takes {MIN_ROUNDS}."
        return few, "Run 'fastsocket bench short' with more --runs."
    served = difference(stock["cps"], "connections per second", "stock", "fewer")
    if "fastsocket/reuseport" in result.ratios:
        other = result.ratios["fastsocket/reuseport"]["cps"]
        served += " and " + difference(
            other, "connections per second", "the server's own reuseport", "fewer"
        )
    cost = difference(stock["cpu_us_per_conn"], "CPU time per connection", "stock", "less")
    return (
        f"On these {result.host.cpus} CPUs {result.server} under Fastsocket showed {served}.",
        f"It showed {cost}{_cause(result)}.",
    )


def _cause(result: Result) -> str:
    """Say how often cores got in each other's way, where that was counted."""
    parts = []
    for metric, name in (
        ("lock_contentions_per_1k", "lock contentions"),
        ("resched_ipis_per_1k", "reschedule interrupts"),
    ):
        stock = result.modes["stock"][metric].median
        ours = result.modes["fastsocket"][metric].median
        if stock is not None and ours is not None:
            parts.append(f"{figure(ours)} {name} instead of {figure(stock)}")
    return f", with {' and '.join(parts)} per 1,000 connections" if parts else ""


def _percent(ratio: float) -> str:
    """Return a ratio as a signed change."""
    return f"{100 * (ratio - 1):+.0f} %"
