"""Float32 bundle -> FP16 bundle: casts are in the graph, so that every runtime computes the same.

    python -m export.half runs/mine/float32 --out runs/mine/float16

Inputs, outputs, norms, softmax and gates stay float32. For GPUs and their engines; a CPU gains nothing but size.
"""

from __future__ import annotations

import math
from pathlib import Path

import onnx
from onnx import ModelProto, TensorProto
from onnxruntime.transformers.float16 import convert_float_to_float16
from rich.console import Console

from export.calibrate import all_linears
from export.int8 import converted
from export.qdq import sort
from hbaf_edge.bundle import GRAPHS, Bundle, load_bundle
from kernels import gate
from training.command import cli

PRECISION = "float16"
LEAST_DB = 40.0
# What loses most in half precision; sums over many values above all.
FLOAT32_OPS = [
    gate.NAME,
    "LayerNormalization",
    "Softmax",
    "Sigmoid",
    "ReduceSum",
    "ReduceMean",
    "Pow",
    "Sqrt",
    "Einsum",
]


def to_half(bundle: Bundle, out: Path) -> Path:
    """An FP16 bundle of a float32 one, written whole or not at all.

    Raises:
        CalibrationError: the bundle's weights are not float32.
    """
    all_linears(bundle)
    return converted(bundle, out, lambda _, model: half(model), {"precision": PRECISION}, GRAPHS, LEAST_DB)


def half(model: ModelProto) -> ModelProto:
    """A graph with its weights and most of its arithmetic in half precision."""
    made: ModelProto = convert_float_to_float16(
        model, keep_io_types=True, op_block_list=FLOAT32_OPS, disable_shape_infer=False
    )
    placed = sort(list(made.graph.node))  # the converter appends its casts
    del made.graph.node[:]
    made.graph.node.extend(placed)
    onnx.checker.check_model(made)
    return made


def share(model: ModelProto) -> float:
    """Of a graph's weights, how many are half precision."""
    sizes = {TensorProto.FLOAT: 0, TensorProto.FLOAT16: 0}
    for tensor in model.graph.initializer:
        if tensor.data_type in sizes:
            sizes[tensor.data_type] += math.prod(tensor.dims)
    return sizes[TensorProto.FLOAT16] / max(sum(sizes.values()), 1)


def main(bundle: Path, /, out: Path) -> None:
    """Halve.

    Args:
        bundle: float32 bundle.
        out: the float16 bundle's folder.
    """
    made = load_bundle(to_half(load_bundle(bundle), out))
    for graph in GRAPHS:
        content = made.graph(graph)
        held = f"{share(onnx.load_from_string(content)):.1%} of its weights in half precision"
        Console().print(f"{graph:10} {len(content) / 1e6:6.1f} MB, {held}")


if __name__ == "__main__":
    cli(main)
