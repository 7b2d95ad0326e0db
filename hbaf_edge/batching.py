"""Dynamic batching: calls that arrive within a few milliseconds of each other are computed together."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from typing import Generic, TypeVar

from hbaf_edge.workers import Task, Workers

Item = TypeVar("Item")


class DynamicBatcher(Generic[Item]):
    """Collect items that several workers add. The worker that adds the first item of a batch waits for more.

    While it waits, it runs those queued tasks of the workers that add items.

    Args:
        workers: the threads that call `add`.
        max_batch_size: items in a batch.
        max_wait_s: seconds that the first item waits for others.
        adds_item: whether a task calls `add`.
    """

    def __init__(
        self, workers: Workers, max_batch_size: int, max_wait_s: float, adds_item: Callable[[Task], bool]
    ) -> None:
        self._workers, self._max_batch_size, self._max_wait_s = workers, max_batch_size, max_wait_s
        self._adds_item = adds_item
        self._waiting_threads: set[int] = set()  # threads that wait for their batch to fill
        self._lock = threading.Lock()
        self._batch: list[Item] | None = None  # the batch that still accepts items

    def add(self, item: Item, retry: Task) -> list[Item] | None:
        """Add an item to the open batch, or start a batch with it.

        Args:
            item: the item.
            retry: task that adds the item again. It is submitted if this thread already waits for another batch.

        Returns:
            the whole batch, on the thread that fills it or, if it does not fill in time, on the thread that started it;
            None on all others.
        """
        deadline, thread_id = time.perf_counter() + self._max_wait_s, threading.get_ident()
        with self._lock:
            is_first = self._batch is None
            if is_first and thread_id in self._waiting_threads:
                self._workers.submit(retry)
                return None
            batch = self._batch = self._batch or []
            batch.append(item)
            is_full = len(batch) == self._max_batch_size
            if is_full:
                self._batch = None
        if is_full:
            return batch  # the thread that started the batch may still be waiting for a task
        if not is_first:
            return None
        self._waiting_threads.add(thread_id)
        while self._batch is batch and (timeout := deadline - time.perf_counter()) > 0:
            if not self._workers.run_next(timeout, self._adds_item):
                break  # no task came in time, or the next task is of another kind and must not wait
        self._waiting_threads.discard(thread_id)
        with self._lock:
            if self._batch is not batch:
                return None  # another thread filled the batch and has it
            self._batch = None
        return batch
