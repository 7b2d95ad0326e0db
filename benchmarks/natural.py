"""Predict ten clips of natural speech (MELD) with the default model: by audio, by text, and by both.

    python -m benchmarks.natural          # needs HBAF_DATA/meld_clips

Ten clips are an example, not a score, and some of their texts were in the training data. They show how well a model
that was trained on acted speech works on natural speech.
"""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any

from benchmarks.report import AsJson, Save, measure_and_report, run
from hbaf_edge import HBAFRuntime
from hbaf_edge.bench.document import Cell, Report, Section
from hbaf_edge.bench.series import single_value
from hbaf_edge.bundle import load_bundle
from training.corpora.records import data_folder, read_csv

USES = {"audio": ("audio",), "text": ("text",), "both": ("audio", "text")}


def natural(folder: Path) -> Section:
    """Return a row for each clip, and the number of correct clips for each use of the modalities."""
    runtime, rows = HBAFRuntime(), list[list[Cell]]()
    correct = dict.fromkeys(USES, 0)
    for clip in read_csv(folder / "manifest.csv"):
        row: list[Cell] = [clip["split"], clip["text"][:40], clip["emotion"]]
        for use, modalities in USES.items():
            inputs: dict[str, Any] = {"audio": folder / clip["file"], "text": clip["text"]}
            prediction = runtime.predict(**{name: inputs[name] for name in modalities})
            correct[use] += prediction.label == clip["emotion"]
            row.append(f"{prediction.label} {prediction.confidence:.2f}")
        rows.append(row)
    text = f"Correct of {len(rows)}: " + ", ".join(f"{use} {count}" for use, count in correct.items()) + "."
    return Section("natural", "Natural clips", ("split", "transcript", "label", *USES), rows, text,
                   {use: single_value(count) for use, count in correct.items()}, "clips", "higher")  # fmt: skip


def main(save: Save = False, as_json: AsJson = False) -> int:
    report = Report("hbaf-edge: natural speech", {}, bundle=load_bundle(None).key)
    sections = [("natural clips", partial(natural, data_folder() / "meld_clips"))]
    return measure_and_report("natural", report, sections, save, as_json=as_json)


if __name__ == "__main__":
    run(main, __doc__)
