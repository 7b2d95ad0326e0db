"""Runs TensorRT engines where their inputs lie on the GPU. TensorRT is imported when engines are asked for."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np

from hbaf_edge.backends.cuda.build import library
from hbaf_edge.backends.cuda.device import Device
from hbaf_edge.backends.cuda.engines import engine
from hbaf_edge.errors import BackendError

if TYPE_CHECKING:
    from hbaf_edge.bundle import Bundle

ENGINES = ("audio", "text", "utterance")
Shape = tuple[int, ...]


class Runner(Protocol):
    """An engine."""

    def outputs(self, shapes: Mapping[str, Shape]) -> dict[str, Shape]:
        """Shapes of the outputs for shapes of the inputs; they hold for the next `run`."""

    def run(self, addresses: Mapping[str, int]) -> None:
        """On the device's stream, with an address for every input and output."""


class Engine:
    """A deserialised engine with a context of its own.

    Args:
        trt: of `hbaf_edge.backends.cuda.build.library`.
        content: of `hbaf_edge.backends.cuda.engines.engine`.
        device: whose stream it runs on.

    Raises:
        BackendError: it does not deserialise here, or memory is short.
    """

    def __init__(self, trt: Any, content: bytes, device: Device) -> None:
        self._device = device
        logger = trt.Logger(trt.Logger.ERROR)
        self._runtime = trt.Runtime(logger)
        self._engine = self._runtime.deserialize_cuda_engine(content)
        if self._engine is None:
            raise BackendError(f"{trt.__name__} {trt.__version__} cannot load an engine; delete it from the cache")
        self._context = self._engine.create_execution_context()
        if self._context is None:
            raise BackendError(f"{trt.__name__} has no memory left for an engine; close other programs on the GPU")
        names = [self._engine.get_tensor_name(i) for i in range(self._engine.num_io_tensors)]
        self._out = [n for n in names if self._engine.get_tensor_mode(n) == trt.TensorIOMode.OUTPUT]
        self._in = [n for n in names if n not in self._out]
        kinds = {n: np.dtype(trt.nptype(self._engine.get_tensor_dtype(n))) for n in self._out}
        if any(kind != np.float32 for kind in kinds.values()):
            raise BackendError(f"an engine's outputs are {kinds}; float32 is expected: build it of a bundle of ours")

    def outputs(self, shapes: Mapping[str, Shape]) -> dict[str, Shape]:
        """See `Runner`.

        Raises:
            BackendError: a shape is outside of what the engine was built for.
        """
        for name in self._in:
            if not self._context.set_input_shape(name, shapes[name]):
                raise BackendError(f"an engine takes no {name} of {shapes[name]}; it was built for other sizes")
        return {name: tuple(self._context.get_tensor_shape(name)) for name in self._out}

    def run(self, addresses: Mapping[str, int]) -> None:
        """See `Runner`.

        Raises:
            BackendError: the engine failed.
        """
        for name in (*self._in, *self._out):
            if not self._context.set_tensor_address(name, addresses[name]):
                raise BackendError(f"an engine takes no {name} at {addresses[name]:#x}")
        if not self._context.execute_async_v3(self._device.stream):
            raise BackendError("an engine failed to run")


def engines_of(bundle: Bundle, device: Device, kernels: Path) -> dict[str, Runner]:
    """Of encoders and utterance scope, from the cache or built now; the first time takes minutes.

    Args:
        bundle: verified.
        device: that runs them.
        kernels: folder of the plugin's kernels.

    Raises:
        BackendError: TensorRT is not installed, or an engine cannot be built.
    """
    trt = library("tensorrt")
    made: dict[str, Runner] = {}
    for name in ENGINES:
        content = engine(bundle, name, kernels=kernels)
        with device.here(f"while the {name} engine was loaded"):
            made[name] = Engine(trt, content, device)
    return made
