"""Histograms: exact extremes, nothing lost as they grow, and ranges that do what their method says."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from export.histogram import METHODS, Histogram


def seen(*arrays, by_channel=False):
    made = Histogram(by_channel)
    for array in arrays:
        made.add(np.asarray(array, np.float32))
    return made


@given(seed=st.integers(0, 999), scale=st.floats(1e-4, 1e4), pieces=st.integers(1, 5))
def test_it_does_not_matter_in_which_pieces_values_come(seed, scale, pieces):
    values = np.random.default_rng(seed).standard_normal(500).astype(np.float32) * np.float32(scale)
    whole, parts = seen(np.sort(values)), seen(*np.array_split(values, pieces))
    assert (whole.low, whole.high, whole.reach) == (parts.low, parts.high, parts.reach)
    assert whole.count == parts.count == 500
    # A value may change its bin by one where halving rounds: in float32, at an edge.
    assert np.abs(np.cumsum(whole.counts) - np.cumsum(parts.counts)).max() <= 2
    for method in METHODS:
        low, high = parts.range(method)
        assert parts.low <= low <= 0 <= high <= max(parts.high, 0)


def test_minmax_is_exact_and_percentile_drops_the_few_far_ones():
    values = np.concatenate([np.linspace(-1, 1, 100_000), [50.0]])
    found = seen(values)
    assert found.range("minmax") == (-1.0, 50.0)
    low, high = found.range("percentile")
    assert high < 1.1
    assert low == pytest.approx(-1, abs=0.05)


def test_mse_costs_least_of_all_ranges():
    rng = np.random.default_rng(0)
    values = np.concatenate([rng.standard_normal(50_000), 3 * rng.standard_normal(300)]).astype(np.float32)
    found = seen(values)

    def error(low, high):
        step = (high - low) / 255
        rounded = np.clip(np.rint((values - low) / step), 0, 255) * step + low
        return np.square(values - rounded).mean()

    errors = {method: error(*found.range(method)) for method in METHODS}
    assert errors["mse"] == min(errors.values())
    assert errors["mse"] < errors["minmax"]


def test_channels_are_those_of_numpy():
    a, b = np.random.default_rng(0).standard_normal((2, 3, 5, 4)).astype(np.float32)
    found, both = seen(a, b, by_channel=True).channels(), np.concatenate([a, b]).reshape(-1, 4)
    np.testing.assert_allclose(found["low"], both.min(0), rtol=1e-6)
    np.testing.assert_allclose(found["high"], both.max(0), rtol=1e-6)
    np.testing.assert_allclose(found["mean"], both.mean(0), rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_what_is_not_finite_is_refused_and_changes_nothing(bad):
    found = seen([1.0, 2.0])
    before = vars(found).copy()
    with pytest.raises(ValueError, match="not finite"):
        found.add(np.array([1.0, bad], np.float32))
    assert vars(found) == before
    assert Histogram().range("mse") == (0.0, 0.0)
