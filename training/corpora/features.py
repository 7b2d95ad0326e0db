"""Pre-extracted features in one npz: what others publish of MELD and IEMOCAP in place of the audio.

Arrays, one row per utterance: `emotion`, `dialogue_id`, `utterance_id` and at least one that begins with `text` and
one that begins with `audio` or `wav` (rows, dim); `speaker` and `split` where known. Folds are dialogue_id mod 5.
"""

from __future__ import annotations

from itertools import groupby
from pathlib import Path
from typing import Any
from zipfile import BadZipFile

import numpy as np

from training.corpora.records import SPLITS, Corpus, CorpusError, Dialogue, Utterance, Vectors, data_folder

FOLDS = 5
NEEDED = ("emotion", "dialogue_id", "utterance_id")
MAX_BYTES = 8_000_000_000


def load(path: Path | None = None) -> Corpus:
    """Dialogues of vectors."""
    path = path or data_folder() / "meld" / "meld_dev_features.npz"
    if not path.exists():
        raise CorpusError(f"{path} is missing; expected an npz of features")
    if path.stat().st_size > MAX_BYTES:
        raise CorpusError(f"{path} is larger than {MAX_BYTES // 10**9} GB; split it")
    try:
        with np.load(path, allow_pickle=False) as archive:
            data = {name: archive[name] for name in archive.files}
    except (ValueError, OSError, KeyError, BadZipFile) as error:
        raise CorpusError(f"{path} is not a plain npz of arrays ({error}); pickled objects are not read") from error
    missing = [name for name in NEEDED if name not in data]
    if missing:
        raise CorpusError(f"{path} lacks {', '.join(missing)}; it has {', '.join(data)}")
    short = [n for n in (*NEEDED, "speaker", "split") if n in data and data[n].shape != data["emotion"].shape]
    if short:
        raise CorpusError(f"{path}: {short[0]} is {data[short[0]].shape}, emotion is {data['emotion'].shape}")
    sound = _matrix(data, path, ("audio", "wav"))
    words = _matrix(data, path, ("text",))
    labels = tuple(sorted({str(name) for name in data["emotion"]}))
    return Corpus(f"features-{path.stem}", labels, tuple(_dialogues(data, sound, words, labels)))


def _matrix(data: dict[str, Any], path: Path, heads: tuple[str, ...]) -> Any:
    """The first array of one modality, standardised by nothing: a LayerNorm meets it first."""
    chosen = next((n for n in data if n.startswith(heads) and data[n].ndim == 2), None)
    if chosen is None:
        raise CorpusError(f"{path} has no array {' or '.join(heads)!r} of shape (rows, dim); it has {list(data)}")
    found = np.asarray(data[chosen], np.float32)
    if len(found) != len(data["emotion"]) or not np.isfinite(found).all():
        raise CorpusError(f"{path}: {chosen} needs {len(data['emotion'])} finite rows, it is {found.shape}")
    return found


def _dialogues(data: dict[str, Any], sound: Any, words: Any, labels: tuple[str, ...]) -> list[Dialogue]:
    found = []
    order = np.lexsort((data["utterance_id"].astype(int), data["dialogue_id"].astype(int)))
    for number, rows in groupby(order, key=lambda n: int(data["dialogue_id"][n])):
        chosen, turns = list(rows), []
        for n in chosen:
            speaker = str(data["speaker"][n]) if "speaker" in data else None
            vectors = Vectors(sound[n][None], words[n][None])
            turns.append(Utterance("", labels.index(str(data["emotion"][n])), speaker, vectors=vectors))
        split = str(data["split"][chosen[0]]) if "split" in data else "train"
        if split not in SPLITS:
            raise CorpusError(f"dialogue {number} is of split {split!r}; expected train, dev or test")
        found.append(Dialogue(f"features-{number}", split, tuple(turns), number % FOLDS))
    return found
