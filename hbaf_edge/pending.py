"""`PendingTurn`: a turn whose result goes to a future, for `HBAFRuntime.submit` and `apredict`."""

from __future__ import annotations

import contextlib
import threading
import weakref
from collections.abc import Callable, Sequence
from concurrent.futures import Future

from hbaf_edge.calls import Call, TurnResult, TurnTarget
from hbaf_edge.engine import Engine
from hbaf_edge.errors import BackendError
from hbaf_edge.features import Features
from hbaf_edge.prediction import Prediction
from hbaf_edge.stats import Stats


class PendingTurn:
    """One turn and the future of its prediction.

    Args:
        engine: the engine that computes it.
        target: its conversation and speaker.
        get_features: decodes the caller's input; called once.
        on_commit: called on a worker with the result after the commit and before the future has it.
        stats: counts a turn that fails after `submit` has returned.

    Attributes:
        future: the prediction. Cancelling it before the commit takes the turn back.
    """

    def __init__(
        self, engine: Engine, target: TurnTarget, get_features: Callable[[], Sequence[Features]],
        on_commit: Callable[[list[TurnResult]], object], stats: Stats,
    ) -> None:  # fmt: skip
        self.future: Future[Prediction] = Future()
        self._is_claimed = False
        self._get_features, self._stats = get_features, stats
        self._call = Call(engine, [target], on_commit, self._resolve, self._claim_future)

    def submit(self) -> Future[Prediction]:
        """Decode on this thread, submit the turn, and return the future.

        Raises:
            InputError: the turn's input cannot be used.
            BackendError: too many calls wait.
        """
        call = weakref.ref(self._call)  # a future that a caller keeps must not keep the turn's audio
        self.future.add_done_callback(lambda future: _cancel_call_if_cancelled(call(), future))
        self._call.submit(self._get_features)
        return self.future

    def start(self, in_thread: bool) -> None:
        """Queue the turn at once, then decode it. Errors go to the future.

        Args:
            in_thread: decode on a new thread, so that the caller's event loop goes on. A thread of asyncio's pool might
                never become free if all of them wait for earlier turns.
        """
        try:
            self._call.enqueue()
            if in_thread:
                threading.Thread(target=self._submit_and_count, name="hbaf_edge_decode", daemon=True).start()
            else:
                self._submit_and_count()
        except BaseException as error:
            self._call.cancel()
            if isinstance(error, RuntimeError) and not isinstance(error, BackendError):  # no thread could be started
                raise BackendError(f"no thread can be started to decode this turn ({error}); use predict") from error
            raise

    def _submit_and_count(self) -> None:
        """Submit the turn and count an error, which the future has too."""
        with contextlib.suppress(Exception):
            try:
                self._call.submit(self._get_features)
            except Exception:
                self._stats.add_failure()
                raise

    def _claim_future(self) -> bool:
        """Make the future running, so that it cannot be cancelled any more; False if it was. May be called once."""
        self._is_claimed = True
        return self.future.set_running_or_notify_cancel()

    def _resolve(self, call: Call) -> None:
        """Copy the call's outcome to the future. Runs on a worker."""
        future = self.future
        if not (future.running() if self._is_claimed else self._claim_future()):
            return
        try:
            (result,) = call.outcome.wait()
        except BaseException as error:
            if call.was_submitted:  # otherwise whoever submitted it has counted the error
                self._stats.add_failure()
            future.set_exception(error)
        else:
            future.set_result(result.prediction)


def _cancel_call_if_cancelled(call: Call | None, future: Future[Prediction]) -> None:
    if call is not None and future.cancelled():
        call.cancel()
