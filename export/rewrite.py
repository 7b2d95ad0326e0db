"""What PyTorch's exporter writes in many small operators, in fewer.

`mix_layers`: a stack of an encoder's states, normalised and summed by an Einsum, becomes a LayerNormalization of each,
whose weight is the layer's share, and one Sum: no stack is written. Standard operators, for every precision.
`fuse_attention`: an encoder's self-attention becomes ONNX Runtime's MultiHeadAttention, for the INT8 bundles that only
ONNX Runtime runs (CPU and CUDA have it). What does not look like either is left as it is.
"""

from __future__ import annotations

from typing import NamedTuple

from onnx import ModelProto, NodeProto, TensorProto, helper

from export.linears import Wiring
from export.qdq import set_nodes, sort

CONTRIB = "com.microsoft"
MASK = "token_mask"
MOVES = ("Transpose", "Reshape", "Slice", "Squeeze", "Split", "Mul")  # between a projection and its product


class Attention(NamedTuple):
    """A self-attention found in a graph."""

    projections: tuple[str, ...]  # tensors of queries, keys and values before their biases (B, T, d); one if stacked
    biases: tuple[str, ...]  # of each projection
    heads: int
    masked: bool  # whether padding is masked
    output: str  # the tensor (B, T, d) that it makes


class Projection(NamedTuple):
    """Queries, keys or values."""

    tensor: str  # before the bias
    bias: str  # a stored tensor
    size: int  # of a head, 0 where the file does not say
    factor: float  # that it is multiplied by on its way to the product


def mix_layers(model: ModelProto) -> ModelProto:
    """A copy whose encoder's layers are normalised and summed one by one."""
    made, wiring = _copy(model)
    for einsum in [node for node in model.graph.node if node.op_type == "Einsum"]:
        (stacked, shares), (output,) = einsum.input, einsum.output
        norm = wiring.made_by(stacked, "LayerNormalization")
        layers = _stacked_layers(einsum, norm, wiring)
        if norm is None or not layers:
            continue
        names = [f"{output}_share_{i}" for i in range(len(layers))]
        # Of constants alone: whoever loads the file computes these once, and the shares keep their name in it.
        nodes = [helper.make_node("Split", [shares], names, axis=0, num_outputs=len(names))]
        settings = {a.name: helper.get_attribute_value(a) for a in norm.attribute}
        for share, layer in zip(names, layers, strict=True):
            nodes.append(helper.make_node("Mul", [norm.input[1], share], [f"{share}_weight"]))
            inputs = [layer, f"{share}_weight"]
            nodes.append(helper.make_node("LayerNormalization", inputs, [f"{share}_part"], **settings))
        made.graph.node.remove(wiring.maker[output])
        made.graph.node.extend([*nodes, helper.make_node("Sum", [f"{share}_part" for share in names], [output])])
    return _tidied(made) if len(made.graph.node) > len(model.graph.node) else made


def _stacked_layers(einsum: NodeProto, norm: NodeProto | None, wiring: Wiring) -> list[str]:
    """The encoder's layers (B, T, d) that an Einsum sums, stacked and normalised; none where it is another one."""
    layout = helper.get_node_attr_value(einsum, "equation").replace(b" ", b"")
    stack = wiring.made_by(norm.input[0], "Concat") if norm is not None and len(norm.input) == 2 else None
    if stack is None or layout != b"utsd,s->utd" or einsum.input[1] not in wiring.stored:
        return []
    layers = [node.input[0] for name in stack.input if (node := wiring.made_by(name, "Unsqueeze")) is not None]
    return layers if len(layers) == len(stack.input) else []


def fuse_attention(model: ModelProto) -> ModelProto:
    """A copy whose encoder's self-attentions are one operator each."""
    made, wiring = _copy(model)
    softmaxes = [node for node in made.graph.node if node.op_type == "Softmax"]
    found = [one for node in softmaxes if (one := _attention(node, wiring)) is not None]
    if not found:
        return made
    for one in found:
        made.graph.node.remove(wiring.maker[one.output])
        parts, bias = list(one.projections), one.biases[0]
        if len(parts) == 1:
            parts = [f"{one.output}_{part}" for part in ("queries", "keys", "values")]
            made.graph.node.append(helper.make_node("Split", one.projections, parts, axis=-1, num_outputs=3))
        else:
            bias = f"{one.output}_bias"
            made.graph.node.append(helper.make_node("Concat", one.biases, [bias], axis=0))
        inputs = [*parts, bias, *([f"{MASK}_int32"] if one.masked else [])]
        node = helper.make_node("MultiHeadAttention", inputs, [one.output], domain=CONTRIB, num_heads=one.heads)
        made.graph.node.append(node)
    if any(one.masked for one in found):
        made.graph.node.append(helper.make_node("Cast", [MASK], [f"{MASK}_int32"], to=TensorProto.INT32))
    if CONTRIB not in {entry.domain for entry in made.opset_import}:
        made.opset_import.append(helper.make_opsetid(CONTRIB, 1))
    return _tidied(made)


def _attention(softmax: NodeProto, wiring: Wiring) -> Attention | None:
    """What stands around a Softmax, if it is an encoder's self-attention as PyTorch's exporter writes it."""
    scores = wiring.made_by(softmax.input[0], "MatMul", "Add")
    masked = scores is not None and scores.op_type == "Add"
    if masked and scores is not None:
        if not _reads_mask(scores.input[1], wiring):
            return None
        scores = wiring.made_by(scores.input[0], "MatMul")
    shares = softmax.output[0]
    guarded = wiring.next(shares, "Where")  # zero where a whole row is masked
    product = wiring.next(guarded.output[0] if guarded is not None else shares, "MatMul")
    turned = wiring.next(product.output[0], "Transpose") if product is not None else None
    joined = wiring.next(turned.output[0], "Reshape") if turned is not None else None
    if scores is None or product is None or joined is None:
        return None
    sides = [_projection(name, wiring) for name in (*scores.input, product.input[1])]
    if None in sides:
        return None
    found = [side for side in sides if side is not None]
    size, scale = found[0].size, found[0].factor * found[1].factor
    tensors = len({side.tensor for side in found})
    if tensors == 2 or size < 1 or abs(scale - size**-0.5) > 1e-4 or found[2].factor != 1:
        return None
    chosen = found[:tensors]
    width = sum(wiring.stored[side.bias].dims[0] for side in chosen) // 3
    return Attention(tuple(side.tensor for side in chosen), tuple(side.bias for side in chosen), width // size, masked,
                     joined.output[0])  # fmt: skip


def _projection(name: str, wiring: Wiring) -> Projection | None:
    """From an operand of a product back to the projection that it comes of."""
    factor, size = 1.0, 0
    while (node := wiring.made_by(name, *MOVES)) is not None:
        if node.op_type == "Mul":
            by = wiring.value(node.input[1])
            if by is None or by.size != 1:
                return None
            factor *= float(by.reshape(-1)[0])
        if node.op_type == "Reshape":
            size = _last(node, wiring) or size
        name = node.input[0]
    node = wiring.made_by(name, "Add")
    if node is None or node.input[1] not in wiring.stored or len(wiring.stored[node.input[1]].dims) != 1:
        return None
    return Projection(node.input[0], node.input[1], size, factor)


def _last(reshape: NodeProto, wiring: Wiring) -> int:
    """The last axis of a Reshape's target, 0 where the file does not say."""
    shape = wiring.made_by(reshape.input[1], "Concat")
    found = wiring.value(shape.input[-1] if shape is not None else reshape.input[1])
    return int(found.ravel()[-1]) if found is not None and found.size else 0


def _reads_mask(name: str, wiring: Wiring) -> bool:
    """Whether a tensor comes of the mask of the tokens and of no other input but their number."""
    seen, left = set(), [name]
    while left:
        node = wiring.maker.get(left.pop())
        for each in node.input if node is not None and node.op_type != "Shape" else []:
            if each not in seen and each not in wiring.stored:
                seen.add(each)
                left.append(each)
    return seen - set(wiring.maker) == {MASK}


def _copy(model: ModelProto) -> tuple[ModelProto, Wiring]:
    made = ModelProto()
    made.CopyFrom(model)
    return made, Wiring(made)


def _tidied(model: ModelProto) -> ModelProto:
    """Without what nobody reads any more, in order, in place."""
    read, nodes = {value.name for value in model.graph.output}, []
    for node in reversed(sort(list(model.graph.node))):
        if read & set(node.output):
            nodes.append(node)
            read.update(node.input)
    made = {name for node in nodes for name in node.output}
    set_nodes(model, nodes[::-1])
    for tensor in [t for t in model.graph.initializer if t.name not in read]:
        model.graph.initializer.remove(tensor)
    for value in [v for v in model.graph.value_info if v.name not in made]:
        model.graph.value_info.remove(value)
    return model
