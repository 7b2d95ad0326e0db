"""Shapes, types and arguments of the plugin. TensorRT itself does not run it here."""

import subprocess
import sys
import types

import numpy as np
import onnx
import pytest
import torch
from onnx import TensorProto, helper

from export.gate_function import build_function, example_inputs
from export.to_onnx import OPSET
from hbaf_edge.backends.cuda import plugin
from hbaf_edge.backends.cuda.driver import Driver
from hbaf_edge.backends.cuda.kernels import choose
from hbaf_edge.errors import BackendError
from kernels.gate import DOMAIN, INPUTS, NAME
from kernels.shipped import Sizes
from tests.hbaf_edge.cuda.host import FakeDriver, HostDevice
from tests.kernels.random_inputs import ROOT
from tests.kernels.test_node import random_inputs, reference
from training.config import ModelConfig

KERNELS = [k for k in choose("gate_node", 90, "float32", 32, 4, 64) if k.form == "ptx"]


def test_plugin_accepts_the_types_of_the_exported_node():
    assert (DOMAIN, NAME, len(INPUTS)) == (plugin.NAMESPACE, plugin.NAME, plugin.INPUTS)
    for i, name in enumerate(INPUTS):
        assert plugin.supports_format(i, "BOOL", True) == name.endswith("visible")
        assert plugin.supports_format(i, "FLOAT", True) != name.endswith("visible")
        assert not plugin.supports_format(i, "FLOAT", False)
    assert plugin.supports_format(20, "FLOAT", True)
    assert plugin.supports_format(21, "FLOAT", True)


def test_inputs_of_another_node_are_an_error():
    shapes = [tuple(x.shape) for x in random_inputs("dialogue")]
    with pytest.raises(BackendError, match="has 20 inputs"):
        plugin.kernel_sizes(shapes[:-1])
    with pytest.raises(BackendError, match="of four axes"):
        plugin.kernel_sizes([shapes[0][:2], *shapes[1:]])


@pytest.mark.parametrize("scope", ["utterance", "dialogue"])
def test_kernel_with_the_plugins_arguments_equals_the_reference(scope):
    """Names, sizes and grid of the shipped kernel, on a host that interprets it."""
    tensors = [x.cpu() for x in random_inputs(scope)]
    device, shapes = HostDevice(Sizes(6, 2, 16)), [tuple(x.shape) for x in tensors]
    addresses = []
    for x in tensors:
        array = np.ascontiguousarray(x.numpy())
        addresses.append(device.allocate(array.nbytes))
        device.upload(addresses[-1], array.view(np.uint8))
    output_shapes = [shapes[i] for i in (0, 10)]
    outputs = [device.allocate(int(np.prod(shape)) * 4) for shape in output_shapes]
    kernel = device.load(KERNELS)
    names = [n for n, _ in kernel.kernel.arguments if not n.endswith("_scratch")]
    values = dict(zip(names, [*addresses, *plugin.kernel_sizes(shapes), *outputs]))
    device.launch(kernel, plugin.launch_grid(shapes), values)
    for address, shape, expected in zip(outputs, output_shapes, reference(tensors, torch.float64)):
        np.testing.assert_allclose(device.array(address, shape, np.float32), expected, atol=1e-5)


def gate_graph(**attributes):
    """A graph with only the node, and the function that other runtimes need."""
    example = example_inputs("dialogue", ModelConfig(width=32, heads=4, window=5))
    onnx_types = {torch.bool: TensorProto.BOOL, torch.float32: TensorProto.FLOAT}
    node = helper.make_node(NAME, list(INPUTS), ["audio", "text"], domain=DOMAIN, **attributes)
    graph = helper.make_graph(
        [node], "gate",
        [helper.make_tensor_value_info(n, onnx_types[x.dtype], x.shape) for n, x in zip(INPUTS, example[0])],
        [helper.make_tensor_value_info(n, TensorProto.FLOAT, None) for n in ("audio", "text")],
    )  # fmt: skip
    imports = [helper.make_opsetid("", OPSET), helper.make_opsetid(DOMAIN, 1)]
    return helper.make_model(graph, functions=[build_function(*example, OPSET)], opset_imports=imports, ir_version=10)


@pytest.mark.parametrize("attributes", [{}, {"plugin_namespace": DOMAIN}], ids=["exported before", "as exported"])
def test_a_graph_for_the_plugin_has_no_gate_function(attributes):
    model = gate_graph(**attributes)
    other = helper.make_function(DOMAIN, "Other", ["x"], ["y"], [helper.make_node("Identity", ["x"], ["y"])], [])
    model.functions.append(other)
    assert plugin.contains_gate(model.SerializeToString())
    graph = onnx.load_from_string(plugin.replace_gates_by_plugin(model.SerializeToString()))
    assert [f.name for f in graph.functions] == ["Other"]
    assert [(a.name, a.s) for a in graph.graph.node[0].attribute] == [("plugin_namespace", b"hbaf_edge")]
    assert not plugin.contains_gate(onnx.helper.make_model(helper.make_graph([], "", [], [])).SerializeToString())


# TensorRT-RTX has TensorRT's parser and registry, but adding a layer written in Python crashes it.
PARSE = """
import sys
import tensorrt_rtx as trt
from hbaf_edge.backends.cuda import plugin

class Logger(trt.ILogger):
    def __init__(self):
        trt.ILogger.__init__(self)

    def log(self, severity, message):
        print(message, flush=True)

if sys.argv[2] == "registered":
    creator = plugin.make_creator(trt, None)
    assert trt.get_plugin_registry().register_creator(creator, plugin.NAMESPACE)
    assert not trt.get_plugin_registry().register_creator(plugin.make_creator(trt, None), plugin.NAMESPACE)
logger = Logger()
network = trt.Builder(logger).create_network(0)
print("parsed:", trt.OnnxParser(network, logger).parse(open(sys.argv[1], "rb").read()))
"""


@pytest.mark.tensorrt
def test_the_parser_finds_the_plugin_by_the_nodes_attribute(tmp_path):
    """Without the gate's function, parsing fails if the plugin is missing."""
    pytest.importorskip("tensorrt_rtx")
    graph = plugin.replace_gates_by_plugin(gate_graph().SerializeToString())
    outputs = {}
    for name, content, state in (
        ("with plugin", graph, "registered"), ("missing", graph, "not"),
        ("no attribute", gate_graph().SerializeToString(), "registered"),
    ):  # fmt: skip
        (tmp_path / "gate.onnx").write_bytes(content)
        command = [sys.executable, "-c", PARSE, tmp_path / "gate.onnx", state]
        outputs[name] = subprocess.run(command, cwd=ROOT, capture_output=True, text=True).stdout
    assert "Successfully created plugin: BimodalAttentionGate" in outputs["with plugin"]
    assert "Plugin not found" in outputs["missing"]
    assert "parsed: False" in outputs["missing"]
    assert "parsed: True" in outputs["no attribute"]
    assert "plugin" not in outputs["no attribute"], "the function is inlined without a message"


def test_plugin_works_with_the_classes_of_tensorrt():
    """TensorRT-RTX has the same classes, though it runs no Python plugins."""
    trt = pytest.importorskip("tensorrt_rtx")
    calls = []
    creator = plugin.make_creator(trt, lambda *arguments: calls.append(arguments))
    assert (creator.name, creator.plugin_namespace, creator.plugin_version) == (NAME, DOMAIN, "1")
    gate = creator.create_plugin("gate", None, None).clone()
    assert gate.num_outputs == 2
    types = list(range(20))
    assert gate.get_output_data_types(types) == [0, 10]

    class TensorDescription:
        dims = (1, 4, 2, 64)

    gate.enqueue([TensorDescription()] * 20, [], [1] * 20, [2, 3], 0, 7)
    assert calls == [([(1, 4, 2, 64)] * 20, [1] * 20, [2, 3], 7)]


def test_the_kernel_is_loaded_once_per_context(monkeypatch):
    driver = FakeDriver(monkeypatch)
    launcher, shapes = plugin.GateLauncher(Driver(), KERNELS), [tuple(x.shape) for x in random_inputs("dialogue")]
    for _ in range(2):
        launcher.load()  # before the first launch
        launcher(shapes, range(20), (20, 21), 3)
    assert driver.count("cuModuleLoadData") == 1
    _, _, *grid, x, y, z, _, stream, (values, ctypes), _ = driver.calls[-1]
    assert (tuple(grid), x, y, z, stream) == (plugin.launch_grid(shapes), KERNELS[0].threads, 1, 1, 3)
    assert len(values) == len(ctypes) == len(KERNELS[0].arguments)


def test_the_plugin_is_registered_once_per_process(monkeypatch):
    registered, kernels = [], []
    FakeDriver(monkeypatch)
    monkeypatch.setattr(plugin, "make_creator", lambda trt, launcher: launcher)
    monkeypatch.setattr(plugin, "GateLauncher", lambda driver, candidates: kernels.append(candidates) or "creator")

    def register_creator(creator, namespace):
        registered.append((creator, namespace))
        return len(registered) == 1

    registry = types.SimpleNamespace(register_creator=register_creator)
    trt = types.ModuleType("trt")
    trt.__version__, trt.IPluginV3, trt.get_plugin_registry = "10.3", object, lambda: registry
    assert [plugin.register(trt, 4, 64, 32) for _ in range(2)] == ["creator"] * 2
    assert registered == [("creator", "hbaf_edge")]
    assert [k.capability for k in kernels[0] if k.form == "cubin"] == [90]
    with pytest.raises(BackendError, match="registered for a model of other sizes"):
        plugin.register(trt, 4, 64, 32, plugin.CUBINS.parent / "cubins" / ".")
    del trt.IPluginV3
    with pytest.raises(BackendError, match=r"10.3 has no IPluginV3: 10.3 or later"):
        plugin.register(trt, 4, 64, 16)
