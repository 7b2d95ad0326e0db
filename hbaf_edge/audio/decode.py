"""Audio files and streams -> the samples of their last 20 s: libsndfile first, PyAV for what it does not read."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from hbaf_edge.audio import pyav
from hbaf_edge.audio.headers import TRUNCATED, mend_sizes
from hbaf_edge.audio.quiet import quiet_c_output
from hbaf_edge.audio.raw import raw_options
from hbaf_edge.audio.samples import (
    LONGEST_TAIL,
    MAX_CHANNELS,
    MAX_SECONDS,
    blocks_of,
    check_rate,
    is_audible,
    keep_tails,
    tail_start,
)
from hbaf_edge.audio.sniff import container_name, has_mpeg_frames, is_mpeg_tag
from hbaf_edge.audio.source import Source, one_line, open_source
from hbaf_edge.errors import InputError

if TYPE_CHECKING:
    import soundfile

MAX_FRAMES = 1 << 40  # more than any file holds: a header that does not know its length
MAX_TAG = 1 << 24  # bytes behind an MP3 that are searched for tags; none is larger
READ_AS_IS = "WAV, FLAC, OGG and MP3 are accepted, and whatever else libsndfile reads"
WITH_AV = "WebM, MP4, M4A, ADTS, AMR, 3GP, MPEG-TS and WMA"
HOW_TO_CONVERT = "convert it, for instance with: ffmpeg -i IN -ar 16000 -ac 1 OUT.flac"


class Tail(NamedTuple):
    """The part of a sound that counts.

    Attributes:
        block: (samples, channels), its last 20 s and what a resampler needs before them.
        rate: Hz.
        end: which of all frames `block` ends with; less than `frames` where only silence follows.
        frames: of the whole sound.
        warnings: for the caller.
    """

    block: NDArray[Any]
    rate: int
    end: int
    frames: int
    warnings: tuple[str, ...] = ()


def tail_of_array(block: NDArray[Any], rate: int, scale: float) -> Tail:
    """Of (samples, channels) in memory."""
    frames = len(block)
    tail = block[tail_start(frames, rate) :]
    if _ends_in_silence(tail, frames, rate, scale):
        return _choose(blocks_of(block, rate), rate, scale)
    return Tail(tail, rate, frames, frames)


def tail_of_file(given: Any, sample_rate: int | None, sample_format: str | None) -> Tail:
    """Of what `load_audio` takes but for arrays; everything before the tail is skipped, never allocated."""
    if sample_rate is not None:
        check_rate(sample_rate, "sample_rate")
    with open_source(given, has_header=sample_format is None) as source:
        if sample_format is not None:
            if sample_rate is None:
                raise InputError(f"sample_format={sample_format!r} needs sample_rate, in Hz: the bytes do not say it")
            found = _sndfile(source, **raw_options(sample_format, int(sample_rate), source.size, source.name))
        else:
            found = _decode(source)
        if source.error is not None:
            raise InputError(f"{source.name} cannot be read ({one_line(source.error)})") from source.error
    if sample_rate is not None and sample_rate != found.rate:
        raise InputError(
            f"{source.name} says {found.rate} Hz but sample_rate={sample_rate} was given; leave sample_rate out for "
            "files; of bytes without a header, say what they are with sample_format, such as sample_format='s16le'"
        )
    return found._replace(warnings=(*source.notes, *found.warnings))


def _decode(source: Source) -> Tail:
    """With libsndfile where it can, else with PyAV, else an error that says what the file is."""
    if source.size == 0:
        raise InputError(f"{source.name} is empty (0 bytes); {READ_AS_IS}")
    doubt = mend_sizes(source)
    try:
        found = _sndfile(source)
    except _CannotRead as reason:
        found = _pyav(source, str(reason))
    if doubt and not any(doubt in warning for warning in found.warnings):
        found = found._replace(warnings=(*found.warnings, _doubtful(source, doubt, found.frames / found.rate)))
    return found


class _CannotRead(Exception):
    """libsndfile cannot read it; the text is its reason."""


def _sndfile(source: Source, **options: Any) -> Tail:
    import soundfile

    source.seek(0)
    try:
        with quiet_c_output(), soundfile.SoundFile(source, **options) as file:
            rate = check_rate(file.samplerate, f"the sample rate of {source.name}")
            if file.channels > MAX_CHANNELS:
                raise InputError(f"{source.name} has {file.channels} channels; 1 to {MAX_CHANNELS} are accepted")
            found = _seek_tail(file, rate)
            promised = file.frames
            if found is None:
                found = _read_tail(source, rate, options)
            mpeg = _is_mpeg(file)
            unread = _unread(source, found) if file.format == "MP3" else 0
    except InputError:
        raise
    except (soundfile.LibsndfileError, RuntimeError, OSError, ValueError, TypeError, OverflowError) as error:
        raise _CannotRead(str(error).split(": ", 1)[-1].rstrip(".")) from None
    if unread:
        note = f"{source.name} holds {unread:,} bytes behind its last frame that are no sound: they were left out"
        return found._replace(warnings=(note,))
    lost = found.frames < promised < MAX_FRAMES and not mpeg  # an encoder's delay is counted, but not decoded
    return found._replace(warnings=(_doubtful(source, TRUNCATED, found.frames / rate),)) if lost else found


def _is_mpeg(file: soundfile.SoundFile) -> bool:
    """MP3, also inside of a WAV: its length is a guess until it is read."""
    return str(file.subtype).startswith("MPEG_LAYER")


def _seek_tail(file: soundfile.SoundFile, rate: int) -> Tail | None:
    """By a seek; None where the length is not known, the codec cannot seek, or the tail is silence."""
    import soundfile

    if _is_mpeg(file) or file.frames > MAX_FRAMES:
        return None
    start = tail_start(file.frames, rate)
    try:
        if start:
            file.seek(start)
        block = file.read(LONGEST_TAIL * rate, dtype="float32", always_2d=True)
    except soundfile.LibsndfileError:
        return None
    frames = start + len(block)
    return None if _ends_in_silence(block, frames, rate) else Tail(block, rate, frames, frames)


def _read_tail(source: Source, rate: int, options: dict[str, Any]) -> Tail:
    """By reading all of it, a second at a time."""
    import soundfile

    class Sequential(soundfile.SoundFile):  # type: ignore[misc]
        """Read in parts: soundfile seeks after each, which some codecs cannot, and which loses bits of an MP3."""

        def seekable(self) -> bool:
            return False

    source.seek(0)
    with Sequential(source, **options) as file:
        return _choose(_sndfile_blocks(file, rate), rate)


def _choose(blocks: Iterator[NDArray[Any]], rate: int, scale: float = 1.0) -> Tail:
    """The last 20 s, or those before a silence that is longer."""
    last, frames, spoken, end = keep_tails(blocks, rate, scale)
    last = _cut(last, frames, rate)
    if end and _ends_in_silence(last, frames, rate, scale):
        return Tail(_cut(spoken, end, rate), rate, end, frames)
    return Tail(last, rate, frames, frames)


def _cut(block: NDArray[Any], end: int, rate: int) -> NDArray[Any]:
    """What a resampler needs of a block that ends with frame `end`."""
    return block[max(0, tail_start(end, rate) - (end - len(block))) :]


def _ends_in_silence(tail: NDArray[Any], frames: int, rate: int, scale: float = 1.0) -> bool:
    """Whether nothing is to be heard in the last 20 s of a longer sound."""
    return frames > MAX_SECONDS * rate and not is_audible(tail[-int(MAX_SECONDS * rate) :], scale)


def _sndfile_blocks(file: soundfile.SoundFile, rate: int) -> Iterator[NDArray[np.float32]]:
    """All samples, a second at a time."""
    left = file.frames if file.frames < MAX_FRAMES and not _is_mpeg(file) else MAX_FRAMES
    while left > 0:
        block = file.read(min(rate, left), dtype="float32", always_2d=True)
        if not len(block):
            return
        left -= len(block)
        yield block


def _unread(source: Source, found: Tail) -> int:
    """Bytes behind the last frame of an MP3 that are neither tags nor frames.

    Raises:
        _CannotRead: there are frames. libsndfile guesses the length of an MP3 that lost the header which tells it, and
            stops there in silence.
    """
    place = source.tell()
    unread = source.size - place
    if unread <= 16_384 or unread <= 0.02 * source.size:
        return 0
    rest = source.bytes_at(place, min(unread, MAX_TAG))
    if has_mpeg_frames(rest[: 1 << 18]):
        raise _CannotRead(
            "it has lost the header that says how long it is, and only its first "
            f"{found.frames / found.rate:.1f} s can be read; re-encode it"
        )
    return 0 if is_mpeg_tag(rest) else unread


def _pyav(source: Source, reason: str) -> Tail:
    """With PyAV; `reason` is why libsndfile could not."""
    kind = container_name(source.bytes_at(0, 1024))
    what = f"{source.name}, which looks like {kind}," if kind else source.name
    if not pyav.is_installed():
        raise InputError(
            f"{what} cannot be read as audio ({reason}): it is damaged, cut short, or of another kind; {READ_AS_IS}. "
            f"pip install 'hbaf-edge[av]' adds {WITH_AV}; or {HOW_TO_CONVERT}"
        )
    import av

    try:
        recording = pyav.Recording(source)
    except InputError:
        raise
    except (av.FFmpegError, ValueError, OverflowError, RuntimeError) as error:
        said = getattr(error, "strerror", None) or error
        raise InputError(
            f"{what} cannot be read as audio (libsndfile: {reason}; FFmpeg: {said}): it is damaged, cut short, or of "
            f"another kind; {READ_AS_IS}, and {WITH_AV}"
        ) from None
    try:
        found = _choose(recording.blocks(), recording.rate)
    finally:
        recording.close()
    if recording.damaged:
        seconds = found.frames / found.rate
        found = found._replace(
            warnings=(f"{source.name} is damaged: {recording.damaged} parts of it were skipped, {seconds:.2f} s used",)
        )
    return found


def _doubtful(source: Source, doubt: str, seconds: float) -> str:
    return f"{source.name} {doubt}: {seconds:.2f} s of it could be used"
