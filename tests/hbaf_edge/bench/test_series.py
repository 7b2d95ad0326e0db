"""What a row of measurements says, and when it is called unsteady."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from hbaf_edge.bench.series import Series, in_turn, ratio

TIMES = st.lists(st.floats(0.1, 1e4), min_size=1, max_size=400)


@given(TIMES)
def test_percentiles_are_ordered_and_shown_only_where_there_are_enough(values):
    s = Series.of(values)
    assert s.p50 <= s.most == max(values)
    assert (s.low is None) == (s.high is None) == (len(values) < 6)
    assert s.low is None or s.low <= s.high <= s.most
    assert len(values) >= 60 or s.low is None or s.low <= s.p50 <= s.high
    assert (s.p90 is None) == (len(values) < 29)
    assert (s.p99 is None) == (len(values) < 299)
    assert s.p99 is None or s.p50 <= s.p90 <= s.p99 <= s.most


@pytest.mark.parametrize("n", [6, 11, 41, 59, 101, 301])
def test_the_interval_covers_the_median_nineteen_times_in_twenty(n):
    rng = np.random.default_rng(0)
    drawn = [Series.of(rng.exponential(size=n)) for _ in range(2000)]
    assert np.mean([s.low <= np.log(2) <= s.high for s in drawn]) > 0.94


def test_a_machine_that_changes_slowly_widens_the_interval():
    rng = np.random.default_rng(0)
    steady, slow = rng.normal(10, 0.1, 300), rng.normal(10, 0.1, 300) + np.sin(np.arange(300) / 40)
    widths = [s.high - s.low for s in map(Series.of, (steady, slow))]
    assert widths[1] > 5 * widths[0]


def test_a_median_of_nothing_is_refused():
    with pytest.raises(ValueError, match="no measurements"):
        Series.of([])


@pytest.mark.parametrize(
    ("values", "said"),
    [
        ([10.0] * 40, ""),
        ([10.0] * 38 + [80.0, 90.0], ""),  # outliers are what percentiles are for
        ([10.0, 20.0] * 20, "varies by 33 %"),
        ([10.0] * 20 + [13.0] * 20, "slower by 30 % at its end"),
    ],
)
def test_unsteady_runs_are_named(values, said):
    found = Series.of(values).unsteady()
    assert said in found
    assert bool(found) == bool(said)


def test_a_ratio_of_sides_that_took_turns_does_not_see_what_slows_both():
    slowed = np.linspace(1, 10, 50)
    times = ratio(list(3 * slowed), list(slowed))
    assert ratio([3.0] * 5, [1.0] * 5) == {"p50": 3.0, "low": None, "high": None}, "too few to know"
    assert times["p50"] == pytest.approx(3)
    assert times["low"] == pytest.approx(times["high"])


def test_sides_take_turns_and_the_first_round_is_thrown_away():
    seen, steps = [], []
    sides = {name: (lambda name=name: seen.append(name) or float(len(seen))) for name in "ab"}
    assert in_turn(2, sides, lambda: steps.append(0)) == {"a": [3.0, 5.0], "b": [4.0, 6.0]}
    assert seen == list("ababab")
    assert len(steps) == 3
