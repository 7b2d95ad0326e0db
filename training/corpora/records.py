"""The records every corpus yields, and where the data lie."""

from __future__ import annotations

import csv
import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from training.config import MELD_LABELS


@dataclass(frozen=True)
class Utterance:
    """One turn. `label` indexes MELD's seven; `speaker` is a name that only has to differ between speakers."""

    text: str
    label: int
    speaker: str | None = None
    audio: Path | None = None
    gender: str | None = None


@dataclass(frozen=True)
class Dialogue:
    """Consecutive turns. `split` is train, dev or test."""

    name: str
    split: str
    turns: tuple[Utterance, ...]


def data_folder() -> Path:
    """Where the corpora of DATA.md lie."""
    return Path(os.environ.get("HBAF_DATA") or Path(__file__).resolve().parents[3] / "shared" / "data")


def label_index(name: str, renamed: dict[str, str] | None = None) -> int:
    """'joy' -> 3, after renaming a corpus' own word; an unknown word is an error, never a silent class."""
    word = (renamed or {}).get(name, name)
    if word not in MELD_LABELS:
        raise ValueError(f"label {name!r} is not known; expected one of {', '.join(MELD_LABELS)}")
    return MELD_LABELS.index(word)


def read_csv(path: Path) -> Iterator[dict[str, str]]:
    """Rows of a CSV file with a header."""
    if not path.exists():
        raise FileNotFoundError(f"{path} is missing; set HBAF_DATA to the folder that holds the corpora")
    with path.open(newline="", encoding="utf-8") as file:
        yield from csv.DictReader(file)
