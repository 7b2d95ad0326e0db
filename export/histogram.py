"""A histogram of a tensor's values in constant memory, and the range that an INT8 grid should cover.

When a value outside of the histogram comes, its range doubles: two bins become one and no count is lost. Data can
therefore be added in any number of pieces. All calibration methods read the same histogram.
"""

from __future__ import annotations

from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

BINS = 4096  # over −limit … limit
Method = Literal["minmax", "percentile", "mse"]
METHODS: tuple[Method, ...] = ("minmax", "percentile", "mse")
PERCENTILE_SHARE = 0.9999  # share of the values that the percentile method covers
LEVELS = 255
FACTORS = [0.2 + 0.02 * n for n in range(41)]  # candidate factors by which the mse method shrinks an end


class Histogram:
    """Counts of values over −limit … limit, exact extremes, and extremes and mean of every channel.

    Args:
        by_channel: whether to keep statistics of each channel; channels are the last axis, with a constant size.

    >>> histogram = Histogram()
    >>> for _ in range(3):
    ...     histogram.add(np.linspace(-1, 4, 5001, dtype=np.float32))
    >>> histogram.count, histogram.low, histogram.high, [round(x, 2) for x in histogram.range("percentile")]
    (15003, -1.0, 4.0, [-1.0, 4.0])
    """

    def __init__(self, by_channel: bool = False) -> None:
        self.counts = np.zeros(BINS, np.int64)
        self.limit = 2.0**-10
        self.low, self.high = np.inf, -np.inf
        self.by_channel = by_channel
        self.rows = 0
        self._channels: NDArray[np.float64] | None = None  # low, high and sum of each channel

    @property
    def count(self) -> int:
        """Number of values added so far."""
        return int(self.counts.sum())

    def add(self, values: NDArray[Any]) -> None:
        """Count values of any shape.

        Raises:
            ValueError: a value is NaN or infinite.
        """
        low, high = float(values.min()), float(values.max())
        if not np.isfinite([low, high]).all():
            raise ValueError("values that are not finite")
        self.low, self.high = min(self.low, low), max(self.high, high)
        if self.by_channel:
            self._add_channels(values.reshape(-1, values.shape[-1]))
        while self.limit < max(-low, high):
            self._double_limit()
        bins = ((values.ravel() + self.limit) * (BINS / (2 * self.limit))).astype(np.int32)
        self.counts += np.bincount(np.minimum(bins, BINS - 1, out=bins), minlength=BINS)

    def _add_channels(self, rows: NDArray[Any]) -> None:
        new = np.stack([rows.min(0), rows.max(0), rows.sum(0, dtype=np.float64)])
        old = new if self._channels is None else self._channels
        total = new[2] if self._channels is None else old[2] + new[2]
        self._channels = np.stack([np.minimum(old[0], new[0]), np.maximum(old[1], new[1]), total])
        self.rows += len(rows)

    def channels(self) -> dict[str, list[float]]:
        """Smallest, largest and mean value of each channel, rounded to seven digits."""
        assert self._channels is not None
        low, high, total = self._channels
        stats = {"low": low, "high": high, "mean": total / self.rows}
        return {name: [float(f"{x:.7g}") for x in values] for name, values in stats.items()}

    def range(self, method: Method) -> tuple[float, float]:
        """The range (low, high) that the INT8 grid should cover. It contains zero and no more than the values seen."""
        if not self.count:
            return 0.0, 0.0
        ranges = {"minmax": lambda: (self.low, self.high), "percentile": self._percentile, "mse": self._mse}
        low, high = ranges[method]()
        return min(max(low, self.low), 0.0), max(min(high, self.high), 0.0)

    def _double_limit(self) -> None:
        # Bins 2i and 2i + 1 become bin BINS / 4 + i: the old range is the middle half of the new one.
        pairs = self.counts.reshape(-1, 2).sum(1)
        self.counts = np.zeros_like(self.counts)
        self.counts[BINS // 4 : 3 * BINS // 4] = pairs
        self.limit *= 2

    def _bin_centres(self) -> NDArray[np.floating[Any]]:
        return (np.arange(BINS) + 0.5) * (2 * self.limit / BINS) - self.limit

    def _percentile(self) -> tuple[float, float]:
        """The range of the middle values; half of the values to leave out are cut off at either end."""
        cut = (1 - PERCENTILE_SHARE) / 2 * self.count
        cumulative, centres = np.cumsum(self.counts), self._bin_centres()
        ends = np.searchsorted(cumulative, np.array([cut, self.count - cut]))
        return float(centres[ends[0]]), float(centres[min(int(ends[1]), BINS - 1)])

    def _mse(self) -> tuple[float, float]:
        """The range of least squared error. The two ends are shrunk in turn, twice."""
        low, high = self.low, self.high
        for _ in range(2):
            high *= FACTORS[int(np.argmin([self._squared_error(low, high * f) for f in FACTORS]))]
            low *= FACTORS[int(np.argmin([self._squared_error(low * f, high) for f in FACTORS]))]
        return low, high

    def _squared_error(self, low: float, high: float) -> float:
        """Squared error of clipping to a range plus that of rounding to a uniform grid, step² / 12 per value."""
        low, high = min(low, 0.0), max(high, 0.0)
        centres = self._bin_centres()
        step = max(high - low, 1e-12) / LEVELS
        clipped = centres - np.clip(centres, low, high)
        return float((self.counts * (clipped**2 + step**2 / 12)).sum())
