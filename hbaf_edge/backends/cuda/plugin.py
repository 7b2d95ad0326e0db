"""TensorRT plugin for the exported node `hbaf_edge::BimodalAttentionGate`: our kernel inside an engine.

A Python IPluginV3 (TensorRT 10.3 to 11) that launches through cuda-bindings. engines.py registers it before it builds
or loads an engine. An engine contains only the plugin's name; the kernel is the one that the process loaded.

The plugin has never run on a GPU. tests/hbaf_edge/cuda/test_plugin.py tests shapes, types and arguments without one, on
TensorRT-RTX's base classes. The argument order is that of kernels/node.py.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from hbaf_edge.backends.cuda.driver import Driver, LoadedKernel
from hbaf_edge.backends.cuda.kernels import CUBINS, Kernel, choose
from hbaf_edge.errors import BackendError

NAMESPACE, NAME, VERSION, KERNEL = "hbaf_edge", "BimodalAttentionGate", "1", "gate_node"
IDENTITY = f"{NAMESPACE}::{NAME} {VERSION}"
# 10 inputs of audio, then the same 10 of text: query, q', keys, values, visible, bias and four weights.
INPUTS, PER_MODALITY = 20, 10
QUERY, KEYS, VISIBLE, BIAS = 0, 2, 4, 5  # positions within a modality
QUERIES = 16  # per program of the kernel
Shape = Sequence[int]


def kernel_sizes(shapes: Sequence[Shape]) -> list[int]:
    """The size arguments of the kernel, between its inputs and outputs, from the shapes of its inputs.

    Raises:
        BackendError: the shapes are not those of the node.
    """
    if len(shapes) != INPUTS or any(
        len(shapes[first + i]) != 4 for first in (0, PER_MODALITY) for i in (QUERY, KEYS, BIAS)
    ):
        raise BackendError(
            f"{NAME} has {INPUTS} inputs, with queries, keys and biases of four axes, not {list(shapes)}"
        )
    sizes: list[int] = []
    for first in (0, PER_MODALITY):
        sizes += [shapes[first + QUERY][2], shapes[first + KEYS][2], shapes[first + VISIBLE][1], *shapes[first + BIAS]]
    return sizes


def launch_grid(shapes: Sequence[Shape]) -> tuple[int, int, int]:
    """Number of programs along each axis, from the shapes of the inputs."""
    batch, heads, count, _ = shapes[QUERY]
    return -(-max(count, shapes[PER_MODALITY + QUERY][2]) // QUERIES), batch, 2 * heads


def supports_format(position: int, dtype: str, linear: bool) -> bool:
    """Whether a dtype and layout are supported: bool for masks, float32 for all other tensors, both contiguous.

    Positions 0 to 19 are inputs, 20 and 21 are outputs.

    >>> supports_format(4, "BOOL", True), supports_format(0, "HALF", True)
    (True, False)
    """
    is_mask = position < INPUTS and position % PER_MODALITY == VISIBLE
    return linear and dtype == ("BOOL" if is_mask else "FLOAT")


def contains_gate(graph: bytes) -> bool:
    """Whether an ONNX file contains the node."""
    return NAME.encode() in graph


def replace_gates_by_plugin(graph: bytes) -> bytes:
    """Return the graph without the gate's function, so that TensorRT's parser must use the plugin.

    The parser finds a plugin by the node's attribute `plugin_namespace`, not by its domain. Some versions prefer a
    function with the node's name. Without the function they use the plugin or report that it is missing.

    Raises:
        BackendError: the package onnx is not installed.
    """
    try:
        import onnx
    except ImportError as error:
        raise BackendError(f"the plugin needs the package onnx ({error}): pip install 'hbaf-edge[tensorrt]'") from error
    model = onnx.load_from_string(graph)
    for node in model.graph.node:
        if (node.domain, node.op_type) == (NAMESPACE, NAME) and not node.attribute:  # exported by an earlier version
            node.attribute.append(onnx.helper.make_attribute("plugin_namespace", NAMESPACE))
    functions = [f for f in model.functions if (f.domain, f.name) != (NAMESPACE, NAME)]
    del model.functions[:]
    model.functions.extend(functions)
    return bytes(model.SerializeToString())


@functools.cache  # keeps a reference: TensorRT uses a creator as long as the process runs, but holds none
def register(trt: Any, heads: int, e: int, window: int, folder: Path = CUBINS) -> Any:
    """Register the plugin, once per process. Call it before a graph is parsed or an engine is loaded.

    Args:
        trt: the module tensorrt.
        heads, e, window: sizes of the model; `e` is the width of a head.
        folder: of the compiled kernels.

    Raises:
        BackendError: no kernel fits the GPU, cuda-bindings is not installed, this TensorRT has no IPluginV3, or the
            process has registered the plugin for a model of other sizes.
    """
    if not hasattr(trt, "IPluginV3"):
        raise BackendError(f"{trt.__name__} {trt.__version__} has no IPluginV3: 10.3 or later is needed")
    driver = Driver()
    creator = make_creator(
        trt, GateLauncher(driver, choose(KERNEL, driver.capability, "float32", window, heads, e, folder))
    )
    if not trt.get_plugin_registry().register_creator(creator, NAMESPACE):
        raise BackendError(f"{IDENTITY} is registered for a model of other sizes; run each model in a separate process")
    return creator


class GateLauncher:
    """Launches the kernel in TensorRT's current context, on TensorRT's stream."""

    def __init__(self, driver: Driver, candidates: Sequence[Kernel]) -> None:
        self._driver, self._candidates, self._loaded = driver, tuple(candidates), dict[int, LoadedKernel]()

    def __call__(self, shapes: Sequence[Shape], inputs: Sequence[int], outputs: Sequence[int], stream: int) -> None:
        values = (*inputs, *kernel_sizes(shapes), *outputs, 0, 0)  # the last two are Triton's scratch pointers
        self._driver.launch(self.load(), launch_grid(shapes), stream, values)

    def load(self) -> LoadedKernel:
        """Load the kernel in the current context, if it is not loaded yet.

        TensorRT's `attach_to_context` calls it, because no module can be loaded while a stream is captured.

        Raises:
            BackendError: the driver accepts none of the kernels.
        """
        context = int(self._driver.call("cuCtxGetCurrent"))
        if context not in self._loaded:
            self._loaded[context] = self._driver.load(self._candidates)
        return self._loaded[context]


def make_creator(trt: Any, launcher: Any) -> Any:
    """Make a creator of the plugin for TensorRT's registry; `launcher` is a `GateLauncher`."""

    class Gate(trt.IPluginV3, trt.IPluginV3OneCore, trt.IPluginV3OneBuild, trt.IPluginV3OneRuntime):  # type: ignore[misc]
        def __init__(self) -> None:
            for base in Gate.__bases__:
                base.__init__(self)
            self.plugin_name, self.plugin_namespace, self.plugin_version = NAME, NAMESPACE, VERSION
            self.num_outputs = 2

        def get_capability_interface(self, _: Any) -> Any:
            return self

        def clone(self) -> Any:
            return Gate()

        def get_output_data_types(self, types: Sequence[Any]) -> list[Any]:
            return [types[QUERY], types[PER_MODALITY + QUERY]]

        def get_output_shapes(self, inputs: Sequence[Any], *_: Any) -> list[Any]:
            return [trt.DimsExprs(inputs[QUERY]), trt.DimsExprs(inputs[PER_MODALITY + QUERY])]

        def supports_format_combination(self, position: int, tensors: Sequence[Any], _: int) -> bool:
            tensor = tensors[position].desc
            return supports_format(position, tensor.type.name, tensor.format == trt.TensorFormat.LINEAR)

        def configure_plugin(self, *_: Any) -> None: ...

        def on_shape_change(self, *_: Any) -> None: ...

        def set_tactic(self, _: int) -> None: ...

        def attach_to_context(self, _: Any) -> Any:
            launcher.load()
            return self.clone()

        def get_fields_to_serialize(self) -> Any:
            return trt.PluginFieldCollection([])

        def enqueue(self, tensors: Sequence[Any], _: Any, inputs: Any, outputs: Any, __: int, stream: int) -> None:
            launcher([tuple(tensor.dims) for tensor in tensors], inputs, outputs, stream)

    class Creator(trt.IPluginCreatorV3One):  # type: ignore[misc]
        def __init__(self) -> None:
            trt.IPluginCreatorV3One.__init__(self)
            self.name, self.plugin_namespace, self.plugin_version = NAME, NAMESPACE, VERSION
            self.field_names = trt.PluginFieldCollection([])

        def create_plugin(self, *_: Any) -> Any:
            return Gate()

    return Creator()
