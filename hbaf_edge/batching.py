"""Dynamic batching: calls that arrive within a few milliseconds of one another are computed together."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from typing import Generic, TypeVar

from hbaf_edge.workers import Task, Workers

Item = TypeVar("Item")


class Batcher(Generic[Item]):
    """Gathers what several workers bring; the worker that brought the first waits for others, and takes them all.

    While it waits it does those of the workers' tasks that bring more.

    Args:
        workers: whose threads call `gather`.
        max_size: of a group.
        max_wait: seconds that the first one waits.
        brings_more: whether a task is one that calls `gather`.
    """

    def __init__(self, workers: Workers, max_size: int, max_wait: float, brings_more: Callable[[Task], bool]) -> None:
        self._workers, self._max_size, self._max_wait = workers, max_size, max_wait
        self._brings_more = brings_more
        self._gathering: set[int] = set()  # threads that wait for a group
        self._lock = threading.Lock()
        self._group: list[Item] | None = None  # the one that may be joined

    def gather(self, item: Item, again: Task) -> list[Item] | None:
        """Add one.

        Args:
            item: that is added.
            again: brings it once more, where this thread waits for another group already.

        Returns:
            the whole group, on the thread that began it; None on those that joined.
        """
        until, me = time.perf_counter() + self._max_wait, threading.get_ident()
        with self._lock:
            is_first = self._group is None
            if is_first and me in self._gathering:
                self._workers.submit(again)
                return None
            group = self._group = self._group or []
            group.append(item)
            if len(group) == self._max_size:
                self._group = None
        if not is_first:
            self._workers.submit(_wake)  # whoever began it may be waiting for a task
            return None
        self._gathering.add(me)
        while self._group is group and (left := until - time.perf_counter()) > 0:
            if not self._workers.help(left, lambda task: task is _wake or self._brings_more(task)):
                break  # nothing came, or something else is to be done first
        self._gathering.discard(me)
        with self._lock:
            if self._group is group:
                self._group = None
        return group


def _wake() -> None:
    """A task without content."""
