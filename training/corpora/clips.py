"""Corpora of acted or staged clips, each with a manifest.csv: one clip is one dialogue of one turn.

RAVDESS: two fixed sentences by actors 1-20, eight acted emotions (CC BY-NC-SA 4.0).
TESS: two women saying "Say the word X" in MELD's seven emotions (CC BY-NC-ND 4.0); training only.
EmoGator: vocal bursts of 130 speakers, without words (Apache-2.0); every tenth speaker is dev.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from training.config import MELD_LABELS
from training.corpora.records import Corpus, Dialogue, Utterance, data_folder, label_index, read_csv

RAVDESS_LABELS = ("anger", "calm", "disgust", "fear", "joy", "neutral", "sadness", "surprise")
# The default recipe's split: two men and two women test, the two actors before them select.
TEST = tuple(f"A{n}" for n in (17, 18, 19, 20))
DEV = ("A15", "A16")
ACTORS_PER_FOLD = 4


def load_ravdess(root: Path | None = None, labels: tuple[str, ...] = MELD_LABELS) -> Corpus:
    """With MELD's labels calm counts as neutral, with `RAVDESS_LABELS` it is an emotion of its own.

    Fold k of cross-validation holds actors 4k + 1 to 4k + 4, two men and two women.
    """
    renamed = {} if "calm" in labels else {"calm": "neutral"}

    def place(actor: str) -> tuple[str, int]:
        split = "test" if actor in TEST else "dev" if actor in DEV else "train"
        return split, (int(actor[1:]) - 1) // ACTORS_PER_FOLD

    return _load("ravdess", root, place, labels, renamed)


def load_tess(root: Path | None = None) -> Corpus:
    """Every clip."""
    return _load("tess", root, lambda _: ("train", 0))


def load_emogator(root: Path | None = None) -> Corpus:
    """Every clip; its thirty categories are mapped to MELD's labels in the manifest."""
    return _load("emogator", root, lambda speaker: ("train" if int(speaker) % 10 else "dev", 0))


def _load(
    name: str,
    root: Path | None,
    place: Callable[[str], tuple[str, int]],
    labels: tuple[str, ...] = MELD_LABELS,
    renamed: dict[str, str] | None = None,
) -> Corpus:
    """The clips of a manifest; `place` gives a speaker's split and fold."""
    folder = root or data_folder() / name
    found = []
    for row in read_csv(folder / "manifest.csv"):
        label = label_index(row.get("emotion") or row["meld_emotion"], renamed, labels)
        turn = Utterance(row.get("transcript", ""), label, row["speaker"], folder / row["file"], row.get("gender"))
        split, fold = place(row["speaker"])
        found.append(Dialogue(f"{name}-{Path(row['file']).stem}", split, (turn,), fold))
    return Corpus(name, labels, tuple(found))
