"""Harder versions of the evaluation sets: `python -m training.evaluate CHECKPOINT --stress`."""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from training import corpora
from training.config import NEUTRAL
from training.corpora import uninformative
from training.corpora.records import UNLABELLED, Dialogue, EvaluationSet, Utterance
from training.pairs import MIN_SENTENCE_LENGTH

FOREIGN_TURNS = 100


def stress_sets(sets: dict[str, EvaluationSet]) -> dict[str, EvaluationSet]:
    """Harder versions of evaluation sets, as a robot meets them.

    Foreign turns before each dialogue test whether a window full of another conversation does harm. A mismatched
    modality tests whether relevance and gate reject it.
    """
    train = corpora.load("meld").split("train")
    sentences = [u.text for d in train for u in d.turns if u.label == NEUTRAL and len(u.text) > MIN_SENTENCE_LENGTH]
    harder = {}
    for name, one in sets.items():
        if one.use == "text":
            after_foreign = with_foreign_history(one.dialogues, train)
            harder[f"{name}, after 100 foreign turns"] = EvaluationSet("text", after_foreign)
            with_noise = with_random(one.dialogues, "audio", uninformative.unseen_noise())
            harder[f"{name}, noise beside"] = EvaluationSet("audio+text", with_noise)
        if one.use == "audio":
            with_sentence = with_random(one.dialogues, "text", sentences)
            harder[f"{name}, neutral sentence beside"] = EvaluationSet("audio+text", with_sentence)
    return harder


def with_foreign_history(
    dialogues: Sequence[Dialogue], others: Sequence[Dialogue], turns: int = FOREIGN_TURNS, seed: int = 0
) -> list[Dialogue]:
    """Put unlabelled turns of other dialogues, with other speakers, before each dialogue.

    >>> dialogue = Dialogue("d", "test", (Utterance("Hello.", 0, "anna"),))
    >>> other = Dialogue("x", "train", (Utterance("What?", 1, "anna"),))
    >>> (longer,) = with_foreign_history([dialogue], [other], turns=3)
    >>> [(t.text, t.label, t.speaker) for t in longer.turns][-2:]
    [('What?', -1, 'x/anna'), ('Hello.', 0, 'anna')]
    """
    rng = random.Random(seed)
    longer = []
    for dialogue in dialogues:
        before: list[Utterance] = []
        while len(before) < turns:
            other = rng.choice(others)
            before += [
                replace(u, label=UNLABELLED, speaker=u.speaker and f"{other.name}/{u.speaker}") for u in other.turns
            ]
        longer.append(replace(dialogue, turns=(*before[-turns:], *dialogue.turns)))
    return longer


def with_random(dialogues: Sequence[Dialogue], field: str, choices: Sequence[Any], seed: int = 0) -> list[Dialogue]:
    """Replace the `field` (audio or text) of every turn by a random choice."""
    rng = random.Random(seed)

    def changed(u: Utterance) -> Utterance:
        return replace(u, **{field: rng.choice(choices)})

    return [replace(d, turns=tuple(changed(u) for u in d.turns)) for d in dialogues]
