"""What a run learns from and is selected on: dialogues of one corpus and more, as they are.

The other stage, texts and clips of different corpora paired by label, is training/pairs.py.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from training import batches, corpora
from training.batches import Turn
from training.config import TrainConfig, Use
from training.corpora.records import UNLABELLED, Corpus, Dialogue, Utterance
from training.learner import Learner
from training.material import Lessons, Material
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
        lessons: what a teacher said of the training turns, by dialogue and place.
    """

    def __init__(
        self,
        config: TrainConfig,
        corpus: Corpus,
        also: Sequence[tuple[list[Dialogue], float]],
        learner: Learner,
        lessons: Lessons | None = None,
    ) -> None:
        self.config, self.corpus, self.lessons = config, corpus, lessons or {}
        self.train, self.dev = corpus.split("train"), corpus.split("dev")
        self.also = also
        self.material = Material(learner, config)
        every = [*self.train, *(d for dialogues, _ in also for d in dialogues)]
        self.material.prepare(every, config.copies).prepare(self.dev)
        self.typical = every
        self.learner = learner

    def epoch(self, rng: random.Random) -> list[Group]:
        """Groups of histories in random order: every dialogue once, joined to histories of random length."""
        drawn = rng.sample(self.train, max(1, int(len(self.train) * self.config.share)))
        for dialogues, share in self.also:
            drawn += rng.sample(dialogues, int(len(dialogues) * share))
        histories = list(batches.join(drawn, rng, self.config.max_turns))
        rng.shuffle(histories)
        made = [self._turns(history, rng) for history in histories]
        return list(batches.fill([turns for turns in made if turns], self.config.turns))

    def judge(self) -> dict[str, float]:
        """Selected on weighted F1 of the dev split, or on UAR where only audio is used (acted corpora)."""
        dev = score(self.learner, self.material, self.dev, self.config.use)
        found = scores(dev.logits, dev.labels, self.corpus.labels)
        best = found["uar"] if self.config.use == "audio" else found["weighted_f1"]
        return {"score": best, **{k: found[k] for k in ("weighted_f1", "macro_f1", "uar")}}

    def _turns(self, history: batches.Joined, rng: random.Random) -> list[Turn]:
        c, turns = self.config, []
        hidden = [(u, None if rng.random() < c.hide_speaker else s) for u, s, _ in history]
        for i, (u, speaker) in enumerate(hidden):
            text = self.material.text(hidden, i, training=True) if "text" in c.use else None
            audio = self.material.audio(u, rng) if "audio" in c.use else None
            if text is not None and audio is not None:
                lost = rng.random()
                audio = None if lost < c.drop_audio else audio
                text = None if c.drop_audio <= lost < c.drop_audio + c.drop_text else text
            if text is not None or audio is not None:
                turns.append(Turn(u.label, speaker, text, audio, lesson=self.lessons.get(history[i][2])))
        return turns


def load_corpus(config: TrainConfig, labels: Sequence[str] | None = None) -> Corpus:
    """The run's corpus, folded and without the clips of its skip list.

    Raises:
        CorpusError: before anything is trained, where a split is empty or a label unknown.
    """
    corpus = corpora.load(config.corpus, labels)
    if config.skip:
        corpus = corpus.without(read_skip_list(config.skip))
    if config.fold is not None:
        corpus = corpus.folded(config.fold)
    return corpus.require("train", "dev")


def load_also(config: TrainConfig, labels: Sequence[str]) -> list[tuple[list[Dialogue], float]]:
    """Training dialogues of the further corpora and the share of each that an epoch draws."""
    found = []
    for spec in config.also:
        name, _, share = spec.partition("@")
        try:
            found.append((corpora.load(name, labels).split("train"), float(share or 1)))
        except ValueError as error:
            raise SystemExit(f"--also {spec!r}: the share behind @ is not a number ({error})") from error
    return found


def read_skip_list(path: str) -> list[str]:
    """Paths of a skip list, one a line; what stands behind a tab is the reason."""
    try:
        with open(path, encoding="utf-8") as file:
            return [line.split("\t")[0].strip() for line in file if line.strip()]
    except OSError as error:
        raise SystemExit(f"skip list {path}: {error.strerror}; training.check writes one") from error


@dataclass(frozen=True)
class Predicted:
    """What a learner says of U turns.

    Shapes: logits (U, labels), embedding (U, 2d), labels (U,) with −1 for turns that have none. `utterances` and
    `dialogues` (names) say which turns they are.
    """

    logits: Tensor
    embedding: Tensor
    labels: Tensor
    utterances: list[Utterance]
    dialogues: list[str]

    def chosen(self, keep: Sequence[bool]) -> Predicted:
        """Those turns only."""
        rows = torch.tensor([i for i, k in enumerate(keep) if k], dtype=torch.long)
        return Predicted(
            self.logits[rows],
            self.embedding[rows],
            self.labels[rows],
            [self.utterances[i] for i in rows.tolist()],
            [self.dialogues[i] for i in rows.tolist()],
        )


@torch.inference_mode()
def predict(learner: Learner, material: Material, dialogues: Sequence[Dialogue], use: Use) -> Predicted:
    """Every turn that shows something, each dialogue by itself; causal unless the model's config says otherwise."""
    was = learner.training
    learner.eval()
    logits, embedding, utterances, names = [], [], [], []
    histories = []
    for dialogue in dialogues:
        history = []
        for u, turn in zip(dialogue.turns, material.shown(dialogue, use)):
            if turn.text is not None or turn.audio is not None:
                history.append(turn)
                utterances.append(u)
                names.append(dialogue.name)
        histories += [history] if history else []
    if not histories:
        raise SystemExit(f"none of these dialogues shows {use}; nothing can be predicted")
    for group in batches.fill(histories, JUDGED_TURNS):
        output = learner.output(group)
        logits.append(output.logits.float().cpu())
        embedding.append(output.embedding.float().cpu())
    learner.train(was)
    labels = torch.tensor([u.label for u in utterances])
    return Predicted(torch.cat(logits), torch.cat(embedding), labels, utterances, names)


def score(learner: Learner, material: Material, dialogues: Sequence[Dialogue], use: Use) -> Predicted:
    """`predict`, of the turns that have a label."""
    found = predict(learner, material, dialogues, use)
    known = found.chosen((found.labels != UNLABELLED).tolist())
    if not known.utterances:
        raise SystemExit(f"none of these dialogues has a labelled turn that shows {use}; nothing can be scored")
    return known
