"""Any audio a caller holds -> mono 16 kHz float32, with bounded work and a clear word on what was done to it.

Training and runtime both read audio through this file, so that a model never hears anything else than it learned.
"""

from __future__ import annotations

import io
import os
import struct
from dataclasses import dataclass
from typing import IO, TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from hbaf_edge.errors import InputError

if TYPE_CHECKING:
    import soundfile

SAMPLE_RATE = 16_000  # Hz, what the audio encoder hears
MAX_SECONDS = 20.0  # of a longer utterance the last part is used: the emotion now, not the one at its start
MIN_SECONDS = 0.1  # less than two frames of the audio context network say nothing
RATES = (8_000, 192_000)  # Hz, accepted sample rates
MAX_CHANNELS = 32
MAX_FRAMES = 1 << 40  # more than any file holds: a header that does not know its length
MAX_SAMPLES = int(MAX_SECONDS * SAMPLE_RATE)
CROP = 1_280  # samples at 16 kHz: what is cut from a long utterance is a multiple, so that its frames stay the same
LONGEST_TAIL = 22  # seconds that `_tail` leaves at most: the crop, its rounding, and what the resampler hears before
SILENCE_PEAK = 1e-4  # −80 dBFS: below the noise of any microphone, so no microphone was heard


@dataclass(frozen=True)
class Audio:
    """One utterance as the encoder hears it.

    Attributes:
        samples: (samples,) float32, mono, 16 kHz, at most 20 s.
        seconds: length of what was given, before any cut.
        warnings: what was done to it that the caller should know.
    """

    samples: NDArray[np.float32]
    seconds: float
    warnings: tuple[str, ...] = ()

    @property
    def is_silent(self) -> bool:
        """Whether no sample rises above −80 dBFS."""
        return self.samples.size == 0 or float(np.abs(self.samples).max()) < SILENCE_PEAK

    @property
    def is_too_short(self) -> bool:
        """Whether it is shorter than 0.1 s."""
        return self.samples.size < MIN_SECONDS * SAMPLE_RATE


def load_audio(source: Any, sample_rate: int | None = None) -> Audio:
    """Decode, mix to mono, keep the last 20 s and resample to 16 kHz.

    Args:
        source: a path, bytes or a binary file object holding WAV, FLAC, OGG or MP3; or a numpy array of float32,
            float64, int16 or int32 shaped (samples,) or (samples, channels).
        sample_rate: Hz, 8,000 to 192,000. Required with an array; a file carries its own.

    Raises:
        InputError: for anything that cannot be read as audio; the text says what is accepted.

    >>> tone = np.sin(2 * np.pi * 440 * np.arange(48_000) / 48_000)
    >>> load_audio(tone, sample_rate=48_000).samples.shape
    (16000,)
    """
    if isinstance(source, np.ndarray):
        block, rate, frames, warnings = _from_array(source, sample_rate)
    else:
        block, rate, frames, warnings = _from_file(source, sample_rate)
    if block.shape[0] == 0:
        raise InputError("the audio holds no samples; give at least 0.1 s, or None where there is no audio")
    mono = _mono(block)
    if frames > MAX_SECONDS * rate:
        warnings.append(too_long(frames / rate))
    return Audio(_resample(mono, rate, frames), frames / rate, tuple(warnings))


def load_chunk(array: Any, sample_rate: int | None) -> tuple[NDArray[np.float32], int]:
    """Part of a sound that is still arriving -> (samples,) mono at its own rate, and the rate; checked as a whole is.

    >>> load_chunk(np.zeros((320, 2), np.int16), 16_000)[0].shape
    (320,)
    """
    if not isinstance(array, np.ndarray):
        raise InputError(f"a chunk of type {type(array).__name__} is not accepted; feed numpy arrays of samples")
    block, scale, rate = _checked(array, sample_rate)
    return _mono(block.astype(np.float64) * scale), rate


def too_long(seconds: float) -> str:
    """What the caller of a long utterance is told."""
    return f"audio is {seconds:.1f} s long: only its last {MAX_SECONDS:.0f} s were used"


def _mono(block: NDArray[Any]) -> NDArray[np.float32]:
    """(samples, channels) in -1..1 -> (samples,), refused where it is not sound."""
    if block.shape[0] == 0:
        return np.zeros(0, np.float32)
    if not np.isfinite(block).all():
        bad = int(np.size(block) - np.isfinite(block).sum())
        raise InputError(f"the audio holds {bad} NaN or infinite samples; check the capture, or use np.nan_to_num")
    peak = float(np.abs(block).max())
    if peak > 8.0:
        raise InputError(
            f"float audio must lie in -1..1, this one reaches {peak:.0f}; "
            "if it holds 16-bit values, pass them as int16 or divide by 32768"
        )
    return np.asarray(block.mean(axis=1, dtype=np.float64).astype(np.float32))


def _resample(mono: NDArray[np.float32], rate: int, frames: int) -> NDArray[np.float32]:
    """(samples,), the tail of `frames` at `rate` -> (samples,) at 16 kHz, cut as `crop_start` says."""
    begins = (frames - len(mono)) * SAMPLE_RATE // rate  # at 16 kHz, and whole: see `_tail`
    if rate != SAMPLE_RATE:
        import soxr

        mono = soxr.resample(mono, rate, SAMPLE_RATE)
    drop = max(0, crop_start(_resampled(frames, rate)) - begins)
    return np.ascontiguousarray(mono[drop:][:MAX_SAMPLES], dtype=np.float32)


def crop_start(samples: int) -> int:
    """The first of so many samples at 16 kHz that counts: at most 20 s are left, and a multiple of `CROP` goes.

    >>> crop_start(320_000), crop_start(320_001), crop_start(321_281)
    (0, 1280, 2560)
    """
    return -(-max(0, samples - MAX_SAMPLES) // CROP) * CROP


def _check_rate(rate: Any, whose: str) -> int:
    low, high = RATES
    real = isinstance(rate, (float, np.floating)) and float(rate).is_integer()
    if isinstance(rate, bool) or not (real or isinstance(rate, (int, np.integer))):
        raise InputError(f"{whose} is {rate!r}; a whole number of Hz is expected, such as 16000")
    if not low <= rate <= high:
        raise InputError(f"{whose} is {float(min(rate, 1e18)):,.0f} Hz; {low:,} to {high:,} Hz are accepted")
    return int(rate)


def _resampled(frames: int, rate: int) -> int:
    """Samples at 16 kHz that so many frames become, rounded as soxr does."""
    return (2 * frames * SAMPLE_RATE + rate) // (2 * rate)


def _tail(frames: int, rate: int) -> int:
    """First frame to decode: that of the last 20 s, or a whole second before it where it has to be resampled.

    The resampler then has heard what was before the crop, and a whole second falls on a sample at any rate: the
    result is that of resampling everything and cutting afterwards.
    """
    start = crop_start(_resampled(frames, rate))
    return start if rate == SAMPLE_RATE else max(0, start - CROP) // SAMPLE_RATE * rate


def _from_array(array: NDArray[Any], sample_rate: int | None) -> tuple[NDArray[Any], int, int, list[str]]:
    """The tail that counts, its rate, how many frames there were, warnings."""
    block, scale, rate = _checked(array, sample_rate)
    kept = block[_tail(block.shape[0], rate) :]
    return kept.astype(np.float64) * scale, rate, block.shape[0], []


def _checked(array: NDArray[Any], sample_rate: int | None) -> tuple[NDArray[Any], float, int]:
    """(samples, channels) as given, the factor that brings them to -1..1, and the rate."""
    if sample_rate is None:
        raise InputError("sample_rate is required with an array, in Hz, for instance sample_rate=16000")
    rate = _check_rate(sample_rate, "sample_rate")
    if isinstance(array, np.ma.MaskedArray):
        raise InputError("a masked array is not accepted; fill its gaps first, for instance with array.filled(0)")
    array = np.asarray(array)
    scale = {"float32": 1.0, "float64": 1.0, "int16": 2.0**-15, "int32": 2.0**-31}.get(array.dtype.name)
    if scale is None:
        raise InputError(f"audio of type {array.dtype} is not accepted; use float32, float64, int16 or int32")
    if array.ndim not in (1, 2):
        raise InputError(f"audio has shape {array.shape}; (samples,) or (samples, channels) is expected")
    block = array[:, None] if array.ndim == 1 else array
    if block.shape[1] == 0 or block.shape[1] > MAX_CHANNELS:
        mend = "; it looks like (channels, samples): pass array.T" if 0 < block.shape[0] <= MAX_CHANNELS else ""
        raise InputError(f"audio has shape {array.shape}: 1 to {MAX_CHANNELS} channels are accepted{mend}")
    return block, scale, rate


def _from_file(source: Any, sample_rate: int | None) -> tuple[NDArray[Any], int, int, list[str]]:
    """Decode the last 20 s of a file; everything before them is skipped, never allocated."""
    import soundfile

    if sample_rate is not None:
        _check_rate(sample_rate, "sample_rate")
    handle, name = _open(source)
    try:
        if handle is source and handle.tell():  # libsndfile's seeks count from a file's beginning
            handle = io.BytesIO(handle.read())
        missing = _missing_bytes(handle)
        with soundfile.SoundFile(handle) as file:
            rate = _check_rate(file.samplerate, f"the sample rate of {name}")
            if sample_rate is not None and sample_rate != rate:
                raise InputError(
                    f"{name} says {rate} Hz but sample_rate={sample_rate} was given; leave sample_rate out for files"
                )
            if file.channels > MAX_CHANNELS:
                raise InputError(f"{name} has {file.channels} channels; 1 to {MAX_CHANNELS} are accepted")
            block, frames = _read_tail(file, rate)
            _check_all_read(handle, file.format, name, frames / rate)
            if missing or (frames < file.frames < MAX_FRAMES and file.format != "MP3"):
                lost = "its header promises more than the file holds"
                warnings = [f"{name} is truncated ({lost}): {frames / rate:.2f} s of it could be used"]
            else:
                warnings = []
            return block, rate, frames, warnings
    except InputError:
        raise
    # A caller's file object may raise anything at all: closed, write-only, text mode, a pipe.
    except (soundfile.LibsndfileError, RuntimeError, OSError, ValueError, TypeError, AttributeError) as error:
        reason = str(error).split(": ", 1)[-1].rstrip(".")
        raise InputError(
            f"{name} cannot be read as audio ({reason}): it is damaged, cut short, or of another kind; "
            "WAV, FLAC, OGG and MP3 are accepted"
        ) from None
    finally:
        if handle is not source:
            handle.close()


def _read_tail(file: soundfile.SoundFile, rate: int) -> tuple[NDArray[Any], int]:
    """The last 20 s as (samples, channels) float32, and how many frames the file really has."""
    if file.format == "MP3" or file.frames > MAX_FRAMES:
        return _read_to_the_end(file, rate)
    start = _tail(file.frames, rate)
    if start:
        file.seek(start)
    block = file.read(LONGEST_TAIL * rate, dtype="float32", always_2d=True)
    return block, start + block.shape[0]


def _read_to_the_end(file: soundfile.SoundFile, rate: int) -> tuple[NDArray[Any], int]:
    """The same, block by block, where the header does not know the length (MP3 by its nature, a streamed FLAC)."""
    wanted, frames = LONGEST_TAIL * rate, 0
    kept = np.zeros((0, file.channels), np.float32)
    block = np.empty((wanted, file.channels), np.float32)
    while (count := _next_block(file, block)) > 0:
        frames += count
        kept = np.concatenate([kept, block[:count]])[-wanted:]
    return kept[_tail(frames, rate) - (frames - len(kept)) :], frames


def _check_all_read(handle: IO[bytes], kind: str, name: str, seconds: float) -> None:
    """An MP3 that lost its length header is cut by libsndfile at a guess, in silence: refuse it instead."""
    if kind == "MP3":
        place = handle.tell()
        unread = handle.seek(0, io.SEEK_END) - place
        if unread > 16_384 and unread > 0.02 * (place + unread):
            raise InputError(
                f"{name} has lost the header that says how long it is, and only its first {seconds:.1f} s can be read; "
                "re-encode it, for instance with: ffmpeg -i in.mp3 out.flac"
            )


def _next_block(file: soundfile.SoundFile, block: NDArray[np.float32]) -> int:
    """Fill the block; how many frames were read.

    soundfile seeks after each read, and in a FLAC of unknown length that fails at the end, after the samples have
    arrived: what they have overwritten tells how many there were.
    """
    import soundfile

    block.fill(np.nan)
    try:
        return int(file.buffer_read_into(block, "float32"))
    except soundfile.LibsndfileError:
        return int(np.isfinite(block[:, 0]).sum())


def _open(source: Any) -> tuple[IO[bytes], str]:
    if isinstance(source, (str, os.PathLike)):
        path = os.fspath(source)
        if not os.path.exists(path):
            raise InputError(f"there is no audio file {path!r} (looked in {os.getcwd()!r})")
        if not os.path.isfile(path):
            raise InputError(f"{path!r} is not a file; give one WAV, FLAC, OGG or MP3 file")
        try:
            return open(path, "rb"), repr(path)
        except OSError as error:
            raise InputError(f"{path!r} cannot be opened: {error.strerror}") from None
    if isinstance(source, (bytes, bytearray, memoryview)):
        return io.BytesIO(bytes(source)), f"the audio of {len(source):,} bytes"
    if hasattr(source, "read") and hasattr(source, "seek"):
        return source, "the audio file object"
    raise InputError(
        f"audio of type {type(source).__name__} is not accepted; give a path, bytes, a binary file object, "
        "a numpy array with sample_rate, or None"
    )


def _missing_bytes(handle: IO[bytes]) -> int:
    """How many bytes a WAV's header promises beyond the end of the file (libsndfile reads such files in silence)."""
    head = handle.read(12)
    if not isinstance(head, bytes):
        raise InputError("the audio file object gives text; open the file in binary mode, with open(path, 'rb')")
    size = handle.seek(0, io.SEEK_END)
    handle.seek(0)
    if len(head) < 12 or head[:4] != b"RIFF" or head[8:] != b"WAVE":
        return 0
    promised = int(struct.unpack("<I", head[4:8])[0]) + 8
    # Recorders that stream write 0 or the largest number because they cannot know; that is no damage.
    return promised - size if promised - size > 1 and promised < 0xFFFFFF00 else 0
