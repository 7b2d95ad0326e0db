"""Track silence in audio that is still arriving: where the last audible sample was, and why all of it is silent."""

from __future__ import annotations

from hbaf_edge.audio.samples import MAX_SECONDS, SILENCE_PEAK, Samples, silence_reason

HANGOVER = 1.0  # seconds of silence after which the caller stores the features so far, in case the silence continues


class SilenceTracker:
    """Silence of one turn, in frames at the turn's own rate.

    Attributes:
        frames: frames fed so far.
        audible: frames fed up to the end of the last chunk that was not silent.

    >>> import numpy as np
    >>> tracker = SilenceTracker()
    >>> tracker.feed(np.full(8_000, 0.01, np.float32), 16_000, 0), tracker.silence
    (False, 'audio is a constant offset of 0.0100, as from a muted microphone')
    """

    def __init__(self) -> None:
        self.frames = 0
        self.audible = 0
        self._low, self._high = float("inf"), float("-inf")
        self._last: float | None = None  # last sample of the previous chunk: a step from it is audible too
        self._int32_peak = 0

    def feed(self, chunk: Samples, rate: int, int32_peak: int) -> bool:
        """Take the next chunk (samples,) and its `int32_peak`.

        Returns:
            True if the silence after audible samples has reached one second with this chunk.
        """
        if not len(chunk):
            return False
        silent_before = self.frames - self.audible
        self.frames += len(chunk)
        low, high = float(chunk.min()), float(chunk.max())
        self._low, self._high = min(self._low, low), max(self._high, high)
        self._int32_peak = max(self._int32_peak, int32_peak)
        last = low if self._last is None else self._last
        if max(high, last) - min(low, last) >= 2 * SILENCE_PEAK:
            self.audible = self.frames
        self._last = float(chunk[-1])
        return self.audible > 0 and silent_before < HANGOVER * rate <= self.frames - self.audible

    @property
    def silence(self) -> str:
        """Why all of it is silent; empty if something is audible."""
        return silence_reason(self._low, self._high, self._int32_peak) if self.frames else ""

    def ends_in_silence(self, rate: int) -> bool:
        """Whether the last 20 s are silent although something before them was audible."""
        return 0 < self.audible < self.frames - MAX_SECONDS * rate
