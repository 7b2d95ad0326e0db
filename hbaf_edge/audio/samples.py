"""Check samples, detect silence, and resample the last 20 s to 16 kHz.

Silence and offsets are detected at the input's own rate: a resampler rings at the edges of a constant, so afterwards a
constant would look audible.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from hbaf_edge.errors import InputError
from hbaf_edge.workers import call_native

SAMPLE_RATE = 16_000  # Hz, input of the audio encoder
MAX_SECONDS = 20.0  # of a longer utterance the last part is used: it shows the present emotion
MIN_SECONDS = 0.1  # less is under two frames of the audio context network
RATES = (8_000, 192_000)  # Hz, accepted sample rates
MAX_CHANNELS = 32
MAX_SAMPLES = int(MAX_SECONDS * SAMPLE_RATE)
CROP = 1_280  # samples at 16 kHz: a long utterance is cut by a multiple of it, so that its frames stay the same
LONGEST_TAIL = 22  # seconds, at most, after `tail_start`: the crop, its rounding, and the resampler's context
SILENCE_PEAK = 1e-4  # −80 dBFS: below the noise of any microphone
SCALES = {"float32": 1.0, "float64": 1.0, "int16": 2.0**-15, "int32": 2.0**-31}

Samples = NDArray[np.float32]


@dataclass(frozen=True)
class Audio:
    """One utterance, ready for the encoder.

    Attributes:
        samples: (samples,) float32, mono, 16 kHz, at most 20 s.
        seconds: length of the input, before any cut.
        warnings: for the caller.
        silence: why it is silent, such as "audio is digital silence"; empty if it is not.
    """

    samples: Samples
    seconds: float
    warnings: tuple[str, ...] = ()
    silence: str = ""

    @property
    def is_silent(self) -> bool:
        """Whether the signal changes by less than −80 dBFS; a constant offset is silence too."""
        return bool(self.silence)

    @property
    def is_too_short(self) -> bool:
        """Whether it is shorter than 0.1 s."""
        return self.samples.size < MIN_SECONDS * SAMPLE_RATE


def too_long_warning(seconds: float) -> str:
    """The warning about an utterance longer than 20 s."""
    return f"audio is {seconds:.1f} s long: only its last {MAX_SECONDS:.0f} s were used"


def silent_end_warning(seconds: float, audible_seconds: float) -> str:
    """The warning about an utterance that ends in more than 20 s of silence."""
    return (
        f"audio is {seconds:.1f} s long and silent after {audible_seconds:.1f} s: "
        f"the part before the silence was used (at most {MAX_SECONDS:.0f} s)"
    )


def check_rate(rate: Any, name: str) -> int:
    """Return a sample rate in Hz as an int.

    Raises:
        InputError: it is not a whole number from 8,000 to 192,000.

    >>> check_rate(16_000.0, "sample_rate")
    16000
    """
    low, high = RATES
    is_whole_float = isinstance(rate, (float, np.floating)) and float(rate).is_integer()
    if isinstance(rate, bool) or not (is_whole_float or isinstance(rate, (int, np.integer))):
        raise InputError(f"{name} is {rate!r}; a whole number of Hz is expected, such as 16000")
    if not low <= rate <= high:
        raise InputError(f"{name} is {float(min(rate, 1e18)):,.0f} Hz; {low:,} to {high:,} Hz are accepted")
    return int(rate)


def check_array(array: NDArray[Any], sample_rate: int | None) -> tuple[NDArray[Any], float, int]:
    """Return the array as (samples, channels), the factor that scales it to -1..1, and the rate.

    Raises:
        InputError: its type, its shape or `sample_rate` is not accepted.
    """
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
        hint = "; it looks like (channels, samples): pass array.T" if 0 < block.shape[0] <= MAX_CHANNELS else ""
        raise InputError(f"audio has shape {array.shape}: 1 to {MAX_CHANNELS} channels are accepted{hint}")
    return block, scale, rate


def check_values(block: NDArray[Any]) -> None:
    """Raise InputError if (samples, channels) contain NaN, infinities or values far outside -1..1."""
    if block.size == 0:
        return
    if not np.isfinite(block).all():
        count = int(np.size(block) - np.isfinite(block).sum())
        raise InputError(f"the audio has {count} NaN or infinite samples; check the capture, or use np.nan_to_num")
    peak = float(np.abs(block).max())
    if peak > 8.0:
        raise InputError(
            f"float audio must lie in -1..1, this one reaches {peak:.0f}; "
            "if it has 16-bit values, pass them as int16 or divide by 32768"
        )


def int32_peak(array: NDArray[Any]) -> int:
    """The largest magnitude in an int32 array; 0 for other types.

    16-bit samples in an int32 array look like silence. The peak tells the two cases apart in `silence_reason`.
    """
    return int(np.abs(array.astype(np.int64)).max()) if array.dtype.name == "int32" and array.size else 0


def silence_reason(low: float, high: float, peak: int) -> str:
    """Why samples between `low` and `high` are silent; empty if they are not. `peak` is their `int32_peak`.

    >>> silence_reason(-0.2, 0.3, 0), silence_reason(0.01, 0.01, 0)
    ('', 'audio is a constant offset of 0.0100, as from a muted microphone')
    """
    if high - low >= 2 * SILENCE_PEAK:
        return ""
    if peak > 1:
        return (
            f"audio of type int32 peaks at {peak:,} of {2**31:,}, which is silence; if these are 16-bit values, "
            "pass them as int16, for instance array.astype(np.int16)"
        )
    if abs(high + low) / 2 >= SILENCE_PEAK:
        return f"audio is a constant offset of {(high + low) / 2:.4f}, as from a muted microphone"
    return "audio is digital silence"


def is_audible(block: NDArray[Any], scale: float = 1.0) -> bool:
    """Whether any channel of (samples, channels) changes by more than −80 dBFS. True also for NaN."""
    if block.size == 0:
        return False
    span = block.max(axis=0).astype(np.float64) - block.min(axis=0)
    return not span.max() * scale < 2 * SILENCE_PEAK  # `not <` so that NaN is not silence; it is rejected later


def split_blocks(array: NDArray[Any], length: int) -> Iterator[NDArray[Any]]:
    """Views of (samples, channels), of at most `length` samples each."""
    return (array[start : start + length] for start in range(0, len(array), length))


def collect_tails(
    blocks: Iterable[NDArray[Any]], rate: int, scale: float = 1.0
) -> tuple[NDArray[Any], int, NDArray[Any], int]:
    """Collect the last 22 s, and the last 22 s before the final silence, in bounded memory.

    Args:
        blocks: (samples, channels), each of one second at most.
        rate: Hz.
        scale: factor that scales the samples to -1..1.

    Returns:
        The last samples (22 s or more if there are as many) and the number of all samples; then the same for the
        recording up to its last block that is not silent.
    """
    recent: deque[NDArray[Any]] = deque()
    audible: list[NDArray[Any]] = []
    buffered = total = audible_end = 0
    for block in blocks:
        recent.append(block)
        buffered, total = buffered + len(block), total + len(block)
        while buffered - len(recent[0]) >= LONGEST_TAIL * rate:
            buffered -= len(recent.popleft())
        if is_audible(block, scale):
            audible, audible_end = list(recent), total
    empty = np.zeros((0, 1), np.float32)
    return np.concatenate(recent or [empty]), total, np.concatenate(audible or [empty]), audible_end


def resample(mono: Samples, rate: int, frames: int) -> Samples:
    """Resample (samples,), the tail of `frames` frames at `rate`, to 16 kHz and cut it at `crop_start`."""
    tail_offset = (frames - len(mono)) * SAMPLE_RATE // rate  # at 16 kHz; a whole number, see `tail_start`
    if rate != SAMPLE_RATE:
        import soxr

        mono = call_native(soxr.resample, mono, rate, SAMPLE_RATE)
    drop = max(0, crop_start(resampled_length(frames, rate)) - tail_offset)
    return np.ascontiguousarray(mono[drop:][:MAX_SAMPLES], dtype=np.float32)


def crop_start(samples: int) -> int:
    """Number of samples to cut from the start of so many at 16 kHz.

    It is a multiple of `CROP` that leaves 20 s at most. One sample more than 20 s costs a whole step of 1,280 samples:

    >>> crop_start(320_000), crop_start(320_001), crop_start(321_281)
    (0, 1280, 2560)
    """
    return -(-max(0, samples - MAX_SAMPLES) // CROP) * CROP


def resampled_length(frames: int, rate: int) -> int:
    """Number of samples at 16 kHz for so many frames at `rate`, rounded as soxr does."""
    return (2 * frames * SAMPLE_RATE + rate) // (2 * rate)


def tail_start(frames: int, rate: int) -> int:
    """First frame to decode: the start of the last 20 s, or up to about a second earlier if it must be resampled.

    The resampler needs the samples before the crop. A start at a whole second falls on a whole sample at both rates, so
    the result equals that of resampling everything and cutting afterwards. Example: 30 s at 44,100 Hz are 480,000
    samples at 16 kHz, of which the first 160,000 are cut; 160,000 − 1,280 falls into second 9, so decoding starts at
    frame 9 × 44,100.
    """
    start = crop_start(resampled_length(frames, rate))
    return start if rate == SAMPLE_RATE else max(0, start - CROP) // SAMPLE_RATE * rate
