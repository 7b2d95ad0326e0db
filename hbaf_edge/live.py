"""A turn that is still being spoken: sound goes in as a microphone gives it, an estimate comes out at any time.

`feed` only checks and queues; log-mel is computed on the runtime's own thread while speech goes on, so that little is
left to do at its end. Words may come with `finish`, or later with `revise`.
"""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable
from dataclasses import replace
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
from hbaf_edge.conversation import Conversation, Turn
from hbaf_edge.errors import InputError
from hbaf_edge.features import Features, from_sound, from_text, something, unheard
from hbaf_edge.judge import Clock, Encoded
from hbaf_edge.mel import MelStream
from hbaf_edge.prediction import Prediction

if TYPE_CHECKING:
    import soxr

    from hbaf_edge.runtime import HBAFRuntime

Words = tuple[NDArray[np.int64] | None, tuple[str, ...]]  # of hbaf_edge.features.from_text


class LiveTurn:
    """One turn while it is spoken; make it with `HBAFRuntime.begin`. Its methods may be called from any thread.

    It gets its number when it is finished, so others' turns (`observe`) may join the conversation meanwhile.

    >>> from hbaf_edge import HBAFRuntime
    >>> runtime = HBAFRuntime()
    >>> turn = runtime.begin(speaker="anna", conversation=runtime.conversation())
    >>> turn.feed(np.zeros(320, np.int16), 16_000)
    >>> turn.finish(text="Leave me alone, I hate you!").label
    'anger'
    """

    def __init__(self, runtime: HBAFRuntime, chat: Conversation, speaker: str | None) -> None:
        self._runtime, self._chat, self._speaker = runtime, chat, speaker
        self._gate = threading.Lock()  # for moments only: `feed` must not wait for a computation
        self._busy = threading.Lock()
        self._waiting: deque[tuple[NDArray[np.float32], bool]] = deque()  # chunks; whether to look back after each
        self._asked = False  # whether the runtime's thread is to take in what waits
        self._ended = ""  # why nothing can be fed any more
        self._rate: int | None = None
        self._mix: Downmix | None = None
        self._level = Level()
        self._resampler: soxr.ResampleStream | None = None
        self._mel = MelStream()
        self._spoken: NDArray[np.float32] | None = None  # log-mel up to a second after the last sound
        self._noted: tuple[str, ...] = ()  # what the sound gave cause to warn of
        self._encoded: Encoded | None = None
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
        """
        block, rate, widened = load_chunk(samples, sample_rate, sample_format)
        self._runtime._ready()
        with self._gate:
            if self._ended:
                raise InputError(f"this turn is {self._ended} and hears no more; begin another with runtime.begin()")
            if self._rate not in (None, rate):
                raise InputError(f"this turn was begun at {self._rate} Hz, this chunk has {rate}; keep to one rate")
            mix = self._mix or Downmix(rate)
            chunk = mix(block)  # refuses what is no sound
            self._rate, self._mix = rate, mix
            self._waiting.append((chunk, self._level.feed(chunk, rate, widened)))
        self._ask()

    def provisional(self, text: str | None = None) -> Prediction:
        """What it seems to express so far; nothing is committed, and `turn` is the number it would get now.

        Args:
            text: words recognised so far, if any.

        Raises:
            InputError: nothing can be judged yet (less than 0.1 s of sound, no words), or the turn is finished.
        """
        return self._runtime._counted(lambda: self._provisional(text))

    def finish(self, text: str | None = None) -> Prediction:
        """The turn is over: estimate and commit it. Without text at hand, `revise` may bring it later.

        Its `timing["total"]` runs from the end of speech to the result.

        Raises:
            InputError: there is neither sound nor words; the turn goes on, and can be finished again or cancelled.
        """
        return self._runtime._finished(self._runtime._counted(lambda: self._finish(text)))

    def revise(self, text: str) -> Prediction:
        """Words that came late: the committed turn again with them, its sound not being encoded anew.

        Raises:
            InputError: the turn is not finished, the conversation has gone on, or there are no words.
        """
        return self._runtime._tell(self._runtime._counted(lambda: self._revise(text)))

    def cancel(self) -> None:
        """Drop the turn; a finished one stays committed."""
        with self._busy, self._gate:
            if self._turn is None:
                self._ended = "cancelled"
                self._forget()

    def _provisional(self, text: str | None) -> Prediction:
        clock, judge = Clock(), self._runtime._ready()
        with self._busy:
            self._check_open()
            self._absorb()
            features = self._features(from_text(text, judge.tokeniser), self._mel.spectrum)
            clock("features")
            encoded = judge.encode(features, clock)
            result, _ = judge.estimate(encoded, self._chat, self._speaker, clock, commit=False)
        self._ask()  # for what came in meanwhile
        return result

    def _finish(self, text: str | None) -> Prediction:
        clock, judge = Clock(), self._runtime._ready()
        with self._busy:
            self._check_open()
            words = from_text(text, judge.tokeniser)
            self._absorb()
            if not self._ended and words[0] is None:
                self._check_audible()  # while the turn can still go on
            with self._gate:
                self._ended = "over"  # nothing fed from here on can be lost between here and the drain
            self._absorb(last=True)
            features = self._features(words, self._mel.spectrum)
            clock("features")
            encoded = judge.encode(features, clock)
            result, self._turn = judge.estimate(encoded, self._chat, self._speaker, clock)
            self._encoded, self._ended = encoded, "finished"
            self._forget()
        return result

    def _revise(self, text: str) -> Prediction:
        clock, judge = Clock(), self._runtime._ready()
        with self._busy:
            if self._turn is None or self._encoded is None:
                raise InputError("this turn is not finished; give its text to finish(), which then needs no revision")
            tokens, warnings = from_text(text, judge.tokeniser)
            if tokens is None:
                raise InputError(f"there are no words to revise with in {text!r:.80}")
            clock("features")
            said = judge.encode(Features(None, tokens, warnings), clock)
            encoded = replace(self._encoded, tokens=said.tokens, warnings=warnings + self._noted)
            result, self._turn = judge.estimate(encoded, self._chat, self._speaker, clock, amended=self._turn)
        return result

    def _check_open(self) -> None:
        if self._turn is not None or self._ended == "cancelled":
            raise InputError(f"this turn is {self._ended}; begin another with runtime.begin()")

    def _features(self, words: Words, spectrum: Callable[[], NDArray[np.float32]]) -> Features:
        """What was heard so far and what was said, one of them at least."""
        mel, self._noted = from_sound(self._heard(), spectrum) if self._level.frames else (None, ())
        if self._spoken is not None and self._level.ends_in_silence(self._rate or 1):
            mel = self._spoken
            self._noted = (*self._mixed(), silent_end(self.seconds, self._level.audible / (self._rate or 1)))
        return something(mel, words[0], words[1] + self._noted)

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

    def _ask(self) -> None:
        """Have the runtime's thread take in what waits, unless it is about to."""
        with self._gate:
            asked, self._asked = self._asked, True
        if not asked:
            self._runtime._background(self._work)

    def _work(self) -> None:
        """On the runtime's thread; while a computation holds the turn, what waits does so until the next chunk."""
        with self._gate:
            self._asked = False
        if self._busy.acquire(blocking=False):
            try:
                self._absorb()
            finally:
                self._busy.release()

    def _absorb(self, last: bool = False) -> None:
        """Resample what waits and hand it to the spectrogram."""
        while self._waiting:
            chunk, silence_began = self._waiting[0]
            self._mel.feed(self._resampled(chunk))
            self._waiting.popleft()
            if silence_began:
                self._spoken = self._mel.spectrum()
        if last and self._resampler is not None:
            self._mel.feed(self._resampler.resample_chunk(np.zeros(0, np.float32), last=True))
            self._resampler = None

    def _resampled(self, chunk: NDArray[np.float32]) -> NDArray[np.float32]:
        if self._rate == SAMPLE_RATE:
            return chunk
        if self._resampler is None:
            import soxr

            self._resampler = soxr.ResampleStream(self._rate, SAMPLE_RATE, 1, dtype="float32")
        return np.asarray(self._resampler.resample_chunk(chunk), np.float32)
