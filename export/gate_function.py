"""The ONNX function of the gate node: standard operators, exported from the reference implementation.

A runtime that knows the node runs its own kernel (kernels/gate.py); any other runtime runs the function. Each file
holds the function of its own scope, with that scope's number of queries. Gates stay float32 in every precision.
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

if TYPE_CHECKING:  # GPU tests use `example_inputs` on machines without the package onnx
    from onnx import FunctionProto, ModelProto

BATCH = Dim("batch", min=1, max=4096)


class ReferenceGate(nn.Module):
    """The reference implementation with the inputs of the node, in the node's order: all of audio, then all of text."""

    def forward(self, *inputs: Tensor) -> tuple[Tensor, ...]:
        half = len(gate.INPUTS) // 2
        modalities = [inputs[:half], inputs[half:]]
        return tuple(
            reference(
                [(m[0], m[1]) for m in modalities],
                [Memory(*m[2:6]) for m in modalities],
                [GateWeights(*m[6:]) for m in modalities],
            )
        )


def add_function(model: ModelProto, scope: str, config: ModelConfig, opset: int) -> None:
    """Add the function to a model that holds the gate node; leave other models unchanged."""
    from onnx import helper

    if not any(node.op_type == gate.NAME for node in model.graph.node):
        return
    model.functions.append(build_function(*example_inputs(scope, config), opset))
    if gate.DOMAIN not in {entry.domain for entry in model.opset_import}:
        model.opset_import.append(helper.make_opsetid(gate.DOMAIN, gate.VERSION))


def example_inputs(scope: str, config: ModelConfig) -> tuple[list[Tensor], list[dict[int, Any]]]:
    """An example tensor and the dynamic axes for each input of the node.

    Utterance scope: one query per frame or token, no bias. Dialogue scope: one query, W + 1 keys.
    """
    heads, e = config.heads, config.width // config.heads
    tensors: list[Tensor] = []
    axes: list[dict[int, Any]] = []
    for length in ("frames", "tokens"):
        if scope == "utterance":
            count, slots = (3, 4) if length == "frames" else (7, 8)
            query_axes, key_axes = ({0: BATCH, 2: Dim(f"{length}{n}", min=1, max=512)} for n in (1, 2))
            bias, bias_axes = torch.zeros(1, 1, 1, 1), {}
        else:
            count, slots = 1, config.window + 1
            query_axes = key_axes = bias_axes = {0: BATCH}
            bias = torch.zeros(2, heads, 1, slots)
        query, key = torch.randn(2, heads, count, e), torch.randn(2, heads, slots, e)
        visible = torch.ones(2, 1, slots, dtype=torch.bool)
        tensors += [query, query.clone(), key, key.clone(), visible, bias]
        axes += [query_axes] * 2 + [key_axes] * 3 + [bias_axes]
        tensors += [torch.zeros(heads, 2 * e), torch.zeros(heads), torch.zeros(heads, e, 2 * e), torch.zeros(heads, e)]
        axes += [{}] * len(gate.WEIGHTS)
    return tensors, axes


def export_module(module: nn.Module, outputs: Sequence[str], opset: int, **settings: Any) -> ModelProto:
    """Export a module with PyTorch's exporter, and remove the stack traces, which name paths of this machine."""
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


def build_function(examples: list[Tensor], axes: list[dict[int, Any]], opset: int) -> FunctionProto:
    """Export the reference as an ONNX function. Functions have no initializers, so those become Constant nodes."""
    from onnx import helper

    settings = {"args": tuple(examples), "dynamic_shapes": (tuple(axes),), "input_names": list(gate.INPUTS)}
    graph = export_module(ReferenceGate(), gate.OUTPUTS, opset, **settings).graph
    constants = [helper.make_node("Constant", [], [tensor.name], value=tensor) for tensor in graph.initializer]
    result: FunctionProto = helper.make_function(
        gate.DOMAIN,
        gate.NAME,
        list(gate.INPUTS),
        list(gate.OUTPUTS),
        [*constants, *graph.node],
        [helper.make_opsetid("", opset)],
    )
    return result
