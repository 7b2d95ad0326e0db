"""What the text encoder reads of a turn: its own words, cut as the runtime cuts them."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from tokenizers import Tokenizer

from hbaf_edge.features import MAX_TOKENS
from hbaf_edge.text import normalise_text
from training import encoders


class Tokens(NamedTuple):
    """ids (T,) of an utterance."""

    ids: NDArray[np.int64]

    @property
    def key(self) -> str:
        """What a cache knows it by."""
        return f"{len(self.ids)}:" + " ".join(map(str, self.ids.tolist()))


class Words:
    """Text -> tokens.

    Args:
        encoder: name or folder of the text encoder, whose tokenizer.json is used.
        longest: tokens of an utterance, the runtime's 64 unless training cuts them shorter.
    """

    def __init__(self, encoder: str, longest: int = MAX_TOKENS) -> None:
        self._tokenizer = Tokenizer.from_buffer((encoders.folder(encoder) / "tokenizer.json").read_bytes())
        self._tokenizer.no_padding()
        self._tokenizer.no_truncation()
        self.longest = longest

    def __call__(self, text: str) -> Tokens | None:
        """The tokens of what was said; None where nothing was."""
        cleaned = normalise_text(text)
        if not cleaned:
            return None
        told = self._tokenizer.encode(cleaned, add_special_tokens=False)
        told.truncate(self.longest - self._tokenizer.num_special_tokens_to_add(False))
        return Tokens(np.array(self._tokenizer.post_process(told).ids))
