"""Statistics of repeated measurements: percentiles, the confidence interval of the median, and drift."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple, TypeVar

import numpy as np
from numpy.typing import NDArray

UNSTEADY = 0.25  # coefficient of variation of the middle 90 %; a run above it is unsteady
MAX_DRIFT = 1.1  # see `Series.drift`; a run above it is unsteady
MIN_SAMPLES = {90: 29, 99: 299}  # percentile: with so many samples, one exceeds it with 95 % probability
MIN_FOR_INTERVAL = 6  # with fewer samples no interval contains the median with 95 % probability
BLOCKS = 10
Result = TypeVar("Result")


class Series(NamedTuple):
    """Statistics of one measured quantity.

    Attributes:
        n: number of samples.
        p50: median.
        p90: 90th percentile; None below 29 samples.
        p99: 99th percentile; None below 299 samples.
        most: maximum.
        low: lower bound of the median's 95 % confidence interval; None below 6 samples. From 60 samples on, the
            interval is that of the medians of ten blocks, so that slow changes of the machine widen it.
        high: upper bound of that interval.
        spread: coefficient of variation of the middle 90 %.
        drift: lower quartile of the last third ÷ upper quartile of the first third; above 1 if they do not overlap.
    """

    n: int
    p50: float
    p90: float | None
    p99: float | None
    most: float
    low: float | None
    high: float | None
    spread: float
    drift: float

    @classmethod
    def of(cls, values: Sequence[float]) -> Series:
        """Compute the statistics of values in the order of measurement.

        Raises:
            ValueError: `values` is empty.

        >>> s = Series.of([1.0, 2.0, 3.0, 4.0, 5.0])
        >>> s.p50, s.p90, s.most
        (3.0, None, 5.0)
        """
        if not len(values):
            raise ValueError("there are no measurements")
        x, n = np.asarray(values, np.float64), len(values)
        ordered = np.sort(x)
        third, middle = max(1, n // 3), ordered[n // 20 : n - n // 20]
        low, high = interval(x)
        p90, p99 = (float(np.percentile(x, q)) if n >= minimum else None for q, minimum in MIN_SAMPLES.items())
        return cls(
            n, float(np.median(x)), p90, p99, float(ordered[-1]), low, high,
            float(middle.std() / middle.mean()) if middle.mean() > 0 else 0.0,
            float(np.percentile(x[-third:], 25) / max(np.percentile(x[:third], 75), 1e-12)),
        )  # fmt: skip

    def to_json(self) -> dict[str, Any]:
        """The statistics with five significant digits.

        >>> Series.of([1 / 3]).to_json()["p50"]
        0.33333
        """
        values: dict[str, Any] = {n: value if n == "n" else rounded(value) for n, value in self._asdict().items()}
        return {**values, "unsteady": self.unsteady_reason()}

    def unsteady_reason(self) -> str:
        """Why the values are not reliable; empty if they are.

        >>> Series.of([1.0] * 20 + [3.0] * 20).unsteady_reason()
        'slower by 200 % at the end than at the start: the machine heats up, or another program started'
        """
        if self.n < 9:
            return ""
        if self.drift > MAX_DRIFT:
            slower = f"slower by {100 * (self.drift - 1):.0f} %"
            return f"{slower} at the end than at the start: the machine heats up, or another program started"
        if self.spread > UNSTEADY:
            return f"varies by {100 * self.spread:.0f} % (coefficient of variation): other programs are running"
        return ""


def rounded(value: float | None) -> float | None:
    """Round to five significant digits.

    >>> rounded(1234.5678), rounded(None)
    (1234.6, None)
    """
    return None if value is None else float(f"{value:.5g}")


def interval(values: NDArray[np.float64]) -> tuple[float | None, float | None]:
    """The 95 % confidence interval of the median, by the sign test; (None, None) below six values.

    Example: with 20 values, n / 2 - 0.98 √n is 5.6, so the interval goes from the 5th smallest to the 5th largest.
    """
    if len(values) >= BLOCKS * MIN_FOR_INTERVAL:
        values = np.array([np.median(block) for block in np.array_split(values, BLOCKS)])
    n = len(values)
    if n < MIN_FOR_INTERVAL:
        return None, None
    below, ordered = max(0, int(n / 2 - 0.98 * np.sqrt(n)) - 1), np.sort(values)
    return float(ordered[below]), float(ordered[n - 1 - below])


def ratio(numerator: Sequence[float], denominator: Sequence[float]) -> dict[str, Any]:
    """Ratio of the medians of two interleaved candidates, with its 95 % confidence interval.

    The interval is that of the median of each round's ratio, so that a slowdown of both candidates cancels.

    >>> ratio([2.0, 4.0, 6.0], [1.0, 2.0, 3.0])["p50"]
    2.0
    """
    low, high = interval(np.array([a / b for a, b in zip(numerator, denominator)]))
    return {"p50": round(float(np.median(numerator) / np.median(denominator)), 4), "low": low, "high": high}


def single_value(value: float) -> Mapping[str, Any]:
    """A measure of a single value, without an interval."""
    return {"p50": rounded(value), "low": None, "high": None}


def time_ms(function: Callable[[], object]) -> float:
    """Return the milliseconds of a call."""
    start = time.perf_counter()
    function()
    return (time.perf_counter() - start) * 1e3


def interleave(
    repeats: int, candidates: Mapping[str, Callable[[], Result]], step: Callable[[], object] = lambda: None
) -> dict[str, list[Result]]:
    """Call all candidates once per round and return their results by name, without those of the first round.

    Interleaving lets each candidate run with cold caches, and spreads changes of the machine over all of them.

    Args:
        repeats: number of rounds.
        candidates: functions by name.
        step: called after each round, for a progress bar.
    """
    results: dict[str, list[Result]] = {name: [] for name in candidates}
    for _ in range(repeats + 1):
        for name, candidate in candidates.items():
            results[name].append(candidate())
        step()
    return {name: values[1:] for name, values in results.items()}


def by_stage(timings: Sequence[Mapping[str, float]]) -> dict[str, Series]:
    """Statistics of each stage's milliseconds over several turns.

    >>> by_stage([{"text": 1.0, "total": 3.0}, {"text": 2.0, "total": 4.0}])["total"].p50
    3.5
    """
    return {stage: Series.of([timing[stage] for timing in timings]) for stage in timings[0]}
