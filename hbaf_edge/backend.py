"""The four graphs of a bundle on ONNX Runtime, with explicit threads and without spinning.

The dialogue graph's place may be taken by something that keeps rings elsewhere (hbaf_edge/gpu/native.py); a back end
without ONNX Runtime answers to the same three calls (hbaf_edge/gpu/engine_backend.py).
"""

from __future__ import annotations

import ctypes
import logging
import os
import weakref
from collections.abc import Callable, Sequence
from functools import partial
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
from numpy.typing import NDArray

from hbaf_edge.beside import Beside
from hbaf_edge.bundle import GRAPHS, Bundle
from hbaf_edge.conversation import Conversation, Recall, Slot
from hbaf_edge.errors import BackendError, BundleError
from hbaf_edge.machine import saturates_here

if TYPE_CHECKING:
    import onnxruntime

# Our names for ONNX Runtime's execution providers.
PROVIDERS = {
    "cpu": "CPUExecutionProvider",
    "ort-cuda": "CUDAExecutionProvider",
    "ort-tensorrt": "TensorrtExecutionProvider",
}
NATIVE = ("cuda", "tensorrt")  # of our own, for NVIDIA GPUs (hbaf_edge/gpu/native.py)
INT8 = "int8"  # the precision of a bundle whose Q/DQ a CPU computes in integers
FASTER = ("ort-tensorrt", "ort-cuda")  # than the CPU, best first; ours have not been measured on a card yet
Array = NDArray[Any]
Scope = Callable[[Array, Array, Sequence[Conversation], Recall], tuple[Array, Array, Array, Array]]
log = logging.getLogger("hbaf_edge")
_sessions: weakref.WeakSet[Any] = weakref.WeakSet()


def _keep_in_child() -> None:
    """A session freed in a forked child waits for threads that are not there; so it is never freed there."""
    for session in list(_sessions):
        ctypes.pythonapi.Py_IncRef(ctypes.py_object(session))


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_keep_in_child)


def default_threads() -> int:
    """Two, or one on a single core: a turn in tens of milliseconds, and a robot keeps its other cores.

    While words are read beside a sound a third one runs, for some milliseconds.
    """
    return min(2, os.cpu_count() or 1)


def session_options(
    threads: int, integers: bool = False, narrow: bool = False, cpu: bool = True
) -> onnxruntime.SessionOptions:
    """ONNX Runtime's settings for a shared edge CPU; exports and benchmarks are checked under the same ones.

    Args:
        threads: of each operator.
        integers: compute what stands between Q/DQ in INT8. Without it Q/DQ is run as it is written, in float32.
        narrow: its weights have 7 bits, so that no CPU's products saturate.
        cpu: a CPU runs all of it.
    """
    from hbaf_edge.ort import onnxruntime as ort

    options = ort.SessionOptions()
    options.intra_op_num_threads = threads
    options.inter_op_num_threads = 1
    options.log_severity_level = 3
    # A spinning thread takes a core from whatever else the robot runs, and triples p50 beside a busy neighbour.
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    # Weights that are stored as INT8 and computed in float32 are unpacked once, on load, not at every turn.
    options.add_session_config_entry("session.disable_quant_qdq", "0" if integers else "1")
    if cpu:  # fused, a sum and its norm take twice as long as the two by themselves (ONNX Runtime 1.32, not yet 1.23)
        options.add_session_config_entry("optimization.disable_specified_optimizers", "SkipLayerNormFusion")
    # x86 without VNNI adds products of unsigned and signed bytes in 16 bits, which saturate at 8-bit weights: ONNX
    # Runtime's exact kernels are slower, but right. With VNNI they are slower and no better.
    exact = integers and not narrow and saturates_here()
    options.add_session_config_entry("session.x64quantprecision", "1" if exact else "0")
    return options


def options_of(bundle: Bundle, threads: int, cpu: bool = True) -> onnxruntime.SessionOptions:
    """`session_options` as a bundle's precision needs them."""
    narrow = bool(bundle.manifest.get("quantisation", {}).get("narrow"))
    return session_options(threads, bundle.manifest["precision"] == INT8, narrow, cpu)


class Runs(Protocol):
    """What a back end answers to."""

    provider: str
    threads: int
    beside: Beside | None  # where encoders run on a CPU, and on more than one thread

    def audio(self, mel: Array) -> Array: ...

    def text(self, tokens: Sequence[Array]) -> list[Array]: ...

    def turns(
        self, frames: Sequence[Array | None], tokens: Sequence[Array | None], chats: Sequence[Conversation],
        recalls: Sequence[Recall], clock: Callable[[str], None],
    ) -> list[tuple[Array, Array, Slot]]: ...  # fmt: skip


def open_backend(bundle: Bundle, provider: str, threads: int, kernels: str | os.PathLike[str] | None = None) -> Runs:
    """The back end asked for; with "auto" the best that works here, which is logged and which it names.

    Args:
        bundle: a verified bundle.
        provider: name.
        threads: of each operator.
        kernels: folder of the GPU's kernels, of the native back ends; None for the packaged ones.

    Raises:
        BackendError: the one asked for by name cannot run; nothing else is taken in its place.
    """
    if provider in NATIVE:
        from hbaf_edge.gpu.native import open_native

        return open_native(bundle, provider, threads, Path(kernels) if kernels is not None else None)
    if kernels is not None:
        raise BackendError(f"kernels are for the providers {' and '.join(map(repr, NATIVE))}, not for {provider!r}")
    if provider != "auto":
        return Backend(bundle, provider, threads)
    for name in FASTER:
        try:
            found = Backend(bundle, name, threads)
        except (BackendError, BundleError) as error:
            log.info("provider auto: not %s (%s)", name, error)
        else:
            log.info("provider auto: %s", name)
            return found
    log.info("provider auto: cpu")
    return Backend(bundle, "cpu", threads)


class Backend:
    """Runs a bundle's graphs. Safe to share between threads: sessions hold no state of a conversation.

    Args:
        bundle: a verified bundle.
        provider: "cpu", "ort-cuda" or "ort-tensorrt".
        threads: of each of the audio encoder's operators; the other graphs take one for a turn, and as many for a
            batch.
        scope: in the dialogue graph's place: codes (B, 2, d), present (B, 2), conversations, and what all may recall
            -> logits, embedding, new keys and values.
    """

    def __init__(self, bundle: Bundle, provider: str, threads: int, scope: Scope | None = None) -> None:
        self.provider, self.threads, self._scope = provider, threads, scope
        self._stack = int(bundle.manifest["stack"])
        self._providers = _available(provider)
        self.beside = Beside(threads - 1) if provider == "cpu" and threads > 1 else None
        self._sessions = {n: self._session(bundle, n) for n in GRAPHS if scope is None or n != "dialogue"}
        self._dims = {i.name: i.shape[-1] for i in self._sessions["utterance"].get_inputs()}
        self._check(bundle)

    def _session(self, bundle: Bundle, name: str) -> onnxruntime.InferenceSession:
        from hbaf_edge.ort import onnxruntime as ort

        # The others' products are so small that handing a part to another thread takes longer than it saves; of a
        # batch each thread takes some rows (`_rows_beside`).
        options = options_of(bundle, self.threads if name == "audio" else 1, self.provider == "cpu")
        try:
            session = ort.InferenceSession(bundle.graph(name), options, providers=self._providers)
        except Exception as error:  # ONNX Runtime's exceptions have no common base
            raise BundleError(
                f"{bundle.path}: ONNX Runtime {ort.__version__} cannot load the {name} graph: {error}"
            ) from error
        _sessions.add(session)
        return session

    def _check(self, bundle: Bundle) -> None:
        """A provider asked for by name and silently dropped would be slow without a word; so is a renamed input."""
        ran = self._sessions["utterance"].get_providers()
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
            tokens = self.text([np.array([1], np.int64)])
            ((logits, _, slot),) = self.turns([None], tokens, [chat], [chat.recall(None)], lambda stage: None)
            chat.commit(slot, None)
        except BackendError:  # a GPU that failed says nothing about the bundle
            raise
        except Exception as error:  # ONNX Runtime's exceptions have no common base
            raise BundleError(f"{bundle.path}: the graphs do not fit the manifest's sizes: {error}") from error
        if logits.shape != (len(bundle.labels),):
            raise BundleError(f"{bundle.path}: {logits.size} logits for {len(bundle.labels)} labels in the manifest")

    def _run(self, graph: str, **inputs: Array) -> list[Array]:
        result: list[Array] = self._sessions[graph].run(None, inputs)
        return result

    def _rows_beside(self, graph: str, **inputs: Array) -> list[Array]:
        """Run a graph of one thread, rows of a batch beside each other."""
        rows = len(next(iter(inputs.values())))
        if self.beside is None or rows == 1:
            return self._run(graph, **inputs)
        cuts = np.linspace(0, rows, min(self.threads, rows) + 1).astype(int)
        parts = [{name: value[a:b] for name, value in inputs.items()} for a, b in pairwise(cuts)]
        found = self.beside.all([partial(self._run, graph, **part) for part in parts])
        return [np.concatenate(outputs) for outputs in zip(*found)]

    def audio(self, mel: Array) -> Array:
        """(B, 80, frames) log-mel at 100 Hz, all as long -> (B, frames at 50 Hz, dim) encoder states, layers summed."""
        return self._run("audio", mel=mel)[0]

    def text(self, tokens: Sequence[Array]) -> list[Array]:
        """(tokens,) ids of each text -> (1, tokens, dim) encoder states of each, the layers summed."""
        longest = max(map(len, tokens))
        ids = np.stack([np.pad(t, (0, longest - len(t))) for t in tokens])
        mask = np.stack([(np.arange(longest) < len(t)).astype(np.int64) for t in tokens])
        states = self._rows_beside("text", tokens=ids, token_mask=mask)[0]
        return [states[i : i + 1, : len(t)] for i, t in enumerate(tokens)]

    def turns(
        self,
        frames: Sequence[Array | None],
        tokens: Sequence[Array | None],
        chats: Sequence[Conversation],
        recalls: Sequence[Recall],
        clock: Callable[[str], None],
    ) -> list[tuple[Array, Array, Slot]]:
        """Both scopes, for one turn of each of B conversations together.

        Args:
            frames, tokens: (1, length, dim) encoder states of each utterance; None where a modality is absent.
            chats: whose turn it is.
            recalls: what each may recall.
            clock: told when a scope is done.

        Returns:
            of each: logits (labels,), embedding (2d,) and what later turns will recall.
        """
        present = np.array([[f is not None, t is not None] for f, t in zip(frames, tokens)])
        recall = joined(recalls)
        heard, heard_mask = _masked(frames, self._dims["frames"], self._stack)
        said, said_mask = _masked(tokens, self._dims["tokens"], 1)
        seen = {name: getattr(recall, name) for name in ("visible", "distance", "relation")}
        codes, context_key, context_value = self._rows_beside(
            "utterance",
            frames=heard,
            frame_mask=heard_mask,
            tokens=said,
            token_mask=said_mask,
            context_keys=recall.context_keys,
            context_values=recall.context_values,
            **seen,
        )
        clock("utterance")
        logits, embedding, keys, values = (
            self._scope(codes, present, chats, recall)
            if self._scope is not None
            else self._run(
                "dialogue",
                codes=codes,
                present=present,
                keys=recall.keys,
                values=recall.values,
                own_relation=recall.own_relation,
                **seen,
            )
        )
        clock("dialogue")
        slots = [Slot(*parts) for parts in zip(context_key, context_value, keys, values, present)]
        return list(zip(logits, embedding, slots))


def joined(recalls: Sequence[Recall]) -> Recall:
    """Of several conversations, one behind the other."""
    return recalls[0] if len(recalls) == 1 else Recall(*(np.concatenate(parts) for parts in zip(*recalls)))


def _masked(states: Sequence[Array | None], dim: int, multiple: int) -> tuple[Array, Array]:
    """(1, length, dim) each -> (B, longest, dim), padded with zeros to a multiple, and the mask of what is real."""
    lengths = np.array([0 if s is None else s.shape[1] for s in states])
    longest = max(multiple, int(lengths.max()) + -int(lengths.max()) % multiple)
    mask = np.arange(longest) < lengths[:, None]
    if len(states) == 1 and states[0] is not None and lengths[0] == longest:
        return states[0], mask
    padded = np.zeros((len(states), longest, dim), np.float32)
    for row, one in zip(padded, states):
        if one is not None:
            row[: one.shape[1]] = one[0]
    return padded, mask


def _how_to_get_a_gpu_build() -> str:
    from hbaf_edge.ort import installed_builds

    builds = installed_builds()
    if len(builds) > 1:
        return f"{' and '.join(builds)} overwrote each other's files: uninstall them all, then install the one you need"
    return (
        "pip uninstall onnxruntime, then pip install 'hbaf-edge[gpu]' (on a Jetson: NVIDIA's own onnxruntime-gpu wheel)"
    )


def _available(provider: str) -> list[str]:
    from hbaf_edge.ort import onnxruntime as ort

    if not isinstance(provider, str) or provider not in PROVIDERS:
        raise BackendError(
            f"provider {provider!r} is unknown; valid ones are 'auto', {', '.join(map(repr, (*PROVIDERS, *NATIVE)))}"
        )
    wanted = PROVIDERS[provider]
    if wanted not in ort.get_available_providers():
        raise BackendError(
            f"provider {provider!r} needs {wanted}, which this ONNX Runtime {ort.__version__} was built without; "
            f"{_how_to_get_a_gpu_build()}, or use provider='cpu'"
        )
    below = [PROVIDERS["ort-cuda"]] if provider == "ort-tensorrt" else []  # for what TensorRT does not know
    below = [name for name in below if name in ort.get_available_providers()]
    return list(dict.fromkeys([wanted, *below, PROVIDERS["cpu"]]))
