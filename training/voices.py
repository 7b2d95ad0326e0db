"""How well a model hears voices of corpora that it never met, beside a linear model: what `export.voices` measures.

The linear model is logistic regression on the mean and deviation over frames of the frozen encoder's states; every
corpus × label weighs the same, except for `CORPUS_WEIGHTS`. Each clip is judged three times: as a speaker's first turn,
after 16 turns of the same speaker with the labels of everyday conversation, and after 16 turns of the clip's own label.
With a history the linear model sees the clip minus the mean of that history. UAR counts only the labels that the tested
corpus has. Only clips that have every kind of history are judged, so that the three can be compared.
"""

from __future__ import annotations

import random
from collections import Counter, defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal, NamedTuple, get_args

import torch
from torch import Tensor, nn

from training import corpora, encoders
from training.caches import AudioCache
from training.config import MELD_LABELS, ModelConfig
from training.corpora.records import UNLABELLED, Dialogue, Utterance
from training.linear import fit
from training.metrics import scores

History = Literal["first turn", "life-like", "one mood"]
HISTORIES: tuple[History, ...] = get_args(History)
HISTORY_TURNS = 16
# Shares of labels in MELD's training dialogues: what a life-like history is drawn by.
LABEL_SHARES = {
    "neutral": 0.47, "joy": 0.17, "surprise": 0.12, "anger": 0.11, "sadness": 0.07, "fear": 0.03, "disgust": 0.03
}  # fmt: skip
MIN_CLIPS_PER_SPEAKER = 80
WEIGHT_DECAY = 0.1  # chosen on the sets of `selecting_sets`
CORPUS_WEIGHTS = {"emospeech": 0.25}  # noisy single words; at full weight they make every other corpus worse
UNSEEN = ("tess", "turev", "ased", "secap")
MEAN_OF = ("tess", "turev", "ased")  # SECap has three labels and one of five clips without a history, and stands beside


class Tested(NamedTuple):
    """Clips to test on, corpora that the linear model trains on, and whether other models may train on these clips."""

    corpus: str
    clips: list[Dialogue]
    trained_on: tuple[str, ...]
    may_be_trained_on: bool = False


class Model(NamedTuple):
    """A model to compare: how it predicts the labelled turns of dialogues, and the corpora it was trained on.

    `predict` returns logits or log-probabilities (N, labels), and labels (N,).
    """

    predict: Callable[[list[Dialogue]], tuple[Tensor, Tensor]]
    corpora: tuple[str, ...]

    def has_met(self, tested: Tested) -> bool:
        """Whether it was trained on these clips, or may have been because its corpora are not known."""
        names = {name.removesuffix("-8") for name in self.corpora}
        return tested.may_be_trained_on and (tested.corpus in names or "unknown" in names or not names)


@dataclass(frozen=True)
class Linear:
    """A linear model: logits = (x - mean) / deviation @ weights + biases."""

    mean: Tensor
    deviation: Tensor
    weights: Tensor
    biases: Tensor

    def __call__(self, x: Tensor) -> Tensor:
        """(N, features) -> (N, labels)."""
        return (x - self.mean) / self.deviation @ self.weights + self.biases


def sample_clips(dialogues: Sequence[Dialogue], limit: int, seed: int = 0) -> list[Dialogue]:
    """About `limit` clips that have every kind of history: of whole speakers, and of few speakers a part of each."""
    rng, sample = random.Random(seed), list[Dialogue]()
    by_speaker = _by_speaker(_with_every_history(dialogues))
    per_speaker = max(MIN_CLIPS_PER_SPEAKER, -(-limit // max(1, len(by_speaker))))
    for name in sorted(by_speaker, key=lambda name: (rng.random(), name)):
        if len(sample) < limit:
            clips = by_speaker[name]
            sample += rng.sample(clips, min(len(clips), per_speaker))
    return _with_every_history(sample)


def _with_every_history(dialogues: Sequence[Dialogue]) -> list[Dialogue]:
    """Clips of known speakers that have another clip of the same label, and two clips of another label."""
    result = []
    for name, clips in _by_speaker(dialogues).items():
        counts = Counter(d.turns[0].label for d in clips)
        usable = [d for d in clips if counts[d.turns[0].label] > 1]
        result += usable if name is not None and len({d.turns[0].label for d in usable}) > 1 else []
    return result


def _by_speaker(dialogues: Sequence[Dialogue]) -> dict[str | None, list[Dialogue]]:
    groups: dict[str | None, list[Dialogue]] = defaultdict(list)
    for dialogue in dialogues:
        groups[dialogue.turns[0].speaker].append(dialogue)
    return dict(groups)


def with_history(clips: Sequence[Dialogue], kind: History, seed: int = 0) -> list[Dialogue]:
    """Put unlabelled turns of the same speaker before each clip. Clips without any are left out.

    >>> clips = [Dialogue(str(n), "dev", (Utterance("", n % 2, "anna"),)) for n in range(4)]
    >>> [len(d.turns) for d in with_history(clips, "one mood")], len(with_history(clips, "first turn")[0].turns)
    ([17, 17, 17, 17], 1)
    """
    if kind == "first turn":
        return list(clips)
    rng, groups, result = random.Random(seed), _by_speaker(clips), []
    for clip in clips:
        turn = clip.turns[0]
        others: dict[int, list[Utterance]] = defaultdict(list)
        for other in groups[turn.speaker] if turn.speaker is not None else ():
            if other is not clip:
                others[other.turns[0].label].append(other.turns[0])
        labels = [label for label in others if kind == "life-like" or label == turn.label]
        if labels:
            drawn = rng.choices(labels, [LABEL_SHARES[MELD_LABELS[label]] for label in labels], k=HISTORY_TURNS)
            past = [replace(rng.choice(others[label]), label=UNLABELLED) for label in drawn]
            result.append(replace(clip, turns=(*past, turn)))
    return result


class PooledStates:
    """Pooled states of clips as (features,) tensors, from a cache on disk."""

    def __init__(self, encoder: nn.Module, config: ModelConfig) -> None:
        self.cache = AudioCache(encoder, (config.audio_states, config.audio_dim), pooled=True)

    def clip(self, turn: Utterance) -> Tensor:
        """Mean and deviation over frames of all layers of a turn's audio: (features,)."""
        assert turn.audio is not None
        return torch.from_numpy(self.cache.states(turn.audio).astype("float32")).flatten()

    def matrix(self, dialogues: Sequence[Dialogue]) -> Tensor:
        """(N, features) of the last turn of each dialogue, minus the mean of its earlier turns."""
        self.cache.fill(list({t.audio: None for d in dialogues for t in d.turns if t.audio}))
        rows = []
        for dialogue in dialogues:
            *past, turn = map(self.clip, dialogue.turns)
            rows.append(turn - torch.stack(past).mean(0) if past else turn)
        return torch.stack(rows)


def fit_linear(states: PooledStates, names: Sequence[str], kind: History) -> Linear:
    """Train on the training clips of these corpora; every corpus × label weighs the same, except `CORPUS_WEIGHTS`."""
    rows, labels, weights = [], [], []
    for name in names:
        clips = with_history(corpora.load(name, MELD_LABELS).require("train").split("train"), kind, seed=1)
        truth = torch.tensor([d.turns[-1].label for d in clips])
        counts = torch.bincount(truth, minlength=len(MELD_LABELS))
        rows.append(states.matrix(clips))
        labels.append(truth)
        weights.append(CORPUS_WEIGHTS.get(name, 1.0) / counts[truth])
    x, y, w = torch.cat(rows), torch.cat(labels), torch.cat(weights)
    w = w / w.mean()
    mean = (w[:, None] * x).mean(0)
    deviation = (w[:, None] * (x - mean).square()).mean(0).sqrt() + 1e-5
    return Linear(mean, deviation, *fit((x - mean) / deviation, y, len(MELD_LABELS), WEIGHT_DECAY, w))


def unseen_uar(logits: Tensor, labels: Tensor) -> float:
    """UAR over the labels that occur: the most probable of those counts as the answer."""
    present = torch.zeros(logits.shape[1], dtype=torch.bool)
    present[labels.unique()] = True
    return float(scores(logits.masked_fill(~present, -1e9), labels, MELD_LABELS)["uar"])


def selecting_sets(names: Sequence[str]) -> dict[str, Tested]:
    """Sets to choose on: each training corpus with the others as training data, RAVDESS 15-16, and KoEMO."""
    sets = {}
    for name in names:
        others = tuple(other for other in names if other != name)
        sets[f"{name}, left out"] = Tested(name, corpora.load(name).split("train"), others, True)
    if "ravdess" in names:
        sets["ravdess 15–16, other actors"] = Tested("ravdess", corpora.load("ravdess").split("dev"), tuple(names))
    sets["koemo"] = Tested("koemo", corpora.load("koemo").split("dev"), tuple(names))
    return sets


def unseen_sets(names: Sequence[str]) -> dict[str, Tested]:
    """Corpora that nothing was chosen on. Only for the ledger."""
    return {name: Tested(name, corpora.load(name).final_test(), tuple(names), True) for name in UNSEEN}


def score_voices(sets: dict[str, Tested], encoder: nn.Module, model: Model | None, limit: int) -> dict[str, Any]:
    """UAR of the linear model, and of a model if there is one, for each set and kind of history.

    Args:
        sets: result of `selecting_sets`, or some of `unseen_sets`.
        encoder: the frozen audio encoder.
        model: to compare, or None. Sets that it was trained on get no score of it.
        limit: number of clips of each set, about.
    """
    states, result = PooledStates(encoder, encoders.model_config()), dict[str, Any]()
    fitted: dict[tuple[tuple[str, ...], bool], Linear] = {}
    for name, tested in sets.items():
        clips = sample_clips(tested.clips, limit)
        labels = torch.tensor([d.turns[-1].label for d in clips])
        row: dict[str, Any] = {"clips": len(clips), "chance": 1 / len(labels.unique()),
                               "trained_on": [*tested.trained_on]}  # fmt: skip
        for kind in HISTORIES:
            dialogues, has_history = with_history(clips, kind), kind != "first turn"
            key = (tested.trained_on, has_history)
            if key not in fitted:
                fitted[key] = fit_linear(states, tested.trained_on, "life-like" if has_history else "first turn")
            row[f"linear, {kind}"] = unseen_uar(fitted[key](states.matrix(dialogues)), labels)
            if model is not None and not model.has_met(tested):
                row[f"model, {kind}"] = unseen_uar(*model.predict(dialogues))
        result[name] = row
    return result
