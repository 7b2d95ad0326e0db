"""Check which containers and codecs the runtime reads: write the example's speech in each and read it back.

    python -m benchmarks.formats --save        # needs the extra `av`

A pair counts as read if its duration is right to within 0.2 s and its log-mel spectrogram correlates with the original.
The correlation uses the bins below 3.4 kHz (the telephone band) and the best shift of a few frames.
"""

from __future__ import annotations

import io
from typing import Any, NamedTuple

import av
import numpy as np
import soundfile

from benchmarks.report import AsJson, Save, measure_and_report, run
from hbaf_edge.audio import SAMPLE_RATE, load_audio
from hbaf_edge.bench.document import Cell, Report, Section
from hbaf_edge.bench.series import single_value
from hbaf_edge.bench.turns import speech
from hbaf_edge.errors import InputError
from hbaf_edge.mel import log_mel

TELEPHONE_BINS = 58  # of 80 mel bins, those below 3.4 kHz
MIN_CORRELATION = 0.8
MAX_SECONDS_OFF = 0.2  # codecs pad to whole frames and add a delay
MAX_SHIFT = 12  # frames by which a codec's delay may shift the spectrogram


class Pair(NamedTuple):
    """A container and a codec.

    Attributes:
        container: libsndfile's format, or the common name of the container.
        codec: libsndfile's subtype, or FFmpeg's encoder.
        muxer: FFmpeg's muxer, or None if libsndfile writes the file.
        rate: sample rate in Hz.
        channels: 1, or 2 for an encoder without mono.
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
    """Encode (samples,) float32 at `pair.rate` to the bytes of a file."""
    file = io.BytesIO()
    if pair.muxer is None:
        soundfile.write(file, samples, pair.rate, format=pair.container, subtype=pair.codec)
        return file.getvalue()
    layout = "mono" if pair.channels == 1 else "stereo"
    with av.open(file, "w", format=pair.muxer) as out:
        stream: Any = out.add_stream(pair.codec, rate=pair.rate, layout=layout, options={"strict": "experimental"})
        if pair.muxer == "asf":
            stream.bit_rate = 64_000  # WMA encoders have no default
        block = np.repeat(samples[None].astype(np.float32), pair.channels, axis=0)
        frame = av.AudioFrame.from_ndarray(block, format="fltp", layout=layout)
        frame.sample_rate, frame.pts = pair.rate, 0
        convert = av.AudioResampler(format=stream.format, layout=layout, rate=pair.rate, frame_size=stream.frame_size)
        for part in [*convert.resample(frame), *convert.resample(None)]:
            out.mux(stream.encode(part))
        out.mux(stream.encode(None))
    return file.getvalue()


def correlation(decoded: np.ndarray, original: np.ndarray) -> float:
    """Return the correlation of two log-mel spectrograms at the best shift of fewer than `MAX_SHIFT` frames."""
    a, b = log_mel(decoded)[:TELEPHONE_BINS], log_mel(original)[:TELEPHONE_BINS]
    frames = min(a.shape[1], b.shape[1]) - MAX_SHIFT
    shifted = [(a[:, i:], b) for i in range(MAX_SHIFT)] + [(a, b[:, i:]) for i in range(1, MAX_SHIFT)]
    return max(float(np.corrcoef(x[:, :frames].ravel(), y[:, :frames].ravel())[0, 1]) for x, y in shifted)


def read_back(pair: Pair, clips: dict[int, np.ndarray]) -> dict[str, Any]:
    """Write a pair and read it: return "is_read" with "correlation", "seconds_off" and "warnings", or with "error"."""
    original = load_audio(clips[pair.rate], pair.rate)
    try:
        decoded = load_audio(encode(pair, clips[pair.rate]))
    except InputError as error:
        return {"is_read": False, "error": str(error)}
    r = correlation(decoded.samples, original.samples)
    seconds_off = decoded.seconds - original.seconds
    is_read = r >= MIN_CORRELATION and abs(seconds_off) <= MAX_SECONDS_OFF and not decoded.warnings
    return {"is_read": is_read, "correlation": r, "seconds_off": seconds_off, "warnings": decoded.warnings}


def example_clips(rates: set[int]) -> dict[int, np.ndarray]:
    """Return three seconds of the example's speech at each sample rate."""
    import soxr

    clip = speech(3.0)
    return {rate: np.asarray(soxr.resample(clip, SAMPLE_RATE, rate), np.float32) for rate in rates}


def section() -> Section:
    """Read all pairs."""
    clips = example_clips({pair.rate for pair in PAIRS})
    results = [read_back(pair, clips) for pair in PAIRS]
    rows: list[list[Cell]] = [
        [pair.container, pair.codec, pair.rate, "yes" if r["is_read"] else "NO", r.get("correlation"),
         r.get("seconds_off"), r.get("error") or "; ".join(r["warnings"])] for pair, r in zip(PAIRS, results)
    ]  # fmt: skip
    count = sum(r["is_read"] for r in results)
    head = ("container", "codec", "Hz", "read", "correlation", "seconds off", "why not")
    return Section("formats", "Containers and codecs", head, rows, f"{count} of {len(PAIRS)} pairs are read.",
                   {"pairs read": single_value(count)}, "pairs", "higher")  # fmt: skip


def main(save: Save = False, as_json: AsJson = False) -> int:
    versions = {"libsndfile": soundfile.__libsndfile_version__, "soundfile": soundfile.__version__,
                "av": av.__version__}  # fmt: skip
    report = Report("hbaf-edge: audio formats", versions)
    return measure_and_report("formats", report, [("containers and codecs", section)], save, as_json=as_json)


if __name__ == "__main__":
    run(main, __doc__)
