"""Find the products of a graph that can be computed in INT8, and the block of the model that each belongs to.

A block is the attention or the feed-forward network of a layer, or a named part such as the audio context network. The
sensitivity search keeps or quantises whole blocks.

These are never quantised: the head, products inside a gate, and Gemm products of one row (the head's, the context
step's, the pools'). Their weights are stored in INT8, the products are computed in float32.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from onnx import ModelProto, NodeProto, TensorProto, numpy_helper

SMALLEST = 4096  # elements; smaller weights (norms, biases, mixing weights) save no space and can be sensitive
FEED_FORWARD = re.compile(r"\bfeed\b|\bintermediate\b|(?<!attention\.)\boutput\b")
PART = re.compile(r"^(?:model|encoder)\.(?:encoder\.)?([a-z_]+\d?(?:\.\d+)?)(?:\.|$)")


@dataclass(frozen=True)
class QuantizableMatmul:
    """A product of an activation with a constant weight: a MatMul, or a Conv with one group."""

    graph: str  # audio, text, utterance or dialogue
    block: str  # such as "text/layer.3 feed"
    node: str  # name of the MatMul or Conv node
    activation: str  # name of the input tensor
    weight: str  # name of the initializer
    axis: int  # axis of the weight that holds the output channels

    @property
    def key(self) -> str:
        """The activation's name, unique over all graphs."""
        return f"{self.graph}/{self.activation}"


class GraphIndex:
    """Producer, consumers and initializers of a graph's tensors, by name."""

    def __init__(self, model: ModelProto) -> None:
        self.producers = {name: node for node in model.graph.node for name in node.output}
        self.consumers: dict[str, list[NodeProto]] = {}
        for node in model.graph.node:
            for name in node.input:
                self.consumers.setdefault(name, []).append(node)
        self.initializers = {tensor.name: tensor for tensor in model.graph.initializer}

    def producer(self, name: str, *op_types: str) -> NodeProto | None:
        """The node that produces a tensor, if it has one of these operator types."""
        node = self.producers.get(name)
        return node if node is not None and node.op_type in op_types else None

    def consumer(self, name: str, *op_types: str) -> NodeProto | None:
        """The first node of one of these operator types that reads a tensor."""
        return next((node for node in self.consumers.get(name, []) if node.op_type in op_types), None)

    def array(self, name: str) -> NDArray[Any]:
        """The value of an initializer."""
        return numpy_helper.to_array(self.initializers[name])

    def constant(self, name: str) -> NDArray[Any] | None:
        """The value of an initializer, or None if there is no initializer of this name."""
        return self.array(name) if name in self.initializers else None

    def replace(self, name: str, value: NDArray[Any]) -> None:
        """Overwrite the value of an initializer."""
        self.initializers[name].CopyFrom(numpy_helper.from_array(np.asarray(value, np.float32), name))


def quantizable_matmuls(graph: str, model: ModelProto) -> list[QuantizableMatmul]:
    """All quantizable products of one graph, in graph order."""
    weights = {t.name: t for t in model.graph.initializer if t.data_type == TensorProto.FLOAT}
    matmuls = []
    for node in model.graph.node:
        if node.op_type not in ("MatMul", "Conv") or node.input[1] not in weights or node.input[0] in weights:
            continue
        weight, axis = node.input[1], output_axis(node)
        block = block_of(graph, weight)
        is_large = np.prod(weights[weight].dims) >= SMALLEST
        if is_large and axis is not None and len(weights[weight].dims) <= 3 and "head" not in block:
            matmuls.append(QuantizableMatmul(graph, block, node.name, node.input[0], weight, axis))
    return matmuls


def output_axis(node: NodeProto) -> int | None:
    """Axis of the weight that holds the output channels; None for a grouped convolution."""
    if node.op_type == "MatMul":
        return 1
    groups = next((a.i for a in node.attribute if a.name == "group"), 1)
    return 0 if groups == 1 else None


def block_of(graph: str, weight: str) -> str:
    """The block that a weight belongs to, read from the weight's name.

    >>> block_of("text", "encoder.encoder.layer.3.attention.output.dense.weight|T")
    'text/layer.3 attention'
    >>> block_of("text", "encoder.encoder.layer.3.output.dense.weight|T")
    'text/layer.3 feed'
    >>> block_of("dialogue", "model.dialogue_scope.1.halves.0.queries.weight|T")
    'dialogue/dialogue_scope.1 attention'
    >>> block_of("utterance", "model.audio.convolve.gate.weight|T"), block_of("audio", "encoder.conv1.weight")
    ('utterance/audio', 'audio/conv1')
    """
    name = weight.partition("|")[0].removesuffix(".weight")
    match = PART.match(name)
    if not match:
        return f"{graph}/{name}"
    part = match.group(1)
    if "." not in part or part.startswith("pool"):
        return f"{graph}/{part}"
    return f"{graph}/{part} {'feed' if FEED_FORWARD.search(name[match.end() :]) else 'attention'}"
