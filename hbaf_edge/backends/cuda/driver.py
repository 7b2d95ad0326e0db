"""CUDA's driver through cuda-bindings, for what pycuda lacks: graphs, and launches inside of TensorRT's plugin."""

from __future__ import annotations

import ctypes
import logging
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

from hbaf_edge.backends.cuda.kernels import Kernel
from hbaf_edge.errors import BackendError

TYPES = {"P": ctypes.c_void_p, "i": ctypes.c_int, "q": ctypes.c_longlong, "f": ctypes.c_float}  # by `struct` code
FREE_SHARED = 48 << 10  # bytes of shared memory that need not be asked for
log = logging.getLogger("hbaf_edge")


class DriverError(BackendError):
    """A call of the driver failed."""


class Loaded(NamedTuple):
    """A kernel, and the driver's function of it."""

    kernel: Kernel
    function: Any


class Driver:
    """CUDA's driver, initialised, and its first GPU.

    Attributes:
        api: the module `cuda.bindings.driver`.
        gpu: handle of the GPU.
        name: of the GPU, as the driver has it.
        capability: of the GPU, such as 87 for 8.7.

    Raises:
        BackendError: cuda-bindings, the driver or a GPU is missing; says how to get it.
    """

    def __init__(self) -> None:
        try:
            from cuda.bindings import driver  # type: ignore[import-not-found,unused-ignore]

            self.api = driver
            self.call("cuInit", 0)
            self.gpu = self.call("cuDeviceGet", 0)
        except Exception as error:  # without a driver cuda-bindings raises an error of its own
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
        """What a function of the driver returns behind its error code.

        Raises:
            DriverError: it failed.
        """
        code, *values = getattr(self.api, name)(*arguments)
        if code != self.api.CUresult.CUDA_SUCCESS:
            raise DriverError(f"{name}: {code}")
        return values[0] if values else None

    def load(self, fitting: Sequence[Kernel]) -> Loaded:
        """The first kernel that the driver takes, in the current context.

        Raises:
            BackendError: it takes none.
        """
        refused: list[str] = []
        for kernel in fitting:
            content = kernel.content if kernel.form == "cubin" else kernel.content + b"\0"
            try:
                module = self.call("cuModuleLoadData", content)
                function = self.call("cuModuleGetFunction", module, kernel.name.encode())
                if kernel.shared > FREE_SHARED:
                    most = self.api.CUfunction_attribute.CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES
                    self.call("cuFuncSetAttribute", function, most, kernel.shared)
            except DriverError as error:
                refused.append(f"{kernel.form} of {kernel.capability / 10}: {error}")
                continue
            if refused:
                log.warning("%s: taken is the %s of %s; %s", kernel.name, kernel.form, kernel.capability / 10, refused)
            return Loaded(kernel, function)
        raise BackendError(f"the driver takes none of the kernels ({'; '.join(refused)}); a newer driver does")

    def launch(self, loaded: Loaded, grid: Sequence[int], stream: int, values: tuple[float, ...]) -> None:
        """A kernel, on a stream of the current context; arguments in the kernel's order."""
        kernel, function = loaded
        arguments = values, tuple(TYPES[code] for _, code in kernel.arguments)
        self.call("cuLaunchKernel", function, *grid, kernel.threads, 1, 1, kernel.shared, stream, arguments, 0)


def capture(driver: Driver, stream: int, enqueue: Callable[[], None]) -> Any:
    """What `enqueue` puts on a stream as an executable graph; False where that cannot be had, which is logged."""
    mode, graph = driver.api.CUstreamCaptureMode.CU_STREAM_CAPTURE_MODE_THREAD_LOCAL, None
    try:
        driver.call("cuStreamBeginCapture", stream, mode)
        try:
            enqueue()
        finally:  # a stream that stays in capture takes no more work
            graph = driver.call("cuStreamEndCapture", stream)
        return driver.call("cuGraphInstantiate", graph, 0)
    except Exception as error:  # ours, or pycuda's of a launch: they have no common base
        log.warning("turns are launched one by one, not as a graph: %s", error)
        return False
    finally:
        if graph is not None:
            driver.api.cuGraphDestroy(graph)
