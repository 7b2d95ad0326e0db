"""The gate's node: in the files that hold it, and its function against the reference in float64."""

import numpy as np
import onnx
import onnxruntime as ort
import pytest
import torch
from onnx import TensorProto, helper

from export.gate_function import example, function
from export.to_onnx import OPSET
from kernels import gate
from kernels.reference import GateWeights, Memory, both_gates
from training.config import ModelConfig

CONFIG = ModelConfig(width=32, heads=4, window=5)


def run_alone(body, inputs):
    """A model of nothing but the node and its function, on ONNX Runtime."""
    kinds = {torch.bool: TensorProto.BOOL, torch.float32: TensorProto.FLOAT}
    graph = helper.make_graph(
        [
            helper.make_node(
                gate.NAME, list(gate.INPUTS), list(gate.OUTPUTS), domain=gate.DOMAIN, plugin_namespace=gate.DOMAIN
            )
        ],
        "gate",
        [helper.make_tensor_value_info(n, kinds[t.dtype], t.shape) for n, t in zip(gate.INPUTS, inputs, strict=True)],
        [helper.make_tensor_value_info(n, TensorProto.FLOAT, None) for n in gate.OUTPUTS],
    )
    imports = [helper.make_opsetid("", OPSET), helper.make_opsetid(gate.DOMAIN, gate.VERSION)]
    model = helper.make_model(graph, functions=[body], opset_imports=imports, ir_version=10)
    session = ort.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    return session.run(None, {n: t.numpy() for n, t in zip(gate.INPUTS, inputs)})


def drawn(scope, batch, queries, slots):
    """Random inputs; in the last row nothing of the text is visible, in the first nothing at all."""
    torch.manual_seed(len(scope) + batch)
    inputs = []
    for side in (0, 1):
        query, key = (batch, 4, queries[side], 8), (batch, 4, slots[side], 8)
        visible = torch.rand(batch, 1, slots[side]) > 0.4
        visible[0] = False
        visible[-1] &= side == 0
        bias = torch.zeros(1, 1, 1, 1) if scope == "utterance" else torch.randn(batch, 4, queries[side], slots[side])
        inputs += [torch.randn(query), torch.randn(query), torch.randn(key), torch.randn(key), visible, bias]
        inputs += [torch.randn(4, 16), torch.randn(4), torch.randn(4, 8, 16), torch.randn(4, 8)]
    return inputs


def in_float64(inputs):
    sides = [[t if t.dtype == torch.bool else t.double() for t in inputs[i : i + 10]] for i in (0, 10)]
    return both_gates([s[:2] for s in sides], [Memory(*s[2:6]) for s in sides], [GateWeights(*s[6:]) for s in sides])


@pytest.mark.parametrize(
    ("scope", "batch", "queries", "slots"),
    [("utterance", 1, (5, 9), (5, 9)), ("utterance", 3, (9, 2), (4, 7)), ("dialogue", 4, (1, 1), (6, 6))],
)
def test_the_function_is_the_reference(scope, batch, queries, slots):
    inputs = drawn(scope, batch, queries, slots)
    found = run_alone(function(*example(scope, CONFIG), OPSET), inputs)
    for one, right in zip(found, in_float64(inputs), strict=True):
        np.testing.assert_allclose(one, right.numpy(), atol=2e-6)
        assert not one[0].any()  # nothing visible, nothing out


@pytest.mark.parametrize("scope", ["utterance", "dialogue"])
def test_every_gate_of_a_file_is_the_node(tiny, scope):
    model = onnx.load(tiny.onnx / f"{scope}.onnx")
    nodes = [n for n in model.graph.node if n.domain == gate.DOMAIN]
    layers = getattr(tiny.model.config, f"{scope}_layers")
    assert [n.op_type for n in nodes] == [gate.NAME] * layers
    assert [(f.domain, f.name, list(f.input)) for f in model.functions] == [(gate.DOMAIN, gate.NAME, list(gate.INPUTS))]
    assert all(len(n.input) == len(gate.INPUTS) and all(n.input) for n in nodes)
    onnx.checker.check_model(model)
    for node in nodes:
        assert [(a.name, a.s.decode()) for a in node.attribute] == [("plugin_namespace", gate.DOMAIN)]


def test_an_ablated_gate_is_no_such_node(tiny):
    """A kernel that took its place would compute another function."""
    inputs = drawn("dialogue", 2, (1, 1), (6, 6))
    sides = [inputs[:10], inputs[10:]]
    given = [s[:2] for s in sides], [Memory(*s[2:6]) for s in sides], [GateWeights(*s[6:]) for s in sides]

    class Ablated(torch.nn.Module):
        def forward(self, x):
            asked = [(x, x), (x, x)]
            return tuple(gate.both_gates(asked, *given[1:], gate=False))

    program = torch.onnx.export(Ablated().eval(), (inputs[0],), dynamo=True, verbose=False, opset_version=OPSET)
    assert not any(n.domain == gate.DOMAIN for n in program.model_proto.graph.node)
