"""Audio input in any supported form -> mono 16 kHz float32, in bounded time and memory, with warnings for the caller.

Training and runtime both read audio through this package, so the model sees the same samples in both. `source` opens
the input, `headers` corrects the sizes in its header, `decode` reads its last 20 s, `downmix` makes it mono and
`samples` resamples it to 16 kHz.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from hbaf_edge.audio.decode import tail_of_array, tail_of_file
from hbaf_edge.audio.downmix import Downmix
from hbaf_edge.audio.raw import decode_raw
from hbaf_edge.audio.samples import (
    CROP,
    MAX_SAMPLES,
    MAX_SECONDS,
    MIN_SECONDS,
    SAMPLE_RATE,
    Audio,
    check_array,
    crop_start,
    int32_peak,
    resample,
    resampled_length,
    silence_reason,
    silent_end_warning,
    too_long_warning,
)
from hbaf_edge.audio.silence import SilenceTracker
from hbaf_edge.errors import InputError

__all__ = [
    "CROP",
    "MAX_SAMPLES",
    "MAX_SECONDS",
    "MIN_SECONDS",
    "SAMPLE_RATE",
    "Audio",
    "Downmix",
    "SilenceTracker",
    "crop_start",
    "load_audio",
    "load_chunk",
    "silent_end_warning",
    "too_long_warning",
]


def load_audio(source: Any, sample_rate: int | None = None, sample_format: str | None = None) -> Audio:
    """Decode audio, mix it to mono, keep its last 20 s and resample it to 16 kHz.

    Args:
        source: a path, bytes or a binary file object (seekable or not) with WAV, FLAC, OGG, MP3 or another format
            that libsndfile reads; with the extra `av` also WebM, MP4, M4A, ADTS, AMR, 3GP, MPEG-TS and WMA. Or a
            numpy array of float32, float64, int16 or int32 of shape (samples,) or (samples, channels).
        sample_rate: Hz, 8,000 to 192,000. Required with an array and with `sample_format`; a file has its own.
        sample_format: format of bytes without a header: s8, u8, s16le, s24le, s32le, f32le, f64le (or be), mulaw, alaw.

    Returns:
        The audio, with warnings and with the reason if it is silent.

    Raises:
        InputError: `source` cannot be read as audio; the message says what is accepted.

    >>> tone = np.sin(2 * np.pi * 440 * np.arange(48_000) / 48_000)
    >>> load_audio(tone, sample_rate=48_000).samples.shape
    (16000,)
    >>> load_audio(bytes(3_200), sample_rate=16_000, sample_format="s16le").silence
    'audio is digital silence'
    """
    scale, peak = 1.0, 0
    if isinstance(source, np.ndarray):
        if sample_format is not None:
            raise InputError(f"sample_format={sample_format!r} is for bytes; an array has its type already")
        array, scale, rate = check_array(source, sample_rate)
        tail = tail_of_array(array, rate, scale)
        peak = int32_peak(tail.block)
    else:
        tail = tail_of_file(source, sample_rate, sample_format)
    if len(tail.block) == 0:
        raise InputError("the audio has no samples; pass at least 0.1 s, or None if there is no audio")
    mix = Downmix(tail.rate)
    mono = mix(tail.block if scale == 1.0 else tail.block.astype(np.float64) * scale)
    used = mono[_first_used(len(mono), tail.end, tail.rate) :]
    silence = silence_reason(float(used.min()), float(used.max()), peak)
    seconds, warnings = tail.frames / tail.rate, (*tail.warnings, *mix.warnings)
    if tail.end < tail.frames:
        warnings += (silent_end_warning(seconds, tail.end / tail.rate),)
    elif seconds > MAX_SECONDS:
        warnings += (too_long_warning(seconds),)
    return Audio(resample(mono, tail.rate, tail.end), seconds, warnings, silence)


def load_chunk(chunk: Any, sample_rate: int | None, sample_format: str | None = None) -> tuple[NDArray[Any], int, int]:
    """Check and convert one chunk of audio that is still arriving.

    Returns:
        The samples (samples, channels) in -1..1, the sample rate in Hz, and the chunk's `int32_peak`.

    >>> load_chunk(np.zeros((320, 2), np.int16), 16_000)[0].shape
    (320, 2)
    """
    if sample_format is not None:
        if not isinstance(chunk, (bytes, bytearray, memoryview)):
            raise InputError(f"sample_format={sample_format!r} is for bytes, not for {type(chunk).__name__}")
        chunk = decode_raw(chunk, sample_format)
    if not isinstance(chunk, np.ndarray):
        raise InputError(
            f"a chunk of type {type(chunk).__name__} is not accepted; feed numpy arrays of samples, or bytes with "
            "sample_format, for instance sample_format='s16le'"
        )
    block, scale, rate = check_array(chunk, sample_rate)
    return (block if scale == 1.0 else block.astype(np.float64) * scale), rate, int32_peak(block)


def _first_used(length: int, end: int, rate: int) -> int:
    """Index, among the last `length` samples before frame `end` at `rate`, of the first that the crop to 20 s keeps."""
    return max(0, crop_start(resampled_length(end, rate)) * rate // SAMPLE_RATE - (end - length))
