"""Samples of any shape and type -> mono 16 kHz float32, with a clear word on what was done to them.

Silence and offsets are judged here, at the rate that was given: a resampler rings at the edges of a constant, and would
make a sound of it.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from hbaf_edge.errors import InputError
from hbaf_edge.workers import native

SAMPLE_RATE = 16_000  # Hz, what the audio encoder hears
MAX_SECONDS = 20.0  # of a longer utterance the last part is used: the emotion now, not the one at its start
MIN_SECONDS = 0.1  # less than two frames of the audio context network say nothing
RATES = (8_000, 192_000)  # Hz, accepted sample rates
MAX_CHANNELS = 32
MAX_SAMPLES = int(MAX_SECONDS * SAMPLE_RATE)
CROP = 1_280  # samples at 16 kHz: what is cut from a long utterance is a multiple, so that its frames stay the same
LONGEST_TAIL = 22  # seconds that `tail_start` leaves at most: the crop, its rounding, and what the resampler needs
SILENCE_PEAK = 1e-4  # −80 dBFS: below the noise of any microphone, so no microphone was heard
SCALES = {"float32": 1.0, "float64": 1.0, "int16": 2.0**-15, "int32": 2.0**-31}

Samples = NDArray[np.float32]


@dataclass(frozen=True)
class Audio:
    """One utterance as the encoder hears it.

    Attributes:
        samples: (samples,) float32, mono, 16 kHz, at most 20 s.
        seconds: length of what was given, before any cut.
        warnings: what was done to it that the caller should know.
        silence: why nothing can be heard in it, such as "audio is digital silence"; empty where something can.
    """

    samples: Samples
    seconds: float
    warnings: tuple[str, ...] = ()
    silence: str = ""

    @property
    def is_silent(self) -> bool:
        """Whether nothing moves by more than −80 dBFS; a constant offset is silence too."""
        return bool(self.silence)

    @property
    def is_too_short(self) -> bool:
        """Whether it is shorter than 0.1 s."""
        return self.samples.size < MIN_SECONDS * SAMPLE_RATE


def too_long(seconds: float) -> str:
    """What the caller of a long utterance is told."""
    return f"audio is {seconds:.1f} s long: only its last {MAX_SECONDS:.0f} s were used"


def silent_end(seconds: float, heard: float) -> str:
    """What the caller is told whose utterance ends in more than 20 s of silence."""
    return (
        f"audio is {seconds:.1f} s long and silent after {heard:.1f} s: "
        f"what was said before the silence was used (at most {MAX_SECONDS:.0f} s)"
    )


def check_rate(rate: Any, whose: str) -> int:
    """A sample rate in Hz as an int.

    Raises:
        InputError: it is no whole number, or outside of 8,000 to 192,000.

    >>> check_rate(16_000.0, "sample_rate")
    16000
    """
    low, high = RATES
    real = isinstance(rate, (float, np.floating)) and float(rate).is_integer()
    if isinstance(rate, bool) or not (real or isinstance(rate, (int, np.integer))):
        raise InputError(f"{whose} is {rate!r}; a whole number of Hz is expected, such as 16000")
    if not low <= rate <= high:
        raise InputError(f"{whose} is {float(min(rate, 1e18)):,.0f} Hz; {low:,} to {high:,} Hz are accepted")
    return int(rate)


def check_array(array: NDArray[Any], sample_rate: int | None) -> tuple[NDArray[Any], float, int]:
    """(samples, channels) as given, the factor that brings them to -1..1, and the rate."""
    if sample_rate is None:
        raise InputError("sample_rate is required with an array, in Hz, for instance sample_rate=16000")
    rate = check_rate(sample_rate, "sample_rate")
    if isinstance(array, np.ma.MaskedArray):
        raise InputError("a masked array is not accepted; fill its gaps first, for instance with array.filled(0)")
    array = np.asarray(array)
    scale = SCALES.get(array.dtype.name)
    if scale is None:
        raise InputError(f"audio of type {array.dtype} is not accepted; use float32, float64, int16 or int32")
    if array.ndim not in (1, 2):
        raise InputError(f"audio has shape {array.shape}; (samples,) or (samples, channels) is expected")
    block = array[:, None] if array.ndim == 1 else array
    if block.shape[1] == 0 or block.shape[1] > MAX_CHANNELS:
        mend = "; it looks like (channels, samples): pass array.T" if 0 < block.shape[0] <= MAX_CHANNELS else ""
        raise InputError(f"audio has shape {array.shape}: 1 to {MAX_CHANNELS} channels are accepted{mend}")
    return block, scale, rate


def check_values(block: NDArray[Any]) -> None:
    """Raises InputError where (samples, channels) in -1..1 hold no sound: NaN, infinities, or 16-bit values."""
    if block.size == 0:
        return
    if not np.isfinite(block).all():
        bad = int(np.size(block) - np.isfinite(block).sum())
        raise InputError(f"the audio holds {bad} NaN or infinite samples; check the capture, or use np.nan_to_num")
    peak = float(np.abs(block).max())
    if peak > 8.0:
        raise InputError(
            f"float audio must lie in -1..1, this one reaches {peak:.0f}; "
            "if it holds 16-bit values, pass them as int16 or divide by 32768"
        )


def int32_peak(array: NDArray[Any]) -> int:
    """The largest magnitude in an int32 array; 0 for every other type, where magnitudes are not ambiguous."""
    return int(np.abs(array.astype(np.int64)).max()) if array.dtype.name == "int32" and array.size else 0


def silence_reason(low: float, high: float, widened: int) -> str:
    """Why nothing can be heard in samples between `low` and `high`, of which `widened` is the `int32_peak`.

    >>> silence_reason(-0.2, 0.3, 0), silence_reason(0.01, 0.01, 0)
    ('', 'audio is a constant offset of 0.0100, as of a muted microphone')
    """
    if high - low >= 2 * SILENCE_PEAK:
        return ""
    if widened > 1:
        return (
            f"audio of type int32 peaks at {widened:,} of {2**31:,}, which is silence; if these are 16-bit values, "
            "pass them as int16, for instance array.astype(np.int16)"
        )
    if abs(high + low) / 2 >= SILENCE_PEAK:
        return f"audio is a constant offset of {(high + low) / 2:.4f}, as of a muted microphone"
    return "audio is digital silence"


def is_audible(block: NDArray[Any], scale: float = 1.0) -> bool:
    """Whether a channel of (samples, channels) moves by more than silence does, or holds what is no number."""
    if block.size == 0:
        return False
    span = block.max(axis=0).astype(np.float64) - block.min(axis=0)
    return not span.max() * scale < 2 * SILENCE_PEAK  # so that NaN is not taken for silence, but refused later


def blocks_of(array: NDArray[Any], length: int) -> Iterator[NDArray[Any]]:
    """(samples, channels) in views of at most `length` samples."""
    return (array[start : start + length] for start in range(0, len(array), length))


def keep_tails(
    blocks: Iterable[NDArray[Any]], rate: int, scale: float = 1.0
) -> tuple[NDArray[Any], int, NDArray[Any], int]:
    """Two ends of a sound that arrives in blocks (samples, channels) of a second at most, in bounded memory.

    Returns:
        the last samples (at least 22 s where there are as many) and the number of all samples; then the same of the
        sound up to its last block that is not silent.
    """
    recent: deque[NDArray[Any]] = deque()
    spoken: list[NDArray[Any]] = []
    kept = total = end = 0
    for block in blocks:
        recent.append(block)
        kept, total = kept + len(block), total + len(block)
        while kept - len(recent[0]) >= LONGEST_TAIL * rate:
            kept -= len(recent.popleft())
        if is_audible(block, scale):
            spoken, end = list(recent), total
    empty = np.zeros((0, 1), np.float32)
    return np.concatenate(recent or [empty]), total, np.concatenate(spoken or [empty]), end


def resample(mono: Samples, rate: int, frames: int) -> Samples:
    """(samples,), the tail of `frames` at `rate` -> (samples,) at 16 kHz, cut as `crop_start` says."""
    begins = (frames - len(mono)) * SAMPLE_RATE // rate  # at 16 kHz, and whole: see `tail_start`
    if rate != SAMPLE_RATE:
        import soxr

        mono = native(soxr.resample, mono, rate, SAMPLE_RATE)
    drop = max(0, crop_start(resampled_length(frames, rate)) - begins)
    return np.ascontiguousarray(mono[drop:][:MAX_SAMPLES], dtype=np.float32)


def crop_start(samples: int) -> int:
    """The first of so many samples at 16 kHz that counts: at most 20 s are left, and a multiple of `CROP` goes.

    >>> crop_start(320_000), crop_start(320_001), crop_start(321_281)
    (0, 1280, 2560)
    """
    return -(-max(0, samples - MAX_SAMPLES) // CROP) * CROP


def resampled_length(frames: int, rate: int) -> int:
    """Samples at 16 kHz that so many frames become, rounded as soxr does."""
    return (2 * frames * SAMPLE_RATE + rate) // (2 * rate)


def tail_start(frames: int, rate: int) -> int:
    """First frame to decode: that of the last 20 s, or a whole second before it where it has to be resampled.

    The resampler then has heard what was before the crop, and a whole second falls on a sample at any rate: the
    result is that of resampling everything and cutting afterwards.
    """
    start = crop_start(resampled_length(frames, rate))
    return start if rate == SAMPLE_RATE else max(0, start - CROP) // SAMPLE_RATE * rate
