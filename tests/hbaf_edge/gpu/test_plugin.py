"""The plugin's logic of shapes, types and arguments; TensorRT itself runs none here."""

import inspect
import re
import subprocess
import sys
import types
from dataclasses import replace

import numpy as np
import pytest
import torch

from hbaf_edge.errors import BackendError
from hbaf_edge.gpu import plugin
from hbaf_edge.gpu.kernels import choose
from kernels import node
from kernels.gate import DOMAIN, INPUTS, NAME
from kernels.shipped import Sizes
from tests.hbaf_edge.gpu.host import HostDevice
from tests.kernels.test_node import inputs, reference

KERNELS = [k for k in choose("gate_node", 90, "float32", 32, 4, 64) if k.form == "ptx"]


def test_it_is_the_exported_nodes():
    assert (DOMAIN, NAME, len(INPUTS), node.QUERIES) == (plugin.NAMESPACE, plugin.NAME, plugin.INPUTS, plugin.QUERIES)
    for i, name in enumerate(INPUTS):
        assert plugin.accepts(i, "BOOL", True) == name.endswith("visible")
        assert plugin.accepts(i, "FLOAT", True) != name.endswith("visible")
        assert not plugin.accepts(i, "FLOAT", False)
    assert plugin.accepts(20, "FLOAT", True)
    assert plugin.accepts(21, "FLOAT", True)


@pytest.mark.parametrize("scope", ["utterance", "dialogue"])
def test_sizes_are_what_the_kernel_takes(scope):
    tensors = inputs(scope)
    shapes = [tuple(x.shape) for x in tensors]
    assert plugin.sizes(shapes) == node.sizes(dict(zip(INPUTS, shapes)))
    with pytest.raises(BackendError, match="has 20 inputs"):
        plugin.sizes(shapes[:-1])
    with pytest.raises(BackendError, match="of four axes"):
        plugin.sizes([shapes[0][:2], *shapes[1:]])


@pytest.mark.parametrize("scope", ["utterance", "dialogue"])
def test_launched_with_its_arguments_the_kernel_is_the_reference(scope):
    """The shipped kernel's names, sizes and grid, on a host that interprets it."""
    tensors = [x.cpu() for x in inputs(scope)]
    device, shapes = HostDevice(Sizes(6, 2, 16)), [tuple(x.shape) for x in tensors]
    addresses = []
    for x in tensors:
        host = np.ascontiguousarray(x.numpy())
        addresses.append(device.allocate(host.nbytes))
        device.upload(addresses[-1], host.view(np.uint8))
    outputs = [tuple(tensors[i].shape) for i in (0, 10)]
    addresses += [*plugin.sizes(shapes), *(device.allocate(int(np.prod(s)) * 4) for s in outputs)]
    kernel = device.load(KERNELS)
    names = [n for n, _ in kernel.kernel.arguments if not n.endswith("_scratch")]
    device.launch(kernel, plugin.grid(shapes), dict(zip(names, addresses)))
    for found, shape, expected in zip(addresses[-2:], outputs, reference(tensors, torch.float64)):
        np.testing.assert_allclose(device.array(found, shape, np.float32), expected, atol=1e-5)


def test_portable_code_has_the_arguments_that_tensorrt_passes(tmp_path):
    """And still compiles."""
    triton = pytest.importorskip("triton")
    made = plugin.portable(KERNELS[0].content)
    entry = re.search(rb"\.entry gate_node\((.*?)\)", made, re.DOTALL)
    assert len(re.findall(rb"\.param", entry.group(1))) == 20 + 14 + 2
    (tmp_path / "a.ptx").write_bytes(made)
    tool = triton.knobs.nvidia.ptxas.path
    subprocess.run([tool, "-arch=sm_90", tmp_path / "a.ptx", "-o", tmp_path / "a.cubin"], check=True)
    with pytest.raises(BackendError, match="not laid out as this version expects"):
        plugin.portable(made.replace(b"{", b"{ // gate_node_param_35", 1))


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


def test_the_next_kernel_is_taken_where_the_driver_refuses_one(monkeypatch):
    """An older driver: once a context, and before the first launch."""

    class Driver:
        class CUresult:
            CUDA_SUCCESS = 0

        launched, loads = (), 0

        @staticmethod
        def cuCtxGetCurrent():
            return 0, 5

        def cuModuleLoadData(self, content):
            self.loads += 1
            return (0, "module") if content == b"good" else (209, None)

        @staticmethod
        def cuModuleGetFunction(module, name):
            return 0, (module, name)

        def cuLaunchKernel(self, *given):
            self.launched = given
            return (0,)

    driver = Driver()
    monkeypatch.setitem(sys.modules, "cuda", type(sys)("cuda"))
    monkeypatch.setitem(sys.modules, "cuda.bindings", types.SimpleNamespace(driver=driver))
    cubins = [replace(KERNELS[0], form="cubin", content=content) for content in (b"bad", b"good")]
    launch, shapes = plugin.Launch(cubins), [tuple(x.shape) for x in inputs("dialogue")]
    for _ in range(2):
        assert launch.loaded()[0].content == b"good"
        launch(shapes, range(20), (20, 21), 3)
    assert driver.loads == 2
    assert driver.launched[:4] == (("module", b"gate_node"), *plugin.grid(shapes))
    values, kinds = driver.launched[-2]
    assert len(values) == len(kinds) == len(KERNELS[0].arguments)
    with pytest.raises(BackendError, match="takes none of the kernels"):
        plugin.Launch(cubins[:1]).loaded()


def test_the_quick_plugin_has_a_signature_that_tensorrt_can_read(monkeypatch):
    """Its types stand in the annotations, not their names."""
    quick, made = types.ModuleType("trt.plugin"), {}
    quick.TensorDesc = type("TensorDesc", (), {})
    for name in ("register", "autotune", "aot_impl"):
        setattr(quick, name, lambda identity, name=name: lambda function: made.setdefault(name, (identity, function)))
    monkeypatch.setitem(sys.modules, "trt.plugin", quick)
    monkeypatch.setattr(plugin, "_capability", lambda: 90)
    plugin.register_ahead_of_time(types.SimpleNamespace(__name__="trt", __version__="11"), 4, 64, 32)
    assert {identity for identity, _ in made.values()} == {"hbaf_edge::BimodalAttentionGate"}
    signature = inspect.signature(made["register"][1])
    assert [p.annotation for p in signature.parameters.values()] == [quick.TensorDesc] * 20
    assert signature.return_annotation == tuple[quick.TensorDesc, quick.TensorDesc]


def test_without_what_it_needs_it_says_so(monkeypatch):
    trt = pytest.importorskip("tensorrt_rtx")
    with pytest.raises(BackendError, match="has no quickly deployable plugins"):
        plugin.register_ahead_of_time(trt, 4, 64, 32)
    monkeypatch.setitem(sys.modules, "cuda.bindings", None)
    with pytest.raises(BackendError, match="pip install cuda-bindings"):
        plugin.Launch(KERNELS)
