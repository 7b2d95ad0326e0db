"""The dialogue scope and head on a GPU. Weights and the rings of up to `capacity` conversations stay there.

A turn is one copy to the GPU, 3 L + 2 launches (kernels/layer.py, kernels/step.py), replayed as a graph, and one copy
back. The key and value of a conversation's last turn are uploaded with its next turn, so a provisional turn leaves no
trace in the rings. The host always has the complete state (hbaf_edge/backends/cuda/row_pool.py).
"""

from __future__ import annotations

import threading
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from hbaf_edge.backends.base import Request, stack_contexts
from hbaf_edge.backends.cuda.device import Array, Device
from hbaf_edge.backends.cuda.driver import LoadedKernel
from hbaf_edge.backends.cuda.kernels import CUBINS, choose, max_labels
from hbaf_edge.backends.cuda.row_pool import RowPool, RowUpdate
from hbaf_edge.backends.cuda.transfer import ArraySpecs, TransferBuffers
from hbaf_edge.backends.cuda.weights import DialogueWeights
from hbaf_edge.conversation import Context, ContextView
from hbaf_edge.errors import BackendError

CAPACITY = 64  # conversations; their rings take 8.4 MB in float16 at the default sizes
KERNELS = ("keep", "project", "gate_step", "finish", "head")
CHUNK, TILE = 64, 16  # outputs of a program of `project`, and conversations of any program (kernels/layer.py)
FINISH_WEIGHTS = ("out", "out_bias", "norm", "shift", "up", "up_bias", "down", "down_bias", "feed_norm", "feed_shift")
FINISH_ARGUMENTS = ("w_out", "b_out", "norm", "shift", "w_up", "b_up", "w_down", "b_down", "feed_norm", "feed_shift")
GATE_WEIGHTS = ("bias", "w_r", "b_r", "w_g", "b_g")
# Inputs of a turn besides its codes, with the names of kernel arguments: row of each conversation, number of the turn,
# slot to write, marks of all slots, mark of the new turn, and keys and values to write into that slot.
INPUTS = ("rows", "turns", "places", "slots", "nows", "kept")


class Rings:
    """Keys and values of `capacity` conversations on the device.

    Args:
        device: allocates them.
        capacity: number of conversations.
        shape: (L, W, 2, d), of the keys of a conversation, and of its values.
        dtype: float16 or float32.

    Attributes:
        arguments: launch arguments; `step_row` is the number of elements per conversation.
    """

    def __init__(self, device: Device, capacity: int, shape: tuple[int, ...], dtype: np.dtype[Any]) -> None:
        self._device, self._shape, self._dtype = device, shape, dtype
        row = int(np.prod(shape))
        self._row_bytes = row * dtype.itemsize
        keys, values = (device.allocate(capacity * self._row_bytes) for _ in range(2))
        self.arguments = {"keys": keys, "values": values, "step_row": row}

    def row_addresses(self, row: int) -> tuple[int, int]:
        """Addresses of a row's keys and values."""
        offset = row * self._row_bytes
        return int(self.arguments["keys"]) + offset, int(self.arguments["values"]) + offset

    def update(self, updates: Sequence[RowUpdate], memories: Sequence[tuple[Array, Array]]) -> Array:
        """Copy complete rings to rows that need them; returns the single slots for the kernel `keep` to write.

        A reassigned row is cleared if nothing is copied. Masked values are multiplied by zero, but 0 · NaN is NaN.

        Args:
            updates: one per conversation.
            memories: keys and values of each conversation, (L, W, 2, d) each.

        Returns:
            (L, B, 2, 2, d), key and value of each row's slot, zero for rows without one.
        """
        layers, _, _, d = self._shape
        slots = np.zeros((layers, len(updates), 2, 2, d), np.float32)
        for b, (update, memory) in enumerate(zip(updates, memories)):
            for i, (address, values) in enumerate(zip(self.row_addresses(update.row), memory)):
                if update.clear:
                    self._device.clear(address, self._row_bytes)
                if update.copy_all:
                    self._device.upload(address, self._cast(values))
                    self._device.synchronize()  # the cast copy is freed after this line
                if update.slot >= 0:
                    slots[:, b, :, i] = values[:, update.slot]
        return self._cast(slots)

    def _cast(self, values: Array) -> Array:
        """Cast to the rings' dtype; values out of its range become its limit instead of infinity."""
        limit = np.finfo(self._dtype).max
        return np.ascontiguousarray(np.clip(values, -limit, limit), self._dtype)


class DialogueScope:
    """Kernels, weights and rings of the dialogue scope on a device.

    Args:
        device: the GPU.
        weights: of a bundle.
        dtype: float16 or float32, of weights and rings; states are float32 with both.
        capacity: number of conversations whose rings stay on the GPU, and the largest batch.
        folder: of the compiled kernels.

    Raises:
        BackendError: no kernel fits, the model has more labels than the kernels support, or memory is short.
    """

    def __init__(
        self, device: Device, weights: DialogueWeights, dtype: str, capacity: int = CAPACITY, folder: Path = CUBINS
    ) -> None:
        self._device, self.dtype, self.capacity = device, np.dtype(dtype), capacity
        self.layers, self.window, self.heads, self.e = len(weights.layers), *weights[2:]
        self.d, self.labels = self.heads * self.e, len(weights.head["down_bias"])
        if self.labels > (limit := max_labels(folder)):
            raise BackendError(
                f"the model has {self.labels} labels, the GPU's kernels take {limit}: use provider='cpu'"
            )
        self.pool = RowPool(capacity)
        sizes = (self.window, self.heads, self.e)
        with device.current_context(f"while it allocated the rings of {capacity} conversations; free GPU memory"):
            self._kernels: dict[str, LoadedKernel] = {
                name: device.load(choose(name, device.capability, dtype, *sizes, folder)) for name in KERNELS
            }
            self._layers = [{n: self._upload_weight(n, x) for n, x in layer.items()} for layer in weights.layers]
            self._head = {n: self._upload_weight(n, x) for n, x in weights.head.items()}
            self._rings = Rings(device, capacity, (self.layers, self.window, 2, self.d), self.dtype)
            self._states = [device.allocate(capacity * 2 * self.d * 4) for _ in range(2)]
            self._queries, self._gated = (device.allocate(capacity * n * self.d * self.dtype.itemsize) for n in (4, 2))
            device.synchronize()

    def _upload_weight(self, name: str, array: Array) -> int:
        """Copy a weight to the device and return its address; the bias of order and speaker is always float32."""
        host = np.ascontiguousarray(array, np.float32 if name == "bias" else self.dtype)
        address = self._device.allocate(host.nbytes)
        self._device.upload(address, host)
        self._device.synchronize()  # `host` is freed after this function
        return address

    def outputs(self, batch: int) -> ArraySpecs:
        """Dtype and shape of a turn's results."""
        return {
            "logits": (np.float32, (batch, self.labels)), "embedding": (np.float32, (batch, 2 * self.d)),
            "news": (self.dtype, (self.layers, batch, 2, 2, self.d)),
        }  # fmt: skip

    def inputs(
        self, views: Sequence[ContextView], updates: Sequence[RowUpdate], context: Context, present: Array
    ) -> dict[str, Array]:
        """Arrays for INPUTS. Also copies complete rings to rows that need them.

        Args:
            views: contexts of the new turns, one per conversation.
            updates: rows of the conversations.
            context: contexts of all conversations, stacked.
            present: (B, 2) bool, modalities of the new turns.
        """
        bits = np.array([1, 2])  # of audio and text in a slot's mark (kernels/ring.py)
        memories = [(view.memory.keys, view.memory.values) for view in views]
        # Turn n goes to the kernel as W + n mod W. Its own check for early turns then always passes: `slots` already
        # has only visible turns.
        turns = context.distance[:, 0] % self.window + self.window
        return {
            "rows": np.array([u.row for u in updates], np.int32), "turns": turns.astype(np.int32),
            "places": np.array([u.slot for u in updates], np.int32),
            "slots": (context.visible @ bits + 4 * context.relation).astype(np.uint8),
            "nows": (present @ bits + 4 * context.own_relation[:, 0]).astype(np.uint8),
            "kept": self._rings.update(updates, memories),
        }  # fmt: skip

    def enqueue(self, batch: int, addresses: Mapping[str, int]) -> None:
        """Enqueue all launches of a turn on the stream.

        Args:
            batch: number of conversations.
            addresses: of `codes` (B, 2, d) float32, and of all INPUTS and `outputs`.
        """
        key = [addresses[name] for name in ("codes", *INPUTS, *self.outputs(batch))]
        self._device.replay((batch, *key), lambda: self._launch_all(batch, addresses))

    def _launch_all(self, batch: int, at: Mapping[str, int]) -> None:
        rings = {**self._rings.arguments, "rows": at["rows"]}
        self._launch("keep", (batch, self.layers), kept=at["kept"], places=at["places"], **rings)
        step = {"turns": at["turns"], "slots": at["slots"], "nows": at["nows"], "batch": batch, "store": 0,
                "scale": self.e**-0.5, "asks": self._queries, "out": self._gated}  # fmt: skip
        states, tiles = at["codes"], -(-batch // TILE)
        for index, weights in enumerate(self._layers):
            news = at["news"] + index * batch * 4 * self.d * self.dtype.itemsize
            offset = index * self.window * 2 * self.d * self.dtype.itemsize
            layer_rings = {**rings, "keys": rings["keys"] + offset, "values": rings["values"] + offset}
            last = index == self.layers - 1
            result = at["embedding"] if last else self._states[index % 2]
            self._launch("project", (tiles, -(-4 * self.d // CHUNK), 2), states=states, weight=weights["project"],
                         bias=weights["project_bias"], asks=self._queries, news=news, batch=batch)  # fmt: skip
            self._launch(
                "gate_step",
                (batch, self.heads),
                news=news,
                **step,
                **layer_rings,
                **{n: weights[n] for n in GATE_WEIGHTS},
            )
            self._launch("finish", (tiles, 2), states=states, answers=self._gated, result=result, batch=batch,
                         **{name: weights[key] for name, key in zip(FINISH_ARGUMENTS, FINISH_WEIGHTS)})  # fmt: skip
            states = result
        self._launch(
            "head", (tiles,), states=states, logits=at["logits"], batch=batch, labels=self.labels, **self._head
        )

    def _launch(self, name: str, grid: tuple[int, ...], **values: Any) -> None:
        x, y, z = (*grid, 1, 1)[:3]
        self._device.launch(self._kernels[name], (x, y, z), values)


class DialogueOnGpu:
    """Replaces the dialogue graph of `OrtBackend`; codes come from the host. Thread-safe."""

    def __init__(self, scope: DialogueScope, device: Device) -> None:
        self._scope, self._device, self._buffers = scope, device, TransferBuffers(device)
        self._lock = threading.Lock()

    def __call__(self, codes: Array, present: Array, requests: Sequence[Request]) -> tuple[Array, Array, Array, Array]:
        """Compute the outputs of the dialogue graph: logits, embedding, new keys and values.

        Args:
            codes: (B, 2, d) float32.
            present: (B, 2) bool.
            requests: of different conversations.

        Raises:
            BackendError: the GPU failed. No conversation has changed, and the next call starts from their memories.
        """
        capacity = self._scope.capacity
        parts = [slice(i, i + capacity) for i in range(0, len(requests), capacity)]
        with self._lock:
            results = [self._run_batch(codes[p], present[p], requests[p]) for p in parts]
        logits, embedding, keys, values = (np.concatenate(x) for x in zip(*results))
        return logits, embedding, keys, values

    def _run_batch(
        self, codes: Array, present: Array, requests: Sequence[Request]
    ) -> tuple[Array, Array, Array, Array]:
        """Compute at most `capacity` requests."""
        scope, batch, views = self._scope, len(requests), [request.view for request in requests]
        if codes.shape != (batch, 2, scope.d):
            raise BackendError(f"codes have shape {codes.shape}; the GPU takes {(batch, 2, scope.d)}")
        outputs, updates = scope.outputs(batch), scope.pool.assign(views)
        try:
            with self._device.current_context("in the middle of a turn; it was not committed"):
                inputs = scope.inputs(views, updates, stack_contexts(requests), present)
                addresses = self._buffers.upload({"codes": codes.astype(np.float32), **inputs})
                scope.enqueue(batch, {**addresses, **self._buffers.reserve_outputs(outputs)})
                results = self._buffers.download(outputs)
        except BaseException:
            scope.pool.invalidate()  # the rows may be partly written
            raise
        scope.pool.confirm(views, updates)
        return (results["logits"], results["embedding"], *split_keys_values(results["news"]))


def split_keys_values(news: Array) -> tuple[Array, Array]:
    """Split (L, B, 2, 2, d), key and value of each modality, into keys and values (B, L, 2, d) float32.

    Infinities of float16 become its largest number: a committed infinity would make all later turns NaN.
    """
    limit = np.finfo(news.dtype).max
    clipped = np.clip(news, -limit, limit).astype(np.float32)
    keys, values = np.moveaxis(clipped, (1, 3), (0, 1)).swapaxes(0, 1)
    return keys, values


def kernel_dtype(precision: str) -> str:
    """Dtype of the kernels for a bundle's precision: at least as precise as the bundle.

    >>> kernel_dtype("float32"), kernel_dtype("int8")
    ('float32', 'float16')
    """
    return "float32" if precision == "float32" else "float16"
