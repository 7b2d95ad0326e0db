"""`Call`: turns on their way from a caller to the engine, in the order of the calls of each conversation.

    call = Call(engine, [target])
    results = call.run(lambda: [features])    # decoded on the caller's thread, computed and committed on a worker

Every conversation has a queue of calls. A call is computed when it is the first in the queue of each of its
conversations. When it ends, for whatever reason, the next calls start.

Ctrl-C can interrupt a waiting caller at any moment. Therefore callers only set flags and submit tasks; every step that
must be completed runs on a worker.
"""

from __future__ import annotations

import logging
import os
import threading
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from typing import TYPE_CHECKING, Any, NamedTuple

from hbaf_edge.conversation import Conversation, Turn
from hbaf_edge.errors import BackendError
from hbaf_edge.features import Features
from hbaf_edge.prediction import Prediction
from hbaf_edge.workers import Outcome

if TYPE_CHECKING:
    from hbaf_edge.engine import Engine

CANCELLED = "the wait for this turn was interrupted; it was not committed"
log = logging.getLogger("hbaf_edge")
_queues_lock = threading.RLock()  # one lock for all queues: two calls are in the same order in every queue they share


def _reset_in_child() -> None:
    """Replace the lock after a fork: another thread may have locked it."""
    global _queues_lock
    _queues_lock = threading.RLock()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_reset_in_child)


class TurnTarget(NamedTuple):
    """The conversation that a turn belongs to, and its speaker.

    Attributes:
        conversation: the turn's conversation.
        speaker: normalised name, or None if unknown.
        revised: the committed turn that this turn replaces, which must be the last one; None for a new turn.
    """

    conversation: Conversation
    speaker: str | None
    revised: Turn | None = None


class TurnResult(NamedTuple):
    """A committed turn.

    Attributes:
        prediction: the prediction for the caller.
        turn: the turn as the conversation stores it.
        audio_states: the encoded audio; see `hbaf_edge.backends.base.Result`.
    """

    prediction: Prediction
    turn: Turn
    audio_states: Any


class Call:
    """Turns of one or several conversations that are computed together; all of them are committed, or none.

    Args:
        engine: the engine that computes them.
        targets: one for each turn, of different conversations.
        on_commit: called on a worker with the results after the commit and before the caller has them.
        on_end: called on a worker with this call after `outcome` is set.
        may_commit: called on a worker right before the commit; if it returns False, the call is cancelled.
        audio_states: encoded audio of a single turn, if it was encoded before (hbaf_edge/backends/base.py).

    Attributes:
        start_time: when the call was made, `time.perf_counter` seconds.
        is_cancelled: the caller no longer waits; the turns are not committed unless they already are.
        was_submitted: the features were computed and handed to the engine.
        outcome: the results, one for each turn.
    """

    def __init__(
        self, engine: Engine, targets: Sequence[TurnTarget],
        on_commit: Callable[[list[TurnResult]], object] | None = None,
        on_end: Callable[[Call], object] | None = None, may_commit: Callable[[], bool] | None = None,
        audio_states: Any = None,
    ) -> None:  # fmt: skip
        self.engine, self.targets = engine, targets
        self._on_commit, self._on_end, self._may_commit = on_commit, on_end, may_commit
        self._error: BaseException | None = None
        self.start_time = time.perf_counter()
        self.features: Sequence[Features] | None = None
        self.audio_states = audio_states
        self.feature_ms = 0.0
        self.is_cancelled = self.is_running = self.was_submitted = self._is_queued = self._is_committing = False
        self.outcome = Outcome[list[TurnResult]]()

    def run(self, get_features: Callable[[], Sequence[Features]]) -> list[TurnResult]:
        """Queue the call, compute its features on this thread, and wait for the results.

        Args:
            get_features: decodes the caller's input and returns the features of each turn.

        Raises:
            BackendError: too many calls wait already, or the calling thread is a worker.
        """
        try:
            self.engine.workers.check_may_wait()
            self.submit(get_features)
            return self.outcome.wait()
        except BaseException:
            self.is_cancelled = True  # set first: the next line can be interrupted too
            self.engine.workers.submit(self.schedule)
            raise

    def submit(self, get_features: Callable[[], Sequence[Features]]) -> None:
        """Queue the call and compute its features, like `run`, but do not wait for the results."""
        try:
            if not self._is_queued:
                self.enqueue()
            features = get_features()
            self.engine.admit(self)
            self.feature_ms = (time.perf_counter() - self.start_time) * 1e3
            self.features, self.was_submitted = features, True
            self.engine.workers.submit(self.schedule)
        except BaseException as error:
            self.is_cancelled, self._error = True, error
            self.engine.workers.submit(self.schedule)
            raise

    def enqueue(self) -> None:
        """Append the call to the queue of each of its conversations. `submit` does it if the caller did not."""
        with _queues_lock:
            self._is_queued = True
            for target in self.targets:
                target.conversation.queue.append(self)

    def cancel(self) -> None:
        """Cancel the call because its caller no longer waits. Turns that are committed stay committed."""
        self.is_cancelled = True
        self.engine.workers.submit(self.schedule)

    def schedule(self) -> None:
        """Start the calls that are now first in their queues. Runs on a worker whenever this call starts or ends.

        Example: A waits in conversation 1, B in conversations 1 and 2 behind A. When A ends, B is the first in both
        queues, so A's `schedule` submits B.
        """
        with _queues_lock:
            ends_here = self.is_cancelled and not self.is_running and not self.outcome.is_done
            if ends_here:
                self.outcome.fail(self._error or BackendError(CANCELLED))
                for target in self.targets:
                    with suppress(ValueError):
                        target.conversation.queue.remove(self)
            firsts = {id(call): call for t in self.targets if (call := _first_call(t.conversation)) is not None}
            ready = [call for call in firsts.values() if call.is_ready()]
            for call in ready:
                call.is_running = True
        if self.is_finished():
            self.engine.dismiss(self)
        for call in ready:
            if call is not self:
                call.engine.workers.submit(call.compute)
        if ends_here:
            self._release(self._on_end)
        if self in ready:
            self.compute()

    def compute(self) -> None:
        """Compute the call on a worker. It must be the first in its queues."""
        self.engine.compute(self)

    def is_ready(self) -> bool:
        """Whether the call can be computed and is not being computed yet."""
        is_first = all(_first_call(target.conversation) is self for target in self.targets)
        return self.features is not None and not self.is_running and not self.is_cancelled and is_first

    def is_finished(self) -> bool:
        """Whether the call no longer blocks the calls behind it."""
        return self.outcome.is_done or (self.is_cancelled and not self.is_running)

    def begin_commit(self) -> bool:
        """Return whether the turns may be committed; from then on a future cannot be cancelled.

        The caller has locked the call's conversations.
        """
        if not self._is_committing and not self.is_cancelled:
            self._is_committing = self._may_commit is None or self._may_commit()
            self.is_cancelled = not self._is_committing
        return self._is_committing and not self.is_cancelled

    def succeed(self, results: list[TurnResult]) -> None:
        """Set the results of a committed call."""
        _run_callback(self._on_commit, results)
        self.outcome.set(results)
        self._end()

    def fail(self, error: BaseException) -> None:
        """Set the error of a call of which nothing was committed."""
        self.outcome.fail(error)
        self._end()

    def _end(self) -> None:
        self.schedule()  # before the callback, which may take long
        self._release(self._on_end)

    def _release(self, on_end: Callable[[Call], object] | None) -> None:
        """Drop references to audio and callbacks, then report the end of the call."""
        self.features = self.audio_states = None
        self._on_commit = self._on_end = self._may_commit = self._error = None
        _run_callback(on_end, self)


def _run_callback(callback: Callable[[Any], object] | None, argument: Any) -> None:
    """Run a hook or callback. It is user code: an error or SystemExit in it must not look like an error of the turn."""
    try:
        if callback is not None:
            callback(argument)
    except BaseException:
        with suppress(Exception):  # the logger itself may be what failed
            log.exception("a hook or callback raised; the turn is committed all the same")


def _first_call(conversation: Conversation) -> Call | None:
    """Return the first unfinished call in a conversation's queue; remove the finished ones before it."""
    queue = conversation.queue
    while queue and queue[0].is_finished():
        queue.popleft()
    first: Call | None = queue[0] if queue else None
    return first
