"""Decode recordings of browsers and phones with PyAV, which contains FFmpeg (extra `av`): WebM, MP4, AMR, WMA, others.

FFmpeg can read playlists and fetch their entries from a network. Here it gets its bytes from `Source`, may use no
protocol, and may open only the containers listed below.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Iterator
from typing import Any

import numpy as np
from numpy.typing import NDArray

from hbaf_edge.audio.samples import MAX_CHANNELS, check_rate, split_blocks
from hbaf_edge.audio.source import Source
from hbaf_edge.errors import InputError

DEMUXERS = (
    "matroska,webm,mov,mp4,m4a,3gp,3g2,mj2,aac,amr,amrnb,amrwb,mpegts,mpeg,asf,ogg,avi,flv,wav,w64,aiff,au,caf,flac,mp3,"
    "ac3,eac3,ape,wv,tta,gsm,g722,voc,nut"
)
OPTIONS = {"format_whitelist": DEMUXERS, "protocol_whitelist": "none"}
MAX_BAD_PACKETS = 1_000  # then decoding stops, so that the work is bounded


def is_installed() -> bool:
    """Whether the extra `av` is installed."""
    return importlib.util.find_spec("av") is not None


class Recording:
    """The audio track of a recording, in blocks.

    Args:
        source: the recording's bytes.

    Attributes:
        rate: Hz.
        damaged: number of parts that could not be decoded and were skipped.

    Raises:
        InputError: there is no audio track, or its rate or number of channels is not accepted.
        av.FFmpegError: FFmpeg cannot read it.
    """

    def __init__(self, source: Source) -> None:
        import av

        source.seek(0)
        self._container: Any = av.open(source, options=OPTIONS, metadata_errors="ignore")
        stream: Any = self._container.streams.best("audio")
        if stream is None:
            raise InputError(f"{source.name} has no audio track, or its end is missing")
        if getattr(stream, "codec_context", None) is None:
            raise InputError(f"{source.name} has audio in a codec that FFmpeg does not know; convert it to FLAC or WAV")
        self._stream = stream
        self.rate = check_rate(stream.rate or 0, f"the sample rate of {source.name}")
        if not 1 <= stream.channels <= MAX_CHANNELS:
            raise InputError(f"{source.name} has {stream.channels} channels; 1 to {MAX_CHANNELS} are accepted")
        self._layout = stream.layout.name
        self.damaged = 0

    def close(self) -> None:
        """Free FFmpeg's memory; the source stays open."""
        self._container.close()

    def blocks(self) -> Iterator[NDArray[np.float32]]:
        """(samples, channels) float32 of about a second each."""
        parts: list[NDArray[np.float32]] = []
        length = 0
        for part in self._frames():
            parts.append(part)
            length += len(part)
            if length >= self.rate:
                yield from split_blocks(np.concatenate(parts), self.rate)
                parts, length = [], 0
        if parts:
            yield from split_blocks(np.concatenate(parts), self.rate)

    def _frames(self) -> Iterator[NDArray[np.float32]]:
        """Decoded frames, (samples, channels), all with the same rate and number of channels."""
        channels = 0
        for part in self._converted():
            block = part.to_ndarray().reshape(part.samples, -1)
            channels = channels or block.shape[1]
            if block.shape[1] != channels:  # FFmpeg does not convert a layout without a name
                block = np.repeat(block.mean(axis=1, keepdims=True), channels, axis=1)
            yield block

    def _converted(self) -> Iterator[Any]:
        """Decoded frames in the format of `_converter`; a frame that cannot be converted counts as damaged."""
        convert = self._converter()
        for frame in self._decoded():
            try:
                yield from convert.resample(frame)
                continue
            except ValueError:  # rate or channels change, as in a phone call that changes networks
                convert = self._converter()
            try:
                yield from convert.resample(frame)
            except ValueError:  # a broken packet may claim any number of channels
                convert = self._converter()
                self.damaged += 1

    def _decoded(self) -> Iterator[Any]:
        """The frames of all packets that can be decoded."""
        import av

        packets = self._container.demux(self._stream)
        while self.damaged < MAX_BAD_PACKETS:
            try:
                packet = next(packets)
                yield from packet.decode()
            except StopIteration:
                return
            except av.EOFError:
                return
            except (av.FFmpegError, IndexError, ValueError, RuntimeError):  # PyAV's own, if tracks come and go
                self.damaged += 1

    def _converter(self) -> Any:
        """A converter to interleaved float32 with the rate and the channels of the track's beginning.

        Not planar: PyAV's arrays of planar frames with many channels crash the process now and then (18.1).
        """
        import av

        return av.AudioResampler(format="flt", layout=self._layout, rate=self.rate)
