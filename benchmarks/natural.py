"""What the shipped model makes of natural speech: ten MELD clips, each judged by audio, by text and by both.

    python -m benchmarks.natural          # needs HBAF_DATA/meld_clips

Ten clips are an anecdote, not a score; some of their words were in training. They show where acted training data end.
"""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any

from benchmarks.report import Save, conclude, run
from hbaf_edge import HBAFRuntime
from hbaf_edge.bench.document import Cell, Report, Section
from hbaf_edge.bench.series import single
from training.corpora.records import data_folder, read_csv

USES = {"audio": ("audio",), "words": ("text",), "both": ("audio", "text")}


def natural(folder: Path) -> Section:
    """A row per clip, and how many are right by each use of the modalities."""
    runtime, rows = HBAFRuntime(), list[list[Cell]]()
    correct = dict.fromkeys(USES, 0)
    for clip in read_csv(folder / "manifest.csv"):
        row: list[Cell] = [clip["split"], clip["text"][:40], clip["emotion"]]
        for use, modalities in USES.items():
            inputs: dict[str, Any] = {"audio": folder / clip["file"], "text": clip["text"]}
            p = runtime.predict(**{name: inputs[name] for name in modalities})
            correct[use] += p.label == clip["emotion"]
            row.append(f"{p.label} {p.confidence:.2f}")
        rows.append(row)
    text = f"Right of {len(rows)}: " + ", ".join(f"{use} {count}" for use, count in correct.items()) + "."
    return Section("natural", "Natural clips", ("split", "words", "label", *USES), rows, text,
                   {use: single(count) for use, count in correct.items()}, "clips", "higher")  # fmt: skip


def main(save: Save = False) -> int:
    report = Report("hbaf-edge: natural speech", {})
    return conclude("natural", report, [("natural clips", partial(natural, data_folder() / "meld_clips"))], save)


if __name__ == "__main__":
    run(main, __doc__)
