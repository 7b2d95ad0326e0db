"""A whole turn on the GPU: encoders and utterance scope as engines, the dialogue scope by our kernels.

Spectra and tokens go in with all else that a turn brings, in one copy; logits and what later turns recall come back in
one. States, codes and rings never leave the GPU, so that a turn's `audio_states` are its spectrum.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from hbaf_edge.backends.base import Request, Result, Stages, Tap, joined
from hbaf_edge.backends.cuda.device import Array, Device
from hbaf_edge.backends.cuda.dialogue import DialogueScope, Exchange, split
from hbaf_edge.backends.cuda.engine_runner import Runner
from hbaf_edge.backends.cuda.engines import Reach
from hbaf_edge.backends.cuda.kernels import CUBINS, choose
from hbaf_edge.backends.cuda.packed import ALIGNMENT, Packed
from hbaf_edge.backends.cuda.pool import Place
from hbaf_edge.conversation import ContextView, TurnState
from hbaf_edge.errors import BackendError

if TYPE_CHECKING:
    from hbaf_edge.bundle import Bundle

CONTEXT = ("context_keys", "context_values")


class EngineBackend:
    """See `hbaf_edge.backends.base.Backend`. Thread-safe: one turn, or one batch, at a time.

    Args:
        bundle: a verified bundle.
        threads: of the host, for features.
        scope: dialogue scope on the same device.
        device: that computes.
        engines: audio, text and utterance.
        folder: of the kernels.
    """

    def __init__(
        self, bundle: Bundle, threads: int, scope: DialogueScope, device: Device, engines: Mapping[str, Runner],
        folder: Path = CUBINS,
    ) -> None:  # fmt: skip
        self.provider, self.detail, self.threads = "tensorrt", f"tensorrt on {device.name}", threads
        self._scope, self._device, self._engines = scope, device, engines
        self._stack, self._lock = int(bundle.manifest["stack"]), threading.Lock()
        inputs = bundle.manifest["graphs"]["utterance"]["inputs"]
        self._dims = {name: int(inputs[name]["shape"][-1]) for name in ("frames", "tokens")}
        self._exchange, self._work = Exchange(device), Work(device)
        ring = scope.window * 2 * scope.d
        sizes = (scope.window, scope.heads, scope.e)
        with device.here(f"while {scope.capacity} conversations' rings were made"):
            self._keep = device.load(choose("keep", device.capability, "float32", *sizes, folder))
            self._context = {name: device.allocate(scope.capacity * ring * 4) for name in CONTEXT}
            self._batch = {name: device.allocate(scope.capacity * ring * 4) for name in CONTEXT}
            device.synchronize()

    def set_tap(self, tap: Tap | None) -> Tap | None:
        """See `Backend`."""
        if tap is not None:
            raise BackendError("provider 'tensorrt' keeps its tensors on the GPU and cannot show them; use 'cpu'")
        return None

    def infer(self, requests: Sequence[Request]) -> list[Result]:
        """See `Backend`; the engines' time is in the stage "dialogue", which waits for all."""
        most, results = min(self._scope.capacity, Reach().batch[2]), list[Result]()
        with self._lock:
            for first in range(0, len(requests), most):
                results += self._some(requests[first : first + most])
        return results

    def _some(self, requests: Sequence[Request]) -> list[Result]:
        scope, context, stages = self._scope, joined(requests), Stages()
        views = [request.view for request in requests]
        mels = [_spectrum(request) for request in requests]
        tokens = [None if request.tokens is None else request.tokens[None] for request in requests]
        present = np.array([[m is not None, t is not None] for m, t in zip(mels, tokens)])
        places = scope.pool.place(views)
        try:
            with self._device.here("in the middle of a turn; it was not committed"):
                scope.write(views, places)
                self._write_context(views, places)
                given = {
                    **scope.given(views, places, context, present),
                    **self._heard(mels, tokens),
                    **{n: getattr(context, n) for n in ("visible", "distance", "relation")},
                    "context": _last_context(views, places),
                }
                found = self._run(given, len(views), mels, tokens, places, stages.end)
        except BaseException:
            scope.pool.forget()  # nobody knows what was written
            raise
        scope.pool.confirm(views, places)
        stages.end("dialogue")
        keys, values = split(found["news"])
        states = [TurnState(*p) for p in zip(found["context_key"], found["context_value"], keys, values, present)]
        parts = zip(found["logits"], found["embedding"], states, mels)
        return [Result(*part, stages.milliseconds) for part in parts]

    def _run(
        self,
        given: Mapping[str, Array],
        batch: int,
        mels: Sequence[Array | None],
        tokens: Sequence[Array | None],
        places: Sequence[Place],
        clock: Callable[[str], None],
    ) -> dict[str, Array]:
        """Everything between the two copies."""
        scope = self._scope
        news = ((batch, 2, scope.d), np.float32)
        coming = Packed.of({**scope.outputs(batch), "context_key": news, "context_value": news})
        at = self._exchange.bring(Packed.of({n: (x.shape, _kind(n, x)) for n, x in given.items()}), given)
        back = self._exchange.room(coming)
        states = {
            "frames": self._states("audio", batch, mels, at, self._stack),
            "tokens": self._states("text", batch, tokens, at, 1),
        }
        context = self._context_of(batch, places, at)
        shapes: dict[str, tuple[int, ...]] = {n: given[n].shape for n in ("frame_mask", "token_mask", "visible")}
        shapes |= {n: given[n].shape for n in ("distance", "relation")}
        shapes |= {n: (*shapes[f"{n[:-1]}_mask"], self._dims[n]) for n in states}
        shapes |= dict.fromkeys(CONTEXT, (batch, scope.window, 2, scope.d))
        engine = self._engines["utterance"]
        engine.outputs(shapes)
        codes = self._work.room("codes", batch * 2 * scope.d * 4)
        addresses = {**at, **states, **context, "codes": codes}
        engine.run({**addresses, "context_key": back["context_key"], "context_value": back["context_value"]})
        clock("utterance")
        names = (*scope.inputs(batch), *scope.outputs(batch))
        scope.enqueue(batch, {"codes": codes, **{n: {**at, **back}[n] for n in names}})
        return self._exchange.take(coming)

    def _heard(self, mels: Sequence[Array | None], tokens: Sequence[Array | None]) -> dict[str, Array]:
        """Spectra and tokens of each utterance, and the masks of what encoders make of them."""
        given: dict[str, Array] = {}
        for b, (mel, ids) in enumerate(zip(mels, tokens)):
            if mel is not None:
                given[f"mel {b}"] = mel
            if ids is not None:
                given[f"tokens {b}"], given[f"token_mask {b}"] = ids, np.ones_like(ids)
        given["frame_mask"] = _mask([0 if m is None else -(-m.shape[2] // 2) for m in mels], self._stack)
        given["token_mask"] = _mask([0 if t is None else t.shape[1] for t in tokens], 1)
        return given

    def _states(
        self, name: str, batch: int, given: Sequence[Array | None], at: Mapping[str, int], multiple: int
    ) -> int:
        """Address of an encoder's states (B, longest, dim), zero where there is nothing, each run by itself."""
        dim = self._dims["frames" if name == "audio" else "tokens"]
        lengths = [0 if x is None else (-(-x.shape[2] // 2) if name == "audio" else x.shape[1]) for x in given]
        longest = _mask(lengths, multiple).shape[1]
        address = self._work.room(name, batch * longest * dim * 4)
        self._device.clear(address, batch * longest * dim * 4)
        for b, one in enumerate(given):
            if one is None:
                continue
            inputs = (
                {"mel": at[f"mel {b}"]} if name == "audio" else {n: at[f"{n} {b}"] for n in ("tokens", "token_mask")}
            )
            ((output, shape),) = self._engines[name].outputs(dict.fromkeys(inputs, one.shape)).items()
            assert shape == (1, lengths[b], dim), (shape, lengths[b], dim)
            self._run_into(address + b * longest * dim * 4, lengths[b] * dim * 4, name, inputs, output)
        return address

    def _run_into(self, target: int, size: int, name: str, inputs: Mapping[str, int], output: str) -> None:
        """An encoder's states to an address, by way of an aligned one where that is not: engines write to no other."""
        aligned = target % ALIGNMENT == 0
        there = target if aligned else self._work.room("one", size)
        self._engines[name].run({**inputs, output: there})
        if not aligned:
            self._device.copy(target, there, size)

    def _write_context(self, views: Sequence[ContextView], places: Sequence[Place]) -> None:
        """Whole context rings of those that lack them; another conversation's are cleared.

        What is masked is multiplied by zero, which leaves nothing of another's turns, unless they were not numbers.
        """
        for view, place in zip(views, places):
            rings = (view.memory.context_keys, view.memory.context_values)
            if place.fresh:
                for name in CONTEXT:
                    size = rings[0].nbytes
                    self._device.clear(self._context[name] + place.row * size, size)
            if place.whole:
                for name, held in zip(CONTEXT, rings):
                    self._device.upload(self._context[name] + place.row * held.nbytes, held)
                self._device.synchronize()

    def _context_of(self, batch: int, places: Sequence[Place], at: Mapping[str, int]) -> dict[str, int]:
        """Addresses of the context rings of a batch, the last committed turns in them; one conversation's lie ready."""
        scope = self._scope
        ring = scope.window * 2 * scope.d
        values = {
            "kept": at["context"], "rows": at["rows"], "places": at["places"], "keys": self._context["context_keys"],
            "values": self._context["context_values"], "step_row": ring,
        }  # fmt: skip
        self._device.launch(self._keep, (batch, 1, 1), values)
        if batch == 1:
            return {name: there + places[0].row * ring * 4 for name, there in self._context.items()}
        for name, there in self._context.items():
            for b, place in enumerate(places):
                self._device.copy(self._batch[name] + b * ring * 4, there + place.row * ring * 4, ring * 4)
        return dict(self._batch)


class Work:
    """Memory for what lies between engines, by name; it grows where it must."""

    def __init__(self, device: Device) -> None:
        self._device, self._rooms = device, dict[str, tuple[int, int]]()

    def room(self, name: str, size: int) -> int:
        """Address of at least so many bytes."""
        address, there = self._rooms.get(name, (0, 0))
        if size > there:
            address = self._device.allocate(2 * size)
            self._rooms[name] = address, 2 * size
        return address


def _spectrum(request: Request) -> Array | None:
    """(1, 80, frames), new or of an earlier turn."""
    if request.audio_states is not None or request.mel is None:
        return request.audio_states
    return request.mel[None]


def _last_context(views: Sequence[ContextView], places: Sequence[Place]) -> Array:
    """Context key and value of the turns that were committed last, (1, B, 2, 2, d), where a row lacks them."""
    kept = np.zeros((1, len(views), 2, 2, views[0].memory.sizes.width), np.float32)
    for b, (view, place) in enumerate(zip(views, places)):
        if place.slot >= 0:
            memory = view.memory
            kept[0, b, :, 0], kept[0, b, :, 1] = memory.context_keys[place.slot], memory.context_values[place.slot]
    return kept


def _mask(lengths: Sequence[int], multiple: int) -> Array:
    """(B, longest) bool of what is real, padded to a multiple."""
    longest = max(multiple, max(lengths) + -max(lengths) % multiple)
    return np.arange(longest) < np.array(lengths)[:, None]


def _kind(name: str, array: Array) -> Any:
    """Spectra cross in float32 whatever they were computed in; all else as it is."""
    return np.float32 if name.startswith("mel") else array.dtype
