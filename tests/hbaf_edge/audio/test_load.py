"""Accepted audio becomes mono 16 kHz; rejected audio raises an error that says what is accepted."""

import io

import numpy as np
import pytest
import soundfile
from hypothesis import given, settings
from hypothesis import strategies as st

from hbaf_edge.audio import CROP, load_audio, pyav
from hbaf_edge.errors import InputError
from tests.conftest import speech


def wav(samples: np.ndarray, rate: int = 16_000, kind: str = "WAV") -> bytes:
    buffer = io.BytesIO()
    soundfile.write(buffer, samples, rate, format=kind)
    return buffer.getvalue()


def test_array_at_16_khz_is_not_changed():
    x = speech(1.0)
    np.testing.assert_array_equal(load_audio(x, 16_000).samples, x)


@pytest.mark.parametrize(("kind", "scale"), [("int16", 2**15), ("int32", 2**31), ("float64", 1)])
def test_sample_types_give_the_same_samples(kind, scale):
    x = speech(0.5)
    array = (x.astype(np.float64) * scale).astype(kind)
    np.testing.assert_allclose(load_audio(array, 16_000).samples, x, atol=1 / 2**15)


def test_channels_are_averaged():
    x, y = speech(0.5, seed=1), speech(0.5, seed=2)
    np.testing.assert_allclose(load_audio(np.stack([x, y], 1), 16_000).samples, (x + y) / 2, atol=1e-7)


@settings(max_examples=25, deadline=None)
@given(rate=st.integers(8_000, 192_000), seconds=st.floats(0.2, 1.0))
def test_resampling_preserves_length_and_pitch(rate, seconds):
    t = np.arange(int(rate * seconds)) / rate
    audio = load_audio(np.sin(2 * np.pi * 440 * t), rate).samples
    assert abs(audio.size - 16_000 * t.size / rate) <= 1
    spectrum = np.abs(np.fft.rfft(audio * np.hanning(audio.size)))
    assert abs(spectrum.argmax() * 16_000 / audio.size - 440) < 16_000 / audio.size


@pytest.mark.parametrize("kind", ["WAV", "FLAC", "OGG", "MP3"])
@pytest.mark.parametrize("form", ["path", "bytes", "file"])
def test_path_bytes_and_file_object_are_read(kind, form, tmp_path):
    content = wav(speech(1.0), kind=kind)
    path = tmp_path / f"a.{kind.lower()}"
    path.write_bytes(content)
    source = {"path": path, "bytes": content, "file": io.BytesIO(content)}[form]
    audio = load_audio(source)
    assert abs(audio.samples.size - 16_000) <= 2_400  # MP3 adds its encoder's delay
    assert audio.warnings == ()
    # Lossy encoders may shift the audio by their delay, so the best alignment must match.
    similarity = np.correlate(audio.samples, speech(1.0)[4_000:8_000], "valid").max()
    assert similarity > 0.9 * np.sum(speech(1.0)[4_000:8_000] ** 2)


def test_last_20_seconds_are_used_when_audio_is_ten_minutes_long(tmp_path):
    x = np.concatenate([np.zeros(580 * 16_000, np.float32), speech(20.0)])
    soundfile.write(tmp_path / "long.wav", x, 16_000, subtype="FLOAT")
    for audio in (load_audio(x, 16_000), load_audio(tmp_path / "long.wav")):
        np.testing.assert_array_equal(audio.samples, speech(20.0))
        assert audio.seconds == 600
        assert audio.warnings == ("audio is 600.0 s long: only its last 20 s were used",)


BAD_ARRAYS = {
    "no rate": (speech(1.0), None, "sample_rate is required"),
    "rate 0": (speech(1.0), 0, "8,000 to 192,000 Hz"),
    "rate 10 MHz": (speech(1.0), 10_000_000, "10,000,000 Hz"),
    "rate 44.1": (speech(1.0), 44.1, "whole number of Hz"),
    "NaN": (np.array([0.0, np.nan] * 2000), 16_000, "2000 NaN or infinite"),
    "Inf": (np.array([0.0, np.inf] * 2000), 16_000, "NaN or infinite"),
    "empty": (np.zeros(0, np.float32), 16_000, "no samples"),
    "3-D": (np.zeros((2, 3, 4)), 16_000, "(2, 3, 4)"),
    "uint8": (np.zeros(16_000, np.uint8), 16_000, "uint8"),
    "channels first": (np.zeros((2, 16_000)), 16_000, "array.T"),
    "masked": (np.ma.masked_all(16_000), 16_000, "array.filled"),
    "float with int16 values": (speech(1.0) * 32768, 16_000, "divide by 32768"),
}


@pytest.mark.parametrize("name", BAD_ARRAYS)
def test_array_is_rejected_with_a_reason(name):
    array, rate, message = BAD_ARRAYS[name]
    with pytest.raises(InputError) as error:
        load_audio(array, rate)
    assert message in str(error.value)


def test_file_is_rejected_with_a_reason(tmp_path):
    (tmp_path / "text.wav").write_text("this is not audio\n" * 100)
    (tmp_path / "empty.wav").write_bytes(b"")
    for source, message in [
        (tmp_path / "text.wav", "WAV, FLAC, OGG and MP3 are accepted"),
        (tmp_path / "empty.wav", "WAV, FLAC, OGG and MP3 are accepted"),
        (tmp_path / "none.wav", "there is no audio file"),
        (tmp_path, "is a folder"),
        (b"", "WAV, FLAC, OGG and MP3 are accepted"),
        (wav(speech(1.0))[:20], "WAV, FLAC, OGG and MP3 are accepted"),
        (12.5, "float is not accepted"),
    ]:
        with pytest.raises(InputError) as error:
            load_audio(source)
        assert message in str(error.value)


def test_mp3_without_its_length_is_rejected_without_pyav_and_a_truncated_one_is_read(monkeypatch):
    """Without the header that states the length, libsndfile guesses it too short and stops without an error."""
    content = wav(np.concatenate([speech(6.0) * 3, speech(24.0) * 0.001, speech(1.0)]), kind="MP3")
    audio = load_audio(content)
    assert 30.5 < audio.seconds < 31.5
    assert 320_000 - CROP < audio.samples.size <= 320_000
    headless = content.replace(b"Xing", b"____", 1).replace(b"Info", b"____", 1)
    assert headless != content
    assert load_audio(headless).seconds == pytest.approx(audio.seconds, abs=0.2)  # PyAV reads it to its end
    monkeypatch.setattr(pyav, "is_installed", lambda: False)
    with pytest.raises(InputError, match=r"only its first .* re-encode it"):
        load_audio(headless)
    assert 1 < load_audio(content[: len(content) // 3]).seconds < 25


def test_streamed_flac_is_read_when_its_length_is_unknown():
    content = bytearray(wav(speech(1.5), kind="FLAC"))
    content[21] &= 0xF0  # the 36 bits of total samples in STREAMINFO
    content[22:26] = bytes(4)
    assert load_audio(bytes(content)).samples.size == 24_000


def test_file_object_is_rejected_when_it_cannot_be_read(tmp_path):
    path = tmp_path / "a.wav"
    path.write_bytes(wav(speech(0.5)))
    closed = path.open("rb")
    closed.close()
    with path.open("r", encoding="latin-1") as text, (tmp_path / "b.wav").open("wb") as written:
        for source, message in ((closed, "cannot be read"), (text, "binary mode"), (written, "cannot be read")):
            with pytest.raises(InputError, match=message):
                load_audio(source)


@pytest.mark.parametrize("kind", ["WAV", "FLAC", "OGG", "MP3"])
def test_file_object_is_read_from_its_position(kind):
    content = wav(speech(0.5), kind=kind)
    shifted = io.BytesIO(b"12345" * 200 + content)
    shifted.seek(1_000)
    np.testing.assert_array_equal(load_audio(shifted).samples, load_audio(content).samples)


@pytest.mark.parametrize(
    "rate", [float("nan"), float("inf"), pytest.param(10**400, id="huge"), "16000", True, [16_000]]
)
def test_sample_rate_is_rejected_when_it_is_not_a_whole_number(rate):
    for source in (speech(0.5), wav(speech(0.5))):
        with pytest.raises(InputError, match="sample_rate is"):
            load_audio(source, rate)


def test_sample_rate_is_rejected_when_it_differs_from_the_file():
    with pytest.raises(InputError, match="has 16000 Hz"):
        load_audio(wav(speech(0.5)), 44_100)


def test_file_object_stays_open():
    file = io.BytesIO(wav(speech(0.5)))
    load_audio(file)
    assert not file.closed
