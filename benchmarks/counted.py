"""Operations and bytes of a turn, counted from what ONNX Runtime runs; and the rates this machine multiplies at.

The count is read off ONNX Runtime's own profile, shapes of real tensors, after its fusions: multiplications of
matrices, and convolutions, two operations each; INT8 where the operator that ran is an integer one.
"""

from __future__ import annotations

import json
import tempfile
from collections.abc import Callable
from math import prod
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from benchmarks.insides import graph_inputs
from hbaf_edge.backends.settings import bundle_options, session_options
from hbaf_edge.bench.series import timed
from hbaf_edge.bundle import GRAPHS, Bundle
from hbaf_edge.ort import onnxruntime as ort

INTEGERS = ("MatMulIntegerToFloat", "MatMulInteger", "DynamicQuantizeMatMul", "QLinearMatMul", "QGemm")
FLOATS = ("MatMul", "FusedMatMul", "Gemm", "FusedGemm", "GemmFastGelu")
CONVOLUTIONS = ("Conv", "FusedConv", "NhwcFusedConv")
Shape = list[int]


class Count(NamedTuple):
    """Of a stage.

    Attributes:
        integer: operations on INT8.
        floating: operations on float32.
        weights: bytes of those that every turn reads.
        nodes: operators that run.
    """

    integer: int
    floating: int
    weights: int
    nodes: int


def operations(name: str, inputs: list[Shape], output: Shape) -> tuple[int, int]:
    """Operations on integers and on floats of one operator, by its shapes.

    >>> operations("MatMul", [[2, 3, 4], [4, 5]], [2, 3, 5]), operations("Add", [[2], [2]], [2])
    ((0, 240), (0, 0))
    >>> operations("Conv", [[1, 80, 300], [384, 80, 3]], [1, 384, 300])
    (0, 55296000)
    >>> operations("MultiHeadAttention", [[1, 7, 64], [1, 9, 64], [1, 9, 64]], [1, 7, 64])
    (0, 16128)
    """
    if name in INTEGERS:
        return 2 * prod(output) * inputs[0][-1], 0
    if name in FLOATS:
        return 0, 2 * prod(output) * inputs[0][-1]
    if name in CONVOLUTIONS:
        return 0, 2 * prod(output) * prod(inputs[1][1:])
    if name == "MultiHeadAttention":  # queries by keys, and what comes of that by values
        return 0, 4 * prod(output) * inputs[1][1]
    return 0, 0


def profile(bundle: Bundle, graph: str, inputs: dict[str, Any]) -> list[dict[str, Any]]:
    """The operators that ONNX Runtime ran on one thread, with their names and shapes."""
    options = bundle_options(bundle, threads=1)
    options.enable_profiling = True
    with tempfile.TemporaryDirectory() as folder:
        options.profile_file_prefix = str(Path(folder) / "profile")
        session = ort.InferenceSession(bundle.graph(graph), options, providers=["CPUExecutionProvider"])
        session.run(None, inputs)
        events = json.loads(Path(session.end_profiling()).read_text())
    return [e["args"] for e in events if e.get("cat") == "Node" and e["name"].endswith("_kernel_time")]


def count(bundle: Bundle) -> dict[str, Count]:
    """Of each graph, for turn 33 of a conversation, 3 s and twelve words."""
    feeds, counts = graph_inputs(bundle), {}
    for graph in GRAPHS:
        nodes = profile(bundle, graph, feeds[graph])
        sums = [operations(n["op_name"], _shapes(n["input_type_shape"]), _shapes(n["output_type_shape"])[0])
                for n in nodes]  # fmt: skip
        integer, floating = (sum(column) for column in zip(*sums))
        counts[graph] = Count(integer, floating, weight_bytes(bundle.graph(graph)), len(nodes))
    return counts


def stored_nodes(graph: bytes) -> int:
    """Operators in the file; a model-local function counts as the operators it is made of.

    DequantizeLinear of weights is left out: it is folded on load.
    """
    import onnx

    model = onnx.load_from_string(graph)
    lengths = {(f.domain, f.name): len(f.node) for f in model.functions}
    return sum(lengths.get((n.domain, n.op_type), 1) for n in model.graph.node if n.op_type != "DequantizeLinear")


def weight_bytes(graph: bytes) -> int:
    """Bytes of the weights that every turn reads: all but tables of which rows are gathered."""
    import onnx

    model = onnx.load_from_string(graph)
    tables = {n.input[0] for n in model.graph.node if n.op_type == "Gather"}
    # A table in INT8 is multiplied out before, or after, its rows are gathered.
    tables |= {n.input[0] for n in model.graph.node if n.op_type == "DequantizeLinear" and n.output[0] in tables}
    return sum(len(w.raw_data) for w in model.graph.initializer if w.name not in tables)


def _shapes(typed: list[dict[str, Shape]]) -> list[Shape]:
    """`[{"float": [1, 2]}]` -> `[[1, 2]]`."""
    return [shape for each in typed for shape in each.values()] or [[]]


def multiplier(integers: bool, threads: int, rows: int = 512, inner: int = 1024) -> Callable[[], float]:
    """Measures how fast a large product is: returns operations per second of one run.

    With `integers`, as the default model has its own: activations quantised on the way in, weights INT8 per channel.
    """
    from onnx import TensorProto, helper, numpy_helper

    rng = np.random.default_rng(0)
    if integers:
        constants = {
            "scale": np.float32(0.02), "zero": np.uint8(128), "stored": rng.integers(-63, 64, (inner, inner), np.int8),
            "scales": np.full(inner, 0.01, np.float32), "zeros": np.zeros(inner, np.int8),
        }  # fmt: skip
        nodes = [
            helper.make_node("QuantizeLinear", ["x", "scale", "zero"], ["q"]),
            helper.make_node("DequantizeLinear", ["q", "scale", "zero"], ["dq"]),
            helper.make_node("DequantizeLinear", ["stored", "scales", "zeros"], ["w"], axis=1),
            helper.make_node("MatMul", ["dq", "w"], ["y"]),
        ]
    else:
        constants = {"w": rng.standard_normal((inner, inner)).astype(np.float32)}
        nodes = [helper.make_node("MatMul", ["x", "w"], ["y"])]
    graph = helper.make_graph(
        nodes, "product", [helper.make_tensor_value_info("x", TensorProto.FLOAT, [rows, inner])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, [rows, inner])],
        [numpy_helper.from_array(np.asarray(value), name) for name, value in constants.items()],
    )  # fmt: skip
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)
    options = session_options(threads, integers, narrow=True)
    session = ort.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
    x = rng.standard_normal((rows, inner)).astype(np.float32)

    def once() -> float:
        return 2 * rows * inner * inner / timed(lambda: session.run(None, {"x": x})) * 1e3

    once()
    return once
