"""Whisper's log-mel spectrogram of a whole utterance, or computed while its audio arrives. Both are equal bit for bit.

Training and runtime share it. Frames are computed in blocks of eight, always by the same operations, independently of
the frames before and after. So a frame that was computed during speech equals the frame of the finished recording.
"""

from __future__ import annotations

import functools
from collections import deque

import numpy as np
from numpy.typing import NDArray

from hbaf_edge.audio import CROP, MAX_SAMPLES, SAMPLE_RATE, crop_start

MEL_BINS = 80
FFT, HOP = 400, 160  # 25 ms windows every 10 ms
BLOCK = CROP // HOP  # 8 frames; audio is cropped by a multiple of a block
EDGE = FFT // 2  # samples from the middle of a window to its ends
HANN = 0.5 - 0.5 * np.cos(2 * np.pi * np.arange(FFT) / FFT)  # periodic


@functools.cache
def mel_filters() -> NDArray[np.float64]:
    """Return the (201, 80) triangular filters of Slaney's mel scale from 0 to 8 kHz, each of area one."""

    def to_hertz(mel: NDArray[np.float64]) -> NDArray[np.float64]:
        return np.where(mel < 15, mel * 200 / 3, 1000 * np.exp((mel - 15) * np.log(6.4) / 27))

    top = 15 + np.log(SAMPLE_RATE / 2 / 1000) * 27 / np.log(6.4)  # 8 kHz
    edges = to_hertz(np.linspace(0.0, top, MEL_BINS + 2))
    bins = np.linspace(0, SAMPLE_RATE / 2, FFT // 2 + 1)[:, None]
    rise = (bins - edges[:-2]) / np.diff(edges)[:-1]
    fall = (edges[2:] - bins) / np.diff(edges)[1:]
    return np.maximum(0, np.minimum(rise, fall)) * (2 / (edges[2:] - edges[:-2]))


def log_mel(samples: NDArray[np.float32]) -> NDArray[np.float32]:
    """Compute Whisper's log-mel spectrogram without padding to 30 s.

    Args:
        samples: (samples,) float32 at 16 kHz, at least 201 samples.

    Returns:
        (80, samples // 160) float32: log10 power, floored 8 below the utterance's maximum, then (x + 4) / 4.

    >>> log_mel(np.zeros(16_000, np.float32)).shape
    (80, 100)
    """
    return _clamped(_log_power(_windows(samples)))


def _windows(samples: NDArray[np.float32]) -> NDArray[np.float32]:
    """(samples,) -> (samples // 160, 400) view of the windows; the audio is mirrored at both ends."""
    padded = np.pad(samples, EDGE, mode="reflect")
    return np.lib.stride_tricks.sliding_window_view(padded, FFT)[::HOP][: len(samples) // HOP]


def _log_power(windows: NDArray[np.float32]) -> NDArray[np.float64]:
    """(frames, 400) -> (frames, 80) log10 power, in blocks of eight frames."""
    frames = len(windows)
    padded = np.zeros((frames + -frames % BLOCK, FFT))
    np.multiply(windows, HANN, out=padded[:frames])
    power = np.abs(np.fft.rfft(padded.reshape(-1, BLOCK, FFT), axis=-1)) ** 2
    mel = np.stack([block @ mel_filters() for block in power]).reshape(-1, MEL_BINS)
    return np.asarray(np.log10(np.maximum(mel[:frames], 1e-10)))


def _clamped(log: NDArray[np.float64]) -> NDArray[np.float32]:
    """(frames, 80) log10 power -> (80, frames), clamped to 8 below the utterance's maximum, and scaled."""
    log = np.maximum(log, log.max() - 8.0)
    return np.ascontiguousarray(((log + 4.0) / 4.0).T, dtype=np.float32)


class MelStream:
    """`log_mel` of the last 20 s of audio that is still arriving. Time and memory per sample stay constant.

    Blocks are computed once, when all samples of their windows have arrived. The first block and those at the end,
    whose windows are mirrored, are computed again for every spectrum, and so is the clamping to the loudest frame.

    Example: the windows of block k span the samples from 1280 k - 200 to 1280 k + 1320. After 4,000 samples blocks 1
    and 2 are final (block 2 ends at 3,880); `spectrum` computes block 0 and the frames from block 3 on.

    >>> audio = np.random.default_rng(0).standard_normal(20_000).astype(np.float32)
    >>> stream = MelStream()
    >>> for chunk in np.array_split(audio, 7):
    ...     stream.feed(chunk)
    >>> bool((stream.spectrum() == log_mel(stream.samples)).all())
    True
    """

    def __init__(self) -> None:
        self._buffer = np.empty(2 * MAX_SAMPLES, np.float32)
        self._length = 0  # samples in the buffer
        self._dropped = 0  # samples before the buffer's first; always a multiple of a block
        self._final_blocks: deque[NDArray[np.float64]] = deque(maxlen=MAX_SAMPLES // CROP)
        self._next_block = 1  # the first block that is not final; block 0 is always mirrored

    @property
    def sample_count(self) -> int:
        """Number of samples fed so far."""
        return self._dropped + self._length

    @property
    def samples(self) -> NDArray[np.float32]:
        """(samples,) the last 20 s, cropped as in `load_audio`."""
        return self._buffer[crop_start(self.sample_count) - self._dropped : self._length]

    def feed(self, samples: NDArray[np.float32]) -> None:
        """Append (samples,) at 16 kHz and compute the blocks that they complete."""
        # In parts of at most half the limit: the buffer of twice the limit always has room for one part.
        for part in np.array_split(samples, -(-len(samples) // (MAX_SAMPLES // 2)) or 1):
            self._append(part)
            last = (self.sample_count - EDGE - (BLOCK - 1) * HOP) // CROP  # the last block whose windows are complete
            if last >= self._next_block:
                start = self._next_block * CROP - EDGE - self._dropped
                region = self._buffer[start : start + (last - self._next_block + 1) * CROP + FFT - HOP]
                windows = np.lib.stride_tricks.sliding_window_view(region, FFT)[::HOP]
                self._final_blocks.extend(_log_power(windows).reshape(-1, BLOCK, MEL_BINS))
                self._next_block = last + 1

    def _append(self, samples: NDArray[np.float32]) -> None:
        """Append to the buffer. If it is full, first drop samples that no later crop can include."""
        if self._length + len(samples) > len(self._buffer):
            # Keep one block more than the crop: the windows of the next block start before it.
            drop = (self._length - MAX_SAMPLES - 2 * CROP) // CROP * CROP
            self._buffer[: self._length - drop] = self._buffer[drop : self._length].copy()
            self._length -= drop
            self._dropped += drop
        self._buffer[self._length : self._length + len(samples)] = samples
        self._length += len(samples)

    def clear(self) -> None:
        """Release the memory. Do not use the stream afterwards."""
        self._buffer = np.empty(0, np.float32)
        self._length = 0
        self._final_blocks.clear()

    def spectrum(self) -> NDArray[np.float32]:
        """Return (80, frames) float32, equal to `log_mel(self.samples)`; at least 201 samples must have been fed."""
        samples, first = self.samples, crop_start(self.sample_count) // CROP
        windows = _windows(samples)
        # Block `first` starts with mirrored windows, and the frames after the final blocks may end with some.
        has_final = self._next_block > first + 1
        final = [self._final_blocks[i] for i in range(first + 1 - self._next_block, 0)] if has_final else []
        parts = [_log_power(windows[:BLOCK]), *final]
        done = BLOCK * len(parts)
        if done < len(windows):
            parts.append(_log_power(windows[done:]))
        return _clamped(np.concatenate(parts))
