"""Replace patterns of small operators that PyTorch's exporter writes by fewer, larger operators.

`mix_layers`: an encoder's output is the weighted sum of its normalised layers, which the exporter writes as a stack and
an Einsum. It becomes one LayerNormalization per layer, scaled by the layer's share, and one Sum; the stack is never
written to memory. These are standard operators, for every precision:

    Einsum(LayerNormalization(Concat(Unsqueeze(layer_i))), shares) -> Sum(LayerNormalization(layer_i, weight · share_i))

`fuse_attention`: an encoder's self-attention becomes ONNX Runtime's MultiHeadAttention. Only INT8 bundles of the `cpu`
profile use it, since TensorRT does not have this operator. Other patterns stay as they are.
"""

from __future__ import annotations

from typing import NamedTuple

from onnx import ModelProto, NodeProto, TensorProto, helper

from export.qdq import set_nodes, sort_nodes
from export.quantizable_matmuls import GraphIndex

CONTRIB = "com.microsoft"
MASK = "token_mask"
# Operators that may stand between a projection and its product.
RESHAPING = ("Transpose", "Reshape", "Slice", "Squeeze", "Split", "Mul")


class Attention(NamedTuple):
    """A self-attention in a graph."""

    projections: tuple[str, ...]  # queries, keys and values before their biases (B, T, d); a single stacked tensor
    biases: tuple[str, ...]  # of each projection
    heads: int
    is_masked: bool  # whether padding is masked
    output: str  # the attention's result (B, T, d)


class Projection(NamedTuple):
    """Queries, keys or values."""

    tensor: str  # before the bias
    bias: str  # an initializer
    head_size: int  # 0 if the file does not say
    factor: float  # multiplied between projection and product


def mix_layers(model: ModelProto) -> ModelProto:
    """A copy whose encoder's layers are normalised and summed one by one."""
    result, index = _copy(model)
    for einsum in [node for node in model.graph.node if node.op_type == "Einsum"]:
        (stacked, shares), (output,) = einsum.input, einsum.output
        norm = index.producer(stacked, "LayerNormalization")
        layers = _stacked_layers(einsum, norm, index)
        if norm is None or not layers:
            continue
        names = [f"{output}_share_{i}" for i in range(len(layers))]
        # Split and Mul read only constants, so runtimes fold them on load and the shares keep their name in the file.
        nodes = [helper.make_node("Split", [shares], names, axis=0, num_outputs=len(names))]
        attributes = {a.name: helper.get_attribute_value(a) for a in norm.attribute}
        for share, layer in zip(names, layers, strict=True):
            nodes.append(helper.make_node("Mul", [norm.input[1], share], [f"{share}_weight"]))
            inputs = [layer, f"{share}_weight"]
            nodes.append(helper.make_node("LayerNormalization", inputs, [f"{share}_part"], **attributes))
        result.graph.node.remove(index.producers[output])
        result.graph.node.extend([*nodes, helper.make_node("Sum", [f"{share}_part" for share in names], [output])])
    return _remove_unused(result) if len(result.graph.node) > len(model.graph.node) else result


def _stacked_layers(einsum: NodeProto, norm: NodeProto | None, index: GraphIndex) -> list[str]:
    """The encoder layers (B, T, d) that an Einsum sums; empty if it does not sum stacked, normalised layers."""
    equation = helper.get_node_attr_value(einsum, "equation").replace(b" ", b"")
    stack = index.producer(norm.input[0], "Concat") if norm is not None and len(norm.input) == 2 else None
    if stack is None or equation != b"utsd,s->utd" or einsum.input[1] not in index.initializers:
        return []
    layers = [node.input[0] for name in stack.input if (node := index.producer(name, "Unsqueeze")) is not None]
    return layers if len(layers) == len(stack.input) else []


def fuse_attention(model: ModelProto) -> ModelProto:
    """A copy in which each self-attention of an encoder is one operator."""
    result, index = _copy(model)
    softmaxes = [node for node in result.graph.node if node.op_type == "Softmax"]
    attentions = [attention for node in softmaxes if (attention := _match_attention(node, index)) is not None]
    if not attentions:
        return result
    for attention in attentions:
        result.graph.node.remove(index.producers[attention.output])
        parts, bias = list(attention.projections), attention.biases[0]
        if len(parts) == 1:
            parts = [f"{attention.output}_{part}" for part in ("queries", "keys", "values")]
            result.graph.node.append(helper.make_node("Split", attention.projections, parts, axis=-1, num_outputs=3))
        else:
            bias = f"{attention.output}_bias"
            result.graph.node.append(helper.make_node("Concat", attention.biases, [bias], axis=0))
        inputs = [*parts, bias, *([f"{MASK}_int32"] if attention.is_masked else [])]
        result.graph.node.append(helper.make_node(
            "MultiHeadAttention", inputs, [attention.output], domain=CONTRIB, num_heads=attention.heads
        ))  # fmt: skip
    if any(attention.is_masked for attention in attentions):
        result.graph.node.append(helper.make_node("Cast", [MASK], [f"{MASK}_int32"], to=TensorProto.INT32))
    if CONTRIB not in {entry.domain for entry in result.opset_import}:
        result.opset_import.append(helper.make_opsetid(CONTRIB, 1))
    return _remove_unused(result)


def _match_attention(softmax: NodeProto, index: GraphIndex) -> Attention | None:
    """The self-attention around a Softmax, or None if the nodes are not those that PyTorch's exporter writes for it.

    The pattern: MatMul(queries, keys) [-> Add(mask)] -> Softmax [-> Where] -> MatMul(values) -> Transpose -> Reshape.
    """
    scores = index.producer(softmax.input[0], "MatMul", "Add")
    is_masked = scores is not None and scores.op_type == "Add"
    if is_masked and scores is not None:
        if not _depends_only_on_mask(scores.input[1], index):
            return None
        scores = index.producer(scores.input[0], "MatMul")
    shares = softmax.output[0]
    guard = index.consumer(shares, "Where")  # zero where a whole row is masked
    product = index.consumer(guard.output[0] if guard is not None else shares, "MatMul")
    transposed = index.consumer(product.output[0], "Transpose") if product is not None else None
    joined = index.consumer(transposed.output[0], "Reshape") if transposed is not None else None
    if scores is None or product is None or joined is None:
        return None
    matches = [_projection(name, index) for name in (*scores.input, product.input[1])]
    projections = [projection for projection in matches if projection is not None]
    if len(projections) < 3:
        return None
    head_size, scale = projections[0].head_size, projections[0].factor * projections[1].factor
    tensors = len({projection.tensor for projection in projections})  # 1 if queries, keys and values are stacked
    if tensors == 2 or head_size < 1 or abs(scale - head_size**-0.5) > 1e-4 or projections[2].factor != 1:
        return None
    distinct = projections[:tensors]
    width = sum(index.initializers[projection.bias].dims[0] for projection in distinct) // 3
    names, biases = tuple(p.tensor for p in distinct), tuple(p.bias for p in distinct)
    return Attention(names, biases, width // head_size, is_masked, joined.output[0])


def _projection(name: str, index: GraphIndex) -> Projection | None:
    """Follow an operand of a product back to the projection that it comes from."""
    factor, head_size = 1.0, 0
    while (node := index.producer(name, *RESHAPING)) is not None:
        if node.op_type == "Mul":
            multiplier = index.constant(node.input[1])
            if multiplier is None or multiplier.size != 1:
                return None
            factor *= float(multiplier.reshape(-1)[0])
        if node.op_type == "Reshape":
            head_size = _last_axis(node, index) or head_size
        name = node.input[0]
    node = index.producer(name, "Add")
    if node is None or node.input[1] not in index.initializers or len(index.initializers[node.input[1]].dims) != 1:
        return None
    return Projection(node.input[0], node.input[1], head_size, factor)


def _last_axis(reshape: NodeProto, index: GraphIndex) -> int:
    """Size of the last axis of a Reshape's target; 0 if the file does not say."""
    shape = index.producer(reshape.input[1], "Concat")
    value = index.constant(shape.input[-1] if shape is not None else reshape.input[1])
    return int(value.ravel()[-1]) if value is not None and value.size else 0


def _depends_only_on_mask(name: str, index: GraphIndex) -> bool:
    """Whether a tensor is computed from the token mask and shapes, and from no other input of the graph."""
    visited, pending = set(), [name]
    while pending:
        node = index.producers.get(pending.pop())
        for source in node.input if node is not None and node.op_type != "Shape" else []:
            if source not in visited and source not in index.initializers:
                visited.add(source)
                pending.append(source)
    return visited - set(index.producers) == {MASK}


def _copy(model: ModelProto) -> tuple[ModelProto, GraphIndex]:
    copied = ModelProto()
    copied.CopyFrom(model)
    return copied, GraphIndex(copied)


def _remove_unused(model: ModelProto) -> ModelProto:
    """Remove nodes, initializers and shapes that no output depends on, and sort the nodes, in place."""
    used, nodes = {value.name for value in model.graph.output}, []
    for node in reversed(sort_nodes(list(model.graph.node))):
        if used & set(node.output):
            nodes.append(node)
            used.update(node.input)
    produced = {name for node in nodes for name in node.output}
    set_nodes(model, nodes[::-1])
    for tensor in [t for t in model.graph.initializer if t.name not in used]:
        model.graph.initializer.remove(tensor)
    for value in [v for v in model.graph.value_info if v.name not in produced]:
        model.graph.value_info.remove(value)
    return model
