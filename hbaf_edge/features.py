"""What the encoders read: log-mel frames of an utterance's audio and word-piece tokens of its text.

One front end for training and runtime: `log_mel` (hbaf_edge/mel.py) equals Whisper's features without the padding to
30 s, and `normalise_text` and `Tokeniser` are what the corpora go through as well.
"""

from __future__ import annotations

import unicodedata
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from hbaf_edge.audio import Audio, load_audio
from hbaf_edge.errors import InputError
from hbaf_edge.mel import log_mel

if TYPE_CHECKING:
    from tokenizers import Tokenizer

MAX_TOKENS = 64
MAX_CHARACTERS = 4_096  # far more than 64 word pieces; bounds the work on a pasted book


def normalise_text(text: str | None) -> str:
    """NFC, control and formatting characters out, runs of white space to one blank; "" means there is no text.

    >>> normalise_text("  Cafe\u0301 \\x00\\n time ")
    'Café time'
    """
    if text is None:
        return ""
    if not isinstance(text, str):
        raise InputError(f"text is of type {type(text).__name__}; a str is expected, or None where nothing was said")
    kept = (" " if unicodedata.category(c) in ("Cc", "Cf", "Cs") else c for c in text[:MAX_CHARACTERS])
    return " ".join(unicodedata.normalize("NFC", "".join(kept)).split())


class Tokeniser:
    """Word pieces of one utterance.

    Args:
        json: content of the text encoder's `tokenizer.json`.
    """

    def __init__(self, json: bytes) -> None:
        from tokenizers import Tokenizer

        self._tokenizer: Tokenizer = Tokenizer.from_buffer(json)
        self._tokenizer.no_padding()
        self._tokenizer.no_truncation()
        self._unknown = self._tokenizer.token_to_id("[UNK]")

    def __call__(self, text: str) -> tuple[NDArray[np.int64] | None, tuple[str, ...]]:
        """Normalised text -> ((tokens,) int64 ids of at most 64 tokens, or None without text; warnings)."""
        if not text:
            return None, ()
        ids = self._tokenizer.encode(text).ids
        warnings = []
        if len(ids) > MAX_TOKENS:
            warnings.append(f"text is longer than {MAX_TOKENS} tokens: only its first {MAX_TOKENS} were used")
            ids = [*ids[: MAX_TOKENS - 1], ids[-1]]
        if all(i == self._unknown for i in ids[1:-1]):
            warnings.append("the text encoder knows no piece of this text; it is English, other scripts are unknown")
        return np.asarray(ids, np.int64), tuple(warnings)


@dataclass(frozen=True)
class Features:
    """What one utterance offers the encoders.

    Attributes:
        mel: (80, frames) float32 at 100 Hz, or None where no audio can be used.
        tokens: (tokens,) int64, or None where there is no text.
        warnings: for the caller, in the order they arose.
    """

    mel: NDArray[np.float32] | None
    tokens: NDArray[np.int64] | None
    warnings: tuple[str, ...]


def from_text(text: str | None, tokeniser: Tokeniser) -> tuple[NDArray[np.int64] | None, tuple[str, ...]]:
    """What was said -> (tokens,) ids or None, and what to warn of."""
    tokens, warnings = tokeniser(normalise_text(text))
    if text and len(text) > MAX_CHARACTERS:
        warnings = (f"text of {len(text):,} characters: only the first {MAX_CHARACTERS:,} were read", *warnings)
    return tokens, warnings


def from_sound(
    heard: Audio, spectrum: Callable[[], NDArray[np.float32]]
) -> tuple[NDArray[np.float32] | None, tuple[str, ...]]:
    """The spectrum of a sound, or None where nothing can be heard in it, and what to warn of."""
    why = unheard(heard.seconds, heard.is_too_short, heard.silence)
    return (None, (*heard.warnings, why)) if why else (spectrum(), heard.warnings)


def unheard(seconds: float, too_short: bool, silence: str) -> str:
    """What the caller is told of a sound in which nothing can be heard; empty where something can."""
    if too_short:
        return f"audio of {seconds:.3f} s is shorter than 0.1 s: treated as no audio"
    return f"{silence}: treated as no audio" if silence else ""


def something(mel: NDArray[np.float32] | None, tokens: NDArray[np.int64] | None, warnings: tuple[str, ...]) -> Features:
    """Both together.

    Raises:
        InputError: neither is there.
    """
    if mel is None and tokens is None:
        said = "; ".join(warnings) or "both audio and text are missing or empty"
        raise InputError(f"there is nothing to judge: {said}. Give audio, text, or both")
    return Features(mel, tokens, warnings)


def extract(
    audio: Any, sample_rate: int | None, text: str | None, tokeniser: Tokeniser, sample_format: str | None = None
) -> Features:
    """Front end of `HBAFRuntime.predict`: audio and text as a caller holds them -> `Features`.

    Audio shorter than 0.1 s or digitally silent counts as absent, with a warning, since nothing can be heard in it.

    Raises:
        InputError: for unusable audio or text, or if neither is left.
    """
    tokens, warnings = from_text(text, tokeniser)
    if audio is None:
        for name, value in (("sample_rate", sample_rate), ("sample_format", sample_format)):
            if value is not None:
                raise InputError(f"{name}={value!r} was given without audio; leave both out, or give both")
        return something(None, tokens, warnings)
    heard = load_audio(audio, sample_rate, sample_format)
    mel, more = from_sound(heard, lambda: log_mel(heard.samples))
    return something(mel, tokens, warnings + more)
