"""For servers: turns that arrive within a few milliseconds of one another are computed together.

One thread gathers; who asks waits for his own turn only. A conversation's turns keep their order: a second turn of the
same conversation waits for the next round.
"""

from __future__ import annotations

import queue
import threading
import time
from concurrent.futures import Future
from typing import Any

from hbaf_edge.errors import BackendError, InputError
from hbaf_edge.prediction import Prediction
from hbaf_edge.runtime import HBAFRuntime, Prepared

Waiting = tuple[Prepared, "Future[Prediction]"]


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
        if not 0 <= wait_ms <= 1000:
            raise InputError(f"wait_ms={wait_ms!r}; 0 to 1,000 milliseconds are accepted")
        if not 1 <= most <= 256:
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
        return self.submit(audio, **given).result()

    def close(self) -> None:
        """Compute what was submitted, then stop."""
        with self._gate:
            if not self._closed:
                self._closed = True
                self._queue.put(None)
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
                left = None if until is None else until - time.perf_counter()
                one = self._queue.get_nowait() if left is not None and left <= 0 else self._queue.get(timeout=left)
            except queue.Empty:
                break
            if one is None:
                return found, False
            found.append(one)
            until = until or time.perf_counter() + self._wait
        return found, open_

    def _round(self, now: list[Waiting]) -> None:
        """One call of the model; where it fails, it fails for all of the round, and none of them is committed."""
        waiting = [(p, f) for p, f in now if f.set_running_or_notify_cancel()]
        try:
            results = self._runtime._counted(lambda: self._runtime._many([p for p, _ in waiting]))
        except Exception as error:
            for _, future in waiting:
                future.set_exception(error)
            return
        for (_, future), result in zip(waiting, results):
            future.set_result(self._runtime._finished(result))


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
