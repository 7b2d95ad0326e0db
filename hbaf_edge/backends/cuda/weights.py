"""Read the named weights of a bundle's graphs as arrays and dequantise INT8 weights. Needs the package onnx, no GPU.

A name is that of the trained model's parameter. A suffix gives the layout in the graph (export/to_onnx.py,
name_weights): `a|T` is `a` transposed; `a|0T` and `a|1T` are the transposed halves of a stack of two.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from hbaf_edge.bundle import Bundle
from hbaf_edge.errors import BackendError, BundleError

Array = NDArray[Any]
REQUIRED = ("gate", "relevance", "residual")  # flags of the model that ablations turn off; the kernels need them
LAYER_PARAMETERS = {
    "out": "out.weight", "out_bias": "out.bias", "norm": "norm.weight", "shift": "norm.bias", "up": "feed.0.weight",
    "up_bias": "feed.0.bias", "down": "feed.3.weight", "down_bias": "feed.3.bias", "feed_norm": "feed_norm.weight",
    "feed_shift": "feed_norm.bias", "w_r": "w_r", "b_r": "b_r", "w_g": "w_g", "b_g": "b_g",
}  # fmt: skip


class DialogueWeights(NamedTuple):
    """Weights of the dialogue scope, in the layout of the kernels.

    Attributes:
        layers: weights of each layer by name: project (2, 4d, d) for q, q', key and value of both modalities, and
            project_bias (2, 4d); the names of LAYER_PARAMETERS, (2, …) each; and bias (2, H, W, 3) by key modality.
        head: up (d, 2d), up_bias (d,), down (labels, d), down_bias (labels,).
        window, heads, e: sizes; `e` is the width of a head.
    """

    layers: list[dict[str, Array]]
    head: dict[str, Array]
    window: int
    heads: int
    e: int


def dialogue_weights(bundle: Bundle) -> DialogueWeights:
    """Read the dialogue scope's weights from a bundle of any precision, as float32.

    Raises:
        BackendError: onnx is not installed, or the model is an ablation.
        BundleError: a weight is missing, or its shape differs from the manifest.
    """
    model = bundle.manifest["model"]
    missing = [name for name in REQUIRED if not model.get(name, True)]
    if missing:
        raise BackendError(f"{bundle.path} is a model without {', '.join(missing)}, which the kernels do not support")
    window, heads, d = (int(model[name]) for name in ("window", "heads", "width"))
    e, labels = d // heads, len(bundle.labels)
    layouts = group_by_parameter(read_weights(bundle.graph("dialogue")))

    def weight(name: str, *shape: int) -> Array:
        if name not in layouts:
            raise BundleError(f"{bundle.path}: the dialogue graph lacks {name}; export the model again")
        value = restore_layout(layouts[name], shape)
        if value.size != np.prod(shape):
            raise BundleError(f"{bundle.path}: {name} has shape {value.shape}, by the manifest's sizes it has {shape}")
        return value.reshape(shape).astype(np.float32)

    shapes = {"out": (d, d), "up": (2 * d, d), "up_bias": (2 * d,), "down": (d, 2 * d), "w_r": (heads, 2 * e),
              "b_r": (heads,), "w_g": (heads, e, 2 * e), "b_g": (heads, e)}  # fmt: skip
    layers = []
    for index in range(int(model["dialogue_layers"])):
        halves = [f"model.dialogue_scope.{index}.halves.{m}." for m in range(2)]
        layer = {
            key: np.stack([weight(half + name, *shapes.get(key, (d,))) for half in halves])
            for key, name in LAYER_PARAMETERS.items()
        }
        for key, name, shape in (("project", "weight", (2 * d, d)), ("project_bias", "bias", (2 * d,))):
            pairs = [[weight(f"{h}{part}.{name}", *shape) for part in ("queries", "key_value")] for h in halves]
            layer[key] = np.stack([np.concatenate(pair) for pair in pairs])
        layer["bias"] = weight(f"model.bias.{index}.table", 2, heads, window, 3)
        layers.append(layer)
    head = {"up": weight("model.head.0.weight", d, 2 * d), "up_bias": weight("model.head.0.bias", d),
            "down": weight("model.head.3.weight", labels, d),
            "down_bias": weight("model.head.3.bias", labels)}  # fmt: skip
    return DialogueWeights(layers, head, window, heads, e)


def read_weights(graph: bytes) -> dict[str, Array]:
    """Read the named weights of an ONNX file in the file's layout, with INT8 weights dequantised.

    Raises:
        BackendError: the package onnx is not installed.
    """
    try:
        import onnx
    except ImportError as error:
        raise BackendError(
            "reading a bundle's weights needs the package onnx: pip install 'hbaf-edge[tensorrt]', or [train]"
        ) from error
    model = onnx.load_from_string(graph)
    weights: dict[str, Array] = {t.name: onnx.numpy_helper.to_array(t) for t in model.graph.initializer}
    channels = {
        n.input[0]: n.attribute[0].i for n in model.graph.node if n.op_type == "DequantizeLinear" and n.attribute
    }
    for name in [n for n in weights if n.endswith("_int8")]:
        parameter = name.removesuffix("_int8")
        integers, scale = weights.pop(name), weights.pop(f"{parameter}_scale")
        axis = channels.get(name, 0)  # rows of an embedding are looked up first, and then scaled by row
        factor = scale if scale.ndim == integers.ndim else _along(scale, axis, integers.ndim)
        weights[parameter] = integers * factor
    for name, inverse in _inverse_factors(model, weights).items():
        weights[name] = weights[name] * inverse[:, None]
    return weights


def group_by_parameter(weights: Mapping[str, Array]) -> dict[str, dict[str, Array]]:
    """Group the arrays of a file by parameter and layout.

    >>> group_by_parameter({"a|T": np.ones(1), "b": np.ones(2)})
    {'a': {'T': array([1.])}, 'b': {'': array([1., 1.])}}
    """
    layouts: dict[str, dict[str, Array]] = {}
    for name, value in weights.items():
        parameter, _, layout = name.partition("|")
        layouts.setdefault(parameter, {})[layout] = value
    return layouts


def restore_layout(layouts: Mapping[str, Array], shape: tuple[int, ...]) -> Array:
    """Restore a parameter of a shape from the layouts that a file holds of it."""
    if "softmax" in layouts:
        return np.asarray(np.log(layouts["softmax"]))
    for layout in ("", "T"):
        if layout in layouts:
            value = layouts[layout]
            return value if not layout else value.reshape(*shape[:-2], shape[-1], shape[-2]).swapaxes(-1, -2)
    parts = [(layouts.get(f"{m}"), layouts.get(f"{m}T")) for m in (0, 1)]
    return np.stack([plain if plain is not None else _transpose_back(t, shape) for plain, t in parts])


def _along(scale: Array, axis: int, ndim: int) -> Array:
    """Reshape a scale (channels,) to broadcast along an axis."""
    factor: Array = np.expand_dims(scale.ravel(), [i for i in range(ndim) if i != axis])
    return factor


def _inverse_factors(model: Any, weights: Mapping[str, Array]) -> dict[str, Array]:
    """Inverse factors of SmoothQuant, (channels,) by weight (export/smoothquant.py).

    SmoothQuant multiplies a weight by factors and inserts a Mul that divides the input: its second input, `…_inverse`,
    holds 1 / factors. Multiplying the weight by it restores the original.
    """
    producers = {out: node for node in model.graph.node for out in node.output}
    inverse = {}
    for node in model.graph.node:
        if node.op_type != "MatMul" or node.input[1] not in weights:
            continue
        producer = producers.get(node.input[0])
        while producer is not None and producer.op_type in ("DequantizeLinear", "QuantizeLinear"):
            producer = producers.get(producer.input[0])
        if producer is not None and producer.op_type == "Mul" and producer.input[1].endswith("_inverse"):
            inverse[node.input[1]] = weights[producer.input[1]]
    return inverse


def _transpose_back(value: Array | None, shape: tuple[int, ...]) -> Array:
    assert value is not None
    restored: Array = value.T.reshape(shape[1:])
    return restored
