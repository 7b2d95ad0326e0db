"""The one protocol that every back end answers to: requests in, results out.

A back end keeps nothing of a conversation that is not also in its `Memory`: what it holds on a card is a copy, and its
own affair.
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
        view: what the turn may look back on.
        audio_states: of an earlier `Result` of the same back end, in place of `mel`: audio is not encoded again.
    """

    mel: Array | None
    tokens: Array | None
    view: ContextView
    audio_states: Array | None = None


class Result(NamedTuple):
    """What a turn came out as.

    Attributes:
        logits: (labels,) float32.
        embedding: (2d,) float32, the fused vector.
        state: what later turns look back on.
        audio_states: to be handed back in a `Request`; None where there was no audio.
        milliseconds: by stage, of all requests together.
    """

    logits: Array
    embedding: Array
    state: TurnState
    audio_states: Array | None
    milliseconds: dict[str, float]


class Backend(Protocol):
    """Thread-safe; requests are of different conversations, and nothing is committed.

    Attributes:
        provider: a name that `HBAFRuntime(provider=…)` takes.
        detail: what runs where, for people.
        threads: CPU threads of the largest operators.
    """

    provider: str
    detail: str
    threads: int

    def infer(self, requests: Sequence[Request]) -> list[Result]:
        """Results of several turns, which the context of none of them holds another of.

        Raises:
            BackendError: it failed; the next call starts from what the memories hold.
        """

    def set_tap(self, tap: Tap | None) -> Tap | None:
        """Have every graph's inputs and outputs shown to a function, or to none; what it was before.

        Raises:
            BackendError: this back end cannot show them.
        """


class Stages:
    """Milliseconds per stage."""

    def __init__(self) -> None:
        self._last = time.perf_counter()
        self.milliseconds: dict[str, float] = {}

    def end(self, stage: str) -> None:
        """A stage ends that began with the end of the last one."""
        now = time.perf_counter()
        self.milliseconds[stage] = (now - self._last) * 1e3
        self._last = now


def joined(requests: Sequence[Request]) -> Context:
    """Contexts of several requests, one behind the other."""
    contexts = [request.view.arrays for request in requests]
    return contexts[0] if len(contexts) == 1 else Context(*(np.concatenate(parts) for parts in zip(*contexts)))
