"""What is there is heard, and what is not there is not judged: phase, offsets, widened integers, long silences."""

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


def live(runtime, sound, rate=RATE, chunk=0.02, **finish):
    turn = runtime.begin()
    for part in np.split(sound, range(int(chunk * rate), len(sound), int(chunk * rate))):
        turn.feed(part, rate)
    return turn.finish(**finish)


@pytest.mark.parametrize("residue", [0.0, 0.05])
@pytest.mark.parametrize("channels", [2, 4])
def test_channels_in_opposite_phase_are_heard(tiny_runtime, residue, channels):
    """Half of the microphones are wired the wrong way round; one is a little louder than the rest."""
    gains = np.array([1, -1] * (channels // 2), float)
    gains[1] -= residue
    sound = X[:, None] * gains + 0.02  # an offset in all of them hides nothing
    heard = load_audio(sound, RATE)
    assert not heard.is_silent
    assert heard.warnings[0].startswith("the channels cancel each other")
    assert np.std(heard.samples) > 0.9 * np.std(X)
    spoken = live(tiny_runtime, sound)
    assert "audio" in spoken.modalities
    assert heard.warnings[0][:30] in spoken.warnings[0]


@pytest.mark.parametrize(
    "sound",
    [
        np.stack([X, Y], 1), np.stack([X, X], 1), np.stack([X, 0 * X], 1), np.stack([X, -0.5 * X], 1),
        np.stack([X] + [0 * X] * 15, 1), np.random.default_rng(0).normal(0, 0.1, (RATE, 32)),
    ],
)  # fmt: skip
def test_other_channels_are_averaged_as_ever(sound):
    heard = load_audio(sound, RATE)
    assert heard.warnings == ()
    np.testing.assert_allclose(heard.samples, sound.mean(1), atol=1e-7)


def test_the_choice_of_a_channel_does_not_hang_on_the_chunks():
    sound = np.stack([X, -0.9 * X], 1)
    whole = Downmix(RATE)
    whole(sound)
    parts = Downmix(RATE)
    mixed = np.concatenate([parts(part) for part in np.array_split(sound, 77)])
    assert parts.warnings == whole.warnings != ()
    np.testing.assert_array_equal(mixed[-RATE:], X[-RATE:])


@pytest.mark.parametrize("offset", [0.01, -0.3, 2e-4])
@pytest.mark.parametrize("rate", [8_000, 16_000, 48_000])
def test_a_constant_offset_is_no_sound(tiny_runtime, offset, rate):
    sound = np.full(2 * rate, offset)
    with pytest.raises(InputError, match="constant offset"):
        tiny_runtime.predict(sound, sample_rate=rate)
    with pytest.raises(InputError, match="constant offset"):
        live(tiny_runtime, sound, rate)
    both = tiny_runtime.predict(sound, sample_rate=rate, text="Hello.")
    assert both.modalities == ("text",)
    assert "constant offset" in both.warnings[0]
    assert "audio" in tiny_runtime.predict(sound[: len(X)] + X[: len(sound)], sample_rate=RATE).modalities


def test_int16_in_int32_is_refused_with_its_reason(tiny_runtime):
    sound = (X * 32767).astype(np.int16).astype(np.int32)
    for call in (
        lambda: tiny_runtime.predict(sound, sample_rate=RATE),
        lambda: live(tiny_runtime, sound),
        lambda: live(tiny_runtime, np.stack([sound, sound], 1)),
    ):
        with pytest.raises(InputError, match=r"int32 peaks at .* is silence.*astype\(np\.int16\)"):
            call()
    for widened in (2 * sound, sound.astype(">i4")):
        with pytest.raises(InputError, match=r"astype\(np\.int16\)"):
            tiny_runtime.predict(widened, sample_rate=RATE)
    with pytest.raises(InputError, match="digital silence"):
        tiny_runtime.predict(np.zeros(RATE, np.int32), sample_rate=RATE)
    assert tiny_runtime.predict(sound << 16, sample_rate=RATE).warnings == ()
    quiet_start = np.concatenate([np.full(RATE, 3, np.int32), sound << 16])  # a 24-bit microphone before speech
    assert live(tiny_runtime, quiet_start).warnings == ()


def as_file(kind, subtype, sound):
    file = io.BytesIO()
    soundfile.write(file, sound, RATE, format=kind, subtype=subtype)
    return file.getvalue()


@pytest.mark.parametrize("kind", ["array", "int16", ("WAV", "PCM_16"), ("WAV", "IMA_ADPCM"), ("AU", "G721_32")])
def test_speech_before_a_long_silence_is_used(kind):
    sound = np.concatenate([X, ZEROS])
    if kind == "int16":
        heard = load_audio((sound * 32767).astype(np.int16), RATE)
    else:
        heard = load_audio(sound, RATE) if kind == "array" else load_audio(as_file(*kind, sound))
    assert heard.seconds == pytest.approx(22.5, abs=0.1)
    assert not heard.is_silent
    assert any("silent after 2.0 s" in warning for warning in heard.warnings)
    start = heard.samples[: len(X)]
    assert np.corrcoef(start, X)[0, 1] > 0.95
    assert heard.samples.size == 2 * RATE, "blocks of a second"


@pytest.mark.parametrize("rate", [RATE, 44_100])
def test_a_live_turn_that_ends_in_a_long_silence_is_judged_by_its_speech(tiny_runtime, rate):
    said = speech(3.0, rate)
    sound = np.concatenate([said, np.zeros(25 * rate, np.float32)])
    late = live(tiny_runtime, sound, rate)
    assert "silent after 3.0 s" in late.warnings[0]
    silence = int(1.02 * rate)  # the first silent chunk still holds a step
    soon = live(tiny_runtime, np.concatenate([said, np.zeros(silence, np.float32)]), rate)
    if rate == RATE:  # a resampler holds back its last samples
        assert late.probabilities == soon.probabilities
    for label, probability in soon.probabilities.items():
        assert late.probabilities[label] == pytest.approx(probability, abs=0.02)


def test_a_live_turn_goes_on_after_a_silence(tiny_runtime):
    sound = np.concatenate([X, ZEROS, Y])
    spoken = live(tiny_runtime, sound)
    recorded = tiny_runtime.predict(sound, sample_rate=RATE)
    assert spoken.probabilities == recorded.probabilities
    assert spoken.warnings == recorded.warnings


@pytest.mark.parametrize("bad", [np.nan, np.inf])
@pytest.mark.parametrize("where", [slice(-100, -99), slice(15 * RATE, None)])
def test_what_is_no_number_is_no_silence(bad, where):
    sound = speech(28.0)
    sound[where] = bad
    for given in ((sound, RATE), (as_file("WAV", "FLOAT", sound),), (sound.tobytes(), RATE, "f32le")):
        with pytest.raises(InputError, match="NaN or infinite"):
            load_audio(*given)


@pytest.mark.parametrize("chunk", [1 / RATE, 1e-3, 0.02])
def test_opposite_phase_in_chunks_of_any_length(tiny_runtime, chunk):
    sound = np.stack([X, -X], 1)[: RATE // 2]
    spoken = live(tiny_runtime, sound, chunk=chunk)
    assert "opposite phase" in spoken.warnings[0]
    whole = tiny_runtime.predict(sound, sample_rate=RATE)
    for label, probability in whole.probabilities.items():  # the first tenth of a second is the channels' mean
        assert spoken.probabilities[label] == pytest.approx(probability, abs=0.05)


def test_an_hour_of_silence_stays_silence():
    assert load_audio(np.zeros(3_600 * 8_000, np.int16), 8_000).silence == "audio is digital silence"
