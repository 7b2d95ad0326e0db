"""Sizes that a recorder could not know are read to the end of the file; tags behind an MP3 are no lost sound."""

import io
import struct

import numpy as np
import pytest
import soundfile

from hbaf_edge.audio import load_audio, pyav
from hbaf_edge.errors import InputError
from tests.conftest import speech

RATE, SOUND = 16_000, speech(2.0)


def encoded(kind, subtype, sound=SOUND, rate=RATE):
    file = io.BytesIO()
    soundfile.write(file, sound, rate, format=kind, subtype=subtype)
    return file.getvalue()


def fields(kind, data):
    """Offset and `struct` format of every size that a streaming recorder may leave open."""
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
    for offset, form in fields(kind, data):
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
def test_placeholder_sizes_are_read_to_the_end(kind, subtype, placeholder):
    data = encoded(kind, subtype)
    heard = load_audio(with_sizes(kind, data, PLACEHOLDERS[placeholder]))
    np.testing.assert_array_equal(heard.samples, load_audio(data).samples)
    assert heard.warnings == ()


@pytest.mark.parametrize("riff", [0, 36, 36 + 2 * len(SOUND)])
def test_wav_whose_data_says_zero_but_holds_samples(riff):
    data = bytearray(encoded("WAV", "PCM_16"))
    data[4:8] = struct.pack("<I", riff)
    data[40:44] = bytes(4)
    assert load_audio(bytes(data)).samples.size == SOUND.size


def test_an_empty_recording_with_a_chunk_behind_it_stays_empty():
    data = encoded("WAV", "PCM_16", SOUND[:0]) + b"LIST" + struct.pack("<I", 14) + b"INFOISFT\x02\0\0\0me"
    with pytest.raises(InputError, match="no samples"):
        load_audio(data)


@pytest.mark.parametrize("kind", ["WAV", "RF64", "W64", "AIFF", "AU", "CAF"])
def test_a_file_that_was_cut_is_used_and_said(kind):
    data = encoded(kind, "PCM_16")
    heard = load_audio(data[: -len(SOUND)])  # half of the bytes of its samples
    assert heard.seconds == pytest.approx(1.0, abs=0.01)
    assert "truncated" in heard.warnings[0]


@pytest.mark.parametrize("kind", ["WAV", "AIFF", "AU", "W64"])
@pytest.mark.parametrize("subtype", ["GSM610", "G721_32", "G723_24", "DWVW_16", "NMS_ADPCM_16"])
def test_codecs_that_cannot_seek_give_their_last_20_seconds(kind, subtype):
    if not soundfile.check_format(kind, subtype):
        pytest.skip("libsndfile has no such pair")
    sound = speech(25.0, 8_000)
    heard = load_audio(encoded(kind, subtype, sound, 8_000))
    assert heard.samples.size == pytest.approx(320_000, abs=1_280)
    assert any("only its last 20 s" in warning for warning in heard.warnings)
    original = load_audio(sound, 8_000).samples[: heard.samples.size]
    assert np.corrcoef(heard.samples[: original.size], original)[0, 1] > 0.9


def ape(size, header):
    flags = 0x8000_0000 if header else 0
    items = np.random.default_rng(0).integers(0, 256, size, np.uint8).tobytes()
    footer = b"APETAGEX" + struct.pack("<IIII", 2000, size + 32, 1, flags) + bytes(8)
    return (footer if header else b"") + items + footer


ID3V1 = b"TAG" + bytes(125)
LYRICS = b"LYRICSBEGIN" + b"x" * 40_000 + b"040011LYRICS200"
TAGS = {
    "APEv2": ape(60_000, header=False),
    "APEv2 with a header": ape(60_000, header=True),
    "zeros": bytes(60_000),
    "ID3v1": ID3V1,
    "Lyrics3 and ID3v1": LYRICS + ID3V1,
    "APEv2, Lyrics3, ID3v1 and zeros": ape(60_000, header=True) + LYRICS + ID3V1 + bytes(20_000),
    "APEv2 and an ID3v1 of zeros": ape(60_000, header=False) + ID3V1,
    "ID3v2 at the end": bytes(40_000) + b"3DI\x04\0\0" + bytes([0, 2, 56, 64]),
}


@pytest.mark.parametrize("tag", TAGS)
def test_tags_behind_an_mp3_are_no_lost_sound(tag, monkeypatch):
    monkeypatch.setattr(pyav, "is_installed", lambda: False)  # libsndfile alone reads it
    data = encoded("MP3", "MPEG_LAYER_III")
    heard = load_audio(data + TAGS[tag])
    assert heard.seconds == pytest.approx(2.0, abs=0.15)
    assert heard.warnings == ()


@pytest.mark.parametrize("rest", [b"\xff" * 60_000, b" " * 60_000, b"<html>" * 10_000, bytes(range(256)) * 300])
def test_what_is_no_sound_behind_an_mp3_is_left_out_and_said(rest):
    heard = load_audio(encoded("MP3", "MPEG_LAYER_III") + rest)
    assert heard.seconds == pytest.approx(2.0, abs=0.15)
    assert "behind its last frame that are no sound" in heard.warnings[0]


@pytest.mark.parametrize("rate", [16_000, 22_050, 44_100, 48_000])
def test_a_long_mp3_is_decoded_without_a_seam(rate):
    data = encoded("MP3", "MPEG_LAYER_III", speech(25.0, rate), rate)
    whole, _ = soundfile.read(io.BytesIO(data), dtype="float32")
    np.testing.assert_allclose(load_audio(data).samples, load_audio(whole, rate).samples, atol=1e-6)


@pytest.mark.parametrize("declared", [1, 8, 36, 4_000])
@pytest.mark.parametrize("kind", ["WAV", "AU"])
def test_a_recorder_that_was_broken_off(kind, declared):
    data = bytearray(encoded(kind, "PCM_16"))
    for offset, form in fields(kind, data):
        data[offset : offset + 4] = struct.pack(form, declared)
    heard = load_audio(bytes(data))
    assert heard.seconds == pytest.approx(2.0, abs=0.01)
    assert "far more than its header says" in heard.warnings[0]


def test_a_chunk_behind_the_samples_is_no_sound():
    data = encoded("WAV", "PCM_16", SOUND[:2_000])
    longer = data + b"LIST" + struct.pack("<I", 90_000) + bytes(90_000)
    assert load_audio(longer).samples.size == 2_000


@pytest.mark.parametrize("placeholder", [0, 0x7FFFFFFF, 0xFFFFFFFF])
@pytest.mark.parametrize("kind", ["HTK", "VOC", "BW64"])
def test_rarer_containers(kind, placeholder, monkeypatch):
    monkeypatch.setattr(pyav, "is_installed", lambda: False)
    if kind == "BW64":
        data = bytearray(with_sizes("RF64", encoded("RF64", "PCM_16"), placeholder).replace(b"RF64", b"BW64", 1))
    else:
        data = bytearray(encoded(kind, "PCM_16" if kind == "HTK" else "PCM_U8"))
        value = struct.pack(">I", placeholder) if kind == "HTK" else struct.pack("<I", placeholder)[:3]
        start = 0 if kind == "HTK" else 27
        data[start : start + len(value)] = value if kind == "HTK" or placeholder == 0 else b"\xff" * 3
    assert load_audio(bytes(data)).samples.size == pytest.approx(SOUND.size, rel=0.02)  # VOC knows few rates


def test_a_tag_in_front_of_an_mp3():
    size = 300_000
    front = b"ID3\x04\0\0" + bytes(size >> shift & 0x7F for shift in (21, 14, 7, 0)) + bytes(size)
    assert load_audio(front + encoded("MP3", "MPEG_LAYER_III")).seconds == pytest.approx(2.0, abs=0.15)
