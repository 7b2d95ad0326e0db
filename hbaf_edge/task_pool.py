"""Tasks beside the caller's own: text while audio is encoded, parts of a batch next to each other."""

from __future__ import annotations

import threading
from collections.abc import Callable
from functools import partial
from typing import TypeVar

from hbaf_edge.workers import Outcome, Workers

Result = TypeVar("Result")


class TaskPool:
    """A small thread pool. If no worker is free, the caller runs the task itself.

    Args:
        threads: how many, the caller's own not counted.

    >>> TaskPool(1).run([lambda: "audio", lambda: "text"])
    ['audio', 'text']
    """

    def __init__(self, threads: int) -> None:
        self._workers = Workers(threads, "hbaf_edge_task")
        self._lock = threading.Lock()
        self._free = threads

    def start(self, task: Callable[[], Result]) -> Callable[[], Result]:
        """Begin a task.

        Returns:
            a function that waits for its end and returns its result, or raises what the task raised.
        """
        with self._lock:
            is_free = self._free > 0
            self._free -= is_free
        if not is_free:
            return task
        outcome = Outcome[Result]()
        if self._workers.offer(partial(self._do, task, outcome)):
            return outcome.wait
        self._release()
        return task

    def _do(self, task: Callable[[], Result], outcome: Outcome[Result]) -> None:
        try:
            result = task()
        except BaseException as error:
            self._release()
            outcome.fail(error)
        else:
            self._release()
            outcome.set(result)

    def _release(self) -> None:
        with self._lock:
            self._free += 1

    def run(self, tasks: list[Callable[[], Result]]) -> list[Result]:
        """Results of all of them; the caller does the first itself."""
        begun = [self.start(task) for task in tasks[1:]]
        return [tasks[0](), *(result() for result in begun)]
