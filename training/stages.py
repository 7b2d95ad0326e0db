"""What a run learns from and is selected on: dialogues of one corpus and more, as they are.

The other stage, texts and clips of different corpora paired by label, is training/pairs.py.
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
from training.batches import States, Tokens, Turn
from training.config import TrainConfig, Use
from training.corpora.records import UNLABELLED, Corpus, Dialogue, Utterance
from training.errors import TrainingError
from training.learner import Learner
from training.material import Material
from training.metrics import scores

Group = list[list[Turn]]  # histories that make one batch
JUDGED_TURNS = 120


class CorpusStage:
    """Joined dialogues of a corpus, whatever of audio and text they hold.

    Args:
        config: the run.
        corpus: its dialogues in their splits.
        also: further dialogues that only train, each with the share drawn in an epoch.
        learner: whose encoders read them.
    """

    def __init__(
        self, config: TrainConfig, corpus: Corpus, also: Sequence[tuple[list[Dialogue], float]], learner: Learner
    ) -> None:
        self.config, self.corpus, self.also, self.learner = config, corpus, also, learner
        self.train, self.dev = corpus.split("train"), corpus.split("dev")
        self.material = Material(learner, config)
        self.typical = [*self.train, *(d for dialogues, _ in also for d in dialogues)]  # for means and deviations
        self.prepare()

    def prepare(self) -> None:
        """Fill the caches."""
        self.material.prepare(self.typical, self.config.copies).prepare(self.dev)

    def epoch(self, rng: random.Random) -> list[Group]:
        """Groups of histories in random order: every dialogue once, joined to histories of random length."""
        histories = self.histories(rng)
        rng.shuffle(histories)
        turns = [self._turns(history, rng) for history in histories]
        return list(batches.fill([t for t in turns if t], self.config.turns))

    def histories(self, rng: random.Random) -> list[batches.Joined]:
        """This epoch's dialogues, joined."""
        drawn = batches.drawn(self.train, self.config.share, self.also, rng)
        return list(batches.join(drawn, rng, self.config.max_turns))

    def judge(self) -> dict[str, float]:
        """Scores on the dev split; the one called `score` selects."""
        dev = self.scores(self.dev, self.config.use)
        return {"score": selecting(dev, self.config.use), **dev}

    def scores(self, dialogues: Sequence[Dialogue], use: Use) -> dict[str, float]:
        """Weighted and macro F1 and UAR of dialogues."""
        judged = score(self.learner, self.material, dialogues, use)
        found = scores(judged.logits, judged.labels, self.corpus.labels)
        return {k: found[k] for k in ("weighted_f1", "macro_f1", "uar")}

    def _turns(self, history: batches.Joined, rng: random.Random) -> list[Turn]:
        c, turns = self.config, []
        for u, speaker in batches.hidden(history, c.hide_speaker, rng):
            text = self.material.text(u, training=True) if "text" in c.use else None
            audio = self.material.audio(u, rng) if "audio" in c.use else None
            honest = (True, True)
            if text is not None and audio is not None and rng.random() < c.mislead:
                text, audio, honest = self._misled(text, audio, rng)
            elif text is not None and audio is not None:
                lost = rng.random()
                audio = None if lost < c.drop_audio else audio
                text = None if c.drop_audio <= lost < c.drop_audio + c.drop_text else text
            if text is not None or audio is not None:
                turns.append(Turn(u.label, speaker, text, audio, honest))
        return turns

    def _misled(
        self, text: States | Tokens, audio: States | Path, rng: random.Random
    ) -> tuple[States | Tokens, States | Path, tuple[bool, bool]]:
        """A turn of which one modality is another turn's; neither head of its own learns from that one."""
        other = rng.choice(rng.choice(self.train).turns)
        if rng.random() < 0.5:
            found = self.material.audio(other, rng)
            return (text, found, (False, True)) if found is not None else (text, audio, (True, True))
        said = self.material.text(other, training=True)
        return (said, audio, (True, False)) if said is not None else (text, audio, (True, True))


def selecting(found: Mapping[str, float], use: Use) -> float:
    """The score that dev selects on: weighted F1, or UAR where only audio is used (acted corpora)."""
    return found["uar" if use == "audio" else "weighted_f1"]


def load_corpus(
    config: TrainConfig, labels: Sequence[str] | None = None, needed: tuple[str, ...] = ("train", "dev")
) -> Corpus:
    """The run's corpus, folded and without the clips of its skip list; the splits `needed` are not empty.

    Raises:
        CorpusError: before anything is trained, where a split is empty or a label unknown.
    """
    corpus = corpora.load(config.corpus, labels)
    if config.skip:
        corpus = corpus.without(read_skip_list(config.skip))
    if config.fold is not None:
        corpus = corpus.folded(config.fold)
    return corpus.require(*needed)


def load_also(config: TrainConfig, labels: Sequence[str]) -> list[tuple[list[Dialogue], float]]:
    """Training dialogues of the further corpora and the share of each that an epoch draws."""
    found = []
    for spec in config.also:
        name, _, share = spec.partition("@")
        try:
            part = float(share or 1)
        except ValueError as error:
            raise TrainingError(f"--also {spec!r}: the share behind @ is not a number ({error})") from error
        if not 0 <= part <= 1:
            raise TrainingError(f"--also {spec!r}: the share behind @ is {part:g}; it goes from 0 to 1")
        found.append((corpora.load(name, labels).split("train"), part))
    return found


def read_skip_list(path: str) -> list[str]:
    """Paths of a skip list, one a line; what stands behind a tab is the reason."""
    try:
        with open(path, encoding="utf-8") as file:
            return [line.split("\t")[0].strip() for line in file if line.strip()]
    except OSError as error:
        raise TrainingError(f"skip list {path}: {error.strerror}; training.check writes one") from error


class Shown(NamedTuple):
    """A turn as it was shown: its dialogue's name, its place there, and the modalities."""

    utterance: Utterance
    dialogue: str
    place: int
    kind: Use


@dataclass(frozen=True)
class Predicted:
    """What a learner says of U turns: logits (U, labels), embedding (U, 2d)."""

    logits: Tensor
    embedding: Tensor
    turns: list[Shown]

    @property
    def labels(self) -> Tensor:
        """(U,) with −1 for turns that have none."""
        return torch.tensor([turn.utterance.label for turn in self.turns])

    @property
    def shown(self) -> list[Use]:
        """Which modalities each had."""
        return [turn.kind for turn in self.turns]

    def chosen(self, keep: Sequence[bool]) -> Predicted:
        """Those turns only."""
        rows = [i for i, k in enumerate(keep) if k]
        return Predicted(self.logits[rows], self.embedding[rows], [self.turns[i] for i in rows])


@torch.inference_mode()
def predict(learner: Learner, material: Material, dialogues: Sequence[Dialogue], use: Use) -> Predicted:
    """Every turn that shows something, each dialogue by itself; causal unless the model's config says otherwise."""
    was = learner.training
    learner.eval()
    shown: list[Shown] = []
    histories = []
    for dialogue in dialogues:
        history = []
        for place, (u, turn) in enumerate(zip(dialogue.turns, material.shown(dialogue, use))):
            if turn.text is not None or turn.audio is not None:
                history.append(turn)
                kind: Use = "text" if turn.audio is None else "audio" if turn.text is None else "audio+text"
                shown.append(Shown(u, dialogue.name, place, kind))
        histories += [history] if history else []
    if not histories:
        raise TrainingError(f"none of these dialogues shows {use}; nothing can be predicted")
    outputs = [learner.output(group) for group in batches.fill(histories, JUDGED_TURNS)]
    logits, embedding = (torch.cat([x.float().cpu() for x in parts]) for parts in list(zip(*outputs))[:2])
    learner.train(was)
    return Predicted(logits, embedding, shown)


def score(learner: Learner, material: Material, dialogues: Sequence[Dialogue], use: Use) -> Predicted:
    """`predict`, of the turns that have a label."""
    found = predict(learner, material, dialogues, use)
    known = found.chosen((found.labels != UNLABELLED).tolist())
    if not known.turns:
        raise TrainingError(f"none of these dialogues has a labelled turn that shows {use}; nothing can be scored")
    return known
