"""EmoGator: vocal bursts of 130 speakers, without words (Apache-2.0); every tenth speaker is dev."""

from __future__ import annotations

from pathlib import Path

from training.config import MELD_LABELS
from training.corpora.records import Corpus, Dialogue, Utterance, data_folder, label_index, read_csv


def load(root: Path | None = None) -> Corpus:
    """Every clip as a dialogue of one turn; its thirty categories are mapped to MELD's labels in the manifest."""
    folder = root or data_folder() / "emogator"
    found = []
    for row in read_csv(folder / "manifest.csv"):
        speaker = int(row["speaker"])
        turn = Utterance("", label_index(row["meld_emotion"]), row["speaker"], folder / row["file"])
        split = "dev" if speaker % 10 == 0 else "train"
        found.append(Dialogue(f"emogator-{row['file'].removesuffix('.opus')}", split, (turn,)))
    return Corpus("emogator", MELD_LABELS, tuple(found))
