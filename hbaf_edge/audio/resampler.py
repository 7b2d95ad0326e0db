"""Resample audio that is still arriving to 16 kHz, the rate of the encoder."""

from __future__ import annotations

import weakref
from contextlib import suppress
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from hbaf_edge.workers import call_native, run_at_exit

if TYPE_CHECKING:
    import soxr

SAMPLE_RATE = 16_000
# A list instead of a WeakSet, which runs code whenever an entry is freed.
_instances: list[weakref.ref[StreamResampler]] = []


class StreamResampler:
    """Resample chunks at any rate to chunks at 16 kHz. The last samples come with `flush`.

    Args:
        rate: sample rate of the input in Hz.

    >>> resampler = StreamResampler(48_000)
    >>> len(resampler(np.zeros(4_800, np.float32))) + len(resampler.flush())
    1600
    """

    def __init__(self, rate: int) -> None:
        self._stream: soxr.ResampleStream | None = None
        if rate != SAMPLE_RATE:
            import soxr

            self._stream = soxr.ResampleStream(rate, SAMPLE_RATE, 1, dtype="float32")
            for freed in [reference for reference in _instances if reference() is None]:
                with suppress(ValueError):  # another thread has removed it
                    _instances.remove(freed)
            _instances.append(weakref.ref(self))

    def __call__(self, chunk: NDArray[np.float32]) -> NDArray[np.float32]:
        """(samples,) float32 -> (samples,) float32 at 16 kHz."""
        if self._stream is None:
            return chunk
        return np.asarray(call_native(self._stream.resample_chunk, chunk), np.float32)

    def flush(self) -> NDArray[np.float32]:
        """Return the last samples; nothing can be fed afterwards."""
        if self._stream is None:
            return np.zeros(0, np.float32)
        rest = np.asarray(call_native(self._stream.resample_chunk, np.zeros(0, np.float32), last=True), np.float32)
        self.release()
        return rest

    def release(self) -> None:
        """Free soxr's stream."""
        self._stream = None


def _release_all() -> None:
    """Free all streams before Python ends: nanobind, which soxr uses, would print a page of warnings about them."""
    for reference in list(_instances):
        if (resampler := reference()) is not None:
            resampler.release()


run_at_exit(_release_all)
