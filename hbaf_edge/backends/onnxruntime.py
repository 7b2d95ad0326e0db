"""Run the four graphs of a bundle on ONNX Runtime, with a fixed number of threads and without spinning.

A function that stores the rings elsewhere can replace the dialogue graph (hbaf_edge/backends/cuda/dialogue.py).
"""

from __future__ import annotations

import ctypes
import os
import weakref
from collections.abc import Callable, Sequence
from functools import partial
from itertools import pairwise
from time import perf_counter
from typing import TYPE_CHECKING, Any

import numpy as np

from hbaf_edge.backends.base import Array, Request, Result, StageTimer, Tap, stack_contexts
from hbaf_edge.backends.settings import bundle_options, execution_providers
from hbaf_edge.bundle import GRAPHS, Bundle
from hbaf_edge.conversation import Conversation, Sizes, TurnState
from hbaf_edge.errors import BackendError, BundleError, HBAFError
from hbaf_edge.task_pool import TaskPool
from hbaf_edge.workers import call_native

if TYPE_CHECKING:
    import onnxruntime

OUTPUTS = {
    "audio": 1,
    "text": 1,
    "utterance": 3,
    "dialogue": 4,
}  # number of results of each graph; further outputs are only for taps
# Codes (B, 2, d), present (B, 2) and the requests -> logits, embedding, new keys and values.
DialogueFunction = Callable[[Array, Array, Sequence[Request]], tuple[Array, Array, Array, Array]]
_sessions: weakref.WeakSet[Any] = weakref.WeakSet()


def _leak_sessions_in_child() -> None:
    """Keep sessions alive in a forked child: freeing one there waits for threads that the fork did not copy."""
    for session in list(_sessions):
        ctypes.pythonapi.Py_IncRef(ctypes.py_object(session))


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_leak_sessions_in_child)


class OrtBackend:
    """Runs a bundle's graphs on ONNX Runtime. Thread-safe: sessions hold no state of conversations.

    Args:
        bundle: a verified bundle.
        provider: "cpu", "ort-cuda" or "ort-tensorrt".
        threads: for each operator of the audio encoder. The other graphs use one thread for a turn, and this number
            for a batch.
        dialogue: replaces the dialogue graph.
    """

    def __init__(self, bundle: Bundle, provider: str, threads: int, dialogue: DialogueFunction | None = None) -> None:
        self.provider = self.detail = provider
        self.threads, self._dialogue = threads, dialogue
        self._tap: Tap | None = None
        self._stack = int(bundle.manifest["stack"])
        self._providers = execution_providers(provider)
        self._pool = TaskPool(threads - 1) if provider == "cpu" and threads > 1 else None
        self._sessions = {n: self._session(bundle, n) for n in GRAPHS if dialogue is None or n != "dialogue"}
        self._outputs = {n: [o.name for o in session.get_outputs()] for n, session in self._sessions.items()}
        self._widths = {i.name: i.shape[-1] for i in self._sessions["utterance"].get_inputs()}
        self._check(bundle)

    def _session(self, bundle: Bundle, name: str) -> onnxruntime.InferenceSession:
        from hbaf_edge.ort import onnxruntime as ort

        # Matrix products of the other graphs are so small that sharing one between threads takes longer than it saves.
        # Of a batch, each thread computes some rows (`_run_rows_in_parallel`).
        options = bundle_options(bundle, self.threads if name == "audio" else 1, self.provider == "cpu")
        try:
            session = call_native(ort.InferenceSession, bundle.graph(name), options, providers=self._providers)
        except Exception as error:  # ONNX Runtime's exceptions have no common base
            raise BundleError(
                f"{bundle.path}: ONNX Runtime {ort.__version__} cannot load the {name} graph: {error}"
            ) from error
        _sessions.add(session)
        return session

    def _check(self, bundle: Bundle) -> None:
        """Fail if ONNX Runtime fell back to another provider, or if graph inputs differ from the manifest."""
        started = self._sessions["utterance"].get_providers()
        if self._providers[0] not in started:
            raise BackendError(f"provider {self.provider!r} could not start, only {started}; see ONNX Runtime's log")
        for name, session in self._sessions.items():
            expected, inputs = bundle.manifest["graphs"][name]["inputs"], {i.name for i in session.get_inputs()}
            if set(expected) != inputs:
                raise BundleError(f"{bundle.path}: {name} takes {sorted(inputs)}, the manifest says {sorted(expected)}")
        call_native(self._run_first_turn, bundle)

    def _run_first_turn(self, bundle: Bundle) -> None:
        """Fail if the graphs' sizes differ from the manifest: compute a first turn of one token without audio."""
        m = bundle.manifest
        view = Conversation(bundle.key, Sizes(m["window"], m["dialogue_layers"], m["width"])).view(None)
        try:
            (result,) = self._infer([Request(None, np.array([1], np.int64), view)])
            if (shape := result.state.keys.shape) != view.memory.keys[:, 0].shape:
                raise ValueError(f"a turn's keys are {shape}")
        except BackendError:  # a failed GPU does not mean that the bundle is wrong
            raise
        except Exception as error:  # ONNX Runtime's exceptions have no common base
            raise BundleError(f"{bundle.path}: the graphs do not fit the manifest's sizes: {error}") from error
        if result.logits.shape != (len(bundle.labels),):
            raise BundleError(
                f"{bundle.path}: {result.logits.size} logits for {len(bundle.labels)} labels in the manifest"
            )

    def set_tap(self, tap: Tap | None) -> Tap | None:
        """See `Backend`."""
        previous, self._tap = self._tap, tap
        return previous

    def infer(self, requests: Sequence[Request]) -> list[Result]:
        """See `Backend`."""
        try:
            return self._infer(requests)
        except (HBAFError, MemoryError):
            raise
        except Exception as error:  # ONNX Runtime's exceptions have no common base
            raise BackendError(f"ONNX Runtime failed; nothing was committed: {error}") from error

    def _infer(self, requests: Sequence[Request]) -> list[Result]:
        stages = StageTimer()
        frames, tokens = self._encode(requests, stages)
        present = np.array([[f is not None, t is not None] for f, t in zip(frames, tokens)])
        context = stack_contexts(requests)
        padded_frames, frame_mask = _pad_and_mask(frames, self._widths["frames"], self._stack)
        padded_tokens, token_mask = _pad_and_mask(tokens, self._widths["tokens"], 1)
        shared = {name: getattr(context, name) for name in ("visible", "distance", "relation")}
        codes, context_keys, context_values = self._run_rows_in_parallel(
            "utterance", frames=padded_frames, frame_mask=frame_mask, tokens=padded_tokens, token_mask=token_mask,
            context_keys=context.context_keys, context_values=context.context_values, **shared,
        )  # fmt: skip
        stages.end("utterance")
        if self._dialogue is not None:
            logits, embedding, keys, values = self._dialogue(codes, present, requests)
        else:
            logits, embedding, keys, values = self._run(
                "dialogue", codes=codes, present=present, keys=context.keys, values=context.values,
                own_relation=context.own_relation, **shared,
            )  # fmt: skip
        stages.end("dialogue")
        states = (TurnState(*parts) for parts in zip(context_keys, context_values, keys, values, present))
        return [Result(*parts, stages.milliseconds) for parts in zip(logits, embedding, states, frames)]

    def _encode(self, requests: Sequence[Request], stages: StageTimer) -> tuple[list[Array | None], list[Array | None]]:
        """Run both encoders: states (1, length, width) of each request's audio and text, or None.

        Texts are padded and masked. Only audio of equal length forms a batch: Whisper's encoder has no length mask, so
        padding would change the states of shorter audio.
        """
        frames = {i: r.audio_states for i, r in enumerate(requests) if r.audio_states is not None}
        texts = {i: r.tokens for i, r in enumerate(requests) if r.tokens is not None}
        lengths: dict[int, list[int]] = {}
        for i, request in enumerate(requests):
            if request.mel is not None and i not in frames:
                lengths.setdefault(request.mel.shape[1], []).append(i)

        def encode_text() -> tuple[dict[int, Array], float]:
            start = perf_counter()
            states = dict(zip(texts, self._encode_text(list(texts.values())))) if texts else {}
            return states, (perf_counter() - start) * 1e3

        # Text runs in parallel with audio, which takes four times as long and hardly gains from a second thread.
        wait = self._pool.start(encode_text) if self._pool is not None and texts and lengths else encode_text
        for rows in lengths.values():
            (states,) = self._run("audio", mel=np.stack([m for i in rows if (m := requests[i].mel) is not None]))
            frames |= {i: states[j : j + 1] for j, i in enumerate(rows)}
        stages.end("audio")
        tokens, milliseconds = wait()
        stages.end("text")
        stages.milliseconds["text"] = milliseconds
        return [frames.get(i) for i in range(len(requests))], [tokens.get(i) for i in range(len(requests))]

    def _run(self, graph: str, **inputs: Array) -> list[Array]:
        outputs: list[Array] = self._sessions[graph].run(None, inputs)
        if self._tap is not None:
            self._tap(graph, inputs, dict(zip(self._outputs[graph], outputs)))
        return outputs[: OUTPUTS[graph]]

    def _run_rows_in_parallel(self, graph: str, **inputs: Array) -> list[Array]:
        """Run a single-threaded graph; with several rows, each thread runs it on a part of the batch."""
        rows = len(next(iter(inputs.values())))
        if self._pool is None or rows == 1:
            return self._run(graph, **inputs)
        bounds = np.linspace(0, rows, min(self.threads, rows) + 1).astype(int)
        parts = [{name: value[a:b] for name, value in inputs.items()} for a, b in pairwise(bounds)]
        outputs = self._pool.run([partial(self._run, graph, **part) for part in parts])
        return [np.concatenate(parts) for parts in zip(*outputs)]

    def _encode_text(self, tokens: Sequence[Array]) -> list[Array]:
        """Encode texts: (tokens,) ids each -> (1, tokens, width) states each, summed over the encoder's layers."""
        longest = max(map(len, tokens))
        ids = np.stack([np.pad(t, (0, longest - len(t))) for t in tokens])
        mask = np.stack([(np.arange(longest) < len(t)).astype(np.int64) for t in tokens])
        states = self._run_rows_in_parallel("text", tokens=ids, token_mask=mask)[0]
        return [states[i : i + 1, : len(t)] for i, t in enumerate(tokens)]


def _pad_and_mask(states: Sequence[Array | None], width: int, multiple: int) -> tuple[Array, Array]:
    """Pad states with zeros to a multiple: (1, length, width) each -> (B, longest, width) and a mask (B, longest)."""
    lengths = np.array([0 if s is None else s.shape[1] for s in states])
    longest = max(multiple, int(lengths.max()) + -int(lengths.max()) % multiple)
    mask = np.arange(longest) < lengths[:, None]
    if len(states) == 1 and states[0] is not None and lengths[0] == longest:
        return states[0], mask
    padded = np.zeros((len(states), longest, width), np.float32)
    for row, one in zip(padded, states):
        if one is not None:
            row[: one.shape[1]] = one[0]
    return padded, mask
