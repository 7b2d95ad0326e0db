"""Named weights of a bundle's graphs as arrays; INT8 ones multiplied out. Needs the package onnx, and no GPU.

Names are the parameters' of the model that was trained, with the layout a graph holds them in behind a bar
(export/to_onnx.py, name_weights): `|T` transposed, `|0T` and `|1T` halves of a stack.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from hbaf_edge.bundle import Bundle
from hbaf_edge.errors import BackendError, BundleError

Array = NDArray[Any]
PLAIN = ("gate", "relevance", "residual")  # what an ablation lacks, and kernels do not know
OF_LAYER = {
    "out": "out.weight", "out_bias": "out.bias", "norm": "norm.weight", "shift": "norm.bias", "up": "feed.0.weight",
    "up_bias": "feed.0.bias", "down": "feed.3.weight", "down_bias": "feed.3.bias", "feed_norm": "feed_norm.weight",
    "feed_shift": "feed_norm.bias", "w_r": "w_r", "b_r": "b_r", "w_g": "w_g", "b_g": "b_g",
}  # fmt: skip


class DialogueWeights(NamedTuple):
    """Of the dialogue scope, as the kernels read them.

    Attributes:
        layers: of each, by name: project (2, 4d, d) for q, q', key and value of both modalities with project_bias
            (2, 4d); what OF_LAYER names, (2, …) each; and bias (2, H, W, 3) by key modality.
        head: up (d, 2d), up_bias (d,), down (labels, d), down_bias (labels,).
        window, heads, e: sizes; `e` is the width of a head.
    """

    layers: list[dict[str, Array]]
    head: dict[str, Array]
    window: int
    heads: int
    e: int


def dialogue_weights(bundle: Bundle) -> DialogueWeights:
    """Of a bundle of any precision, in float32.

    Raises:
        BackendError: onnx is not installed, or the model is an ablation.
        BundleError: a weight is missing or of another shape than the manifest says.
    """
    model = bundle.manifest["model"]
    lacking = [name for name in PLAIN if not model.get(name, True)]
    if lacking:
        raise BackendError(f"{bundle.path} is a model without {', '.join(lacking)}, for which there is no kernel")
    window, heads, d = (int(model[name]) for name in ("window", "heads", "width"))
    e, labels = d // heads, len(bundle.labels)
    found = by_name(weights(bundle.graph("dialogue")))

    def one(name: str, *shape: int) -> Array:
        if name not in found:
            raise BundleError(f"{bundle.path}: the dialogue graph lacks {name}; export the model anew")
        value = laid_out(found[name], shape)
        if value.size != np.prod(shape):
            raise BundleError(f"{bundle.path}: {name} is {value.shape}, the manifest's sizes make it {shape}")
        return value.reshape(shape).astype(np.float32)

    shapes = {"out": (d, d), "up": (2 * d, d), "up_bias": (2 * d,), "down": (d, 2 * d), "w_r": (heads, 2 * e),
              "b_r": (heads,), "w_g": (heads, e, 2 * e), "b_g": (heads, e)}  # fmt: skip
    layers = []
    for index in range(int(model["dialogue_layers"])):
        halves = [f"model.dialogue_scope.{index}.halves.{m}." for m in range(2)]
        made = {
            key: np.stack([one(half + name, *shapes.get(key, (d,))) for half in halves])
            for key, name in OF_LAYER.items()
        }
        for key, name, shape in (("project", "weight", (2 * d, d)), ("project_bias", "bias", (2 * d,))):
            joined = [[one(f"{h}{part}.{name}", *shape) for part in ("queries", "key_value")] for h in halves]
            made[key] = np.stack([np.concatenate(parts) for parts in joined])
        made["bias"] = one(f"model.bias.{index}.table", 2, heads, window, 3)
        layers.append(made)
    head = {"up": one("model.head.0.weight", d, 2 * d), "up_bias": one("model.head.0.bias", d),
            "down": one("model.head.3.weight", labels, d), "down_bias": one("model.head.3.bias", labels)}  # fmt: skip
    return DialogueWeights(layers, head, window, heads, e)


def weights(graph: bytes) -> dict[str, Array]:
    """Named weights of an ONNX file as it holds them, INT8 ones multiplied out.

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
    found: dict[str, Array] = {t.name: onnx.numpy_helper.to_array(t) for t in model.graph.initializer}
    channels = {
        n.input[0]: n.attribute[0].i for n in model.graph.node if n.op_type == "DequantizeLinear" and n.attribute
    }
    for name in [n for n in found if n.endswith("_int8")]:
        whole = name.removesuffix("_int8")
        integers, scale = found.pop(name), found.pop(f"{whole}_scale")
        axis = channels.get(name, 0)  # an embedding's rows are looked up first and scaled then
        spread = scale if scale.ndim == integers.ndim else _along(scale, axis, integers.ndim)
        found[whole] = integers * spread
    for weight, divisors in _divided(model, found).items():
        found[weight] = found[weight] * divisors[:, None]
    return found


def by_name(found: Mapping[str, Array]) -> dict[str, dict[str, Array]]:
    """Of each parameter what a file holds of it, by layout.

    >>> by_name({"a|T": np.ones(1), "b": np.ones(2)})
    {'a': {'T': array([1.])}, 'b': {'': array([1., 1.])}}
    """
    layouts: dict[str, dict[str, Array]] = {}
    for name, value in found.items():
        whole, _, layout = name.partition("|")
        layouts.setdefault(whole, {})[layout] = value
    return layouts


def laid_out(layouts: Mapping[str, Array], shape: tuple[int, ...]) -> Array:
    """A parameter of a shape from what a file holds of it."""
    if "softmax" in layouts:
        return np.asarray(np.log(layouts["softmax"]))
    for whole in ("", "T"):
        if whole in layouts:
            value = layouts[whole]
            return value if not whole else value.reshape(*shape[:-2], shape[-1], shape[-2]).swapaxes(-1, -2)
    parts = [(layouts.get(f"{m}"), layouts.get(f"{m}T")) for m in (0, 1)]
    return np.stack([plain if plain is not None else _untransposed(t, shape) for plain, t in parts])


def _along(scale: Array, axis: int, ndim: int) -> Array:
    """(channels,) along one of several axes."""
    spread: Array = np.expand_dims(scale.ravel(), [i for i in range(ndim) if i != axis])
    return spread


def _divided(model: Any, found: Mapping[str, Array]) -> dict[str, Array]:
    """Weights whose input a multiplication divides by channel (export/migrate.py), and by what each was multiplied."""
    makers = {out: node for node in model.graph.node for out in node.output}
    divided = {}
    for node in model.graph.node:
        if node.op_type != "MatMul" or node.input[1] not in found:
            continue
        maker = makers.get(node.input[0])
        while maker is not None and maker.op_type in ("DequantizeLinear", "QuantizeLinear"):
            maker = makers.get(maker.input[0])
        if maker is not None and maker.op_type == "Mul" and maker.input[1].endswith("_inverse"):
            divided[node.input[1]] = found[maker.input[1]]
    return divided


def _untransposed(value: Array | None, shape: tuple[int, ...]) -> Array:
    assert value is not None
    found: Array = value.T.reshape(shape[1:])
    return found
