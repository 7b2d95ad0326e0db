"""TESS: two women saying "Say the word X" in MELD's seven emotions (CC BY-NC-ND 4.0); training only."""

from __future__ import annotations

from pathlib import Path

from training.config import MELD_LABELS
from training.corpora.records import Corpus, Dialogue, Utterance, data_folder, label_index, read_csv


def load(root: Path | None = None) -> Corpus:
    """Every clip as a dialogue of one turn."""
    folder = root or data_folder() / "tess"
    found = []
    for row in read_csv(folder / "manifest.csv"):
        audio = folder / row["file"]
        turn = Utterance(row["transcript"], label_index(row["emotion"]), row["speaker"], audio, row["gender"])
        found.append(Dialogue(f"tess-{row['id']}", "train", (turn,)))
    return Corpus("tess", MELD_LABELS, tuple(found))
