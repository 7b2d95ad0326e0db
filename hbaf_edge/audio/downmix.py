"""Several channels -> one, including microphones in opposite phase, whose mean would cancel."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from hbaf_edge.audio.samples import MAX_CHANNELS, MIN_SECONDS, SILENCE_PEAK, Samples, check_values

CANCELLED = 0.1  # the channels cancel if the mix has less than this share of the amplitude of unrelated channels' mix


class Downmix:
    """Mix channels to mono. If they cancel each other, as microphones in opposite phase do, use the loudest channel.

    Audio may be fed in parts. The result is the mean of the channels until 0.1 s of audible samples show that the mean
    cancels; from then on it is one channel. After 1 s of audible samples that do not cancel, it stays the mean.

    >>> x = np.sin(np.arange(8_000) / 9)
    >>> mix = Downmix(16_000)
    >>> float(abs(mix(np.stack([x, -x], 1)) - x).max()) < 1e-6, mix.warnings
    (True, ('the channels cancel each other when mixed (opposite phase): channel 1 of 2 was used',))
    """

    def __init__(self, rate: int) -> None:
        # Audible samples that a decision needs, and after which the mean stays.
        self._min_audible, self._max_audible = MIN_SECONDS * rate, rate
        self._audible = self._counted = 0  # samples louder than silence, and all samples
        self._channels = 0
        self._selected: int | None = None
        self._sums = np.zeros((2, MAX_CHANNELS + 1))  # of x and x², for each channel and, last, the mix

    @property
    def warnings(self) -> tuple[str, ...]:
        """Warnings for the caller."""
        if self._selected is None:
            return ()
        which = f"channel {self._selected + 1} of {self._channels}"
        return (f"the channels cancel each other when mixed (opposite phase): {which} was used",)

    def __call__(self, block: NDArray[Any]) -> Samples:
        """(samples, channels) in -1..1 -> (samples,) float32."""
        check_values(block)
        samples, channels = block.shape
        if samples == 0:
            return np.zeros(0, np.float32)
        mix = block.mean(axis=1, dtype=np.float64)
        if channels > 1 and self._selected is None and self._audible < self._max_audible:
            self._detect_cancellation(block, mix)
        if self._selected is not None and self._selected < channels:
            mix = block[:, self._selected]
        return np.asarray(mix, np.float32)

    def _detect_cancellation(self, block: NDArray[Any], mix: NDArray[Any]) -> None:
        """Select the loudest channel if the mix has far less power than the channels.

        Example: two equal microphones of power 1. In phase the mix has power 1, unrelated 1/2, in opposite phase 0.
        """
        samples, channels = block.shape
        if channels != self._channels:  # another microphone: the old sums do not describe it
            self._channels, self._audible, self._counted = channels, 0, 0
            self._sums = np.zeros((2, MAX_CHANNELS + 1))
        columns = np.concatenate([block.astype(np.float64), mix[:, None]], axis=1)
        self._sums[:, : channels + 1] += columns.sum(axis=0), np.square(columns).sum(axis=0)
        self._counted += samples
        mean, mean_square = self._sums[:, : channels + 1] / self._counted
        self._audible += int((np.abs(block - mean[:channels]) >= SILENCE_PEAK).any(axis=1).sum())
        power = np.maximum(0, mean_square - np.square(mean))  # the variance, so that constant offsets do not count
        unrelated = power[:channels].sum() / channels**2  # power of the mix if the channels were unrelated
        if self._audible >= self._min_audible and power[channels] < CANCELLED**2 * unrelated:
            self._selected = int(power[:channels].argmax())
