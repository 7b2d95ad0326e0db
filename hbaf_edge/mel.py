"""Whisper's log-mel spectrogram: of an utterance at once, or as its sound arrives, equal bit for bit.

Training and runtime share it. Frames are computed in blocks of eight by the same operations whatever stands before or
behind them, so that a frame computed while somebody spoke is the frame that a pass over the recording gives.
"""

from __future__ import annotations

import functools
from collections import deque

import numpy as np
from numpy.typing import NDArray

from hbaf_edge.audio import CROP, MAX_SAMPLES, SAMPLE_RATE, crop_start

MEL_BINS = 80
FFT, HOP = 400, 160  # 25 ms windows every 10 ms
BLOCK = CROP // HOP  # frames; what is cropped leaves whole blocks
EDGE = FFT // 2  # samples that a window reaches to either side of its middle
HANN = 0.5 - 0.5 * np.cos(2 * np.pi * np.arange(FFT) / FFT)  # periodic


@functools.cache
def mel_filters() -> NDArray[np.float64]:
    """(201, 80) triangles of Slaney's mel scale, each of area one, from 0 to 8 kHz (as librosa and Whisper have it)."""

    def to_hertz(mel: NDArray[np.float64]) -> NDArray[np.float64]:
        return np.where(mel < 15, mel * 200 / 3, 1000 * np.exp((mel - 15) * np.log(6.4) / 27))

    top = 15 + np.log(SAMPLE_RATE / 2 / 1000) * 27 / np.log(6.4)  # 8 kHz
    edges = to_hertz(np.linspace(0.0, top, MEL_BINS + 2))
    bins = np.linspace(0, SAMPLE_RATE / 2, FFT // 2 + 1)[:, None]
    rise = (bins - edges[:-2]) / np.diff(edges)[:-1]
    fall = (edges[2:] - bins) / np.diff(edges)[1:]
    return np.maximum(0, np.minimum(rise, fall)) * (2 / (edges[2:] - edges[:-2]))


def log_mel(samples: NDArray[np.float32]) -> NDArray[np.float32]:
    """Whisper's log-mel spectrogram of exactly the samples given, never padded to 30 s.

    Args:
        samples: (samples,) float32 at 16 kHz, at least 201 of them.

    Returns:
        (80, samples // 160) float32: log10 power, floored 8 below the utterance's maximum, then (x + 4) / 4.

    >>> log_mel(np.zeros(16_000, np.float32)).shape
    (80, 100)
    """
    return _clamped(_log_power(_windows(samples)))


def _windows(samples: NDArray[np.float32]) -> NDArray[np.float32]:
    """(samples,) -> (samples // 160, 400) view, mirrored at both ends."""
    padded = np.pad(samples, EDGE, mode="reflect")
    return np.lib.stride_tricks.sliding_window_view(padded, FFT)[::HOP][: len(samples) // HOP]


def _log_power(windows: NDArray[np.float32]) -> NDArray[np.float64]:
    """(frames, 400) -> (frames, 80) log10 power, in blocks of eight frames."""
    frames = len(windows)
    whole = np.zeros((frames + -frames % BLOCK, FFT))
    np.multiply(windows, HANN, out=whole[:frames])
    power = np.abs(np.fft.rfft(whole.reshape(-1, BLOCK, FFT), axis=-1)) ** 2
    mel = np.stack([block @ mel_filters() for block in power]).reshape(-1, MEL_BINS)
    return np.asarray(np.log10(np.maximum(mel[:frames], 1e-10)))


def _clamped(log: NDArray[np.float64]) -> NDArray[np.float32]:
    """Floored against the loudest of the utterance, scaled, and turned to (80, frames)."""
    log = np.maximum(log, log.max() - 8.0)
    return np.ascontiguousarray(((log + 4.0) / 4.0).T, dtype=np.float32)


class MelStream:
    """`log_mel` of the last 20 s of a sound that is still arriving, in work that does not grow with what was heard.

    Blocks whose windows lie inside of the sound are computed once, as it arrives; those at the edges, where a window
    is mirrored, each time the spectrum is asked for. The floor against the loudest frame waits until then too.

    >>> sound = np.random.default_rng(0).standard_normal(20_000).astype(np.float32)
    >>> stream = MelStream()
    >>> for chunk in np.array_split(sound, 7):
    ...     stream.feed(chunk)
    >>> bool((stream.spectrum() == log_mel(stream.samples)).all())
    True
    """

    def __init__(self) -> None:
        self._held = np.empty(2 * MAX_SAMPLES, np.float32)
        self._length = 0  # samples in `_held`
        self._dropped = 0  # samples before its first; always whole blocks
        self._done: deque[NDArray[np.float64]] = deque(maxlen=MAX_SAMPLES // CROP)
        self._next = 1  # the first block that is not computed yet; block 0 is always an edge

    @property
    def heard(self) -> int:
        """Samples fed so far."""
        return self._dropped + self._length

    @property
    def samples(self) -> NDArray[np.float32]:
        """(samples,) that count: the last 20 s, cut as `load_audio` cuts them."""
        return self._held[crop_start(self.heard) - self._dropped : self._length]

    def feed(self, samples: NDArray[np.float32]) -> None:
        """Take in (samples,) at 16 kHz and compute the blocks that they complete."""
        # Half of the limit at once: after what must stay is kept, twice the limit has room for it.
        for part in np.array_split(samples, -(-len(samples) // (MAX_SAMPLES // 2)) or 1):
            self._keep(part)
            ready = (self.heard - EDGE - (BLOCK - 1) * HOP) // CROP  # the last block whose windows are all inside
            if ready >= self._next:
                first = self._next * CROP - EDGE - self._dropped
                whole = self._held[first : first + (ready - self._next + 1) * CROP + FFT - HOP]
                windows = np.lib.stride_tricks.sliding_window_view(whole, FFT)[::HOP]
                self._done.extend(_log_power(windows).reshape(-1, BLOCK, MEL_BINS))
                self._next = ready + 1

    def _keep(self, samples: NDArray[np.float32]) -> None:
        """Append; make room first by dropping what no later crop can reach."""
        if self._length + len(samples) > len(self._held):
            # One block more than the crop: the windows of the next block to compute begin before it.
            out = (self._length - MAX_SAMPLES - 2 * CROP) // CROP * CROP
            self._held[: self._length - out] = self._held[out : self._length].copy()
            self._length -= out
            self._dropped += out
        self._held[self._length : self._length + len(samples)] = samples
        self._length += len(samples)

    def clear(self) -> None:
        """Give its memory back; nothing can be asked of it afterwards."""
        self._held = np.empty(0, np.float32)
        self._length = 0
        self._done.clear()

    def spectrum(self) -> NDArray[np.float32]:
        """(80, frames) float32, equal to `log_mel(self.samples)`; at least 201 samples must have been heard."""
        samples, first = self.samples, crop_start(self.heard) // CROP
        windows = _windows(samples)
        # Block `first` begins with mirrored windows; so may the last ones end.
        inside = [self._done[i] for i in range(first + 1 - self._next, 0)] if self._next > first + 1 else []
        parts = [_log_power(windows[:BLOCK]), *inside]
        behind = BLOCK * len(parts)
        if behind < len(windows):
            parts.append(_log_power(windows[behind:]))
        return _clamped(np.concatenate(parts))
