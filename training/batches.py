"""From dialogues to batches: joined histories, hidden speakers, dropped and misleading partners, padding.

A robot's conversation never ends while MELD's end at 24 turns, so training joins dialogues and draws the length of
the history at random (training/MODEL.md, "Depth").
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from hbaf_edge.conversation import UNKNOWN, relate
from training.config import NEUTRAL, TrainConfig
from training.corpora.records import Dialogue, Utterance
from training.model import Batch

States = NDArray[np.float16]
FRAMES_PER_SECOND = 50


@dataclass(frozen=True)
class Turn:
    """One utterance as a batch holds it: states of what is present, who spoke, what is to be learned.

    text is (T, states, dim) or token ids (T,); audio is (F, states, dim); speaker None means unknown. `honest` says of
    (audio, text) whether it belongs to the label; what misleads is there to be rejected, not to be learned from.
    """

    label: int
    speaker: str | None
    text: NDArray | None
    audio: States | None
    honest: tuple[bool, bool] = (True, True)


def join(
    dialogues: Sequence[Dialogue], rng: random.Random, max_turns: int
) -> Iterator[list[tuple[Utterance, str | None]]]:
    """Dialogues in random order, joined to histories of random length; speakers of different dialogues differ."""
    order = list(dialogues)
    rng.shuffle(order)
    history: list[tuple[Utterance, str | None]] = []
    target = rng.randint(1, max_turns)
    for dialogue in order:
        history += [(u, u.speaker and f"{dialogue.name}/{u.speaker}") for u in dialogue.turns]
        if len(history) >= target:
            yield history
            history, target = [], rng.randint(1, max_turns)
    if history:
        yield history


def alone(dialogue: Dialogue) -> list[tuple[Utterance, str | None]]:
    """A dialogue by itself, as evaluation sees it."""
    return [(u, u.speaker) for u in dialogue.turns]


def relations(speakers: Sequence[str | None]) -> NDArray[np.int64]:
    """(N, N): whether turn i's speaker is turn j's; unknown where either is.

    >>> relations(["anna", "bob", None]).tolist()
    [[0, 1, 2], [1, 0, 2], [2, 2, 2]]
    """
    return np.array([[relate(a, b) for b in speakers] for a in speakers], np.int64)


def pad(parts: Sequence[NDArray | None], shape: tuple[int, ...], multiple: int = 1) -> tuple[Tensor, Tensor]:
    """(length, *shape) arrays or None -> (U, longest, *shape) zero-padded and its mask; at least one slot long."""
    longest = max([multiple, *(len(p) for p in parts if p is not None)])
    longest += -longest % multiple
    kind = np.int64 if not shape else np.float32
    filled = np.zeros((len(parts), longest, *shape), kind)
    mask = np.zeros((len(parts), longest), bool)
    for row, part in enumerate(parts):
        if part is not None:
            filled[row, : len(part)] = part
            mask[row, : len(part)] = True
    return torch.from_numpy(filled), torch.from_numpy(mask)


def collate(
    histories: Sequence[Sequence[Turn]], audio: tuple[int, int], text: tuple[int, ...], stack: int = 4
) -> Batch:
    """Histories -> one batch. `audio` and `text` are (states, dim), `text` () for ids; frames are padded to stacks."""
    turns = [turn for history in histories for turn in history]
    sounds, sound_mask = pad([t.audio for t in turns], audio, stack)
    words, word_mask = pad([t.text for t in turns], text)
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
    return Batch(
        sounds, sound_mask, words, word_mask, torch.from_numpy(rows), torch.from_numpy(relation), labels, honest
    )


def groups(items: Sequence, size: int) -> Iterator[Sequence]:
    """Consecutive groups of `size`."""
    for start in range(0, len(items), size):
        yield items[start : start + size]


class Partner:
    """What a text utterance is paired with in training, and what is done to make partners untrustworthy.

    No corpus at hand has natural audio with natural words, so a text of label y gets a clip of label y from the acted
    corpora ("label-matched pairs", said in the model card); a share of partners misleads, and either modality is
    dropped at random, so that relevance and gate learn to reject.
    """

    def __init__(
        self,
        clips: Sequence[Utterance],
        plain: Sequence[Utterance],
        sound: Callable[[Utterance], States],
        config: TrainConfig,
    ) -> None:
        self.config, self.sound, self.plain = config, sound, plain
        self.by_label: dict[int, list[Utterance]] = {}
        for clip in clips:
            self.by_label.setdefault(clip.label, []).append(clip)

    def pick(self, label: int, rng: random.Random) -> States:
        """States of a clip of that label, cropped at random where it is long."""
        return self.crop(self.sound(rng.choice(self.by_label[label])), rng)

    def crop(self, states: States, rng: random.Random) -> States:
        """At most `audio_seconds` of it."""
        limit = int(self.config.audio_seconds * FRAMES_PER_SECOND)
        start = rng.randint(0, max(0, len(states) - limit))
        return states[start : start + limit]

    def misleading(self, rng: random.Random) -> States:
        """Plain speech or noise that says nothing, a neutral clip, or a clip of any label at all."""
        kind = rng.random()
        if kind < 0.55 and self.plain:
            return self.crop(self.sound(rng.choice(self.plain)), rng)
        labels = list(self.by_label)
        return self.pick(NEUTRAL if kind < 0.75 and NEUTRAL in labels else rng.choice(labels), rng)
