"""What the text encoder reads of a turn: its own words and, where the model asks for it, those of earlier turns.

Earlier turns are a second segment (training/MODEL.md, "Encoders"), at most three, oldest first. Names never enter; a
turn of the same speaker is headed "i:", another's "you:", and one whose speaker is unknown by nothing.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from tokenizers import Tokenizer

from hbaf_edge.conversation import SAME, UNKNOWN, relate
from hbaf_edge.features import MAX_TOKENS
from hbaf_edge.text import normalise_text
from training import encoders
from training.corpora.records import Utterance

EARLIER_TOKENS = 96  # of all earlier turns together; the oldest words go first
MAX_EARLIER = 3


class Tokens(NamedTuple):
    """ids and segments (T,); the first `own` of them are the utterance itself and go on to HBAF."""

    ids: NDArray[np.int64]
    kinds: NDArray[np.int64]
    own: int

    @property
    def key(self) -> str:
        """What a cache knows it by."""
        return f"{self.own}:" + " ".join(map(str, self.ids.tolist()))


class Words:
    """Histories -> tokens.

    Args:
        encoder: name or folder of the text encoder, whose tokenizer.json is used.
        earlier: turns of the second segment, 0 to 3.
        longest: tokens of the utterance itself, the runtime's 64 unless training cuts them shorter.
    """

    def __init__(self, encoder: str, earlier: int = 0, longest: int = MAX_TOKENS) -> None:
        if not 0 <= earlier <= MAX_EARLIER:
            raise SystemExit(f"earlier_turns is {earlier}; 0 to {MAX_EARLIER} are possible")
        self._tokenizer = Tokenizer.from_buffer((encoders.folder(encoder) / "tokenizer.json").read_bytes())
        self._tokenizer.no_padding()
        self._tokenizer.no_truncation()
        self.earlier, self.longest = earlier, longest

    def __call__(self, history: Sequence[tuple[Utterance, str | None]], place: int) -> Tokens | None:
        """The turn at `place` of a history; None where nothing was said."""
        utterance, speaker = history[place]
        text = normalise_text(utterance.text)
        if not text:
            return None
        own = self._tokenizer.encode(text, add_special_tokens=False)
        own.truncate(self.longest - self._tokenizer.num_special_tokens_to_add(False))
        alone = self._tokenizer.post_process(own).ids  # with the separator that a second segment stands behind
        before = self._before(history, place, speaker)
        if not before:
            return Tokens(np.array(alone), np.zeros(len(alone), np.int64), len(alone))
        second = self._tokenizer.encode(before, add_special_tokens=False)
        second.truncate(EARLIER_TOKENS, direction="left")
        both = self._tokenizer.post_process(own, second)
        return Tokens(np.array(both.ids), np.array(both.type_ids), len(alone))

    def _before(self, history: Sequence[tuple[Utterance, str | None]], place: int, speaker: str | None) -> str:
        said = []
        for utterance, other in history[max(0, place - self.earlier) : place]:
            relation = relate(speaker, other)
            head = "" if relation == UNKNOWN else "i: " if relation == SAME else "you: "
            said.append(head + normalise_text(utterance.text))
        return " ".join(said)
