"""Does it matter to calibrate on conversations rather than on single utterances? Deep in a conversation, by how much?

    python -m benchmarks.calibration runs/default/release/float32 --save     # needs the model's corpora

The same turns calibrate twice: as conversations, and each by itself. Then held-out conversations are run, and only
turns with 32 and more turns before them are looked at: how much of each tensor's values the ranges cut off, how far
the ranges are from what was reached there, and how many labels INT8 flips. The last line is JSON.
"""

from __future__ import annotations

import argparse
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from benchmarks.report import finish, show
from export.calibrate import Calibration, activations, all_linears, calibrate, talk
from export.compare import drift
from export.conversations import conversations, counts, singles
from export.histogram import Histogram
from export.int8 import quantised
from export.qdq import Recipe
from export.watch import watched
from hbaf_edge import HBAFRuntime, Prediction
from hbaf_edge.bundle import GRAPHS, Bundle, load_bundle
from hbaf_edge.machine import machine
from training.corpora.records import Dialogue

DEPTH = 32


def seen_deep(bundle: Bundle, dialogues: Sequence[Dialogue]) -> dict[str, Histogram]:
    """What every tensor was, from turn 33 on."""
    wanted = activations(all_linears(bundle))
    found = {f"{graph}/{name}": Histogram() for graph in GRAPHS for name in wanted[graph]}
    chats: list[Any] = []

    def see(graph: str, tensors: dict[str, NDArray[Any]]) -> None:
        if chats and chats[0].turn >= DEPTH:
            for name, value in tensors.items():
                found[f"{graph}/{name}"].add(value)

    with watched(bundle, wanted, see, threads=2) as runtime:
        made = runtime.conversation

        def conversation() -> Any:
            chats[:] = [made()]
            return chats[0]

        runtime.conversation = conversation  # type: ignore[method-assign]
        for dialogue in dialogues:
            talk(runtime, dialogue)
    return {key: histogram for key, histogram in found.items() if histogram.count}


def deep(path: str | Path, dialogues: Sequence[Dialogue]) -> list[Prediction]:
    """A bundle's predictions from turn 33 on."""
    with HBAFRuntime(path, threads=2) as runtime:
        return [p for d in dialogues for p in talk(runtime, d) if p.turn >= DEPTH]


def judge(
    bundle: Bundle, calibration: Calibration, dialogues: Sequence[Dialogue], seen: dict[str, Histogram],
    reference: Sequence[Prediction],
) -> dict[str, Any]:  # fmt: skip
    """One calibration, by graph: share cut off and error of the range; and what INT8 from it does."""
    ranges = calibration.ranges["minmax"]
    by_graph: dict[str, list[tuple[float, float]]] = {}
    for key, histogram in seen.items():
        low, high = ranges[key]
        reach, there = max(-low, high), max(-histogram.low, histogram.high)
        by_graph.setdefault(key.split("/")[0], []).append((histogram.outside(low, high), abs(reach - there) / there))
    with tempfile.TemporaryDirectory() as folder:
        out = quantised(bundle, calibration, Recipe(method="minmax"), Path(folder) / "int8")
        moved = drift(deep(out, dialogues), reference)
    return {
        "cut_off": {graph: float(np.mean([c for c, _ in values])) for graph, values in by_graph.items()},
        "cut_off_worst": {graph: max(c for c, _ in values) for graph, values in by_graph.items()},
        "range_error": {graph: float(np.mean([e for _, e in values])) for graph, values in by_graph.items()},
        **moved,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("bundle", type=Path, help="float32")
    parser.add_argument("--turns", type=int, default=1000)
    parser.add_argument("--on", help="corpus in place of the bundle's own")
    parser.add_argument("--save", action="store_true")
    given = parser.parse_args()
    bundle = load_bundle(given.bundle)
    train = conversations(bundle.manifest, "train", given.turns, given.on)
    held = [d for d in conversations(bundle.manifest, "dev", 4 * given.turns, given.on, 1) if len(d.turns) > DEPTH]
    if not held:
        raise SystemExit(f"no held-out conversation has more than {DEPTH} turns")
    seen, reference = seen_deep(bundle, held), deep(bundle.path, held)
    found = {}
    with tempfile.TemporaryDirectory() as folder:
        for name, talks in (("conversations", train), ("single utterances", singles(train))):
            calibration = calibrate(bundle, talks, Path(folder) / f"{name}.json")
            found[name] = judge(bundle, calibration, held, seen, reference)
    rows = [
        (name, *(f"{f['cut_off_worst'][g]:.1e}  {f['range_error'][g]:.1%}" for g in ("utterance", "dialogue")),
         f"{f['flip_rate']:.2%}", f"{f['kl_divergence']:.5f}")
        for name, f in found.items()
    ]  # fmt: skip
    head = ("calibrated on", "utterance: cut off, range error", "dialogue: the same", "labels flipped", "KL divergence")
    show(f"from turn {DEPTH + 1} on, {len(reference)} held-out turns", rows, head)
    data = {"calibration": counts(train), "held_out": counts(held), "deep_turns": len(reference)}
    finish("calibration", {"machine": machine(), "data": data, **found}, given.save)


if __name__ == "__main__":
    main()
