"""A runtime whose graphs show their inner tensors: what calibration and per-layer comparison look at."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any

import onnx
from numpy.typing import NDArray

from hbaf_edge import HBAFRuntime
from hbaf_edge.bundle import Bundle

See = Callable[[str, dict[str, NDArray[Any]]], None]


def watched(bundle: Bundle, tensors: Mapping[str, Sequence[str]], see: See, threads: int = 1) -> HBAFRuntime:
    """A runtime of the bundle, on the CPU, that shows tensors of its graphs as it runs.

    Args:
        bundle: verified.
        tensors: which, by graph.
        see: called after every run of a graph with its name and the tensors by name.
        threads: of each operator.
    """
    files = dict(bundle.files)
    for graph, names in tensors.items():
        model = onnx.load_from_string(bundle.graph(graph))
        outputs = {output.name for output in model.graph.output}
        model.graph.output.extend(onnx.ValueInfoProto(name=name) for name in names if name not in outputs)
        files[bundle.manifest["graphs"][graph]["file"]] = model.SerializeToString()
    runtime = HBAFRuntime(replace(bundle, files=files), threads=threads)

    def tap(graph: str, inputs: Mapping[str, NDArray[Any]], outputs: Mapping[str, NDArray[Any]]) -> None:
        if graph in tensors:
            see(graph, {name: ({**outputs, **inputs})[name] for name in tensors[graph]})

    runtime.engine.backend.set_tap(tap)
    return runtime
