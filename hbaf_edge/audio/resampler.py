"""Resampling of audio that is still arriving, to the 16 kHz that the encoder reads."""

from __future__ import annotations

import weakref
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from hbaf_edge.workers import at_the_end, native

if TYPE_CHECKING:
    import soxr

SAMPLE_RATE = 16_000
_alive: list[weakref.ref[StreamResampler]] = []  # not a weak set, which runs code whenever one is freed


class StreamResampler:
    """Chunks at any rate in, chunks at 16 kHz out; the resampler holds back its last samples until `flush`.

    Args:
        rate: of what is fed, in Hz.

    >>> resampler = StreamResampler(48_000)
    >>> len(resampler(np.zeros(4_800, np.float32))) + len(resampler.flush())
    1600
    """

    def __init__(self, rate: int) -> None:
        self._stream: soxr.ResampleStream | None = None
        if rate != SAMPLE_RATE:
            import soxr

            self._stream = soxr.ResampleStream(rate, SAMPLE_RATE, 1, dtype="float32")
        _alive[:] = [reference for reference in _alive if reference() is not None]
        _alive.append(weakref.ref(self))

    def __call__(self, chunk: NDArray[np.float32]) -> NDArray[np.float32]:
        """(samples,) float32 -> (samples,) float32 at 16 kHz."""
        if self._stream is None:
            return chunk
        return np.asarray(native(self._stream.resample_chunk, chunk), np.float32)

    def flush(self) -> NDArray[np.float32]:
        """The samples that were held back; nothing can be fed afterwards."""
        if self._stream is None:
            return np.zeros(0, np.float32)
        rest = np.asarray(native(self._stream.resample_chunk, np.zeros(0, np.float32), last=True), np.float32)
        self.release()
        return rest

    def release(self) -> None:
        """Free soxr's stream."""
        self._stream = None


def _release_all() -> None:
    """Streams that are alive when Python ends make nanobind, which binds soxr, print a page of complaints."""
    for reference in list(_alive):
        if (resampler := reference()) is not None:
            resampler.release()


at_the_end(_release_all)
