"""RAVDESS: two fixed sentences by actors 1-20, eight acted emotions (CC BY-NC-SA 4.0). One clip is one dialogue."""

from __future__ import annotations

from pathlib import Path

from training.config import MELD_LABELS
from training.corpora.records import Corpus, Dialogue, Utterance, data_folder, label_index, read_csv

LABELS = ("anger", "calm", "disgust", "fear", "joy", "neutral", "sadness", "surprise")
# The default recipe's split: two men and two women test, the two actors before them select.
TEST = tuple(f"A{n}" for n in (17, 18, 19, 20))
DEV = ("A15", "A16")
ACTORS_PER_FOLD = 4


def load(root: Path | None = None, labels: tuple[str, ...] = MELD_LABELS) -> Corpus:
    """Every clip; with MELD's labels calm counts as neutral, with `LABELS` it is an emotion of its own.

    Fold k of cross-validation holds actors 4k + 1 to 4k + 4, two men and two women.
    """
    folder = root or data_folder() / "ravdess"
    renamed = {} if "calm" in labels else {"calm": "neutral"}
    found = []
    for row in read_csv(folder / "manifest.csv"):
        actor = row["speaker"]
        split = "test" if actor in TEST else "dev" if actor in DEV else "train"
        label = label_index(row["emotion"], renamed, labels)
        turn = Utterance(row["transcript"], label, actor, folder / row["file"], row["gender"])
        fold = (int(actor[1:]) - 1) // ACTORS_PER_FOLD
        found.append(Dialogue(f"ravdess-{row['id']}", split, (turn,), fold))
    return Corpus("ravdess", labels, tuple(found))
