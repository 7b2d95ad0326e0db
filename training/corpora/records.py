"""The records that every corpus reader returns, and helpers for readers."""

from __future__ import annotations

import csv
import hashlib
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from training.config import MELD_LABELS, Use
from training.errors import CorpusError
from training.files import data_folder as data_folder  # re-exported for the readers

UNLABELLED = -1  # label of a turn that is only context: not trained on, not scored
SPLITS = ("train", "dev", "test")


@dataclass(frozen=True)
class Vectors:
    """Pre-extracted features of an utterance: audio (F, dim) and text (T, dim). Either may be None."""

    audio: NDArray[np.float32] | None
    text: NDArray[np.float32] | None


@dataclass(frozen=True)
class Utterance:
    """One turn. `label` is an index into the corpus' labels; `speaker` is unique within a dialogue."""

    text: str
    label: int
    speaker: str | None = None
    audio: Path | None = None
    gender: str | None = None
    vectors: Vectors | None = None


@dataclass(frozen=True)
class Dialogue:
    """Consecutive turns. `split` is train, dev or test; cross-validation leaves out one `fold` at a time."""

    name: str
    split: str
    turns: tuple[Utterance, ...]
    fold: int = 0


@dataclass(frozen=True)
class Corpus:
    """Dialogues and the names of their labels.

    >>> turns = (Utterance("Hello.", 0),)
    >>> corpus = Corpus("mine", ("calm",), tuple(Dialogue(str(n), "train", turns, fold=n) for n in range(5)))
    >>> [d.split for d in corpus.for_fold(3).dialogues]
    ['train', 'train', 'train', 'test', 'dev']
    """

    name: str
    labels: tuple[str, ...]
    dialogues: tuple[Dialogue, ...]
    missing: tuple[Path, ...] = ()  # clips that are listed but do not exist

    def split(self, name: str) -> list[Dialogue]:
        """Dialogues of one split: train or dev. Test dialogues are read by `final_test` alone.

        Raises:
            CorpusError: the split is "test".
        """
        if name == "test":
            raise CorpusError(
                f"test data of {self.name} are read once, at the end: python -m training.evaluate --final"
            )
        return [d for d in self.dialogues if d.split == name]

    def final_test(self) -> list[Dialogue]:
        """Test dialogues. Only what training/ledger.py records may call this (docs/results.md, "Test data")."""
        return [d for d in self.dialogues if d.split == "test"]

    @property
    def folds(self) -> int:
        """Number of folds; 1 means that the corpus only has its own split."""
        return 1 + max((d.fold for d in self.dialogues), default=0)

    def modalities(self, *splits: str) -> set[str]:
        """Modalities, of "audio" and "text", that some turn of these splits has; without arguments: train or dev."""
        turns = [t for d in self.dialogues if d.split in (splits or ("train", "dev")) for t in d.turns]
        present = {"text": any(t.text or t.vectors for t in turns), "audio": any(t.audio or t.vectors for t in turns)}
        return {name for name, is_present in present.items() if is_present}

    def for_fold(self, fold: int) -> Corpus:
        """Fold k becomes test, the next fold dev, the others train (docs/model.md, "Protocol").

        Dialogues of the corpus' own test split are never dev, since models are chosen on dev.
        """
        if not 0 <= fold < self.folds or self.folds < 3:
            raise CorpusError(
                f"{self.name} has {self.folds} folds; cannot test on fold {fold} (at least three folds are needed)"
            )
        others = [(fold + n) % self.folds for n in range(1, self.folds)]
        dev = next((f for f in others if any(d.fold == f and d.split != "test" for d in self.dialogues)), others[0])
        split_of = {fold: "test", dev: "dev"}
        return replace(self, dialogues=tuple(replace(d, split=split_of.get(d.fold, "train")) for d in self.dialogues))

    def without(self, skipped: Iterable[str]) -> Corpus:
        """Remove the audio of clips that `training.check` found unusable; their text is kept."""
        names = {Path(name).resolve() for name in skipped}
        existing = {t.audio.resolve() for d in self.dialogues for t in d.turns if t.audio}
        if names and not names & (existing | {path.resolve() for path in self.missing}):
            raise CorpusError(f"none of the {len(names)} clips to skip belongs to {self.name}; check the skip list")

        def without_skipped_audio(turn: Utterance) -> Utterance:
            return replace(turn, audio=None) if turn.audio and turn.audio.resolve() in names else turn

        dialogues = []
        for d in self.dialogues:
            turns = [without_skipped_audio(t) for t in d.turns]
            turns = [t for t in turns if t.text or t.audio or t.vectors]
            if turns:
                dialogues.append(replace(d, turns=tuple(turns)))
        return replace(self, dialogues=tuple(dialogues))

    def require(self, *splits: str) -> Corpus:
        """Return this corpus. Raise CorpusError if one of the splits cannot be trained on or scored."""
        trained: set[int] = set()
        for name in splits:
            counts = Counter(t.label for d in self.split(name) for t in d.turns if t.label != UNLABELLED)
            if not counts:
                turns = Counter(d.split for d in self.dialogues for _ in d.turns)
                have = ", ".join(f"{s}: {turns[s]} turns" for s in SPLITS)
                raise CorpusError(f"{self.name} has no labelled utterance in its {name} split ({have})")
            if name == "train" and len(counts) < 2:
                only = self.labels[next(iter(counts))]
                raise CorpusError(
                    f"every training utterance of {self.name} is {only!r}; training needs at least two labels"
                )
            trained |= set(counts) if name == "train" else set()
            unseen = sorted(set(counts) - trained) if trained else []
            if unseen:
                names = ", ".join(self.labels[i] for i in unseen)
                raise CorpusError(f"{self.name}: no training utterance has the label {names}, but {name} utterances do")
        return self


@dataclass(frozen=True)
class EvaluationSet:
    """Dialogues to score, and the modalities to use."""

    use: Use
    dialogues: list[Dialogue]


def digest(dialogues: Sequence[Dialogue]) -> str:
    """SHA-256 of all names, texts, speakers, labels, vectors and audio files, in order."""
    sha256 = hashlib.sha256()
    audio_hashes: dict[str, bytes] = {}
    for dialogue in dialogues:
        for u in dialogue.turns:
            if u.audio and str(u.audio) not in audio_hashes:
                audio_hashes[str(u.audio)] = hashlib.sha256(u.audio.read_bytes()).digest()
            sha256.update(repr((dialogue.name, u.text, u.speaker, u.label)).encode())
            sha256.update(audio_hashes[str(u.audio)] if u.audio else b"-")
            for vectors in (u.vectors.audio, u.vectors.text) if u.vectors else ():
                sha256.update(b"-" if vectors is None else vectors.tobytes())
    return sha256.hexdigest()


def label_index(name: str, renamed: dict[str, str] | None = None, labels: Sequence[str] = MELD_LABELS) -> int:
    """Index of a label, such as 'joy' -> 3, after renaming a corpus' own word. An unknown word raises."""
    label = (renamed or {}).get(name, name)
    if label not in labels:
        raise ValueError(f"unknown label {name!r}; expected one of {', '.join(labels)}")
    return list(labels).index(label)


def read_csv(path: Path) -> Iterator[dict[str, str]]:
    """Rows of a CSV file with a header."""
    if not path.exists():
        raise FileNotFoundError(f"{path} is missing; set HBAF_DATA to the folder with the corpora")
    with path.open(newline="", encoding="utf-8") as file:
        yield from csv.DictReader(file)
