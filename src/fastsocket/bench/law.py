# SPDX-License-Identifier: GPL-2.0-or-later
"""Universal Scalability Law: what a throughput-by-cores curve says about sharing.

The law is ``X(n) = lambda n / (1 + sigma (n - 1) + kappa n (n - 1))``. ``sigma`` is the share of
the work that only one core at a time can do, ``kappa`` the cost of keeping two cores coherent.
Source: N. J. Gunther, "Guerrilla Capacity Planning", Springer 2007, chapters 4 to 6.
"""

import msgspec

__all__ = ["Fit", "Interval", "Verdict", "predict"]


class Interval(msgspec.Struct, frozen=True):
    """An estimate with its 95 % bootstrap interval; `high` is None where there is no upper end."""

    value: float | None
    low: float | None
    high: float | None


class Fit(msgspec.Struct, frozen=True):
    """The law fitted to one curve.

    Attributes:
        per_core: lambda, the throughput of one core, in the unit of the input.
        contention: sigma, >= 0, without unit.
        coherency: kappa, >= 0, without unit.
        peak_cores: Cores at which throughput is greatest; None where it never stops growing.
        r2: Share of the variance of the measured throughput that the law explains.
    """

    per_core: Interval
    contention: Interval
    coherency: Interval
    peak_cores: Interval
    r2: float


class Verdict(msgspec.Struct, frozen=True):
    """Whether the law describes a curve: "holds", "fails" or "refused", with the reason."""

    verdict: str
    reason: str
    fit: Fit | None


def predict(cores: float, fit: Fit) -> float:
    """Return the throughput that `fit` gives for `cores` >= 1: a model, not a measurement."""
    per_core, contention, coherency = (
        part.value or 0.0 for part in (fit.per_core, fit.contention, fit.coherency)
    )
    return per_core * cores / (1 + contention * (cores - 1) + coherency * cores * (cores - 1))
