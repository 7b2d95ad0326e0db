"""Histograms: exact extremes, no counts lost while they grow, and ranges as their methods define them."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from export.histogram import METHODS, Histogram


def histogram_of(*arrays, by_channel=False):
    histogram = Histogram(by_channel)
    for array in arrays:
        histogram.add(np.asarray(array, np.float32))
    return histogram


@given(seed=st.integers(0, 999), scale=st.floats(1e-4, 1e4), pieces=st.integers(1, 5))
def test_histogram_does_not_depend_on_order_or_pieces(seed, scale, pieces):
    values = np.random.default_rng(seed).standard_normal(500).astype(np.float32) * np.float32(scale)
    at_once, in_pieces = histogram_of(np.sort(values)), histogram_of(*np.array_split(values, pieces))
    assert (at_once.low, at_once.high, at_once.limit) == (in_pieces.low, in_pieces.high, in_pieces.limit)
    assert at_once.count == in_pieces.count == 500
    # A value at the edge of a bin may move by one bin where halving rounds in float32.
    assert np.abs(np.cumsum(at_once.counts) - np.cumsum(in_pieces.counts)).max() <= 2
    for method in METHODS:
        low, high = in_pieces.range(method)
        assert in_pieces.low <= low <= 0 <= high <= max(in_pieces.high, 0)


def test_minmax_is_exact_and_percentile_ignores_outliers():
    histogram = histogram_of(np.concatenate([np.linspace(-1, 1, 100_000), [50.0]]))
    assert histogram.range("minmax") == (-1.0, 50.0)
    low, high = histogram.range("percentile")
    assert high < 1.1
    assert low == pytest.approx(-1, abs=0.05)


def test_mse_range_has_the_smallest_squared_error():
    rng = np.random.default_rng(0)
    values = np.concatenate([rng.standard_normal(50_000), 3 * rng.standard_normal(300)]).astype(np.float32)
    histogram = histogram_of(values)

    def error(low, high):
        step = (high - low) / 255
        rounded = np.clip(np.rint((values - low) / step), 0, 255) * step + low
        return np.square(values - rounded).mean()

    errors = {method: error(*histogram.range(method)) for method in METHODS}
    assert errors["mse"] == min(errors.values())
    assert errors["mse"] < errors["minmax"]


def test_channel_statistics_equal_those_of_numpy():
    a, b = np.random.default_rng(0).standard_normal((2, 3, 5, 4)).astype(np.float32)
    stats, both = histogram_of(a, b, by_channel=True).channels(), np.concatenate([a, b]).reshape(-1, 4)
    np.testing.assert_allclose(stats["low"], both.min(0), rtol=1e-6)
    np.testing.assert_allclose(stats["high"], both.max(0), rtol=1e-6)
    np.testing.assert_allclose(stats["mean"], both.mean(0), rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_add_raises_and_changes_nothing_when_a_value_is_not_finite(bad):
    histogram = histogram_of([1.0, 2.0])
    before = vars(histogram).copy()
    with pytest.raises(ValueError, match="not finite"):
        histogram.add(np.array([1.0, bad], np.float32))
    assert vars(histogram) == before
    assert Histogram().range("mse") == (0.0, 0.0)
