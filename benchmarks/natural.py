"""What the shipped model makes of natural speech: ten MELD clips, each judged by audio, by words and by both.

    python -m benchmarks.natural          # needs HBAF_DATA/meld_clips; the last line is JSON

Ten clips are an anecdote, not a score; some of their words were in training. They show where acted training data end.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from benchmarks.report import finish, show
from hbaf_edge import HBAFRuntime
from hbaf_edge.machine import machine
from training.corpora.records import data_folder, read_csv

USES = {"audio": ("audio",), "words": ("text",), "both": ("audio", "text")}


def judge(folder: Path) -> tuple[list[tuple[str, ...]], dict[str, Any]]:
    """A row per clip, and how many each way of asking got right."""
    runtime = HBAFRuntime()
    rows, right = [], dict.fromkeys(USES, 0)
    for clip in read_csv(folder / "manifest.csv"):
        whole = {"audio": folder / clip["file"], "text": clip["text"]}
        said = {use: runtime.predict(**{k: whole[k] for k in parts}) for use, parts in USES.items()}  # type: ignore[arg-type]
        for use, p in said.items():
            right[use] += p.label == clip["emotion"]
        answers = (f"{p.label} {p.confidence:.2f}" for p in said.values())
        rows.append((clip["split"], clip["text"][:40], clip["emotion"], *answers))
    return rows, {"clips": len(rows), "right": right}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--save", action="store_true")
    given = parser.parse_args()
    rows, result = judge(data_folder() / "meld_clips")
    show("ten natural clips", rows, ("split", "words", "label", *USES))
    finish("natural", {"machine": machine(), **result}, given.save)


if __name__ == "__main__":
    main()
