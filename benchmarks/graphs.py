"""How many operators a turn takes and where its time goes, for one bundle or several: ONNX Runtime's own profile.

    OMP_WAIT_POLICY=PASSIVE python -m benchmarks.graphs                   # the default model
    OMP_WAIT_POLICY=PASSIVE python -m benchmarks.graphs OLD NEW --save    # bundles beside each other

Inputs are those of turn 33 of a conversation, 3 s and 12 words, kept from a real predict. Nodes are counted in the
file, without the unpacking of weights, and as ONNX Runtime runs them after its own fusions. Each graph is also timed
with its inputs and outputs bound beforehand (IO binding) beside arrays that are passed: what copies would cost.
"""

from __future__ import annotations

import argparse
import json
import tempfile
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from benchmarks.incremental import WINDOW, alternately, talked, timed
from benchmarks.report import finish, show
from hbaf_edge import HBAFRuntime
from hbaf_edge.backend import Backend, options_of
from hbaf_edge.bench.speech import RATE, WORDS, sound
from hbaf_edge.bundle import DEFAULT, GRAPHS, Bundle, load_bundle
from hbaf_edge.machine import machine
from hbaf_edge.ort import onnxruntime as ort

Feeds = dict[str, dict[str, NDArray[Any]]]
UNPACKING = {"DequantizeLinear"}  # of weights: folded on load


def kept_feeds(bundle: Bundle) -> Feeds:
    """What each graph is given in turn 33."""
    found: Feeds = {}
    with HBAFRuntime(bundle.path, threads=1) as runtime:
        backend, chat = runtime._ready().backend, talked(runtime, WINDOW)
        assert isinstance(backend, Backend)
        run = backend._run

        def keeping(graph: str, **inputs: NDArray[Any]) -> list[NDArray[Any]]:
            found[graph] = {name: array.copy() for name, array in inputs.items()}
            return run(graph, **inputs)

        backend._run = keeping  # type: ignore[method-assign]
        runtime.predict(sound(3.0), text=WORDS, speaker="a", conversation=chat, sample_rate=RATE)
    return found


def stored_nodes(graph: bytes) -> int:
    """Operators in the file; a model-local function counts as the operators it is made of."""
    import onnx

    model = onnx.load_from_string(graph)
    inside = {(f.domain, f.name): len(f.node) for f in model.functions}
    return sum(inside.get((n.domain, n.op_type), 1) for n in model.graph.node if n.op_type not in UNPACKING)


def profile(bundle: Bundle, graph: bytes, feeds: dict[str, NDArray[Any]], repeats: int) -> dict[str, Any]:
    """Operators that ran in one step, and microseconds of each kind, medians over the repeats."""
    options = options_of(bundle, threads=1)
    options.enable_profiling = True
    with tempfile.TemporaryDirectory() as folder:
        options.profile_file_prefix = str(Path(folder) / "profile")
        session = ort.InferenceSession(graph, options, providers=["CPUExecutionProvider"])
        for _ in range(repeats):
            session.run(None, feeds)
        events = json.loads(Path(session.end_profiling()).read_text())
    nodes = [e for e in events if e.get("cat") == "Node" and e["name"].endswith("_kernel_time")]
    spent: dict[str, list[float]] = {}
    for event in nodes:
        spent.setdefault(event["args"]["op_name"], []).append(event["dur"])
    kinds = Counter({kind: round(float(np.median(d)) * len(d) / repeats, 1) for kind, d in spent.items()})
    return {"nodes": len(nodes) // repeats, "microseconds": dict(kinds.most_common(8))}


def passed_or_bound(bundle: Bundle, graph: bytes, feeds: dict[str, NDArray[Any]], repeats: int) -> dict[str, Any]:
    """Milliseconds of one step, arrays passed and arrays bound beforehand, by turns."""
    session = ort.InferenceSession(graph, options_of(bundle, threads=1), providers=["CPUExecutionProvider"])
    binding = session.io_binding()
    for name, array in feeds.items():
        binding.bind_ortvalue_input(name, ort.OrtValue.ortvalue_from_numpy(array))
    for output, value in zip(session.get_outputs(), session.run(None, feeds)):
        binding.bind_ortvalue_output(output.name, ort.OrtValue.ortvalue_from_numpy(value))
    passed, bound = alternately(
        repeats,
        lambda: timed(lambda: session.run(None, feeds)),
        lambda: timed(lambda: session.run_with_iobinding(binding)),
    )
    return {"passed_ms": passed, "bound_ms": bound}


def measure(path: Path, repeats: int) -> dict[str, Any]:
    """Every graph of one bundle."""
    bundle = load_bundle(path)
    feeds = kept_feeds(bundle)
    return {
        name: {
            "stored_nodes": stored_nodes(bundle.graph(name)),
            **profile(bundle, bundle.graph(name), feeds[name], repeats),
            **passed_or_bound(bundle, bundle.graph(name), feeds[name], repeats),
        }
        for name in GRAPHS
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("bundles", type=Path, nargs="*", default=[DEFAULT])
    parser.add_argument("--repeats", type=int, default=101)
    parser.add_argument("--save", action="store_true")
    given = parser.parse_args()
    if len({path.name for path in given.bundles}) < len(given.bundles):
        parser.error("bundles are told apart by the names of their folders; two are alike")
    found = {path.name: measure(path, given.repeats) for path in given.bundles}
    head = ("graph", "nodes in the file", "nodes that run", "passed, ms", "bound, ms", "most time, µs")
    for name, graphs in found.items():
        show(name, [_row(graph, values) for graph, values in graphs.items()], head)
    finish("graphs", {"machine": machine(), "threads": 1, "bundles": found}, given.save)


def _row(graph: str, values: dict[str, Any]) -> tuple[str, ...]:
    most = ", ".join(f"{kind} {spent:.0f}" for kind, spent in list(values["microseconds"].items())[:3])
    times = (f"{values[key]['p50']:.2f}" for key in ("passed_ms", "bound_ms"))
    return graph, str(values["stored_nodes"]), str(values["nodes"]), *times, most


if __name__ == "__main__":
    main()
