"""What a row of measurements says: percentiles, how sure the median is, and whether the machine held still."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple, TypeVar

import numpy as np
from numpy.typing import NDArray

UNSTEADY = 0.25  # coefficient of variation of the middle nine tenths, above which a run is called unsteady
SLOWED = 1.1  # last third against first third, where their middle halves have parted
NEEDED = {90: 29, 99: 299}  # percentile: samples of which the largest lies above it with 95 % probability
LEAST = 6  # samples below which no interval holds the median with 95 % probability
BLOCKS = 10
Result = TypeVar("Result")


class Series(NamedTuple):
    """Measurements of one thing.

    Attributes:
        n: how many.
        p50, p90, p99: percentiles; None where there are too few samples for one.
        most: the largest.
        low, high: the median lies between them with 95 % confidence; None below six samples. From sixty on they are
            those of the medians of ten blocks, so that slow changes of the machine widen them.
        spread: coefficient of variation of the middle nine tenths.
        drift: lower quartile of the last third, divided by the upper one of the first: above 1 where they have parted.
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
        """Of values in the order they were measured.

        Raises:
            ValueError: there are none.

        >>> s = Series.of([1.0, 2.0, 3.0, 4.0, 5.0])
        >>> s.p50, s.p90, s.most
        (3.0, None, 5.0)
        """
        if not len(values):
            raise ValueError("there are no measurements")
        x, n = np.asarray(values, np.float64), len(values)
        ordered = np.sort(x)
        third, cut = max(1, n // 3), ordered[n // 20 : n - n // 20]
        low, high = interval(x)
        p90, p99 = (float(np.percentile(x, q)) if n >= least else None for q, least in NEEDED.items())
        return cls(
            n, float(np.median(x)), p90, p99, float(ordered[-1]), low, high,
            float(cut.std() / cut.mean()) if cut.mean() > 0 else 0.0,
            float(np.percentile(x[-third:], 25) / max(np.percentile(x[:third], 75), 1e-12)),
        )  # fmt: skip

    def to_json(self) -> dict[str, Any]:
        """Numbers of five digits, which is more than a machine repeats.

        >>> Series.of([1 / 3]).to_json()["p50"]
        0.33333
        """
        values: dict[str, Any] = {n: value if n == "n" else rounded(value) for n, value in self._asdict().items()}
        return {**values, "unsteady": self.unsteady()}

    def unsteady(self) -> str:
        """Why not to trust it; empty where nothing speaks against it.

        >>> Series.of([1.0] * 20 + [3.0] * 20).unsteady()
        'slower by 200 % at its end than at its beginning: the machine heats up, or another program began'
        """
        if self.n < 9:
            return ""
        if self.drift > SLOWED:
            slower = f"slower by {100 * (self.drift - 1):.0f} %"
            return f"{slower} at its end than at its beginning: the machine heats up, or another program began"
        if self.spread > UNSTEADY:
            return f"varies by {100 * self.spread:.0f} % (coefficient of variation): other programs run beside"
        return ""


def rounded(value: float | None) -> float | None:
    """Five significant digits.

    >>> rounded(1234.5678), rounded(None)
    (1234.6, None)
    """
    return None if value is None else float(f"{value:.5g}")


def interval(values: NDArray[np.float64]) -> tuple[float | None, float | None]:
    """What the median lies between with 95 % confidence, by the sign test; (None, None) below six values."""
    if len(values) >= BLOCKS * LEAST:
        values = np.array([np.median(block) for block in np.array_split(values, BLOCKS)])
    n = len(values)
    if n < LEAST:
        return None, None
    below, ordered = max(0, int(n / 2 - 0.98 * np.sqrt(n)) - 1), np.sort(values)
    return float(ordered[below]), float(ordered[n - 1 - below])


def ratio(above: Sequence[float], below: Sequence[float]) -> dict[str, Any]:
    """Medians of two sides that took turns, divided, and what the ratio lies between with 95 % confidence.

    The interval is that of the median of the single rounds' ratios, so that what slowed both sides cancels.

    >>> ratio([2.0, 4.0, 6.0], [1.0, 2.0, 3.0])["p50"]
    2.0
    """
    low, high = interval(np.array([a / b for a, b in zip(above, below)]))
    return {"p50": round(float(np.median(above) / np.median(below)), 4), "low": low, "high": high}


def single(value: float) -> Mapping[str, Any]:
    """A measure of one figure, without an interval."""
    return {"p50": rounded(value), "low": None, "high": None}


def timed(work: Callable[[], object]) -> float:
    """Milliseconds of a call."""
    start = time.perf_counter()
    work()
    return (time.perf_counter() - start) * 1e3


def in_turn(
    repeats: int, sides: Mapping[str, Callable[[], Result]], step: Callable[[], object] = lambda: None
) -> dict[str, list[Result]]:
    """What each side returns, the sides interleaved; the first round is thrown away.

    Args:
        repeats: rounds.
        sides: by name.
        step: called after each round, for a progress bar.
    """
    results: dict[str, list[Result]] = {name: [] for name in sides}
    for _ in range(repeats + 1):
        for name, side in sides.items():
            results[name].append(side())
        step()
    return {name: values[1:] for name, values in results.items()}


def by_stage(timings: Sequence[Mapping[str, float]]) -> dict[str, Series]:
    """Milliseconds of each stage of several turns.

    >>> by_stage([{"text": 1.0, "total": 3.0}, {"text": 2.0, "total": 4.0}])["total"].p50
    3.5
    """
    return {stage: Series.of([timing[stage] for timing in timings]) for stage in timings[0]}
