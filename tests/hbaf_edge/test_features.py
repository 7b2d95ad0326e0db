"""Log-mel equals Whisper's, text is normalised and limited, and silent audio counts as missing."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from hbaf_edge.audio import load_audio
from hbaf_edge.bundle import DEFAULT
from hbaf_edge.errors import InputError
from hbaf_edge.features import MAX_TOKENS, Tokeniser, extract_features, log_mel
from hbaf_edge.text import normalise_text
from tests.conftest import EXAMPLES, speech


@pytest.fixture(scope="module")
def tokeniser():
    return Tokeniser((DEFAULT / "tokenizer.json").read_bytes())


@pytest.mark.parametrize("seconds", [0.1, 0.333, 1.0, 4.7, 20.0, "a recording"])
def test_log_mel_equals_whispers_without_padding(seconds):
    from transformers import WhisperFeatureExtractor

    import training  # noqa: F401 - makes transformers importable with a CPU build of torch

    x = load_audio(EXAMPLES / "turn2_anna.flac").samples if seconds == "a recording" else speech(seconds)
    expected = WhisperFeatureExtractor()(x, sampling_rate=16_000, padding=False, return_tensors="np").input_features[0]
    mel = log_mel(x)
    assert mel.shape == (80, x.size // 160)
    assert np.abs(mel - expected[:, : mel.shape[1]]).max() <= 1e-4


@given(st.text())
def test_normalised_text_is_stable_and_has_no_control_characters(text):
    once = normalise_text(text)
    assert normalise_text(once) == once
    assert once == once.strip()
    assert not any(ord(c) < 32 for c in once)


@pytest.mark.parametrize("text", [None, "", "   ", "\n\t", "\x00\x07", "\u200f\u202e"])
def test_blank_text_has_no_tokens(text, tokeniser):
    assert normalise_text(text) == ""
    assert tokeniser("") == (None, ())


def test_long_text_is_cut_with_a_warning(tokeniser):
    features = extract_features(None, None, "so happy " * 12_500, tokeniser)
    assert len(features.tokens) == MAX_TOKENS
    assert features.tokens[0] == 101
    assert features.tokens[-1] == 102
    assert any("112,500 characters" in w for w in features.warnings)
    assert any("first 64" in w for w in features.warnings)


@pytest.mark.parametrize("text", ["🦄🦄", "שלום, מה שלומך?", "\x01hello\x02", "naïve café"])
def test_text_of_any_script_has_tokens(text, tokeniser):
    features = extract_features(None, None, text, tokeniser)
    assert 3 <= len(features.tokens) <= MAX_TOKENS


def test_an_unknown_script_gives_a_warning(tokeniser):
    assert any("knows no piece" in w for w in extract_features(None, None, "🦄", tokeniser).warnings)


def test_too_short_and_silent_audio_count_as_missing(tokeniser):
    short = extract_features(speech(0.05), 16_000, "hello", tokeniser)
    silent = extract_features(np.zeros(16_000), 16_000, "hello", tokeniser)
    assert short.mel is None
    assert "shorter than 0.1 s" in short.warnings[0]
    assert silent.mel is None
    assert "digital silence" in silent.warnings[0]
    assert extract_features(speech(0.1), 16_000, None, tokeniser).mel.shape == (80, 10)


def test_missing_or_invalid_input_raises(tokeniser):
    with pytest.raises(InputError, match="both audio and text are missing"):
        extract_features(None, None, " ", tokeniser)
    with pytest.raises(InputError, match=r"digital silence.*Give audio, text, or both"):
        extract_features(np.zeros(16_000), 16_000, None, tokeniser)
    with pytest.raises(InputError, match="text is of type bytes"):
        extract_features(None, None, b"hello", tokeniser)
    with pytest.raises(InputError, match="without audio"):
        extract_features(None, 16_000, "hello", tokeniser)
