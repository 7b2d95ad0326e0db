"""Training data and dev scores of a run: dialogues of one corpus and of further ones, with their natural modalities.

training/pairs.py has the other task: texts and clips of different corpora, paired by label.
"""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor

from training import batches, corpora
from training.batches import History, States, Tokens, Turn
from training.config import TrainConfig, Use
from training.corpora.records import UNLABELLED, Corpus, Dialogue, Utterance
from training.errors import TrainingError
from training.feature_provider import FeatureProvider
from training.metrics import scores
from training.training_module import TrainingModule

Group = list[list[Turn]]  # histories of one batch
PREDICT_TURNS = 120  # in one batch of predictions


class CorpusTask:
    """Train on joined dialogues of a corpus, with the audio and text that they have.

    Args:
        config: settings of the run.
        corpus: dialogues in their splits.
        also: further training dialogues, each with the share sampled per epoch.
        module: its encoders are used.
    """

    def __init__(
        self, config: TrainConfig, corpus: Corpus, also: Sequence[tuple[list[Dialogue], float]], module: TrainingModule
    ) -> None:
        self.config, self.corpus, self.also, self.module = config, corpus, also, module
        self.train, self.dev = corpus.split("train"), corpus.split("dev")
        self.features = FeatureProvider(module, config)
        self.train_data = [*self.train, *(d for dialogues, _ in also for d in dialogues)]
        self.prepare()

    def prepare(self) -> None:
        """Fill the caches."""
        self.features.prepare(self.train_data, self.config.copies).prepare(self.dev)

    def epoch(self, rng: random.Random) -> list[Group]:
        """Batches of one epoch: sampled dialogues, joined to histories of random length, in random order."""
        histories = self.histories(rng)
        rng.shuffle(histories)
        turns = [self._turns(history, rng) for history in histories]
        return list(batches.group_histories([t for t in turns if t], self.config.turns))

    def histories(self, rng: random.Random) -> list[History]:
        """Sample and join the dialogues of one epoch."""
        sample = batches.sample_dialogues(self.train, self.config.share, self.also, rng)
        return list(batches.join_dialogues(sample, rng, self.config.max_turns))

    def evaluate(self) -> dict[str, float]:
        """Scores on the dev split; `score` selects the best epoch."""
        dev = self.scores(self.dev, self.config.use)
        return {"score": selection_score(dev, self.config.use), **dev}

    def scores(self, dialogues: Sequence[Dialogue], use: Use) -> dict[str, float]:
        """Weighted F1, macro F1 and UAR of dialogues."""
        predictions = predict_labelled(self.module, self.features, dialogues, use)
        all_scores = scores(predictions.logits, predictions.labels, self.corpus.labels)
        return {k: all_scores[k] for k in ("weighted_f1", "macro_f1", "uar")}

    def _turns(self, history: History, rng: random.Random) -> list[Turn]:
        """Turns for training: some lose a modality, some get another turn's, some an unknown speaker."""
        c, turns = self.config, []
        for u, speaker in batches.hide_speakers(history, c.hide_speaker, rng):
            text = self.features.text(u, training=True) if "text" in c.use else None
            audio = self.features.audio(u, rng) if "audio" in c.use else None
            is_matched = (True, True)
            if text is not None and audio is not None and rng.random() < c.mismatch:
                text, audio, is_matched = self._mismatched(text, audio, rng)
            elif text is not None and audio is not None:
                draw = rng.random()
                audio = None if draw < c.drop_audio else audio
                text = None if c.drop_audio <= draw < c.drop_audio + c.drop_text else text
            if text is not None or audio is not None:
                turns.append(Turn(u.label, speaker, text, audio, is_matched))
        return turns

    def _mismatched(
        self, text: States | Tokens, audio: States | Path, rng: random.Random
    ) -> tuple[States | Tokens, States | Path, tuple[bool, bool]]:
        """Replace one modality by another turn's, so that the model learns to reject it."""
        other = rng.choice(rng.choice(self.train).turns)
        if rng.random() < 0.5:
            other_audio = self.features.audio(other, rng)
            return (text, other_audio, (False, True)) if other_audio is not None else (text, audio, (True, True))
        other_text = self.features.text(other, training=True)
        return (other_text, audio, (True, False)) if other_text is not None else (text, audio, (True, True))


def selection_score(result: Mapping[str, float], use: Use) -> float:
    """The dev score that selects: weighted F1, or UAR if only audio is used (acted corpora)."""
    return result["uar" if use == "audio" else "weighted_f1"]


def load_corpus(
    config: TrainConfig, labels: Sequence[str] | None = None, needed: tuple[str, ...] = ("train", "dev")
) -> Corpus:
    """Load the corpus of a run in its fold, without the audio of clips in the skip list.

    Raises:
        CorpusError: one of the splits `needed` is empty, or a label is unknown.
    """
    corpus = corpora.load(config.corpus, labels)
    if config.skip:
        corpus = corpus.without(read_skip_list(config.skip))
    if config.fold is not None:
        corpus = corpus.for_fold(config.fold)
    return corpus.require(*needed)


def load_extra_dialogues(config: TrainConfig, labels: Sequence[str]) -> list[tuple[list[Dialogue], float]]:
    """Load the training dialogues of the corpora in --also, each with the share sampled per epoch."""
    extra = []
    for spec in config.also:
        name, _, share_text = spec.partition("@")
        try:
            share = float(share_text or 1)
        except ValueError as error:
            raise TrainingError(f"--also {spec!r}: the share after @ is not a number ({error})") from error
        if not 0 <= share <= 1:
            raise TrainingError(f"--also {spec!r}: the share after @ is {share:g}; it must be from 0 to 1")
        extra.append((corpora.load(name, labels).split("train"), share))
    return extra


def read_skip_list(path: str) -> list[str]:
    """Read the paths of a skip list: one per line, followed by a tab and the reason."""
    try:
        with open(path, encoding="utf-8") as file:
            return [line.split("\t")[0].strip() for line in file if line.strip()]
    except OSError as error:
        raise TrainingError(f"skip list {path}: {error.strerror}; training.check writes one") from error


class PredictedTurn(NamedTuple):
    """A turn with its dialogue's name, its position in the dialogue, and the modalities it has."""

    utterance: Utterance
    dialogue: str
    position: int
    modalities: Use


@dataclass(frozen=True)
class Predictions:
    """Predictions for U turns: logits (U, labels), embedding (U, 2d)."""

    logits: Tensor
    embedding: Tensor
    turns: list[PredictedTurn]

    @property
    def labels(self) -> Tensor:
        """(U,) true labels, −1 for unlabelled turns."""
        return torch.tensor([turn.utterance.label for turn in self.turns])

    @property
    def modalities(self) -> list[Use]:
        """Modalities of each turn."""
        return [turn.modalities for turn in self.turns]

    def select(self, is_selected: Sequence[bool]) -> Predictions:
        """Predictions for some of the turns."""
        rows = [i for i, selected in enumerate(is_selected) if selected]
        return Predictions(self.logits[rows], self.embedding[rows], [self.turns[i] for i in rows])


@torch.inference_mode()
def predict(module: TrainingModule, features: FeatureProvider, dialogues: Sequence[Dialogue], use: Use) -> Predictions:
    """Predict every turn that has a modality of `use`. Each dialogue is a history of its own."""
    predicted: list[PredictedTurn] = []
    histories = []
    for dialogue in dialogues:
        history = []
        for i, (u, turn) in enumerate(zip(dialogue.turns, features.turns(dialogue, use))):
            if turn.text is not None or turn.audio is not None:
                history.append(turn)
                modalities: Use = "text" if turn.audio is None else "audio" if turn.text is None else "audio+text"
                predicted.append(PredictedTurn(u, dialogue.name, i, modalities))
        histories += [history] if history else []
    if not histories:
        raise TrainingError(f"no turn of these dialogues has {use}; there is nothing to predict")
    was_training = module.training
    module.eval()
    try:
        outputs = [module.output(group) for group in batches.group_histories(histories, PREDICT_TURNS)]
    finally:
        module.train(was_training)
    logits, embedding = (torch.cat([x.float().cpu() for x in parts]) for parts in list(zip(*outputs))[:2])
    return Predictions(logits, embedding, predicted)


def predict_labelled(
    module: TrainingModule, features: FeatureProvider, dialogues: Sequence[Dialogue], use: Use
) -> Predictions:
    """`predict`, restricted to the labelled turns."""
    predictions = predict(module, features, dialogues, use)
    labelled = predictions.select((predictions.labels != UNLABELLED).tolist())
    if not labelled.turns:
        raise TrainingError(f"no labelled turn of these dialogues has {use}; there is nothing to score")
    return labelled
