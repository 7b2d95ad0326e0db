"""The protocol of all back ends: requests in, results out.

A back end stores no part of a conversation that is not also in its `Memory`. What it stores on a GPU is a copy.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple, Protocol

import numpy as np
from numpy.typing import NDArray

from hbaf_edge.conversation import Context, ContextView, TurnState

Array = NDArray[Any]
Tap = Callable[[str, Mapping[str, Array], Mapping[str, Array]], object]  # graph, its inputs, its outputs


class Request(NamedTuple):
    """One turn to compute.

    Attributes:
        mel: (80, frames) log-mel at 100 Hz, or None.
        tokens: (tokens,) int64, or None.
        view: the turn's context.
        audio_states: those of an earlier `Result` of the same back end. If given, audio is not encoded again.
    """

    mel: Array | None
    tokens: Array | None
    view: ContextView
    audio_states: Array | None = None


class Result(NamedTuple):
    """The result of one turn.

    Attributes:
        logits: (labels,) float32.
        embedding: (2d,) float32, the fused vector.
        state: keys and values that later turns attend to.
        audio_states: encoded audio, which a later `Request` may reuse; None without audio.
        milliseconds: by stage, of all requests of the call together.
    """

    logits: Array
    embedding: Array
    state: TurnState
    audio_states: Array | None
    milliseconds: dict[str, float]


class Backend(Protocol):
    """Computes turns. Thread-safe; the requests of a call belong to different conversations; commits nothing.

    Attributes:
        provider: a name that `HBAFRuntime(provider=…)` accepts.
        detail: what runs where, as text for users.
        threads: CPU threads of the largest operators.
    """

    provider: str
    detail: str
    threads: int

    def infer(self, requests: Sequence[Request]) -> list[Result]:
        """Compute several turns. No request's context contains another request's turn.

        Raises:
            BackendError: the computation failed; the next call starts from the conversations' memories.
        """

    def set_tap(self, tap: Tap | None) -> Tap | None:
        """Call a function with the inputs and outputs of every graph, or stop doing so; returns the previous tap.

        Raises:
            BackendError: this back end cannot show its tensors.
        """


class StageTimer:
    """Milliseconds per stage."""

    def __init__(self) -> None:
        self._last = time.perf_counter()
        self.milliseconds: dict[str, float] = {}

    def end(self, stage: str) -> None:
        """End a stage, which began when the previous stage ended."""
        now = time.perf_counter()
        self.milliseconds[stage] = (now - self._last) * 1e3
        self._last = now


def stack_contexts(requests: Sequence[Request]) -> Context:
    """Concatenate the contexts of several requests along the batch axis."""
    contexts = [request.view.arrays for request in requests]
    return contexts[0] if len(contexts) == 1 else Context(*(np.concatenate(parts) for parts in zip(*contexts)))
