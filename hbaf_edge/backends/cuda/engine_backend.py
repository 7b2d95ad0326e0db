"""A whole turn on the GPU: encoders and utterance scope as engines, the dialogue scope by our kernels.

Spectra and tokens go in with all else that a turn brings, in one copy; logits and what later turns recall come back in
one. States, codes and rings never leave the GPU, so that a turn's `audio_states` are its spectrum.
"""

from __future__ import annotations

import threading
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from hbaf_edge.backends.base import Request, Result, Stages, Tap, joined
from hbaf_edge.backends.cuda.device import Array, Device
from hbaf_edge.backends.cuda.dialogue import DialogueScope, Rings, split
from hbaf_edge.backends.cuda.engines import Reach, engine, library
from hbaf_edge.backends.cuda.exchange import Exchange
from hbaf_edge.backends.cuda.kernels import CUBINS, choose
from hbaf_edge.conversation import TurnState
from hbaf_edge.errors import BackendError

if TYPE_CHECKING:
    from hbaf_edge.bundle import Bundle

Shape = tuple[int, ...]
STATES = {"audio": ("frames", "frame_mask"), "text": ("tokens", "token_mask")}  # of each encoder, for the utterance


class Engine:
    """A deserialised engine with a context of its own.

    Args:
        trt: of `hbaf_edge.backends.cuda.engines.library`.
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
        """Shapes of the outputs for shapes of the inputs; they hold for the next `run`.

        Raises:
            BackendError: a shape is outside of what the engine was built for.
        """
        for name in self._in:
            if not self._context.set_input_shape(name, shapes[name]):
                raise BackendError(f"an engine takes no {name} of {shapes[name]}; it was built for other sizes")
        return {name: tuple(self._context.get_tensor_shape(name)) for name in self._out}

    def run(self, addresses: Mapping[str, int]) -> None:
        """On the device's stream, with an address for every input and output.

        Raises:
            BackendError: the engine failed.
        """
        for name in (*self._in, *self._out):
            if not self._context.set_tensor_address(name, addresses[name]):
                raise BackendError(f"an engine takes no {name} at {addresses[name]:#x}")
        if not self._context.execute_async_v3(self._device.stream):
            raise BackendError("an engine failed to run")


class EngineBackend:
    """See `hbaf_edge.backends.base.Backend`. Thread-safe: one turn at a time, also of a batch.

    Args:
        bundle: a verified bundle.
        threads: of the host, for features.
        scope: dialogue scope on the same device.
        device: that computes.
        engines: audio, text and utterance.
        folder: of the kernels.
    """

    def __init__(
        self, bundle: Bundle, threads: int, scope: DialogueScope, device: Device, engines: Mapping[str, Engine],
        folder: Path = CUBINS,
    ) -> None:  # fmt: skip
        self.provider, self.detail, self.threads = "tensorrt", f"tensorrt on {device.name}", threads
        self._scope, self._device, self._engines = scope, device, engines
        self._stack, self._lock = int(bundle.manifest["stack"]), threading.Lock()
        inputs = bundle.manifest["graphs"]["utterance"]["inputs"]
        self._dims = {name: int(inputs[states]["shape"][-1]) for name, (states, _) in STATES.items()}
        self._exchange = Exchange(device)
        longest = {"audio": self._stack * Reach().of("stacks", self._stack)[2], "text": Reach().tokens[2]}
        sizes = (scope.window, scope.heads, scope.e)
        with device.here(f"while {scope.capacity} conversations' rings were made"):
            self._keep = device.load(choose("keep", device.capability, "float32", *sizes, folder))
            self._rings = Rings(device, scope.capacity, (1, scope.window, 2, scope.d), np.dtype(np.float32))
            self._states = {name: device.allocate(longest[name] * dim * 4) for name, dim in self._dims.items()}
            self._codes = device.allocate(2 * scope.d * 4)
            device.synchronize()

    def set_tap(self, tap: Tap | None) -> Tap | None:
        """See `Backend`."""
        if tap is not None:
            raise BackendError("provider 'tensorrt' keeps its tensors on the GPU and cannot show them; use 'cpu'")
        return None

    def infer(self, requests: Sequence[Request]) -> list[Result]:
        """See `Backend`; the engines' time is in the stage "dialogue", which waits for all."""
        with self._lock:
            results = [self._turn(request) for request in requests]
        stages = results[0].milliseconds
        together = {stage: sum(result.milliseconds[stage] for result in results) for stage in stages}
        return [result._replace(milliseconds=together) for result in results]

    def _turn(self, request: Request) -> Result:
        pool, stages, views = self._scope.pool, Stages(), [request.view]
        mel, tokens = _spectrum(request), request.tokens
        present = np.array([[mel is not None, tokens is not None]])
        places = pool.place(views)
        try:
            with self._device.here("in the middle of a turn; it was not committed"):
                context, memory = joined([request]), request.view.memory
                recalled = (memory.context_keys[None], memory.context_values[None])
                given = {
                    **self._scope.given(views, places, context, present),
                    **{name: getattr(context, name) for name in ("visible", "distance", "relation")},
                    "context": self._rings.follow(places, [recalled]),
                    "frame_mask": _mask(0 if mel is None else -(-mel.shape[2] // 2), self._stack),
                    "token_mask": _mask(0 if tokens is None else len(tokens), 1),
                }
                encoded: dict[str, dict[str, Array]] = {"audio": {}, "text": {}}
                if mel is not None:
                    encoded["audio"] = {"mel": mel.astype(np.float32)}
                if tokens is not None:
                    encoded["text"] = {"tokens": tokens[None], "token_mask": np.ones((1, len(tokens)), np.int64)}
                found = self._run(given, encoded, self._rings.row(places[0]), stages)
        except BaseException:
            pool.forget()  # nobody knows what was written
            raise
        pool.confirm(views, places)
        stages.end("dialogue")
        keys, values = split(found["news"])
        state = TurnState(found["context_key"][0], found["context_value"][0], keys[0], values[0], present[0])
        return Result(found["logits"][0], found["embedding"][0], state, mel, stages.milliseconds)

    def _run(
        self, given: Mapping[str, Array], encoded: Mapping[str, Mapping[str, Array]], row: tuple[int, int],
        stages: Stages,
    ) -> dict[str, Array]:  # fmt: skip
        """Everything between the two copies.

        Args:
            given: inputs of both scopes.
            encoded: inputs of each encoder, if there are any.
            row: addresses of the conversation's context rings.
            stages: measured.
        """
        scope, recalled = self._scope, (np.float32, (1, 2, self._scope.d))
        coming = {**scope.outputs(1), "context_key": recalled, "context_value": recalled}
        inputs = {f"{name} {part}": array for name, parts in encoded.items() for part, array in parts.items()}
        at = {**self._exchange.bring({**given, **inputs}), **self._exchange.room(coming), "codes": self._codes}
        ring = dict(self._rings.at, kept=at["context"], rows=at["rows"], places=at["places"])
        self._device.launch(self._keep, (1, 1, 1), ring)
        shapes = {name: array.shape for name, array in given.items()}
        states = {}
        for name, (output, mask) in STATES.items():
            shapes[output] = (*shapes[mask], self._dims[name])
            states[output] = self._encode(name, encoded[name], at, shapes[output])
        shapes |= dict.fromkeys(("context_keys", "context_values"), (1, scope.window, 2, scope.d))
        utterance = self._engines["utterance"]
        utterance.outputs(shapes)
        utterance.run({**at, **states, "context_keys": row[0], "context_values": row[1]})
        stages.end("utterance")
        scope.enqueue(1, at)
        return self._exchange.take(coming)

    def _encode(
        self, name: str, inputs: Mapping[str, Array], at: Mapping[str, int], shape: tuple[int, ...]
    ) -> int:  # fmt: skip
        """Address of an encoder's states in a shape (1, longest, dim), zero behind their end."""
        encoder, address = self._engines[name], self._states[name]
        outputs = encoder.outputs({part: array.shape for part, array in inputs.items()}) if inputs else {}
        self._device.clear(address, int(np.prod(shape)) * 4)
        for output in outputs:  # one
            encoder.run({**{part: at[f"{name} {part}"] for part in inputs}, output: address})
        return address


def _spectrum(request: Request) -> Array | None:
    """(1, 80, frames), new or of an earlier turn."""
    if request.audio_states is not None or request.mel is None:
        return request.audio_states
    return request.mel[None]


def _mask(length: int, multiple: int) -> Array:
    """(1, longest) bool of what is real, padded to a multiple."""
    longest = max(multiple, length + -length % multiple)
    return np.arange(longest)[None] < length


def engines_of(bundle: Bundle, device: Device, kernels: Path) -> dict[str, Engine]:
    """Of encoders and utterance scope, from the cache or built now; the first time takes minutes.

    Args:
        bundle: verified.
        device: that runs them.
        kernels: folder of the plugin's kernels.

    Raises:
        BackendError: TensorRT is not installed, or an engine cannot be built.
    """
    trt = library("tensorrt")
    made: dict[str, Engine] = {}
    for name in (*STATES, "utterance"):
        content = engine(bundle, name, kernels=kernels)
        with device.here(f"while the {name} engine was loaded"):
            made[name] = Engine(trt, content, device)
    return made
