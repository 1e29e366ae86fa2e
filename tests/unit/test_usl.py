# SPDX-License-Identifier: GPL-2.0-or-later
"""The scalability law against curves with known parameters, and against the figure of 2014."""

import csv
from importlib.resources import files

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fastsocket.bench.law import Verdict, predict
from fastsocket.bench.usl import judge
from fastsocket.errors import FastsocketError

pytestmark = pytest.mark.unit


def curve_of_2014(workload: str, kernel: str) -> Verdict:
    text = (files("fastsocket.bench") / "data/fastsocket-2014-throughput.csv").read_text()
    lines = [line for line in text.splitlines() if not line.startswith("#")]
    rows = [
        row
        for row in csv.DictReader(lines)
        if (row["workload"], row["kernel"]) == (workload, kernel)
    ]
    return judge(
        [int(row["cores"]) for row in rows], [float(row["cps"]) for row in rows], resamples=200
    )


@pytest.mark.parametrize("workload", ["nginx", "haproxy"])
@pytest.mark.parametrize("kernel", ["fastsocket", "linux-3.13"])
def test_law_holds_for_the_scaling_curves_of_2014(workload: str, kernel: str) -> None:
    verdict = curve_of_2014(workload, kernel)
    assert verdict.verdict == "holds"
    assert verdict.fit is not None
    assert verdict.fit.r2 >= 0.99


def test_nginx_on_centos_peaks_where_the_figure_does() -> None:
    verdict = curve_of_2014("nginx", "centos-6.5")
    assert verdict.verdict == "holds"
    assert verdict.fit is not None
    assert verdict.fit.r2 >= 0.96
    peak = verdict.fit.peak_cores
    assert peak.value is not None
    assert 13 <= peak.value <= 17
    assert peak.low is not None
    assert peak.high is not None
    assert peak.low < peak.value < peak.high


def test_haproxy_on_centos_is_a_collapse_that_the_law_does_not_describe() -> None:
    verdict = curve_of_2014("haproxy", "centos-6.5")
    assert verdict.verdict == "fails"
    assert "collapses beyond 12 cores" in verdict.reason
    assert verdict.fit is not None
    assert verdict.fit.r2 == pytest.approx(0.79, abs=0.01)


@settings(max_examples=40, deadline=None)
@given(
    per_core=st.floats(1e2, 1e6),
    contention=st.floats(0, 0.5),
    coherency=st.floats(0, 0.02),
)
def test_fit_finds_the_parameters_of_an_exact_curve(
    per_core: float, contention: float, coherency: float
) -> None:
    cores = [1, 2, 4, 8, 12, 16, 24]
    exact = [per_core * n / (1 + contention * (n - 1) + coherency * n * (n - 1)) for n in cores]
    fit = judge(cores, exact, resamples=2).fit
    assert fit is not None
    assert fit.per_core.value == pytest.approx(per_core, rel=1e-3)
    assert fit.contention.value == pytest.approx(contention, abs=1e-3)
    assert fit.coherency.value == pytest.approx(coherency, abs=1e-4)
    assert predict(32, fit) == pytest.approx(
        per_core * 32 / (1 + contention * 31 + coherency * 32 * 31), rel=1e-2
    )


def test_intervals_cover_the_truth_about_as_often_as_they_say() -> None:
    random = np.random.default_rng(7)
    cores = np.repeat([1, 2, 4, 8, 16, 24], 4)
    truth = 1000 * cores / (1 + 0.03 * (cores - 1) + 0.001 * cores * (cores - 1))
    covered = 0
    for seed in range(20):
        noisy = truth * random.normal(1, 0.03, len(cores))
        fit = judge(list(cores), list(noisy), resamples=80, seed=seed).fit
        assert fit is not None
        assert fit.coherency.low is not None
        assert fit.coherency.high is not None
        covered += fit.coherency.low <= 0.001 <= fit.coherency.high
    assert covered >= 16


def test_a_line_never_peaks_and_has_no_contention() -> None:
    fit = judge([1, 2, 3, 4, 6, 8], [10.0, 20, 30, 40, 60, 80], resamples=20).fit
    assert fit is not None
    assert fit.contention.value == pytest.approx(0, abs=1e-9)
    assert predict(16, fit) == pytest.approx(160, rel=1e-6)


def test_five_core_counts_get_no_verdict() -> None:
    verdict = judge([1, 2, 4, 8, 16] * 3, [1.0, 2, 4, 8, 16] * 3)
    assert verdict.verdict == "refused"
    assert verdict.fit is None
    assert "5 core counts" in verdict.reason


@pytest.mark.parametrize(
    ("cores", "throughput"),
    [([1, 2], [1.0]), ([0, 2], [1.0, 2.0]), ([1, 2], [0.0, 2.0]), ([1, 2], [1.0, float("nan")])],
)
def test_points_that_are_no_curve_are_refused(cores: list[int], throughput: list[float]) -> None:
    with pytest.raises(FastsocketError, match="one throughput above 0"):
        judge(cores, throughput)
