"""Which products of a graph can be computed in INT8, and which block of the model each belongs to.

A block is a layer's attention or feed-forward, or a named part such as the audio context network: what a person would
keep in floating point as a whole. The head, and all inside a gate, are never among them; nor are Gemm products of one
row (the head's, the context step's, the pools'): those are computed in float32, their weights being stored in INT8.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from onnx import ModelProto, NodeProto, TensorProto, numpy_helper

SMALLEST = 4096  # elements; below that a weight costs nothing and may carry a lot (norms, biases, mixing weights)
FEED = re.compile(r"\bfeed\b|\bintermediate\b|(?<!attention\.)\boutput\b")
PART = re.compile(r"^(?:model|encoder)\.(?:encoder\.)?([a-z_]+\d?(?:\.\d+)?)(?:\.|$)")


@dataclass(frozen=True)
class Linear:
    """A product of an activation with a constant weight."""

    graph: str  # audio, text, utterance or dialogue
    block: str  # what it is a part of, such as "text/layer.3 feed"
    node: str  # the name of the MatMul or Conv
    activation: str  # the tensor that goes in
    weight: str  # the initializer
    axis: int  # which axis of the weight holds the output channels

    @property
    def key(self) -> str:
        """The activation's name among all graphs."""
        return f"{self.graph}/{self.activation}"


class Wiring:
    """Who makes and who reads each tensor of a graph."""

    def __init__(self, model: ModelProto) -> None:
        self.maker = {name: node for node in model.graph.node for name in node.output}
        self.readers: dict[str, list[NodeProto]] = {}
        for node in model.graph.node:
            for name in node.input:
                self.readers.setdefault(name, []).append(node)
        self.stored = {tensor.name: tensor for tensor in model.graph.initializer}

    def made_by(self, name: str, *kinds: str) -> NodeProto | None:
        """The operator that makes a tensor, if it is one of these."""
        node = self.maker.get(name)
        return node if node is not None and node.op_type in kinds else None

    def next(self, name: str, *kinds: str) -> NodeProto | None:
        """The first operator of these kinds that reads a tensor."""
        return next((node for node in self.readers.get(name, []) if node.op_type in kinds), None)

    def array(self, name: str) -> NDArray[Any]:
        """What a stored tensor holds."""
        return numpy_helper.to_array(self.stored[name])

    def value(self, name: str) -> NDArray[Any] | None:
        """The same, None where none of that name is stored."""
        return self.array(name) if name in self.stored else None

    def replace(self, name: str, value: NDArray[Any]) -> None:
        """Give a stored tensor other content."""
        self.stored[name].CopyFrom(numpy_helper.from_array(np.asarray(value, np.float32), name))


def linears(graph: str, model: ModelProto) -> list[Linear]:
    """Of one graph, in the order of the graph."""
    weights = {t.name: t for t in model.graph.initializer if t.data_type == TensorProto.FLOAT}
    found = []
    for node in model.graph.node:
        if node.op_type not in ("MatMul", "Conv") or node.input[1] not in weights or node.input[0] in weights:
            continue
        weight, axis = node.input[1], channels(node)
        block = block_of(graph, weight)
        large = np.prod(weights[weight].dims) >= SMALLEST
        if large and axis is not None and len(weights[weight].dims) <= 3 and "head" not in block:
            found.append(Linear(graph, block, node.name, node.input[0], weight, axis))
    return found


def channels(node: NodeProto) -> int | None:
    """The weight's axis of output channels; None for what is no plain layer (grouped convolutions)."""
    if node.op_type == "MatMul":
        return 1
    groups = next((a.i for a in node.attribute if a.name == "group"), 1)
    return 0 if groups == 1 else None


def block_of(graph: str, weight: str) -> str:
    """The block of a weight by its name.

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
    found = PART.match(name)
    if not found:
        return f"{graph}/{name}"
    part = found.group(1)
    if "." not in part or part.startswith("pool"):
        return f"{graph}/{part}"
    return f"{graph}/{part} {'feed' if FEED.search(name[found.end() :]) else 'attention'}"
