"""Audio files and streams -> the samples of their last 20 s, with libsndfile, or with PyAV if libsndfile cannot."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from hbaf_edge.audio import pyav
from hbaf_edge.audio.headers import TRUNCATED, correct_sizes
from hbaf_edge.audio.quiet import quiet_c_output
from hbaf_edge.audio.raw import raw_options
from hbaf_edge.audio.samples import (
    LONGEST_TAIL,
    MAX_CHANNELS,
    MAX_SECONDS,
    check_rate,
    collect_tails,
    is_audible,
    split_blocks,
    tail_start,
)
from hbaf_edge.audio.sniff import container_name, has_mpeg_frames, is_mpeg_tag
from hbaf_edge.audio.source import Source, one_line, open_source
from hbaf_edge.errors import InputError

if TYPE_CHECKING:
    import soundfile

MAX_FRAMES = 1 << 40  # more than any file has; a header with a larger number does not know the length
MAX_TAG = 1 << 24  # bytes after the last MP3 frame that are searched for tags; no tag is larger
READ_AS_IS = "WAV, FLAC, OGG and MP3 are accepted, and all other formats of libsndfile"
WITH_AV = "WebM, MP4, M4A, ADTS, AMR, 3GP, MPEG-TS and WMA"
HOW_TO_CONVERT = "convert it, for instance with: ffmpeg -i IN -ar 16000 -ac 1 OUT.flac"


class Tail(NamedTuple):
    """The part of a recording that is used.

    Attributes:
        block: (samples, channels): the last 20 s, preceded by the samples that the resampler needs.
        rate: Hz.
        end: number of the frame after the last one in `block`; less than `frames` if only silence follows.
        frames: number of frames of the whole recording.
        warnings: for the caller.
    """

    block: NDArray[Any]
    rate: int
    end: int
    frames: int
    warnings: tuple[str, ...] = ()


def tail_of_array(block: NDArray[Any], rate: int, scale: float) -> Tail:
    """The tail of (samples, channels) in memory; `scale` brings the samples to -1..1."""
    frames = len(block)
    tail = block[tail_start(frames, rate) :]
    if _ends_in_silence(tail, frames, rate, scale):
        return _choose_tail(split_blocks(block, rate), rate, scale)
    return Tail(tail, rate, frames, frames)


def tail_of_file(audio: Any, sample_rate: int | None, sample_format: str | None) -> Tail:
    """The tail of any input of `load_audio` except arrays. The samples before it are never all in memory."""
    if sample_rate is not None:
        check_rate(sample_rate, "sample_rate")
    with open_source(audio, has_header=sample_format is None) as source:
        if sample_format is not None:
            if sample_rate is None:
                raise InputError(
                    f"sample_format={sample_format!r} needs sample_rate, in Hz: the bytes do not contain it"
                )
            tail = _sndfile(source, **raw_options(sample_format, int(sample_rate), source.size, source.name))
        else:
            tail = _decode(source)
        if source.error is not None:
            raise InputError(f"{source.name} cannot be read ({one_line(source.error)})") from source.error
    if sample_rate is not None and sample_rate != tail.rate:
        raise InputError(
            f"{source.name} has {tail.rate} Hz but sample_rate={sample_rate} was passed; leave sample_rate out for "
            "files; for bytes without a header, also pass sample_format, such as sample_format='s16le'"
        )
    return tail._replace(warnings=(*source.notes, *tail.warnings))


def _decode(source: Source) -> Tail:
    """Decode with libsndfile, else with PyAV; if both fail, raise an error that names the kind of file."""
    if source.size == 0:
        raise InputError(f"{source.name} is empty (0 bytes); {READ_AS_IS}")
    problem = correct_sizes(source)
    try:
        tail = _sndfile(source)
    except _CannotDecode as reason:
        tail = _pyav(source, str(reason))
    if problem and not any(problem in warning for warning in tail.warnings):
        tail = tail._replace(warnings=(*tail.warnings, _length_warning(source, problem, tail.frames / tail.rate)))
    return tail


class _CannotDecode(Exception):
    """libsndfile cannot decode the source; the text is its reason."""


def _sndfile(source: Source, **options: Any) -> Tail:
    """Decode with libsndfile.

    Raises:
        _CannotDecode: libsndfile does not read this kind of file.
    """
    import soundfile

    source.seek(0)
    try:
        with quiet_c_output(), soundfile.SoundFile(source, **options) as file:
            rate = check_rate(file.samplerate, f"the sample rate of {source.name}")
            if file.channels > MAX_CHANNELS:
                raise InputError(f"{source.name} has {file.channels} channels; 1 to {MAX_CHANNELS} are accepted")
            tail = _seek_tail(file, rate)
            declared_frames = file.frames
            if tail is None:
                tail = _read_tail(source, rate, options)
            is_mpeg = _is_mpeg(file)
            unread = _unread_bytes(source, tail) if file.format == "MP3" else 0
    except InputError:
        raise
    except (soundfile.LibsndfileError, RuntimeError, OSError, ValueError, TypeError, OverflowError) as error:
        raise _CannotDecode(str(error).split(": ", 1)[-1].rstrip(".")) from None
    if unread:
        note = f"{source.name} has {unread:,} bytes after its last frame that are not audio: they were ignored"
        return tail._replace(warnings=(note,))
    # An MP3's header counts the encoder's delay, which is not decoded.
    is_short = tail.frames < declared_frames < MAX_FRAMES and not is_mpeg
    return tail._replace(warnings=(_length_warning(source, TRUNCATED, tail.frames / rate),)) if is_short else tail


def _is_mpeg(file: soundfile.SoundFile) -> bool:
    """Whether the codec is MP3, also inside a WAV: its length is a guess until it is decoded."""
    return str(file.subtype).startswith("MPEG_LAYER")


def _seek_tail(file: soundfile.SoundFile, rate: int) -> Tail | None:
    """Seek to the tail and read it; None if the length is unknown, the codec cannot seek, or the tail is silent."""
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
    """Read the whole file, one second at a time, and keep its tail."""
    import soundfile

    class Sequential(soundfile.SoundFile):  # type: ignore[misc]
        """A file that is never sought. soundfile seeks after each read, which some codecs cannot do and which loses
        bits of an MP3."""

        def seekable(self) -> bool:
            return False

    source.seek(0)
    with Sequential(source, **options) as file:
        return _choose_tail(_sndfile_blocks(file, rate), rate)


def _choose_tail(blocks: Iterator[NDArray[Any]], rate: int, scale: float = 1.0) -> Tail:
    """The last 20 s; if they are silent, the 20 s before the silence."""
    last, frames, audible, audible_end = collect_tails(blocks, rate, scale)
    last = _trim(last, frames, rate)
    if audible_end and _ends_in_silence(last, frames, rate, scale):
        return Tail(_trim(audible, audible_end, rate), rate, audible_end, frames)
    return Tail(last, rate, frames, frames)


def _trim(block: NDArray[Any], end: int, rate: int) -> NDArray[Any]:
    """The part of a block ending at frame `end` that the resampler needs."""
    return block[max(0, tail_start(end, rate) - (end - len(block))) :]


def _ends_in_silence(tail: NDArray[Any], frames: int, rate: int, scale: float = 1.0) -> bool:
    """Whether the recording is longer than 20 s and its last 20 s are silent."""
    return frames > MAX_SECONDS * rate and not is_audible(tail[-int(MAX_SECONDS * rate) :], scale)


def _sndfile_blocks(file: soundfile.SoundFile, rate: int) -> Iterator[NDArray[np.float32]]:
    """All samples, in blocks of at most one second."""
    left = file.frames if file.frames < MAX_FRAMES and not _is_mpeg(file) else MAX_FRAMES
    while left > 0:
        block = file.read(min(rate, left), dtype="float32", always_2d=True)
        if not len(block):
            return
        left -= len(block)
        yield block


def _unread_bytes(source: Source, tail: Tail) -> int:
    """Number of bytes after the last decoded frame of an MP3 that are neither tags nor frames.

    Raises:
        _CannotDecode: these bytes contain frames. libsndfile guesses the length of an MP3 without the header that
            states it, and stops there without an error.
    """
    offset = source.tell()
    unread = source.size - offset
    if unread <= 16_384 or unread <= 0.02 * source.size:
        return 0
    rest = source.bytes_at(offset, min(unread, MAX_TAG))
    if has_mpeg_frames(rest[: 1 << 18]):
        raise _CannotDecode(
            "it has lost the header that states its length, and only its first "
            f"{tail.frames / tail.rate:.1f} s can be read; re-encode it"
        )
    return 0 if is_mpeg_tag(rest) else unread


def _pyav(source: Source, reason: str) -> Tail:
    """Decode with PyAV; `reason` is why libsndfile could not."""
    kind = container_name(source.bytes_at(0, 1024))
    what = f"{source.name}, which looks like {kind}," if kind else source.name
    if not pyav.is_installed():
        raise InputError(
            f"{what} cannot be read as audio ({reason}): it is damaged, cut short, or in another format; {READ_AS_IS}. "
            f"pip install 'hbaf-edge[av]' adds {WITH_AV}; or {HOW_TO_CONVERT}"
        )
    import av

    try:
        recording = pyav.Recording(source)
    except InputError:
        raise
    except (av.FFmpegError, ValueError, OverflowError, RuntimeError) as error:
        message = getattr(error, "strerror", None) or error
        raise InputError(
            f"{what} cannot be read as audio (libsndfile: {reason}; FFmpeg: {message}): it is damaged, cut short, or "
            f"in another format; {READ_AS_IS}, and {WITH_AV}"
        ) from None
    try:
        tail = _choose_tail(recording.blocks(), recording.rate)
    finally:
        recording.close()
    if recording.damaged:
        seconds = tail.frames / tail.rate
        note = f"{source.name} is damaged: {recording.damaged} of its parts could not be decoded, {seconds:.2f} s used"
        tail = tail._replace(warnings=(note,))
    return tail


def _length_warning(source: Source, problem: str, seconds: float) -> str:
    return f"{source.name} {problem}: {seconds:.2f} s of it could be used"
