"""Decode every clip of a corpus and report counts, lengths, and missing, broken, overlong or duplicate clips.

    python -m training.check manifest:mine.jsonl --skip runs/skip.txt
    python -m training.train --corpus manifest:mine.jsonl --skip runs/skip.txt --out runs/mine

The skip list contains the clips that training cannot use (missing, broken, silent, too short) and all duplicates but
the first. The exit code is 1 if there are any, for use in scripts.
"""

from __future__ import annotations

import hashlib
from collections import Counter, defaultdict
from collections.abc import Iterator
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
from training.command import cli, emit
from training.corpora.records import SPLITS, UNLABELLED, Corpus
from training.files import write

UNUSABLE = ("missing", "broken", "silent", "short", "double")
DESCRIPTIONS = {
    "missing": "the file does not exist",
    "broken": "the file cannot be decoded",
    "silent": "digital silence",
    "short": "shorter than 0.1 s",
    "double": "the same audio as another clip",
    "long": f"longer than {MAX_SECONDS:.0f} s: only the last {MAX_SECONDS:.0f} s are used",
    "truncated": "shorter than its header says: the existing part is used",
}


class Clip(NamedTuple):
    """The result of decoding one clip. `fault` is a key of DESCRIPTIONS or empty."""

    path: Path
    seconds: float = 0.0
    fault: str = ""
    detail: str = ""
    digest: str = ""


def decode(path: Path) -> Clip:
    """Decode one clip as in training."""
    if not path.is_file():
        return Clip(path, fault="missing", detail=DESCRIPTIONS["missing"])
    try:
        audio = load_audio(path)
    except InputError as error:
        return Clip(path, fault="broken", detail=str(error))
    truncated = next((w for w in audio.warnings if "truncated" in w), "")
    faults = {
        "silent": audio.is_silent,
        "short": audio.is_too_short,
        "long": audio.seconds > MAX_SECONDS,
        "truncated": bool(truncated),
    }
    fault = next((name for name, applies in faults.items() if applies), "")
    digest = hashlib.sha256(audio.samples.tobytes()).hexdigest()
    return Clip(path, audio.seconds, fault, truncated or DESCRIPTIONS.get(fault, ""), digest)


def check(corpus: Corpus, workers: int = 2) -> dict[str, Any]:
    """Decode all clips. Return counts per split and label, lengths and faults."""
    paths = list(dict.fromkeys(t.audio for d in corpus.dialogues for t in d.turns if t.audio))
    console = Console(stderr=True)
    with ThreadPoolExecutor(workers) as pool:
        clips = list(track(pool.map(decode, paths), f"{corpus.name}: decoding", len(paths), console=console))
    faults: dict[str, list[tuple[str, str]]] = defaultdict(list)
    faults["missing"] += [(str(path), DESCRIPTIONS["missing"]) for path in corpus.missing]
    first_with: dict[str, Path] = {}  # hash of the samples -> first clip
    for clip in clips:
        if clip.fault:
            faults[clip.fault].append((str(clip.path), clip.detail))
        if clip.digest and clip.fault not in UNUSABLE and first_with.setdefault(clip.digest, clip.path) != clip.path:
            faults["double"].append((str(clip.path), f"the same audio as {first_with[clip.digest]}"))
    seconds = np.array([clip.seconds for clip in clips if clip.seconds])
    percentiles = np.percentile(seconds, (1, 50, 99)).tolist() if seconds.size else []
    return {
        "corpus": corpus.name,
        "counts": _counts(corpus),
        "hours": float(seconds.sum() / 3600),
        "seconds": dict(zip(("p1", "p50", "p99"), percentiles)),
        "faults": {name: entries for name, entries in faults.items() if entries},
    }


def _counts(corpus: Corpus) -> dict[str, dict[str, int]]:
    """Numbers of dialogues, utterances, speakers and labels in each split."""
    counts: dict[str, dict[str, int]] = {}
    for split in SPLITS:
        dialogues = [d for d in corpus.dialogues if d.split == split]  # counts only; test data are not scored
        turns = [t for d in dialogues for t in d.turns]
        labels = Counter("(none)" if t.label == UNLABELLED else corpus.labels[t.label] for t in turns)
        counts[split] = {
            "dialogues": len(dialogues),
            "utterances": len(turns),
            "with text": sum(bool(t.text) for t in turns),
            "with audio": sum(t.audio is not None for t in turns),
            "speakers": len({t.speaker for t in turns if t.speaker}),
            **{name: labels[name] for name in (*corpus.labels, "(none)") if labels[name]},
        }
    return counts


def skip_list(result: dict[str, Any]) -> str:
    """The unusable clips, one per line, each with a tab and the reason."""
    return "".join(f"{path}\t{reason}\n" for fault in UNUSABLE for path, reason in result["faults"].get(fault, ()))


def tables(result: dict[str, Any]) -> Iterator[Table | str]:
    """Tables of counts and faults, and a line about lengths."""
    rows = list(dict.fromkeys(name for counts in result["counts"].values() for name in counts))
    counts = Table(result["corpus"], *SPLITS)
    for row in rows:
        counts.add_row(row, *(str(result["counts"][split].get(row, 0)) for split in SPLITS))
    yield counts
    if result["seconds"]:
        lengths = ", ".join(f"{name} {value:.2f} s" for name, value in result["seconds"].items())
        yield f"{result['hours']:.2f} h of audio; length of utterances: {lengths}"
    faults = Table("fault", "clips", "description", "example")
    for name, entries in result["faults"].items():
        faults.add_row(name, str(len(entries)), DESCRIPTIONS[name], entries[0][0])
    yield faults if result["faults"] else "All clips can be used."


def main(corpus: str, /, skip: Path | None = None, workers: int = 2, json_output: bool = False) -> None:
    """Check a corpus.

    Args:
        corpus: NAME or NAME:PATH, as in training.train.
        skip: file for the skip list.
        workers: number of clips decoded at the same time.
    """
    result = check(corpora.load(corpus), workers)
    if skip:
        write(skip, skip_list(result).encode())
    fault_counts = {name: len(entries) for name, entries in result["faults"].items()}
    emit({**result, "faults": fault_counts}, json_output, *tables(result))
    if any(fault_counts.get(name) for name in UNUSABLE):
        raise SystemExit(1)


if __name__ == "__main__":
    cli(main)
