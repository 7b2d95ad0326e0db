"""Features of an utterance: log-mel frames of its audio and word-piece tokens of its text.

Training and runtime share this code. `log_mel` (hbaf_edge/mel.py) equals Whisper's features without the padding to
30 s. `normalise_text` (hbaf_edge/text.py) and `Tokeniser` are applied to the corpora too.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from hbaf_edge.audio import Audio, load_audio
from hbaf_edge.errors import InputError
from hbaf_edge.language import language_warning
from hbaf_edge.mel import log_mel
from hbaf_edge.text import MAX_CHARACTERS, clean_text, normalise_text, removal_warning
from hbaf_edge.workers import call_native

if TYPE_CHECKING:
    from tokenizers import Tokenizer

MAX_TOKENS = 64


class Tokeniser:
    """Convert the text of an utterance to word-piece tokens.

    Args:
        json: content of the text encoder's `tokenizer.json`.
        clean_text: whether `text_features` removes tags and notes that recognisers add (hbaf_edge/text.py).
    """

    def __init__(self, json: bytes, clean_text: bool = True) -> None:
        from tokenizers import Tokenizer

        self._tokenizer: Tokenizer = call_native(Tokenizer.from_buffer, json)
        self._tokenizer.no_padding()
        self._tokenizer.no_truncation()
        self._unknown = self._tokenizer.token_to_id("[UNK]")
        self.clean_text = clean_text

    def __call__(self, text: str) -> tuple[NDArray[np.int64] | None, tuple[str, ...]]:
        """Tokenise a normalised text.

        Returns:
            (tokens,) int64 ids of at most 64 tokens, or None for an empty text; and warnings.
        """
        if not text:
            return None, ()
        encoding = call_native(self._tokenizer.encode, text)
        ids = encoding.ids
        warnings = []
        if len(ids) > MAX_TOKENS:
            warnings.append(f"text is longer than {MAX_TOKENS} tokens: only its first {MAX_TOKENS} were used")
            ids = [*ids[: MAX_TOKENS - 1], ids[-1]]
        warning = language_warning(text, encoding.tokens)
        if warning:
            warnings.append(warning)
        elif all(i == self._unknown for i in ids[1:-1]):
            warnings.append("the text encoder knows no piece of this text; it reads English words")
        return np.asarray(ids, np.int64), tuple(warnings)


@dataclass(frozen=True)
class Features:
    """The encoders' input for one utterance.

    Attributes:
        mel: (80, frames) float32 at 100 Hz, or None without usable audio.
        tokens: (tokens,) int64, or None without text.
        warnings: messages for the caller, in the order in which they arose.
    """

    mel: NDArray[np.float32] | None
    tokens: NDArray[np.int64] | None
    warnings: tuple[str, ...]


def text_features(text: str | None, tokeniser: Tokeniser) -> tuple[NDArray[np.int64] | None, tuple[str, ...]]:
    """Clean and tokenise a text. Return (tokens,) ids or None, and warnings."""
    cleaned, removed = clean_text(text) if tokeniser.clean_text else (normalise_text(text), ())
    tokens, warnings = tokeniser(cleaned)
    if removed:
        warnings = (removal_warning(removed), *warnings)
    if text and len(text) > MAX_CHARACTERS:
        warnings = (f"text of {len(text):,} characters: only the first {MAX_CHARACTERS:,} were read", *warnings)
    return tokens, warnings


def audio_features(
    audio: Audio, spectrum: Callable[[], NDArray[np.float32]]
) -> tuple[NDArray[np.float32] | None, tuple[str, ...]]:
    """Return the log-mel of an audio, or None if it is too short or silent, and warnings.

    Args:
        audio: decoded audio.
        spectrum: computes its log-mel, (80, frames).
    """
    problem = audio_problem(audio.seconds, audio.is_too_short, audio.silence)
    return (None, (*audio.warnings, problem)) if problem else (spectrum(), audio.warnings)


def audio_problem(seconds: float, is_too_short: bool, silence: str) -> str:
    """Return the warning for audio that is too short or silent, or "" if it can be used."""
    if is_too_short:
        return f"audio of {int(seconds * 1e3) / 1e3:.3f} s is shorter than 0.1 s: treated as no audio"
    return f"{silence}: treated as no audio" if silence else ""


def combine_features(
    mel: NDArray[np.float32] | None, tokens: NDArray[np.int64] | None, warnings: tuple[str, ...]
) -> Features:
    """Combine the features of both modalities.

    Raises:
        InputError: both are missing.
    """
    if mel is None and tokens is None:
        reason = "; ".join(warnings) or "both audio and text are missing or empty"
        raise InputError(f"there is no usable input: {reason}. Give audio, text, or both")
    return Features(mel, tokens, warnings)


def extract_features(
    audio: Any, sample_rate: int | None, text: str | None, tokeniser: Tokeniser, sample_format: str | None = None
) -> Features:
    """Decode the caller's audio and text and return their features.

    Audio that is shorter than 0.1 s or digitally silent counts as missing, with a warning.

    Args:
        audio: as in `HBAFRuntime.predict`.
        sample_rate: Hz, for arrays and raw bytes.
        text: the transcript, or None.
        tokeniser: the bundle's tokeniser.
        sample_format: format of raw bytes.

    Raises:
        InputError: audio or text cannot be used, or both are missing.
    """
    tokens, warnings = text_features(text, tokeniser)
    if audio is None:
        for name, value in (("sample_rate", sample_rate), ("sample_format", sample_format)):
            if value is not None:
                raise InputError(f"{name}={value!r} was given without audio; leave both out, or give both")
        return combine_features(None, tokens, warnings)
    decoded = load_audio(audio, sample_rate, sample_format)
    mel, audio_warnings = audio_features(decoded, lambda: log_mel(decoded.samples))
    return combine_features(mel, tokens, warnings + audio_warnings)
