"""`LiveTurn`: a turn that is still being spoken. Audio is fed as it is recorded; estimates are available at any time.

`feed` only checks and queues a chunk. Workers resample it and compute log-mel during speech, so that little work is
left at the end. The transcript may come with `finish`, or later with `revise`.
"""

from __future__ import annotations

import contextlib
import logging
import os
import threading
import time
from collections import deque
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from hbaf_edge.audio import (
    MAX_SECONDS,
    MIN_SECONDS,
    SAMPLE_RATE,
    Audio,
    Downmix,
    SilenceTracker,
    load_chunk,
    silent_end_warning,
    too_long_warning,
)
from hbaf_edge.audio.resampler import StreamResampler
from hbaf_edge.calls import Call, TurnResult, TurnTarget
from hbaf_edge.conversation import Turn
from hbaf_edge.engine import Engine
from hbaf_edge.errors import BackendError, InputError
from hbaf_edge.features import Features, audio_features, audio_problem, combine_features, text_features
from hbaf_edge.mel import MelStream
from hbaf_edge.prediction import Prediction
from hbaf_edge.stats import Stats

if TYPE_CHECKING:
    from hbaf_edge.runtime import HBAFRuntime

TokensAndWarnings = tuple[NDArray[np.int64] | None, tuple[str, ...]]  # result of `text_features`
OnCommit = Callable[[list[TurnResult], bool], object]
log = logging.getLogger("hbaf_edge")


class LiveTurn:
    """One turn while it is spoken; make it with `HBAFRuntime.begin`. Its methods may be called from any thread.

    The turn gets its number when it is finished, so other turns (`observe`) may be committed before.

    Args:
        runtime: the runtime whose engine computes the turn.
        target: conversation and speaker.
        on_commit: called after a commit with the results, and whether they are of new turns.
        stats: counts failures.

    Examples:
        >>> from hbaf_edge import HBAFRuntime
        >>> runtime = HBAFRuntime()
        >>> turn = runtime.begin(speaker="anna", conversation=runtime.conversation())
        >>> turn.feed(np.zeros(320, np.int16), 16_000)
        >>> turn.finish(text="Leave me alone, I hate you!").label
        'anger'
    """

    def __init__(self, runtime: HBAFRuntime, target: TurnTarget, on_commit: OnCommit, stats: Stats) -> None:
        self._runtime, self._target, self._on_commit, self._stats = runtime, target, on_commit, stats
        self._engine = runtime.engine
        self._state_lock = threading.Lock()  # of the small fields; never locked during a computation, see `feed`
        self._audio_lock = threading.Lock()  # of resampler and log-mel; locked while they compute
        self._call: Call | None = None  # the last call of `finish` or `revise`
        self._chunks: deque[tuple[NDArray[np.float32], bool]] = deque()  # chunk, whether silence reaches 1 s in it
        self._closed_as = ""  # why no audio is accepted: "over", "finished", "cancelled", "lost"; "" if it is
        self._worker_error: Exception | None = None  # not raised to a caller yet
        self._rate: int | None = None
        self._mix: Downmix | None = None
        self._silence = SilenceTracker()
        self._resampler: StreamResampler | None = None
        self._mel = MelStream()
        self._mel_before_silence: NDArray[np.float32] | None = None  # log-mel up to 1 s after the last audible sample
        self._warnings: tuple[str, ...] = ()  # about the audio
        self._audio_states: NDArray[np.float32] | None = None
        self._turn: Turn | None = None

    @property
    def seconds(self) -> float:
        """Length of the audio fed so far, in seconds."""
        return self._silence.frames / self._rate if self._rate else 0.0

    def __repr__(self) -> str:
        return f"<LiveTurn, {self.seconds:.1f} s, {self._closed_as or 'being spoken'}>"

    def feed(self, samples: Any, sample_rate: int, sample_format: str | None = None) -> None:
        """Add the next samples. Returns at once, so that it can be called from an audio callback.

        There is no back-pressure: audio that is fed faster than it is processed (some hundred times real time) is
        queued in memory.

        Args:
            samples: numpy array (samples,) or (samples, channels) of float32, float64, int16 or int32, or bytes of
                mono samples with `sample_format`; any length.
            sample_rate: Hz, 8,000 to 192,000, the same for the whole turn.
            sample_format: format of bytes, such as "s16le" (hbaf_edge/audio/raw.py).

        Raises:
            InputError: the samples are invalid, the rate differs, or the turn is finished. Audio fed before stays.
            BackendError: audio fed before could not be processed; the turn is lost.
        """
        block, rate, int32_peak = load_chunk(samples, sample_rate, sample_format)
        engine = self._runtime.engine
        with self._state_lock:
            self._raise_worker_error()
            if self._closed_as:
                raise InputError(
                    f"this turn is {self._closed_as} and accepts no more audio; begin another with runtime.begin()"
                )
            if self._rate not in (None, rate):
                raise InputError(f"this turn was begun at {self._rate} Hz, this chunk has {rate}; keep to one rate")
            mix = self._mix or Downmix(rate)
            chunk = mix(block)  # raises InputError for invalid samples, before anything is stored
            self._rate, self._mix = rate, mix
            self._chunks.append((chunk, self._silence.feed(chunk, rate, int32_peak)))
        engine.workers.submit(self._process_on_worker)  # every time: a chunk whose submission failed is not forgotten

    def provisional(self, text: str | None = None) -> Prediction:
        """Estimate the emotion so far. Nothing is committed; `Prediction.turn` is the number it would get now.

        Args:
            text: transcript so far, if any.

        Raises:
            InputError: there is too little input (less than 0.1 s of audio and no text), or the turn is finished.
        """
        return self._count_failure(lambda engine: engine.run(lambda: self._provisional(engine, text)))

    def finish(self, text: str | None = None) -> Prediction:
        """Estimate and commit the turn at the end of speech. A later transcript can be added with `revise`.

        `timing["total"]` is the time from this call to the result.

        Args:
            text: the transcript, if it is available.

        Raises:
            InputError: there is neither audio nor text; the turn goes on and can be finished again or cancelled.
        """
        return self._count_failure(lambda engine: self._finish(engine, text))

    def revise(self, text: str) -> Prediction:
        """Compute the committed turn again with a late transcript. Its audio is not encoded again.

        Args:
            text: the transcript.

        Raises:
            InputError: the turn is not finished, a later turn was committed, or the text is empty.
        """
        return self._count_failure(lambda engine: self._revise(engine, text))

    def cancel(self) -> None:
        """Drop the turn. A finished turn stays committed."""
        if self._engine.process != os.getpid():
            return  # after a fork the turn goes on in the parent only
        while not self._start_call(None):
            pass
        with self._audio_lock, self._state_lock:
            if self._turn is None:
                self._closed_as = "cancelled"
                self._release_audio()

    def _count_failure(self, work: Callable[[Engine], Prediction]) -> Prediction:
        """Run a method's work, and count an exception."""
        self._engine.check_process()
        with self._state_lock:
            self._raise_worker_error()  # it was counted when it happened
        try:
            return work(self._runtime.engine)
        except Exception:
            self._stats.add_failure()
            raise

    def _raise_worker_error(self) -> None:
        """Raise an error of a worker once. The turn is lost then."""
        error, self._worker_error = self._worker_error, None
        if error is not None:
            raise BackendError(
                f"the audio of this turn could not be processed ({type(error).__name__}: {error}); the turn is "
                "lost, begin another with runtime.begin()"
            ) from error

    def _provisional(self, engine: Engine, text: str | None) -> Prediction:
        start_time = time.perf_counter()
        with self._audio_lock:
            self._check_open()
            self._process_chunks()
            features = self._features(text_features(text, engine.tokeniser))
        return engine.estimate(self._target, features, start_time)

    def _finish(self, engine: Engine, text: str | None) -> Prediction:
        """All changes of the turn are made on workers, so that an interrupted wait leaves it consistent."""
        call = Call(engine, [self._target], self._on_finished)
        return self._run(call, lambda: engine.run(lambda: self._final_features(engine, text)))

    def _run(self, call: Call, get_features: Callable[[], Features]) -> Prediction:
        """Run a call after any earlier one of this turn, made by another thread or interrupted, has ended."""
        try:
            while not self._start_call(call):
                pass
            return call.run(lambda: [get_features()])[0].prediction
        except BaseException:
            call.cancel()
            raise

    def _start_call(self, call: Call | None) -> bool:
        """Make `call` the current one and return True; or wait for the current one's end and return False."""
        self._engine.workers.check_may_wait()
        with self._state_lock:
            current = self._call
            if current is None or current.outcome.is_done:
                self._call = call
                return True
        with contextlib.suppress(Exception):
            current.outcome.wait()
        return False

    def _final_features(self, engine: Engine, text: str | None) -> Features:
        """Process the rest of the audio and return the features of the whole turn."""
        with self._audio_lock:
            self._check_open()
            text_part = text_features(text, engine.tokeniser)
            self._process_chunks()
            if not self._closed_as and text_part[0] is None:
                self._check_audible()  # before the turn is closed, so that it can go on after an error
            with self._state_lock:
                self._closed_as = "over"  # from here on `feed` raises, so that no chunk is missed below
            self._process_chunks(is_last=True)
            return self._features(text_part)

    def _on_finished(self, results: list[TurnResult]) -> None:
        """Store the committed turn. Runs on a worker before the caller has the result."""
        (result,) = results
        with self._audio_lock, self._state_lock:
            self._turn, self._closed_as, self._audio_states = result.turn, "finished", result.audio_states
            self._release_audio()
        self._on_commit(results, True)

    def _on_revised(self, results: list[TurnResult]) -> None:
        """Store the revised turn. Runs on a worker."""
        self._turn = results[0].turn
        self._on_commit(results, False)

    def _revise(self, engine: Engine, text: str) -> Prediction:
        tokens, warnings = text_features(text, engine.tokeniser)
        if tokens is None:
            raise InputError(f"the text {text!r:.80} has no words; give revise() the transcript of the turn")
        call = Call(engine, [self._target], self._on_revised)

        def get_features() -> Features:
            """Runs when this call is the turn's current one: no other thread changes the turn until it ends."""
            if self._turn is None:
                raise InputError(
                    f"this turn is {self._closed_as or 'not finished'}; give its text to finish(), which then needs no "
                    "revision"
                )
            call.targets, call.audio_states = [self._target._replace(revised=self._turn)], self._audio_states
            return Features(None, tokens, warnings + self._warnings)

        return self._run(call, get_features)

    def _check_open(self) -> None:
        if self._turn is not None or self._closed_as in ("cancelled", "lost"):
            raise InputError(f"this turn is {self._closed_as}; begin another with runtime.begin()")

    def _features(self, text_part: TokensAndWarnings) -> Features:
        """Combine the features of the audio processed so far and of a text; at least one is needed."""
        has_audio = self._silence.frames > 0
        mel, self._warnings = audio_features(self._audio(), self._mel.spectrum) if has_audio else (None, ())
        rate = self._rate or 1
        if self._mel_before_silence is not None and self._silence.ends_in_silence(rate):
            mel = self._mel_before_silence
            self._warnings = (*self._mix_warnings(), silent_end_warning(self.seconds, self._silence.audible / rate))
        return combine_features(mel, text_part[0], text_part[1] + self._warnings)

    def _check_audible(self) -> None:
        """Raise if all audio fed so far is unusable. The resampler's output would not do: it lacks the last samples.

        Raises:
            InputError: the audio is too short or silent.
        """
        problem = audio_problem(self.seconds, self.seconds < MIN_SECONDS, self._silence.silence)
        if problem:
            combine_features(None, None, (problem,) if self._silence.frames else ())

    def _audio(self) -> Audio:
        """Return the audio processed so far as `load_audio` would."""
        seconds = self.seconds if self._closed_as else self._mel.sample_count / SAMPLE_RATE
        warnings = (*self._mix_warnings(), *((too_long_warning(seconds),) if seconds > MAX_SECONDS else ()))
        return Audio(self._mel.samples, seconds, warnings, self._silence.silence)

    def _mix_warnings(self) -> tuple[str, ...]:
        """Warnings about the audio channels."""
        return self._mix.warnings if self._mix else ()

    def _release_audio(self) -> None:
        """Release what only an open turn needs."""
        self._chunks.clear()
        self._mel.clear()
        self._mel_before_silence = None
        self._resampler = None

    def _process_on_worker(self) -> None:
        """Process the queued chunks during speech, unless another thread is using the audio."""
        if not self._audio_lock.acquire(blocking=False):
            return
        try:
            self._process_chunks()
        except Exception as error:
            log.exception("the audio of a live turn could not be processed")
            self._stats.add_failure()
            with self._state_lock:
                self._worker_error, self._closed_as = error, "lost"
                self._release_audio()
        finally:
            self._audio_lock.release()

    def _process_chunks(self, is_last: bool = False) -> None:
        """Resample the queued chunks and feed them to the log-mel stream."""
        while self._chunks:
            chunk, is_pause = self._chunks[0]
            if self._resampler is None:
                self._resampler = StreamResampler(self._rate or SAMPLE_RATE)
            self._mel.feed(self._resampler(chunk))
            self._chunks.popleft()
            if is_pause:
                self._mel_before_silence = self._mel.spectrum()
        if is_last and self._resampler is not None:
            self._mel.feed(self._resampler.flush())
            self._resampler = None
