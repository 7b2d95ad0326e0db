"""Scale migration and bias correction: what makes INT8 activations and weights cost less, at no cost at run time.

A few channels of an encoder's states are a hundred times larger than the others and would take the whole grid. Before
rounding, each channel is divided by a factor that its row of weights is multiplied with: the product is the same. Where
a LayerNorm alone feeds the product the factor goes into the LayerNorm, elsewhere one multiplication is added.

Source: SmoothQuant (Xiao et al., 2023), equation 4; bias correction: Nagel et al. (2019), section 4.2.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from onnx import ModelProto, helper, numpy_helper

from export.linears import Linear, Wiring

MIGRATED = ("audio", "text")  # graphs; the fusion's own states are even, there it gained nothing
SUFFIX = "_inverse"


@dataclass(frozen=True)
class Channels:
    """Smallest, largest and mean value of each channel of an activation, (channels,) each."""

    low: NDArray[np.float32]
    high: NDArray[np.float32]
    mean: NDArray[np.float32]

    def divided(self, factors: NDArray[np.float32]) -> Channels:
        """The same activation with every channel divided."""
        return Channels(self.low / factors, self.high / factors, self.mean / factors)


def factors_of(seen: Channels, weights: Sequence[NDArray[np.float32]], strength: float) -> NDArray[np.float32]:
    """What each channel is divided by: reach ** strength / weights' reach ** (1 − strength), around 1.

    >>> seen = Channels(*(np.array(x, np.float32) for x in ([-1, -1, -1], [100, 1, 1], [0, 0, 0])))
    >>> [round(float(f), 2) for f in factors_of(seen, [np.ones((3, 2), np.float32)], 0.5)]
    [4.64, 0.46, 0.46]
    """
    reach = np.maximum(np.maximum(seen.high, -seen.low), 1e-5)
    largest = np.maximum(np.max([np.abs(w).max(1) for w in weights], axis=0), 1e-5)
    raw = reach**strength / largest ** (1 - strength)
    return np.asarray(np.clip(raw / np.exp(np.log(raw).mean()), 1e-3, 1e3), np.float32)


def migrate(
    model: ModelProto, chosen: Sequence[Linear], channels: Mapping[str, Channels], strength: float
) -> dict[str, tuple[str, Channels]]:
    """Move scale from activations into weights, in place; strength 0 leaves everything, 1 moves all of it.

    Returns:
        for every activation that was touched the tensor that takes its place (itself where a LayerNorm took the
        factors) and that one's channels.
    """
    groups: dict[str, list[Linear]] = {}
    for linear in chosen:
        if linear.key in channels and linear.graph in MIGRATED:
            groups.setdefault(linear.activation, []).append(linear)
    wiring, found = Wiring(model), {}
    for activation, group in groups.items():
        weights = list(dict.fromkeys(one.weight for one in group))
        readers = {node.name for weight in weights for node in wiring.readers[weight]}
        if activation not in wiring.maker or not readers <= {one.node for one in group}:
            continue  # an input of the graph, or a weight that something else reads
        seen, values = channels[group[0].key], {name: wiring.array(name) for name in weights}
        factors = factors_of(seen, list(values.values()), strength)
        for name, value in values.items():
            wiring.replace(name, value * factors[:, None])
        found[activation] = (_divide(model, wiring, activation, group, factors), seen.divided(factors))
    return found


def correct_bias(model: ModelProto, linear: Linear, error: NDArray[np.float32], mean: NDArray[np.float32]) -> None:
    """Add to a product's bias, where it has one, what rounding its weights (error = weights − rounded) takes away."""
    wiring = Wiring(model)
    out = next(n for n in model.graph.node if n.name == linear.node).output[0]
    readers = wiring.readers.get(out, [])
    if [node.op_type for node in readers] != ["Add"]:
        return
    bias = next(name for name in readers[0].input if name != out)
    value = wiring.value(bias)
    if value is not None and value.shape == error.shape[1:]:
        wiring.replace(bias, value + (mean @ error).astype(np.float32))


def _divide(
    model: ModelProto, wiring: Wiring, activation: str, group: Sequence[Linear], factors: NDArray[np.float32]
) -> str:
    """Have the activation come divided; the name under which the group's products find it."""
    maker, users, nodes = wiring.maker[activation], wiring.readers[activation], {one.node for one in group}
    read_by_these_alone = {n.name for n in users} == nodes and activation not in {o.name for o in model.graph.output}
    own = all(name in wiring.stored and len(wiring.readers[name]) == 1 for name in maker.input[1:])
    if maker.op_type == "LayerNormalization" and read_by_these_alone and own:
        for name in maker.input[1:]:
            wiring.replace(name, wiring.array(name) / factors)
        return activation
    divided = f"{activation}_divided"
    model.graph.initializer.append(numpy_helper.from_array(1 / factors, f"{activation}{SUFFIX}"))
    place = list(model.graph.node).index(users[0])
    node = helper.make_node("Mul", [activation, f"{activation}{SUFFIX}"], [divided])
    model.graph.node.insert(place, node)
    for one in model.graph.node:
        if one.name in nodes:
            one.input[0] = divided
    return divided
