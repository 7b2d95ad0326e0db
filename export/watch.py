"""A runtime whose graphs show their inner tensors: what calibration and per-layer comparison look at."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import onnx
from numpy.typing import NDArray

from hbaf_edge import HBAFRuntime
from hbaf_edge.backend import Backend, options_of
from hbaf_edge.bundle import Bundle
from hbaf_edge.ort import onnxruntime as ort

See = Callable[[str, dict[str, NDArray[Any]]], None]


def watched(bundle: Bundle, tensors: Mapping[str, Sequence[str]], see: See, threads: int = 1) -> HBAFRuntime:
    """A runtime of the bundle, on the CPU, that shows tensors of its graphs as it runs.

    Args:
        bundle: verified.
        tensors: which, by graph.
        see: called after every run of a graph with its name and the tensors by name.
        threads: of each operator.
    """
    runtime = HBAFRuntime(bundle.path, threads=threads)
    backend = runtime._ready().backend
    sessions, outputs = {}, {}
    for graph in tensors:
        model = onnx.load_from_string(bundle.graph(graph))
        outputs[graph] = [o.name for o in model.graph.output]
        shown = [name for name in tensors[graph] if name not in outputs[graph]]
        model.graph.output.extend(onnx.ValueInfoProto(name=name) for name in shown)
        sessions[graph] = ort.InferenceSession(
            model.SerializeToString(), options_of(bundle, threads), providers=["CPUExecutionProvider"]
        )
    assert isinstance(backend, Backend)
    run = backend._run

    def running(graph: str, **inputs: NDArray[Any]) -> list[NDArray[Any]]:
        if graph not in sessions:
            return run(graph, **inputs)
        names = [o.name for o in sessions[graph].get_outputs()]
        found = dict(zip(names, sessions[graph].run(names, inputs)))
        see(graph, {name: ({**found, **inputs})[name] for name in tensors[graph]})
        return [found[name] for name in outputs[graph]]

    backend._run = running  # type: ignore[method-assign]
    return runtime
