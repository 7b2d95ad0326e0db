"""Float32 ONNX -> INT8 weights, computed in float32: a quarter of the size, no activation is rounded.

    python -m export.quantize runs/onnx --out runs/int8

Every weight matrix becomes symmetric INT8 with one scale per output channel behind a DequantizeLinear, which the
runtime folds once on load; an embedding table stays INT8 in memory and only the rows looked up are scaled.
Calibrated INT8 arithmetic is another workflow and builds on this file's choice of axes.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import ModelProto, NodeProto, TensorProto, helper, numpy_helper
from rich.console import Console

SMALLEST = 4096  # elements; below that a weight costs nothing and may carry a lot (norms, biases, mixing weights)


def quantize_weights(model: ModelProto) -> ModelProto:
    """A copy of the model in which every large weight is INT8."""
    result = ModelProto()
    result.CopyFrom(model)
    graph = result.graph
    readers: dict[str, list[NodeProto]] = {}
    for node in graph.node:
        for name in node.input:
            readers.setdefault(name, []).append(node)
    before: list[NodeProto] = []
    for tensor in list(graph.initializer):
        axis = _axis(tensor, readers.get(tensor.name, []))
        if axis is None:
            continue
        weight = numpy_helper.to_array(tensor)
        integers, scale = to_int8(weight, axis)
        graph.initializer.remove(tensor)
        graph.initializer.append(numpy_helper.from_array(integers, f"{tensor.name}_int8"))
        graph.initializer.append(numpy_helper.from_array(scale, f"{tensor.name}_scale"))
        users = readers[tensor.name]
        if users[0].op_type == "Gather":
            _scale_rows(graph, tensor.name, users)
        else:
            inputs = [f"{tensor.name}_int8", f"{tensor.name}_scale"]
            before.append(helper.make_node("DequantizeLinear", inputs, [tensor.name], axis=axis))
    nodes = [*before, *graph.node]
    del graph.node[:]
    graph.node.extend(nodes)
    onnx.checker.check_model(result, full_check=True)
    return result


def to_int8(weight: NDArray[np.float32], axis: int) -> tuple[NDArray[np.int8], NDArray[np.float32]]:
    """Symmetric per-channel rounding to −127..127 along `axis`; the scale is (channels,).

    >>> integers, scale = to_int8(np.array([[1.0, -2.0], [0.5, 0.25]], np.float32), axis=0)
    >>> integers.tolist()
    [[64, -127], [127, 64]]
    """
    rest = tuple(i for i in range(weight.ndim) if i != axis)
    scale = np.maximum(np.abs(weight).max(axis=rest), 1e-12) / 127
    shaped = scale.reshape([-1 if i == axis else 1 for i in range(weight.ndim)])
    return np.rint(weight / shaped).astype(np.int8), scale.astype(np.float32)


def _axis(tensor: TensorProto, users: list[NodeProto]) -> int | None:
    """Which axis holds the output channels, or None where the tensor stays in float32."""
    if tensor.data_type != TensorProto.FLOAT or len(tensor.dims) < 2 or np.prod(tensor.dims) < SMALLEST or not users:
        return None
    kinds = {node.op_type for node in users}
    if kinds == {"Gather"} and all(node.input[0] == tensor.name for node in users):
        return 0 if len(tensor.dims) == 2 else None
    if kinds == {"MatMul"} and len(tensor.dims) == 2 and all(node.input[1] == tensor.name for node in users):
        return 1
    if kinds == {"Gemm"} and all(node.input[1] == tensor.name for node in users):
        transposed = {next((a.i for a in node.attribute if a.name == "transB"), 0) for node in users}
        return {0: 1, 1: 0}[transposed.pop()] if len(transposed) == 1 else None
    return 0 if kinds in ({"Conv"}, {"Transpose"}) and len(tensor.dims) <= 3 else None


def _scale_rows(graph: onnx.GraphProto, table: str, users: list[NodeProto]) -> None:
    """Gather(table, ids) -> Cast(Gather(int8 rows, ids)) · Gather(scales, ids)."""
    for number, node in enumerate(users):
        ids, out, base = node.input[1], node.output[0], f"{table}_{number}"
        made = [
            helper.make_node("Gather", [f"{table}_int8", ids], [f"{base}_rows"], axis=0),
            helper.make_node("Cast", [f"{base}_rows"], [f"{base}_float"], to=TensorProto.FLOAT),
            helper.make_node("Gather", [f"{table}_scale", ids], [f"{base}_scales"], axis=0),
            helper.make_node("Unsqueeze", [f"{base}_scales", f"{base}_last"], [f"{base}_column"]),
            helper.make_node("Mul", [f"{base}_float", f"{base}_column"], [out]),
        ]
        graph.initializer.append(numpy_helper.from_array(np.array([-1], np.int64), f"{base}_last"))
        place = list(graph.node).index(node)
        graph.node.remove(node)
        for offset, new in enumerate(made):
            graph.node.insert(place + offset, new)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("onnx", type=Path, help="folder of export.to_onnx")
    parser.add_argument("--out", type=Path, required=True)
    given = parser.parse_args()
    given.out.mkdir(parents=True, exist_ok=True)
    for path in sorted(given.onnx.glob("*.onnx")):
        onnx.save(quantize_weights(onnx.load(path)), given.out / path.name)
        before, after = path.stat().st_size / 1e6, (given.out / path.name).stat().st_size / 1e6
        Console().print(f"{path.name:16} {before:6.1f} MB -> {after:5.1f} MB")


if __name__ == "__main__":
    main()
