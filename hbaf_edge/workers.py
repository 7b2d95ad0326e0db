"""Threads that do a runtime's work, and how they end with the program.

A caller never computes: it hands a task over and waits on a plain lock, so that Ctrl-C or a signal's timeout can break
off the wait and nothing else. Queue and locks are the ones written in C: those of `threading.Condition`, semaphores
and futures are Python code, which a signal can leave with the lock taken.

Python ends daemon threads when they next ask for the interpreter lock. Inside of C++ or Rust that aborts the process,
so before Python ends every task that was submitted is done and no thread is left inside of such code.
"""

from __future__ import annotations

import atexit
import logging
import os
import threading
import time
import weakref
from collections.abc import Callable
from functools import partial
from queue import Empty, SimpleQueue
from typing import Generic, TypeVar, cast

Result = TypeVar("Result")
Task = Callable[[], object]
log = logging.getLogger("hbaf_edge")
MAX_EXIT_WAIT = 10.0  # seconds that Python's end waits for other threads' calls of compiled code

_lock = threading.Lock()
_inside: set[int] = set()  # threads inside of compiled code, by their numbers
_workers: set[int] = set()  # threads of any `Workers`, which are ended in order
_pools: weakref.WeakSet[Workers] = weakref.WeakSet()
_last_steps: list[Callable[[], object]] = []
_is_ending = False


class Outcome(Generic[Result]):
    """What a task on another thread comes to: a result or an error, set once."""

    def __init__(self) -> None:
        self._pending = threading.Lock()
        self._pending.acquire()
        self.is_done = False
        self._result: Result | None = None
        self._error: BaseException | None = None

    def set(self, result: Result) -> None:
        """It ended with a result."""
        self._result, self.is_done = result, True
        self._pending.release()

    def fail(self, error: BaseException) -> None:
        """It ended with an error."""
        self._error, self.is_done = error, True
        self._pending.release()

    def wait(self) -> Result:
        """The result, when it is there; or what the task raised."""
        with self._pending:
            pass
        if self._error is not None:
            raise self._error
        return cast(Result, self._result)


class Workers:
    """A fixed number of threads that run tasks in the order of submission.

    Args:
        count: how many threads.
        name: of the threads.

    >>> workers, outcome = Workers(1, "example"), Outcome[str]()
    >>> workers.submit(lambda: outcome.set("done"))
    >>> outcome.wait()
    'done'
    """

    def __init__(self, count: int, name: str) -> None:
        self.count, self._process = count, os.getpid()
        self._lock = threading.Lock()
        self._tasks: SimpleQueue[Task | None] = SimpleQueue()
        self._threads: list[threading.Thread] = []
        self._has_ended = False
        # Threads know the queue, not this object, so that they end when nobody needs it any more.
        weakref.finalize(self, _end, self._tasks, self._threads).atexit = False
        _pools.add(self)
        try:
            for number in range(count):
                # Daemon: Python must not wait for them to end by themselves, `_finish` ends them in order.
                thread = threading.Thread(target=_serve, args=(self._tasks,), name=f"{name}_{number}", daemon=True)
                thread.start()
                self._threads.append(thread)
        except RuntimeError as error:  # the system gives no more, or Python is ending
            log.warning("only %d of %d threads could be started (%s)", len(self._threads), count, error)

    def submit(self, task: Task) -> None:
        """Have it done soon by a thread of these; by the caller where there is none.

        Args:
            task: called once; what it raises is logged, so it should catch its own errors.
        """
        with self._lock:
            if self._threads and not self._has_ended:
                self._tasks.put(task)
                return
        if _is_ending:
            _stop_here_unless_expected()
        _run(task)

    def help(self, seconds: float) -> bool:
        """Do one task on the current thread, one of these, waiting for it so long at most.

        Returns:
            whether there was one; False also where the threads are to end.
        """
        try:
            task = self._tasks.get(timeout=seconds)
        except Empty:
            return False
        if task is None:
            self._tasks.put(None)
            return False
        _run(task)
        return True

    def is_mine(self) -> bool:
        """Whether the current thread is one of these."""
        return threading.current_thread() in self._threads

    def end(self, wait: bool = False) -> None:
        """Do what was submitted, then end the threads.

        Args:
            wait: return after that.
        """
        if self._process != os.getpid():
            return  # they did not survive the fork
        with self._lock:
            if not self._has_ended:
                self._has_ended = True
                _end(self._tasks, self._threads)
        for thread in self._threads if wait else ():
            if thread is not threading.current_thread():
                thread.join()


def _serve(tasks: SimpleQueue[Task | None]) -> None:
    """A thread's life: tasks until None."""
    _workers.add(threading.get_ident())
    while (task := tasks.get()) is not None:
        _run(task)
        del task  # an idle thread keeps nobody's sound in memory
    _workers.discard(threading.get_ident())


def _run(task: Task) -> None:
    try:
        task()
    except BaseException:  # whatever it is, this thread serves others too
        log.exception("a task in the background failed")


def _end(tasks: SimpleQueue[Task | None], threads: list[threading.Thread]) -> None:
    for _ in threads:
        tasks.put(None)


def native(call: Callable[..., Result], *args: object, **options: object) -> Result:
    """Call compiled code that is not safe from Python's end; on a worker's thread this is not needed.

    >>> native(max, 1, 2)
    2
    """
    me = threading.get_ident()
    with _lock:
        if not _is_ending:
            _inside.add(me)
    if _is_ending:
        _stop_here_unless_expected()
    try:
        return call(*args, **options)
    finally:
        _inside.discard(me)


def _stop_here_unless_expected() -> None:
    """While Python ends, let none go on but workers and the thread that ends it; the others are dropped here."""
    is_main = threading.current_thread() is threading.main_thread()
    if not is_main and threading.get_ident() not in _workers:
        waiting = threading.Lock()
        waiting.acquire()
        waiting.acquire()


def _finish() -> None:
    """Before Python ends: all tasks done, no thread inside of compiled code."""
    global _is_ending
    with _lock:
        _is_ending = True
    for workers in list(_pools):
        workers.end(wait=True)
    until = time.monotonic() + MAX_EXIT_WAIT
    while _inside - {threading.get_ident()} and time.monotonic() < until:
        time.sleep(0.001)
    for step in _last_steps:
        step()


def at_the_end(step: Callable[[], object]) -> None:
    """Have something done when Python ends and no task runs any more."""
    _last_steps.append(step)


def _forget_in_child() -> None:
    """A forked child has the forking thread alone."""
    global _lock
    _lock = threading.Lock()
    _inside.clear()
    _workers.clear()


atexit.register(_finish)
if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_forget_in_child)


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
        self._workers.submit(partial(self._do, task, outcome))
        return outcome.wait

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
