"""The plugin's logic of shapes, types and arguments; TensorRT itself runs none here."""

import subprocess
import sys
import types

import onnx
import pytest
import torch
from onnx import TensorProto, helper

from export.gate_function import example, function
from export.to_onnx import OPSET
from hbaf_edge.backends.cuda import plugin
from hbaf_edge.backends.cuda.driver import Driver
from hbaf_edge.backends.cuda.kernels import choose
from hbaf_edge.errors import BackendError
from kernels.gate import DOMAIN, INPUTS, NAME
from tests.hbaf_edge.cuda.host import Bindings
from tests.kernels.made import ROOT
from tests.kernels.test_node import inputs
from training.config import ModelConfig

KERNELS = [k for k in choose("gate_node", 90, "float32", 32, 4, 64) if k.form == "ptx"]


def test_it_is_the_exported_nodes():
    assert (DOMAIN, NAME, len(INPUTS)) == (plugin.NAMESPACE, plugin.NAME, plugin.INPUTS)
    for i, name in enumerate(INPUTS):
        assert plugin.accepts(i, "BOOL", True) == name.endswith("visible")
        assert plugin.accepts(i, "FLOAT", True) != name.endswith("visible")
        assert not plugin.accepts(i, "FLOAT", False)
    assert plugin.accepts(20, "FLOAT", True)
    assert plugin.accepts(21, "FLOAT", True)


def test_another_nodes_inputs_are_refused():
    shapes = [tuple(x.shape) for x in inputs("dialogue")]
    with pytest.raises(BackendError, match="has 20 inputs"):
        plugin.sizes(shapes[:-1])
    with pytest.raises(BackendError, match="of four axes"):
        plugin.sizes([shapes[0][:2], *shapes[1:]])


def gate_alone(**attributes):
    """A graph of nothing but the node, with the function that other runtimes take."""
    given = example("dialogue", ModelConfig(width=32, heads=4, window=5))
    kinds = {torch.bool: TensorProto.BOOL, torch.float32: TensorProto.FLOAT}
    node = helper.make_node(NAME, list(INPUTS), ["audio", "text"], domain=DOMAIN, **attributes)
    graph = helper.make_graph(
        [node], "gate",
        [helper.make_tensor_value_info(n, kinds[x.dtype], x.shape) for n, x in zip(INPUTS, given[0])],
        [helper.make_tensor_value_info(n, TensorProto.FLOAT, None) for n in ("audio", "text")],
    )  # fmt: skip
    imports = [helper.make_opsetid("", OPSET), helper.make_opsetid(DOMAIN, 1)]
    return helper.make_model(graph, functions=[function(*given, OPSET)], opset_imports=imports, ir_version=10)


@pytest.mark.parametrize("attributes", [{}, {"plugin_namespace": DOMAIN}], ids=["exported before", "as exported"])
def test_a_graph_left_to_the_plugin_has_no_function_to_fall_back_on(attributes):
    model = gate_alone(**attributes)
    other = helper.make_function(DOMAIN, "Other", ["x"], ["y"], [helper.make_node("Identity", ["x"], ["y"])], [])
    model.functions.append(other)
    assert plugin.has_gate(model.SerializeToString())
    made = onnx.load_from_string(plugin.with_plugin(model.SerializeToString()))
    assert [f.name for f in made.functions] == ["Other"]
    assert [(a.name, a.s) for a in made.graph.node[0].attribute] == [("plugin_namespace", b"hbaf_edge")]
    assert not plugin.has_gate(onnx.helper.make_model(helper.make_graph([], "", [], [])).SerializeToString())


# TensorRT-RTX has TensorRT's parser and registry but cannot add a layer written in Python: it ends the process there.
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
    creator = plugin.creator_of(trt, None)
    assert trt.get_plugin_registry().register_creator(creator, plugin.NAMESPACE)
    assert not trt.get_plugin_registry().register_creator(plugin.creator_of(trt, None), plugin.NAMESPACE)
logger = Logger()
network = trt.Builder(logger).create_network(0)
print("parsed:", trt.OnnxParser(network, logger).parse(open(sys.argv[1], "rb").read()))
"""


@pytest.mark.tensorrt
def test_the_parser_finds_the_plugin_by_the_nodes_attribute(tmp_path):
    """And without the function it never goes on without the plugin."""
    pytest.importorskip("tensorrt_rtx")
    graph = plugin.with_plugin(gate_alone().SerializeToString())
    said = {}
    for name, content, state in (
        ("left to it", graph, "registered"), ("missing", graph, "not"),
        ("no attribute", gate_alone().SerializeToString(), "registered"),
    ):  # fmt: skip
        (tmp_path / "gate.onnx").write_bytes(content)
        command = [sys.executable, "-c", PARSE, tmp_path / "gate.onnx", state]
        said[name] = subprocess.run(command, cwd=ROOT, capture_output=True, text=True).stdout
    assert "Successfully created plugin: BimodalAttentionGate" in said["left to it"]
    assert "Plugin not found" in said["missing"]
    assert "parsed: False" in said["missing"]
    assert "parsed: True" in said["no attribute"]
    assert "plugin" not in said["no attribute"], "inlined in silence"


def test_tensorrts_own_classes_take_it():
    """TensorRT-RTX has the classes, though it runs no Python plugins: names, outputs and formats."""
    trt = pytest.importorskip("tensorrt_rtx")
    calls = []
    creator = plugin.creator_of(trt, lambda *given: calls.append(given))
    assert (creator.name, creator.plugin_namespace, creator.plugin_version) == (NAME, DOMAIN, "1")
    made = creator.create_plugin("gate", None, None).clone()
    assert made.num_outputs == 2
    kinds = list(range(20))
    assert made.get_output_data_types(kinds) == [0, 10]

    class Described:
        dims = (1, 4, 2, 64)

    made.enqueue([Described()] * 20, [], [1] * 20, [2, 3], 0, 7)
    assert calls == [([(1, 4, 2, 64)] * 20, [1] * 20, [2, 3], 7)]


def test_it_is_loaded_once_a_context_and_launched_there(monkeypatch):
    bindings = Bindings(monkeypatch)
    launch, shapes = plugin.Launch(Driver(), KERNELS), [tuple(x.shape) for x in inputs("dialogue")]
    for _ in range(2):
        launch.loaded()  # before the first launch
        launch(shapes, range(20), (20, 21), 3)
    assert bindings.count("cuModuleLoadData") == 1
    _, _, *programs, threads, one, also_one, _, stream, (values, kinds), _ = bindings.called[-1]
    assert (tuple(programs), threads, one, also_one, stream) == (plugin.grid(shapes), KERNELS[0].threads, 1, 1, 3)
    assert len(values) == len(kinds) == len(KERNELS[0].arguments)


def test_it_is_registered_once_a_process(monkeypatch):
    taken, kernels = [], []
    Bindings(monkeypatch)
    monkeypatch.setattr(plugin, "creator_of", lambda trt, launch: launch)
    monkeypatch.setattr(plugin, "Launch", lambda driver, fitting: kernels.append(fitting) or "creator")

    def register_creator(creator, namespace):
        taken.append((creator, namespace))
        return len(taken) == 1

    registry = types.SimpleNamespace(register_creator=register_creator)
    trt = types.ModuleType("trt")
    trt.__version__, trt.IPluginV3, trt.get_plugin_registry = "10.3", object, lambda: registry
    assert [plugin.register(trt, 4, 64, 32) for _ in range(2)] == ["creator"] * 2
    assert taken == [("creator", "hbaf_edge")]
    assert [k.capability for k in kernels[0] if k.form == "cubin"] == [90]
    with pytest.raises(BackendError, match="registered for a model of other sizes"):
        plugin.register(trt, 4, 64, 32, plugin.CUBINS.parent / "cubins" / ".")
    del trt.IPluginV3
    with pytest.raises(BackendError, match=r"10.3 has no IPluginV3: 10.3 or later"):
        plugin.register(trt, 4, 64, 16)
