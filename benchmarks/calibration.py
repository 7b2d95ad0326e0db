"""Does it matter to calibrate on conversations rather than on single utterances? Deep in a conversation, by how much?

    python -m benchmarks.calibration runs/default/release/float32 --save     # needs the model's corpora

The same turns calibrate twice: as conversations, and each by itself. Then held-out conversations are run, and only
turns with 32 and more turns before them are looked at: how much of each tensor's values the ranges cut off, how far
the ranges are from what was reached there, and how many labels INT8 flips.
"""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import typer
from numpy.typing import NDArray

from benchmarks.report import Save, conclude, run
from export.calibrate import Calibration, activations, all_linears, calibrate, talk
from export.compare import drift
from export.conversations import conversations, counts, singles
from export.histogram import Histogram
from export.int8 import quantised
from export.qdq import Recipe
from export.watch import watched
from hbaf_edge import HBAFRuntime, InputError, Prediction
from hbaf_edge.bench.document import Cell, Report, Section
from hbaf_edge.bench.series import rounded, single
from hbaf_edge.bundle import GRAPHS, Bundle, load_bundle
from training.corpora.records import Dialogue

DEPTH = 32


def deep_histograms(bundle: Bundle, dialogues: Sequence[Dialogue]) -> dict[str, Histogram]:
    """What every tensor was, from turn 33 on."""
    wanted = activations(all_linears(bundle))
    histograms = {f"{graph}/{name}": Histogram() for graph in GRAPHS for name in wanted[graph]}
    turn = 0

    def see(graph: str, tensors: dict[str, NDArray[Any]]) -> None:
        nonlocal turn
        if turn >= DEPTH:
            for name, value in tensors.items():
                histograms[f"{graph}/{name}"].add(value)
        turn += graph == "dialogue"  # a turn's last graph

    with watched(bundle, wanted, see, threads=2) as runtime:
        for dialogue in dialogues:
            turn = 0
            talk(runtime, dialogue)
    return {key: histogram for key, histogram in histograms.items() if histogram.count}


def deep_predictions(path: str | Path, dialogues: Sequence[Dialogue]) -> list[Prediction]:
    """A bundle's predictions from turn 33 on."""
    with HBAFRuntime(path, threads=2) as runtime:
        return [p for d in dialogues for p in talk(runtime, d) if p.turn >= DEPTH]


def range_rows(calibration: Calibration, seen: dict[str, Histogram]) -> list[list[Cell]]:
    """By graph: the share of values that the ranges cut off, mean and worst, and how far the ranges are off in %."""
    ranges = calibration.ranges["minmax"]
    by_graph: dict[str, list[tuple[float, float]]] = {}
    for key, histogram in seen.items():
        low, high = ranges[key]
        calibrated, reached = max(-low, high), max(-histogram.low, histogram.high)
        error = 100 * abs(calibrated - reached) / reached
        by_graph.setdefault(key.split("/")[0], []).append((histogram.outside(low, high), error))
    rows: list[list[Cell]] = []
    for graph, pairs in by_graph.items():
        cut_off, errors = zip(*pairs)
        rows.append([graph, float(np.mean(cut_off)), max(cut_off), float(np.mean(errors))])
    return rows


def sections(bundle: Bundle, train: Sequence[Dialogue], held_out: Sequence[Dialogue]) -> list[Section]:
    """Calibration on conversations beside calibration on single utterances: their ranges, and what INT8 changes."""
    seen, reference = deep_histograms(bundle, held_out), deep_predictions(bundle.path, held_out)
    ranges: list[list[Cell]] = []
    changes: dict[str, dict[str, float]] = {}
    with tempfile.TemporaryDirectory() as folder:
        for name, dialogues in (("conversations", train), ("single utterances", singles(train))):
            calibration = calibrate(bundle, dialogues, Path(folder) / f"{name}.json")
            ranges += [[name, *row] for row in range_rows(calibration, seen)]
            out = quantised(bundle, calibration, Recipe(method="minmax"), Path(folder) / name)
            changes[name] = drift(deep_predictions(out, held_out), reference)
    text = f"From turn {DEPTH + 1} on, {len(reference)} held-out turns."
    measures = {f"{name}, {key}": single(value) for name, found in changes.items() for key, value in found.items()}
    columns = tuple(key.replace("_", " ") for key in changes["conversations"])
    return [
        Section("ranges", "Ranges", ("calibrated on", "graph", "cut off", "at worst", "range error, %"), ranges, text),
        Section("calibration", "INT8 against float32", ("calibrated on", *columns),
                [[name, *map(rounded, values.values())] for name, values in changes.items()], text, measures, ""),
    ]  # fmt: skip


def main(
    bundle: Annotated[Path, typer.Argument(help="float32")],
    turns: Annotated[int, typer.Option(help="that calibrate; four times as many are held out")] = 1000,
    corpus: Annotated[str | None, typer.Option("--on", help="corpus in place of the bundle's own")] = None,
    save: Save = False,
) -> int:
    loaded = load_bundle(bundle)
    train = conversations(loaded.manifest, "train", turns, corpus)
    held_out = [d for d in conversations(loaded.manifest, "dev", 4 * turns, corpus, 1) if len(d.turns) > DEPTH]
    if not held_out:
        raise InputError(f"no held-out conversation has more than {DEPTH} turns; give --turns {2 * turns}")
    report = Report("hbaf-edge: calibration", {"calibration": counts(train), "held_out": counts(held_out)})
    return conclude("calibration", report, [("calibration", partial(sections, loaded, train, held_out))], save)


if __name__ == "__main__":
    run(main, __doc__)
