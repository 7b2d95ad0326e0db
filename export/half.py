"""Float32 bundle -> FP16 bundle: casts are in the graph, so that every runtime computes the same.

    python -m export.half runs/mine/float32 --out runs/mine/float16

Inputs, outputs, norms, softmax and gates stay float32. For GPUs and their engines; a CPU gains nothing but size.
"""

from __future__ import annotations

from pathlib import Path

import onnx
from onnx import ModelProto
from onnxruntime.transformers.float16 import convert_float_to_float16

from export.calibrate import all_linears
from export.int8 import converted
from export.qdq import set_nodes
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
    set_nodes(made, made.graph.node)  # the converter appends its casts
    onnx.checker.check_model(made)
    return made


def main(bundle: Path, /, out: Path) -> None:
    """Halve.

    Args:
        bundle: float32 bundle.
        out: the float16 bundle's folder.
    """
    whole = load_bundle(bundle)
    print(f"{whole.megabytes:.1f} MB -> {load_bundle(to_half(whole, out)).megabytes:.1f} MB")


if __name__ == "__main__":
    cli(main)
