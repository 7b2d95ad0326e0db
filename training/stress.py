"""Test dialogues made harder: what a robot meets and a corpus does not hold.

Foreign talk before each dialogue asks whether a full window of somebody else's conversation does harm; a misleading
partner, whether relevance and gate reject what says nothing. Everything is drawn by seed, from training dialogues.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from training.corpora.records import UNLABELLED, Dialogue, Utterance

FOREIGN_TURNS = 100


def after_foreign_talk(
    dialogues: Sequence[Dialogue], others: Sequence[Dialogue], turns: int = FOREIGN_TURNS, seed: int = 0
) -> list[Dialogue]:
    """Each dialogue behind `turns` turns of other dialogues by other speakers, which are context and not scored.

    >>> talk = Dialogue("talk", "test", (Utterance("Hello.", 0, "anna"),))
    >>> (found,) = after_foreign_talk([talk], [Dialogue("x", "train", (Utterance("What?", 1, "anna"),))], turns=3)
    >>> [(t.text, t.label, t.speaker) for t in found.turns][-2:]
    [('What?', -1, 'x/anna'), ('Hello.', 0, 'anna')]
    """
    rng = random.Random(seed)
    found = []
    for dialogue in dialogues:
        before: list[Utterance] = []
        while len(before) < turns:
            other = rng.choice(others)
            before += [
                replace(u, label=UNLABELLED, speaker=u.speaker and f"{other.name}/{u.speaker}") for u in other.turns
            ]
        found.append(replace(dialogue, turns=(*before[-turns:], *dialogue.turns)))
    return found


def beside_noise(dialogues: Sequence[Dialogue], clips: Sequence[Path], seed: int = 0) -> list[Dialogue]:
    """Words with a sound that says nothing beside them."""
    rng = random.Random(seed)
    return [replace(d, turns=tuple(replace(u, audio=rng.choice(clips)) for u in d.turns)) for d in dialogues]


def beside_sentence(dialogues: Sequence[Dialogue], sentences: Sequence[str], seed: int = 0) -> list[Dialogue]:
    """Clips with an unrelated neutral sentence beside them."""
    rng = random.Random(seed)
    return [replace(d, turns=tuple(replace(u, text=rng.choice(sentences)) for u in d.turns)) for d in dialogues]
