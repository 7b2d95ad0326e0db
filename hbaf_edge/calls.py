"""`Call`: turns on their way from a caller to the engine, in the order of the calls of each conversation.

    call = Call(engine, [place])
    answers = call.run(lambda: [features])      decoded on the caller's own thread, computed and committed on a worker

A call is computed when it is the first in line in each of its conversations; whatever ends it early lets the next one
go on. Whoever waits may be broken off at any moment, by Ctrl-C above all: so a caller only sets flags and hands tasks
to workers, and whatever has to happen as a whole happens on a worker.
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

BROKEN_OFF = "the wait for this turn was broken off; it was not committed"
log = logging.getLogger("hbaf_edge")
_order = threading.RLock()  # of all lines together, so that calls stand in the same order in each of their lines


def _renew_in_child() -> None:
    """A forked child must not inherit a lock that another thread held."""
    global _order
    _order = threading.RLock()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_renew_in_child)


class Place(NamedTuple):
    """Whose turn it is, and in which conversation.

    Attributes:
        conversation: that the turn belongs to.
        speaker: normalised, or None.
        amended: the committed turn that it replaces, which must be the last one; None for a new turn.
    """

    conversation: Conversation
    speaker: str | None
    amended: Turn | None = None


class Answer(NamedTuple):
    """A committed turn.

    Attributes:
        prediction: for the caller.
        turn: as the conversation keeps it.
        audio_states: see `hbaf_edge.backends.base.Result`.
    """

    prediction: Prediction
    turn: Turn
    audio_states: Any


class Call:
    """Turns of one or several conversations that are computed together and committed all or none.

    Args:
        engine: that computes them.
        places: one for each turn, of different conversations.
        committed: called on a worker with the answers after they are committed, before the caller has them.
        ended: called on a worker after `outcome` is there, whatever it is.
        claimed: asked on a worker right before the turns are committed whether they may be.
        audio_states: of a single turn whose audio was encoded before (hbaf_edge/backends/base.py).

    Attributes:
        begun: when, by `time.perf_counter`.
        is_abandoned: nobody waits any more; what is not committed yet will not be.
        was_started: its turns were decoded and handed over.
        outcome: its answers, one for each turn.
    """

    def __init__(
        self, engine: Engine, places: Sequence[Place], committed: Callable[[list[Answer]], object] | None = None,
        ended: Callable[[Call], object] | None = None, claimed: Callable[[], bool] | None = None,
        audio_states: Any = None,
    ) -> None:  # fmt: skip
        self.engine, self.places = engine, places
        self._when_committed, self._when_ended, self._when_claimed = committed, ended, claimed
        self._error: BaseException | None = None
        self.begun = time.perf_counter()
        self.features: Sequence[Features] | None = None
        self.audio_states = audio_states
        self.feature_ms = 0.0
        self.is_abandoned = self.is_running = self.was_started = self._is_lined_up = self._is_claimed = False
        self.outcome = Outcome[list[Answer]]()

    def run(self, prepare: Callable[[], Sequence[Features]]) -> list[Answer]:
        """From input to answers.

        Args:
            prepare: decodes what the caller gave: features of each turn.

        Raises:
            BackendError: too many calls wait already, or this thread is one that answers are computed on.
        """
        try:
            self.engine.workers.check_may_wait()
            self.submit(prepare)
            return self.outcome.wait()
        except BaseException:
            self.is_abandoned = True  # at once: what follows may be broken off too
            self.engine.workers.submit(self.advance)
            raise

    def submit(self, prepare: Callable[[], Sequence[Features]]) -> None:
        """`run` without waiting for the answers."""
        try:
            if not self._is_lined_up:
                self.line_up()
            features = prepare()
            self.engine.admit(self)
            self.feature_ms = (time.perf_counter() - self.begun) * 1e3
            self.features, self.was_started = features, True
            self.engine.workers.submit(self.advance)
        except BaseException as error:
            self.is_abandoned, self._error = True, error
            self.engine.workers.submit(self.advance)
            raise

    def line_up(self) -> None:
        """Take its place behind the calls that came before; `submit` does it where this was not called."""
        with _order:
            self._is_lined_up = True
            for place in self.places:
                place.conversation.line.append(self)

    def abandon(self) -> None:
        """Nobody waits for it any more."""
        self.is_abandoned = True
        self.engine.workers.submit(self.advance)

    def advance(self) -> None:
        """Let the calls go on that are first in their lines now; on a worker, when this call starts or ends."""
        with _order:
            is_broken = self.is_abandoned and not self.is_running and not self.outcome.is_done
            if is_broken:
                self.outcome.fail(self._error or BackendError(BROKEN_OFF))
                for place in self.places:
                    with suppress(ValueError):
                        place.conversation.line.remove(self)
            heads = {id(head): head for p in self.places if (head := _head(p.conversation)) is not None}
            ready = [call for call in heads.values() if call.is_ready()]
            for call in ready:
                call.is_running = True
        if self.is_over():
            self.engine.dismiss(self)
        for call in ready:
            if call is not self:
                call.engine.workers.submit(call.compute)
        if is_broken:
            self._forget(self._when_ended)
        if self in ready:
            self.compute()

    def compute(self) -> None:
        """On a worker, when it is first in its lines."""
        self.engine.compute(self)

    def is_ready(self) -> bool:
        """Whether it can be computed and is not yet."""
        is_first = all(_head(place.conversation) is self for place in self.places)
        return self.features is not None and not self.is_running and not self.is_abandoned and is_first

    def is_over(self) -> bool:
        """Whether it holds up nobody."""
        return self.outcome.is_done or (self.is_abandoned and not self.is_running)

    def claim(self) -> bool:
        """Whether it may be committed; from then on a future cannot be cancelled. Its conversations are locked."""
        if not self._is_claimed and not self.is_abandoned:
            self._is_claimed = self._when_claimed is None or self._when_claimed()
            self.is_abandoned = not self._is_claimed
        return self._is_claimed and not self.is_abandoned

    def succeed(self, answers: list[Answer]) -> None:
        """It was committed."""
        _safely(self._when_committed, answers)
        self.outcome.set(answers)
        self._end()

    def fail(self, error: BaseException) -> None:
        """Nothing of it was committed."""
        self.outcome.fail(error)
        self._end()

    def _end(self) -> None:
        self.advance()  # first: a callback may take its time
        self._forget(self._when_ended)

    def _forget(self, ended: Callable[[Call], object] | None) -> None:
        """Tell that it has ended, and let go of what nobody needs any more."""
        self.features = self.audio_states = None
        self._when_committed = self._when_ended = self._when_claimed = self._error = None
        _safely(ended, self)


def _safely(tell: Callable[[Any], object] | None, what: Any) -> None:
    """Hooks and callbacks are somebody else's code: nothing they raise, an exit included, may look like our failure."""
    try:
        if tell is not None:
            tell(what)
    except BaseException:
        with suppress(Exception):  # it may have been the log itself
            log.exception("a hook or callback raised; the turn is committed all the same")


def _head(conversation: Conversation) -> Call | None:
    """The first call in a conversation's line; those that are over leave it."""
    line = conversation.line
    while line and line[0].is_over():
        line.popleft()
    head: Call | None = line[0] if line else None
    return head
