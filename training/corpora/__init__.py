"""Corpora as dialogues of utterances: every reader yields the records of `training.corpora.records`.

A corpus is named on a command line as NAME or NAME:PATH, for instance `meld`, `meld:MELD.Raw`, `iemocap-4:IEMOCAP`,
`ravdess-8`, `features:dev.npz`, `manifest:mine.jsonl`. Data are read where they lie (`$HBAF_DATA`, else
`../shared/data` beside the checkout) and never copied into it.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path

from training.config import split_spec
from training.corpora import clips, features, iemocap, manifest, talks
from training.corpora.records import Corpus, CorpusError

READERS: dict[str, Callable[..., Corpus]] = {
    "meld": talks.load_meld,
    "iemocap": iemocap.load,
    "iemocap-6": iemocap.load,
    "iemocap-4": partial(iemocap.load, classes=4),
    "ravdess": clips.load_ravdess,
    "ravdess-8": partial(clips.load_ravdess, labels=clips.RAVDESS_LABELS),
    "tess": clips.load_tess,
    "emogator": clips.load_emogator,
    "dailytalk": talks.load_dailytalk,
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
