"""The body of the gate's node: an ONNX function of standard operators, made from the reference by the exporter itself.

Each file gets the body of its own scope, with as many queries as that scope asks; names, inputs and meaning are the
same (kernels/gate.py). Gates stay float32 in every precision.
"""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.export import Dim

from kernels import gate
from kernels.reference import GateWeights, Memory
from kernels.reference import both_gates as reference
from training.config import ModelConfig

if TYPE_CHECKING:  # tests on a GPU take `example` where the package onnx is not installed
    from onnx import FunctionProto, ModelProto

BATCH = Dim("batch", min=1, max=4096)


class Body(nn.Module):
    """The reference with the node's inputs, in the node's order."""

    def forward(self, *inputs: Tensor) -> tuple[Tensor, ...]:
        half = len(gate.INPUTS) // 2
        sides = [inputs[:half], inputs[half:]]
        return tuple(
            reference(
                [(s[0], s[1]) for s in sides],
                [Memory(*s[2:6]) for s in sides],
                [GateWeights(*s[6:]) for s in sides],
            )
        )


def add_function(model: ModelProto, scope: str, config: ModelConfig, opset: int) -> None:
    """Give the model of a scope that holds the node its function."""
    from onnx import helper

    if not any(node.op_type == gate.NAME for node in model.graph.node):
        return
    model.functions.append(function(*example(scope, config), opset))
    if gate.DOMAIN not in {entry.domain for entry in model.opset_import}:
        model.opset_import.append(helper.make_opsetid(gate.DOMAIN, gate.VERSION))


def example(scope: str, config: ModelConfig) -> tuple[list[Tensor], list[dict[int, Any]]]:
    """A tensor for each of the node's inputs as a scope gives them, and which axes vary.

    Utterance scope: as many queries as there are frames or tokens, no bias. Dialogue scope: one query, W + 1 slots.
    """
    heads, e = config.heads, config.width // config.heads
    tensors: list[Tensor] = []
    dims: list[dict[int, Any]] = []
    for length in ("frames", "tokens"):
        if scope == "utterance":
            count, slots = (3, 4) if length == "frames" else (7, 8)
            asks, remembers = ({0: BATCH, 2: Dim(f"{length}{n}", min=1, max=512)} for n in (1, 2))
            bias, bias_varies = torch.zeros(1, 1, 1, 1), {}
        else:
            count, slots = 1, config.window + 1
            asks = remembers = bias_varies = {0: BATCH}
            bias = torch.zeros(2, heads, 1, slots)
        query, key = torch.randn(2, heads, count, e), torch.randn(2, heads, slots, e)
        visible = torch.ones(2, 1, slots, dtype=torch.bool)
        tensors += [query, query.clone(), key, key.clone(), visible, bias]
        dims += [asks] * 2 + [remembers] * 3 + [bias_varies]
        tensors += [torch.zeros(heads, 2 * e), torch.zeros(heads), torch.zeros(heads, e, 2 * e), torch.zeros(heads, e)]
        dims += [{}] * len(gate.WEIGHTS)
    return tensors, dims


def traced(module: nn.Module, outputs: Sequence[str], opset: int, **settings: Any) -> ModelProto:
    """What PyTorch's exporter makes of a module, without stack traces: no use at run time, and they name paths."""
    with torch.inference_mode(False), torch.no_grad(), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        program = torch.onnx.export(
            module.eval(), output_names=list(outputs), opset_version=opset, dynamo=True, verbose=False, **settings
        )
    assert program is not None
    proto = program.model_proto
    for node in proto.graph.node:
        del node.metadata_props[:]
        node.doc_string = ""
    return proto


def function(examples: list[Tensor], dims: list[dict[int, Any]], opset: int) -> FunctionProto:
    """The exported reference as a function; constants that the exporter stored beside the graph become nodes of it."""
    from onnx import helper

    settings = {"args": tuple(examples), "dynamic_shapes": (tuple(dims),), "input_names": list(gate.INPUTS)}
    graph = traced(Body(), gate.OUTPUTS, opset, **settings).graph
    constants = [helper.make_node("Constant", [], [tensor.name], value=tensor) for tensor in graph.initializer]
    made: FunctionProto = helper.make_function(
        gate.DOMAIN,
        gate.NAME,
        list(gate.INPUTS),
        list(gate.OUTPUTS),
        [*constants, *graph.node],
        [helper.make_opsetid("", opset)],
    )
    return made
