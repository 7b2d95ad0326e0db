"""Insert QuantizeLinear and DequantizeLinear (Q/DQ) nodes into a float32 graph, with the ranges from calibration.

A product in INT8 becomes

    x -> QuantizeLinear -> DequantizeLinear -> x_rounded ─┐
    W_int8, W_scale ------> DequantizeLinear -> W ────────┴─> MatMul

and the runtime replaces the pattern by one INT8 kernel. There are two profiles:

- `cpu`: activations are unsigned with a zero point, weights signed per channel; MatMul only. Weights have 7 bits with
  `reduce_range`, because CPUs without VNNI add pairs of 8-bit products in 16 bits, which can saturate.
- `tensorrt`: activations and weights are signed and symmetric, biases are float32; MatMul and Conv.

All other large weights are only stored in INT8. The embedding table is converted to float32 row by row at lookup, the
others when the model is loaded. Blocks that are kept in float32 are also stored in float32.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import ModelProto, NodeProto, TensorProto, helper, numpy_helper

from export.histogram import Method
from export.quantizable_matmuls import SMALLEST, GraphIndex, QuantizableMatmul, block_of, quantizable_matmuls
from export.smoothquant import ChannelStats, correct_bias, smoothquant

Profile = Literal["cpu", "tensorrt"]
Ranges = Mapping[str, tuple[float, float]]


@dataclass(frozen=True)
class Recipe:
    """How a float32 bundle is converted to INT8."""

    profile: Profile = "cpu"  # for ONNX Runtime on a CPU, or for TensorRT
    method: Method = "percentile"  # range of the activations that SmoothQuant does not change
    reduce_range: bool = False  # 7-bit weights, for CPUs without VNNI
    smoothquant: float = 0.85  # share of the encoders' activation scale to move into the weights, 0 to 1
    float_blocks: tuple[str, ...] = ()  # blocks to compute and store in float32

    def to_json(self) -> dict[str, Any]:
        """The recipe as manifests and reports store it: "narrow" and "migration" are keys of bundle format 1."""
        return {"profile": self.profile, "method": self.method, "narrow": self.reduce_range,
                "migration": self.smoothquant, "float_blocks": self.float_blocks}  # fmt: skip


def insert_qdq(
    graph: str, model: ModelProto, recipe: Recipe, ranges: Ranges, channels: Mapping[str, ChannelStats]
) -> ModelProto:
    """A copy of a float32 graph whose products with constant weights are computed in INT8.

    Args:
        graph: audio, text, utterance or dialogue.
        model: float32 graph.
        recipe: profile and options.
        ranges: (low, high) by `QuantizableMatmul.key`. Without a range, a weight is only stored in INT8. Activations
            that SmoothQuant divides use the range from their smallest to their largest channel instead.
        channels: channel statistics by the same key. Activations without them are not divided.
    """
    result = ModelProto()
    result.CopyFrom(model)
    selected = selected_matmuls(graph, model, recipe, ranges)
    calibrated = {matmul.weight for matmul in quantizable_matmuls(graph, model) if matmul.key in ranges}
    float_weights = calibrated - {matmul.weight for matmul in selected}
    float_weights |= {t.name for t in model.graph.initializer if block_of(graph, t.name) in recipe.float_blocks}
    smoothed = smoothquant(result, selected, channels, recipe.smoothquant) if recipe.smoothquant else {}
    nodes = {n.name: n for n in result.graph.node}
    qdq_nodes: list[NodeProto] = []
    rounded: set[str] = set()
    for matmul in selected:
        name, stats = smoothed.get(matmul.activation, (matmul.activation, channels.get(matmul.key)))
        if name not in rounded:  # one Q/DQ pair for all products of an activation
            rounded.add(name)
            value_range = ranges[matmul.key]
            if matmul.activation in smoothed and stats is not None:
                value_range = float(stats.low.min()), float(stats.high.max())
            qdq_nodes += _round_activation(result, name, value_range, recipe.profile)
        nodes[matmul.node].input[0] = f"{name}_rounded"
        qdq_nodes += _quantise_weight(result, matmul, recipe, stats)
    store_weights(result, recipe.profile, float_weights)
    set_nodes(result, [*qdq_nodes, *result.graph.node])
    onnx.checker.check_model(result, full_check=True)
    return result


def selected_matmuls(graph: str, model: ModelProto, recipe: Recipe, ranges: Ranges) -> list[QuantizableMatmul]:
    """The products of a graph that a recipe computes in INT8; no Conv on a CPU, where INT8 convolutions are slow."""
    candidates = [matmul for matmul in quantizable_matmuls(graph, model)
                  if matmul.key in ranges and matmul.block not in recipe.float_blocks]  # fmt: skip
    return [matmul for matmul in candidates if recipe.profile == "tensorrt" or matmul.axis == 1]


def _quantise_weight(
    model: ModelProto, matmul: QuantizableMatmul, recipe: Recipe, stats: ChannelStats | None
) -> list[NodeProto]:
    """Store a product's weight in INT8 with a DequantizeLinear node, and correct the bias for the rounding error."""
    if any(t.name == f"{matmul.weight}_int8" for t in model.graph.initializer):
        return []  # another product with the same weight came first
    weight = _pop_initializer(model, matmul.weight)
    integers, scale = to_int8(weight, matmul.axis, 63 if recipe.reduce_range and recipe.profile == "cpu" else 127)
    _add_int8_initializer(model, matmul.weight, integers, scale)
    if stats is not None and matmul.axis == 1:
        correct_bias(model, matmul, weight - integers * scale, stats.mean)
    return [_dequantize_node(matmul.weight, matmul.axis)]


def _dequantize_node(name: str, axis: int) -> NodeProto:
    return helper.make_node("DequantizeLinear", [f"{name}_int8", f"{name}_scale"], [name], axis=axis)


def store_weights(model: ModelProto, profile: Profile, float_weights: Collection[str] = ()) -> None:
    """Store the large weights in INT8 with a scale per channel, in place, except for `float_weights`.

    For TensorRT, a DequantizeLinear node follows each INT8 constant, as TensorRT requires. For ONNX Runtime it is
    Cast and Mul: these are folded when the model is loaded, whereas DequantizeLinear would run in every turn.
    """
    consumers = GraphIndex(model).consumers
    for tensor in list(model.graph.initializer):
        axis = storage_axis(tensor, consumers.get(tensor.name, []))
        if axis is None or tensor.name in float_weights:
            continue
        name = tensor.name
        integers, scale = to_int8(_pop_initializer(model, name), axis)
        is_folded = profile == "cpu" and consumers[name][0].op_type != "Gather"
        _add_int8_initializer(
            model, name, integers, np.expand_dims(scale, _other_axes(integers, axis)) if is_folded else scale
        )
        if is_folded:
            model.graph.node.extend([
                helper.make_node("Cast", [f"{name}_int8"], [f"{name}_cast"], to=TensorProto.FLOAT),
                helper.make_node("Mul", [f"{name}_cast", f"{name}_scale"], [name]),
            ])  # fmt: skip
        elif profile == "cpu":
            _scale_rows(model.graph, name, consumers[name])
        else:
            model.graph.node.append(_dequantize_node(name, axis))


def to_int8(weight: NDArray[np.float32], axis: int, limit: int = 127) -> tuple[NDArray[np.int8], NDArray[np.float32]]:
    """Round symmetrically to −limit..limit with one scale (channels,) per index of `axis`.

    >>> integers, scale = to_int8(np.array([[1.0, -2.0], [0.5, 0.25]], np.float32), axis=0)
    >>> integers.tolist()
    [[64, -127], [127, 64]]
    """
    scale = np.maximum(np.abs(weight).max(axis=_other_axes(weight, axis), keepdims=True), 1e-12) / limit
    return np.rint(weight / scale).astype(np.int8), scale.ravel().astype(np.float32)


def _other_axes(weight: NDArray[Any], axis: int) -> tuple[int, ...]:
    """All axes of an array except for one."""
    return tuple(i for i in range(weight.ndim) if i != axis)


def grid(low: float, high: float, profile: Profile) -> tuple[float, int]:
    """Scale and zero point of the INT8 grid that covers a range and zero.

    >>> grid(-1.0, 3.0, "cpu"), grid(-1.0, 3.0, "tensorrt")
    ((0.01568627450980392, 64), (0.023622047244094488, 0))
    """
    low, high = min(low, 0.0), max(high, 0.0)
    if profile == "tensorrt":
        return max(-low, high, 1e-12) / 127, 0
    scale = max(high - low, 1e-12) / 255
    return scale, int(np.clip(np.rint(-low / scale), 0, 255))


def storage_axis(tensor: TensorProto, consumers: list[NodeProto]) -> int | None:
    """Axis of the output channels of a weight that can be stored in INT8; None if it stays in float32."""
    dims = len(tensor.dims)
    if tensor.data_type != TensorProto.FLOAT or dims < 2 or np.prod(tensor.dims) < SMALLEST or not consumers:
        return None
    op_types = {node.op_type for node in consumers}
    if op_types == {"Gather"} and all(n.input[0] == tensor.name and not _attribute(n, "axis") for n in consumers):
        return 0 if dims == 2 else None
    if op_types == {"MatMul"} and dims == 2 and all(node.input[1] == tensor.name for node in consumers):
        return 1
    if op_types == {"Gemm"} and all(node.input[1] == tensor.name for node in consumers):
        transposed = {_attribute(node, "transB") for node in consumers}
        return {0: 1, 1: 0}[transposed.pop()] if len(transposed) == 1 else None
    if op_types == {"Transpose"}:  # a linear layer's (out, in), transposed in the graph
        return 0 if dims == 2 else None
    return 0 if op_types == {"Conv"} and dims <= 3 else None


def set_nodes(model: ModelProto, nodes: Iterable[NodeProto]) -> None:
    """Replace all nodes of a graph by these, sorted topologically."""
    ordered = sort_nodes(list(nodes))
    del model.graph.node[:]
    model.graph.node.extend(ordered)


def sort_nodes(nodes: list[NodeProto]) -> list[NodeProto]:
    """Sort nodes so that each input is produced before it is read; otherwise keep their order."""
    producers = {name: i for i, node in enumerate(nodes) for name in node.output}
    ordered: list[NodeProto] = []
    is_done = [False] * len(nodes)
    for start in range(len(nodes)):
        stack = [start]
        while stack:  # depth first; a graph can be deeper than Python's recursion limit
            i = stack[-1]
            sources = [producers[name] for name in nodes[i].input if name in producers]
            missing = [source for source in sources if not is_done[source] and source != i]
            if not is_done[i] and missing:
                stack.extend(missing)
                continue
            stack.pop()
            if not is_done[i]:
                is_done[i] = True
                ordered.append(nodes[i])
    return ordered


def _round_activation(
    model: ModelProto, name: str, value_range: tuple[float, float], profile: Profile
) -> list[NodeProto]:
    """Nodes name -> QuantizeLinear -> DequantizeLinear -> name_rounded; scale and zero point become initializers."""
    scale, zero = grid(*value_range, profile)
    dtype = np.uint8 if profile == "cpu" else np.int8
    model.graph.initializer.append(numpy_helper.from_array(np.float32(scale), f"{name}_step"))
    model.graph.initializer.append(numpy_helper.from_array(dtype(zero), f"{name}_zero"))
    parameters = [f"{name}_step", f"{name}_zero"]
    return [
        helper.make_node("QuantizeLinear", [name, *parameters], [f"{name}_integers"]),
        helper.make_node("DequantizeLinear", [f"{name}_integers", *parameters], [f"{name}_rounded"]),
    ]


def _pop_initializer(model: ModelProto, name: str) -> NDArray[np.float32]:
    """Remove an initializer and return its value."""
    tensor = next(t for t in model.graph.initializer if t.name == name)
    value: NDArray[np.float32] = numpy_helper.to_array(tensor)
    model.graph.initializer.remove(tensor)
    return value


def _add_int8_initializer(model: ModelProto, name: str, integers: NDArray[np.int8], scale: NDArray[np.float32]) -> None:
    model.graph.initializer.append(numpy_helper.from_array(integers, f"{name}_int8"))
    model.graph.initializer.append(numpy_helper.from_array(scale, f"{name}_scale"))


def _attribute(node: NodeProto, name: str) -> int:
    """An integer attribute of a node; 0 if it is not set."""
    return next((a.i for a in node.attribute if a.name == name), 0)


def _scale_rows(graph: onnx.GraphProto, table: str, lookups: list[NodeProto]) -> None:
    """Replace Gather(table, ids) by Cast(Gather(int8 rows, ids)) · Gather(scales, ids)."""
    for number, node in enumerate(lookups):
        ids, output, prefix = node.input[1], node.output[0], f"{table}_{number}"
        nodes = [
            helper.make_node("Gather", [f"{table}_int8", ids], [f"{prefix}_rows"], axis=0),
            helper.make_node("Cast", [f"{prefix}_rows"], [f"{prefix}_float"], to=TensorProto.FLOAT),
            helper.make_node("Gather", [f"{table}_scale", ids], [f"{prefix}_scales"], axis=0),
            helper.make_node("Unsqueeze", [f"{prefix}_scales", f"{prefix}_last"], [f"{prefix}_column"]),
            helper.make_node("Mul", [f"{prefix}_float", f"{prefix}_column"], [output]),
        ]
        graph.initializer.append(numpy_helper.from_array(np.array([-1], np.int64), f"{prefix}_last"))
        position = list(graph.node).index(node)
        del graph.node[position]
        for new in reversed(nodes):
            graph.node.insert(position, new)
