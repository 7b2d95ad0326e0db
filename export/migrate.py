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
from onnx import ModelProto, NodeProto, helper, numpy_helper

from export.linears import Linear

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
    """Move scale from activations into weights, in place.

    Args:
        model: one graph.
        chosen: its products that will be computed in INT8; only those of plain matrices are touched.
        channels: by `Linear.key`.
        strength: 0 leaves everything, 1 moves all of it.

    Returns:
        for every activation that was touched the tensor that takes its place (itself where a LayerNorm took the
        factors) and that one's channels.
    """
    groups: dict[str, list[Linear]] = {}
    for linear in chosen:
        if linear.key in channels and linear.graph in MIGRATED:
            groups.setdefault(linear.activation, []).append(linear)
    found = {}
    for activation, group in groups.items():
        if not _movable(model, activation, group):
            continue
        seen = channels[group[0].key]
        names = [one.weight for one in group]
        factors = factors_of(seen, [value_of(model, name) for name in names], strength)
        for name in set(names):
            replace(model, name, value_of(model, name) * factors[:, None])
        found[activation] = (_divide(model, activation, group, factors), seen.divided(factors))
    return found


def correct_bias(model: ModelProto, linear: Linear, error: NDArray[np.float32], mean: NDArray[np.float32]) -> None:
    """Add to a product's bias, where it has one, what rounding its weights (error = weights − rounded) takes away."""
    nodes = {n.name: n for n in model.graph.node}
    out = nodes[linear.node].output[0]
    readers = [n for n in model.graph.node if out in n.input]
    if len(readers) != 1 or readers[0].op_type != "Add":
        return
    bias = next(name for name in readers[0].input if name != out)
    tensor = next((t for t in model.graph.initializer if t.name == bias), None)
    if tensor is not None and list(tensor.dims) == [error.shape[1]]:
        replace(model, bias, value_of(model, bias) + (mean @ error).astype(np.float32))


def value_of(model: ModelProto, name: str) -> NDArray[np.float32]:
    """An initializer's content."""
    value: NDArray[np.float32] = numpy_helper.to_array(next(t for t in model.graph.initializer if t.name == name))
    return value


def replace(model: ModelProto, name: str, value: NDArray[np.float32]) -> None:
    """Give an initializer other content."""
    tensor = next(t for t in model.graph.initializer if t.name == name)
    tensor.CopyFrom(numpy_helper.from_array(np.asarray(value, np.float32), name))


def _divide(model: ModelProto, activation: str, group: Sequence[Linear], factors: NDArray[np.float32]) -> str:
    """Have the activation come divided; the name under which the group's products find it."""
    users = [n for n in model.graph.node if activation in n.input]
    maker = next(n for n in model.graph.node if activation in n.output)
    shown = activation in {o.name for o in model.graph.output}
    read_by_these_alone = not shown and {n.name for n in users} == {one.node for one in group}
    if maker.op_type == "LayerNormalization" and read_by_these_alone and _is_alone(model, maker):
        for name in maker.input[1:]:
            replace(model, name, value_of(model, name) / factors)
        return activation
    divided = f"{activation}_divided"
    model.graph.initializer.append(numpy_helper.from_array(1 / factors, f"{activation}{SUFFIX}"))
    place = list(model.graph.node).index(users[0])
    node = helper.make_node("Mul", [activation, f"{activation}{SUFFIX}"], [divided])
    model.graph.node.insert(place, node)
    for one in model.graph.node:
        if one.name in {linear.node for linear in group}:
            one.input[0] = divided
    return divided


def _movable(model: ModelProto, activation: str, group: Sequence[Linear]) -> bool:
    """Whether an operator makes the activation, and nothing but this group reads the group's weights."""
    names, weights = {one.node for one in group}, {one.weight for one in group}
    readers = {n.name for n in model.graph.node if weights & set(n.input)}
    return readers <= names and any(activation in n.output for n in model.graph.node)


def _is_alone(model: ModelProto, norm: NodeProto) -> bool:
    """Whether nothing else uses a LayerNorm's weight and bias, and both are stored."""
    stored = {t.name for t in model.graph.initializer}
    others = [n for n in model.graph.node if n is not norm and set(n.input) & set(norm.input[1:])]
    return not others and set(norm.input[1:]) <= stored
