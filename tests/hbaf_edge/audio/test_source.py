"""Paths, pipes, streams that cannot seek and bytes without a header are read; addresses are not."""

import io
import os
import socket
import subprocess
import sys
import threading

import numpy as np
import pytest
import soundfile

from hbaf_edge.audio import load_audio, pyav, source
from hbaf_edge.audio.raw import FORMATS
from hbaf_edge.errors import InputError
from tests.conftest import ROOT, speech

SAMPLES = speech(1.0)


def encoded(kind="WAV", samples=SAMPLES):
    file = io.BytesIO()
    soundfile.write(file, samples, 16_000, format=kind)
    return file.getvalue()


class Trickle(io.RawIOBase):
    """A stream that cannot seek and returns 100 bytes at a time, as a socket may."""

    def __init__(self, data):
        self._file = io.BytesIO(data)

    def readable(self):
        return True

    def read(self, size=-1):
        return self._file.read(min(size, 100) if size >= 0 else 100)


class Response:
    """An HTTP response: it has only `read`."""

    def __init__(self, data):
        self.read = io.BytesIO(data).read


@pytest.mark.parametrize("kind", ["WAV", "FLAC", "OGG", "MP3"])
@pytest.mark.parametrize("stream", [Trickle, Response])
def test_stream_is_read_when_it_cannot_seek(kind, stream):
    np.testing.assert_array_equal(load_audio(stream(encoded(kind))).samples, load_audio(encoded(kind)).samples)


def test_pipe_and_named_pipe_are_read(tmp_path):
    fifo = tmp_path / "fifo"
    os.mkfifo(fifo)
    read_end, write_end = os.pipe()

    def feed():
        os.write(write_end, encoded())
        os.close(write_end)
        fifo.write_bytes(encoded())

    thread = threading.Thread(target=feed)
    thread.start()
    with os.fdopen(read_end, "rb") as pipe:
        assert load_audio(pipe).samples.size == 16_000
    assert load_audio(fifo).samples.size == 16_000
    thread.join()


def test_file_object_is_read_from_its_start_when_not_rewound():
    file = io.BytesIO()
    soundfile.write(file, SAMPLES, 16_000, format="WAV")
    file.seek(0, io.SEEK_END)
    audio = load_audio(file)
    assert audio.samples.size == 16_000
    assert audio.warnings == ("the audio file object was not rewound: it was read from its start",)
    flac = io.BytesIO(encoded("FLAC"))
    flac.seek(18)  # the position at which soundfile leaves a FLAC that it has written
    assert load_audio(flac).samples.size == 16_000


@pytest.mark.parametrize("trailer", [b"", b"LIST\x04\0\0\0INFO"])
@pytest.mark.parametrize("kind", ["WAV", "FLAC", "MP3"])
def test_file_object_can_be_read_twice(kind, trailer):
    file = io.BytesIO(b"12345" + encoded(kind) + trailer)
    file.seek(5)
    first = load_audio(file)
    second = load_audio(file)
    np.testing.assert_array_equal(first.samples, second.samples)
    assert (first.warnings, file.tell()) == (second.warnings, 5)


def test_memory_map_and_tar_member_are_read(tmp_path):
    import mmap
    import tarfile

    (tmp_path / "a.wav").write_bytes(encoded())
    with (tmp_path / "a.wav").open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as mapped:
        assert load_audio(mapped).samples.size == 16_000
    with tarfile.open(tmp_path / "a.tar", "w") as archive:
        archive.add(tmp_path / "a.wav", "a.wav")
    with tarfile.open(tmp_path / "a.tar", "r|") as archive:
        assert load_audio(archive.extractfile(archive.next())).samples.size == 16_000


class Asynchronous:
    async def read(self, size=-1):
        return b""


def test_stream_is_rejected_when_it_is_too_long(monkeypatch):
    monkeypatch.setattr(source, "MAX_STREAM_BYTES", 10_000)
    monkeypatch.setattr(source, "CHUNK", 1_000)
    with pytest.raises(InputError, match="cannot seek and has more than"):
        load_audio(Response(encoded()))


class Broken(io.BytesIO):
    """Fails in the middle, like a disk that is removed."""

    def read(self, size=-1):
        if self.tell() > 1_000:
            raise OSError("no such\ndevice")
        return super().read(min(size, 500) if size >= 0 else 500)


class NotReady(io.RawIOBase):
    def read(self, size=-1):
        return None


@pytest.mark.parametrize(
    ("audio", "message"),
    [
        (Broken(encoded()), "cannot be read.*no such device"),
        (NotReady(), "no data yet"),
        ("https://example.org/a.wav", "never fetched from a network"),
        ("a\0b.wav", "there is no audio file"),
        (io.StringIO("RIFF"), "binary mode"),
        (Asynchronous(), "await its read"),
    ],
)
def test_source_is_rejected_when_it_cannot_be_read(audio, message, capfd):
    with pytest.raises(InputError, match=message):
        load_audio(audio)
    assert capfd.readouterr().err == "", "a decoder's callback must not print"


def test_playlist_causes_no_network_access(tmp_path):
    """FFmpeg reads playlists and their entries; here it must not."""
    server = socket.create_server(("127.0.0.1", 0))
    server.settimeout(0.2)
    port = server.getsockname()[1]
    (tmp_path / "a.wav").write_bytes(encoded())
    lists = (
        f"#EXTM3U\n#EXT-X-TARGETDURATION:10\n#EXTINF:10,\nhttp://127.0.0.1:{port}/a.ts\n#EXT-X-ENDLIST\n",
        f"ffconcat version 1.0\nfile 'http://127.0.0.1:{port}/a.wav'\n",
        f"ffconcat version 1.0\nfile '{tmp_path}/a.wav'\n",
        f"v=0\nc=IN IP4 127.0.0.1\nm=audio {port} RTP/AVP 0\n",
    )
    for text in lists:
        with pytest.raises(InputError, match="cannot be read as audio"):
            load_audio(text.encode())
    with pytest.raises(TimeoutError):
        server.accept()
    server.close()


ENCODERS = {
    "s8": lambda x: (x * 127).astype("i1"), "u8": lambda x: (x * 127 + 128).astype("u1"),
    "s16le": lambda x: (x * 32767).astype("<i2"), "s16be": lambda x: (x * 32767).astype(">i2"),
    "s24le": lambda x: (x * 2**23).astype("<i4").view("u1").reshape(-1, 4)[:, :3],
    "s24be": lambda x: (x * 2**23).astype(">i4").view("u1").reshape(-1, 4)[:, 1:],
    "s32le": lambda x: (x * 2**31).astype("<i4"), "s32be": lambda x: (x * 2**31).astype(">i4"),
    "f32le": lambda x: x.astype("<f4"), "f32be": lambda x: x.astype(">f4"),
    "f64le": lambda x: x.astype("<f8"), "f64be": lambda x: x.astype(">f8"),
}  # fmt: skip


@pytest.mark.parametrize("sample_format", FORMATS)
def test_bytes_without_a_header_are_read(sample_format, tiny_runtime):
    if sample_format in ENCODERS:
        data = ENCODERS[sample_format](SAMPLES.astype(np.float64)).tobytes()
    else:
        file = io.BytesIO()
        subtype = {"mulaw": "ULAW", "alaw": "ALAW"}[sample_format]
        soundfile.write(file, SAMPLES, 16_000, format="RAW", subtype=subtype)
        data = file.getvalue()
    tolerance = {"s8": 1 / 64, "u8": 1 / 64, "mulaw": 0.02, "alaw": 0.02}.get(sample_format, 1e-4)
    audio = load_audio(data, 16_000, sample_format)
    np.testing.assert_allclose(audio.samples, SAMPLES, atol=tolerance)
    turn = tiny_runtime.begin()
    width = FORMATS[sample_format][2]
    for start in range(0, len(data), 320 * width):
        turn.feed(data[start : start + 320 * width], 16_000, sample_format)
    assert turn.finish().probabilities == tiny_runtime.predict(audio.samples, sample_rate=16_000).probabilities


def test_raw_bytes_are_rejected_with_a_reason():
    data = (SAMPLES * 32767).astype("<i2").tobytes()
    for audio, rate, sample_format, message in (
        (data, None, "s16le", "needs sample_rate"),
        (data[:-1], 16_000, "s16le", "not a whole number of s16le samples"),
        (data, 16_000, "pcm16", "s16le, s16be"),
        (data, 16_000, None, "cannot be read as audio"),
        (SAMPLES, 16_000, "s16le", "is for bytes"),
        (b"", 16_000, "s16le", "no samples"),
    ):
        with pytest.raises(InputError, match=message):
            load_audio(audio, rate, sample_format)


def test_error_names_the_container_and_the_command_when_pyav_is_missing(monkeypatch):
    monkeypatch.setattr(pyav, "is_installed", lambda: False)
    webm = bytes.fromhex("1a45dfa3") + bytes(20) + b"webm" + bytes(2_000)
    with pytest.raises(InputError, match=r"looks like WebM.*hbaf-edge\[av\].*ffmpeg -i"):
        load_audio(webm)


DECODE_DAMAGED_MP3 = """
import io, sys, numpy as np, soundfile
from hbaf_edge.audio import load_audio, pyav
from hbaf_edge.errors import InputError
pyav.is_installed = lambda: False
file = io.BytesIO()
soundfile.write(file, np.random.default_rng(0).normal(0, .2, 500_000), 16_000, format="MP3")
data = bytearray(file.getvalue())
for offset in range(3_000, len(data), 997):
    data[offset : offset + 40] = bytes(40)
for audio in (bytes(data), bytes(data[: len(data) // 2]), bytes(data[5_000:])):
    try:
        load_audio(audio)
    except InputError:
        pass
import ctypes
libc = ctypes.CDLL(None)
libc.perror(b"C output is back")
libc.fflush(None)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="the text is that of glibc's perror")
def test_libmpg123_prints_nothing_to_standard_error():
    process = subprocess.run([sys.executable, "-c", DECODE_DAMAGED_MP3], cwd=ROOT, capture_output=True, text=True)
    assert process.returncode == 0, process.stderr
    assert process.stderr.startswith("C output is back")
    assert len(process.stderr.splitlines()) == 1


@pytest.mark.skipif(not pyav.is_installed(), reason="the extra av is not installed")
def test_recording_with_many_channels_is_decoded():
    """PyAV's arrays of planar frames crash the process from eight channels on, so frames are read interleaved."""
    channels = np.random.default_rng(0).uniform(-0.5, 0.5, (4_000, 16)).astype(np.float32)
    buffer = io.BytesIO()
    soundfile.write(buffer, channels, 16_000, format="WAV", subtype="FLOAT")
    for _ in range(20):
        recording = pyav.Recording(source.open_source(buffer.getvalue()))
        np.testing.assert_array_equal(np.concatenate(list(recording.blocks())), channels)
        recording.close()
