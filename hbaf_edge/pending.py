"""`PendingTurn`: a turn whose answer goes to a future, for `HBAFRuntime.submit` and `apredict`."""

from __future__ import annotations

import contextlib
import threading
import weakref
from collections.abc import Callable, Sequence
from concurrent.futures import Future

from hbaf_edge.calls import Answer, Call, Place
from hbaf_edge.engine import Engine
from hbaf_edge.features import Features
from hbaf_edge.prediction import Prediction
from hbaf_edge.stats import Stats


class PendingTurn:
    """One turn and the future of its result.

    Args:
        engine: that computes it.
        place: its conversation and speaker.
        decode: its features; called once.
        committed: called on a worker with the answer after the turn is committed, before the future has it.
        stats: where a turn is counted that fails after `submit` returned.

    Attributes:
        future: of the result. Cancelling it before the turn is committed takes the turn back.
    """

    def __init__(
        self, engine: Engine, place: Place, decode: Callable[[], Sequence[Features]],
        committed: Callable[[list[Answer]], object], stats: Stats,
    ) -> None:  # fmt: skip
        self.future: Future[Prediction] = Future()
        self._decode, self._stats = decode, stats
        self._call = Call(engine, [place], committed, self._resolve, self.future.set_running_or_notify_cancel)

    def submit(self) -> Future[Prediction]:
        """Decode on this thread, queue the turn, and return the future.

        Raises:
            InputError: the turn cannot be used.
            BackendError: too many calls wait.
        """
        call = weakref.ref(self._call)  # a future that is kept must not keep the turn's audio
        self.future.add_done_callback(lambda future: _abandon_if_cancelled(call(), future))
        self._call.submit(self._decode)
        return self.future

    def start(self, on_a_thread: bool) -> None:
        """Take the place in line now, then decode; errors go to the future.

        Args:
            on_a_thread: decode on a thread of its own, so that the caller's event loop goes on. A thread of asyncio's
                pool might never be free, where all of them wait for earlier turns.
        """
        try:
            self._call.line_up()
            if on_a_thread:
                threading.Thread(target=self._submit_quietly, name="hbaf_edge_decode", daemon=True).start()
            else:
                self._submit_quietly()
        except BaseException:
            self._call.abandon()
            raise

    def _submit_quietly(self) -> None:
        """The future has the error; here it is only counted."""
        with contextlib.suppress(Exception):
            try:
                self._call.submit(self._decode)
            except Exception:
                self._stats.failed()
                raise

    def _resolve(self, call: Call) -> None:
        """Hand the call's outcome to the future; on a worker."""
        future = self.future
        if not future.running() and not future.set_running_or_notify_cancel():
            return
        try:
            (answer,) = call.outcome.wait()
        except BaseException as error:
            if call.was_started:  # else `submit` or `_submit_quietly` has counted it
                self._stats.failed()
            future.set_exception(error)
        else:
            future.set_result(answer.prediction)


def _abandon_if_cancelled(call: Call | None, future: Future[Prediction]) -> None:
    if call is not None and future.cancelled():
        call.abandon()
