"""`Engine`: every turn is computed here, whether it comes from predict, a batch, a live turn, asyncio or a server.

Calls (hbaf_edge/calls.py) bring turns that are decoded. Workers compute them against their conversations as they are;
what was computed is committed only if the conversations still are so, else it is computed again.
"""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from typing import Any, TypeVar

import numpy as np

from hbaf_edge.backends.base import Backend, Request, Result
from hbaf_edge.batching import Batcher
from hbaf_edge.bundle import Bundle
from hbaf_edge.calls import BROKEN_OFF, Answer, Call, Place
from hbaf_edge.conversation import Turn
from hbaf_edge.errors import BackendError, BundleError, HBAFError
from hbaf_edge.features import Features, Tokeniser
from hbaf_edge.machine import available_cpus
from hbaf_edge.prediction import Prediction, softmax
from hbaf_edge.workers import Outcome, Task, Workers

Returned = TypeVar("Returned")
MAX_ATTEMPTS = 100  # of a turn whose conversation changes while it is computed
CHANGING = "the conversation was reset or revised again and again while this turn was computed; use one thread for that"


class Engine:
    """A bundle's graphs, tokeniser, labels and temperatures, and the threads that compute.

    Args:
        bundle: verified.
        backend: that runs its graphs.
        min_confidence: below it a label is None.
        clean_text: whether transcripts are cleaned (hbaf_edge/text.py).
        max_waiting: turns that may wait to be computed.
        max_batch_size: turns of different conversations that are computed together; 1 for none.
        max_wait_ms: milliseconds that the first of them waits for others.
    """

    def __init__(
        self, bundle: Bundle, backend: Backend, min_confidence: float = 0.0, clean_text: bool = True,
        max_waiting: int = 256, max_batch_size: int = 1, max_wait_ms: float = 5.0,
    ) -> None:  # fmt: skip
        self.backend, self.labels = backend, bundle.labels
        self._temperatures = bundle.manifest["temperatures"]
        self._min_confidence = min_confidence
        self._max_waiting = max_waiting
        self.process, self._lock = os.getpid(), threading.RLock()
        self._waiting: set[Call] = set()
        try:
            self.tokeniser = Tokeniser(bundle.files["tokenizer.json"], clean_text)
        except Exception as error:  # tokenizers raises bare Exception
            raise BundleError(f"{bundle.path}: tokenizer.json cannot be read: {error}") from None
        self.workers = Workers(available_cpus(), "hbaf_edge")
        self._batcher = (
            Batcher[Call](self.workers, max_batch_size, max_wait_ms / 1e3, _brings_one) if max_batch_size > 1 else None
        )

    def check_process(self) -> None:
        """Raise instead of hanging when used after fork: threads do not survive it."""
        if os.getpid() != self.process:
            raise BackendError(
                f"this runtime was made in process {self.process} and its threads did not survive the fork; make an "
                "HBAFRuntime in each process, or start processes with multiprocessing's 'spawn'"
            )

    def run(self, task: Callable[[], Returned]) -> Returned:
        """Do something on a worker and wait for it, so that what breaks off the wait does not break off the task.

        Raises:
            BackendError: the current thread is a worker itself; or what the task raises.
        """
        self.workers.check_may_wait()
        outcome = Outcome[Returned]()

        def work() -> None:
            try:
                outcome.set(task())
            except BaseException as error:
                outcome.fail(error)

        self.workers.submit(work)
        return outcome.wait()

    def admit(self, call: Call) -> None:
        """Let a call wait to be computed.

        Raises:
            BackendError: too many wait.
        """
        with self._lock:
            if len(self._waiting) >= self._max_waiting:
                raise BackendError(
                    f"{len(self._waiting)} calls wait to be computed, more than this machine keeps up with; send fewer "
                    "at once, or raise max_waiting"
                )
            self._waiting.add(call)

    def dismiss(self, call: Call) -> None:
        """A call waits no more."""
        with self._lock:
            self._waiting.discard(call)

    def compute(self, call: Call) -> None:
        """Compute a call on this thread, a worker's, by itself or together with others that arrive meanwhile."""
        if self._batcher is None or len(call.places) > 1:
            self._compute([call])
        elif (calls := self._batcher.gather(call, call.compute)) is not None:
            self._compute(calls)

    def _compute(self, calls: list[Call]) -> None:
        """Calls together; where that fails each is tried by itself, so that an error is its own."""
        for call in calls:
            self.dismiss(call)
        try:
            answers = self._commit(calls)
        except BaseException as error:  # the caller's, whatever it is
            if len(calls) == 1:
                calls[0].fail(_as_ours(error))
                return
            for call in calls:
                self._compute([call])
            return
        for call, mine in zip(calls, answers):
            if mine is None:
                call.fail(BackendError(BROKEN_OFF))
            else:
                call.succeed(mine)

    def _commit(self, calls: list[Call]) -> list[list[Answer] | None]:
        """Compute calls until none of their conversations has changed meanwhile, and commit.

        Returns:
            answers of each; None of a call that was abandoned, which is not committed.
        """
        for _ in range(MAX_ATTEMPTS):
            waited = [call for call in calls if not call.is_abandoned]
            if not waited:
                return [None] * len(calls)
            places = [place for call in waited for place in call.places]
            states = [call.audio_states for call in waited for _ in call.places]
            features = [f for call in waited for f in call.features or ()]
            requests, results = self.infer(places, features, states)
            times = [(call.feature_ms, call.begun) for call in waited for _ in call.places]
            predictions = [self.prediction(*one) for one in zip(places, features, requests, results, times)]
            with ExitStack() as locks:
                # In one order everywhere, so that two threads with the same conversations cannot wait for each other.
                for place in sorted(places, key=lambda p: id(p.conversation)):
                    locks.enter_context(place.conversation.lock)
                if all(map(_is_current, places, requests)) and all(call.claim() for call in waited):
                    turns = [_stored(*one) for one in zip(places, requests, results, predictions)]
                    answers = map(Answer, predictions, turns, (result.audio_states for result in results))
                    return [None if call not in waited else [next(answers) for _ in call.places] for call in calls]
        raise BackendError(CHANGING)

    def infer(
        self, places: Sequence[Place], features: Sequence[Features], audio_states: Sequence[Any] = ()
    ) -> tuple[list[Request], list[Result]]:
        """Turns in their conversations as they are now; nothing is committed.

        Args:
            places: of different conversations.
            features: of each.
            audio_states: of each, where its audio was encoded before.

        Raises:
            BackendError: the back end failed, or computed what is not a number.
            InputError: a turn cannot be amended any more.
        """
        requests = []
        for i, (place, f) in enumerate(zip(places, features)):
            chat = place.conversation
            with chat.lock:
                number = None if place.amended is None else chat.last(place.amended)
                view = chat.memory.view(place.speaker, number)
            requests.append(Request(f.mel, f.tokens, view, audio_states[i] if audio_states else None))
        results = self.backend.infer(requests)
        for request, result in zip(requests, results):
            _check(request, result)
        return requests, results

    def estimate(self, place: Place, features: Features, begun: float) -> Prediction:
        """A turn as it would be if it were committed now; on a worker's thread.

        Raises:
            BackendError: as `infer`.
        """
        feature_ms = (time.perf_counter() - begun) * 1e3
        for _ in range(MAX_ATTEMPTS):
            (request,), (result,) = self.infer([place], [features])
            if _is_current(place, request):
                return self.prediction(place, features, request, result, (feature_ms, begun))
        raise BackendError(CHANGING)

    def prediction(
        self, place: Place, features: Features, request: Request, result: Result, times: tuple[float, float]
    ) -> Prediction:
        """What a caller gets of a result; `times` are the features' milliseconds and when the call began."""
        feature_ms, begun = times
        modalities = tuple(name for name, used in zip(("audio", "text"), result.state.present) if used)
        probabilities = softmax(result.logits, float(self._temperatures["+".join(modalities)]))
        best = int(np.argmax(probabilities))
        confidence = float(probabilities[best])
        total = (time.perf_counter() - begun) * 1e3
        return Prediction(
            label=self.labels[best] if confidence >= self._min_confidence else None,
            confidence=confidence,
            probabilities={label: float(p) for label, p in zip(self.labels, probabilities)},
            modalities=modalities,
            turn=request.view.number,
            speaker=place.speaker,
            warnings=features.warnings,
            timing={"features": feature_ms, **result.milliseconds, "total": total},
            embedding=result.embedding.copy(),  # not a view that keeps a whole batch
        )


def _is_current(place: Place, request: Request) -> bool:
    """Whether a conversation is still as the request saw it."""
    return place.conversation.memory is request.view.memory and request.view.is_current


def _stored(place: Place, request: Request, result: Result, prediction: Prediction) -> Turn:
    """Commit one turn; its conversation is locked."""
    turn = Turn(
        prediction.turn, prediction.label, prediction.confidence, place.speaker, prediction.modalities, time.time()
    )
    request.view.memory.store(result.state, turn)
    return turn


def _brings_one(task: Task) -> bool:
    """Whether a worker's task brings a call of one turn to be computed."""
    call = getattr(task, "__self__", None)
    return isinstance(call, Call) and len(call.places) == 1


def _check(request: Request, result: Result) -> None:
    """What is not a number would spoil every later turn; what is of another shape would be stored in part."""
    state, memory = result.state, request.view.memory
    shapes = state.context_key.shape, state.context_value.shape, state.keys.shape, state.values.shape
    one, all_layers = memory.context_keys.shape[1:], memory.keys[:, 0].shape
    if shapes != (one, one, all_layers, all_layers):
        raise BackendError(f"a turn's state has the shapes {shapes}; nothing was committed. Is the bundle damaged?")
    for name, array in (
        ("logits", result.logits), ("the embedding", result.embedding), ("the context", state.context_key),
        ("the context", state.context_value), ("keys", state.keys), ("values", state.values),
    ):  # fmt: skip
        if not np.isfinite(array).all():
            raise BackendError(
                f"{name} of this turn hold values that are not finite; nothing was committed. Is the bundle damaged?"
            )


def _as_ours(error: BaseException) -> BaseException:
    """An error of no kind of ours, as one of ours where it is an ordinary one."""
    if isinstance(error, (MemoryError, HBAFError)) or not isinstance(error, Exception):
        return error
    wrapped = BackendError(f"this turn failed; nothing was committed: {type(error).__name__}: {error}")
    wrapped.__cause__ = error
    return wrapped
