"""Silence is detected and audible parts are used: opposite phase, offsets, 16-bit values in int32, long silences."""

import io

import numpy as np
import pytest
import soundfile

from hbaf_edge import InputError
from hbaf_edge.audio import Downmix, load_audio
from tests.conftest import speech

RATE = 16_000
X, Y = speech(1.5, seed=1), speech(1.5, seed=2)
ZEROS = np.zeros(21 * RATE, np.float32)


def predict_live(runtime, samples, rate=RATE, chunk=0.02, **finish):
    turn = runtime.begin()
    for part in np.split(samples, range(int(chunk * rate), len(samples), int(chunk * rate))):
        turn.feed(part, rate)
    return turn.finish(**finish)


@pytest.mark.parametrize("residue", [0.0, 0.05])
@pytest.mark.parametrize("channels", [2, 4])
def test_loudest_channel_is_used_when_channels_are_in_opposite_phase(tiny_runtime, residue, channels):
    """Half of the microphones have the wrong polarity; one is a little louder than the others."""
    gains = np.array([1, -1] * (channels // 2), float)
    gains[1] -= residue
    samples = X[:, None] * gains + 0.02  # a common offset must not matter
    audio = load_audio(samples, RATE)
    assert not audio.is_silent
    assert audio.warnings[0].startswith("the channels cancel each other")
    assert np.std(audio.samples) > 0.9 * np.std(X)
    live = predict_live(tiny_runtime, samples)
    assert "audio" in live.modalities
    assert audio.warnings[0][:30] in live.warnings[0]


@pytest.mark.parametrize(
    "samples",
    [
        np.stack([X, Y], 1), np.stack([X, X], 1), np.stack([X, 0 * X], 1), np.stack([X, -0.5 * X], 1),
        np.stack([X] + [0 * X] * 15, 1), np.random.default_rng(0).normal(0, 0.1, (RATE, 32)),
    ],
)  # fmt: skip
def test_channels_are_averaged_when_they_do_not_cancel(samples):
    audio = load_audio(samples, RATE)
    assert audio.warnings == ()
    np.testing.assert_allclose(audio.samples, samples.mean(1), atol=1e-7)


def test_selected_channel_does_not_depend_on_the_chunks():
    samples = np.stack([X, -0.9 * X], 1)
    at_once = Downmix(RATE)
    at_once(samples)
    parts = Downmix(RATE)
    mixed = np.concatenate([parts(part) for part in np.array_split(samples, 77)])
    assert parts.warnings == at_once.warnings != ()
    np.testing.assert_array_equal(mixed[-RATE:], X[-RATE:])


@pytest.mark.parametrize("offset", [0.01, -0.3, 2e-4])
@pytest.mark.parametrize("rate", [8_000, 16_000, 48_000])
def test_constant_offset_is_silence(tiny_runtime, offset, rate):
    samples = np.full(2 * rate, offset)
    with pytest.raises(InputError, match="constant offset"):
        tiny_runtime.predict(samples, sample_rate=rate)
    with pytest.raises(InputError, match="constant offset"):
        predict_live(tiny_runtime, samples, rate)
    both = tiny_runtime.predict(samples, sample_rate=rate, text="Hello.")
    assert both.modalities == ("text",)
    assert "constant offset" in both.warnings[0]
    assert "audio" in tiny_runtime.predict(samples[: len(X)] + X[: len(samples)], sample_rate=RATE).modalities


def test_int16_values_in_int32_are_rejected_with_the_reason(tiny_runtime):
    samples = (X * 32767).astype(np.int16).astype(np.int32)
    for call in (
        lambda: tiny_runtime.predict(samples, sample_rate=RATE),
        lambda: predict_live(tiny_runtime, samples),
        lambda: predict_live(tiny_runtime, np.stack([samples, samples], 1)),
    ):
        with pytest.raises(InputError, match=r"int32 peaks at .* is silence.*astype\(np\.int16\)"):
            call()
    for array in (2 * samples, samples.astype(">i4")):
        with pytest.raises(InputError, match=r"astype\(np\.int16\)"):
            tiny_runtime.predict(array, sample_rate=RATE)
    with pytest.raises(InputError, match="digital silence"):
        tiny_runtime.predict(np.zeros(RATE, np.int32), sample_rate=RATE)
    assert tiny_runtime.predict(samples << 16, sample_rate=RATE).warnings == ()
    quiet_start = np.concatenate([np.full(RATE, 3, np.int32), samples << 16])  # a 24-bit microphone before speech
    assert predict_live(tiny_runtime, quiet_start).warnings == ()


def as_file(kind, subtype, samples):
    file = io.BytesIO()
    soundfile.write(file, samples, RATE, format=kind, subtype=subtype)
    return file.getvalue()


@pytest.mark.parametrize("kind", ["array", "int16", ("WAV", "PCM_16"), ("WAV", "IMA_ADPCM"), ("AU", "G721_32")])
def test_speech_before_a_long_silence_is_used(kind):
    samples = np.concatenate([X, ZEROS])
    if kind == "int16":
        audio = load_audio((samples * 32767).astype(np.int16), RATE)
    else:
        audio = load_audio(samples, RATE) if kind == "array" else load_audio(as_file(*kind, samples))
    assert audio.seconds == pytest.approx(22.5, abs=0.1)
    assert not audio.is_silent
    assert any("silent after 2.0 s" in warning for warning in audio.warnings)
    start = audio.samples[: len(X)]
    assert np.corrcoef(start, X)[0, 1] > 0.95
    assert audio.samples.size == 2 * RATE, "blocks of a second"


@pytest.mark.parametrize("rate", [RATE, 44_100])
def test_live_turn_uses_its_speech_when_it_ends_in_a_long_silence(tiny_runtime, rate):
    spoken = speech(3.0, rate)
    samples = np.concatenate([spoken, np.zeros(25 * rate, np.float32)])
    after_25_s = predict_live(tiny_runtime, samples, rate)
    assert "silent after 3.0 s" in after_25_s.warnings[0]
    silence = int(1.02 * rate)  # the first silent chunk still contains a step
    after_1_s = predict_live(tiny_runtime, np.concatenate([spoken, np.zeros(silence, np.float32)]), rate)
    if rate == RATE:  # a resampler delays its last samples
        assert after_25_s.probabilities == after_1_s.probabilities
    for label, probability in after_1_s.probabilities.items():
        assert after_25_s.probabilities[label] == pytest.approx(probability, abs=0.02)


def test_live_turn_equals_recording_when_a_silence_is_in_the_middle(tiny_runtime):
    samples = np.concatenate([X, ZEROS, Y])
    live = predict_live(tiny_runtime, samples)
    recorded = tiny_runtime.predict(samples, sample_rate=RATE)
    assert live.probabilities == recorded.probabilities
    assert live.warnings == recorded.warnings


@pytest.mark.parametrize("bad", [np.nan, np.inf])
@pytest.mark.parametrize("part", [slice(-100, -99), slice(15 * RATE, None)])
def test_audio_is_rejected_when_it_has_nan_or_infinity(bad, part):
    samples = speech(28.0)
    samples[part] = bad
    for arguments in ((samples, RATE), (as_file("WAV", "FLOAT", samples),), (samples.tobytes(), RATE, "f32le")):
        with pytest.raises(InputError, match="NaN or infinite"):
            load_audio(*arguments)


@pytest.mark.parametrize("chunk", [1 / RATE, 1e-3, 0.02])
def test_opposite_phase_is_detected_in_chunks_of_any_length(tiny_runtime, chunk):
    samples = np.stack([X, -X], 1)[: RATE // 2]
    live = predict_live(tiny_runtime, samples, chunk=chunk)
    assert "opposite phase" in live.warnings[0]
    recorded = tiny_runtime.predict(samples, sample_rate=RATE)
    for label, probability in recorded.probabilities.items():  # the first tenth of a second is the channels' mean
        assert live.probabilities[label] == pytest.approx(probability, abs=0.05)


def test_one_hour_of_silence_is_digital_silence():
    assert load_audio(np.zeros(3_600 * 8_000, np.int16), 8_000).silence == "audio is digital silence"
