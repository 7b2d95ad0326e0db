"""Log-mel is Whisper's; text is normalised and bounded; what cannot be heard counts as absent."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from hbaf_edge.audio import load_audio
from hbaf_edge.bundle import DEFAULT
from hbaf_edge.errors import InputError
from hbaf_edge.features import MAX_TOKENS, Tokeniser, extract, log_mel
from hbaf_edge.text import normalise_text
from tests.conftest import EXAMPLES, speech


@pytest.fixture(scope="module")
def tokeniser():
    return Tokeniser((DEFAULT / "tokenizer.json").read_bytes())


@pytest.mark.parametrize("seconds", [0.1, 0.333, 1.0, 4.7, 20.0, "a recording"])
def test_log_mel_is_whispers_unpadded(seconds):
    from transformers import WhisperFeatureExtractor

    import training  # noqa: F401 - makes transformers importable beside a CPU torch

    x = load_audio(EXAMPLES / "turn2_anna.flac").samples if seconds == "a recording" else speech(seconds)
    theirs = WhisperFeatureExtractor()(x, sampling_rate=16_000, padding=False, return_tensors="np").input_features[0]
    ours = log_mel(x)
    assert ours.shape == (80, x.size // 160)
    assert np.abs(ours - theirs[:, : ours.shape[1]]).max() <= 1e-4


@given(st.text())
def test_normalised_text_is_stable_and_free_of_controls(text):
    once = normalise_text(text)
    assert normalise_text(once) == once
    assert once == once.strip()
    assert not any(ord(c) < 32 for c in once)


@pytest.mark.parametrize("text", [None, "", "   ", "\n\t", "\x00\x07", "\u200f\u202e"])
def test_no_text(text, tokeniser):
    assert normalise_text(text) == ""
    assert tokeniser("") == (None, ())


def test_long_text_is_cut_and_said(tokeniser):
    found = extract(None, None, "so happy " * 12_500, tokeniser)
    assert len(found.tokens) == MAX_TOKENS
    assert found.tokens[0] == 101
    assert found.tokens[-1] == 102
    assert any("112,500 characters" in w for w in found.warnings)
    assert any("first 64" in w for w in found.warnings)


@pytest.mark.parametrize("text", ["🦄🦄", "שלום, מה שלומך?", "\x01hello\x02", "naïve café"])
def test_any_script_gives_tokens(text, tokeniser):
    found = extract(None, None, text, tokeniser)
    assert 3 <= len(found.tokens) <= MAX_TOKENS


def test_unknown_script_is_said(tokeniser):
    assert any("knows no piece" in w for w in extract(None, None, "🦄", tokeniser).warnings)


def test_too_short_and_silent_audio_count_as_absent(tokeniser):
    short = extract(speech(0.05), 16_000, "hello", tokeniser)
    silent = extract(np.zeros(16_000), 16_000, "hello", tokeniser)
    assert short.mel is None
    assert "shorter than 0.1 s" in short.warnings[0]
    assert silent.mel is None
    assert "digital silence" in silent.warnings[0]
    assert extract(speech(0.1), 16_000, None, tokeniser).mel.shape == (80, 10)


def test_nothing_to_judge(tokeniser):
    with pytest.raises(InputError, match="both audio and text are missing"):
        extract(None, None, " ", tokeniser)
    with pytest.raises(InputError, match=r"digital silence.*Give audio, text, or both"):
        extract(np.zeros(16_000), 16_000, None, tokeniser)
    with pytest.raises(InputError, match="text is of type bytes"):
        extract(None, None, b"hello", tokeniser)
    with pytest.raises(InputError, match="without audio"):
        extract(None, 16_000, "hello", tokeniser)
