"""Corpora as dialogues of utterances: one small module each, all yielding the records of `training.corpora.records`.

A corpus is named on a command line as NAME or NAME:PATH, for instance `meld`, `meld:MELD.Raw`, `iemocap-4:IEMOCAP`,
`ravdess-8`, `features:dev.npz`, `manifest:mine.jsonl`. Data are read where they lie (`$HBAF_DATA`, else
`../shared/data` beside the checkout) and never copied into it.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path

from training.config import MELD_LABELS, split_spec
from training.corpora import dailytalk, emogator, features, iemocap, manifest, meld, ravdess, tess
from training.corpora.records import Corpus, CorpusError

READERS: dict[str, Callable[..., Corpus]] = {
    "meld": meld.load,
    "iemocap": iemocap.load,
    "iemocap-6": iemocap.load,
    "iemocap-4": partial(iemocap.load, classes=4),
    "ravdess": ravdess.load,
    "ravdess-8": partial(ravdess.load, labels=ravdess.LABELS),
    "tess": tess.load,
    "emogator": emogator.load,
    "dailytalk": dailytalk.load,
    "features": features.load,
    "manifest": manifest.load,
}


def load(spec: str, labels: Sequence[str] | None = None) -> Corpus:
    """NAME or NAME:PATH -> the corpus. `labels` is the label set it has to fit; a manifest then takes it over.

    >>> load("nonsense")  # doctest: +ELLIPSIS
    Traceback (most recent call last):
        ...
    training.errors.CorpusError: unknown corpus 'nonsense'; there are meld, iemocap, iemocap-6, ...
    """
    name, place = split_spec(spec)
    if name not in READERS:
        raise CorpusError(f"unknown corpus {spec!r}; there are {', '.join(READERS)}:PATH")
    if name == "manifest":
        if not place:
            raise CorpusError("a manifest needs its path: manifest:mine.jsonl")
        return manifest.load(Path(place), labels)
    try:
        corpus = READERS[name](Path(place)) if place else READERS[name]()
    except (FileNotFoundError, ValueError, KeyError) as error:
        raise CorpusError(f"{spec}: {error}") from error
    if labels and tuple(labels) != corpus.labels:
        raise CorpusError(f"{spec} is labelled {', '.join(corpus.labels)}; the model knows {', '.join(labels)}")
    return corpus


__all__ = ["MELD_LABELS", "READERS", "Corpus", "CorpusError", "load"]
