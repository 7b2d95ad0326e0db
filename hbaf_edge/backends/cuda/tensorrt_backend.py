"""A complete turn on the GPU: encoders and utterance scope as TensorRT engines, the dialogue scope by our kernels.

All inputs of a turn, with log-mel and tokens, are one copy to the GPU; logits and the new keys and values are one copy
back. Encoder states, codes and rings never leave the GPU, so `audio_states` of a turn are its log-mel.
"""

from __future__ import annotations

import threading
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from hbaf_edge.backends.base import Request, Result, StageTimer, Tap, stack_contexts
from hbaf_edge.backends.cuda.device import Array, Device
from hbaf_edge.backends.cuda.dialogue import DialogueScope, Rings, split_keys_values
from hbaf_edge.backends.cuda.engines import OptimizationProfile, import_library, load_or_build_engine
from hbaf_edge.backends.cuda.kernels import CUBINS, choose
from hbaf_edge.backends.cuda.transfer import TransferBuffers
from hbaf_edge.conversation import TurnState
from hbaf_edge.errors import BackendError

if TYPE_CHECKING:
    from hbaf_edge.bundle import Bundle

Shape = tuple[int, ...]
# Inputs of the utterance graph for the states of each encoder, and for their mask.
ENCODER_INPUTS = {"audio": ("frames", "frame_mask"), "text": ("tokens", "token_mask")}


class TensorRTEngine:
    """A deserialised engine with its own execution context.

    Args:
        trt: the module tensorrt.
        content: the serialised engine.
        device: the engine runs on its stream.

    Raises:
        BackendError: the engine cannot be loaded here, or memory is short.
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
        dtypes = {n: np.dtype(trt.nptype(self._engine.get_tensor_dtype(n))) for n in self._out}
        if any(dtype != np.float32 for dtype in dtypes.values()):
            raise BackendError(
                f"an engine's outputs are {dtypes}, not float32; export the bundle again and rebuild its engines"
            )

    def outputs(self, shapes: Mapping[str, Shape]) -> dict[str, Shape]:
        """Set the input shapes of the next `run`; returns the output shapes.

        Raises:
            BackendError: a shape is outside the engine's optimization profile.
        """
        for name in self._in:
            if not self._context.set_input_shape(name, shapes[name]):
                raise BackendError(f"an engine rejects {name} of shape {shapes[name]}; it was built for other sizes")
        return {name: tuple(self._context.get_tensor_shape(name)) for name in self._out}

    def run(self, addresses: Mapping[str, int]) -> None:
        """Run on the device's stream, with an address for every input and output.

        Raises:
            BackendError: the engine failed.
        """
        for name in (*self._in, *self._out):
            if not self._context.set_tensor_address(name, addresses[name]):
                raise BackendError(f"an engine rejects the address {addresses[name]:#x} of {name}")
        if not self._context.execute_async_v3(self._device.stream):
            raise BackendError("an engine failed to run")


class TensorRTBackend:
    """Runs complete turns on the GPU, one at a time, also those of a batch. See `hbaf_edge.backends.base.Backend`.

    Args:
        bundle: a verified bundle.
        threads: reported as `threads`; the host only computes features.
        scope: dialogue scope on the same device.
        device: the GPU.
        engines: of the graphs audio, text and utterance.
        folder: of the compiled kernels.
    """

    def __init__(
        self, bundle: Bundle, threads: int, scope: DialogueScope, device: Device, engines: Mapping[str, TensorRTEngine],
        folder: Path = CUBINS,
    ) -> None:  # fmt: skip
        self.provider, self.detail, self.threads = "tensorrt", f"tensorrt on {device.name}", threads
        self._scope, self._device, self._engines = scope, device, engines
        self._stack, self._lock = int(bundle.manifest["stack"]), threading.Lock()
        inputs = bundle.manifest["graphs"]["utterance"]["inputs"]
        self._widths = {name: int(inputs[states]["shape"][-1]) for name, (states, _) in ENCODER_INPUTS.items()}
        self._buffers = TransferBuffers(device)
        profile = OptimizationProfile()
        longest = {"audio": self._stack * profile.sizes_of("stacks", self._stack)[2], "text": profile.tokens[2]}
        sizes = (scope.window, scope.heads, scope.e)
        with device.current_context(f"while it allocated the rings of {scope.capacity} conversations; free GPU memory"):
            self._keep = device.load(choose("keep", device.capability, "float32", *sizes, folder))
            self._rings = Rings(device, scope.capacity, (1, scope.window, 2, scope.d), np.dtype(np.float32))
            self._states = {name: device.allocate(longest[name] * width * 4) for name, width in self._widths.items()}
            self._codes = device.allocate(2 * scope.d * 4)
            device.synchronize()

    def set_tap(self, tap: Tap | None) -> Tap | None:
        """See `Backend`."""
        if tap is not None:
            raise BackendError("provider 'tensorrt' keeps its tensors on the GPU and cannot show them; use 'cpu'")
        return None

    def infer(self, requests: Sequence[Request]) -> list[Result]:
        """See `Backend`. The time of the engines is in the stage "dialogue", which waits for the GPU."""
        with self._lock:
            results = [self._infer_one(request) for request in requests]
        stages = results[0].milliseconds
        total = {stage: sum(result.milliseconds[stage] for result in results) for stage in stages}
        return [result._replace(milliseconds=total) for result in results]

    def _infer_one(self, request: Request) -> Result:
        pool, stages, views = self._scope.pool, StageTimer(), [request.view]
        mel, tokens = _log_mel(request), request.tokens
        present = np.array([[mel is not None, tokens is not None]])
        updates = pool.assign(views)
        try:
            with self._device.current_context("in the middle of a turn; it was not committed"):
                context, memory = stack_contexts([request]), request.view.memory
                context_rings = (memory.context_keys[None], memory.context_values[None])
                inputs = {
                    **self._scope.inputs(views, updates, context, present),
                    **{name: getattr(context, name) for name in ("visible", "distance", "relation")},
                    "context": self._rings.update(updates, [context_rings]),
                    "frame_mask": _mask(0 if mel is None else -(-mel.shape[2] // 2), self._stack),
                    "token_mask": _mask(0 if tokens is None else len(tokens), 1),
                }
                encoder_inputs: dict[str, dict[str, Array]] = {"audio": {}, "text": {}}
                if mel is not None:
                    encoder_inputs["audio"] = {"mel": mel.astype(np.float32)}
                if tokens is not None:
                    encoder_inputs["text"] = {"tokens": tokens[None], "token_mask": np.ones((1, len(tokens)), np.int64)}
                results = self._run(inputs, encoder_inputs, self._rings.row_addresses(updates[0].row), stages)
        except BaseException:
            pool.invalidate()  # the rows may be partly written
            raise
        pool.confirm(views, updates)
        stages.end("dialogue")
        keys, values = split_keys_values(results["news"])
        state = TurnState(results["context_key"][0], results["context_value"][0], keys[0], values[0], present[0])
        return Result(results["logits"][0], results["embedding"][0], state, mel, stages.milliseconds)

    def _run(
        self, inputs: Mapping[str, Array], encoder_inputs: Mapping[str, Mapping[str, Array]], row: tuple[int, int],
        stages: StageTimer,
    ) -> dict[str, Array]:  # fmt: skip
        """Upload the inputs, run everything and download the outputs.

        Args:
            inputs: of both scopes.
            encoder_inputs: of each encoder; empty without that modality.
            row: addresses of the conversation's context rings.
            stages: timer.
        """
        scope, per_modality = self._scope, (np.float32, (1, 2, self._scope.d))
        outputs = {**scope.outputs(1), "context_key": per_modality, "context_value": per_modality}
        flat = {f"{name} {part}": array for name, parts in encoder_inputs.items() for part, array in parts.items()}
        at = {**self._buffers.upload({**inputs, **flat}), **self._buffers.reserve_outputs(outputs)}
        at["codes"] = self._codes
        ring = dict(self._rings.arguments, kept=at["context"], rows=at["rows"], places=at["places"])
        self._device.launch(self._keep, (1, 1, 1), ring)
        shapes = {name: array.shape for name, array in inputs.items()}
        states = {}
        for name, (output, mask) in ENCODER_INPUTS.items():
            shapes[output] = (*shapes[mask], self._widths[name])
            states[output] = self._encode(name, encoder_inputs[name], at, shapes[output])
        shapes |= dict.fromkeys(("context_keys", "context_values"), (1, scope.window, 2, scope.d))
        utterance = self._engines["utterance"]
        utterance.outputs(shapes)
        utterance.run({**at, **states, "context_keys": row[0], "context_values": row[1]})
        stages.end("utterance")
        scope.enqueue(1, at)
        return self._buffers.download(outputs)

    def _encode(
        self, name: str, inputs: Mapping[str, Array], at: Mapping[str, int], shape: tuple[int, ...]
    ) -> int:  # fmt: skip
        """Run an encoder; returns the address of its states, zero-padded to a shape (1, longest, width)."""
        encoder, address = self._engines[name], self._states[name]
        outputs = encoder.outputs({part: array.shape for part, array in inputs.items()}) if inputs else {}
        self._device.clear(address, int(np.prod(shape)) * 4)
        for output in outputs:  # at most one
            encoder.run({**{part: at[f"{name} {part}"] for part in inputs}, output: address})
        return address


def _log_mel(request: Request) -> Array | None:
    """(1, 80, frames), of the request or of the earlier result that it reuses; None without audio."""
    if request.audio_states is not None or request.mel is None:
        return request.audio_states
    return request.mel[None]


def _mask(length: int, multiple: int) -> Array:
    """Mask (1, longest) bool with `length` true values, padded to a multiple."""
    longest = max(multiple, length + -length % multiple)
    return np.arange(longest)[None] < length


def load_engines(bundle: Bundle, device: Device, kernels: Path) -> dict[str, TensorRTEngine]:
    """Load the engines of encoders and utterance scope from the cache, or build them, which takes minutes.

    Args:
        bundle: a verified bundle.
        device: the engines run on it.
        kernels: folder of compiled kernels, for the plugin.

    Raises:
        BackendError: TensorRT is not installed, or an engine cannot be built.
    """
    trt = import_library("tensorrt")
    engines: dict[str, TensorRTEngine] = {}
    for name in (*ENCODER_INPUTS, "utterance"):
        content = load_or_build_engine(bundle, name, kernels=kernels)
        with device.current_context(f"while the {name} engine was loaded"):
            engines[name] = TensorRTEngine(trt, content, device)
    return engines
