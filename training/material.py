"""What the learner is given of each turn: cached states where an encoder is frozen, its input where it learns."""

from __future__ import annotations

import random
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch

from training import caches
from training.batches import States, Tokens, Turn, Words
from training.config import TrainConfig, Use
from training.corpora.records import Dialogue, Utterance
from training.learner import Learner

FRAMES_PER_SECOND = 50
SAMPLED = 400  # dialogues from which means and deviations are taken
TRAIN_TOKENS = 40  # a longer utterance is cut where the text encoder learns; 1 % of MELD's are


class Material:
    """Turns of histories, for training and for scoring.

    Args:
        learner: whose encoders are used.
        config: tuning, use, crops.
        cached: keep states of frozen encoders; False for clips and sentences that are met once or twice.
    """

    def __init__(self, learner: Learner, config: TrainConfig, cached: bool = True) -> None:
        c = learner.hbaf.config
        self.learner, self.config = learner, config
        self.words = self.short = Words(c.text_encoder) if learner.text is not None else None
        if learner.text is not None and config.text_tuning != "frozen":
            self.short = Words(c.text_encoder, TRAIN_TOKENS)
        self.sounds: caches.AudioCache | None = None
        if cached and learner.audio is not None and config.audio_tuning == "frozen" and "audio" in config.use:
            self.sounds = caches.AudioCache(learner.audio, (c.audio_states, c.audio_dim))
        self.texts: caches.StateCache | None = None
        if cached and learner.text is not None and config.text_tuning == "frozen" and "text" in config.use:
            shape = (c.text_states, c.text_dim)
            self.texts = caches.cache_of("text", learner.text, shape)

    def prepare(self, dialogues: Sequence[Dialogue], copies: int = 0) -> Material:
        """Fill the caches for these dialogues; what they lack is encoded when it is met."""
        if self.sounds is not None:
            paths = dict.fromkeys(t.audio for d in dialogues for t in d.turns if t.audio)
            self.sounds.fill(list(paths), copies)
        if self.texts is not None and self.words is not None:
            told = [self.words(t.text) for d in dialogues for t in d.turns]
            assert self.learner.text is not None
            caches.fill_texts(self.texts, self.learner.text, [t for t in told if t])
        return self

    def standardise(self, dialogues: Sequence[Dialogue], modalities: Sequence[str]) -> None:
        """Fix the mean and deviation of the states that the model's projections read, where the encoder is frozen.

        `modalities` are those that the model learns for the first time; for others a change would undo what it knows.
        Vectors stay as their makers scaled them: on MELD's dev features every dimension at the same scale overfits.
        """
        hbaf = self.learner.hbaf
        dialogues = [d for d in dialogues if not d.turns[0].vectors]
        turns = [turn for d in random.Random(0).sample(list(dialogues), min(len(dialogues), SAMPLED))
                 for turn in self.shown(d, self.config.use)]  # fmt: skip
        for name, part, found in (
            ("audio", hbaf.audio.standardise, [t.audio for t in turns]),
            ("text", hbaf.text.standardise, [t.text for t in turns]),
        ):
            states = [f for f in found if isinstance(f, np.ndarray)]
            if name in modalities and states:
                mixed = np.concatenate([s.astype(np.float32).mean(1) for s in states])
                part.set(torch.from_numpy(mixed.mean(0)), torch.from_numpy(mixed.std(0)))

    def say(self, text: str) -> States | Tokens | None:
        """A sentence by itself."""
        return self.text(Utterance(text, 0))

    def text(self, utterance: Utterance, training: bool = False) -> States | Tokens | None:
        """Words of a turn: vectors, cached states or tokens."""
        if utterance.vectors is not None:
            return None if utterance.vectors.text is None else utterance.vectors.text[:, None]
        words = self.short if training else self.words
        told = words(utterance.text) if words is not None else None
        if told is not None and self.texts is not None and told.key in self.texts:
            return self.texts[told.key]
        return told

    def audio(self, utterance: Utterance, rng: random.Random | None = None) -> States | Path | None:
        """Sound of a turn: vectors, cached states (a variant and a crop of them in training) or the clip itself."""
        if utterance.vectors is not None:
            return None if utterance.vectors.audio is None else utterance.vectors.audio[:, None]
        if utterance.audio is None or self.sounds is None or utterance.audio not in self.sounds:
            return utterance.audio if self.learner.audio is not None else None
        if rng is None:
            return self.sounds.states(utterance.audio)
        return self.crop(self.sounds.states(utterance.audio, rng.randint(0, self.config.copies)), rng)

    def crop(self, states: States, rng: random.Random) -> States:
        """At most `audio_seconds` of it."""
        limit = int(self.config.audio_seconds * FRAMES_PER_SECOND)
        start = rng.randint(0, max(0, len(states) - limit))
        return states[start : start + limit]

    def shown(self, dialogue: Dialogue, use: Use) -> list[Turn]:
        """A dialogue as evaluation sees it, with the modalities of `use`."""
        turns = []
        for u in dialogue.turns:
            text = self.text(u) if "text" in use else None
            audio = self.audio(u) if "audio" in use else None
            turns.append(Turn(u.label, u.speaker, text, audio))
        return turns
