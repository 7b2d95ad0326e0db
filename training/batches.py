"""From dialogues to batches: joined histories, tokens, encoder states, padding.

A robot's conversation goes on for hundreds of turns while MELD's dialogues end at 24. So training joins dialogues to
histories of random length (docs/model.md, "Depth").
"""

from __future__ import annotations

import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple, cast

import numpy as np
import torch
from numpy.typing import NDArray
from tokenizers import Tokenizer
from torch import Tensor, nn
from torch.nn import functional

from hbaf_edge.conversation import UNKNOWN, speaker_relation
from hbaf_edge.features import MAX_TOKENS
from hbaf_edge.text import normalise_text
from training import encoders
from training.corpora.records import Dialogue, Utterance
from training.model import Batch

States = NDArray[np.floating[Any]]  # float16 from a cache, float32 otherwise
History = list[tuple[Utterance, str | None]]  # utterances, each with its speaker's name or None
TEXTS_AT_ONCE, CLIPS_AT_ONCE = 16, 8  # in one call of an encoder


class Tokens(NamedTuple):
    """Token ids (T,) of an utterance."""

    ids: NDArray[np.int64]

    @property
    def key(self) -> str:
        """Key in a state cache."""
        return f"{len(self.ids)}:" + " ".join(map(str, self.ids.tolist()))


class TextTokeniser:
    """Text to tokens, truncated as in the runtime.

    Args:
        encoder: name of the text encoder, whose tokenizer.json is used.
        max_tokens: longest token sequence; the runtime's 64, or fewer in training.
    """

    def __init__(self, encoder: str, max_tokens: int = MAX_TOKENS) -> None:
        self._tokenizer = Tokenizer.from_buffer((encoders.folder(encoder) / "tokenizer.json").read_bytes())
        self._tokenizer.no_padding()
        self._tokenizer.enable_truncation(max_tokens)

    def __call__(self, text: str) -> Tokens | None:
        """Return the tokens of a transcript, or None if it is empty."""
        cleaned = normalise_text(text)
        return Tokens(np.array(self._tokenizer.encode(cleaned).ids)) if cleaned else None


@dataclass(frozen=True)
class Turn:
    """One utterance as input of the training module.

    text is encoder states (T, states, dim) or `Tokens`. audio is states (F, states, dim) or the path of a clip. Either
    may be None. speaker None means unknown. `is_matched` says for (audio, text) whether it belongs to the label; the
    model should reject a mismatched modality, so no unimodal loss is computed on it.
    """

    label: int
    speaker: str | None
    text: States | Tokens | None
    audio: States | Path | None
    is_matched: tuple[bool, bool] = (True, True)


def join_dialogues(dialogues: Sequence[Dialogue], rng: random.Random, max_turns: int) -> Iterator[History]:
    """Join dialogues in random order to histories of random length. Each dialogue has its own speakers.

    A history ends with the dialogue that reaches its target, a random number from 1 to `max_turns`.
    """
    shuffled = list(dialogues)
    rng.shuffle(shuffled)
    history: History = []
    target = rng.randint(1, max_turns)
    for dialogue in shuffled:
        history += [(u, u.speaker and f"{dialogue.name}/{u.speaker}") for u in dialogue.turns]
        if len(history) >= target:
            yield history
            history, target = [], rng.randint(1, max_turns)
    if history:
        yield history


def sample_dialogues(
    dialogues: Sequence[Dialogue], share: float, also: Sequence[tuple[list[Dialogue], float]], rng: random.Random
) -> list[Dialogue]:
    """Sample a share of the corpus (at least one dialogue), and a share of each further corpus."""
    sample = rng.sample(dialogues, max(1, int(len(dialogues) * share)))
    for more, more_share in also:
        sample += rng.sample(more, int(len(more) * more_share))
    return sample


def hide_speakers(history: History, share: float, rng: random.Random) -> History:
    """Make this share of a history's speakers unknown."""
    return [(u, None if rng.random() < share else speaker) for u, speaker in history]


def encode_texts(encoder: nn.Module, texts: Sequence[Tokens]) -> Iterator[tuple[int, Tensor]]:
    """Yield the index of each text and its states (T, states, dim), sorted by length to save padding."""
    device = next(encoder.parameters()).device
    order = sorted(range(len(texts)), key=lambda i: len(texts[i].ids))
    for rows in chunks(order, TEXTS_AT_ONCE):
        ids, mask = pad([texts[i].ids for i in rows], (), 1, device)
        for i, states in zip(rows, encoders.text_states(encoder, ids, mask)):
            yield i, states[: len(texts[i].ids)]


def encode_clips(encoder: nn.Module, prepared: Sequence[Tensor]) -> Iterator[tuple[int, Tensor]]:
    """Yield the index of each clip and its states (F, states, dim), sorted by length to save padding.

    `prepared` holds the encoder's inputs: log-mel (80, frames) or waveforms (samples,).
    """
    audio = cast(Any, encoder)
    device = next(encoder.parameters()).device
    order = sorted(range(len(prepared)), key=lambda i: prepared[i].shape[-1])
    for rows in chunks(order, CLIPS_AT_ONCE):
        lengths = torch.tensor([prepared[i].shape[-1] for i in rows], device=device)
        longest = int(lengths.max())
        padded = torch.stack([functional.pad(prepared[i], (0, longest - prepared[i].shape[-1])) for i in rows])
        mask = torch.arange(longest, device=device) < lengths[:, None]
        batch = encoders.audio_states(audio, padded.to(device), None if bool(mask.all()) else mask)
        for i, states in zip(rows, batch):
            yield i, states[: audio.frames(prepared[i].shape[-1])]


def speaker_relations(speakers: Sequence[str | None]) -> NDArray[np.int64]:
    """(N, N) relations of speakers: 0 same, 1 another, 2 unknown if either name is None.

    >>> speaker_relations(["anna", "bob", None]).tolist()
    [[0, 1, 2], [1, 0, 2], [2, 2, 2]]
    """
    return np.array([[speaker_relation(a, b) for b in speakers] for a in speakers], np.int64)


def pad(
    sequences: Sequence[NDArray | Tensor | None],
    shape: tuple[int, ...],
    multiple: int = 1,
    device: torch.device | str = "cpu",
) -> tuple[Tensor, Tensor]:
    """Pad (length, *shape) arrays, or None for absent ones, with zeros.

    Args:
        sequences: token ids if `shape` is empty; gradients pass through tensors.
        shape: shape of one element.
        multiple: the padded length is a multiple of this and at least this.
        device: of the result.

    Returns:
        The padded sequences (U, longest, *shape) and their mask (U, longest).
    """
    lengths = torch.tensor([0 if s is None else len(s) for s in sequences])
    longest = max(multiple, int(lengths.max()))
    longest += -longest % multiple
    mask = torch.arange(longest) < lengths[:, None]
    rows = []
    for sequence in sequences:
        row = torch.as_tensor(np.zeros((0, *shape)) if sequence is None else sequence)
        row = row.to(device, torch.float32 if shape else torch.int64)
        rows.append(functional.pad(row, (0, 0) * len(shape) + (0, longest - len(row))))
    return torch.stack(rows), mask.to(device)


def collate(
    histories: Sequence[Sequence[Turn]],
    audio: Sequence[States | Tensor | None],
    text: Sequence[States | Tensor | None],
    audio_shape: tuple[int, int],
    text_shape: tuple[int, int],
    stack: int = 4,
    device: torch.device | str = "cpu",
) -> Batch:
    """Make a batch of histories and the encoder states of their turns.

    Args:
        histories: turns of each history.
        audio, text: (length, states, dim) or None for each turn, in the order of the histories.
        audio_shape, text_shape: (states, dim).
        stack: frames are padded to a multiple of this.
        device: of the batch.
    """
    turns = [turn for history in histories for turn in history]
    longest = max(len(h) for h in histories)
    rows = np.full((len(histories), longest), -1, np.int64)
    relation = np.full((len(histories), longest, longest), UNKNOWN, np.int64)
    start = 0
    for i, history in enumerate(histories):
        n = len(history)
        rows[i, :n] = np.arange(start, start + n)
        relation[i, :n, :n] = speaker_relations([t.speaker for t in history])
        start += n
    labels, is_matched = torch.tensor([t.label for t in turns]), torch.tensor([t.is_matched for t in turns])
    others = (x.to(device) for x in (torch.from_numpy(rows), torch.from_numpy(relation), labels, is_matched))
    return Batch(*pad(audio, audio_shape, stack, device), *pad(text, text_shape, 1, device), *others)


def chunks(items: Sequence, size: int) -> Iterator[Sequence]:
    """Yield consecutive parts of `size` items."""
    for start in range(0, len(items), size):
        yield items[start : start + size]


def group_histories(histories: Sequence[list[Turn]], turns: int) -> Iterator[list[list[Turn]]]:
    """Yield groups of consecutive histories with at least `turns` turns; the last group may have fewer."""
    group: list[list[Turn]] = []
    for history in histories:
        group.append(history)
        if sum(map(len, group)) >= turns:
            yield group
            group = []
    if group:
        yield group
