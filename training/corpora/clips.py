"""Corpora of single acted clips: RAVDESS, TESS and EmoGator. Each clip is a dialogue of one turn."""

from __future__ import annotations

from pathlib import Path

from training.corpora.records import Dialogue, Utterance, data_folder, label_index, read_csv

RAVDESS_NAMES = {"calm": "neutral"}
# The first test fold: two men and two women; the two actors before them select.
RAVDESS_TEST = tuple(f"A{n}" for n in (17, 18, 19, 20))
RAVDESS_DEV = ("A15", "A16")


def load_ravdess(root: Path | None = None) -> list[Dialogue]:
    """Two fixed sentences by twenty actors, eight emotions of which calm counts as neutral (CC BY-NC-SA 4.0)."""
    folder = root or data_folder() / "ravdess"
    found = []
    for row in read_csv(folder / "manifest.csv"):
        split = "test" if row["speaker"] in RAVDESS_TEST else "dev" if row["speaker"] in RAVDESS_DEV else "train"
        label = label_index(row["emotion"], RAVDESS_NAMES)
        turn = Utterance(row["transcript"], label, row["speaker"], folder / row["file"], row["gender"])
        found.append(Dialogue(f"ravdess-{row['id']}", split, (turn,)))
    return found


def load_tess(root: Path | None = None) -> list[Dialogue]:
    """Two women saying "Say the word X" in MELD's seven emotions (CC BY-NC-ND 4.0); training only."""
    folder = root or data_folder() / "tess"
    return [
        Dialogue(
            f"tess-{row['id']}",
            "train",
            (
                Utterance(
                    row["transcript"], label_index(row["emotion"]), row["speaker"], folder / row["file"], row["gender"]
                ),
            ),
        )
        for row in read_csv(folder / "manifest.csv")
    ]


def load_emogator(root: Path | None = None) -> list[Dialogue]:
    """Vocal bursts of 130 speakers, without words (Apache-2.0); every tenth speaker is dev."""
    folder = root or data_folder() / "emogator"
    found = []
    for row in read_csv(folder / "manifest.csv"):
        split = "dev" if int(row["speaker"]) % 10 == 0 else "train"
        turn = Utterance("", label_index(row["meld_emotion"]), row["speaker"], folder / row["file"])
        found.append(Dialogue(f"emogator-{row['file'].removesuffix('.opus')}", split, (turn,)))
    return found
