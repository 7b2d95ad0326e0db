"""How loud a sound that is still arriving has been: where it was last heard, and why nothing can be heard in it."""

from __future__ import annotations

from hbaf_edge.audio.samples import MAX_SECONDS, SILENCE_PEAK, Samples, silence_reason

HANGOVER = 1.0  # seconds of silence after which what was said before it is put aside, in case the silence goes on


class Level:
    """Of one turn, in frames at its own rate.

    Attributes:
        frames: fed so far.
        audible: fed up to the end of the last chunk that was not silent.

    >>> import numpy as np
    >>> level = Level()
    >>> level.feed(np.full(8_000, 0.01, np.float32), 16_000, 0), level.silence
    (False, 'audio is a constant offset of 0.0100, as of a muted microphone')
    """

    def __init__(self) -> None:
        self.frames = 0
        self.audible = 0
        self._low, self._high = float("inf"), float("-inf")
        self._last: float | None = None  # sample of the chunk before: a step from it is sound too
        self._widened = 0

    def feed(self, chunk: Samples, rate: int, widened: int) -> bool:
        """Count a chunk of (samples,) with its `int32_peak`; whether a silence after sound has just lasted a second."""
        if not len(chunk):
            return False
        before = self.frames - self.audible
        self.frames += len(chunk)
        low, high = float(chunk.min()), float(chunk.max())
        self._low, self._high = min(self._low, low), max(self._high, high)
        self._widened = max(self._widened, widened)
        last = low if self._last is None else self._last
        if max(high, last) - min(low, last) >= 2 * SILENCE_PEAK:
            self.audible = self.frames
        self._last = float(chunk[-1])
        return self.audible > 0 and before < HANGOVER * rate <= self.frames - self.audible

    @property
    def silence(self) -> str:
        """Why nothing can be heard in all of it; empty where something can."""
        return silence_reason(self._low, self._high, self._widened) if self.frames else ""

    def ends_in_silence(self, rate: int) -> bool:
        """Whether the last 20 s, all that would be used, are silent though something was heard before them."""
        return 0 < self.audible < self.frames - MAX_SECONDS * rate
