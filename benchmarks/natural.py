"""Predict clips of natural speech (MELD) with the default model: by audio, by text, and by both.

    python -m benchmarks.natural                 # four clips of training and dev; needs HBAF_DATA/meld_clips
    python -m benchmarks.natural --final --save  # and six of test: once for each model (training/ledger.py)

Ten clips are an example, not a score, and some of their texts were in the training data. They show how well a model
that was trained on acted speech works on natural speech.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Annotated, Any

import typer

from benchmarks.report import AsJson, Save, measure_and_report, run
from hbaf_edge import HBAFRuntime
from hbaf_edge.bench.document import Cell, Report, Section
from hbaf_edge.bench.series import single_value
from hbaf_edge.bundle import load_bundle
from training import ledger
from training.corpora.records import Dialogue, Utterance, data_folder, digest, label_index, read_csv

USES = {"audio": ("audio",), "text": ("text",), "both": ("audio", "text")}


def predict_clips(clips: Sequence[Mapping[str, str]], folder: Path) -> list[list[Cell]]:
    """Predict clips of a manifest; return split, transcript and label of each, and the answer for each of `USES`."""
    runtime, rows = HBAFRuntime(), list[list[Cell]]()
    for clip in clips:
        row: list[Cell] = [clip["split"], clip["text"][:40], clip["emotion"]]
        for modalities in USES.values():
            inputs: dict[str, Any] = {"audio": folder / clip["file"], "text": clip["text"]}
            prediction = runtime.predict(**{name: inputs[name] for name in modalities})
            row.append(f"{prediction.label} {prediction.confidence:.2f}")
        rows.append(row)
    return rows


def natural(folder: Path, final: bool) -> Section:
    """Return a row for each clip, and the number of correct clips for each use of the modalities."""
    clips = list(read_csv(folder / "manifest.csv"))
    tests = [clip for clip in clips if clip["split"] == "test"]
    rows = predict_clips([clip for clip in clips if clip["split"] != "test"], folder)
    if final:
        bundle, name = load_bundle(None), "natural MELD clips"
        turns = tuple(Utterance(c["text"], label_index(c["emotion"]), audio=folder / c["file"]) for c in tests)
        data = {name: digest([Dialogue(name, "test", turns)])}
        rows += ledger.score_once(bundle.manifest["name"], bundle.model_key, data,
                                  lambda _: {name: predict_clips(tests, folder)})[name]  # fmt: skip
    correct = {use: sum(str(row[3 + i]).split()[0] == row[2] for row in rows) for i, use in enumerate(USES)}
    text = f"Correct of {len(rows)}: " + ", ".join(f"{use} {count}" for use, count in correct.items()) + "."
    return Section("natural", "Natural clips", ("split", "transcript", "label", *USES), rows, text,
                   {use: single_value(count) for use, count in correct.items()}, "clips", "higher")  # fmt: skip


def main(
    final: Annotated[bool, typer.Option("--final", help="also clips of test, through the ledger")] = False,
    save: Save = False,
    as_json: AsJson = False,
) -> int:
    report = Report("hbaf-edge: natural speech", {})
    sections = [("natural clips", partial(natural, data_folder() / "meld_clips", final))]
    return measure_and_report("natural", report, sections, save, as_json=as_json)


if __name__ == "__main__":
    run(main, __doc__)
