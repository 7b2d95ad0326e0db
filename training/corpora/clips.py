"""Corpora of acted clips, each with a manifest.csv. A clip becomes a dialogue of one turn.

RAVDESS: two fixed sentences by actors 1-20, eight acted emotions (CC BY-NC-SA 4.0).
TESS: two women saying "Say the word X" in MELD's seven emotions (CC BY-NC-ND 4.0); test only.
EmoGator: vocal bursts of 130 speakers, without text (Apache-2.0); every tenth speaker is dev.
nEMO (Polish) and EmoSpeech (Hindi and English words, phones in homes and streets): training.
KoEMO (Korean): dev, for choosing. TurEV (Turkish), ASED (Amharic) and SECap (Chinese): test, for unseen corpora.
docs/data.md has their licences.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
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
    """Load TESS; every clip is test, as a corpus that the model never met."""
    return _load("tess", root, lambda _: ("test", 0))


def load_emogator(root: Path | None = None) -> Corpus:
    """Load EmoGator; its manifest maps thirty categories to MELD's labels."""
    return _load("emogator", root, lambda speaker: ("train" if int(speaker) % 10 else "dev", 0))


# Corpora in other languages than English: folder, split and use of a row. Their transcripts are not read.
OTHER_LANGUAGES: dict[str, tuple[str, str, Callable[[dict[str, str]], bool]]] = {
    "nemo": ("nemo", "train", lambda row: True),
    "emospeech": ("emospeech_in", "train", lambda row: True),
    "koemo": ("koemo", "dev", lambda row: True),
    "turev": ("turev", "test", lambda row: True),
    # The other sentences of ASED belong to one emotion each, so that its words would tell the emotion.
    "ased": ("ased", "test", lambda row: "common to all" in row["note"]),
    # Only these labels of SECap have enough clips.
    "secap": ("secap", "test", lambda row: row["emotion"] in ("anger", "joy", "sadness")),
}


def load_other_language(name: str, root: Path | None = None) -> Corpus:
    """Load one of `OTHER_LANGUAGES`. Clips of unknown speakers have the speaker None."""
    folder, split, is_used = OTHER_LANGUAGES[name]
    corpus = _load(name, root or data_folder() / folder, lambda _: (split, 0), is_used=is_used)

    def without_text(dialogue: Dialogue) -> Dialogue:
        (turn,) = dialogue.turns
        speaker = None if turn.speaker and turn.speaker.endswith("_unknown") else turn.speaker
        return replace(dialogue, turns=(replace(turn, text="", speaker=speaker),))

    return replace(corpus, dialogues=tuple(map(without_text, corpus.dialogues)))


def _load(
    name: str,
    root: Path | None,
    split_and_fold: Callable[[str], tuple[str, int]],
    labels: tuple[str, ...] = MELD_LABELS,
    renamed: dict[str, str] | None = None,
    is_used: Callable[[dict[str, str]], bool] = lambda row: True,
) -> Corpus:
    """Load the clips of a manifest that are used; `split_and_fold` maps a speaker to a split and a fold."""
    folder = root or data_folder() / name
    dialogues = []
    for row in filter(is_used, read_csv(folder / "manifest.csv")):
        label = label_index(row.get("emotion") or row["meld_emotion"], renamed, labels)
        turn = Utterance(row.get("transcript", ""), label, row["speaker"], folder / row["file"], row.get("gender"))
        split, fold = split_and_fold(row["speaker"])
        dialogues.append(Dialogue(f"{name}-{Path(row['file']).stem}", split, (turn,), fold))
    return Corpus(name, labels, tuple(dialogues))
