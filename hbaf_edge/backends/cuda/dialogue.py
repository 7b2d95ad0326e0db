"""The dialogue scope and head on a GPU: rings and weights stay there, for up to `capacity` conversations.

A turn is a copy in, 3 L + 2 launches (kernels/dialogue.py), replayed as a graph, and a copy out. What the last turn of
a conversation left behind travels with its next one, so that a turn that was only tried leaves no trace; the whole
state is always the host's (hbaf_edge/backends/cuda/pool.py).
"""

from __future__ import annotations

import threading
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from hbaf_edge.backends.base import Request, joined
from hbaf_edge.backends.cuda.device import Array, Device
from hbaf_edge.backends.cuda.driver import Loaded
from hbaf_edge.backends.cuda.exchange import Exchange, Parts
from hbaf_edge.backends.cuda.kernels import CUBINS, choose, most_labels
from hbaf_edge.backends.cuda.pool import Place, Pool
from hbaf_edge.backends.cuda.weights import DialogueWeights
from hbaf_edge.conversation import Context, ContextView
from hbaf_edge.errors import BackendError

CAPACITY = 64  # conversations: 33 MB in half precision at the default sizes
KERNELS = ("keep", "project", "gate_step", "finish", "head")
CHUNK, TILE = 64, 16  # outputs of a program of `project`, and conversations of one (kernels/layer.py)
FINISH = ("out", "out_bias", "norm", "shift", "up", "up_bias", "down", "down_bias", "feed_norm", "feed_shift")
FINISHED = ("w_out", "b_out", "norm", "shift", "w_up", "b_up", "w_down", "b_down", "feed_norm", "feed_shift")
GATE = ("bias", "w_r", "b_r", "w_g", "b_g")
INPUTS = ("rows", "turns", "places", "slots", "nows", "kept")  # what a turn brings along, besides its codes


class Rings:
    """Keys and values on the device, of `capacity` conversations.

    Args:
        device: that holds them.
        capacity: conversations.
        shape: (L, W, 2, d) of a conversation's keys, and of its values.
        kind: dtype of the elements.

    Attributes:
        at: launch arguments; `step_row` counts the elements of a conversation.
    """

    def __init__(self, device: Device, capacity: int, shape: tuple[int, ...], kind: np.dtype[Any]) -> None:
        self._device, self._shape, self._kind = device, shape, kind
        row = int(np.prod(shape))
        self._bytes = row * kind.itemsize
        keys, values = (device.allocate(capacity * self._bytes) for _ in range(2))
        self.at = {"keys": keys, "values": values, "step_row": row}

    def row(self, place: Place) -> tuple[int, int]:
        """Addresses of a conversation's keys and values."""
        return self.at["keys"] + place.row * self._bytes, self.at["values"] + place.row * self._bytes

    def follow(self, places: Sequence[Place], memories: Sequence[tuple[Array, Array]]) -> Array:
        """Make rows hold what conversations hold.

        Another conversation's row is cleared: what is masked is multiplied by zero, which leaves nothing of it, unless
        it was not a number.

        Args:
            places: of the conversations.
            memories: keys and values of each.

        Returns:
            (L, B, 2, 2, d), what the kernel `keep` has yet to store: key and value of each row's lacking slot.
        """
        layers, _, _, d = self._shape
        kept = np.zeros((layers, len(places), 2, 2, d), np.float32)
        for b, (place, memory) in enumerate(zip(places, memories)):
            for i, (address, held) in enumerate(zip(self.row(place), memory)):
                if place.fresh:
                    self._device.clear(address, self._bytes)
                if place.whole:
                    self._device.upload(address, self._cast(held))
                    self._device.synchronize()  # the cast copy goes away
                if place.slot >= 0:
                    kept[:, b, :, i] = held[:, place.slot]
        return self._cast(kept)

    def _cast(self, values: Array) -> Array:
        """To the rings' dtype; what it cannot hold is kept at its limit rather than as infinity."""
        limit = np.finfo(self._kind).max
        return np.ascontiguousarray(np.clip(values, -limit, limit), self._kind)


class DialogueScope:
    """Kernels, weights and rings.

    Args:
        device: that computes.
        weights: of a bundle.
        dtype: float16 or float32, of weights and rings; states are float32 in either.
        capacity: conversations whose rings are kept, and the most that are computed at once.
        folder: of the kernels.

    Raises:
        BackendError: no kernel fits, the model has more labels than the kernels take, or memory is short.
    """

    def __init__(
        self, device: Device, weights: DialogueWeights, dtype: str, capacity: int = CAPACITY, folder: Path = CUBINS
    ) -> None:
        self._device, self.kind, self.capacity = device, np.dtype(dtype), capacity
        self.layers, self.window, self.heads, self.e = len(weights.layers), *weights[2:]
        self.d, self.labels = self.heads * self.e, len(weights.head["down_bias"])
        if self.labels > (most := most_labels(folder)):
            raise BackendError(f"the model has {self.labels} labels, the GPU's kernels take {most}: use provider='cpu'")
        self.pool = Pool(capacity)
        sizes = (self.window, self.heads, self.e)
        with device.here(f"while {capacity} conversations' rings were made; give fewer"):
            self._kernels: dict[str, Loaded] = {
                name: device.load(choose(name, device.capability, dtype, *sizes, folder)) for name in KERNELS
            }
            self._layers = [{n: self._there(n, x) for n, x in layer.items()} for layer in weights.layers]
            self._head = {n: self._there(n, x) for n, x in weights.head.items()}
            self._rings = Rings(device, capacity, (self.layers, self.window, 2, self.d), self.kind)
            self._states = [device.allocate(capacity * 2 * self.d * 4) for _ in range(2)]
            self._asks, self._answers = (device.allocate(capacity * n * self.d * self.kind.itemsize) for n in (4, 2))
            device.synchronize()

    def _there(self, name: str, array: Array) -> int:
        """A weight on the device; the order's bias is float32 in every dtype."""
        host = np.ascontiguousarray(array, np.float32 if name == "bias" else self.kind)
        address = self._device.allocate(host.nbytes)
        self._device.upload(address, host)
        self._device.synchronize()  # `host` goes away
        return address

    def outputs(self, batch: int) -> Parts:
        """What a turn takes back."""
        return {
            "logits": (np.float32, (batch, self.labels)), "embedding": (np.float32, (batch, 2 * self.d)),
            "news": (self.kind, (self.layers, batch, 2, 2, self.d)),
        }  # fmt: skip

    def given(
        self, views: Sequence[ContextView], places: Sequence[Place], context: Context, present: Array
    ) -> dict[str, Array]:
        """INPUTS, by what the conversations hold; whole rings are written where they lack them.

        Args:
            views: of the conversations whose turn it is.
            places: theirs in the pool.
            context: of all of them, one behind the other.
            present: (B, 2) bool, the new turns' modalities.
        """
        both = np.array([1, 2])
        memories = [(view.memory.keys, view.memory.values) for view in views]
        # Slots and distances depend on a turn's number modulo the window; what is visible, the context says.
        turns = context.distance[:, 0] % self.window + self.window
        return {
            "rows": np.array([p.row for p in places], np.int32), "turns": turns.astype(np.int32),
            "places": np.array([p.slot for p in places], np.int32),
            "slots": (context.visible @ both + 4 * context.relation).astype(np.uint8),
            "nows": (present @ both + 4 * context.own_relation[:, 0]).astype(np.uint8),
            "kept": self._rings.follow(places, memories),
        }  # fmt: skip

    def enqueue(self, batch: int, at: Mapping[str, int]) -> None:
        """All launches of a turn, on the stream.

        Args:
            batch: conversations.
            at: addresses of `codes` (B, 2, d) float32, and of all INPUTS and `outputs`.
        """
        addresses = [at[name] for name in ("codes", *INPUTS, *self.outputs(batch))]
        self._device.replay((batch, *addresses), lambda: self._launches(batch, at))

    def _launches(self, batch: int, at: Mapping[str, int]) -> None:
        rings = {**self._rings.at, "rows": at["rows"]}
        self._launch("keep", (batch, self.layers), kept=at["kept"], places=at["places"], **rings)
        step = {"turns": at["turns"], "slots": at["slots"], "nows": at["nows"], "batch": batch, "store": 0,
                "scale": self.e**-0.5, "asks": self._asks, "out": self._answers}  # fmt: skip
        states, tiles = at["codes"], -(-batch // TILE)
        for index, weights in enumerate(self._layers):
            news = at["news"] + index * batch * 4 * self.d * self.kind.itemsize
            offset = index * self.window * 2 * self.d * self.kind.itemsize
            held = {**rings, "keys": rings["keys"] + offset, "values": rings["values"] + offset}
            last = index == self.layers - 1
            result = at["embedding"] if last else self._states[index % 2]
            self._launch("project", (tiles, -(-4 * self.d // CHUNK), 2), states=states, weight=weights["project"],
                         bias=weights["project_bias"], asks=self._asks, news=news, batch=batch)  # fmt: skip
            self._launch("gate_step", (batch, self.heads), news=news, **step, **held, **{n: weights[n] for n in GATE})
            self._launch("finish", (tiles, 2), states=states, answers=self._answers, result=result, batch=batch,
                         **{name: weights[key] for name, key in zip(FINISHED, FINISH)})  # fmt: skip
            states = result
        self._launch(
            "head", (tiles,), states=states, logits=at["logits"], batch=batch, labels=self.labels, **self._head
        )

    def _launch(self, name: str, grid: tuple[int, ...], **values: Any) -> None:
        x, y, z = (*grid, 1, 1)[:3]
        self._device.launch(self._kernels[name], (x, y, z), values)


class DialogueOnGpu:
    """In the dialogue graph's place of `hbaf_edge.backends.onnxruntime`: codes come from the host. Thread-safe."""

    def __init__(self, scope: DialogueScope, device: Device) -> None:
        self._scope, self._device, self._exchange = scope, device, Exchange(device)
        self._lock = threading.Lock()

    def __call__(self, codes: Array, present: Array, requests: Sequence[Request]) -> tuple[Array, Array, Array, Array]:
        """codes (B, 2, d), present (B, 2) -> logits, embedding, new keys and values, as the dialogue graph has them.

        Raises:
            BackendError: the GPU failed; no conversation has changed, and the next call starts from what they hold.
        """
        most = self._scope.capacity
        parts = [slice(i, i + most) for i in range(0, len(requests), most)]
        with self._lock:
            found = [self._some(codes[p], present[p], requests[p]) for p in parts]
        logits, embedding, keys, values = (np.concatenate(x) for x in zip(*found))
        return logits, embedding, keys, values

    def _some(self, codes: Array, present: Array, requests: Sequence[Request]) -> tuple[Array, Array, Array, Array]:
        """As many as there are rows at most."""
        scope, batch, views = self._scope, len(requests), [request.view for request in requests]
        coming, places = scope.outputs(batch), scope.pool.place(views)
        if codes.shape != (batch, 2, scope.d):
            raise BackendError(f"codes are {codes.shape}; the GPU takes {(batch, 2, scope.d)}")
        try:
            with self._device.here("in the middle of a turn; it was not committed"):
                given = scope.given(views, places, joined(requests), present)
                at = self._exchange.bring({"codes": codes.astype(np.float32), **given})
                scope.enqueue(batch, {**at, **self._exchange.room(coming)})
                found = self._exchange.take(coming)
        except BaseException:
            scope.pool.forget()  # nobody knows what was written
            raise
        scope.pool.confirm(views, places)
        return (found["logits"], found["embedding"], *split(found["news"]))


def split(news: Array) -> tuple[Array, Array]:
    """(L, B, 2, 2, d), key and value of each modality -> keys and values (B, L, 2, d) float32.

    What float16 could not hold stays at its limit: an infinity that is committed spoils every later turn.
    """
    limit = np.finfo(news.dtype).max
    found = np.clip(news, -limit, limit).astype(np.float32)
    keys, values = np.moveaxis(found, (1, 3), (0, 1)).swapaxes(0, 1)
    return keys, values


def dtype_of(precision: str) -> str:
    """Of kernels, for a bundle's precision: as fine as the bundle's own arithmetic.

    >>> dtype_of("float32"), dtype_of("int8")
    ('float32', 'float16')
    """
    return "float32" if precision == "float32" else "float16"
