"""TensorRT plugin for the exported node `hbaf_edge::BimodalAttentionGate`: our kernel inside of an engine.

A Python IPluginV3 (TensorRT 10.3 to 11), which launches through cuda-bindings. engines.py registers it
before it builds an engine or loads one. An engine holds the plugin's name alone: the kernel is that of the process.

It never ran on a card. What needs none is tested (tests/hbaf_edge/cuda/test_plugin.py): shapes, types and arguments, on
TensorRT-RTX's own base classes. Argument order: kernels/node.py.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from hbaf_edge.backends.cuda.driver import Driver, Loaded
from hbaf_edge.backends.cuda.kernels import CUBINS, Kernel, choose
from hbaf_edge.errors import BackendError

NAMESPACE, NAME, VERSION, KERNEL = "hbaf_edge", "BimodalAttentionGate", "1", "gate_node"
IDENTITY = f"{NAMESPACE}::{NAME} {VERSION}"
INPUTS, HALF = 20, 10  # query, q', keys, values, visible, bias and four weights of audio, then of text
QUERY, KEYS, VISIBLE, BIAS = 0, 2, 4, 5
QUERIES = 16  # of a program
Shape = Sequence[int]


def sizes(shapes: Sequence[Shape]) -> list[int]:
    """What the kernel takes between inputs and outputs, by its inputs' shapes; also of TensorRT's symbolic ones.

    Raises:
        BackendError: they are not the node's.
    """
    if len(shapes) != INPUTS or any(
        len(shapes[i]) != 4 for side in (0, HALF) for i in (side, side + KEYS, side + BIAS)
    ):
        raise BackendError(f"{NAME} has {INPUTS} inputs, queries, keys and biases of four axes; came {list(shapes)}")
    found: list[int] = []
    for side in (0, HALF):
        found += [shapes[side + QUERY][2], shapes[side + KEYS][2], shapes[side + VISIBLE][1], *shapes[side + BIAS]]
    return found


def grid(shapes: Sequence[Shape]) -> tuple[int, int, int]:
    """Programs along each axis."""
    batch, heads, count, _ = shapes[QUERY]
    return -(-max(count, shapes[HALF + QUERY][2]) // QUERIES), batch, 2 * heads


def accepts(position: int, dtype: str, linear: bool) -> bool:
    """Whether an input, or output 20 or 21, may come as that: masks as bool, all else as float32, contiguous.

    >>> accepts(4, "BOOL", True), accepts(0, "HALF", True)
    (True, False)
    """
    mask = position < INPUTS and position % HALF == VISIBLE
    return linear and dtype == ("BOOL" if mask else "FLOAT")


def has_gate(graph: bytes) -> bool:
    """Whether an ONNX file holds the node."""
    return NAME.encode() in graph


def with_plugin(graph: bytes) -> bytes:
    """The graph with its gates left to the plugin.

    TensorRT's parser finds a plugin by the node's attribute `plugin_namespace`, not by its domain, and some versions
    prefer the function of the node's name: without that function they take the plugin or say that it is missing.

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


@functools.cache  # TensorRT keeps creators for the life of the process, and no reference to their Python side
def register(trt: Any, heads: int, e: int, window: int, folder: Path = CUBINS) -> Any:
    """Make the node a plugin of TensorRT's registry, before a graph is parsed or an engine loaded; once a process.

    Args:
        trt: the module tensorrt.
        heads, e, window: of the model.
        folder: of the kernels.

    Raises:
        BackendError: no kernel fits the GPU that is there, cuda-bindings is not installed, this TensorRT has no
            IPluginV3, or the process has registered the gate of a model of other sizes.
    """
    if not hasattr(trt, "IPluginV3"):
        raise BackendError(f"{trt.__name__} {trt.__version__} has no IPluginV3: 10.3 or later is needed")
    driver = Driver()
    creator = creator_of(trt, Launch(driver, choose(KERNEL, driver.capability, "float32", window, heads, e, folder)))
    if not trt.get_plugin_registry().register_creator(creator, NAMESPACE):
        raise BackendError(f"{IDENTITY} is registered for a model of other sizes; run each model in its own process")
    return creator


class Launch:
    """The kernel in whatever context and on whatever stream TensorRT is at."""

    def __init__(self, driver: Driver, fitting: Sequence[Kernel]) -> None:
        self._driver, self._fitting, self._loaded = driver, tuple(fitting), dict[int, Loaded]()

    def __call__(self, shapes: Sequence[Shape], inputs: Sequence[int], outputs: Sequence[int], stream: int) -> None:
        values = (*inputs, *sizes(shapes), *outputs, 0, 0)  # the last two are Triton's scratch pointers
        self._driver.launch(self.loaded(), grid(shapes), stream, values)

    def loaded(self) -> Loaded:
        """The first kernel that the driver takes, in the current context; called when TensorRT makes a context, since
        a stream that is being captured takes no module.

        Raises:
            BackendError: it takes none.
        """
        context = int(self._driver.call("cuCtxGetCurrent"))
        if context not in self._loaded:
            self._loaded[context] = self._driver.load(self._fitting)
        return self._loaded[context]


def creator_of(trt: Any, launch: Any) -> Any:
    """TensorRT's maker of the plugin; `launch` as `Launch` has it."""

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
            return [types[QUERY], types[HALF + QUERY]]

        def get_output_shapes(self, inputs: Sequence[Any], *_: Any) -> list[Any]:
            return [trt.DimsExprs(inputs[QUERY]), trt.DimsExprs(inputs[HALF + QUERY])]

        def supports_format_combination(self, position: int, found: Sequence[Any], _: int) -> bool:
            one = found[position].desc
            return accepts(position, one.type.name, one.format == trt.TensorFormat.LINEAR)

        def configure_plugin(self, *_: Any) -> None: ...

        def on_shape_change(self, *_: Any) -> None: ...

        def set_tactic(self, _: int) -> None: ...

        def attach_to_context(self, _: Any) -> Any:
            launch.loaded()
            return self.clone()

        def get_fields_to_serialize(self) -> Any:
            return trt.PluginFieldCollection([])

        def enqueue(self, given: Sequence[Any], _: Any, inputs: Any, outputs: Any, __: int, stream: int) -> None:
            launch([tuple(one.dims) for one in given], inputs, outputs, stream)

    class Creator(trt.IPluginCreatorV3One):  # type: ignore[misc]
        def __init__(self) -> None:
            trt.IPluginCreatorV3One.__init__(self)
            self.name, self.plugin_namespace, self.plugin_version = NAME, NAMESPACE, VERSION
            self.field_names = trt.PluginFieldCollection([])

        def create_plugin(self, *_: Any) -> Any:
            return Gate()

    return Creator()
