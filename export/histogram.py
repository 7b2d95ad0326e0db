"""What a tensor's values were, in bounded memory, and the range that an INT8 grid should cover.

A histogram doubles its reach when a larger value comes (two bins become one, nothing is lost), so data can be seen in
pieces, in any number. All methods read the same histogram.
"""

from __future__ import annotations

from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

BINS = 4096  # over −reach … reach
Method = Literal["minmax", "percentile", "mse"]
METHODS: tuple[Method, ...] = ("minmax", "percentile", "mse")
KEPT = 0.9999  # of the values, by the percentile method
LEVELS = 255
FACTORS = [0.2 + 0.02 * n for n in range(41)]  # of an end of the range, among which least squares chooses


class Histogram:
    """Counts over −reach … reach, the exact extremes, and those and the mean of every channel.

    Args:
        by_channel: whether the last axis is channels, always as many.

    >>> seen = Histogram()
    >>> for _ in range(3):
    ...     seen.add(np.linspace(-1, 4, 5001, dtype=np.float32))
    >>> seen.count, seen.low, seen.high, [round(x, 2) for x in seen.range("percentile")]
    (15003, -1.0, 4.0, [-1.0, 4.0])
    """

    def __init__(self, by_channel: bool = False) -> None:
        self.counts = np.zeros(BINS, np.int64)
        self.reach = 2.0**-10
        self.low, self.high = np.inf, -np.inf
        self.by_channel = by_channel
        self.rows = 0
        self._channels: NDArray[np.float64] | None = None  # low, high and sum of each

    @property
    def count(self) -> int:
        """Values seen."""
        return int(self.counts.sum())

    def add(self, values: NDArray[Any]) -> None:
        """Count values of any shape.

        Raises:
            ValueError: some are NaN or infinite.
        """
        low, high = float(values.min()), float(values.max())
        if not np.isfinite([low, high]).all():
            raise ValueError("values that are not finite")
        self.low, self.high = min(self.low, low), max(self.high, high)
        if self.by_channel:
            self._add_channels(values.reshape(-1, values.shape[-1]))
        while self.reach < max(-low, high):
            self._double()
        places = ((values.ravel() + self.reach) * (BINS / (2 * self.reach))).astype(np.int32)
        self.counts += np.bincount(np.minimum(places, BINS - 1, out=places), minlength=BINS)

    def _add_channels(self, rows: NDArray[Any]) -> None:
        new = np.stack([rows.min(0), rows.max(0), rows.sum(0, dtype=np.float64)])
        old = new if self._channels is None else self._channels
        total = new[2] if self._channels is None else old[2] + new[2]
        self._channels = np.stack([np.minimum(old[0], new[0]), np.maximum(old[1], new[1]), total])
        self.rows += len(rows)

    def channels(self) -> dict[str, list[float]]:
        """Smallest, largest and mean value of each channel, to seven digits."""
        assert self._channels is not None
        low, high, total = self._channels
        found = {"low": low, "high": high, "mean": total / self.rows}
        return {name: [float(f"{x:.7g}") for x in values] for name, values in found.items()}

    def range(self, method: Method) -> tuple[float, float]:
        """Smallest and largest value worth a step of the grid; always within what was seen, and around zero."""
        if not self.count:
            return 0.0, 0.0
        ends = {"minmax": lambda: (self.low, self.high), "percentile": self._percentile, "mse": self._mse}
        low, high = ends[method]()
        return min(max(low, self.low), 0.0), max(min(high, self.high), 0.0)

    def _double(self) -> None:
        pairs = self.counts.reshape(-1, 2).sum(1)
        self.counts = np.zeros_like(self.counts)
        self.counts[BINS // 4 : 3 * BINS // 4] = pairs
        self.reach *= 2

    def _middles(self) -> NDArray[np.floating[Any]]:
        return (np.arange(BINS) + 0.5) * (2 * self.reach / BINS) - self.reach

    def _percentile(self) -> tuple[float, float]:
        """Without so many values at either end."""
        cut = (1 - KEPT) / 2 * self.count
        passed, middles = np.cumsum(self.counts), self._middles()
        ends = np.searchsorted(passed, np.array([cut, self.count - cut]))
        return float(middles[ends[0]]), float(middles[min(int(ends[1]), BINS - 1)])

    def _mse(self) -> tuple[float, float]:
        """The range on whose grid rounding and cutting off cost least, squared, each end shrunk by itself in turn."""
        low, high = self.low, self.high
        for _ in range(2):
            high *= FACTORS[int(np.argmin([self._cost(low, high * f) for f in FACTORS]))]
            low *= FACTORS[int(np.argmin([self._cost(low * f, high) for f in FACTORS]))]
        return low, high

    def _cost(self, low: float, high: float) -> float:
        low, high = min(low, 0.0), max(high, 0.0)
        middles = self._middles()
        step = max(high - low, 1e-12) / LEVELS
        off = middles - np.clip(middles, low, high)
        return float((self.counts * (off**2 + step**2 / 12)).sum())
