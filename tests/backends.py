"""Wrappers around a runtime's back end, and turns that are committed without computing them."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from hbaf_edge import HBAFRuntime, Turn
from hbaf_edge.backends.base import Request, Result
from hbaf_edge.conversation import Conversation, TurnState


class BackendSpy:
    """A back end that records the calls of another one.

    Attributes:
        before: called with the requests before they are computed; an exception that it raises fails the batch.
        after: called with the results; returns those that are passed on.
        batch_sizes: number of requests of each call.
        threads: the threads that called `infer`.
    """

    def __init__(self, backend: Any) -> None:
        self.backend, self.batch_sizes = backend, list[int]()
        self.before: Callable[[Sequence[Request]], object] = len
        self.after: Callable[[list[Result]], list[Result]] = list
        self.threads: set[threading.Thread] = set()

    def infer(self, requests: Sequence[Request]) -> list[Result]:
        self.batch_sizes.append(len(requests))
        self.threads.add(threading.current_thread())
        self.before(requests)
        return self.after(self.backend.infer(requests))

    def __getattr__(self, name: str) -> Any:
        return getattr(self.backend, name)


@contextmanager
def spy_on_backend(runtime: HBAFRuntime) -> Iterator[BackendSpy]:
    """Record the calls of the runtime's back end while the context is open."""
    engine = runtime.engine
    spy = engine.backend = BackendSpy(engine.backend)
    try:
        yield spy
    finally:
        engine.backend = spy.backend


@contextmanager
def failing_backend(runtime: HBAFRuntime, error: BaseException) -> Iterator[BackendSpy]:
    """Let the runtime's back end raise an error while the context is open."""

    def fail(requests: Sequence[Request]) -> None:
        raise error

    with spy_on_backend(runtime) as backend:
        backend.before = fail
        yield backend


def commit_turn(
    chat: Conversation, state: TurnState, speaker: str | None = None, label: str | None = None,
    confidence: float = 0.0, modalities: tuple[str, ...] = (),
) -> None:  # fmt: skip
    """Commit a turn without computing it."""
    chat.memory.store(state, Turn(chat.turn, label, confidence, speaker, modalities, 0.0))
