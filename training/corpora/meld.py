"""MELD's transcripts and labels in their official split; text only here, since its audio is not distributed."""

from __future__ import annotations

from itertools import groupby
from pathlib import Path

from training.corpora.records import Dialogue, Utterance, data_folder, label_index, read_csv


def load(split: str, root: Path | None = None) -> list[Dialogue]:
    """`{split}_sent_emo.csv` -> dialogues in their order; split is train, dev or test."""
    rows = read_csv((root or data_folder() / "meld") / f"{split}_sent_emo.csv")
    dialogues = []
    for number, group in groupby(rows, key=lambda row: row["Dialogue_ID"]):
        turns = sorted(group, key=lambda row: int(row["Utterance_ID"]))
        records = tuple(Utterance(r["Utterance"], label_index(r["Emotion"]), r["Speaker"]) for r in turns)
        dialogues.append(Dialogue(f"meld-{split}-{number}", split, records))
    return dialogues
