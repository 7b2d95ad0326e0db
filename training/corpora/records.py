"""The records every corpus yields, and where the data lie."""

from __future__ import annotations

import csv
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from training.config import MELD_LABELS
from training.errors import CorpusError
from training.files import data_folder as data_folder  # readers find all they need here

UNLABELLED = -1  # a turn that others may look back on, but that teaches and scores nothing
SPLITS = ("train", "dev", "test")


@dataclass(frozen=True)
class Vectors:
    """What somebody else's encoders made of an utterance: audio (F, dim) and text (T, dim), either may be None."""

    audio: NDArray[np.float32] | None
    text: NDArray[np.float32] | None


@dataclass(frozen=True)
class Utterance:
    """One turn. `label` indexes its corpus' labels; `speaker` is a name that only has to differ between speakers."""

    text: str
    label: int
    speaker: str | None = None
    audio: Path | None = None
    gender: str | None = None
    vectors: Vectors | None = None


@dataclass(frozen=True)
class Dialogue:
    """Consecutive turns. `split` is train, dev or test; `fold` is what cross-validation leaves out together."""

    name: str
    split: str
    turns: tuple[Utterance, ...]
    fold: int = 0


@dataclass(frozen=True)
class Corpus:
    """Dialogues and the names of their labels.

    >>> turns = (Utterance("Hello.", 0),)
    >>> corpus = Corpus("mine", ("calm",), tuple(Dialogue(str(n), "train", turns, fold=n) for n in range(5)))
    >>> [d.split for d in corpus.folded(3).dialogues]
    ['train', 'train', 'train', 'test', 'dev']
    """

    name: str
    labels: tuple[str, ...]
    dialogues: tuple[Dialogue, ...]
    missing: tuple[Path, ...] = ()  # clips that its lists name and its folders do not hold

    def split(self, name: str) -> list[Dialogue]:
        """Dialogues of train, dev or test."""
        return [d for d in self.dialogues if d.split == name]

    @property
    def folds(self) -> int:
        """How many folds its dialogues are in; 1 means that there is a split of its own and no folds."""
        return 1 + max((d.fold for d in self.dialogues), default=0)

    def modalities(self, *splits: str) -> set[str]:
        """Which of audio and text some turn of these splits, or of any, has."""
        turns = [t for d in self.dialogues if d.split in (splits or SPLITS) for t in d.turns]
        shown = {"text": any(t.text or t.vectors for t in turns), "audio": any(t.audio or t.vectors for t in turns)}
        return {name for name, there in shown.items() if there}

    @property
    def scored_split(self) -> str:
        """test; or dev where there are no labelled test turns, which tables and summaries then say."""
        return "test" if any(t.label != UNLABELLED for d in self.split("test") for t in d.turns) else "dev"

    def folded(self, fold: int) -> Corpus:
        """Fold k tests, fold k + 1 selects, the others train (training/MODEL.md, "Protocol")."""
        if not 0 <= fold < self.folds or self.folds < 3:
            raise CorpusError(f"{self.name} has {self.folds} folds; fold {fold} cannot test (three are the least)")
        of = {fold: "test", (fold + 1) % self.folds: "dev"}
        return replace(self, dialogues=tuple(replace(d, split=of.get(d.fold, "train")) for d in self.dialogues))

    def without(self, skipped: Iterable[str]) -> Corpus:
        """Leave out the audio of clips that `training.check` found unusable; their words stay."""
        names = {Path(name).resolve() for name in skipped}
        there = {t.audio.resolve() for d in self.dialogues for t in d.turns if t.audio}
        if names and not names & (there | {path.resolve() for path in self.missing}):
            raise CorpusError(f"none of the {len(names)} clips to skip is one of {self.name}'s; is it another's list?")

        def mended(turn: Utterance) -> Utterance:
            return replace(turn, audio=None) if turn.audio and turn.audio.resolve() in names else turn

        kept = []
        for d in self.dialogues:
            turns = [mended(t) for t in d.turns]
            turns = [t for t in turns if t.text or t.audio or t.vectors]
            if turns:
                kept.append(replace(d, turns=tuple(turns)))
        return replace(self, dialogues=tuple(kept))

    def require(self, *splits: str) -> Corpus:
        """This corpus, or a clear error where one of the splits holds nothing to learn from or to score."""
        known: set[int] = set()
        for name in splits:
            found = Counter(t.label for d in self.split(name) for t in d.turns if t.label != UNLABELLED)
            if not found:
                have = ", ".join(f"{s}: {sum(len(d.turns) for d in self.split(s))} turns" for s in SPLITS)
                raise CorpusError(f"{self.name} has no labelled utterance in its {name} split ({have})")
            if name == "train" and len(found) < 2:
                only = self.labels[next(iter(found))]
                raise CorpusError(f"every training utterance of {self.name} is {only!r}; two labels are the least")
            known |= set(found) if name == "train" else set()
            unseen = sorted(set(found) - known) if known else []
            if unseen:
                said = ", ".join(self.labels[i] for i in unseen)
                raise CorpusError(f"{self.name}: no training utterance is labelled {said}, but {name} ones are")
        return self


def label_index(name: str, renamed: dict[str, str] | None = None, labels: Sequence[str] = MELD_LABELS) -> int:
    """'joy' -> 3, after renaming a corpus' own word; an unknown word is an error, never a silent class."""
    word = (renamed or {}).get(name, name)
    if word not in labels:
        raise ValueError(f"label {name!r} is not known; expected one of {', '.join(labels)}")
    return list(labels).index(word)


def read_csv(path: Path) -> Iterator[dict[str, str]]:
    """Rows of a CSV file with a header."""
    if not path.exists():
        raise FileNotFoundError(f"{path} is missing; set HBAF_DATA to the folder that holds the corpora")
    with path.open(newline="", encoding="utf-8") as file:
        yield from csv.DictReader(file)
