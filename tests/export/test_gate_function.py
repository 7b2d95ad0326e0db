"""The gate node in exported files, and its ONNX function against the float64 reference."""

import numpy as np
import onnx
import onnxruntime as ort
import pytest
import torch
from onnx import TensorProto, helper

from export.gate_function import build_function, example_inputs
from export.to_onnx import OPSET
from kernels import gate
from kernels.reference import GateWeights, Memory, both_gates
from training.config import ModelConfig

CONFIG = ModelConfig(width=32, heads=4, window=5)


def run_gate(function, inputs):
    """Run a model that consists only of the node and its function in ONNX Runtime."""
    types = {torch.bool: TensorProto.BOOL, torch.float32: TensorProto.FLOAT}
    graph = helper.make_graph(
        [
            helper.make_node(
                gate.NAME, list(gate.INPUTS), list(gate.OUTPUTS), domain=gate.DOMAIN, plugin_namespace=gate.DOMAIN
            )
        ],
        "gate",
        [helper.make_tensor_value_info(n, types[t.dtype], t.shape) for n, t in zip(gate.INPUTS, inputs, strict=True)],
        [helper.make_tensor_value_info(n, TensorProto.FLOAT, None) for n in gate.OUTPUTS],
    )
    imports = [helper.make_opsetid("", OPSET), helper.make_opsetid(gate.DOMAIN, gate.VERSION)]
    model = helper.make_model(graph, functions=[function], opset_imports=imports, ir_version=10)
    session = ort.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    return session.run(None, {n: t.numpy() for n, t in zip(gate.INPUTS, inputs)})


def random_inputs(scope, batch, queries, keys):
    """Random inputs. In the last row no text key is visible, in the first row no key at all."""
    torch.manual_seed(len(scope) + batch)
    inputs = []
    for modality in (0, 1):
        count, slots = queries[modality], keys[modality]
        query, key = (batch, 4, count, 8), (batch, 4, slots, 8)
        visible = torch.rand(batch, 1, slots) > 0.4
        visible[0] = False
        visible[-1] &= modality == 0
        bias = torch.zeros(1, 1, 1, 1) if scope == "utterance" else torch.randn(batch, 4, count, slots)
        inputs += [torch.randn(query), torch.randn(query), torch.randn(key), torch.randn(key), visible, bias]
        inputs += [torch.randn(4, 16), torch.randn(4), torch.randn(4, 8, 16), torch.randn(4, 8)]
    return inputs


def split_arguments(inputs):
    """Queries, memories and weights of both modalities, as `both_gates` takes them."""
    audio_and_text = inputs[:10], inputs[10:]
    return (
        [m[:2] for m in audio_and_text],
        [Memory(*m[2:6]) for m in audio_and_text],
        [GateWeights(*m[6:]) for m in audio_and_text],
    )


def float64_reference(inputs):
    return both_gates(*split_arguments([t if t.dtype == torch.bool else t.double() for t in inputs]))


@pytest.mark.parametrize(
    ("scope", "batch", "queries", "keys"),
    [("utterance", 1, (5, 9), (5, 9)), ("utterance", 3, (9, 2), (4, 7)), ("dialogue", 4, (1, 1), (6, 6))],
)
def test_function_equals_the_reference(scope, batch, queries, keys):
    inputs = random_inputs(scope, batch, queries, keys)
    outputs = run_gate(build_function(*example_inputs(scope, CONFIG), OPSET), inputs)
    for actual, expected in zip(outputs, float64_reference(inputs), strict=True):
        np.testing.assert_allclose(actual, expected.numpy(), atol=2e-6)
        assert not actual[0].any()  # zero without a visible key


@pytest.mark.parametrize("scope", ["utterance", "dialogue"])
def test_every_gate_of_a_file_is_a_gate_node(tiny, scope):
    model = onnx.load(tiny.onnx / f"{scope}.onnx")
    nodes = [n for n in model.graph.node if n.domain == gate.DOMAIN]
    layers = getattr(tiny.model.config, f"{scope}_layers")
    assert [n.op_type for n in nodes] == [gate.NAME] * layers
    assert [(f.domain, f.name, list(f.input)) for f in model.functions] == [(gate.DOMAIN, gate.NAME, list(gate.INPUTS))]
    assert all(len(n.input) == len(gate.INPUTS) and all(n.input) for n in nodes)
    onnx.checker.check_model(model)
    for node in nodes:
        assert [(a.name, a.s.decode()) for a in node.attribute] == [("plugin_namespace", gate.DOMAIN)]


def test_ablated_gate_is_not_exported_as_a_gate_node(tiny):
    """A kernel that replaced it would compute another function."""
    inputs = random_inputs("dialogue", 2, (1, 1), (6, 6))
    _, memories, weights = split_arguments(inputs)

    class Ablated(torch.nn.Module):
        def forward(self, x):
            return tuple(gate.both_gates([(x, x), (x, x)], memories, weights, gate=False))

    program = torch.onnx.export(Ablated().eval(), (inputs[0],), dynamo=True, verbose=False, opset_version=OPSET)
    assert not any(n.domain == gate.DOMAIN for n in program.model_proto.graph.node)
