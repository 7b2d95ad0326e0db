"""From dialogues to batches: joined histories, relations, padding.

A robot's conversation never ends while MELD's end at 24 turns, so training joins dialogues and draws the length of
the history at random (training/MODEL.md, "Depth").
"""

from __future__ import annotations

import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from hbaf_edge.conversation import UNKNOWN, relate
from training.corpora.records import Dialogue, Utterance
from training.model import Batch, Lesson
from training.words import Tokens

States = NDArray[np.floating[Any]]  # float16 from a cache, float32 otherwise
Joined = list[tuple[Utterance, str | None, tuple[str, int]]]  # each with its dialogue's name and its place there


@dataclass(frozen=True)
class Turn:
    """One utterance as the learner takes it: what is present, who spoke, what is to be learned.

    text is encoder states (T, states, dim) or `Tokens`; audio is states (F, states, dim) or the clip's path; speaker
    None means unknown. `honest` says of (audio, text) whether it belongs to the label; what misleads is there to be
    rejected, not to be learned from. `lesson` is a teacher's probabilities (labels,) and embedding.
    """

    label: int
    speaker: str | None
    text: States | Tokens | None
    audio: States | Path | None
    honest: tuple[bool, bool] = (True, True)
    lesson: tuple[NDArray[np.float32], NDArray[np.float32]] | None = None


def join(dialogues: Sequence[Dialogue], rng: random.Random, max_turns: int) -> Iterator[Joined]:
    """Dialogues in random order, joined to histories of random length; speakers of different dialogues differ."""
    order = list(dialogues)
    rng.shuffle(order)
    history: Joined = []
    target = rng.randint(1, max_turns)
    for dialogue in order:
        for place, u in enumerate(dialogue.turns):
            history.append((u, u.speaker and f"{dialogue.name}/{u.speaker}", (dialogue.name, place)))
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
    return [(u, None if rng.random() < share else speaker, place) for u, speaker, place in history]


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
    """(length, *shape) arrays or None -> (U, longest, *shape) zero-padded and its mask; at least one slot long."""
    longest = max([multiple, *(len(p) for p in parts if p is not None)])
    longest += -longest % multiple
    mask = np.zeros((len(parts), longest), bool)
    for row, part in enumerate(parts):
        if part is not None:
            mask[row, : len(part)] = True
    if any(isinstance(part, Tensor) for part in parts):
        return _pad_tensors(parts, shape, longest, device), torch.from_numpy(mask).to(device)
    filled = np.zeros((len(parts), longest, *shape), np.float32 if shape else np.int64)
    for row, part in enumerate(parts):
        if part is not None:
            filled[row, : len(part)] = part
    return torch.from_numpy(filled).to(device), torch.from_numpy(mask).to(device)


def _pad_tensors(
    parts: Sequence[NDArray | Tensor | None], shape: tuple[int, ...], longest: int, device: torch.device | str
) -> Tensor:
    """The same for states that an encoder in training made: gradients pass."""
    nothing = torch.zeros(longest, *shape, device=device)
    rows = []
    for part in parts:
        if part is None:
            rows.append(nothing)
            continue
        states = part if isinstance(part, Tensor) else torch.from_numpy(np.asarray(part, np.float32)).to(device)
        rows.append(torch.cat([states.float(), nothing[len(states) :]]))
    return torch.stack(rows)


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
    heard, heard_mask = pad(sounds, audio, stack, device)
    read, read_mask = pad(words, text, 1, device)
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
    indices = torch.from_numpy(rows).to(device), torch.from_numpy(relation).to(device)
    known = labels.to(device), honest.to(device)
    return Batch(heard, heard_mask, read, read_mask, *indices, *known, taught(turns, device))


def taught(turns: Sequence[Turn], device: torch.device | str) -> Lesson | None:
    """What a teacher says of these turns, where one was asked."""
    if not any(t.lesson for t in turns):
        return None
    some = next(t.lesson for t in turns if t.lesson)
    lessons = [t.lesson or some for t in turns]
    probabilities, embedding = (torch.from_numpy(np.stack(x)).float().to(device) for x in zip(*lessons))
    return Lesson(probabilities, embedding, torch.tensor([t.lesson is not None for t in turns]).to(device))


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
