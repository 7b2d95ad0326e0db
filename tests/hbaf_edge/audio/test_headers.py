"""Wrong sizes in headers: files are read to their end. Tags after an MP3's last frame are not audio."""

import io
import struct

import numpy as np
import pytest
import soundfile

from hbaf_edge.audio import load_audio, pyav
from hbaf_edge.errors import InputError
from tests.conftest import speech

RATE, SAMPLES = 16_000, speech(2.0)


def encoded(kind, subtype, samples=SAMPLES, rate=RATE):
    file = io.BytesIO()
    soundfile.write(file, samples, rate, format=kind, subtype=subtype)
    return file.getvalue()


def size_fields(kind, data):
    """Offset and `struct` format of every size that a streaming recorder may not know."""
    at = data.index
    return {
        "WAV": lambda: [(4, "<I"), (at(b"data") + 4, "<I")],
        "WAVEX": lambda: [(4, "<I"), (at(b"data") + 4, "<I"), (at(b"fact") + 8, "<I")],
        "RF64": lambda: [(20, "<Q"), (28, "<Q")],
        "W64": lambda: [(16, "<Q"), (at(b"data\xf3") + 16, "<Q")],
        "AIFF": lambda: [(4, ">I"), (at(b"COMM") + 10, ">I"), (at(b"SSND") + 4, ">I")],
        "AU": lambda: [(8, ">I")],
        "CAF": lambda: [(at(b"data\0") + 4, ">Q")],
        "SVX": lambda: [(4, ">I"), (at(b"VHDR") + 8, ">I"), (at(b"BODY") + 4, ">I")],
        "AVR": lambda: [(26, ">I")],
        "MPC2K": lambda: [(at(b"\0}\0\0"), "<I")],
        "VOC": lambda: [(27, "<I")],
    }[kind]()


def with_sizes(kind, data, value):
    changed = bytearray(data)
    for offset, form in size_fields(kind, data):
        width = 3 if kind == "VOC" else struct.calcsize(form)
        changed[offset : offset + width] = struct.pack(form, value % 256 ** struct.calcsize(form))[:width]
    return bytes(changed)


PLACEHOLDERS = {"0": 0, "ones": -1, "2^31 - 1": 0x7FFFFFFF, "2^31": 1 << 31, "sox": 0x7FFFF024, "cloud": 2_000_000_000}
KINDS = [
    ("WAV", "PCM_16"), ("WAV", "FLOAT"), ("WAV", "ULAW"), ("WAVEX", "PCM_24"), ("RF64", "PCM_16"), ("W64", "PCM_16"),
    ("AIFF", "PCM_16"), ("AU", "PCM_16"), ("CAF", "PCM_16"), ("SVX", "PCM_16"), ("AVR", "PCM_16"), ("MPC2K", "PCM_16"),
    ("VOC", "PCM_16"),
]  # fmt: skip


@pytest.mark.parametrize("placeholder", PLACEHOLDERS)
@pytest.mark.parametrize(("kind", "subtype"), KINDS)
def test_file_is_read_to_its_end_when_sizes_are_placeholders(kind, subtype, placeholder):
    data = encoded(kind, subtype)
    audio = load_audio(with_sizes(kind, data, PLACEHOLDERS[placeholder]))
    np.testing.assert_array_equal(audio.samples, load_audio(data).samples)
    assert audio.warnings == ()


@pytest.mark.parametrize("riff", [0, 36, 36 + 2 * len(SAMPLES)])
def test_wav_is_read_when_its_data_size_is_zero(riff):
    data = bytearray(encoded("WAV", "PCM_16"))
    data[4:8] = struct.pack("<I", riff)
    data[40:44] = bytes(4)
    assert load_audio(bytes(data)).samples.size == SAMPLES.size


def test_empty_wav_is_rejected_when_another_chunk_follows():
    data = encoded("WAV", "PCM_16", SAMPLES[:0]) + b"LIST" + struct.pack("<I", 14) + b"INFOISFT\x02\0\0\0me"
    with pytest.raises(InputError, match="no samples"):
        load_audio(data)


@pytest.mark.parametrize("kind", ["WAV", "RF64", "W64", "AIFF", "AU", "CAF"])
def test_truncated_file_is_used_with_a_warning(kind):
    data = encoded(kind, "PCM_16")
    audio = load_audio(data[: -len(SAMPLES)])  # half of the bytes of the samples
    assert audio.seconds == pytest.approx(1.0, abs=0.01)
    assert "truncated" in audio.warnings[0]


@pytest.mark.parametrize("kind", ["WAV", "AIFF", "AU", "W64"])
@pytest.mark.parametrize("subtype", ["GSM610", "G721_32", "G723_24", "DWVW_16", "NMS_ADPCM_16"])
def test_last_20_seconds_are_used_when_the_codec_cannot_seek(kind, subtype):
    if not soundfile.check_format(kind, subtype):
        pytest.skip("libsndfile does not support this codec in this container")
    samples = speech(25.0, 8_000)
    audio = load_audio(encoded(kind, subtype, samples, 8_000))
    assert audio.samples.size == pytest.approx(320_000, abs=1_280)
    assert any("only its last 20 s" in warning for warning in audio.warnings)
    original = load_audio(samples, 8_000).samples[: audio.samples.size]
    assert np.corrcoef(audio.samples[: original.size], original)[0, 1] > 0.9


def ape_tag(size, has_header):
    flags = 0x8000_0000 if has_header else 0
    items = np.random.default_rng(0).integers(0, 256, size, np.uint8).tobytes()
    footer = b"APETAGEX" + struct.pack("<IIII", 2000, size + 32, 1, flags) + bytes(8)
    return (footer if has_header else b"") + items + footer


ID3V1 = b"TAG" + bytes(125)
LYRICS = b"LYRICSBEGIN" + b"x" * 40_000 + b"040011LYRICS200"
TAGS = {
    "APEv2": ape_tag(60_000, has_header=False),
    "APEv2 with a header": ape_tag(60_000, has_header=True),
    "zeros": bytes(60_000),
    "ID3v1": ID3V1,
    "Lyrics3 and ID3v1": LYRICS + ID3V1,
    "APEv2, Lyrics3, ID3v1 and zeros": ape_tag(60_000, has_header=True) + LYRICS + ID3V1 + bytes(20_000),
    "APEv2 and an ID3v1 of zeros": ape_tag(60_000, has_header=False) + ID3V1,
    "ID3v2 at the end": bytes(40_000) + b"3DI\x04\0\0" + bytes([0, 2, 56, 64]),
}


@pytest.mark.parametrize("tag", TAGS)
def test_tags_after_an_mp3_cause_no_warning(tag, monkeypatch):
    monkeypatch.setattr(pyav, "is_installed", lambda: False)  # only libsndfile may read it
    data = encoded("MP3", "MPEG_LAYER_III")
    audio = load_audio(data + TAGS[tag])
    assert audio.seconds == pytest.approx(2.0, abs=0.15)
    assert audio.warnings == ()


@pytest.mark.parametrize("rest", [b"\xff" * 60_000, b" " * 60_000, b"<html>" * 10_000, bytes(range(256)) * 300])
def test_other_bytes_after_an_mp3_are_ignored_with_a_warning(rest):
    audio = load_audio(encoded("MP3", "MPEG_LAYER_III") + rest)
    assert audio.seconds == pytest.approx(2.0, abs=0.15)
    assert "after its last frame that are not audio" in audio.warnings[0]


@pytest.mark.parametrize("rate", [16_000, 22_050, 44_100, 48_000])
def test_long_mp3_equals_its_samples_decoded_at_once(rate):
    data = encoded("MP3", "MPEG_LAYER_III", speech(25.0, rate), rate)
    samples, _ = soundfile.read(io.BytesIO(data), dtype="float32")
    np.testing.assert_allclose(load_audio(data).samples, load_audio(samples, rate).samples, atol=1e-6)


@pytest.mark.parametrize("declared", [1, 8, 36, 4_000])
@pytest.mark.parametrize("kind", ["WAV", "AU"])
def test_file_is_read_to_its_end_when_the_recorder_was_interrupted(kind, declared):
    data = bytearray(encoded(kind, "PCM_16"))
    for offset, form in size_fields(kind, data):
        data[offset : offset + 4] = struct.pack(form, declared)
    audio = load_audio(bytes(data))
    assert audio.seconds == pytest.approx(2.0, abs=0.01)
    assert "far more than its header declares" in audio.warnings[0]


def test_chunk_after_the_samples_is_not_audio():
    data = encoded("WAV", "PCM_16", SAMPLES[:2_000])
    longer = data + b"LIST" + struct.pack("<I", 90_000) + bytes(90_000)
    assert load_audio(longer).samples.size == 2_000


@pytest.mark.parametrize("placeholder", [0, 0x7FFFFFFF, 0xFFFFFFFF])
@pytest.mark.parametrize("kind", ["HTK", "VOC", "BW64"])
def test_rare_containers_are_read_when_sizes_are_placeholders(kind, placeholder, monkeypatch):
    monkeypatch.setattr(pyav, "is_installed", lambda: False)
    if kind == "BW64":
        data = bytearray(with_sizes("RF64", encoded("RF64", "PCM_16"), placeholder).replace(b"RF64", b"BW64", 1))
    else:
        data = bytearray(encoded(kind, "PCM_16" if kind == "HTK" else "PCM_U8"))
        value = struct.pack(">I", placeholder) if kind == "HTK" else struct.pack("<I", placeholder)[:3]
        start = 0 if kind == "HTK" else 27
        data[start : start + len(value)] = value if kind == "HTK" or placeholder == 0 else b"\xff" * 3
    assert load_audio(bytes(data)).samples.size == pytest.approx(SAMPLES.size, rel=0.02)  # VOC has few rates


def test_mp3_is_read_when_a_tag_precedes_it():
    size = 300_000
    tag = b"ID3\x04\0\0" + bytes(size >> shift & 0x7F for shift in (21, 14, 7, 0)) + bytes(size)
    assert load_audio(tag + encoded("MP3", "MPEG_LAYER_III")).seconds == pytest.approx(2.0, abs=0.15)
