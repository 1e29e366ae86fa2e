# SPDX-License-Identifier: GPL-2.0-or-later
"""Intervals, ratios and spread."""

import itertools
import math
import random
from statistics import median

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fastsocket.bench.result import Interval
from fastsocket.bench.stats import interval, ratios, spread
from fastsocket.bench.verdict import difference

pytestmark = pytest.mark.unit

figures = st.floats(min_value=1e-3, max_value=1e9)
samples = st.lists(figures, min_size=1, max_size=15)


@given(samples)
def test_interval_holds_its_median_within_the_samples(values):
    got = interval(values)
    assert min(values) <= got.low <= got.median <= got.high <= max(values)
    assert got.median == median(values)


@given(samples, st.sampled_from([0.25, 2.0, 1024.0]))
def test_interval_scales_with_the_unit(values, factor):
    plain, scaled = interval(values), interval([factor * v for v in values])
    assert scaled.low == pytest.approx(factor * plain.low)
    assert scaled.high == pytest.approx(factor * plain.high)


@given(samples, st.randoms())
def test_interval_does_not_depend_on_the_order(values, source):
    mixed = list(values)
    source.shuffle(mixed)
    assert interval(mixed) == interval(values)


@pytest.mark.parametrize("size", [1, 2, 3, 4, 5, 6])
def test_interval_is_that_of_all_resamples(size):
    """Against the definition: every one of n ** n resamples, counted."""
    values = [float(2**place) for place in range(size)]
    medians = sorted(median(draw) for draw in itertools.product(values, repeat=size))
    got = interval(values)
    # Where the cumulated share meets 2.5 % exactly, rounding may take either neighbour.
    tail = 0.025 * len(medians)
    assert got.low in {medians[math.ceil(tail) - 1], medians[math.floor(tail)]}
    assert got.high in {medians[-math.ceil(tail)], medians[-math.floor(tail) - 1]}


def test_interval_of_nothing_and_of_a_constant():
    assert interval([5.0] * 4) == Interval(5.0, 5.0, 5.0)
    with pytest.raises(ValueError, match="no samples"):
        interval([])


def test_interval_of_a_long_run_is_quick_and_narrow():
    source = random.Random(5)
    got = interval([source.gauss(100, 10) for _ in range(400)])
    assert 97 < got.low < 100 < got.high < 103


def test_interval_covers_the_true_median_about_as_often_as_it_says():
    source = random.Random(42)
    trials = 400
    hits = 0
    for _ in range(trials):
        got = interval([source.lognormvariate(0, 0.3) for _ in range(12)])
        hits += got.low <= 1.0 <= got.high
    # The percentile bootstrap of a median of 12 covers about 95 % (binomial error: 1.1 %).
    assert 0.91 <= hits / trials <= 0.99


def test_interval_does_not_cover_a_far_value():
    got = interval([1.10, 1.08, 1.12, 1.09, 1.11, 1.07, 1.10, 1.13])
    assert got.low > 1.05


@given(samples)
def test_ratio_of_a_mode_with_itself_is_one(values):
    assert ratios(values, values) == [1.0] * len(values)


def test_ratios_are_paired_by_round_and_skip_what_is_missing():
    # The machine drifted by a factor of four; inside each round the ratio is 2.
    assert ratios([2.0, 4.0, 8.0], [1.0, 2.0, 4.0]) == [2.0, 2.0, 2.0]
    assert ratios([2.0, None, 6.0, 1.0], [1.0, 2.0, None, 0.0]) == [2.0]
    with pytest.raises(ValueError, match=r"shorter|longer"):
        ratios([1.0], [1.0, 2.0])


def test_spread_counts_silent_workers():
    assert spread([50, 50], 2) == 0
    assert spread([100], 2) == pytest.approx(1.0)
    assert spread([100], 8) == pytest.approx(math.sqrt(7))
    assert spread([60, 40], 2) == pytest.approx(0.2)
    assert spread([], 2) is None


@given(st.lists(st.integers(0, 10**6), min_size=1, max_size=32))
def test_spread_is_bounded_by_all_on_one(counts):
    got = spread(counts, len(counts))
    assert got is None or 0 <= got <= math.sqrt(len(counts) - 1) + 1e-9


@pytest.mark.parametrize(
    ("ratio", "words"),
    [
        (Interval(1.08, 1.02, 1.15), "8 % more answers than stock (95 % interval +2 % to +15 %)"),
        (Interval(0.9, 0.8, 0.95), "10 % fewer answers than stock"),
        (Interval(1.2, 0.99, 1.3), "no measurable difference in answers from stock"),
        (Interval(1.0, 1.0, 1.0), "no measurable difference in answers from stock"),
        (Interval(None, None, None), "an unmeasured difference in answers from stock"),
    ],
)
def test_difference_claims_only_what_the_interval_shows(ratio, words):
    assert difference(ratio, "answers", "stock", "fewer").startswith(words)
