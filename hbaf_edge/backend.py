"""The four graphs of a bundle on ONNX Runtime, with explicit threads and without spinning.

A GPU back end will stand beside this one; both answer to the same four calls.
"""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from hbaf_edge.bundle import GRAPHS, Bundle
from hbaf_edge.conversation import Conversation, Recall, Slot
from hbaf_edge.errors import BackendError, BundleError

if TYPE_CHECKING:
    import onnxruntime

# Our names for ONNX Runtime's execution providers.
PROVIDERS = {
    "cpu": "CPUExecutionProvider",
    "ort-cuda": "CUDAExecutionProvider",
    "ort-tensorrt": "TensorrtExecutionProvider",
}
Array = NDArray[Any]


def default_threads() -> int:
    """Two, or one on a single core: enough for a turn in tens of milliseconds, and leaves a robot its other cores."""
    return min(2, os.cpu_count() or 1)


class Backend:
    """Runs a bundle's graphs. Safe to share between threads: sessions hold no state of a conversation.

    Args:
        bundle: a verified bundle.
        provider: "cpu", "ort-cuda" or "ort-tensorrt".
        threads: of each operator.
    """

    def __init__(self, bundle: Bundle, provider: str, threads: int) -> None:
        self.provider, self.threads = provider, threads
        self._stack = int(bundle.manifest["stack"])
        self._providers = _available(provider)
        self._sessions = {name: self._session(bundle, name) for name in GRAPHS}
        self._dims = {i.name: i.shape[-1] for i in self._sessions["utterance"].get_inputs()}
        self._check(bundle)

    def _session(self, bundle: Bundle, name: str) -> onnxruntime.InferenceSession:
        import onnxruntime as ort

        options = ort.SessionOptions()
        options.intra_op_num_threads = self.threads
        options.inter_op_num_threads = 1
        options.log_severity_level = 3
        # A spinning thread takes a core from whatever else the robot runs, and triples p50 beside a busy neighbour.
        options.add_session_config_entry("session.intra_op.allow_spinning", "0")
        # Weights are stored as INT8 and computed in float32: unpack them once, on load, not at every turn.
        options.add_session_config_entry("session.disable_quant_qdq", "1")
        try:
            return ort.InferenceSession(bundle.graph(name), options, providers=self._providers)
        except Exception as error:  # ONNX Runtime's exceptions have no common base
            raise BundleError(
                f"{bundle.path}: ONNX Runtime {ort.__version__} cannot load the {name} graph: {error}"
            ) from error

    def _check(self, bundle: Bundle) -> None:
        """A provider asked for by name and silently dropped would be slow without a word; so is a renamed input."""
        ran = self._sessions["dialogue"].get_providers()
        if self._providers[0] not in ran:
            raise BackendError(f"provider {self.provider!r} could not start, only {ran}; see ONNX Runtime's log")
        for name, session in self._sessions.items():
            given, found = bundle.manifest["graphs"][name]["inputs"], {i.name for i in session.get_inputs()}
            if set(given) != found:
                raise BundleError(f"{bundle.path}: {name} takes {sorted(found)}, the manifest says {sorted(given)}")
        self._rehearse(bundle)

    def _rehearse(self, bundle: Bundle) -> None:
        """One word without sound as a first turn: a manifest of other sizes than the graphs' gets no further."""
        m = bundle.manifest
        chat = Conversation(bundle.key, m["window"], m["dialogue_layers"], m["width"])
        try:
            tokens = self.text(np.array([1], np.int64))
            logits, _, slot = self.turn(None, tokens, chat.recall(None), lambda stage: None)
            chat.commit(slot, None)
        except Exception as error:  # ONNX Runtime's exceptions have no common base
            raise BundleError(f"{bundle.path}: the graphs do not fit the manifest's sizes: {error}") from error
        if logits.shape != (len(bundle.labels),):
            raise BundleError(f"{bundle.path}: {logits.size} logits for {len(bundle.labels)} labels in the manifest")

    def _run(self, graph: str, **inputs: Array) -> list[Array]:
        result: list[Array] = self._sessions[graph].run(None, inputs)
        return result

    def audio(self, mel: Array) -> Array:
        """(80, frames) log-mel at 100 Hz -> (1, frames at 50 Hz, dim) encoder states, the layers summed."""
        return self._run("audio", mel=mel[None])[0]

    def text(self, tokens: Array) -> Array:
        """(tokens,) ids -> (1, tokens, dim) encoder states, the layers summed."""
        return self._run("text", tokens=tokens[None], token_mask=np.ones((1, len(tokens)), np.int64))[0]

    def utterance(self, frames: Array | None, tokens: Array | None, recall: Recall) -> tuple[Array, Array, Array]:
        """One utterance's frames × tokens, with what earlier turns said -> codes, context key and value, (1, 2, d)."""
        frames, frame_mask = _masked(frames, self._dims["frames"], self._stack)
        tokens, token_mask = _masked(tokens, self._dims["tokens"], 1)
        codes, key, value = self._run(
            "utterance",
            frames=frames,
            frame_mask=frame_mask,
            tokens=tokens,
            token_mask=token_mask,
            context_keys=recall.context_keys,
            context_values=recall.context_values,
            visible=recall.visible,
            distance=recall.distance,
            relation=recall.relation,
        )
        return codes, key, value

    def dialogue(self, codes: Array, present: Array, recall: Recall) -> tuple[Array, Array, Array, Array]:
        """The turn among earlier ones -> logits (labels,), embedding (2d,), new keys and values (layers, 2, d)."""
        logits, embedding, keys, values = self._run(
            "dialogue",
            codes=codes,
            present=present[None],
            keys=recall.keys,
            values=recall.values,
            visible=recall.visible,
            distance=recall.distance,
            relation=recall.relation,
            own_relation=recall.own_relation,
        )
        return logits[0], embedding[0], keys[0], values[0]

    def turn(self, frames: Array | None, tokens: Array | None, recall: Recall, clock: Any) -> tuple[Array, Array, Slot]:
        """Both scopes: encoder states of one utterance -> logits, embedding and what later turns will recall."""
        present = np.array([frames is not None, tokens is not None])
        codes, context_key, context_value = self.utterance(frames, tokens, recall)
        clock("utterance")
        logits, embedding, keys, values = self.dialogue(codes, present, recall)
        clock("dialogue")
        return logits, embedding, Slot(context_key[0], context_value[0], keys, values, present)


def _masked(states: Array | None, dim: int, multiple: int) -> tuple[Array, Array]:
    """(1, length, dim) padded to a multiple, or one masked slot where the modality is absent; and the mask."""
    if states is None:
        return np.zeros((1, multiple, dim), np.float32), np.zeros((1, multiple), bool)
    length = states.shape[1]
    padded = length + -length % multiple
    mask = np.arange(padded)[None] < length
    return (states if padded == length else np.pad(states, ((0, 0), (0, padded - length), (0, 0)))), mask


def _available(provider: str) -> list[str]:
    import onnxruntime as ort

    if not isinstance(provider, str) or provider not in PROVIDERS:
        raise BackendError(f"provider {provider!r} is unknown; valid ones are {', '.join(map(repr, PROVIDERS))}")
    wanted = PROVIDERS[provider]
    if wanted not in ort.get_available_providers():
        raise BackendError(
            f"provider {provider!r} needs {wanted}, which this ONNX Runtime {ort.__version__} was built without; "
            "install onnxruntime-gpu in place of onnxruntime (on a Jetson: NVIDIA's wheel), or use provider='cpu'"
        )
    return [wanted] if provider == "cpu" else [wanted, PROVIDERS["cpu"]]
