"""Float32 ONNX -> INT8 weights, computed in float32: a quarter of the size, no activation is rounded.

    python -m export.quantize runs/onnx --out runs/int8

Every weight matrix of a linear layer or convolution becomes symmetric INT8 with one scale per output channel behind a
DequantizeLinear, which the runtime folds once on load; the gates' own small tensors and fixed position codes stay
float32. An embedding table stays INT8 in memory and only the rows looked up are scaled. Each file is run beside the
one it came from, and the command exits non-zero below 15 dB.

Calibrated INT8 arithmetic is another workflow and builds on this file's choice of axes.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime as ort
from numpy.typing import NDArray
from onnx import ModelProto, NodeProto, TensorProto, helper, numpy_helper
from rich.console import Console

from hbaf_edge.backend import default_threads, session_options

LEAST_DB = 15.0
SMALLEST = 4096  # elements; below that a weight costs nothing and may carry a lot (norms, biases, mixing weights)


def quantize_weights(model: ModelProto) -> ModelProto:
    """A copy of the model in which every large weight of a linear layer, convolution or embedding is INT8."""
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
    if kinds == {"Gather"} and all(node.input[0] == tensor.name and not _attribute(node, "axis") for node in users):
        return 0 if len(tensor.dims) == 2 else None
    if kinds == {"MatMul"} and len(tensor.dims) == 2 and all(node.input[1] == tensor.name for node in users):
        return 1
    if kinds == {"Gemm"} and all(node.input[1] == tensor.name for node in users):
        transposed = {_attribute(node, "transB") for node in users}
        return {0: 1, 1: 0}[transposed.pop()] if len(transposed) == 1 else None
    if kinds == {"Transpose"}:  # a linear layer's (out, in), transposed in the graph
        return 0 if len(tensor.dims) == 2 else None
    return 0 if kinds == {"Conv"} and len(tensor.dims) <= 3 else None


def _attribute(node: NodeProto, name: str) -> int:
    """An integer attribute, 0 where it is not given."""
    return next((a.i for a in node.attribute if a.name == name), 0)


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


def quantize_file(source: Path, target: Path) -> str:
    """Quantise one file, check it against its source, and say what came of it."""
    before = onnx.load(source)
    after = quantize_weights(before)
    ratio = fidelity(before, after)
    if ratio < LEAST_DB:
        raise SystemExit(f"{source}: INT8 weights leave {ratio:.1f} dB of at least {LEAST_DB}; keep it in float32")
    onnx.save(after, target)
    sizes = (path.stat().st_size / 1e6 for path in (source, target))
    return "{}: {:.1f} MB -> {:.1f} MB, {:.1f} dB".format(source.name, *sizes, ratio)


def fidelity(before: ModelProto, after: ModelProto, length: int = 16, seed: int = 0) -> float:
    """Signal-to-noise ratio in dB of the worst output, both run on the same random inputs of `length` per free axis."""
    rng = np.random.default_rng(seed)
    inputs = {v.name: _random(v, length, rng) for v in before.graph.input}
    results = [
        ort.InferenceSession(
            m.SerializeToString(), session_options(default_threads()), providers=["CPUExecutionProvider"]
        ).run(None, inputs)
        for m in (before, after)
    ]
    noise = [np.square(a - b).sum() / max(float(np.square(a).sum()), 1e-12) for a, b in zip(*results, strict=True)]
    return float(-10 * np.log10(max(*noise, 1e-12)))


def _random(value: onnx.ValueInfoProto, length: int, rng: np.random.Generator) -> NDArray[Any]:
    kind = value.type.tensor_type
    shape = [1 if d.dim_param == "batch" else d.dim_value or length for d in kind.shape.dim]
    if kind.elem_type == TensorProto.FLOAT:
        return rng.standard_normal(shape).astype(np.float32)
    return np.ones(shape, helper.tensor_dtype_to_np_dtype(kind.elem_type))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("onnx", type=Path, help="folder of export.to_onnx")
    parser.add_argument("--out", type=Path, required=True)
    given = parser.parse_args()
    given.out.mkdir(parents=True, exist_ok=True)
    for path in sorted(given.onnx.glob("*.onnx")):
        Console().print(quantize_file(path, given.out / path.name))


if __name__ == "__main__":
    main()
