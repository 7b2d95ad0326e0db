"""IEMOCAP from its original tree: five sessions of two actors, 4 or 6 classes.

    SessionN/dialog/EmoEvaluation/Ses01F_impro01.txt      times, turn names, labels
    SessionN/dialog/transcriptions/Ses01F_impro01.txt     words
    SessionN/sentences/wav/Ses01F_impro01/Ses01F_impro01_F000.wav

Session 5 tests and session 4 selects; folds are sessions, so `--folds all` is leave-one-session-out.
"""

from __future__ import annotations

import re
from pathlib import Path

from training.corpora.records import UNLABELLED, Corpus, CorpusError, Dialogue, Utterance, data_folder

SIX = {"hap": "happy", "sad": "sad", "neu": "neutral", "ang": "angry", "exc": "excited", "fru": "frustrated"}
FOUR = {"hap": "happy", "exc": "happy", "sad": "sad", "neu": "neutral", "ang": "angry"}
RATED = re.compile(r"^\[(\d+\.\d+) - (\d+\.\d+)\]\t(\S+)\t(\w+)\t\[")
SPOKEN = re.compile(r"^(Ses\S+) \[[\d.]+-[\d.]+\]: (.*)$")


def load(root: Path | None = None, classes: int = 6) -> Corpus:
    """Every dialogue with 4 classes (excited counts as happy) or 6.

    A turn whose label is none of these stays as context: it is unlabelled, neither trained on nor scored.
    """
    names = {4: FOUR, 6: SIX}.get(classes)
    if names is None:
        raise CorpusError(f"IEMOCAP has 4 or 6 classes here, not {classes}")
    folder = root or data_folder() / "iemocap"
    labels = tuple(dict.fromkeys(names.values()))
    files = sorted(folder.glob("Session[1-5]/dialog/EmoEvaluation/Ses*.txt"))
    if not files:
        raise CorpusError(f"{folder} holds no SessionN/dialog/EmoEvaluation/Ses*.txt; is it the IEMOCAP tree?")
    missing: list[Path] = []
    dialogues = [_dialogue(file, names, labels, missing) for file in files]
    return Corpus(f"iemocap-{classes}", labels, tuple(d for d in dialogues if d.turns), tuple(missing))


def _dialogue(rated: Path, names: dict[str, str], labels: tuple[str, ...], missing: list[Path]) -> Dialogue:
    session = int(rated.parents[2].name.removeprefix("Session"))
    spoken = rated.parents[1] / "transcriptions" / rated.name
    words = {m[1]: m[2] for line in _lines(spoken) if (m := SPOKEN.match(line))}
    turns = []
    for line in _lines(rated):
        found = RATED.match(line)
        if found is None:
            continue
        start, _, turn, label = found.groups()
        audio = rated.parents[2] / "sentences" / "wav" / rated.stem / f"{turn}.wav"
        gender = turn.rsplit("_", 1)[1][0]  # Ses01F_impro01_M003: the man of session 1
        known = labels.index(names[label]) if label in names else UNLABELLED
        speaker = f"Ses{session:02d}{gender}"
        here = audio if audio.exists() else None
        missing += [] if here else [audio]
        turns.append((float(start), Utterance(words.get(turn, ""), known, speaker, here, gender)))
    turns.sort(key=lambda pair: pair[0])
    usable = tuple(u for _, u in turns if u.text or u.audio)
    split = {5: "test", 4: "dev"}.get(session, "train")
    return Dialogue(f"iemocap-{rated.stem}", split, usable, session - 1)


def _lines(path: Path) -> list[str]:
    if not path.exists():
        raise CorpusError(f"{path} is missing; IEMOCAP's dialog folder holds EmoEvaluation and transcriptions")
    return path.read_text(encoding="utf-8", errors="replace").splitlines()
