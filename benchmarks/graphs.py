"""How many operators a turn takes and where its time goes, for one bundle or several: ONNX Runtime's own profile.

    OMP_WAIT_POLICY=PASSIVE python -m benchmarks.graphs                   # the default model
    OMP_WAIT_POLICY=PASSIVE python -m benchmarks.graphs OLD NEW --save    # bundles beside each other

Inputs are those of turn 33 of a conversation, 3 s and 12 words, recorded from a real predict. Nodes are counted in the
file, without the unpacking of weights, and as ONNX Runtime runs them after its own fusions. Each graph is also timed
with its inputs and outputs bound beforehand (IO binding) beside arrays that are passed: what copies would cost.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import typer
from numpy.typing import NDArray

from benchmarks.counted import profile, stored_nodes
from benchmarks.insides import graph_inputs
from benchmarks.report import Repeats, Save, conclude, run
from hbaf_edge.backends.settings import bundle_options
from hbaf_edge.bench.document import Cell, Report, Section
from hbaf_edge.bench.series import Series, in_turn, rounded, timed
from hbaf_edge.bundle import DEFAULT, GRAPHS, Bundle, load_bundle
from hbaf_edge.errors import InputError
from hbaf_edge.ort import onnxruntime as ort

SLOWEST = 3  # kinds of operators that are named
HEAD = ("graph", "nodes in the file", "nodes that run", "passed, ms", "bound, ms", "most time, µs")


def passed_or_bound(bundle: Bundle, graph: str, inputs: dict[str, NDArray[Any]], repeats: int) -> dict[str, Series]:
    """Milliseconds of one run with arrays that are passed, and with arrays bound beforehand; both are interleaved."""
    session = ort.InferenceSession(bundle.graph(graph), bundle_options(bundle, 1), providers=["CPUExecutionProvider"])
    binding = session.io_binding()
    for name, array in inputs.items():
        binding.bind_ortvalue_input(name, ort.OrtValue.ortvalue_from_numpy(array))
    for output, value in zip(session.get_outputs(), session.run(None, inputs)):
        binding.bind_ortvalue_output(output.name, ort.OrtValue.ortvalue_from_numpy(value))
    times = in_turn(repeats, {
        "passed": lambda: timed(lambda: session.run(None, inputs)),
        "bound": lambda: timed(lambda: session.run_with_iobinding(binding)),
    })  # fmt: skip
    return {name: Series.of(values) for name, values in times.items()}


def by_kind(events: list[dict[str, Any]], repeats: int) -> Counter[str]:
    """Microseconds of each kind of operator in one run: the median of its events, times how many there are."""
    durations: dict[str, list[float]] = {}
    for event in events:
        durations.setdefault(event["args"]["op_name"], []).append(event["dur"])
    return Counter({kind: round(float(np.median(us)) * len(us) / repeats) for kind, us in durations.items()})


def section(bundle: Bundle, name: str, repeats: int) -> Section:
    """Every graph of one bundle."""
    feeds, rows = graph_inputs(bundle), list[list[Cell]]()
    measures: dict[str, Mapping[str, Any]] = {}
    for graph in GRAPHS:
        events = profile(bundle, graph, feeds[graph], repeats)
        series = passed_or_bound(bundle, graph, feeds[graph], repeats)
        slowest = by_kind(events, repeats).most_common(SLOWEST)
        nodes = stored_nodes(bundle.graph(graph)), len(events) // repeats
        named = ", ".join(f"{kind} {us:,}" for kind, us in slowest)
        rows.append([graph, *nodes, *(rounded(s.p50) for s in series.values()), named])
        measures |= {f"{graph}, {way}": s.to_json() for way, s in series.items()}
    return Section("graphs", f"Graphs of {name}", HEAD, rows, "One thread.", measures)


def main(
    bundles: Annotated[list[Path] | None, typer.Argument(help="their folders; default: the built-in one")] = None,
    repeats: Repeats = 101,
    save: Save = False,
) -> int:
    paths = bundles or [DEFAULT]
    if len({path.name for path in paths}) < len(paths):
        raise InputError("bundles are told apart by the names of their folders; two are alike")
    work = [(path.name, partial(section, load_bundle(path), path.name, repeats)) for path in paths]
    return conclude("graphs", Report("hbaf-edge: graphs", {"threads": 1, "repeats": repeats}), work, save)


if __name__ == "__main__":
    run(main, __doc__)
