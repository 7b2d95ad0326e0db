"""From dialogues to batches: joined histories, tokens, encoder states, padding.

A robot's conversation never ends while MELD's end at 24 turns, so training joins dialogues and draws the length of
the history at random (training/MODEL.md, "Depth").
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

from hbaf_edge.conversation import UNKNOWN, relate
from hbaf_edge.features import MAX_TOKENS
from hbaf_edge.text import normalise_text
from training import encoders
from training.corpora.records import Dialogue, Utterance
from training.model import Batch

States = NDArray[np.floating[Any]]  # float16 from a cache, float32 otherwise
Joined = list[tuple[Utterance, str | None]]  # each with its speaker's name, or None
TEXTS, CLIPS = 16, 8  # encoded at once


class Tokens(NamedTuple):
    """ids (T,) of an utterance."""

    ids: NDArray[np.int64]

    @property
    def key(self) -> str:
        """What a cache knows it by."""
        return f"{len(self.ids)}:" + " ".join(map(str, self.ids.tolist()))


class Words:
    """Text -> tokens, cut as the runtime cuts them.

    Args:
        encoder: name of the text encoder, whose tokenizer.json is used.
        longest: tokens of an utterance, the runtime's 64 unless training cuts them shorter.
    """

    def __init__(self, encoder: str, longest: int = MAX_TOKENS) -> None:
        self._tokenizer = Tokenizer.from_buffer((encoders.folder(encoder) / "tokenizer.json").read_bytes())
        self._tokenizer.no_padding()
        self._tokenizer.enable_truncation(longest)

    def __call__(self, text: str) -> Tokens | None:
        """The tokens of what was said; None where nothing was."""
        cleaned = normalise_text(text)
        return Tokens(np.array(self._tokenizer.encode(cleaned).ids)) if cleaned else None


@dataclass(frozen=True)
class Turn:
    """One utterance as the learner takes it: what is present, who spoke, what is to be learned.

    text is encoder states (T, states, dim) or `Tokens`; audio is states (F, states, dim) or the clip's path; speaker
    None means unknown. `honest` says of (audio, text) whether it belongs to the label; what misleads is there to be
    rejected, not to be learned from.
    """

    label: int
    speaker: str | None
    text: States | Tokens | None
    audio: States | Path | None
    honest: tuple[bool, bool] = (True, True)


def join(dialogues: Sequence[Dialogue], rng: random.Random, max_turns: int) -> Iterator[Joined]:
    """Dialogues in random order, joined to histories of random length; speakers of different dialogues differ."""
    order = list(dialogues)
    rng.shuffle(order)
    history: Joined = []
    target = rng.randint(1, max_turns)
    for dialogue in order:
        history += [(u, u.speaker and f"{dialogue.name}/{u.speaker}") for u in dialogue.turns]
        if len(history) >= target:
            yield history
            history, target = [], rng.randint(1, max_turns)
    if history:
        yield history


def drawn(
    dialogues: Sequence[Dialogue], share: float, also: Sequence[tuple[list[Dialogue], float]], rng: random.Random
) -> list[Dialogue]:
    """An epoch's share of the corpus, at least one dialogue of it, and of each further one."""
    found = rng.sample(dialogues, max(1, int(len(dialogues) * share)))
    for more, part in also:
        found += rng.sample(more, int(len(more) * part))
    return found


def hidden(history: Joined, share: float, rng: random.Random) -> Joined:
    """The history, that share of its speakers unknown."""
    return [(u, None if rng.random() < share else speaker) for u, speaker in history]


def encode_texts(encoder: nn.Module, found: Sequence[Tokens]) -> Iterator[tuple[int, Tensor]]:
    """Places in `found`, in order of length so that little is padding, and states (T, states, dim)."""
    device = next(encoder.parameters()).device
    order = sorted(range(len(found)), key=lambda i: len(found[i].ids))
    for rows in groups(order, TEXTS):
        ids, mask = pad([found[i].ids for i in rows], (), 1, device)
        for i, row in zip(rows, encoders.text_states(encoder, ids, mask)):
            yield i, row[: len(found[i].ids)]


def encode_clips(encoder: nn.Module, prepared: Sequence[Tensor]) -> Iterator[tuple[int, Tensor]]:
    """Places in `prepared`, log-mel (80, frames) or waves (samples,), by length, and states (T, states, dim)."""
    audio = cast(Any, encoder)
    device = next(encoder.parameters()).device
    order = sorted(range(len(prepared)), key=lambda i: prepared[i].shape[-1])
    for rows in groups(order, CLIPS):
        lengths = torch.tensor([prepared[i].shape[-1] for i in rows], device=device)
        longest = int(lengths.max())
        padded = torch.stack([functional.pad(prepared[i], (0, longest - prepared[i].shape[-1])) for i in rows])
        mask = torch.arange(longest, device=device) < lengths[:, None]
        states = encoders.audio_states(audio, padded.to(device), None if bool(mask.all()) else mask)
        for i, row in zip(rows, states):
            yield i, row[: audio.frames(prepared[i].shape[-1])]


def relations(speakers: Sequence[str | None]) -> NDArray[np.int64]:
    """(N, N): whether turn i's speaker is turn j's; unknown where either is.

    >>> relations(["anna", "bob", None]).tolist()
    [[0, 1, 2], [1, 0, 2], [2, 2, 2]]
    """
    return np.array([[relate(a, b) for b in speakers] for a in speakers], np.int64)


def pad(
    parts: Sequence[NDArray | Tensor | None],
    shape: tuple[int, ...],
    multiple: int = 1,
    device: torch.device | str = "cpu",
) -> tuple[Tensor, Tensor]:
    """(length, *shape) arrays or None -> (U, longest, *shape) zero-padded and its mask; at least one slot long.

    The parts are indices where `shape` is empty. Gradients pass through those that are tensors.
    """
    lengths = torch.tensor([0 if part is None else len(part) for part in parts])
    longest = max(multiple, int(lengths.max()))
    longest += -longest % multiple
    mask = torch.arange(longest) < lengths[:, None]
    rows = []
    for part in parts:
        row = torch.as_tensor(np.zeros((0, *shape)) if part is None else part)
        row = row.to(device, torch.float32 if shape else torch.int64)
        rows.append(functional.pad(row, (0, 0) * len(shape) + (0, longest - len(row))))
    return torch.stack(rows), mask.to(device)


def collate(
    histories: Sequence[Sequence[Turn]],
    sounds: Sequence[States | Tensor | None],
    words: Sequence[States | Tensor | None],
    audio: tuple[int, int],
    text: tuple[int, int],
    stack: int = 4,
    device: torch.device | str = "cpu",
) -> Batch:
    """Histories and the encoder states of their turns -> one batch on `device`.

    `sounds` and `words` hold (length, states, dim) or None for each turn; `audio` and `text` are (states, dim); frames
    are padded to stacks.
    """
    turns = [turn for history in histories for turn in history]
    longest = max(len(h) for h in histories)
    rows = np.full((len(histories), longest), -1, np.int64)
    relation = np.full((len(histories), longest, longest), UNKNOWN, np.int64)
    start = 0
    for i, history in enumerate(histories):
        n = len(history)
        rows[i, :n] = np.arange(start, start + n)
        relation[i, :n, :n] = relations([t.speaker for t in history])
        start += n
    labels, honest = torch.tensor([t.label for t in turns]), torch.tensor([t.honest for t in turns])
    rest = (x.to(device) for x in (torch.from_numpy(rows), torch.from_numpy(relation), labels, honest))
    return Batch(*pad(sounds, audio, stack, device), *pad(words, text, 1, device), *rest)


def groups(items: Sequence, size: int) -> Iterator[Sequence]:
    """Consecutive groups of `size`."""
    for start in range(0, len(items), size):
        yield items[start : start + size]


def fill(histories: Sequence[list[Turn]], turns: int) -> Iterator[list[list[Turn]]]:
    """Groups of histories of about `turns` turns."""
    group: list[list[Turn]] = []
    for history in histories:
        group.append(history)
        if sum(map(len, group)) >= turns:
            yield group
            group = []
    if group:
        yield group
