"""Which products of a graph can be computed in INT8, and which block of the model each belongs to.

A block is a layer's attention or feed-forward, or a named part such as the audio context network: what a person would
keep in floating point as a whole. The head, and all inside a gate, are never among them; nor are Gemm products of one
row (the head's, the context step's, the pools'): those are computed in float32, their weights being stored in INT8.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

import numpy as np
from onnx import ModelProto, NodeProto, TensorProto

SMALLEST = 4096  # elements; below that a weight costs nothing and may carry a lot (norms, biases, mixing weights)
FEED = re.compile(r"\bfeed\b|\bintermediate\b|(?<!attention\.)\boutput\b")
PART = re.compile(r"^(?:model|encoder)\.(?:encoder\.)?([a-z_]+\d?(?:\.\d+)?)(?:\.|$)")


@dataclass(frozen=True)
class Linear:
    """A product of an activation with a constant weight.

    Attributes:
        graph: audio, text, utterance or dialogue.
        block: what it is a part of, such as "text/layer.3 feed".
        node: the name of the MatMul or Conv.
        activation: the tensor that goes in.
        weight: the initializer.
        axis: which axis of the weight holds the output channels.
    """

    graph: str
    block: str
    node: str
    activation: str
    weight: str
    axis: int

    @property
    def key(self) -> str:
        """The activation's name among all graphs."""
        return f"{self.graph}/{self.activation}"


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
