"""The user's own data: a JSON Lines or CSV file with one utterance per line and any label set.

Columns (only `label` and one of `audio`, `text` are required):

    audio      path of a clip, relative to the manifest
    text       transcript of the utterance
    label      any word; empty for a turn that is only context, such as the robot's own
    speaker    any name; the model only compares names within a dialogue
    dialogue   name of the dialogue, whose turns are in order; without it every turn is its own dialogue
    split      train, dev or test; without it a hash of the dialogue's name decides, 80 : 10 : 10
    gender     any word; scores are then also reported by gender
"""

from __future__ import annotations

import csv
import hashlib
import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from rich.console import Console

from training.corpora.records import SPLITS, UNLABELLED, Corpus, CorpusError, Dialogue, Utterance

COLUMNS = ("audio", "text", "label", "speaker", "dialogue", "split", "gender")
MAX_WARNINGS = 10
FOLDS = 5

Row = tuple[int, dict[str, str]]  # line number, fields


def load(path: Path, labels: Sequence[str] | None = None) -> Corpus:
    """Read and check a manifest.

    Args:
        path: the file; `.csv` is read as CSV, everything else as JSON Lines.
        labels: label set of the model to score; None uses the labels of the train split.

    Raises:
        CorpusError: the manifest has an error; the message names the file, the line and what is accepted.
    """
    rows = list(_read(path))
    if not rows:
        raise CorpusError(f"{path} contains no utterances")
    grouped: dict[str, list[Row]] = {}
    for line, row in rows:
        _validate(path, line, row)
        grouped.setdefault(row["dialogue"] or f"line {line}", []).append((line, row))
    splits = {name: _split(path, name, turns) for name, turns in grouped.items()}
    known = tuple(
        labels or sorted({r["label"] for n, t in grouped.items() for _, r in t if splits[n] == "train"} - {""})
    )
    dialogues, warnings = [], []
    for name, turns in grouped.items():
        warnings += _speaker_warnings(path, name, turns)
        records = tuple(_utterance(path, line, row, known, splits[name]) for line, row in turns)
        dialogues.append(Dialogue(f"{path.stem}-{name}", splits[name], records, _hash(name) % FOLDS))
    for text in warnings[:MAX_WARNINGS]:
        Console(stderr=True).print(f"[yellow]warning[/] {text}", highlight=False)
    if len(warnings) > MAX_WARNINGS:
        Console(stderr=True).print(f"[yellow]warning[/] and {len(warnings) - MAX_WARNINGS} more warnings")
    return Corpus(path.stem, known, tuple(dialogues))


def _read(path: Path) -> Iterator[Row]:
    if not path.is_file():
        raise CorpusError(f"{path} is missing; expected a manifest, a .csv or .jsonl file")
    with path.open(encoding="utf-8-sig", newline="") as file:
        try:
            if path.suffix == ".csv":
                reader = csv.DictReader(file, restkey="extra column")
                yield from ((reader.line_num, _strings(path, reader.line_num, row)) for row in reader)
                return
            for line, content in enumerate(file, 1):
                if content.strip():
                    yield line, _strings(path, line, _json(path, line, content))
        except UnicodeDecodeError as error:
            raise CorpusError(f"{path} is not UTF-8 text ({error.reason}); save it as UTF-8") from error


def _json(path: Path, line: int, content: str) -> dict[str, Any]:
    try:
        row = json.loads(content)
    except json.JSONDecodeError as error:
        raise CorpusError(f"{path}:{line}: not JSON ({error.msg}); expected one object per line") from error
    if not isinstance(row, dict):
        raise CorpusError(f"{path}:{line}: {type(row).__name__}; expected one object per line")
    return row


def _strings(path: Path, line: int, row: dict[str, Any]) -> dict[str, str]:
    """All columns as stripped strings. An unknown column raises, since it is probably misspelt."""
    for name in row:
        if name not in COLUMNS:
            raise CorpusError(f"{path}:{line}: unknown column {name!r}; expected {', '.join(COLUMNS)}")
    fields = {}
    for name in COLUMNS:
        value = row.get(name)
        if not isinstance(value, (str, int, type(None))):
            raise CorpusError(f"{path}:{line}: {name} is {type(value).__name__} {value!r}; expected text")
        fields[name] = "" if value is None else str(value).strip()
    return fields


def _validate(path: Path, line: int, row: dict[str, str]) -> None:
    if not row["audio"] and not row["text"]:
        raise CorpusError(f"{path}:{line}: neither audio nor text; give one or both")
    clip = path.parent / row["audio"]
    if row["audio"] and not clip.is_file():
        raise CorpusError(f"{path}:{line}: {clip} is missing; paths are relative to the manifest")
    if row["split"] and row["split"] not in SPLITS:
        raise CorpusError(f"{path}:{line}: split {row['split']!r}; expected {', '.join(SPLITS)}, or no split column")


def _split(path: Path, name: str, turns: Sequence[Row]) -> str:
    """The split of a dialogue: from its rows, or by a hash of its name."""
    splits = {row["split"] for _, row in turns}
    if len(splits) > 1:
        line = next(line for line, row in turns if row["split"] != turns[0][1]["split"])
        raise CorpusError(
            f"{path}:{line}: dialogue {name!r} is in the splits {sorted(splits)}; a dialogue must have one"
        )
    bucket = _hash(name) % 10
    return splits.pop() or ("test" if bucket == 0 else "dev" if bucket == 1 else "train")


def _hash(name: str) -> int:
    return int.from_bytes(hashlib.sha256(name.encode()).digest()[:4], "big")


def _utterance(path: Path, line: int, row: dict[str, str], labels: Sequence[str], split: str) -> Utterance:
    if row["label"] and row["label"] not in labels:
        raise CorpusError(
            f"{path}:{line}: label {row['label']!r} of the {split} split; the train split has only {', '.join(labels)}"
        )
    label = list(labels).index(row["label"]) if row["label"] else UNLABELLED
    audio = path.parent / row["audio"] if row["audio"] else None
    return Utterance(row["text"], label, row["speaker"] or None, audio, row["gender"] or None)


def _speaker_warnings(path: Path, name: str, turns: Sequence[Row]) -> list[str]:
    """Warnings about a dialogue without speakers or with a single one, which may be a mistake."""
    if len(turns) < 2:
        return []
    unknown = [line for line, row in turns if not row["speaker"]]
    if unknown:
        return [f"{path}:{unknown[0]}: no speaker in dialogue {name!r}; its speakers are treated as unknown"]
    if len({row["speaker"] for _, row in turns}) == 1:
        return [f"{path}:{turns[0][0]}: dialogue {name!r} has {len(turns)} turns by one speaker; check the column"]
    return []
