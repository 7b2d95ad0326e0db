"""Stand-ins around a runtime's back end, and turns that are committed by hand."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from hbaf_edge import HBAFRuntime, Turn
from hbaf_edge.backends.base import Request, Result
from hbaf_edge.conversation import Conversation, TurnState


class Watched:
    """A back end around another one.

    Attributes:
        before: called with the requests before they are computed; what it raises fails them.
        after: makes other results of them.
        sizes: of all batches.
    """

    def __init__(self, backend: Any) -> None:
        self.backend, self.sizes = backend, list[int]()
        self.before: Callable[[Sequence[Request]], object] = len
        self.after: Callable[[list[Result]], list[Result]] = list
        self.threads: set[threading.Thread] = set()

    def infer(self, requests: Sequence[Request]) -> list[Result]:
        self.sizes.append(len(requests))
        self.threads.add(threading.current_thread())
        self.before(requests)
        return self.after(self.backend.infer(requests))

    def __getattr__(self, name: str) -> Any:
        return getattr(self.backend, name)


@contextmanager
def watched(runtime: HBAFRuntime) -> Iterator[Watched]:
    """The runtime's back end, wrapped while the context is open."""
    engine = runtime.engine
    wrapped = engine.backend = Watched(engine.backend)
    try:
        yield wrapped
    finally:
        engine.backend = wrapped.backend


@contextmanager
def failing(runtime: HBAFRuntime, error: BaseException) -> Iterator[Watched]:
    """The runtime's back end raises an error while the context is open."""

    def fail(requests: Sequence[Request]) -> None:
        raise error

    with watched(runtime) as backend:
        backend.before = fail
        yield backend


def commit(
    chat: Conversation, state: TurnState, speaker: str | None = None, label: str | None = None,
    confidence: float = 0.0, modalities: tuple[str, ...] = (),
) -> None:  # fmt: skip
    """A turn that nobody computed."""
    chat.memory.store(state, Turn(chat.turn, label, confidence, speaker, modalities, 0.0))
