"""The step kernel on a GPU through pycuda: rings and weights stay there; a turn is a copy in, a launch, a copy out.

Neither PyTorch nor Triton is needed. Everything runs on a stream of its own, through pinned buffers; with cuda-bindings
installed a batch size is captured once as a CUDA graph and replayed from then on.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from hbaf_edge.errors import BackendError
from hbaf_edge.gpu.kernels import CUBINS, Kernel, choose

Array = NDArray[Any]
WEIGHTS = ("bias", "w_r", "b_r", "w_g", "b_g")
ALIGNMENT = 256  # of every part of a packed buffer; a multiple of what any kernel reads at once
log = logging.getLogger("hbaf_edge")


@dataclass(frozen=True)
class Packed:
    """Several arrays in one buffer, so that they cross in one copy.

    Attributes:
        offsets: of each part, in bytes.
        shapes: of each part.
        kinds: dtype of each part.
        size: of the whole.
    """

    offsets: Mapping[str, int]
    shapes: Mapping[str, tuple[int, ...]]
    kinds: Mapping[str, Any]
    size: int

    @classmethod
    def of(cls, parts: Mapping[str, tuple[tuple[int, ...], Any]]) -> Packed:
        """Parts by name, shape and dtype, one after the other.

        >>> made = Packed.of({"a": ((3,), np.uint8), "b": ((2, 2), np.float32)})
        >>> dict(made.offsets), made.size
        ({'a': 0, 'b': 256}, 512)
        """
        offsets, end = {}, 0
        for name, (shape, kind) in parts.items():
            offsets[name] = end
            end += -(-int(np.prod(shape)) * np.dtype(kind).itemsize // ALIGNMENT) * ALIGNMENT
        return cls(offsets, {n: s for n, (s, _) in parts.items()}, {n: np.dtype(k) for n, (_, k) in parts.items()}, end)

    def view(self, buffer: Array, name: str) -> Array:
        """A part of a host buffer of bytes as the array it is."""
        kind, shape = self.kinds[name], self.shapes[name]
        start = self.offsets[name]
        found: Array = buffer[start : start + int(np.prod(shape)) * kind.itemsize].view(kind).reshape(shape)
        return found

    def fill(self, buffer: Array, given: Mapping[str, Array]) -> None:
        """Copy arrays into a host buffer.

        Raises:
            BackendError: one is missing, or of another shape or dtype.
        """
        for name, kind in self.kinds.items():
            array = given.get(name)
            if array is None or array.shape != self.shapes[name] or array.dtype != kind:
                came = "nothing" if array is None else f"{array.dtype} {array.shape}"
                raise BackendError(f"{name} is {came}; the step takes {kind} {self.shapes[name]}")
        for name in self.kinds:
            self.view(buffer, name)[...] = given[name]


def inputs_of(batch: int, window: int, heads: int, e: int, kind: Any) -> Packed:
    """What a step brings to the GPU: queries, new keys and values, and what each conversation's slots hold."""
    both = (batch, 2, 2, heads, e)
    return Packed.of({
        "asks": (both, kind), "news": (both, kind), "rows": ((batch,), np.int32), "turns": ((batch,), np.int32),
        "slots": ((batch, window), np.uint8), "nows": ((batch,), np.uint8),
    })  # fmt: skip


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
    """A layer's gate for up to `capacity` conversations, with their rings, on the GPU that is there.

    Args:
        weights: bias (2, H, W, 3) float32; w_r (2, H, 2e), b_r (2, H), w_g (2, H, e, 2e), b_g (2, H, e).
        capacity: conversations whose rings are kept.
        dtype: float16 or float32; of queries, rings and weights.
        folder: of the kernels.

    Raises:
        BackendError: no GPU, no kernel that fits it, or not enough of its memory.
    """

    def __init__(
        self, weights: Mapping[str, Array], capacity: int, dtype: str = "float16", folder: Path = CUBINS
    ) -> None:
        self._cuda = cuda = driver()
        self._context = cuda.Device(0).retain_primary_context()
        self.kind, self.capacity = np.dtype(dtype), capacity
        _, self.heads, self.window, _ = weights["bias"].shape
        self.e = weights["b_g"].shape[-1]
        major, minor = cuda.Device(0).compute_capability()
        self.kernel = choose(10 * major + minor, dtype, self.window, self.heads, self.e, folder)
        self._replays: dict[tuple[int, bool], Any] = {}
        self._buffers: dict[int, tuple[Packed, Array, Any, Array, Any]] = {}
        self._context.push()
        try:
            self._stream = cuda.Stream()
            self._function = _load(cuda, self.kernel)
            ring = capacity * self.window * 2 * self.heads * self.e * self.kind.itemsize
            self._keys, self._values = (self._zeros(ring) for _ in range(2))
            cast = {n: np.ascontiguousarray(weights[n], np.float32 if n == "bias" else self.kind) for n in WEIGHTS}
            self._weights = {name: cuda.to_device(array) for name, array in cast.items()}
        except cuda.Error as error:
            raise BackendError(f"the GPU cannot hold {capacity} conversations ({error}); give fewer") from error
        finally:
            self._context.pop()

    def __call__(self, given: Mapping[str, Array], store: bool = True) -> Array:
        """One new turn of each of B conversations: (B, 2, H, e) float32.

        Args:
            given: asks and news (B, 2, 2, H, e), rows and turns (B,) int32, slots (B, W) and nows (B,) uint8, as
                kernels/ring.py says.
            store: whether new keys and values enter the ring; nobody sees them before the turn's number moves on.

        Raises:
            BackendError: an input does not fit, or the GPU failed: no turn was committed.
        """
        batch = len(given["asks"])
        if not 1 <= batch <= self.capacity or not ((given["rows"] >= 0) & (given["rows"] < self.capacity)).all():
            raise BackendError(
                f"{batch} conversations with rows {given['rows'].tolist()} came; there are {self.capacity}"
            )
        self._context.push()
        try:
            layout, host, _, answer, _ = self._buffer(batch)
            layout.fill(host, given)
            self._replay(batch, store)
            self._stream.synchronize()
        except self._cuda.Error as error:
            raise BackendError(f"the GPU failed in the middle of a turn ({error}); it was not committed") from error
        finally:
            self._context.pop()
        return answer.view(self.kind).reshape(batch, 2, self.heads, self.e).astype(np.float32)

    def _zeros(self, size: int) -> Any:
        memory = self._cuda.mem_alloc(size)
        self._cuda.memset_d8(memory, 0, size)
        return memory

    def _buffer(self, batch: int) -> tuple[Packed, Array, Any, Array, Any]:
        """Pinned and device buffers of a batch size, made once."""
        if batch not in self._buffers:
            layout = inputs_of(batch, self.window, self.heads, self.e, self.kind)
            size = batch * 2 * self.heads * self.e * self.kind.itemsize
            pinned = [self._cuda.pagelocked_empty(n, np.uint8) for n in (layout.size, size)]
            held = [self._cuda.mem_alloc(n) for n in (layout.size, size)]
            self._buffers[batch] = layout, pinned[0], held[0], pinned[1], held[1]
        return self._buffers[batch]

    def _enqueue(self, batch: int, store: bool) -> None:
        """Copy in, launch, copy out, on the stream."""
        layout, host, device, answer, out = self._buffer(batch)
        values: dict[str, Any] = {name: int(device) + offset for name, offset in layout.offsets.items()}
        values |= {name: int(memory) for name, memory in self._weights.items()}
        values |= {
            "keys": int(self._keys), "values": int(self._values), "out": int(out), "batch": batch, "store": store,
            "step_row": self.window * 2 * self.heads * self.e, "scale": self.e**-0.5,
        }  # fmt: skip
        self._cuda.memcpy_htod_async(device, host, self._stream)
        grid, block = (batch, self.heads, 1), (self.kernel.threads, 1, 1)
        self._function._launch_kernel(grid, block, self.kernel.pack(values), self.kernel.shared, self._stream)
        self._cuda.memcpy_dtoh_async(answer, out, self._stream)

    def _replay(self, batch: int, store: bool) -> None:
        """As a graph where that can be had: captured the second time, when every buffer is there."""
        graphs = _graphs()
        if graphs is None or (batch, store) not in self._replays:
            self._enqueue(batch, store)
            self._replays.setdefault((batch, store), None)
            return
        if self._replays[batch, store] is None:
            self._replays[batch, store] = _capture(graphs, self._stream.handle, lambda: self._enqueue(batch, store))
        _checked(graphs, graphs.cuGraphLaunch(self._replays[batch, store], self._stream.handle))


def _load(cuda: Any, kernel: Kernel) -> Any:
    content = kernel.content if kernel.form == "cubin" else kernel.content + b"\0"
    return cuda.module_from_buffer(content).get_function(kernel.name)


def _graphs() -> Any:
    """cuda-bindings' driver module, which shares pycuda's context; None where it is not installed."""
    try:
        from cuda.bindings import driver as found  # type: ignore[import-not-found,unused-ignore]
    except ImportError:
        return None
    return found


def _capture(graphs: Any, stream: int, enqueue: Any) -> Any:
    """What `enqueue` puts on a stream, as an executable graph."""
    mode = graphs.CUstreamCaptureMode.CU_STREAM_CAPTURE_MODE_THREAD_LOCAL
    _checked(graphs, graphs.cuStreamBeginCapture(stream, mode))
    enqueue()
    (graph,) = _checked(graphs, graphs.cuStreamEndCapture(stream))
    (executable,) = _checked(graphs, graphs.cuGraphInstantiate(graph, 0))
    return executable


def _checked(graphs: Any, returned: Sequence[Any]) -> Sequence[Any]:
    """What a call returned behind its error code.

    Raises:
        BackendError: it failed.
    """
    code, *rest = returned
    if code != graphs.CUresult.CUDA_SUCCESS:
        raise BackendError(f"the GPU refused a graph ({code}); it was not committed")
    return rest
