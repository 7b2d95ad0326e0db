"""Statistics of measurements, and when a run is unsteady."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from hbaf_edge.bench.series import Series, interleave, ratio

TIMES = st.lists(st.floats(0.1, 1e4), min_size=1, max_size=400)


@given(TIMES)
def test_percentiles_are_ordered_and_none_when_there_are_too_few_samples(values):
    s = Series.of(values)
    assert s.p50 <= s.most == max(values)
    assert (s.low is None) == (s.high is None) == (len(values) < 6)
    assert s.low is None or s.low <= s.high <= s.most
    assert len(values) >= 60 or s.low is None or s.low <= s.p50 <= s.high
    assert (s.p90 is None) == (len(values) < 29)
    assert (s.p99 is None) == (len(values) < 299)
    assert s.p99 is None or s.p50 <= s.p90 <= s.p99 <= s.most


@pytest.mark.parametrize("n", [6, 11, 41, 59, 101, 301])
def test_interval_contains_the_median_in_95_percent_of_runs(n):
    rng = np.random.default_rng(0)
    runs = [Series.of(rng.exponential(size=n)) for _ in range(2000)]
    assert np.mean([s.low <= np.log(2) <= s.high for s in runs]) > 0.94


def test_slow_changes_widen_the_interval():
    rng = np.random.default_rng(0)
    steady, slow = rng.normal(10, 0.1, 300), rng.normal(10, 0.1, 300) + np.sin(np.arange(300) / 40)
    widths = [s.high - s.low for s in map(Series.of, (steady, slow))]
    assert widths[1] > 5 * widths[0]


def test_series_is_rejected_when_it_is_empty():
    with pytest.raises(ValueError, match="no measurements"):
        Series.of([])


@pytest.mark.parametrize(
    ("values", "reason"),
    [
        ([10.0] * 40, ""),
        ([10.0] * 38 + [80.0, 90.0], ""),  # outliers only affect percentiles
        ([10.0, 20.0] * 20, "varies by 33 %"),
        ([10.0] * 20 + [13.0] * 20, "slower by 30 % at the end"),
    ],
)
def test_unsteady_run_has_a_reason(values, reason):
    result = Series.of(values).unsteady_reason()
    assert reason in result
    assert bool(result) == bool(reason)


def test_ratio_is_unaffected_when_both_candidates_slow_down():
    slowdown = np.linspace(1, 10, 50)
    times = ratio(list(3 * slowdown), list(slowdown))
    assert ratio([3.0] * 5, [1.0] * 5) == {"p50": 3.0, "low": None, "high": None}, "too few samples"
    assert times["p50"] == pytest.approx(3)
    assert times["low"] == pytest.approx(times["high"])


def test_candidates_are_interleaved_and_the_first_round_is_discarded():
    calls, steps = [], []
    candidates = {name: (lambda name=name: calls.append(name) or float(len(calls))) for name in "ab"}
    assert interleave(2, candidates, lambda: steps.append(0)) == {"a": [3.0, 5.0], "b": [4.0, 6.0]}
    assert calls == list("ababab")
    assert len(steps) == 3
