"""SmoothQuant and bias correction: INT8 loses less, and inference costs the same.

A few channels of an encoder's states are about a hundred times larger than the others; a scale for the whole tensor
would leave the small channels only a few of the 256 levels. SmoothQuant divides each channel of the activation by a
factor and multiplies the matching row of the weights with it, so the product stays the same:

    x = [100, 1], W = [[1], [1]], factors = [10, 1]  ->  x / factors = [10, 1], factors · W = [[10], [1]]; x·W = 101

If the activation comes from a LayerNorm that feeds only this product, the division goes into the LayerNorm's weights;
otherwise one Mul node is added.

Sources: SmoothQuant (Xiao et al., 2023), equation 4; bias correction: Nagel et al. (2019), section 4.2.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from onnx import ModelProto, helper, numpy_helper

from export.quantizable_matmuls import GraphIndex, QuantizableMatmul

SMOOTHED_GRAPHS = ("audio", "text")  # the fusion's states have no outlier channels; smoothing gained nothing there
SUFFIX = "_inverse"


@dataclass(frozen=True)
class ChannelStats:
    """Smallest, largest and mean value of each channel of an activation, (channels,) each."""

    low: NDArray[np.float32]
    high: NDArray[np.float32]
    mean: NDArray[np.float32]

    def divided(self, factors: NDArray[np.float32]) -> ChannelStats:
        """The statistics after each channel was divided by its factor."""
        return ChannelStats(self.low / factors, self.high / factors, self.mean / factors)


def smoothing_factors(
    stats: ChannelStats, weights: Sequence[NDArray[np.float32]], strength: float
) -> NDArray[np.float32]:
    """The divisor of each channel: max|x| ** strength / max|w| ** (1 − strength), with a geometric mean of 1.

    >>> stats = ChannelStats(*(np.array(x, np.float32) for x in ([-1, -1, -1], [100, 1, 1], [0, 0, 0])))
    >>> [round(float(f), 2) for f in smoothing_factors(stats, [np.ones((3, 2), np.float32)], 0.5)]
    [4.64, 0.46, 0.46]
    """
    largest_input = np.maximum(np.maximum(stats.high, -stats.low), 1e-5)
    largest_weight = np.maximum(np.max([np.abs(w).max(1) for w in weights], axis=0), 1e-5)
    raw = largest_input**strength / largest_weight ** (1 - strength)
    return np.asarray(np.clip(raw / np.exp(np.log(raw).mean()), 1e-3, 1e3), np.float32)


def smoothquant(
    model: ModelProto, matmuls: Sequence[QuantizableMatmul], channels: Mapping[str, ChannelStats], strength: float
) -> dict[str, tuple[str, ChannelStats]]:
    """Move scale from activations into weights, in place.

    Args:
        model: float32 graph.
        matmuls: the products that will be computed in INT8.
        channels: statistics by `QuantizableMatmul.key`.
        strength: 0 changes nothing, 1 moves the whole scale.

    Returns:
        For each activation that was divided: the tensor that now feeds the products (the activation itself if a
        LayerNorm took the factors), and the new statistics.
    """
    groups: dict[str, list[QuantizableMatmul]] = {}
    for matmul in matmuls:
        if matmul.key in channels and matmul.graph in SMOOTHED_GRAPHS:
            groups.setdefault(matmul.activation, []).append(matmul)
    index, smoothed = GraphIndex(model), {}
    for activation, group in groups.items():
        weights = list(dict.fromkeys(matmul.weight for matmul in group))
        consumers = {node.name for weight in weights for node in index.consumers[weight]}
        if activation not in index.producers or not consumers <= {matmul.node for matmul in group}:
            continue  # an input of the graph, or a weight that another product also reads
        stats, values = channels[group[0].key], {name: index.array(name) for name in weights}
        factors = smoothing_factors(stats, list(values.values()), strength)
        for name, value in values.items():
            index.replace(name, value * factors[:, None])
        smoothed[activation] = (_divide(model, index, activation, group, factors), stats.divided(factors))
    return smoothed


def correct_bias(
    model: ModelProto, matmul: QuantizableMatmul, error: NDArray[np.float32], mean: NDArray[np.float32]
) -> None:
    """Add the mean output error of rounded weights to the bias of a product, if the product has a bias.

    Args:
        model: changed in place.
        matmul: the product.
        error: weights − rounded weights, (in, out).
        mean: mean of each input channel, (in,).
    """
    index = GraphIndex(model)
    output = next(n for n in model.graph.node if n.name == matmul.node).output[0]
    consumers = index.consumers.get(output, [])
    if [node.op_type for node in consumers] != ["Add"]:
        return
    bias = next(name for name in consumers[0].input if name != output)
    value = index.constant(bias)
    if value is not None and value.shape == error.shape[1:]:
        index.replace(bias, value + (mean @ error).astype(np.float32))


def _divide(
    model: ModelProto, index: GraphIndex, activation: str, group: Sequence[QuantizableMatmul],
    factors: NDArray[np.float32],
) -> str:  # fmt: skip
    """Divide an activation by channel; return the name of the divided tensor."""
    producer, consumers = index.producers[activation], index.consumers[activation]
    nodes = {matmul.node for matmul in group}
    is_internal = {n.name for n in consumers} == nodes and activation not in {o.name for o in model.graph.output}
    owns_weights = all(name in index.initializers and len(index.consumers[name]) == 1 for name in producer.input[1:])
    if producer.op_type == "LayerNormalization" and is_internal and owns_weights:
        for name in producer.input[1:]:
            index.replace(name, index.array(name) / factors)
        return activation
    divided = f"{activation}_divided"
    model.graph.initializer.append(numpy_helper.from_array(1 / factors, f"{activation}{SUFFIX}"))
    position = list(model.graph.node).index(consumers[0])
    node = helper.make_node("Mul", [activation, f"{activation}{SUFFIX}"], [divided])
    model.graph.node.insert(position, node)
    for node in model.graph.node:
        if node.name in nodes:
            node.input[0] = divided
    return divided
