"""Which containers and codecs can be read? Each is written here from the example's speech, and read by the runtime.

    python -m benchmarks.formats --save        # needs the extra `av`

A pair counts as read where its length is right to within a fifth of a second and its log-mel spectrogram agrees with
the original's (correlation, best of a few frames' shift, below the telephone band's 3.4 kHz).
"""

from __future__ import annotations

import io
from typing import Any, NamedTuple

import av
import numpy as np
import soundfile

from benchmarks.report import Save, conclude, run
from hbaf_edge.audio import SAMPLE_RATE, load_audio
from hbaf_edge.bench.document import Cell, Report, Section
from hbaf_edge.bench.series import single
from hbaf_edge.bench.turns import speech
from hbaf_edge.errors import InputError
from hbaf_edge.mel import log_mel

TELEPHONE_BINS = 58  # of 80 mel bins, those below 3.4 kHz
LEAST_LIKENESS = 0.8
SECONDS_OFF = 0.2  # codecs pad to whole frames and add their delay


class Pair(NamedTuple):
    """A container, a codec in it, and how it is written: FFmpeg's muxer, or None for libsndfile.

    Attributes:
        container: libsndfile's format, or the name that people know it by.
        codec: libsndfile's subtype, or FFmpeg's encoder.
        muxer: FFmpeg's name, None where libsndfile writes it.
        rate: Hz.
        channels: one, or two where the encoder knows no mono.
    """

    container: str
    codec: str
    muxer: str | None = None
    rate: int = SAMPLE_RATE
    channels: int = 1


PAIRS = (
    Pair("WAV", "PCM_16"), Pair("WAV", "PCM_24"), Pair("WAV", "FLOAT"), Pair("WAV", "ULAW", rate=8_000),
    Pair("WAV", "ALAW", rate=8_000), Pair("WAV", "IMA_ADPCM"), Pair("WAV", "MS_ADPCM"),
    Pair("WAV", "GSM610", rate=8_000), Pair("WAV", "G721_32", rate=8_000), Pair("RF64", "PCM_16"),
    Pair("W64", "PCM_16"), Pair("AIFF", "PCM_16"), Pair("AU", "ULAW", rate=8_000), Pair("CAF", "ALAC_16"),
    Pair("FLAC", "PCM_16"), Pair("OGG", "VORBIS"), Pair("OGG", "OPUS"), Pair("MP3", "MPEG_LAYER_III"),
    Pair("WebM", "libopus", "webm", 48_000), Pair("WebM", "vorbis", "webm", 48_000, 2),
    Pair("MKA", "libopus", "matroska", 48_000), Pair("MKA", "aac", "matroska", 44_100), Pair("MKA", "flac", "matroska"),
    Pair("MKA", "pcm_s16le", "matroska"), Pair("MP4", "aac", "mp4", 48_000), Pair("MP4", "alac", "mp4", 44_100),
    Pair("MP4", "libmp3lame", "mp4", 44_100), Pair("M4A", "aac", "ipod", 44_100), Pair("M4A", "alac", "ipod", 44_100),
    Pair("MOV", "aac", "mov", 48_000), Pair("ADTS", "aac", "adts", 44_100),
    Pair("AMR", "libopencore_amrnb", "amr", 8_000),
    Pair("3GP", "libopencore_amrnb", "3gp", 8_000), Pair("3GP", "aac", "3gp", 16_000),
    Pair("MPEG-TS", "aac", "mpegts", 48_000), Pair("MPEG-TS", "mp2", "mpegts", 48_000),
    Pair("WMA", "wmav2", "asf", 44_100), Pair("WMA", "wmav1", "asf", 44_100), Pair("AVI", "libmp3lame", "avi", 44_100),
    Pair("WAV", "libmp3lame", "wav", 44_100),
)  # fmt: skip


def encode(pair: Pair, samples: np.ndarray) -> bytes:
    """The file: (samples,) float32 at `pair.rate` in that container and codec."""
    file = io.BytesIO()
    if pair.muxer is None:
        soundfile.write(file, samples, pair.rate, format=pair.container, subtype=pair.codec)
        return file.getvalue()
    layout = "mono" if pair.channels == 1 else "stereo"
    with av.open(file, "w", format=pair.muxer) as out:
        stream: Any = out.add_stream(pair.codec, rate=pair.rate, layout=layout, options={"strict": "experimental"})
        if pair.muxer == "asf":
            stream.bit_rate = 64_000  # its encoders have no default
        block = np.repeat(samples[None].astype(np.float32), pair.channels, axis=0)
        frame = av.AudioFrame.from_ndarray(block, format="fltp", layout=layout)
        frame.sample_rate, frame.pts = pair.rate, 0
        convert = av.AudioResampler(format=stream.format, layout=layout, rate=pair.rate, frame_size=stream.frame_size)
        for part in [*convert.resample(frame), *convert.resample(None)]:
            out.mux(stream.encode(part))
        out.mux(stream.encode(None))
    return file.getvalue()


def likeness(decoded: np.ndarray, original: np.ndarray, most: int = 12) -> float:
    """Correlation of two log-mel spectrograms, the best of up to so many frames' shift either way."""
    a, b = log_mel(decoded)[:TELEPHONE_BINS], log_mel(original)[:TELEPHONE_BINS]
    frames = min(a.shape[1], b.shape[1]) - most
    pairs = [(a[:, i:], b) for i in range(most)] + [(a, b[:, i:]) for i in range(1, most)]
    return max(float(np.corrcoef(x[:, :frames].ravel(), y[:, :frames].ravel())[0, 1]) for x, y in pairs)


def read_back(pair: Pair, clips: dict[int, np.ndarray]) -> dict[str, Any]:
    """Write one pair and read it: "read", and "likeness", "seconds_off" and "warnings", or "error"."""
    original = load_audio(clips[pair.rate], pair.rate)
    try:
        decoded = load_audio(encode(pair, clips[pair.rate]))
    except InputError as error:
        return {"read": False, "error": str(error)}
    alike = likeness(decoded.samples, original.samples)
    off = decoded.seconds - original.seconds
    is_read = alike >= LEAST_LIKENESS and abs(off) <= SECONDS_OFF and not decoded.warnings
    return {"read": is_read, "likeness": alike, "seconds_off": off, "warnings": decoded.warnings}


def example(rates: set[int]) -> dict[int, np.ndarray]:
    """Three seconds of the example's speech at each rate."""
    import soxr

    clip = speech(3.0)
    return {rate: np.asarray(soxr.resample(clip, SAMPLE_RATE, rate), np.float32) for rate in rates}


def section() -> Section:
    """All pairs."""
    clips = example({pair.rate for pair in PAIRS})
    results = [read_back(pair, clips) for pair in PAIRS]
    rows: list[list[Cell]] = [
        [pair.container, pair.codec, pair.rate, "yes" if r["read"] else "NO", r.get("likeness"), r.get("seconds_off"),
         r.get("error") or "; ".join(r["warnings"])] for pair, r in zip(PAIRS, results)
    ]  # fmt: skip
    count = sum(r["read"] for r in results)
    head = ("container", "codec", "Hz", "read", "likeness", "seconds off", "why not")
    return Section("formats", "Containers and codecs", head, rows, f"{count} of {len(PAIRS)} pairs are read.",
                   {"pairs read": single(count)}, "pairs", "higher")  # fmt: skip


def main(save: Save = False) -> int:
    versions = {"libsndfile": soundfile.__libsndfile_version__, "soundfile": soundfile.__version__,
                "av": av.__version__}  # fmt: skip
    report = Report("hbaf-edge: audio formats", versions)
    return conclude("formats", report, [("containers and codecs", section)], save)


if __name__ == "__main__":
    run(main, __doc__)
