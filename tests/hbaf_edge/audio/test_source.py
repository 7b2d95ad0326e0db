"""Whatever holds audio is read: paths, pipes, streams that cannot seek, bytes without a header; an address never."""

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

SOUND = speech(1.0)


def wav(kind="WAV", sound=SOUND):
    file = io.BytesIO()
    soundfile.write(file, sound, 16_000, format=kind)
    return file.getvalue()


class Trickle(io.RawIOBase):
    """A stream that cannot seek and gives 100 bytes at a time, as a socket may."""

    def __init__(self, data):
        self._file = io.BytesIO(data)

    def readable(self):
        return True

    def read(self, size=-1):
        return self._file.read(min(size, 100) if size >= 0 else 100)


class Response:
    """What an HTTP library gives: `read` and nothing else."""

    def __init__(self, data):
        self.read = io.BytesIO(data).read


@pytest.mark.parametrize("kind", ["WAV", "FLAC", "OGG", "MP3"])
@pytest.mark.parametrize("stream", [Trickle, Response])
def test_streams_that_cannot_seek(kind, stream):
    np.testing.assert_array_equal(load_audio(stream(wav(kind))).samples, load_audio(wav(kind)).samples)


def test_pipes_and_named_pipes(tmp_path):
    fifo = tmp_path / "fifo"
    os.mkfifo(fifo)
    reading, writing = os.pipe()

    def feed():
        os.write(writing, wav())
        os.close(writing)
        fifo.write_bytes(wav())

    thread = threading.Thread(target=feed)
    thread.start()
    with os.fdopen(reading, "rb") as pipe:
        assert load_audio(pipe).samples.size == 16_000
    assert load_audio(fifo).samples.size == 16_000
    thread.join()


def test_a_file_object_that_was_not_rewound_is_read_from_its_start():
    file = io.BytesIO()
    soundfile.write(file, SOUND, 16_000, format="WAV")
    file.seek(0, io.SEEK_END)
    heard = load_audio(file)
    assert heard.samples.size == 16_000
    assert heard.warnings == ("the audio file object was not rewound: it was read from its start",)
    half = io.BytesIO(wav("FLAC"))
    half.seek(18)  # where soundfile leaves a FLAC that it has written
    assert load_audio(half).samples.size == 16_000


@pytest.mark.parametrize("behind", [b"", b"LIST\x04\0\0\0INFO"])
@pytest.mark.parametrize("kind", ["WAV", "FLAC", "MP3"])
def test_a_file_object_can_be_read_twice(kind, behind):
    file = io.BytesIO(b"12345" + wav(kind) + behind)
    file.seek(5)
    first = load_audio(file)
    second = load_audio(file)
    np.testing.assert_array_equal(first.samples, second.samples)
    assert (first.warnings, file.tell()) == (second.warnings, 5)


def test_objects_that_seek_in_their_own_way(tmp_path):
    import mmap
    import tarfile

    (tmp_path / "a.wav").write_bytes(wav())
    with (tmp_path / "a.wav").open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as mapped:
        assert load_audio(mapped).samples.size == 16_000
    with tarfile.open(tmp_path / "a.tar", "w") as archive:
        archive.add(tmp_path / "a.wav", "a.wav")
    with tarfile.open(tmp_path / "a.tar", "r|") as archive:
        assert load_audio(archive.extractfile(archive.next())).samples.size == 16_000


class Asynchronous:
    async def read(self, size=-1):
        return b""


def test_a_stream_is_bounded(monkeypatch):
    monkeypatch.setattr(source, "MAX_STREAM_BYTES", 10_000)
    monkeypatch.setattr(source, "CHUNK", 1_000)
    with pytest.raises(InputError, match="cannot seek and holds more than"):
        load_audio(Response(wav()))


class Broken(io.BytesIO):
    """Fails in the middle, as a disk that was pulled out does."""

    def read(self, size=-1):
        if self.tell() > 1_000:
            raise OSError("no such\ndevice")
        return super().read(min(size, 500) if size >= 0 else 500)


class NotReady(io.RawIOBase):
    def read(self, size=-1):
        return None


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (Broken(wav()), "cannot be read.*no such device"),
        (NotReady(), "no data yet"),
        ("https://example.org/a.wav", "never fetched from a network"),
        ("a\0b.wav", "there is no audio file"),
        (io.StringIO("RIFF"), "binary mode"),
        (Asynchronous(), "await its read"),
    ],
)
def test_sources_that_cannot_be_read(given, message, capfd):
    with pytest.raises(InputError, match=message):
        load_audio(given)
    assert capfd.readouterr().err == "", "a decoder's callback may not print"


def test_a_playlist_fetches_nothing(tmp_path):
    """FFmpeg reads playlists, and what they name; here it may not."""
    server = socket.create_server(("127.0.0.1", 0))
    server.settimeout(0.2)
    port = server.getsockname()[1]
    (tmp_path / "a.wav").write_bytes(wav())
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


WAYS = {
    "s8": lambda x: (x * 127).astype("i1"), "u8": lambda x: (x * 127 + 128).astype("u1"),
    "s16le": lambda x: (x * 32767).astype("<i2"), "s16be": lambda x: (x * 32767).astype(">i2"),
    "s24le": lambda x: (x * 2**23).astype("<i4").view("u1").reshape(-1, 4)[:, :3],
    "s24be": lambda x: (x * 2**23).astype(">i4").view("u1").reshape(-1, 4)[:, 1:],
    "s32le": lambda x: (x * 2**31).astype("<i4"), "s32be": lambda x: (x * 2**31).astype(">i4"),
    "f32le": lambda x: x.astype("<f4"), "f32be": lambda x: x.astype(">f4"),
    "f64le": lambda x: x.astype("<f8"), "f64be": lambda x: x.astype(">f8"),
}  # fmt: skip


@pytest.mark.parametrize("sample_format", FORMATS)
def test_bytes_without_a_header(sample_format, tiny_runtime):
    if sample_format in WAYS:
        data = WAYS[sample_format](SOUND.astype(np.float64)).tobytes()
    else:
        file = io.BytesIO()
        subtype = {"mulaw": "ULAW", "alaw": "ALAW"}[sample_format]
        soundfile.write(file, SOUND, 16_000, format="RAW", subtype=subtype)
        data = file.getvalue()
    loudest = {"s8": 1 / 64, "u8": 1 / 64, "mulaw": 0.02, "alaw": 0.02}.get(sample_format, 1e-4)
    heard = load_audio(data, 16_000, sample_format)
    np.testing.assert_allclose(heard.samples, SOUND, atol=loudest)
    turn = tiny_runtime.begin()
    width = FORMATS[sample_format][2]
    for start in range(0, len(data), 320 * width):
        turn.feed(data[start : start + 320 * width], 16_000, sample_format)
    assert turn.finish().probabilities == tiny_runtime.predict(heard.samples, sample_rate=16_000).probabilities


def test_raw_bytes_that_say_too_little():
    data = (SOUND * 32767).astype("<i2").tobytes()
    for given, rate, sample_format, message in (
        (data, None, "s16le", "needs sample_rate"),
        (data[:-1], 16_000, "s16le", "no whole number of s16le samples"),
        (data, 16_000, "pcm16", "s16le, s16be"),
        (data, 16_000, None, "cannot be read as audio"),
        (SOUND, 16_000, "s16le", "is for bytes"),
        (b"", 16_000, "s16le", "no samples"),
    ):
        with pytest.raises(InputError, match=message):
            load_audio(given, rate, sample_format)


def test_without_pyav_the_container_and_the_command_are_named(monkeypatch):
    monkeypatch.setattr(pyav, "is_installed", lambda: False)
    webm = bytes.fromhex("1a45dfa3") + bytes(20) + b"webm" + bytes(2_000)
    with pytest.raises(InputError, match=r"looks like WebM.*hbaf-edge\[av\].*ffmpeg -i"):
        load_audio(webm)


NOISY = """
import io, sys, numpy as np, soundfile
from hbaf_edge.audio import load_audio, pyav
from hbaf_edge.errors import InputError
pyav.is_installed = lambda: False
file = io.BytesIO()
soundfile.write(file, np.random.default_rng(0).normal(0, .2, 500_000), 16_000, format="MP3")
data = bytearray(file.getvalue())
for where in range(3_000, len(data), 997):
    data[where : where + 40] = bytes(40)
for given in (bytes(data), bytes(data[: len(data) // 2]), bytes(data[5_000:])):
    try:
        load_audio(given)
    except InputError:
        pass
import ctypes
libc = ctypes.CDLL(None)
libc.perror(b"C speaks again")
libc.fflush(None)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="perror's text is glibc's")
def test_libmpg123_is_kept_off_standard_error():
    done = subprocess.run([sys.executable, "-c", NOISY], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert done.stderr.startswith("C speaks again")
    assert len(done.stderr.splitlines()) == 1
