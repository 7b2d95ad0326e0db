"""Float32 bundle -> float16 bundle, for GPUs and their engines. On a CPU only the file gets smaller.

    python -m export.float16 runs/mine/float32 --out runs/mine/float16

Inputs, outputs, norms, softmax and gates stay float32. Casts are nodes of the graph, so all runtimes compute the same.
"""

from __future__ import annotations

from pathlib import Path

import onnx
from onnx import ModelProto
from onnxruntime.transformers.float16 import convert_float_to_float16

from export.calibrate import bundle_matmuls
from export.int8 import convert_bundle
from export.qdq import set_nodes
from hbaf_edge.bundle import GRAPHS, Bundle, load_bundle
from kernels import gate
from training.command import cli, emit

PRECISION = "float16"
MIN_SNR_DB = 40.0
# Operators that lose most in float16, mainly sums over many values.
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


def to_float16(bundle: Bundle, out: Path) -> Path:
    """Convert a float32 bundle to float16. `out` is written completely or not at all.

    Raises:
        CalibrationError: the bundle's weights are not float32.
    """
    bundle_matmuls(bundle)
    return convert_bundle(
        bundle, out, lambda _, model: graph_to_float16(model), {"precision": PRECISION}, GRAPHS, MIN_SNR_DB
    )


def graph_to_float16(model: ModelProto) -> ModelProto:
    """Convert a graph's weights and most of its operators to float16."""
    result: ModelProto = convert_float_to_float16(
        model, keep_io_types=True, op_block_list=FLOAT32_OPS, disable_shape_infer=False
    )
    set_nodes(result, result.graph.node)  # the converter appends its casts at the end
    onnx.checker.check_model(result)
    return result


def main(bundle: Path, /, out: Path, json_output: bool = False) -> None:
    """Convert a bundle to float16.

    Args:
        bundle: float32 bundle.
        out: folder of the float16 bundle.
    """
    source = load_bundle(bundle)
    megabytes = [source.megabytes, load_bundle(to_float16(source, out)).megabytes]
    emit({"out": str(out), "megabytes": megabytes[1]}, json_output,
         f"{out}: {megabytes[0]:.1f} MB -> {megabytes[1]:.1f} MB")  # fmt: skip


if __name__ == "__main__":
    cli(main)
