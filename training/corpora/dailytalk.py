"""DailyTalk: two-speaker everyday dialogues, text (CC BY-SA 4.0)."""

from __future__ import annotations

import json
from pathlib import Path

from training.corpora.records import Dialogue, Utterance, data_folder, label_index

NAMES = {"none": "neutral", "happiness": "joy", "no emotion": "neutral"}


def load(split: str | None = None, root: Path | None = None) -> list[Dialogue]:
    """Dialogues of one split, or all of them with None."""
    path = (root or data_folder() / "dailytalk") / "dialogues.jsonl"
    dialogues = []
    with path.open(encoding="utf-8") as file:
        for line in file:
            row = json.loads(line)
            if split not in (None, row["split"]):
                continue
            turns = tuple(
                Utterance(u["text"], label_index(u["emotion"], NAMES), str(u["speaker"])) for u in row["utterances"]
            )
            dialogues.append(Dialogue(f"dailytalk-{row['dialogue_id']}", row["split"], turns))
    return dialogues
