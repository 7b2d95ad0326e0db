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

from benchmarks.graphs import kept_feeds
from hbaf_edge.backend import options_of, session_options
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


def profiled(session: Callable[[ort.SessionOptions], ort.InferenceSession], options: ort.SessionOptions,
             feeds: dict[str, Any]) -> list[dict[str, Any]]:  # fmt: skip
    """Events of the operators of one run."""
    options.enable_profiling = True
    with tempfile.TemporaryDirectory() as folder:
        options.profile_file_prefix = str(Path(folder) / "profile")
        made = session(options)
        made.run(None, feeds)
        events = json.loads(Path(made.end_profiling()).read_text())
    return [e["args"] for e in events if e.get("cat") == "Node" and e["name"].endswith("_kernel_time")]


def count(bundle: Bundle) -> dict[str, Count]:
    """Of each graph, for turn 33 of a conversation, 3 s and twelve words."""
    feeds, found = kept_feeds(bundle), {}
    for graph in GRAPHS:
        content = bundle.graph(graph)

        def session(options: ort.SessionOptions, content: bytes = content) -> ort.InferenceSession:
            return ort.InferenceSession(content, options, providers=["CPUExecutionProvider"])

        nodes = profiled(session, options_of(bundle, 1), feeds[graph])
        sums = [operations(n["op_name"], _shapes(n["input_type_shape"]), _shapes(n["output_type_shape"])[0])
                for n in nodes]  # fmt: skip
        found[graph] = Count(sum(i for i, _ in sums), sum(f for _, f in sums), _weights(content), len(nodes))
    return found


def _weights(graph: bytes) -> int:
    """Bytes of the weights that every turn reads: all but tables of which rows are gathered."""
    import onnx

    model = onnx.load_from_string(graph)
    tables = {n.input[0] for n in model.graph.node if n.op_type == "Gather"}
    # A table in INT8 is multiplied out before, or after, its rows are gathered.
    tables |= {n.input[0] for n in model.graph.node if n.op_type == "DequantizeLinear" and n.output[0] in tables}
    return sum(len(w.raw_data) for w in model.graph.initializer if w.name not in tables)


def _shapes(told: list[dict[str, Shape]]) -> list[Shape]:
    """`[{"float": [1, 2]}]` -> `[[1, 2]]`."""
    return [shape for each in told for shape in each.values()] or [[]]


def multiplier(integers: bool, threads: int, rows: int = 512, inner: int = 1024) -> Callable[[], float]:
    """Measures how fast a large product is: returns operations per second of one run.

    With `integers`, as the default model has its own: activations quantised on the way in, weights INT8 per channel.
    """
    from onnx import TensorProto, helper, numpy_helper

    rng = np.random.default_rng(0)
    names = ["x", "w"]
    nodes, kept = [], []
    if integers:
        weights = rng.integers(-63, 64, (inner, inner)).astype(np.int8)
        kept = [
            numpy_helper.from_array(np.float32(0.02), "scale"), numpy_helper.from_array(np.uint8(128), "zero"),
            numpy_helper.from_array(weights, "stored"),
            numpy_helper.from_array(np.full(inner, 0.01, np.float32), "scales"),
            numpy_helper.from_array(np.zeros(inner, np.int8), "zeros"),
        ]  # fmt: skip
        nodes = [
            helper.make_node("QuantizeLinear", ["x", "scale", "zero"], ["q"]),
            helper.make_node("DequantizeLinear", ["q", "scale", "zero"], ["dq"]),
            helper.make_node("DequantizeLinear", ["stored", "scales", "zeros"], ["w"], axis=1),
        ]
        names[0] = "dq"
    else:
        kept = [numpy_helper.from_array(rng.standard_normal((inner, inner)).astype(np.float32), "w")]
    nodes.append(helper.make_node("MatMul", names, ["y"]))
    graph = helper.make_graph(
        nodes, "product", [helper.make_tensor_value_info("x", TensorProto.FLOAT, [rows, inner])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, [rows, inner])], kept,
    )  # fmt: skip
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)
    options = session_options(threads, integers, narrow=True)
    session = ort.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
    x = rng.standard_normal((rows, inner)).astype(np.float32)

    def once() -> float:
        return 2 * rows * inner * inner / timed(lambda: session.run(None, {"x": x})) * 1e3

    once()
    return once
