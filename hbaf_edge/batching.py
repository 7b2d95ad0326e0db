"""Dynamic batching: calls that arrive within a few milliseconds of one another are computed together."""

from __future__ import annotations

import threading
import time
from typing import Generic, TypeVar

from hbaf_edge.workers import Workers

Item = TypeVar("Item")


class Batcher(Generic[Item]):
    """Gathers what several workers bring; the worker that brought the first waits for others, and takes them all.

    While it waits it does the workers' other tasks, among them those that bring more.

    Args:
        workers: whose threads call `gather`.
        max_size: of a group.
        max_wait: seconds that the first one waits.
    """

    def __init__(self, workers: Workers, max_size: int, max_wait: float) -> None:
        self._workers, self._max_size, self._max_wait = workers, max_size, max_wait
        self._lock = threading.Lock()
        self._group: list[Item] | None = None  # the one that may be joined

    def gather(self, item: Item) -> list[Item] | None:
        """Add one.

        Returns:
            the whole group, on the thread that began it; None on those that joined.
        """
        until = time.perf_counter() + self._max_wait
        with self._lock:
            is_first = self._group is None
            group = self._group = self._group or []
            group.append(item)
            if len(group) == self._max_size:
                self._group = None
        if not is_first:
            self._workers.submit(_wake)  # whoever began it may be waiting for a task
            return None
        while self._group is group and (left := until - time.perf_counter()) > 0:
            if not self._workers.help(left):
                break
        with self._lock:
            if self._group is group:
                self._group = None
        return group


def _wake() -> None:
    """A task without content."""
