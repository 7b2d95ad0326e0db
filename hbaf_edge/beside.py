"""Work beside the caller's: a graph whose products are small runs on one thread, and two such graphs on two."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

Result = TypeVar("Result")
log = logging.getLogger("hbaf_edge")


class Beside:
    """Threads that work beside their callers; who finds none free does the work himself.

    Args:
        threads: how many, the caller's own not counted.

    >>> Beside(1).all([lambda: "heard", lambda: "read"])
    ['heard', 'read']
    """

    def __init__(self, threads: int) -> None:
        self._free = threading.Semaphore(threads)
        self._pool: ThreadPoolExecutor | None = ThreadPoolExecutor(threads, thread_name_prefix="hbaf_edge_beside")

    def start(self, work: Callable[[], Result]) -> Callable[[], Result]:
        """Begin; what is returned waits for the end and gives the result, or raises what the work raised."""
        pool = self._pool
        if pool is None or not self._free.acquire(blocking=False):
            return work
        try:
            future = pool.submit(work)
        except RuntimeError as error:  # Python is ending, or the system gives no more threads
            # Never asked again: a pool that failed may hold the work, and would do it for nobody.
            pool.shutdown(wait=False, cancel_futures=True)
            if self._pool is not None:
                log.warning("a thread could not be had (%s): what ran beside each other runs one after another", error)
            self._pool = None
            return work
        except BaseException:  # such as Ctrl-C
            self._free.release()
            raise
        future.add_done_callback(lambda _: self._free.release())
        return future.result

    def all(self, works: Sequence[Callable[[], Result]]) -> list[Result]:
        """Results of all of them, of which the caller does the first."""
        begun = [self.start(work) for work in works[1:]]
        return [works[0](), *(result() for result in begun)]
