"""Inputs of the training module: cached states of a frozen encoder, or the input of an encoder that is trained."""

from __future__ import annotations

import random
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch

from training import caches
from training.batches import States, TextTokeniser, Tokens, Turn
from training.config import TrainConfig, Use
from training.corpora.records import Dialogue, Utterance
from training.training_module import TrainingModule

FRAMES_PER_SECOND = 50
STATISTICS_DIALOGUES = 400  # dialogues from which means and deviations are computed
TRAIN_TOKENS = 40  # limit while the text encoder is trained; 1 % of MELD's utterances are longer


class FeatureProvider:
    """Features of turns, for training and for scoring.

    Args:
        module: its encoders are used.
        config: tuning, modalities and crops.
        cached: cache the states of frozen encoders; False for data that are encoded only once or twice.
    """

    def __init__(self, module: TrainingModule, config: TrainConfig, cached: bool = True) -> None:
        c = module.hbaf.config
        self.module, self.config = module, config
        self.tokeniser = self.training_tokeniser = TextTokeniser(c.text_encoder) if module.text is not None else None
        if module.text is not None and config.text_tuning != "frozen":
            self.training_tokeniser = TextTokeniser(c.text_encoder, TRAIN_TOKENS)
        self.audio_cache: caches.AudioCache | None = None
        if cached and module.audio is not None and config.audio_tuning == "frozen" and "audio" in config.use:
            self.audio_cache = caches.AudioCache(module.audio, (c.audio_states, c.audio_dim))
        self.text_cache: caches.StateCache | None = None
        if cached and module.text is not None and config.text_tuning == "frozen" and "text" in config.use:
            self.text_cache = caches.encoder_cache("text", module.text, (c.text_states, c.text_dim))

    def prepare(self, dialogues: Sequence[Dialogue], copies: int = 0) -> FeatureProvider:
        """Fill the caches for these dialogues. Turns that are not cached are encoded on each use."""
        if self.audio_cache is not None:
            paths = dict.fromkeys(t.audio for d in dialogues for t in d.turns if t.audio)
            self.audio_cache.fill(list(paths), copies)
        if self.text_cache is not None and self.tokeniser is not None:
            tokens = [self.tokeniser(t.text) for d in dialogues for t in d.turns]
            assert self.module.text is not None
            caches.fill_texts(self.text_cache, self.module.text, [t for t in tokens if t])
        return self

    def fit_standardisation(self, dialogues: Sequence[Dialogue], modalities: Sequence[str]) -> None:
        """Set the mean and deviation with which the model standardises the states of frozen encoders.

        `modalities` are those that the model is trained on for the first time; changing the others would invalidate its
        weights. Pre-extracted vectors are not standardised: on MELD's dev features that causes overfitting.
        """
        hbaf = self.module.hbaf
        dialogues = [d for d in dialogues if not d.turns[0].vectors]
        turns = [turn for d in random.Random(0).sample(list(dialogues), min(len(dialogues), STATISTICS_DIALOGUES))
                 for turn in self.turns(d, self.config.use)]  # fmt: skip
        for name, standardise, features in (
            ("audio", hbaf.audio.standardise, [t.audio for t in turns]),
            ("text", hbaf.text.standardise, [t.text for t in turns]),
        ):
            states = [f for f in features if isinstance(f, np.ndarray)]
            if name in modalities and states:
                mixed = np.concatenate([s.astype(np.float32).mean(1) for s in states])
                standardise.set(torch.from_numpy(mixed.mean(0)), torch.from_numpy(mixed.std(0)))

    def sentence(self, text: str) -> States | Tokens | None:
        """Features of a sentence without a turn."""
        return self.text(Utterance(text, 0))

    def text(self, utterance: Utterance, training: bool = False) -> States | Tokens | None:
        """Text features of a turn: vectors, cached states or tokens; None without text."""
        if utterance.vectors is not None:
            return None if utterance.vectors.text is None else utterance.vectors.text[:, None]
        tokeniser = self.training_tokeniser if training else self.tokeniser
        tokens = tokeniser(utterance.text) if tokeniser is not None else None
        if tokens is not None and self.text_cache is not None and tokens.key in self.text_cache:
            return self.text_cache[tokens.key]
        return tokens

    def audio(self, utterance: Utterance, rng: random.Random | None = None) -> States | Path | None:
        """Audio features of a turn: vectors, cached states or the path of the clip; None without audio.

        With `rng`, as in training, cached states are a random crop of a random augmented variant.
        """
        if utterance.vectors is not None:
            return None if utterance.vectors.audio is None else utterance.vectors.audio[:, None]
        if utterance.audio is None or self.audio_cache is None or utterance.audio not in self.audio_cache:
            return utterance.audio if self.module.audio is not None else None
        if rng is None:
            return self.audio_cache.states(utterance.audio)
        return self._crop(self.audio_cache.states(utterance.audio, rng.randint(0, self.config.copies)), rng)

    def _crop(self, states: States, rng: random.Random) -> States:
        """A random crop of at most `audio_seconds`."""
        limit = int(self.config.audio_seconds * FRAMES_PER_SECOND)
        start = rng.randint(0, max(0, len(states) - limit))
        return states[start : start + limit]

    def turns(self, dialogue: Dialogue, use: Use) -> list[Turn]:
        """Turns of a dialogue for evaluation, with the modalities of `use`."""
        turns = []
        for u in dialogue.turns:
            text = self.text(u) if "text" in use else None
            audio = self.audio(u) if "audio" in use else None
            turns.append(Turn(u.label, u.speaker, text, audio))
        return turns
