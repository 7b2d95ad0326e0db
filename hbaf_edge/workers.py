"""Threads that do a runtime's work, and how they end with the program.

A caller never computes: it hands a task over and waits on a plain lock, so that Ctrl-C or a signal's timeout can break
off the wait and nothing else. Queue and locks are the ones written in C: those of `threading.Condition`, semaphores
and futures are Python code, which a signal can leave with the lock taken. Locks may be taken again by the thread that
holds them, since a signal's handler may call the runtime too.

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
from collections import deque
from collections.abc import Callable
from queue import Empty, SimpleQueue
from typing import Generic, TypeVar, cast

from hbaf_edge.errors import BackendError

Result = TypeVar("Result")
Task = Callable[[], object]
log = logging.getLogger("hbaf_edge")
MAX_EXIT_WAIT = 10.0  # seconds that Python's end waits for other threads' calls of compiled code

_lock = threading.RLock()
_inside: set[int] = set()  # threads inside of compiled code, by their numbers
_worker_threads: set[int] = set()  # of any `Workers`, which are ended in order
_pools: weakref.WeakSet[Workers] = weakref.WeakSet()
_last_steps: list[Callable[[], object]] = []
_here = threading.local()  # tasks that this thread does itself, where there is no worker
_is_ending = _is_dropping = False


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
        error, result = self._error, self._result
        if error is not None:
            try:
                raise error
            finally:
                del error, self  # an error's traceback must not keep itself alive
        return cast(Result, result)


class _Shared:
    """What threads and their `Workers` both know: the threads must not keep the latter alive."""

    def __init__(self) -> None:
        self.tasks: SimpleQueue[Task | None] = SimpleQueue()
        self.lock = threading.RLock()
        self.threads: list[threading.Thread] = []
        self.busy: set[int] = set()  # threads that do a task, which may submit more
        self.has_ended = False  # nothing is taken any more

    def end(self) -> None:
        """Have the threads end when nothing is left to do."""
        for _ in self.threads:
            self.tasks.put(None)

    def is_over(self) -> bool:
        """Whether the thread that asks may end: nobody is busy and nothing is waiting, now or later."""
        with self.lock:
            if not self.has_ended and not self.busy:
                rest = []
                while not self.tasks.empty():
                    rest.append(self.tasks.get())
                self.has_ended = all(task is None for task in rest)
                for task in rest:
                    self.tasks.put(task)
            return self.has_ended


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
        self._process, self._shared = os.getpid(), _Shared()
        weakref.finalize(self, self._shared.end).atexit = False
        _pools.add(self)
        try:
            for number in range(count):
                # Daemon: Python must not wait for it to end by itself, `_finish` ends it in order.
                thread = threading.Thread(target=_serve, args=(self._shared,), name=f"{name}_{number}", daemon=True)
                self._shared.threads.append(thread)  # first: should the start be broken off, it is ended all the same
                thread.start()
        except RuntimeError as error:  # the system gives no more, or Python is ending
            self._shared.threads.pop()
            log.warning("only %d of %d threads could be started (%s)", len(self._shared.threads), count, error)

    def submit(self, task: Task) -> None:
        """Have it done soon by a thread of these; by the caller where there is none any more.

        Args:
            task: called once; what it raises is logged, so it should catch its own errors.
        """
        _end_thread_with_python()  # else one that submits for ever would be waited for, for ever
        if not self.offer(task):
            _run_here(task)

    def offer(self, task: Task) -> bool:
        """`submit`, if there is a thread to do it; whether there is."""
        shared = self._shared
        with shared.lock:
            is_taken = bool(shared.threads) and not shared.has_ended
            if is_taken:
                shared.tasks.put(task)
        return is_taken

    def help(self, seconds: float, is_wanted: Callable[[Task], bool]) -> bool:
        """Do one task on the current thread, one of these, waiting for it so long at most.

        Returns:
            whether there was one that is wanted; another one is left to other threads.
        """
        try:
            task = self._shared.tasks.get(timeout=seconds)
        except Empty:
            return False
        if task is None or not is_wanted(task):
            self._shared.tasks.put(task)
            return False
        _run(task)
        return True

    def check_may_wait(self) -> None:
        """Refuse a thread that what it waits for would be computed on.

        Raises:
            BackendError: it is one of these.
        """
        if self.is_mine():
            raise BackendError(
                "this call would wait for itself here, in a hook or a future's callback; use submit, or another thread"
            )

    def is_mine(self) -> bool:
        """Whether the current thread is one of these."""
        return threading.current_thread() in self._shared.threads

    def end(self) -> None:
        """Do what was submitted and all that follows from it, then end the threads; returns at once."""
        if self._process == os.getpid():  # threads do not survive a fork
            self._shared.end()

    def join(self, seconds: float | None = None) -> None:
        """Wait until the threads have ended, so long at most for each."""
        for thread in self._shared.threads if self._process == os.getpid() else ():
            if thread.ident is not None and thread is not threading.current_thread():
                thread.join(seconds)


def _serve(shared: _Shared) -> None:
    """A thread's life: tasks until it may end."""
    me = threading.get_ident()
    _worker_threads.add(me)
    while True:
        task = shared.tasks.get()
        if task is None:
            if shared.is_over():
                break
            time.sleep(0.001)
            shared.tasks.put(None)
        elif not _is_dropping:
            shared.busy.add(me)
            _run(task)
            shared.busy.discard(me)
        del task  # an idle thread keeps nobody's sound in memory
    _worker_threads.discard(me)


def _run(task: Task) -> None:
    try:
        task()
    except BaseException:  # whatever it is, this thread serves others too
        log.exception("a task in the background failed")


def _run_here(task: Task) -> None:
    """Do a task, and those that it submits, one after another on the current thread."""
    waiting: deque[Task] | None = getattr(_here, "waiting", None)
    if waiting is not None:
        waiting.append(task)
        return
    waiting = _here.waiting = deque([task])
    try:
        while waiting:
            _run(waiting.popleft())
    finally:
        _here.waiting = None


def native(call: Callable[..., Result], *args: object, **options: object) -> Result:
    """Call compiled code that is not safe from Python's end; on a worker's thread this is not needed.

    >>> native(max, 1, 2)
    2
    """
    me = threading.get_ident()
    with _lock:
        was_inside = me in _inside
        if not _is_ending:
            _inside.add(me)
    if not was_inside:
        _end_thread_with_python()
    try:
        return call(*args, **options)
    finally:
        if not was_inside:
            _inside.discard(me)


def _end_thread_with_python() -> None:
    """While Python ends, let none go on but workers and the thread that ends it.

    Others are threads that Python is about to drop; SystemExit ends them quietly and lets go of what they hold.
    """
    if not _is_ending or threading.get_ident() in _worker_threads:
        return
    if threading.current_thread() is not threading.main_thread():
        raise SystemExit


def at_the_end(step: Callable[[], object]) -> None:
    """Have something done when Python ends and no task runs any more."""
    _last_steps.append(step)


def _finish() -> None:
    """Before Python ends: all tasks done, no thread inside of compiled code. Ctrl-C drops what has not begun."""
    global _is_ending, _is_dropping
    with _lock:
        _is_ending = True
    pools = list(_pools)
    for workers in pools:
        workers.end()
    try:
        for workers in pools:
            workers.join()
    except BaseException:
        _is_dropping = True
        for workers in pools:
            workers.join(MAX_EXIT_WAIT)
        raise
    finally:
        until = time.monotonic() + MAX_EXIT_WAIT
        while _inside - {threading.get_ident()} and time.monotonic() < until:
            time.sleep(0.001)
        for step in _last_steps:
            step()


def _forget_in_child() -> None:
    """A forked child has the forking thread alone."""
    global _lock
    _lock = threading.RLock()
    _inside.clear()
    _worker_threads.clear()


atexit.register(_finish)
if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_forget_in_child)
