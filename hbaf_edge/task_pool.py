"""A small thread pool: text is encoded in parallel with audio, and the parts of a batch in parallel."""

from __future__ import annotations

import threading
from collections.abc import Callable
from functools import partial
from typing import TypeVar

from hbaf_edge.workers import Outcome, Workers

T = TypeVar("T")


class TaskPool:
    """A small thread pool. If no worker is free, the caller runs the task itself.

    Args:
        threads: number of threads, not counting the caller's.

    >>> TaskPool(1).run([lambda: "audio", lambda: "text"])
    ['audio', 'text']
    """

    def __init__(self, threads: int) -> None:
        self._workers = Workers(threads, "hbaf_edge_task")
        self._lock = threading.Lock()
        self._free = threads

    def start(self, task: Callable[[], T]) -> Callable[[], T]:
        """Start a task.

        Returns:
            a function that waits for the task and returns its result, or raises its error.
        """
        with self._lock:
            is_free = self._free > 0
            self._free -= is_free
        if not is_free:
            return task
        outcome = Outcome[T]()
        if self._workers.try_submit(partial(self._run, task, outcome)):
            return outcome.wait
        self._release()
        return task

    def run(self, tasks: list[Callable[[], T]]) -> list[T]:
        """Run tasks in parallel and return their results in order. The caller runs the first one."""
        waits = [self.start(task) for task in tasks[1:]]
        return [tasks[0](), *(wait() for wait in waits)]

    def _run(self, task: Callable[[], T], outcome: Outcome[T]) -> None:
        """Run a task on a worker. The worker is released first, so that whoever waits can use it at once."""
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
