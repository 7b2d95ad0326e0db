"""The GPU through pycuda: memory, copies, launches and graph replay on one stream. Without PyTorch and Triton.

dialogue.py needs only this interface, so tests replace it by a host that interprets the kernels.
"""

from __future__ import annotations

import logging
import weakref
from collections.abc import Callable, Hashable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from typing import Any

import numpy as np
from numpy.typing import NDArray

from hbaf_edge.backends.cuda.driver import DEFAULT_SHARED_LIMIT, Driver, DriverError, LoadedKernel, capture, load_first
from hbaf_edge.backends.cuda.kernels import Kernel
from hbaf_edge.errors import BackendError
from hbaf_edge.workers import run_at_exit

Array = NDArray[Any]
log = logging.getLogger("hbaf_edge")


def import_pycuda() -> Any:
    """Import and initialise pycuda's driver module.

    Raises:
        BackendError: pycuda, NVIDIA's driver or a GPU is missing; the message says how to install them.
    """
    try:
        import pycuda.driver as cuda  # type: ignore[import-not-found,unused-ignore]

        cuda.init()
        if not cuda.Device.count():
            raise RuntimeError("the driver sees no card")
    except Exception as error:  # pycuda raises ImportError without a driver, and its own errors without a card
        raise BackendError(
            f"the GPU cannot be reached through pycuda ({error}): it needs NVIDIA's driver, a card and "
            "pip install 'hbaf-edge[tensorrt]'; provider='cpu' needs none of them"
        ) from error
    return cuda


def open_graph_driver() -> Driver | None:
    """cuda-bindings' driver for graphs, in pycuda's context; None, with a warning, if it is not installed."""
    try:
        return Driver()
    except BackendError as error:
        log.warning(
            "kernels are launched one by one, not as a CUDA graph: cuda-bindings cannot be used (%s)", error.__cause__
        )
        return None


def release(context: Any, stream: Any, driver: Driver | None, graphs: dict[Hashable, Any], memory: list[Any]) -> None:
    """Free the graphs and memory of a device after its last work; errors are ignored, since the device may be lost."""
    with suppress(Exception):
        context.push()
        try:
            stream.synchronize()
            for graph in filter(None, graphs.values()):
                assert driver is not None
                driver.call("cuGraphExecDestroy", graph)
            graphs.clear()
            while memory:
                memory.pop().free()
        finally:
            context.pop()


class Device:
    """The first GPU. Calls that reach it must be made inside `current_context`, by one thread at a time.

    Attributes:
        capability: compute capability, such as 87 for 8.7.
        name: name of the GPU.
        stream: handle of the stream, for libraries that enqueue work on it.

    Raises:
        BackendError: there is no GPU, or pycuda or the driver is missing.
    """

    def __init__(self) -> None:
        self._cuda = cuda = import_pycuda()
        gpu = cuda.Device(0)
        major, minor = gpu.compute_capability()
        self.capability, self.name = 10 * major + minor, str(gpu.name())
        self._context = gpu.retain_primary_context()
        self._driver, self._graphs, self._memory = open_graph_driver(), dict[Hashable, Any](), list[Any]()
        with self.current_context("while it was opened"):
            self._stream = cuda.Stream(flags=1)  # does not wait for the default stream of other libraries
            self.stream = int(self._stream.handle)
        # Release when the device is garbage or Python exits: pycuda frees memory by itself, but not our graphs.
        resources = self._context, self._stream, self._driver, self._graphs, self._memory
        finalizer = weakref.finalize(self, release, *resources)
        finalizer.atexit = False  # that would be before the last submitted turn is done
        run_at_exit(finalizer)

    @contextmanager
    def current_context(self, when: str) -> Iterator[None]:
        """Make the GPU's context current, and turn its errors into BackendError("the GPU failed {when} …")."""
        self._context.push()
        try:
            yield
        except self._cuda.Error as error:
            raise BackendError(f"the GPU failed {when} ({error})") from error
        finally:
            self._context.pop()

    def allocate(self, size: int) -> int:
        """Allocate `size` bytes of zeros; returns the address, aligned to 256 bytes."""
        memory = self._cuda.mem_alloc(size)
        self._memory.append(memory)
        self._cuda.memset_d8_async(memory, 0, size, self._stream)
        return int(memory)

    def allocate_pinned(self, size: int) -> Array:
        """Allocate (size,) bytes of page-locked host memory, which is copied without an intermediate buffer."""
        memory: Array = self._cuda.pagelocked_empty(size, np.uint8)
        return memory

    def upload(self, target: int, host: Array) -> None:
        """Copy from host to device, on the stream."""
        self._cuda.memcpy_htod_async(target, host, self._stream)

    def download(self, host: Array, source: int) -> None:
        """Copy from device to host, on the stream."""
        self._cuda.memcpy_dtoh_async(host, source, self._stream)

    def clear(self, target: int, size: int) -> None:
        """Write zeros, on the stream."""
        self._cuda.memset_d8_async(target, 0, size, self._stream)

    def synchronize(self) -> None:
        """Wait for the stream."""
        self._stream.synchronize()

    def load(self, candidates: Sequence[Kernel]) -> LoadedKernel:
        """Load the first kernel that the driver accepts.

        Raises:
            BackendError: it accepts none.
        """
        return load_first(candidates, self._load, self._cuda.Error)

    def _load(self, kernel: Kernel, content: bytes) -> Any:
        """pycuda's function of one kernel."""
        function = self._cuda.module_from_buffer(content).get_function(kernel.name)
        function.prepare("".join(code for _, code in kernel.arguments))
        if kernel.shared > DEFAULT_SHARED_LIMIT:
            attribute = self._cuda.function_attribute.MAX_DYNAMIC_SHARED_SIZE_BYTES
            function.set_attribute(attribute, kernel.shared)
        return function

    def launch(self, loaded: LoadedKernel, grid: tuple[int, int, int], values: Mapping[str, float]) -> None:
        """Launch a kernel on the stream; `values` are its arguments by name."""
        kernel = loaded.kernel
        loaded.function.prepared_async_call(
            grid, (kernel.threads, 1, 1), self._stream, *kernel.launch_arguments(values), shared_size=kernel.shared
        )

    def replay(self, key: Hashable, enqueue: Callable[[], None]) -> None:
        """Run `enqueue` for the first call with a key, capture it as a graph for the second, then replay the graph.

        The launches of `enqueue` and their arguments must depend only on the key. If capturing or replaying fails,
        `enqueue` runs every time.
        """
        if self._driver is None or key not in self._graphs:
            self._graphs.setdefault(key, None)
            enqueue()
            return
        if self._graphs[key] is None:
            self._graphs[key] = capture(self._driver, self.stream, enqueue)
        if self._graphs[key]:
            try:
                self._driver.call("cuGraphLaunch", self._graphs[key], self.stream)
                return
            except DriverError as error:
                log.warning("turns are launched one by one from now on: %s", error)
                self._graphs[key] = False
        enqueue()
