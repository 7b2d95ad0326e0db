"""Decode every clip of a corpus and say what is there: counts, lengths, and what is missing, broken, long or double.

    python -m training.check manifest:mine.jsonl --skip runs/skip.txt
    python -m training.train --corpus manifest:mine.jsonl --skip runs/skip.txt --out runs/mine

The skip list holds the clips that training cannot use (missing, broken, silent, too short) and all but the first of
each set of doubles. Exits with 1 where something was found, so that a script can stop there; the last line is JSON.
"""

from __future__ import annotations

import hashlib
import json
from collections import Counter, defaultdict
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from rich.console import Console
from rich.progress import track
from rich.table import Table

from hbaf_edge.audio import MAX_SECONDS, load_audio
from hbaf_edge.errors import InputError
from training import corpora
from training.command import cli
from training.corpora.records import SPLITS, UNLABELLED, Corpus
from training.files import write

UNUSABLE = ("missing", "broken", "silent", "short", "double")
WORDS = {
    "missing": "no such file",
    "broken": "cannot be decoded",
    "silent": "digital silence",
    "short": "shorter than 0.1 s",
    "double": "the same sound as another clip",
    "long": f"longer than {MAX_SECONDS:.0f} s: its last {MAX_SECONDS:.0f} s are used",
    "truncated": "its header promises more than it holds: what is there is used",
}


class Clip(NamedTuple):
    """What decoding one clip showed: `fault` is a key of WORDS or empty."""

    path: Path
    seconds: float = 0.0
    fault: str = ""
    detail: str = ""
    digest: str = ""


def decode(path: Path) -> Clip:
    """Decode one clip as training would."""
    if not path.is_file():
        return Clip(path, fault="missing", detail=WORDS["missing"])
    try:
        heard = load_audio(path)
    except InputError as error:
        return Clip(path, fault="broken", detail=str(error))
    truncated = next((w for w in heard.warnings if "truncated" in w), "")
    faults = {
        "silent": heard.is_silent,
        "short": heard.is_too_short,
        "long": heard.seconds > MAX_SECONDS,
        "truncated": bool(truncated),
    }
    fault = next((name for name, found in faults.items() if found), "")
    digest = hashlib.sha256(heard.samples.tobytes()).hexdigest()
    return Clip(path, heard.seconds, fault, truncated or WORDS.get(fault, ""), digest)


def check(corpus: Corpus, workers: int = 2) -> dict[str, Any]:
    """Counts per split and label, lengths, and every fault found."""
    paths = list(dict.fromkeys(t.audio for d in corpus.dialogues for t in d.turns if t.audio))
    with ThreadPoolExecutor(workers) as pool:
        clips = list(
            track(pool.map(decode, paths), f"{corpus.name}: decoding", len(paths), console=Console(stderr=True))
        )
    found: dict[str, list[tuple[str, str]]] = defaultdict(list)
    found["missing"] += [(str(path), WORDS["missing"]) for path in corpus.missing]
    first: dict[str, Path] = {}
    for clip in clips:
        if clip.fault:
            found[clip.fault].append((str(clip.path), clip.detail))
        if clip.digest and clip.fault not in UNUSABLE and first.setdefault(clip.digest, clip.path) != clip.path:
            found["double"].append((str(clip.path), f"the same sound as {first[clip.digest]}"))
    seconds = np.array([clip.seconds for clip in clips if clip.seconds])
    percentiles = np.percentile(seconds, (1, 50, 99)).tolist() if seconds.size else []
    return {
        "corpus": corpus.name,
        "counts": _counts(corpus),
        "hours": float(seconds.sum() / 3600),
        "seconds": dict(zip(("p1", "p50", "p99"), percentiles)),
        "faults": {name: clips for name, clips in found.items() if clips},
    }


def _counts(corpus: Corpus) -> dict[str, dict[str, int]]:
    """Split -> label -> utterances, with dialogues and speakers."""
    found: dict[str, dict[str, int]] = {}
    for split in SPLITS:
        dialogues = corpus.split(split)
        turns = [t for d in dialogues for t in d.turns]
        labels = Counter("(none)" if t.label == UNLABELLED else corpus.labels[t.label] for t in turns)
        found[split] = {
            "dialogues": len(dialogues),
            "utterances": len(turns),
            "with text": sum(bool(t.text) for t in turns),
            "with audio": sum(t.audio is not None for t in turns),
            "speakers": len({t.speaker for t in turns if t.speaker}),
            **{name: labels[name] for name in (*corpus.labels, "(none)") if labels[name]},
        }
    return found


def skip_list(result: dict[str, Any]) -> str:
    """Paths of unusable clips, each with its reason behind a tab."""
    return "".join(f"{path}\t{why}\n" for fault in UNUSABLE for path, why in result["faults"].get(fault, ()))


def show(result: dict[str, Any]) -> None:
    """Tables for people."""
    rows = list(dict.fromkeys(name for counts in result["counts"].values() for name in counts))
    counts = Table(result["corpus"], *SPLITS)
    for row in rows:
        counts.add_row(row, *(str(result["counts"][split].get(row, 0)) for split in SPLITS))
    console = Console()
    console.print(counts)
    if result["seconds"]:
        lengths = ", ".join(f"{name} {value:.2f} s" for name, value in result["seconds"].items())
        console.print(f"{result['hours']:.2f} h of audio; utterances: {lengths}", highlight=False)
    faults = Table("fault", "clips", "what it is", "for instance")
    for name, found in result["faults"].items():
        faults.add_row(name, str(len(found)), WORDS[name], found[0][0])
    console.print(faults if result["faults"] else "every clip can be used", highlight=False)


def main(corpus: str, /, skip: Path | None = None, workers: int = 2) -> None:
    """Check a corpus.

    Args:
        corpus: NAME or NAME:PATH, as training.train takes it.
        skip: where to write the skip list.
        workers: clips decoded at once.
    """
    result = check(corpora.load(corpus), workers)
    show(result)
    if skip:
        write(skip, skip_list(result).encode())
    print(json.dumps({**result, "faults": {name: len(found) for name, found in result["faults"].items()}}))
    if any(result["faults"].get(name) for name in UNUSABLE):
        raise SystemExit(1)


if __name__ == "__main__":
    cli(main)
