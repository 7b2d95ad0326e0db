"""CUDA's driver through cuda-bindings, for what pycuda lacks: graphs, and launches inside TensorRT's plugin."""

from __future__ import annotations

import ctypes
import logging
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

from hbaf_edge.backends.cuda.kernels import Kernel
from hbaf_edge.errors import BackendError

CTYPES = {
    "P": ctypes.c_void_p,
    "i": ctypes.c_int,
    "q": ctypes.c_longlong,
    "f": ctypes.c_float,
}  # by code of the module `struct`
DEFAULT_SHARED_LIMIT = 48 << 10  # bytes of shared memory that a kernel gets without an attribute
log = logging.getLogger("hbaf_edge")


class DriverError(BackendError):
    """A call of the driver failed."""


class LoadedKernel(NamedTuple):
    """A kernel and its function in the driver."""

    kernel: Kernel
    function: Any


class Driver:
    """The initialised CUDA driver and its first GPU.

    Attributes:
        api: the module `cuda.bindings.driver`.
        gpu: handle of the GPU.
        name: name of the GPU.
        capability: compute capability, such as 87 for 8.7.

    Raises:
        BackendError: cuda-bindings, the driver or a GPU is missing; the message says how to install them.
    """

    def __init__(self) -> None:
        try:
            from cuda.bindings import driver  # type: ignore[import-not-found,unused-ignore]

            self.api = driver
            self.call("cuInit", 0)
            self.gpu = self.call("cuDeviceGet", 0)
        except Exception as error:  # without a driver, cuda-bindings raises its own errors
            raise BackendError(
                f"the GPU cannot be reached through cuda-bindings ({error}): it needs NVIDIA's driver, a card and "
                "pip install 'hbaf-edge[tensorrt]'; provider='cpu' needs none of them"
            ) from error
        self.name = self.call("cuDeviceGetName", 256, self.gpu).decode().rstrip("\0")
        names = (f"CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_{part}" for part in ("MAJOR", "MINOR"))
        major, minor = (
            self.call("cuDeviceGetAttribute", getattr(self.api.CUdevice_attribute, name), self.gpu) for name in names
        )
        self.capability = 10 * major + minor

    def call(self, name: str, *arguments: Any) -> Any:
        """Call a function of the driver; returns its result without the error code.

        Raises:
            DriverError: the call failed.
        """
        code, *values = getattr(self.api, name)(*arguments)
        if code != self.api.CUresult.CUDA_SUCCESS:
            raise DriverError(f"{name}: {code}")
        return values[0] if values else None

    def load(self, candidates: Sequence[Kernel]) -> LoadedKernel:
        """Load the first kernel that the driver accepts, in the current context.

        Raises:
            BackendError: it accepts none.
        """
        return load_first(candidates, self._load, DriverError)

    def _load(self, kernel: Kernel, content: bytes) -> Any:
        """The driver's function of one kernel."""
        module = self.call("cuModuleLoadData", content)
        function = self.call("cuModuleGetFunction", module, kernel.name.encode())
        if kernel.shared > DEFAULT_SHARED_LIMIT:
            limit = self.api.CUfunction_attribute.CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES
            self.call("cuFuncSetAttribute", function, limit, kernel.shared)
        return function

    def launch(self, loaded: LoadedKernel, grid: Sequence[int], stream: int, values: tuple[float, ...]) -> None:
        """Launch a kernel on a stream of the current context; `values` have the kernel's argument order."""
        kernel, function = loaded
        arguments = values, tuple(CTYPES[code] for _, code in kernel.arguments)
        self.call("cuLaunchKernel", function, *grid, kernel.threads, 1, 1, kernel.shared, stream, arguments, 0)


def load_first(
    candidates: Sequence[Kernel], load: Callable[[Kernel, bytes], Any], driver_error: type[Exception]
) -> LoadedKernel:
    """Load the first kernel that the driver accepts, and log a warning about those before it.

    Args:
        candidates: best first.
        load: a kernel and its cubin or PTX -> the driver's function; raises `driver_error` if it is not accepted.
        driver_error: class of the driver's errors.

    Raises:
        BackendError: the driver accepts none.
    """
    errors: list[str] = []
    for kernel in candidates:
        content = kernel.content if kernel.form == "cubin" else kernel.content + b"\0"
        try:
            function = load(kernel, content)
        except driver_error as error:
            errors.append(f"{kernel.form} of {kernel.capability / 10}: {error}")
            continue
        if errors:
            log.warning("%s: using the %s of %s; %s", kernel.name, kernel.form, kernel.capability / 10, errors)
        return LoadedKernel(kernel, function)
    raise BackendError(f"the driver accepts none of the kernels ({'; '.join(errors)}); update NVIDIA's driver")


def capture(driver: Driver, stream: int, enqueue: Callable[[], None]) -> Any:
    """Capture what `enqueue` launches on a stream as an executable graph; False, with a warning, if that fails."""
    mode, graph = driver.api.CUstreamCaptureMode.CU_STREAM_CAPTURE_MODE_THREAD_LOCAL, None
    try:
        driver.call("cuStreamBeginCapture", stream, mode)
        try:
            enqueue()
        finally:  # otherwise the stream would stay in capture mode and reject further work
            graph = driver.call("cuStreamEndCapture", stream)
        return driver.call("cuGraphInstantiate", graph, 0)
    except Exception as error:  # DriverError, or pycuda's of a launch: they have no common base
        log.warning("turns are launched one by one, not as a graph: %s", error)
        return False
    finally:
        if graph is not None:
            driver.api.cuGraphDestroy(graph)
