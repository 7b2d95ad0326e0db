"""What the encoders read: log-mel frames of an utterance's audio and word-piece tokens of its text.

One front end for training and runtime: `log_mel` (hbaf_edge/mel.py) equals Whisper's features without the padding to
30 s, and `normalise_text` (hbaf_edge/text.py) and `Tokeniser` are what the corpora go through as well.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from hbaf_edge.audio import Audio, load_audio
from hbaf_edge.errors import InputError
from hbaf_edge.language import not_english
from hbaf_edge.mel import log_mel
from hbaf_edge.text import MAX_CHARACTERS, clean_text, normalise_text, removal_warning
from hbaf_edge.workers import native

if TYPE_CHECKING:
    from tokenizers import Tokenizer

MAX_TOKENS = 64


class Tokeniser:
    """Word pieces of one utterance.

    Args:
        json: content of the text encoder's `tokenizer.json`.
        clean_text: whether `from_text` takes out what recognisers add to the words (hbaf_edge/text.py).
    """

    def __init__(self, json: bytes, clean_text: bool = True) -> None:
        from tokenizers import Tokenizer

        self._tokenizer: Tokenizer = native(Tokenizer.from_buffer, json)
        self._tokenizer.no_padding()
        self._tokenizer.no_truncation()
        self._unknown = self._tokenizer.token_to_id("[UNK]")
        self.clean_text = clean_text

    def __call__(self, text: str) -> tuple[NDArray[np.int64] | None, tuple[str, ...]]:
        """Normalised text -> ((tokens,) int64 ids of at most 64 tokens, or None without text; warnings)."""
        if not text:
            return None, ()
        encoding = native(self._tokenizer.encode, text)
        ids = encoding.ids
        warnings = []
        if len(ids) > MAX_TOKENS:
            warnings.append(f"text is longer than {MAX_TOKENS} tokens: only its first {MAX_TOKENS} were used")
            ids = [*ids[: MAX_TOKENS - 1], ids[-1]]
        foreign = not_english(text, encoding.tokens)
        if foreign:
            warnings.append(foreign)
        elif all(i == self._unknown for i in ids[1:-1]):
            warnings.append("the text encoder knows no piece of this text; it reads English words")
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
    words, removed = clean_text(text) if tokeniser.clean_text else (normalise_text(text), ())
    tokens, warnings = tokeniser(words)
    if removed:
        warnings = (removal_warning(removed), *warnings)
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
        return f"audio of {int(seconds * 1e3) / 1e3:.3f} s is shorter than 0.1 s: treated as no audio"
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
