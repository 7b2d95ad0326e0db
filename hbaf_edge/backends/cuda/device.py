"""A GPU through pycuda: memory, copies, launches and graphs on one stream of its own. No PyTorch, no Triton.

What runs on it (dialogue.py, beside this file) asks for nothing else, so that tests give it a host that interprets.
"""

from __future__ import annotations

import logging
import weakref
from collections.abc import Callable, Hashable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from typing import Any

import numpy as np
from numpy.typing import NDArray

from hbaf_edge.backends.cuda.driver import FREE_SHARED, Driver, DriverError, Loaded, capture
from hbaf_edge.backends.cuda.kernels import Kernel
from hbaf_edge.errors import BackendError
from hbaf_edge.workers import at_the_end

Array = NDArray[Any]
log = logging.getLogger("hbaf_edge")


def driver() -> Any:
    """pycuda's driver module, initialised.

    Raises:
        BackendError: there is no pycuda, no NVIDIA driver or no card; says how to get it.
    """
    try:
        import pycuda.driver as cuda  # type: ignore[import-not-found,unused-ignore]

        cuda.init()
        if not cuda.Device.count():
            raise RuntimeError("the driver sees no card")
    except Exception as error:  # pycuda without a driver raises ImportError, one without a card its own
        raise BackendError(
            f"the GPU cannot be reached through pycuda ({error}): it needs NVIDIA's driver, a card and "
            "pip install 'hbaf-edge[tensorrt]'; provider='cpu' needs none of them"
        ) from error
    return cuda


def graph_driver() -> Driver | None:
    """cuda-bindings' driver, which shares pycuda's context; None where it is not installed, which is logged."""
    try:
        return Driver()
    except BackendError as error:
        log.warning("turns are launched one by one, not as a graph: %s", error)
        return None


def release(context: Any, stream: Any, driver: Driver | None, graphs: dict[Hashable, Any], memory: list[Any]) -> None:
    """Graphs and memory of a device, once its work is done; a device that was lost has none left."""
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
    """The first GPU. Calls that reach it stand inside of `here`; one thread at a time.

    Attributes:
        capability: such as 87 for 8.7.
        name: as the driver has it.
        stream: its handle, for libraries that put work on it.

    Raises:
        BackendError: there is none, or nobody to ask.
    """

    def __init__(self) -> None:
        self._cuda = cuda = driver()
        card = cuda.Device(0)
        major, minor = card.compute_capability()
        self.capability, self.name = 10 * major + minor, str(card.name())
        self._context = card.retain_primary_context()
        self._driver, self._graphs, self._memory = graph_driver(), dict[Hashable, Any](), list[Any]()
        with self.here("while it was opened"):
            self._stream = cuda.Stream(flags=1)  # does not wait for other programs' default stream
            self.stream = int(self._stream.handle)
        # When nobody uses it any more, or Python ends: pycuda frees memory by itself, nobody frees graphs.
        held = self._context, self._stream, self._driver, self._graphs, self._memory
        finalizer = weakref.finalize(self, release, *held)
        finalizer.atexit = False  # not before the last turn that was submitted
        at_the_end(finalizer)

    @contextmanager
    def here(self, when: str) -> Iterator[None]:
        """In the GPU's context; its errors in our words."""
        self._context.push()
        try:
            yield
        except self._cuda.Error as error:
            raise BackendError(f"the GPU failed {when} ({error})") from error
        finally:
            self._context.pop()

    def allocate(self, size: int) -> int:
        """Address of so many zeroed bytes, aligned to 256."""
        memory = self._cuda.mem_alloc(size)
        self._memory.append(memory)
        self._cuda.memset_d8_async(memory, 0, size, self._stream)
        return int(memory)

    def pinned(self, size: int) -> Array:
        """(size,) bytes on the host that copies need not pass through another buffer for."""
        found: Array = self._cuda.pagelocked_empty(size, np.uint8)
        return found

    def upload(self, target: int, host: Array) -> None:
        """Host to device, on the stream."""
        self._cuda.memcpy_htod_async(target, host, self._stream)

    def download(self, host: Array, source: int) -> None:
        """Device to host, on the stream."""
        self._cuda.memcpy_dtoh_async(host, source, self._stream)

    def clear(self, target: int, size: int) -> None:
        """Zeros, on the stream."""
        self._cuda.memset_d8_async(target, 0, size, self._stream)

    def synchronize(self) -> None:
        """Wait for the stream."""
        self._stream.synchronize()

    def load(self, fitting: Sequence[Kernel]) -> Loaded:
        """The first kernel that the driver takes.

        Raises:
            BackendError: it takes none.
        """
        cuda, refused = self._cuda, []
        for kernel in fitting:
            content = kernel.content if kernel.form == "cubin" else kernel.content + b"\0"
            try:
                function = cuda.module_from_buffer(content).get_function(kernel.name)
                function.prepare("".join(code for _, code in kernel.arguments))
                if kernel.shared > FREE_SHARED:
                    function.set_attribute(cuda.function_attribute.MAX_DYNAMIC_SHARED_SIZE_BYTES, kernel.shared)
            except cuda.Error as error:
                refused.append(f"{kernel.form} of {kernel.capability / 10}: {error}")
                continue
            if refused:
                log.warning("%s: taken is the %s of %s; %s", kernel.name, kernel.form, kernel.capability / 10, refused)
            return Loaded(kernel, function)
        raise BackendError(f"the driver takes none of the kernels ({'; '.join(refused)}); a newer driver does")

    def launch(self, loaded: Loaded, grid: tuple[int, int, int], values: Mapping[str, float]) -> None:
        """A kernel, on the stream; arguments by name."""
        kernel = loaded.kernel
        loaded.function.prepared_async_call(
            grid, (kernel.threads, 1, 1), self._stream, *kernel.ordered(values), shared_size=kernel.shared
        )

    def replay(self, key: Hashable, enqueue: Callable[[], None]) -> None:
        """What `enqueue` puts on the stream: by itself the first time, captured as a graph the second, then replayed.

        What it launches, and with which addresses, may depend on the key alone.
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
