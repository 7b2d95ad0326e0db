"""How much of the encoders' uneven scale should go into the weights? INT8 against float32 on dev, one row a strength.

    python -m benchmarks.migration FLOAT32 --calibration FILE --save     # a bundle; needs the corpora of its model

Strength 0 leaves all scale in the activations (export/migrate.py). The default was chosen by this table: the flips and
the divergence decide, since weighted F1 moves by chance more than it differs.
"""

from __future__ import annotations

from dataclasses import asdict, replace
from functools import partial
from pathlib import Path
from typing import Annotated, Any

import typer

from benchmarks.report import Save, Threads, conclude, run
from export.calibrate import Calibration, load
from export.conversations import conversations, counts
from export.qdq import Recipe
from export.quantize import HELD
from export.sensitivity import Cost, Held
from hbaf_edge import InputError
from hbaf_edge.bench.document import Cell, Report, Section
from hbaf_edge.bench.series import single
from hbaf_edge.bundle import load_bundle

STRENGTHS = (0.0, 0.5, 0.75, 0.8, 0.85, 0.9)


def section(evaluator: Held, calibration: Calibration, recipe: Recipe) -> Section:
    """A row for each strength."""
    costs: list[Cost] = []
    for strength in STRENGTHS:
        costs.append(evaluator.cost(calibration, replace(recipe, migration=strength), f"{strength:g}"))
        print(asdict(costs[-1]), flush=True)
    rows: list[list[Cell]] = [[*asdict(cost).values()] for cost in costs]
    head = ("strength", "weighted F1 lost", "labels flipped", "KL divergence", "cosine", "SNR, dB")
    measures: dict[str, Any] = {f"{c.block}, KL divergence": single(c.kl_divergence) for c in costs}
    return Section("migration", "Scale moved into the weights", head, rows, "", measures, "")


def main(
    bundle: Annotated[Path, typer.Argument(help="float32")],
    calibration: Annotated[Path, typer.Option(help="of export.calibrate")],
    corpus: Annotated[str | None, typer.Option("--on", help="corpus in place of the bundle's own")] = None,
    turns: Annotated[int, typer.Option(help="held-out turns")] = HELD,
    threads: Threads = 2,
    save: Save = False,
) -> int:
    loaded = load_bundle(bundle)
    dialogues = conversations(loaded.manifest, "dev", turns, corpus, seed=1)
    if not counts(dialogues)["labelled"]:
        raise InputError("the dev split has no labelled turn; weighted F1 cannot be measured on it")
    report = Report("hbaf-edge: scale migration", {"held_out": counts(dialogues), "threads": threads})
    evaluator = Held(loaded, dialogues, threads)
    work = partial(section, evaluator, load(calibration, loaded), Recipe())
    return conclude("migration", report, [("scale migration", work)], save)


if __name__ == "__main__":
    run(main, __doc__)
