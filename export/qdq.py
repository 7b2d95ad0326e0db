"""Q/DQ into a float32 graph, in one of two profiles, from ranges that calibration found.

`cpu`: activations unsigned with a zero point, weights signed per channel, in 7 bits where the CPU has no VNNI (its
products of 8 bits would saturate); only MatMul. `tensorrt`: activations and weights signed and symmetric, biases float,
MatMul and Conv. The embedding table is stored in INT8 and its rows multiplied out when they are looked up; so are, on
load, the weights of what no profile computes in INT8. Blocks that are kept float are stored so.
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
from export.linears import SMALLEST, Linear, Wiring, block_of, linears
from export.migrate import Channels, correct_bias, migrate

Profile = Literal["cpu", "tensorrt"]
Ranges = Mapping[str, tuple[float, float]]


@dataclass(frozen=True)
class Recipe:
    """How a float32 bundle becomes an INT8 one."""

    profile: Profile = "cpu"  # what runs it: ONNX Runtime on a CPU, or TensorRT
    method: Method = "percentile"  # of the calibration's ranges, for inputs that are not migrated
    narrow: bool = False  # 7-bit weights: a CPU without VNNI then needs no exact, slower kernels
    migration: float = 0.85  # how much of the encoders' uneven scale goes into the weights, 0 to 1
    float_blocks: tuple[str, ...] = ()  # computed and stored in float32


def insert(graph: str, model: ModelProto, recipe: Recipe, ranges: Ranges, channels: Mapping[str, Channels]
           ) -> ModelProto:  # fmt: skip
    """A copy of a float32 graph whose products with constant weights are computed in INT8.

    Inputs whose scale is migrated reach from their smallest to their largest channel, the others take their `ranges`. A
    weight whose input has no range is only stored in INT8. Inputs without `channels` are rounded as they are.
    """
    result = ModelProto()
    result.CopyFrom(model)
    chosen = chosen_linears(graph, model, recipe, ranges)
    known = {one.weight for one in linears(graph, model) if one.key in ranges}
    kept = known - {one.weight for one in chosen}
    kept |= {t.name for t in model.graph.initializer if block_of(graph, t.name) in recipe.float_blocks}
    moved = migrate(result, chosen, channels, recipe.migration) if recipe.migration else {}
    nodes = {n.name: n for n in result.graph.node}
    before: list[NodeProto] = []
    rounded: set[str] = set()
    for one in chosen:
        name, seen = moved.get(one.activation, (one.activation, channels.get(one.key)))
        if name not in rounded:
            rounded.add(name)
            reach = (float(seen.low.min()), float(seen.high.max())) if one.activation in moved and seen else None
            before += _round(result, name, reach or ranges[one.key], recipe.profile)
        nodes[one.node].input[0] = f"{name}_rounded"
        before += _weight(result, one, recipe, seen)
    store_weights(result, recipe.profile, kept)
    set_nodes(result, [*before, *result.graph.node])
    onnx.checker.check_model(result, full_check=True)
    return result


def chosen_linears(graph: str, model: ModelProto, recipe: Recipe, ranges: Ranges) -> list[Linear]:
    """The products of a graph that a recipe computes in INT8: on a CPU no Conv, which ONNX Runtime would do slowly."""
    kept = recipe.float_blocks
    found = [one for one in linears(graph, model) if one.key in ranges and one.block not in kept]
    return [one for one in found if recipe.profile == "tensorrt" or one.axis == 1]


def _weight(model: ModelProto, one: Linear, recipe: Recipe, seen: Channels | None) -> list[NodeProto]:
    """A product's weight in INT8 behind a DequantizeLinear, its bias corrected for what rounding takes away."""
    if any(t.name == f"{one.weight}_int8" for t in model.graph.initializer):
        return []  # two products share it
    weight = _take(model, one.weight)
    integers, scale = to_int8(weight, one.axis, 63 if recipe.narrow and recipe.profile == "cpu" else 127)
    _store(model, one.weight, integers, scale)
    if seen is not None and one.axis == 1:
        correct_bias(model, one, weight - integers * scale, seen.mean)
    return [_dequantised(one.weight, one.axis)]


def _dequantised(name: str, axis: int) -> NodeProto:
    """A stored weight again in float32."""
    return helper.make_node("DequantizeLinear", [f"{name}_int8", f"{name}_scale"], [name], axis=axis)


def store_weights(model: ModelProto, profile: Profile, kept: Collection[str] = ()) -> None:
    """Large weights but for those kept as INT8 · scale, in place; folded on load, on a CPU of a table row by row.

    TensorRT takes INT8 constants behind DequantizeLinear alone; ONNX Runtime would multiply those out at every turn.
    """
    users = Wiring(model).readers
    for tensor in list(model.graph.initializer):
        axis = stored_axis(tensor, users.get(tensor.name, []))
        if axis is None or tensor.name in kept:
            continue
        name = tensor.name
        integers, scale = to_int8(_take(model, name), axis)
        multiplied = profile == "cpu" and users[name][0].op_type != "Gather"
        _store(model, name, integers, np.expand_dims(scale, _others(integers, axis)) if multiplied else scale)
        if multiplied:
            model.graph.node.extend([
                helper.make_node("Cast", [f"{name}_int8"], [f"{name}_cast"], to=TensorProto.FLOAT),
                helper.make_node("Mul", [f"{name}_cast", f"{name}_scale"], [name]),
            ])  # fmt: skip
        elif profile == "cpu":
            _scale_rows(model.graph, name, users[name])
        else:
            model.graph.node.append(_dequantised(name, axis))


def to_int8(weight: NDArray[np.float32], axis: int, limit: int = 127) -> tuple[NDArray[np.int8], NDArray[np.float32]]:
    """Symmetric per-channel rounding to −limit..limit along `axis`; the scale is (channels,).

    >>> integers, scale = to_int8(np.array([[1.0, -2.0], [0.5, 0.25]], np.float32), axis=0)
    >>> integers.tolist()
    [[64, -127], [127, 64]]
    """
    scale = np.maximum(np.abs(weight).max(axis=_others(weight, axis), keepdims=True), 1e-12) / limit
    return np.rint(weight / scale).astype(np.int8), scale.ravel().astype(np.float32)


def _others(weight: NDArray[Any], axis: int) -> tuple[int, ...]:
    """All axes but one."""
    return tuple(i for i in range(weight.ndim) if i != axis)


def grid(low: float, high: float, profile: Profile) -> tuple[float, int]:
    """Scale and zero point that cover a range, which is made to hold zero.

    >>> grid(-1.0, 3.0, "cpu"), grid(-1.0, 3.0, "tensorrt")
    ((0.01568627450980392, 64), (0.023622047244094488, 0))
    """
    low, high = min(low, 0.0), max(high, 0.0)
    if profile == "tensorrt":
        return max(-low, high, 1e-12) / 127, 0
    scale = max(high - low, 1e-12) / 255
    return scale, int(np.clip(np.rint(-low / scale), 0, 255))


def stored_axis(tensor: TensorProto, users: list[NodeProto]) -> int | None:
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


def set_nodes(model: ModelProto, nodes: Iterable[NodeProto]) -> None:
    """Give a graph these nodes alone, sorted."""
    placed = sort(list(nodes))
    del model.graph.node[:]
    model.graph.node.extend(placed)


def sort(nodes: list[NodeProto]) -> list[NodeProto]:
    """In an order in which every input is made before it is read; otherwise as they stand."""
    makers = {name: i for i, node in enumerate(nodes) for name in node.output}
    placed: list[NodeProto] = []
    state = [0] * len(nodes)
    for start in range(len(nodes)):
        stack = [start]
        while stack:
            i = stack[-1]
            waiting = [makers[n] for n in nodes[i].input if n in makers and state[makers[n]] == 0 and makers[n] != i]
            if state[i] == 0 and waiting:
                stack.extend(waiting)
                continue
            stack.pop()
            if state[i] == 0:
                state[i] = 1
                placed.append(nodes[i])
    return placed


def _round(model: ModelProto, name: str, range_: tuple[float, float], profile: Profile) -> list[NodeProto]:
    """name -> Q -> DQ -> name_rounded."""
    scale, zero = grid(*range_, profile)
    kind = np.uint8 if profile == "cpu" else np.int8
    model.graph.initializer.append(numpy_helper.from_array(np.float32(scale), f"{name}_step"))
    model.graph.initializer.append(numpy_helper.from_array(kind(zero), f"{name}_zero"))
    by = [f"{name}_step", f"{name}_zero"]
    return [
        helper.make_node("QuantizeLinear", [name, *by], [f"{name}_integers"]),
        helper.make_node("DequantizeLinear", [f"{name}_integers", *by], [f"{name}_rounded"]),
    ]


def _take(model: ModelProto, name: str) -> NDArray[np.float32]:
    """Remove an initializer; what it held."""
    tensor = next(t for t in model.graph.initializer if t.name == name)
    value: NDArray[np.float32] = numpy_helper.to_array(tensor)
    model.graph.initializer.remove(tensor)
    return value


def _store(model: ModelProto, name: str, integers: NDArray[np.int8], scale: NDArray[np.float32]) -> None:
    model.graph.initializer.append(numpy_helper.from_array(integers, f"{name}_int8"))
    model.graph.initializer.append(numpy_helper.from_array(scale, f"{name}_scale"))


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
        del graph.node[place]
        for new in reversed(made):
            graph.node.insert(place, new)
