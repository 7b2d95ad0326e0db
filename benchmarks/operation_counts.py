"""Count the operations and bytes of a turn, and measure how fast this machine multiplies matrices.

Counts come from ONNX Runtime's profile, with the shapes of real tensors and after its graph fusions. Matrix products
and convolutions count, with two operations for each multiply-add. An operation is INT8 if an integer operator ran it.
"""

from __future__ import annotations

import json
import tempfile
from collections.abc import Callable
from math import prod
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from benchmarks.internals import graph_inputs
from hbaf_edge.backends.settings import bundle_options, session_options
from hbaf_edge.bench.series import time_ms
from hbaf_edge.bundle import GRAPHS, Bundle
from hbaf_edge.ort import onnxruntime as ort

INTEGER_PRODUCTS = ("MatMulIntegerToFloat", "MatMulInteger", "DynamicQuantizeMatMul", "QLinearMatMul", "QGemm")
FLOAT_PRODUCTS = ("MatMul", "FusedMatMul", "Gemm", "FusedGemm", "GemmFastGelu")
CONVOLUTIONS = ("Conv", "FusedConv", "NhwcFusedConv")
Shape = list[int]


class Count(NamedTuple):
    """Counts of one stage.

    Attributes:
        integer: INT8 operations.
        floating: float32 operations.
        weights: bytes of the weights that every turn reads.
        nodes: operators that run.
    """

    integer: int
    floating: int
    weights: int
    nodes: int


def operations(name: str, inputs: list[Shape], output: Shape) -> tuple[int, int]:
    """Return the INT8 and the float32 operations of one operator, computed from its shapes.

    >>> operations("MatMul", [[2, 3, 4], [4, 5]], [2, 3, 5]), operations("Add", [[2], [2]], [2])
    ((0, 240), (0, 0))
    >>> operations("Conv", [[1, 80, 300], [384, 80, 3]], [1, 384, 300])
    (0, 55296000)
    >>> operations("MultiHeadAttention", [[1, 7, 64], [1, 9, 64], [1, 9, 64]], [1, 7, 64])
    (0, 16128)
    """
    if name in INTEGER_PRODUCTS:
        return 2 * prod(output) * inputs[0][-1], 0
    if name in FLOAT_PRODUCTS:
        return 0, 2 * prod(output) * inputs[0][-1]
    if name in CONVOLUTIONS:
        return 0, 2 * prod(output) * prod(inputs[1][1:])
    if name == "MultiHeadAttention":  # queries times keys, then attention weights times values
        return 0, 4 * prod(output) * inputs[1][1]
    return 0, 0


def profile(bundle: Bundle, graph: str, inputs: dict[str, Any]) -> list[dict[str, Any]]:
    """Return the operators that ONNX Runtime ran on one thread, with names and shapes."""
    options = bundle_options(bundle, threads=1)
    options.enable_profiling = True
    with tempfile.TemporaryDirectory() as folder:
        options.profile_file_prefix = str(Path(folder) / "profile")
        session = ort.InferenceSession(bundle.graph(graph), options, providers=["CPUExecutionProvider"])
        session.run(None, inputs)
        events = json.loads(Path(session.end_profiling()).read_text())
    return [e["args"] for e in events if e.get("cat") == "Node" and e["name"].endswith("_kernel_time")]


def count(bundle: Bundle) -> dict[str, Count]:
    """Count each graph for turn 33 of a conversation, with 3 s of audio and twelve words."""
    feeds, counts = graph_inputs(bundle), {}
    for graph in GRAPHS:
        nodes = profile(bundle, graph, feeds[graph])
        sums = [operations(n["op_name"], _shapes(n["input_type_shape"]), _shapes(n["output_type_shape"])[0])
                for n in nodes]  # fmt: skip
        integer, floating = (sum(column) for column in zip(*sums))
        counts[graph] = Count(integer, floating, weight_bytes(bundle.graph(graph)), len(nodes))
    return counts


def stored_nodes(graph: bytes) -> int:
    """Return the number of operators in the file; a model-local function counts as the operators in its body.

    DequantizeLinear of weights does not count, because ONNX Runtime folds it on load.
    """
    import onnx

    model = onnx.load_from_string(graph)
    lengths = {(f.domain, f.name): len(f.node) for f in model.functions}
    return sum(lengths.get((n.domain, n.op_type), 1) for n in model.graph.node if n.op_type != "DequantizeLinear")


def weight_bytes(graph: bytes) -> int:
    """Return the bytes of the weights that every turn reads: all weights except embedding tables (Gather)."""
    import onnx

    model = onnx.load_from_string(graph)
    tables = {n.input[0] for n in model.graph.node if n.op_type == "Gather"}
    # An INT8 table is dequantized either before or after its rows are gathered.
    tables |= {n.input[0] for n in model.graph.node if n.op_type == "DequantizeLinear" and n.output[0] in tables}
    return sum(len(w.raw_data) for w in model.graph.initializer if w.name not in tables)


def _shapes(typed_shapes: list[dict[str, Shape]]) -> list[Shape]:
    """Drop the types: `[{"float": [1, 2]}]` -> `[[1, 2]]`."""
    return [shape for entry in typed_shapes for shape in entry.values()] or [[]]


def matmul_rate(is_int8: bool, threads: int, rows: int = 512, inner: int = 1024) -> Callable[[], float]:
    """Return a function that runs one large matrix product and returns its operations per second.

    Args:
        is_int8: quantize as the default model does: activations at run time, weights per channel.
        threads: CPU threads.
        rows: rows of the left matrix.
        inner: columns of the left matrix, and both sides of the right one.
    """
    from onnx import TensorProto, helper, numpy_helper

    rng = np.random.default_rng(0)
    if is_int8:
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
    options = session_options(threads, is_int8, reduce_range=True)
    session = ort.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
    x = rng.standard_normal((rows, inner)).astype(np.float32)

    def measure_rate() -> float:
        return 2 * rows * inner * inner / time_ms(lambda: session.run(None, {"x": x})) * 1e3

    measure_rate()  # warm-up
    return measure_rate
