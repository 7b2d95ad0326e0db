"""Pre-extracted features in one npz file, as published for MELD and IEMOCAP instead of the audio.

Arrays have one row per utterance: `emotion`, `dialogue_id`, `utterance_id`, one whose name starts with `text` and one
whose name starts with `audio` or `wav` (rows, dim); `speaker` and `split` are optional. Folds are dialogue_id mod 5.
"""

from __future__ import annotations

from itertools import groupby
from pathlib import Path
from typing import Any
from zipfile import BadZipFile

import numpy as np

from training.corpora.records import SPLITS, Corpus, CorpusError, Dialogue, Utterance, Vectors, data_folder

FOLDS = 5
REQUIRED = ("emotion", "dialogue_id", "utterance_id")
MAX_BYTES = 8_000_000_000


def load(path: Path | None = None) -> Corpus:
    """Load a feature file as dialogues of vectors."""
    path = path or data_folder() / "meld" / "meld_dev_features.npz"
    if not path.exists():
        raise CorpusError(f"{path} is missing; expected an npz file of features")
    if path.stat().st_size > MAX_BYTES:
        raise CorpusError(f"{path} is larger than {MAX_BYTES // 10**9} GB; split it")
    try:
        with np.load(path, allow_pickle=False) as archive:
            data = {name: archive[name] for name in archive.files}
    except (ValueError, OSError, KeyError, BadZipFile) as error:
        raise CorpusError(f"{path} is not a plain npz of arrays ({error}); pickled objects are not read") from error
    missing = [name for name in REQUIRED if name not in data]
    if missing:
        raise CorpusError(f"{path} lacks {', '.join(missing)}; it has {', '.join(data)}")
    mismatched = [n for n in (*REQUIRED, "speaker", "split") if n in data and data[n].shape != data["emotion"].shape]
    if mismatched:
        raise CorpusError(
            f"{path}: {mismatched[0]} has shape {data[mismatched[0]].shape}, emotion has {data['emotion'].shape}"
        )
    audio = _matrix(data, path, ("audio", "wav"))
    text = _matrix(data, path, ("text",))
    labels = tuple(sorted({str(name) for name in data["emotion"]}))
    return Corpus(f"features-{path.stem}", labels, tuple(_dialogues(data, audio, text, labels)))


def _matrix(data: dict[str, Any], path: Path, prefixes: tuple[str, ...]) -> Any:
    """The first array of one modality, not standardised, since the model applies LayerNorm."""
    name = next((n for n in data if n.startswith(prefixes) and data[n].ndim == 2), None)
    if name is None:
        raise CorpusError(f"{path} has no array {' or '.join(prefixes)!r} of shape (rows, dim); it has {list(data)}")
    matrix = np.asarray(data[name], np.float32)
    if len(matrix) != len(data["emotion"]) or not np.isfinite(matrix).all():
        raise CorpusError(f"{path}: {name} needs {len(data['emotion'])} finite rows, its shape is {matrix.shape}")
    return matrix


def _dialogues(data: dict[str, Any], audio: Any, text: Any, labels: tuple[str, ...]) -> list[Dialogue]:
    dialogues = []
    order = np.lexsort((data["utterance_id"].astype(int), data["dialogue_id"].astype(int)))
    for number, rows in groupby(order, key=lambda n: int(data["dialogue_id"][n])):
        members, turns = list(rows), []
        for n in members:
            speaker = str(data["speaker"][n]) if "speaker" in data else None
            vectors = Vectors(audio[n][None], text[n][None])
            turns.append(Utterance("", labels.index(str(data["emotion"][n])), speaker, vectors=vectors))
        split = str(data["split"][members[0]]) if "split" in data else "train"
        if split not in SPLITS:
            raise CorpusError(f"dialogue {number} has the split {split!r}; expected train, dev or test")
        dialogues.append(Dialogue(f"features-{number}", split, tuple(turns), number % FOLDS))
    return dialogues
