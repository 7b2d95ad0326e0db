"""The step kernel on a GPU through pycuda: rings and weights stay there; a turn is a copy in, a launch, a copy out.

Neither PyTorch nor Triton is needed. Everything runs on a stream of its own, through pinned buffers; with cuda-bindings
installed a batch size is captured once as a CUDA graph and replayed from then on.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np

from hbaf_edge.errors import BackendError
from hbaf_edge.gpu.kernels import CUBINS, Kernel, choose
from hbaf_edge.gpu.packed import WEIGHTS, Array, Packed, check_inputs, check_weights, inputs_of
from hbaf_edge.gpu.replay import bindings, capture, launched

FREE_SHARED = 48 << 10  # bytes of shared memory that need not be asked for
MOST_CAPTURED = 16  # conversations of a launch up to which a graph is kept for each number of them
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


class GateStep:
    """A layer's gate for up to `capacity` conversations, with their rings, on the GPU that is there. Thread-safe.

    Args:
        weights: bias (2, H, W, 3) float32; w_r (2, H, 2e), b_r (2, H), w_g (2, H, e, 2e), b_g (2, H, e).
        capacity: conversations whose rings are kept.
        dtype: float16 or float32; of queries, rings and weights.
        folder: of the kernels.

    Raises:
        BackendError: no GPU, no kernel that it and its driver take, weights of other shapes, or not enough memory.
    """

    def __init__(
        self, weights: Mapping[str, Array], capacity: int, dtype: str = "float16", folder: Path = CUBINS
    ) -> None:
        self._cuda = cuda = driver()
        self.kind, self.capacity, self._lock = np.dtype(dtype), capacity, threading.Lock()
        self.heads, self.window, self.e = check_weights(weights)
        self._context = cuda.Device(0).retain_primary_context()
        major, minor = cuda.Device(0).compute_capability()
        fitting = choose(10 * major + minor, dtype, self.window, self.heads, self.e, folder)
        self._bindings, self._graphs = bindings(), dict[int, Any]()
        self._layout: Packed | None = None
        self._context.push()
        try:
            self.kernel, self._function = _load(cuda, fitting)
            self._stream = cuda.Stream(flags=1)  # does not wait for other programs' default stream
            row = self.window * 2 * self.heads * self.e * self.kind.itemsize
            self._keys, self._values = (self._zeros(capacity * row) for _ in range(2))
            cast = {n: np.ascontiguousarray(weights[n], np.float32 if n == "bias" else self.kind) for n in WEIGHTS}
            self._weights = {name: cuda.to_device(array) for name, array in cast.items()}
            sizes = self._inputs(capacity).size, capacity * 2 * self.heads * self.e * self.kind.itemsize
            self._host, self._answer = (cuda.pagelocked_empty(size, np.uint8) for size in sizes)
            self._device, self._out = (cuda.mem_alloc(size) for size in sizes)
            cuda.Context.synchronize()
        except cuda.Error as error:
            raise BackendError(f"the GPU cannot hold {capacity} conversations ({error}); give fewer") from error
        finally:
            self._context.pop()

    def __call__(self, given: Mapping[str, Array]) -> Array:
        """One new turn of each of B conversations: (B, 2, H, e) float32; nothing is remembered until `commit`.

        Args:
            given: asks and news (B, 2, 2, H, e), rows and turns (B,) int32, slots (B, W) and nows (B,) uint8, as
                kernels/ring.py says.

        Raises:
            BackendError: an input does not fit, or the GPU failed; the rings are as they were.
        """
        batch = check_inputs(given, self.capacity)
        with self._lock, self._here("in the middle of a turn; it was not committed"):
            self._layout = None  # whatever fails below leaves nothing to commit
            layout = self._inputs(batch)
            layout.fill(self._host[: layout.size], given)
            self._run(batch)
            self._stream.synchronize()
            self._layout = layout
            size = batch * 2 * self.heads * self.e * self.kind.itemsize
            found: Array = self._answer[:size].view(self.kind).reshape(batch, 2, self.heads, self.e).astype(np.float32)
            return found

    def commit(self) -> None:
        """Let the turns of the last call enter their rings, each in the slot of its number.

        Raises:
            BackendError: there was no call, or the GPU failed.
        """
        with self._lock, self._here("while a turn was committed; begin its conversation anew"):
            layout = self._layout
            if layout is None:
                raise BackendError("there is no turn to commit; call it with one first")
            part = self.heads * self.e * self.kind.itemsize
            rows, turns = (layout.view(self._host[: layout.size], name) for name in ("rows", "turns"))
            for b, (row, turn) in enumerate(zip(rows.tolist(), turns.tolist())):
                for m in range(2):
                    source = int(self._device) + layout.offsets["news"] + (4 * b + 2 * m) * part
                    target = ((row * self.window + turn % self.window) * 2 + m) * part
                    for offset, ring in ((0, self._keys), (part, self._values)):
                        self._cuda.memcpy_dtod_async(int(ring) + target, source + offset, part, self._stream)
            self._stream.synchronize()
            self._layout = None

    def _inputs(self, batch: int) -> Packed:
        return inputs_of(batch, self.window, self.heads, self.e, self.kind)

    @contextmanager
    def _here(self, when: str) -> Iterator[None]:
        """In the GPU's context; its errors in our words."""
        self._context.push()
        try:
            yield
        except self._cuda.Error as error:
            raise BackendError(f"the GPU failed {when} ({error})") from error
        finally:
            self._context.pop()

    def _zeros(self, size: int) -> Any:
        memory = self._cuda.mem_alloc(size)
        self._cuda.memset_d8(memory, 0, size)
        return memory

    def _enqueue(self, batch: int) -> None:
        """Copy in, launch, copy out, on the stream."""
        layout = self._inputs(batch)
        values: dict[str, Any] = {name: int(self._device) + offset for name, offset in layout.offsets.items()}
        values |= {name: int(memory) for name, memory in self._weights.items()}
        values |= {
            "keys": int(self._keys), "values": int(self._values), "out": int(self._out), "batch": batch, "store": 0,
            "step_row": self.window * 2 * self.heads * self.e, "scale": self.e**-0.5,
        }  # fmt: skip
        size = batch * 2 * self.heads * self.e * self.kind.itemsize
        self._cuda.memcpy_htod_async(self._device, self._host[: layout.size], self._stream)
        grid, block = (batch, self.heads, 1), (self.kernel.threads, 1, 1)
        self._function._launch_kernel(grid, block, self.kernel.pack(values), self.kernel.shared, self._stream)
        self._cuda.memcpy_dtoh_async(self._answer[:size], self._out, self._stream)

    def _run(self, batch: int) -> None:
        """As a graph where that can be had: captured the second time a small batch comes, replayed from then on."""
        graphs = self._bindings
        if graphs is None or batch > MOST_CAPTURED or batch not in self._graphs:
            self._enqueue(batch)
            self._graphs.setdefault(batch, None)
            return
        if self._graphs[batch] is None:
            self._graphs[batch] = capture(graphs, self._stream.handle, lambda: self._enqueue(batch))
        if self._graphs[batch] is not False and not launched(graphs, self._graphs[batch], self._stream.handle):
            log.warning("the graph for %d conversations was refused; they are launched one by one from now on", batch)
            self._graphs[batch] = False
        if self._graphs[batch] is False:
            self._enqueue(batch)


def _load(cuda: Any, fitting: Sequence[Kernel]) -> tuple[Kernel, Any]:
    """The first kernel that the driver takes, ready to be launched."""
    refused = []
    for kernel in fitting:
        content = kernel.content if kernel.form == "cubin" else kernel.content + b"\0"
        try:
            function = cuda.module_from_buffer(content).get_function(kernel.name)
            if kernel.shared > FREE_SHARED:
                function.set_attribute(cuda.function_attribute.MAX_DYNAMIC_SHARED_SIZE_BYTES, kernel.shared)
        except cuda.Error as error:
            refused.append(f"{kernel.form} of {kernel.capability / 10}: {error}")
            continue
        if refused:
            log.warning("%s: taken is the %s of %s; %s", kernel.name, kernel.form, kernel.capability / 10, refused)
        return kernel, function
    raise BackendError(f"the driver takes none of the kernels ({'; '.join(refused)}); a newer driver does")
