"""DailyTalk: two-speaker everyday dialogues, text (CC BY-SA 4.0)."""

from __future__ import annotations

import json
from pathlib import Path

from training.config import MELD_LABELS
from training.corpora.records import Corpus, Dialogue, Utterance, data_folder, label_index

NAMES = {"none": "neutral", "happiness": "joy", "no emotion": "neutral"}
SPLITS = {"val": "dev"}


def load(root: Path | None = None) -> Corpus:
    """Every dialogue in its official split."""
    path = (root or data_folder() / "dailytalk") / "dialogues.jsonl"
    dialogues = []
    with path.open(encoding="utf-8") as file:
        for line in file:
            row = json.loads(line)
            turns = tuple(
                Utterance(u["text"], label_index(u["emotion"], NAMES), str(u["speaker"])) for u in row["utterances"]
            )
            split = SPLITS.get(row["split"], row["split"])
            dialogues.append(Dialogue(f"dailytalk-{row['dialogue_id']}", split, turns))
    return Corpus("dailytalk", MELD_LABELS, tuple(dialogues))
