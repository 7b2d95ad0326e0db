"""Corpora as dialogues of utterances. Every reader returns the records of `training.corpora.records`.

A corpus is named on a command line as NAME or NAME:PATH, for instance `meld`, `meld:MELD.Raw`, `iemocap-4:IEMOCAP`,
`ravdess-8`, `features:dev.npz`, `manifest:mine.jsonl`. Data are read from `$HBAF_DATA`, or from
`../shared/data` next to the checkout, and never copied.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path

from training.config import split_spec
from training.corpora import clips, dialogues, features, iemocap, manifest
from training.corpora.records import Corpus, CorpusError

READERS: dict[str, Callable[..., Corpus]] = {
    "meld": dialogues.load_meld,
    "iemocap": iemocap.load,
    "iemocap-6": iemocap.load,
    "iemocap-4": partial(iemocap.load, classes=4),
    "ravdess": clips.load_ravdess,
    "ravdess-8": partial(clips.load_ravdess, labels=clips.RAVDESS_LABELS),
    "tess": clips.load_tess,
    "emogator": clips.load_emogator,
    **{name: partial(clips.load_other_language, name) for name in clips.OTHER_LANGUAGES},
    "dailytalk": dialogues.load_dailytalk,
    "features": features.load,
    "manifest": manifest.load,
}


def load(spec: str, labels: Sequence[str] | None = None) -> Corpus:
    """Load a corpus by NAME or NAME:PATH.

    Args:
        spec: the corpus as on a command line.
        labels: label set that the corpus must have; a manifest uses it as its own label set.

    Raises:
        CorpusError: the corpus is unknown, cannot be read, or has other labels.

    >>> load("nonsense")  # doctest: +ELLIPSIS
    Traceback (most recent call last):
        ...
    training.errors.CorpusError: unknown corpus 'nonsense'; expected one of meld, iemocap, iemocap-6, ...
    """
    name, path = split_spec(spec)
    if name not in READERS:
        raise CorpusError(f"unknown corpus {spec!r}; expected one of {', '.join(READERS)}, or NAME:PATH")
    if name == "manifest":
        if not path:
            raise CorpusError("a manifest needs its path: manifest:mine.jsonl")
        return manifest.load(Path(path), labels)
    try:
        corpus = READERS[name](Path(path)) if path else READERS[name]()
    except (FileNotFoundError, ValueError, KeyError) as error:
        raise CorpusError(f"{spec}: {error}") from error
    if labels and tuple(labels) != corpus.labels:
        raise CorpusError(f"{spec} has the labels {', '.join(corpus.labels)}; the model has {', '.join(labels)}")
    return corpus
