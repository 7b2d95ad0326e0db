"""Worker threads of a runtime, and how they end when Python exits.

A caller never computes. It submits a task and waits on a plain lock, so that Ctrl-C interrupts only the wait. Queues
and locks here are those written in C: `threading.Condition`, semaphores and futures are Python code, and a signal
handler that raises can leave them locked. Locks are reentrant because a signal handler may call the runtime too.

Python stops daemon threads when they next take the interpreter lock. Inside C++ or Rust code that aborts the process.
Therefore Python's exit waits for all submitted tasks (Ctrl-C drops those that have not started), and up to
MAX_EXIT_WAIT for native calls.
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
from contextlib import suppress
from queue import Empty, SimpleQueue
from typing import Generic, TypeVar, cast

from hbaf_edge.errors import BackendError

T = TypeVar("T")
Task = Callable[[], object]
log = logging.getLogger("hbaf_edge")
MAX_EXIT_WAIT = 10.0  # seconds that exit waits for native calls, and after Ctrl-C for each worker

_lock = threading.RLock()
_native_threads: set[int] = set()  # identifiers of the threads that are inside a native call
_worker_threads: set[int] = set()  # identifiers of the threads of all `Workers`
_pools: weakref.WeakSet[Workers] = weakref.WeakSet()
_exit_callbacks: list[Callable[[], object]] = []
_inline = threading.local()  # tasks that this thread runs itself because there is no worker
_is_exiting = _should_drop_tasks = False


class Outcome(Generic[T]):
    """The result or the error of a task that runs on another thread. It is set once."""

    def __init__(self) -> None:
        self._done = threading.Lock()
        self._done.acquire()
        self.is_done = False
        self._result: T | None = None
        self._error: BaseException | None = None

    def set(self, result: T) -> None:
        """Set the result and wake the threads that wait."""
        self._result, self.is_done = result, True
        self._done.release()

    def fail(self, error: BaseException) -> None:
        """Set the error and wake the threads that wait."""
        self._error, self.is_done = error, True
        self._done.release()

    def wait(self) -> T:
        """Wait for the result and return it, or raise the task's error."""
        with self._done:
            pass
        error, result = self._error, self._result
        if error is not None:
            try:
                raise error
            finally:
                del error, self  # the error's traceback would form a reference cycle with this frame
        return cast(T, result)


class _Shared:
    """State that `Workers` and its threads share. Threads refer only to this, so that `Workers` can be collected."""

    def __init__(self) -> None:
        self.tasks: SimpleQueue[Task | None] = SimpleQueue()  # None asks a thread to exit
        self.lock = threading.RLock()
        self.threads: list[threading.Thread] = []
        self.busy: set[int] = set()  # identifiers of the threads that run a task; a task may submit more tasks
        self.is_closed = False  # no task is accepted any more

    def stop(self) -> None:
        """Ask every thread to exit when no task is left."""
        for _ in self.threads:
            self.tasks.put(None)

    def can_exit(self) -> bool:
        """Return whether the calling thread may exit: no task is queued or running, so that none can follow."""
        with self.lock:
            if not self.is_closed and not self.busy:
                queued = []
                # Not `empty()` and `get()`: an idle thread may take the last task in between, and `get` would wait for
                # another one with the lock held.
                with suppress(Empty):
                    while True:
                        queued.append(self.tasks.get_nowait())
                self.is_closed = all(task is None for task in queued)
                for task in queued:
                    self.tasks.put(task)
            return self.is_closed


class Workers:
    """A fixed number of threads that start tasks in the order of submission.

    Args:
        count: number of threads.
        name: prefix of the threads' names.

    >>> workers, outcome = Workers(1, "example"), Outcome[str]()
    >>> workers.submit(lambda: outcome.set("done"))
    >>> outcome.wait()
    'done'
    """

    def __init__(self, count: int, name: str) -> None:
        self._process, self._shared = os.getpid(), _Shared()
        weakref.finalize(self, self._shared.stop).atexit = False
        _pools.add(self)
        try:
            for number in range(count):
                # Daemon threads: Python must not join them before `_shut_down` has asked them to exit.
                thread = threading.Thread(
                    target=_worker_loop, args=(self._shared,), name=f"{name}_{number}", daemon=True
                )
                self._shared.threads.append(thread)  # before `start`, so that an interrupted start is stopped too
                thread.start()
        except RuntimeError as error:  # the system has no more threads, or Python is exiting
            self._shared.threads.pop()
            log.warning("only %d of %d threads could be started (%s)", len(self._shared.threads), count, error)

    def submit(self, task: Task) -> None:
        """Run a task on a worker, or on the calling thread if no worker is left.

        Args:
            task: called once. It should catch its own errors; an error that it raises is logged.
        """
        _exit_thread_if_exiting()  # a thread that submits without end would delay Python's exit without end
        if not self.try_submit(task):
            _run_inline(task)

    def try_submit(self, task: Task) -> bool:
        """Submit a task if a worker is left. Return whether it was submitted."""
        shared = self._shared
        with shared.lock:
            is_accepted = bool(shared.threads) and not shared.is_closed
            if is_accepted:
                shared.tasks.put(task)
        return is_accepted

    def run_next(self, timeout: float, is_wanted: Callable[[Task], bool]) -> bool:
        """Run the next queued task on the calling worker thread.

        Args:
            timeout: seconds to wait for a task.
            is_wanted: whether to run a task. A task that is not wanted goes to the end of the queue.

        Returns:
            whether a task was run.
        """
        try:
            task = self._shared.tasks.get(timeout=timeout)
        except Empty:
            return False
        if task is None or not is_wanted(task):
            self._shared.tasks.put(task)
            return False
        _run(task)
        return True

    def check_may_wait(self) -> None:
        """Raise if the calling thread is running a task: it would wait for work that it has to do itself.

        Raises:
            BackendError: the calling thread is one of these workers, or runs tasks because there is no worker.
        """
        if self.is_worker_thread() or getattr(_inline, "queued", None) is not None:
            raise BackendError(
                "this call would wait for itself here, in a hook or a future's callback; use submit, or another thread"
            )

    def is_worker_thread(self) -> bool:
        """Whether the calling thread is one of these workers."""
        return threading.current_thread() in self._shared.threads

    def stop(self) -> None:
        """Let the threads exit after all submitted tasks and the tasks those submit. Return at once."""
        if self._process == os.getpid():  # threads do not survive a fork
            self._shared.stop()

    def join(self, timeout: float | None = None) -> None:
        """Wait until the threads have exited, at most `timeout` seconds for each."""
        for thread in self._shared.threads if self._process == os.getpid() else ():
            if thread.ident is not None and thread is not threading.current_thread():
                thread.join(timeout)


def _worker_loop(shared: _Shared) -> None:
    """Run tasks until the thread may exit."""
    thread_id = threading.get_ident()
    _worker_threads.add(thread_id)
    while True:
        task = shared.tasks.get()
        if task is None:
            if shared.can_exit():
                break
            time.sleep(0.001)
            shared.tasks.put(None)
        elif not _should_drop_tasks:
            shared.busy.add(thread_id)
            _run(task)
            shared.busy.discard(thread_id)
        del task  # an idle thread must not keep a caller's audio in memory
    _worker_threads.discard(thread_id)


def _run(task: Task) -> None:
    try:
        task()
    except BaseException:  # including SystemExit: the thread serves other callers too
        log.exception("a background task failed")


def _run_inline(task: Task) -> None:
    """Run a task, and the tasks that it submits, one after another on the calling thread."""
    queued: deque[Task] | None = getattr(_inline, "queued", None)
    if queued is not None:
        queued.append(task)
        return
    queued = _inline.queued = deque([task])
    try:
        while queued:
            _run(queued.popleft())
    finally:
        _inline.queued = None


def call_native(function: Callable[..., T], *args: object, **options: object) -> T:
    """Call compiled code that would abort the process if Python exited meanwhile. Worker threads do not need this.

    >>> call_native(max, 1, 2)
    2
    """
    thread_id = threading.get_ident()
    with _lock:
        is_nested = thread_id in _native_threads
        if not _is_exiting:
            _native_threads.add(thread_id)
    if not is_nested:
        _exit_thread_if_exiting()
    try:
        return function(*args, **options)
    finally:
        if not is_nested:
            _native_threads.discard(thread_id)


def _exit_thread_if_exiting() -> None:
    """While Python exits, end the calling thread unless it is a worker or the main thread.

    Python is about to stop it anyway. SystemExit ends it without a message and releases its locks.
    """
    if not _is_exiting or threading.get_ident() in _worker_threads:
        return
    if threading.current_thread() is not threading.main_thread():
        raise SystemExit


def run_at_exit(callback: Callable[[], object]) -> None:
    """Register a function that is called when Python exits, after the last task."""
    _exit_callbacks.append(callback)


def _shut_down() -> None:
    """Complete all tasks and native calls before Python exits. Ctrl-C drops the tasks that have not started."""
    global _is_exiting, _should_drop_tasks
    with _lock:
        _is_exiting = True
    pools = list(_pools)
    for workers in pools:
        workers.stop()
    try:
        for workers in pools:
            workers.join()
    except BaseException:
        _should_drop_tasks = True
        for workers in pools:
            workers.join(MAX_EXIT_WAIT)
        raise
    finally:
        deadline = time.monotonic() + MAX_EXIT_WAIT
        while _native_threads - {threading.get_ident()} and time.monotonic() < deadline:
            time.sleep(0.001)
        for callback in _exit_callbacks:
            callback()


def _reset_in_child() -> None:
    """Forget other threads after a fork: the child has only the thread that forked."""
    global _lock
    _lock = threading.RLock()
    _native_threads.clear()
    _worker_threads.clear()


atexit.register(_shut_down)
if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_reset_in_child)
