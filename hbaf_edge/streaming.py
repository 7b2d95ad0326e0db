"""A turn that is still being spoken: sound goes in as a microphone gives it, an estimate comes out at any time.

`feed` only checks and queues; log-mel is computed by the runtime's workers while speech goes on, so that little is
left to do at its end. Words may come with `finish`, or later with `revise`.
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
    Level,
    load_chunk,
    silent_end,
    too_long,
)
from hbaf_edge.audio.resampler import StreamResampler
from hbaf_edge.calls import Answer, Call, Place
from hbaf_edge.conversation import Turn
from hbaf_edge.engine import Engine
from hbaf_edge.errors import BackendError, InputError
from hbaf_edge.features import Features, from_sound, from_text, something, unheard
from hbaf_edge.mel import MelStream
from hbaf_edge.prediction import Prediction
from hbaf_edge.stats import Stats

if TYPE_CHECKING:
    from hbaf_edge.runtime import HBAFRuntime

Words = tuple[NDArray[np.int64] | None, tuple[str, ...]]  # of hbaf_edge.features.from_text
Tell = Callable[[list[Answer], bool], object]
log = logging.getLogger("hbaf_edge")


class LiveTurn:
    """One turn while it is spoken; make it with `HBAFRuntime.begin`. Its methods may be called from any thread.

    It gets its number when it is finished, so others' turns (`observe`) may join the conversation meanwhile.

    Args:
        runtime: whose engine computes.
        place: conversation and speaker.
        tell: called with answers, and whether they are of new turns, after they are committed.
        stats: that count what fails.

    >>> from hbaf_edge import HBAFRuntime
    >>> runtime = HBAFRuntime()
    >>> turn = runtime.begin(speaker="anna", conversation=runtime.conversation())
    >>> turn.feed(np.zeros(320, np.int16), 16_000)
    >>> turn.finish(text="Leave me alone, I hate you!").label
    'anger'
    """

    def __init__(self, runtime: HBAFRuntime, place: Place, tell: Tell, stats: Stats) -> None:
        self._runtime, self._place, self._tell, self._stats = runtime, place, tell, stats
        self._engine = runtime.engine
        self._gate = threading.Lock()  # for moments only: `feed` must not wait for a computation
        self._busy = threading.Lock()
        self._call: Call | None = None  # that is to commit it
        self._waiting: deque[tuple[NDArray[np.float32], bool]] = deque()  # chunks; whether to look back after each
        self._is_asked = False  # whether a worker is to take in what waits
        self._ended = ""  # why nothing can be fed any more
        self._failure: Exception | None = None  # of a worker, not raised yet
        self._rate: int | None = None
        self._mix: Downmix | None = None
        self._level = Level()
        self._resampler: StreamResampler | None = None
        self._mel = MelStream()
        self._spoken: NDArray[np.float32] | None = None  # log-mel up to a second after the last sound
        self._warnings: tuple[str, ...] = ()  # of the audio
        self._audio_states: NDArray[np.float32] | None = None
        self._turn: Turn | None = None

    @property
    def seconds(self) -> float:
        """Length of what was fed."""
        return self._level.frames / self._rate if self._rate else 0.0

    def __repr__(self) -> str:
        return f"<LiveTurn, {self.seconds:.1f} s, {self._ended or 'being spoken'}>"

    def feed(self, samples: Any, sample_rate: int, sample_format: str | None = None) -> None:
        """Take in the next samples; returns at once, also from an audio callback.

        There is no back-pressure: what is fed faster than it can be taken in (some hundred times real time) waits in
        memory.

        Args:
            samples: numpy array (samples,) or (samples, channels) of float32, float64, int16 or int32, or bytes of
                mono samples with `sample_format`; any length.
            sample_rate: Hz, 8,000 to 192,000, the same for the whole turn.
            sample_format: of bytes, such as "s16le" (hbaf_edge/audio/raw.py).

        Raises:
            InputError: they are no sound, of another rate, or the turn is finished; what was fed before stays.
            BackendError: what was fed before could not be taken in; the turn is lost.
        """
        block, rate, widened = load_chunk(samples, sample_rate, sample_format)
        engine = self._runtime.engine
        with self._gate:
            self._check_failure()
            if self._ended:
                raise InputError(f"this turn is {self._ended} and hears no more; begin another with runtime.begin()")
            if self._rate not in (None, rate):
                raise InputError(f"this turn was begun at {self._rate} Hz, this chunk has {rate}; keep to one rate")
            mix = self._mix or Downmix(rate)
            chunk = mix(block)  # refuses what is no sound
            self._rate, self._mix = rate, mix
            self._waiting.append((chunk, self._level.feed(chunk, rate, widened)))
            is_asked, self._is_asked = self._is_asked, True
        if not is_asked:
            try:
                engine.workers.submit(self._take_in)
            except BaseException:
                self._is_asked = False  # the next chunk asks again
                raise

    def provisional(self, text: str | None = None) -> Prediction:
        """What it seems to express so far; nothing is committed, and `turn` is the number it would get now.

        Args:
            text: words recognised so far, if any.

        Raises:
            InputError: nothing can be judged yet (less than 0.1 s of sound, no words), or the turn is finished.
        """
        return self._counted(lambda engine: engine.run(lambda: self._provisional(engine, text)))

    def finish(self, text: str | None = None) -> Prediction:
        """The turn is over: estimate and commit it. Without text at hand, `revise` may bring it later.

        Its `timing["total"]` runs from the end of speech to the result.

        Raises:
            InputError: there is neither sound nor words; the turn goes on, and can be finished again or cancelled.
        """
        return self._counted(lambda engine: self._finish(engine, text))

    def revise(self, text: str) -> Prediction:
        """Words that came late: the committed turn again with them, its sound not being encoded anew.

        Raises:
            InputError: the turn is not finished, the conversation has gone on, or there are no words.
        """
        return self._counted(lambda engine: self._revise(engine, text))

    def cancel(self) -> None:
        """Drop the turn; a finished one stays committed."""
        if self._engine.process != os.getpid():
            return  # after a fork the turn goes on in the parent alone
        while not self._claim(None):
            pass
        with self._busy, self._gate:
            if self._turn is None:
                self._ended = "cancelled"
                self._forget()

    def _counted(self, work: Callable[[Engine], Prediction]) -> Prediction:
        self._engine.check_process()
        with self._gate:
            self._check_failure()  # counted when it happened
        try:
            return work(self._runtime.engine)
        except Exception:
            self._stats.failed()
            raise

    def _check_failure(self) -> None:
        """Raise once what a worker met; the turn is over then."""
        failure, self._failure = self._failure, None
        if failure is not None:
            raise BackendError(
                f"the audio of this turn could not be taken in ({type(failure).__name__}: {failure}); the turn is "
                "lost, begin another with runtime.begin()"
            ) from failure

    def _provisional(self, engine: Engine, text: str | None) -> Prediction:
        begun = time.perf_counter()
        with self._busy:
            self._check_open()
            self._absorb()
            features = self._features(from_text(text, engine.tokeniser), self._mel.spectrum)
        return engine.estimate(self._place, features, begun)

    def _finish(self, engine: Engine, text: str | None) -> Prediction:
        """Everything that changes the turn happens on workers: whatever breaks off the wait leaves it whole."""
        call = Call(engine, [self._place], self._committed)
        return self._run(call, lambda: engine.run(lambda: self._closed(engine, text)))

    def _run(self, call: Call, prepare: Callable[[], Features]) -> Prediction:
        """A call, after the one that another thread made, or whose wait was broken off."""
        try:
            while not self._claim(call):
                pass
            return call.run(lambda: [prepare()])[0].prediction
        except BaseException:
            call.abandon()
            raise

    def _claim(self, call: Call | None) -> bool:
        """Make a call this turn's, or wait for the end of the one that is under way."""
        self._engine.workers.check_may_wait()
        with self._gate:
            other = self._call
            if other is None or other.outcome.is_done:
                self._call = call
                return True
        with contextlib.suppress(Exception):
            other.outcome.wait()
        return False

    def _closed(self, engine: Engine, text: str | None) -> Features:
        """Take in the last of the audio; what the turn is judged by."""
        with self._busy:
            self._check_open()
            words = from_text(text, engine.tokeniser)
            self._absorb()
            if not self._ended and words[0] is None:
                self._check_audible()  # while the turn can still go on
            with self._gate:
                self._ended = "over"  # nothing fed from here on can be lost between here and the drain
            self._absorb(last=True)
            return self._features(words, self._mel.spectrum)

    def _committed(self, answers: list[Answer]) -> None:
        """It is finished; on a worker, before the caller has the answer."""
        (answer,) = answers
        with self._busy, self._gate:
            self._turn, self._ended, self._audio_states = answer.turn, "finished", answer.audio_states
            self._forget()
        self._tell(answers, True)

    def _revised(self, answers: list[Answer]) -> None:
        """It was revised; on a worker too."""
        self._turn = answers[0].turn
        self._tell(answers, False)

    def _revise(self, engine: Engine, text: str) -> Prediction:
        tokens, warnings = from_text(text, engine.tokeniser)
        if tokens is None:
            raise InputError(f"there are no words to revise with in {text!r:.80}")
        while not self._claim(None):
            pass
        if self._turn is None:
            raise InputError(
                f"this turn is {self._ended or 'not finished'}; give its text to finish(), which then needs no revision"
            )
        place = self._place._replace(amended=self._turn)
        call = Call(engine, [place], self._revised, audio_states=self._audio_states)
        return self._run(call, lambda: Features(None, tokens, warnings + self._warnings))

    def _check_open(self) -> None:
        if self._turn is not None or self._ended in ("cancelled", "lost"):
            raise InputError(f"this turn is {self._ended}; begin another with runtime.begin()")

    def _features(self, words: Words, spectrum: Callable[[], NDArray[np.float32]]) -> Features:
        """What was heard so far and what was said, one of them at least."""
        mel, self._warnings = from_sound(self._heard(), spectrum) if self._level.frames else (None, ())
        if self._spoken is not None and self._level.ends_in_silence(self._rate or 1):
            mel = self._spoken
            self._warnings = (*self._mixed(), silent_end(self.seconds, self._level.audible / (self._rate or 1)))
        return something(mel, words[0], words[1] + self._warnings)

    def _check_audible(self) -> None:
        """Refuse what nothing can be heard in, judged by what was fed: a resampler holds back its last samples.

        Raises:
            InputError: it is too short, or nothing but silence.
        """
        why = unheard(self.seconds, self.seconds < MIN_SECONDS, self._level.silence)
        if why:
            something(None, None, (why,) if self._level.frames else ())

    def _heard(self) -> Audio:
        """What was taken in so far, as `load_audio` would give it."""
        seconds = self.seconds if self._ended else self._mel.heard / SAMPLE_RATE
        warnings = (*self._mixed(), *((too_long(seconds),) if seconds > MAX_SECONDS else ()))
        return Audio(self._mel.samples, seconds, warnings, self._level.silence)

    def _mixed(self) -> tuple[str, ...]:
        """What mixing the channels gave cause to warn of."""
        return self._mix.warnings if self._mix else ()

    def _forget(self) -> None:
        """Give back what only an open turn needs."""
        self._waiting.clear()
        self._mel.clear()
        self._spoken = None
        self._resampler = None

    def _take_in(self) -> None:
        """On a worker, while speech goes on; what waits does so on while the turn is busy."""
        with self._gate:
            self._is_asked = False
        if not self._busy.acquire(blocking=False):
            return
        try:
            self._absorb()
        except Exception as error:
            log.exception("audio of a live turn could not be taken in")
            self._stats.failed()
            with self._gate:
                self._failure, self._ended = error, "lost"
                self._forget()
        finally:
            self._busy.release()

    def _absorb(self, last: bool = False) -> None:
        """Resample what waits and hand it to the spectrogram."""
        while self._waiting:
            chunk, silence_began = self._waiting[0]
            if self._resampler is None:
                self._resampler = StreamResampler(self._rate or SAMPLE_RATE)
            self._mel.feed(self._resampler(chunk))
            self._waiting.popleft()
            if silence_began:
                self._spoken = self._mel.spectrum()
        if last and self._resampler is not None:
            self._mel.feed(self._resampler.flush())
            self._resampler = None
