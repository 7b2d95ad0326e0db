"""For servers: turns that arrive within a few milliseconds of one another are computed together.

One thread gathers; who asks waits for his own turn only. A conversation's turns keep their order: a second turn of the
same conversation waits for the next round. Close it when it is no longer needed, or its thread stays.
"""

from __future__ import annotations

import contextlib
import logging
import queue
import threading
import time
from collections.abc import Callable
from concurrent.futures import Future
from typing import Any

from hbaf_edge.errors import BackendError, InputError
from hbaf_edge.given import Prepared
from hbaf_edge.prediction import Prediction
from hbaf_edge.runtime import HBAFRuntime

Waiting = tuple[Prepared, "Future[Prediction]"]
log = logging.getLogger("hbaf_edge")


class Gatherer:
    """Gathers turns of different conversations to calls of the model.

    Args:
        runtime: whose model is used; it stays open when the gatherer closes.
        wait_ms: how long the first turn of a round waits for others, 0 to 1,000 milliseconds.
        most: turns in a round at most, 1 to 256.

    >>> runtime = HBAFRuntime()
    >>> with Gatherer(runtime, wait_ms=5) as gatherer:
    ...     found = [gatherer.submit(text=text) for text in ("We won! I am so happy!", "I hate you!")]
    ...     [f.result().label for f in found]
    ['joy', 'anger']
    """

    def __init__(self, runtime: HBAFRuntime, wait_ms: float = 5.0, most: int = 16) -> None:
        if not isinstance(runtime, HBAFRuntime):
            raise InputError(f"runtime is of type {type(runtime).__name__}; an HBAFRuntime is expected")
        if isinstance(wait_ms, bool) or not isinstance(wait_ms, (int, float)) or not 0 <= wait_ms <= 1000:
            raise InputError(f"wait_ms={wait_ms!r}; 0 to 1,000 milliseconds are accepted")
        if isinstance(most, bool) or not isinstance(most, int) or not 1 <= most <= 256:
            raise InputError(f"most={most!r}; 1 to 256 turns in a round are accepted")
        self._runtime, self._wait, self._most = runtime, wait_ms / 1e3, most
        self._queue: queue.SimpleQueue[Waiting | None] = queue.SimpleQueue()
        self._closed = False
        self._gate = threading.Lock()
        self._thread = threading.Thread(target=self._serve, name="hbaf_edge-gatherer", daemon=True)
        self._thread.start()

    def submit(self, audio: Any = None, **given: Any) -> Future[Prediction]:
        """`HBAFRuntime.predict`'s arguments -> a future of its result.

        Unusable input is refused here, on the caller's thread, where audio is decoded and its spectrum computed too.

        Raises:
            InputError: as `predict` does; nobody else's turn is touched.
        """
        prepared = self._runtime._prepared({"audio": audio, **given})  # type: ignore[typeddict-item]
        future: Future[Prediction] = Future()
        with self._gate:
            if self._closed:
                raise BackendError("this gatherer is closed; make another")
            self._queue.put((prepared, future))
        return future

    def predict(self, audio: Any = None, **given: Any) -> Prediction:
        """`submit`, and wait for the result."""
        if threading.current_thread() is self._thread:
            raise BackendError("predict would wait for itself here, in a hook or a future's callback; use submit")
        return self.submit(audio, **given).result()

    def close(self) -> None:
        """Compute what was submitted, then stop."""
        with self._gate:
            if not self._closed:
                self._closed = True
                self._queue.put(None)
        if threading.current_thread() is not self._thread:
            self._thread.join()

    def __enter__(self) -> Gatherer:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _serve(self) -> None:
        """Rounds until closed; turns that had to wait for an earlier one of their conversation open the next."""
        held: list[Waiting] = []
        open_ = True
        while open_ or held:
            arrived, open_ = self._arrivals(bool(held), open_)
            now, held = _first_of_each([*held, *arrived], self._most)
            if now:
                self._round(now)

    def _arrivals(self, hurry: bool, open_: bool) -> tuple[list[Waiting], bool]:
        """What comes in until the first has waited long enough; and whether more may come."""
        found: list[Waiting] = []
        until = time.perf_counter() + self._wait if hurry else None
        while open_ and len(found) < self._most:
            try:
                left = None if until is None else max(0.0, until - time.perf_counter())
                one = self._queue.get(timeout=left)
            except queue.Empty:
                break
            if one is None:
                return found, False
            found.append(one)
            until = until or time.perf_counter() + self._wait
        return found, open_

    def _round(self, now: list[Waiting]) -> None:
        """One call of the model; where it fails nothing is committed, and each turn is tried by itself."""
        waiting = [(p, f) for p, f in now if f.set_running_or_notify_cancel()]
        try:
            results = self._runtime._many([p for p, _ in waiting])
        except BaseException:  # whatever it is, this thread serves others too
            for one in waiting:
                self._alone(*one)
            return
        for (_, future), result in zip(waiting, results):
            _told(future.set_result, result)
        for result in results:
            _told(self._runtime._finished, result)

    def _alone(self, turn: Prepared, future: Future[Prediction]) -> None:
        """A turn of a round that failed: its error is its own."""
        try:
            (result,) = self._runtime._counted(lambda: self._runtime._many([turn]))
        except BaseException as error:
            _told(future.set_exception, error)
        else:
            _told(future.set_result, result)
            _told(self._runtime._finished, result)


def _told(tell: Callable[[Any], object], what: Any) -> None:
    """Callbacks and hooks are somebody else's code: nothing they raise, an exit included, may end the thread."""
    try:
        tell(what)
    except BaseException:
        with contextlib.suppress(Exception):  # it may have been the log itself
            log.exception("a callback or hook raised; the turn is committed all the same")


def _first_of_each(waiting: list[Waiting], most: int) -> tuple[list[Waiting], list[Waiting]]:
    """The first turn of each conversation, and those that wait for the next round."""
    now: list[Waiting] = []
    later: list[Waiting] = []
    seen: set[int] = set()
    for one in waiting:
        chat = id(one[0].chat)
        (now if chat not in seen and len(now) < most else later).append(one)
        seen.add(chat)
    return now, later
