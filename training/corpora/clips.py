"""Corpora of acted clips, each with a manifest.csv. A clip becomes a dialogue of one turn.

RAVDESS: two fixed sentences by actors 1-20, eight acted emotions (CC BY-NC-SA 4.0).
TESS: two women saying "Say the word X" in MELD's seven emotions (CC BY-NC-ND 4.0); training only.
EmoGator: vocal bursts of 130 speakers, without text (Apache-2.0); every tenth speaker is dev.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from training.config import MELD_LABELS
from training.corpora.records import Corpus, Dialogue, Utterance, data_folder, label_index, read_csv

RAVDESS_LABELS = ("anger", "calm", "disgust", "fear", "joy", "neutral", "sadness", "surprise")
# Split of the default recipe: two men and two women are test, the two actors before them are dev.
TEST_ACTORS = tuple(f"A{n}" for n in (17, 18, 19, 20))
DEV_ACTORS = ("A15", "A16")
ACTORS_PER_FOLD = 4


def load_ravdess(root: Path | None = None, labels: tuple[str, ...] = MELD_LABELS) -> Corpus:
    """Load RAVDESS. With MELD's labels, calm counts as neutral; `RAVDESS_LABELS` keeps it apart.

    Fold k of cross-validation contains actors 4k + 1 to 4k + 4, two men and two women.
    """
    renamed = {} if "calm" in labels else {"calm": "neutral"}

    def split_and_fold(actor: str) -> tuple[str, int]:
        split = "test" if actor in TEST_ACTORS else "dev" if actor in DEV_ACTORS else "train"
        return split, (int(actor[1:]) - 1) // ACTORS_PER_FOLD

    return _load("ravdess", root, split_and_fold, labels, renamed)


def load_tess(root: Path | None = None) -> Corpus:
    """Load TESS; every clip is for training."""
    return _load("tess", root, lambda _: ("train", 0))


def load_emogator(root: Path | None = None) -> Corpus:
    """Load EmoGator; its manifest maps thirty categories to MELD's labels."""
    return _load("emogator", root, lambda speaker: ("train" if int(speaker) % 10 else "dev", 0))


def _load(
    name: str,
    root: Path | None,
    split_and_fold: Callable[[str], tuple[str, int]],
    labels: tuple[str, ...] = MELD_LABELS,
    renamed: dict[str, str] | None = None,
) -> Corpus:
    """Load the clips of a manifest; `split_and_fold` maps a speaker to a split and a fold."""
    folder = root or data_folder() / name
    dialogues = []
    for row in read_csv(folder / "manifest.csv"):
        label = label_index(row.get("emotion") or row["meld_emotion"], renamed, labels)
        turn = Utterance(row.get("transcript", ""), label, row["speaker"], folder / row["file"], row.get("gender"))
        split, fold = split_and_fold(row["speaker"])
        dialogues.append(Dialogue(f"{name}-{Path(row['file']).stem}", split, (turn,), fold))
    return Corpus(name, labels, tuple(dialogues))
