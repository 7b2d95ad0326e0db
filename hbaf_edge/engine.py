"""The engine, which computes every turn, whether it comes from predict, a batch, a live turn, asyncio or a server.

Calls (hbaf_edge/calls.py) bring features. Workers compute them with a snapshot of their conversations and commit the
results only if the conversations have not changed meanwhile; otherwise they compute them again.
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
from hbaf_edge.batching import DynamicBatcher
from hbaf_edge.bundle import Bundle
from hbaf_edge.calls import CANCELLED, Call, TurnResult, TurnTarget
from hbaf_edge.conversation import Turn
from hbaf_edge.errors import BackendError, BundleError, HBAFError
from hbaf_edge.features import Features, Tokeniser
from hbaf_edge.machine import available_cpus
from hbaf_edge.prediction import Prediction, softmax
from hbaf_edge.workers import Outcome, Task, Workers

T = TypeVar("T")
MAX_ATTEMPTS = 100  # computations of a turn whose conversation keeps changing
CONVERSATION_CHANGED = (
    "the conversation was reset or revised again and again while this turn was computed; use one thread for that"
)


class Engine:
    """A bundle's graphs, tokeniser, labels and temperatures, and the threads that compute.

    Args:
        bundle: a verified bundle.
        backend: the back end that runs its graphs.
        min_confidence: a label with a lower probability becomes None.
        clean_text: whether transcripts are cleaned (hbaf_edge/text.py).
        max_waiting: calls that may wait to be computed.
        max_batch_size: turns of different conversations that are computed together; 1 turns dynamic batching off.
        max_wait_ms: milliseconds that the first turn of a batch waits for others.
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
        self._waiting_calls: set[Call] = set()
        try:
            self.tokeniser = Tokeniser(bundle.files["tokenizer.json"], clean_text)
        except Exception as error:  # tokenizers raises bare Exception
            raise BundleError(f"{bundle.path}: tokenizer.json cannot be read: {error}") from None
        self.workers = Workers(available_cpus(), "hbaf_edge")
        self._batcher: DynamicBatcher[Call] | None = None
        if max_batch_size > 1:
            self._batcher = DynamicBatcher(self.workers, max_batch_size, max_wait_ms / 1e3, _adds_call)

    def check_process(self) -> None:
        """Raise instead of hanging when used after a fork: threads do not survive it."""
        if os.getpid() != self.process:
            raise BackendError(
                f"this runtime was made in process {self.process} and its threads did not survive the fork; make an "
                "HBAFRuntime in each process, or start processes with multiprocessing's 'spawn'"
            )

    def run(self, task: Callable[[], T]) -> T:
        """Run a task on a worker and wait for its result. Interrupting the wait does not interrupt the task.

        Raises:
            BackendError: the calling thread is a worker. Errors of the task are raised too.
        """
        self.workers.check_may_wait()
        outcome = Outcome[T]()

        def work() -> None:
            try:
                outcome.set(task())
            except BaseException as error:
                outcome.fail(error)

        self.workers.submit(work)
        return outcome.wait()

    def admit(self, call: Call) -> None:
        """Add a call to those that wait to be computed.

        Raises:
            BackendError: too many calls wait.
        """
        with self._lock:
            if len(self._waiting_calls) >= self._max_waiting:
                raise BackendError(
                    f"{len(self._waiting_calls)} calls wait to be computed, more than this machine keeps up with; send "
                    "fewer at once, or raise max_waiting"
                )
            self._waiting_calls.add(call)

    def dismiss(self, call: Call) -> None:
        """Remove a call from those that wait to be computed."""
        with self._lock:
            self._waiting_calls.discard(call)

    def compute(self, call: Call) -> None:
        """Compute a call on the calling worker thread, together with calls that arrive meanwhile if batching is on."""
        if self._batcher is None or len(call.targets) > 1:
            self._compute_batch([call])
        elif (calls := self._batcher.add(call, call.compute)) is not None:
            self._compute_batch(calls)

    def _compute_batch(self, calls: list[Call]) -> None:
        """Compute and commit calls together. If that fails, compute each one separately, so that one bad call fails."""
        for call in calls:
            self.dismiss(call)
        try:
            results = self._commit(calls)
        except BaseException as error:  # of any kind: it is raised in the caller's thread
            if len(calls) == 1:
                calls[0].fail(_wrap_error(error))
                return
            for call in calls:
                self._compute_batch([call])
            return
        for call, call_results in zip(calls, results):
            if call_results is None:
                call.fail(BackendError(CANCELLED))
            else:
                call.succeed(call_results)

    def _commit(self, calls: list[Call]) -> list[list[TurnResult] | None]:
        """Compute calls until none of their conversations has changed meanwhile, then commit them.

        Returns:
            the results of each call; None for a cancelled call, which is not committed.
        """
        for _ in range(MAX_ATTEMPTS):
            active = [call for call in calls if not call.is_cancelled]
            if not active:
                return [None] * len(calls)
            targets = [target for call in active for target in call.targets]
            states = [call.audio_states for call in active for _ in call.targets]
            features = [f for call in active for f in call.features or ()]
            requests, results = self.infer(targets, features, states)
            times = [(call.feature_ms, call.start_time) for call in active for _ in call.targets]
            predictions = [self.prediction(*parts) for parts in zip(targets, features, requests, results, times)]
            with ExitStack() as locks:
                # Sorted: two threads that lock the same conversations in different orders would deadlock.
                for target in sorted(targets, key=lambda t: id(t.conversation)):
                    locks.enter_context(target.conversation.lock)
                if all(map(_is_current, targets, requests)) and all(call.begin_commit() for call in active):
                    turns = [_store_turn(*parts) for parts in zip(targets, requests, results, predictions)]
                    committed = map(TurnResult, predictions, turns, (result.audio_states for result in results))
                    return [[next(committed) for _ in call.targets] if call in active else None for call in calls]
        raise BackendError(CONVERSATION_CHANGED)

    def infer(
        self, targets: Sequence[TurnTarget], features: Sequence[Features], audio_states: Sequence[Any] = ()
    ) -> tuple[list[Request], list[Result]]:
        """Compute turns with their conversations as they are now. Commit nothing.

        Args:
            targets: one for each turn, of different conversations.
            features: of each turn.
            audio_states: of each turn, the encoded audio or None; empty if no audio was encoded before.

        Raises:
            BackendError: the back end failed, or its results are not finite.
            InputError: a turn can no longer be revised.
        """
        requests = []
        for i, (target, f) in enumerate(zip(targets, features)):
            conversation = target.conversation
            with conversation.lock:
                number = None if target.revised is None else conversation.revisable_number(target.revised)
                view = conversation.memory.view(target.speaker, number)
            requests.append(Request(f.mel, f.tokens, view, audio_states[i] if audio_states else None))
        results = self.backend.infer(requests)
        for request, result in zip(requests, results):
            _check_result(request, result)
        return requests, results

    def estimate(self, target: TurnTarget, features: Features, start_time: float) -> Prediction:
        """Return the prediction of a turn as if it were committed now. Runs on a worker.

        Raises:
            BackendError: as `infer`.
        """
        feature_ms = (time.perf_counter() - start_time) * 1e3
        for _ in range(MAX_ATTEMPTS):
            (request,), (result,) = self.infer([target], [features])
            if _is_current(target, request):
                return self.prediction(target, features, request, result, (feature_ms, start_time))
        raise BackendError(CONVERSATION_CHANGED)

    def prediction(
        self, target: TurnTarget, features: Features, request: Request, result: Result, times: tuple[float, float]
    ) -> Prediction:
        """Turn a result into a `Prediction`. `times`: milliseconds of the features, and the call's start time."""
        feature_ms, start_time = times
        modalities = tuple(name for name, used in zip(("audio", "text"), result.state.present) if used)
        probabilities = softmax(result.logits, float(self._temperatures["+".join(modalities)]))
        best = int(np.argmax(probabilities))
        confidence = float(probabilities[best])
        total_ms = (time.perf_counter() - start_time) * 1e3
        return Prediction(
            label=self.labels[best] if confidence >= self._min_confidence else None,
            confidence=confidence,
            probabilities={label: float(p) for label, p in zip(self.labels, probabilities)},
            modalities=modalities,
            turn=request.view.number,
            speaker=target.speaker,
            warnings=features.warnings,
            timing={"features": feature_ms, **result.milliseconds, "total": total_ms},
            embedding=result.embedding.copy(),  # a view would keep the arrays of the whole batch in memory
        )


def _is_current(target: TurnTarget, request: Request) -> bool:
    """Whether the conversation is still as the request saw it."""
    return target.conversation.memory is request.view.memory and request.view.is_current


def _store_turn(target: TurnTarget, request: Request, result: Result, prediction: Prediction) -> Turn:
    """Store one turn in its conversation, which the caller has locked."""
    turn = Turn(
        prediction.turn, prediction.label, prediction.confidence, target.speaker, prediction.modalities, time.time()
    )
    request.view.memory.store(result.state, turn)
    return turn


def _adds_call(task: Task) -> bool:
    """Whether a queued task adds a call to the batch: only calls of one turn are batched."""
    call = getattr(task, "__self__", None)
    return isinstance(call, Call) and len(call.targets) == 1


def _check_result(request: Request, result: Result) -> None:
    """Raise if a result cannot be stored: NaN would spoil every later turn, a wrong shape would be stored in part."""
    state, memory = result.state, request.view.memory
    shapes = state.context_key.shape, state.context_value.shape, state.keys.shape, state.values.shape
    context_shape, layer_shape = memory.context_keys.shape[1:], memory.keys[:, 0].shape
    if shapes != (context_shape, context_shape, layer_shape, layer_shape):
        raise BackendError(f"a turn's state has the shapes {shapes}; nothing was committed. Is the bundle damaged?")
    for name, array in (
        ("logits", result.logits), ("the embedding", result.embedding), ("the context", state.context_key),
        ("the context", state.context_value), ("keys", state.keys), ("values", state.values),
    ):  # fmt: skip
        if not np.isfinite(array).all():
            raise BackendError(
                f"{name} of this turn: not all values are finite; nothing was committed. Is the bundle damaged?"
            )


def _wrap_error(error: BaseException) -> BaseException:
    """Wrap an ordinary exception of other code in a `BackendError`; return all others unchanged."""
    if isinstance(error, (MemoryError, HBAFError)) or not isinstance(error, Exception):
        return error
    wrapped = BackendError(f"this turn failed; nothing was committed: {type(error).__name__}: {error}")
    wrapped.__cause__ = error
    return wrapped
