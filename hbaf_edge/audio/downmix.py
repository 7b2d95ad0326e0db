"""Several channels -> one, also where they are wired in opposite phase and would cancel each other."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from hbaf_edge.audio.samples import MAX_CHANNELS, MIN_SECONDS, SILENCE_PEAK, Samples, check_values

CANCELLED = 0.1  # a mix this far below what unrelated channels would give is channels in opposite phase


class Downmix:
    """Mixes channels to mono; where they cancel each other, as microphones in opposite phase do, the loudest is used.

    It may be fed a sound in parts. The mean is used until the parts so far show that it cancels, for which a tenth of a
    second of sound is needed; the choice of a channel then stays. After a second of sound that does not cancel, the
    mean stays.

    >>> x = np.sin(np.arange(8_000) / 9)
    >>> mix = Downmix(16_000)
    >>> float(abs(mix(np.stack([x, -x], 1)) - x).max()) < 1e-6, mix.warnings
    (True, ('the channels cancel each other when mixed (opposite phase): channel 1 of 2 was used',))
    """

    def __init__(self, rate: int) -> None:
        self._enough, self._settled = MIN_SECONDS * rate, rate  # samples above silence: to judge, and to stop judging
        self._heard = self._counted = 0  # samples above silence, and all
        self._channels = 0
        self._picked: int | None = None
        self._sums = np.zeros((2, MAX_CHANNELS + 1))  # of x and of x², for each channel and, last, for the mix

    @property
    def warnings(self) -> tuple[str, ...]:
        """What the caller should know."""
        if self._picked is None:
            return ()
        which = f"channel {self._picked + 1} of {self._channels}"
        return (f"the channels cancel each other when mixed (opposite phase): {which} was used",)

    def __call__(self, block: NDArray[Any]) -> Samples:
        """(samples, channels) in -1..1 -> (samples,) float32."""
        check_values(block)
        samples, channels = block.shape
        if samples == 0:
            return np.zeros(0, np.float32)
        mix = block.mean(axis=1, dtype=np.float64)
        if channels > 1 and self._picked is None and self._heard < self._settled:
            self._judge(block, mix)
        if self._picked is not None and self._picked < channels:
            mix = block[:, self._picked]
        return np.asarray(mix, np.float32)

    def _judge(self, block: NDArray[Any], mix: NDArray[Any]) -> None:
        samples, channels = block.shape
        if channels != self._channels:  # another microphone: what was summed says nothing of it
            self._channels, self._heard, self._counted = channels, 0, 0
            self._sums = np.zeros((2, MAX_CHANNELS + 1))
        every = np.concatenate([block.astype(np.float64), mix[:, None]], axis=1)
        self._sums[:, : channels + 1] += every.sum(axis=0), np.square(every).sum(axis=0)
        self._counted += samples
        first, second = self._sums[:, : channels + 1] / self._counted
        self._heard += int((np.abs(block - first[:channels]) >= SILENCE_PEAK).any(axis=1).sum())
        power = np.maximum(0, second - np.square(first))  # without offsets
        unrelated = power[:channels].sum() / channels**2  # what the mix of unrelated channels would have
        if self._heard >= self._enough and power[channels] < CANCELLED**2 * unrelated:
            self._picked = int(power[:channels].argmax())
