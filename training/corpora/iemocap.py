"""IEMOCAP from its original tree: five sessions of two actors, 4 or 6 classes.

    SessionN/dialog/EmoEvaluation/Ses01F_impro01.txt      times, turn names, labels
    SessionN/dialog/transcriptions/Ses01F_impro01.txt     text
    SessionN/sentences/wav/Ses01F_impro01/Ses01F_impro01_F000.wav

Session 5 is test and session 4 is dev. Folds are sessions, so `--folds all` is leave-one-session-out.
"""

from __future__ import annotations

import re
from pathlib import Path

from training.corpora.records import UNLABELLED, Corpus, CorpusError, Dialogue, Utterance, data_folder

SIX_CLASSES = {"hap": "happy", "sad": "sad", "neu": "neutral", "ang": "angry", "exc": "excited", "fru": "frustrated"}
FOUR_CLASSES = {"hap": "happy", "exc": "happy", "sad": "sad", "neu": "neutral", "ang": "angry"}
EVALUATION_LINE = re.compile(r"^\[(\d+\.\d+) - (\d+\.\d+)\]\t(\S+)\t(\w+)\t\[")
TRANSCRIPT_LINE = re.compile(r"^(Ses\S+) \[[\d.]+-[\d.]+\]: (.*)$")


def load(root: Path | None = None, classes: int = 6) -> Corpus:
    """Load IEMOCAP with 4 classes (excited counts as happy) or 6.

    Turns with other labels are kept as unlabelled context; they are neither trained on nor scored.
    """
    names = {4: FOUR_CLASSES, 6: SIX_CLASSES}.get(classes)
    if names is None:
        raise CorpusError(f"IEMOCAP has 4 or 6 classes, not {classes}")
    folder = root or data_folder() / "iemocap"
    labels = tuple(dict.fromkeys(names.values()))
    files = sorted(folder.glob("Session[1-5]/dialog/EmoEvaluation/Ses*.txt"))
    if not files:
        raise CorpusError(f"{folder} contains no SessionN/dialog/EmoEvaluation/Ses*.txt; is it the IEMOCAP tree?")
    missing: list[Path] = []
    dialogues = [_dialogue(file, names, labels, missing) for file in files]
    return Corpus(f"iemocap-{classes}", labels, tuple(d for d in dialogues if d.turns), tuple(missing))


def _dialogue(evaluation: Path, names: dict[str, str], labels: tuple[str, ...], missing: list[Path]) -> Dialogue:
    session = int(evaluation.parents[2].name.removeprefix("Session"))
    transcript = evaluation.parents[1] / "transcriptions" / evaluation.name
    texts = {m[1]: m[2] for line in _lines(transcript) if (m := TRANSCRIPT_LINE.match(line))}
    turns = []
    for line in _lines(evaluation):
        match = EVALUATION_LINE.match(line)
        if match is None:
            continue
        start, _, turn, label_name = match.groups()
        audio = evaluation.parents[2] / "sentences" / "wav" / evaluation.stem / f"{turn}.wav"
        gender = turn.rsplit("_", 1)[1][0]  # Ses01F_impro01_M003 is spoken by the man of session 1
        label = labels.index(names[label_name]) if label_name in names else UNLABELLED
        speaker = f"Ses{session:02d}{gender}"
        clip = audio if audio.exists() else None
        missing += [] if clip else [audio]
        turns.append((float(start), Utterance(texts.get(turn, ""), label, speaker, clip, gender)))
    turns.sort(key=lambda pair: pair[0])
    usable = tuple(u for _, u in turns if u.text or u.audio)
    split = {5: "test", 4: "dev"}.get(session, "train")
    return Dialogue(f"iemocap-{evaluation.stem}", split, usable, session - 1)


def _lines(path: Path) -> list[str]:
    if not path.exists():
        raise CorpusError(f"{path} is missing; IEMOCAP's dialog folder contains EmoEvaluation and transcriptions")
    return path.read_text(encoding="utf-8", errors="replace").splitlines()
