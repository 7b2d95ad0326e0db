"""`HBAFRuntime`: a turn of a conversation in, its emotion out. Follow `predict` from here:
runtime -> given -> judge -> backend -> conversation.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from typing import Any, TypeVar

import numpy as np

from hbaf_edge.backend import default_threads, open_backend
from hbaf_edge.bundle import load_bundle
from hbaf_edge.card import describe
from hbaf_edge.conversation import Conversation
from hbaf_edge.errors import BackendError, InputError
from hbaf_edge.given import Prepared, TurnInput, check_speaker, prepare, prepare_all
from hbaf_edge.judge import Clock, Judge
from hbaf_edge.live import LiveTurn
from hbaf_edge.prediction import Prediction
from hbaf_edge.stats import Stats

log = logging.getLogger("hbaf_edge")
log.addHandler(logging.NullHandler())
MAX_THREADS = 256
Result = TypeVar("Result")


class HBAFRuntime:
    """Emotion recognition in conversations, turn by turn. Immutable: one runtime serves any number of conversations.

    Args:
        bundle: path of a bundle (folder or `.hbaf` file); None loads the default model inside of the package.
        threads: CPU threads of the audio encoder, which takes most of a turn; None takes two (one on a single core).
            From two on the text encoder runs beside it; what follows runs on one.
        provider: where it runs: "cpu", "ort-cuda", "ort-tensorrt", our own "cuda" and "tensorrt" (hbaf_edge/gpu), or
            "auto" for the best of the first three that works, which is logged.
        min_confidence: below this probability `Prediction.label` is None.
        clean_text: take out of every text what nobody said, such as "<|en|>", "[LAUGHTER]" or "<b>", and name it in
            `Prediction.warnings`; False reads texts as they are.
        on_prediction: called with every `Prediction` after its turn is committed, on the thread that computed it;
            what it raises is logged and changes nothing. It should not predict: that would call it again.
        public_key: PEM file of an Ed25519 key; the bundle must be signed with its private key (extra `sign`).
        kernels: for "cuda" and "tensorrt", folder of `python -m kernels.build --bundle BUNDLE --out FOLDER`; None
            takes the packaged ones, which fit models of the default sizes.

    A runtime is a context manager; `close` gives its memory back. It does not survive `os.fork`: make one in each
    process, and end a forked child that inherited one with `os._exit`, as multiprocessing does. The logger "hbaf_edge"
    tells of every turn at level DEBUG, never what was said.

    Raises:
        BundleError: the bundle is missing, altered or of a newer format.
        BackendError: the provider is unknown or cannot run here.

    >>> runtime = HBAFRuntime()
    >>> chat = runtime.conversation()
    >>> runtime.predict(text="You did it! I am so happy for you!", speaker="anna", conversation=chat).label
    'joy'
    """

    def __init__(
        self,
        bundle: str | os.PathLike[str] | None = None,
        *,
        threads: int | None = None,
        provider: str = "cpu",
        min_confidence: float = 0.0,
        clean_text: bool = True,
        on_prediction: Callable[[Prediction], object] | None = None,
        public_key: str | os.PathLike[str] | None = None,
        kernels: str | os.PathLike[str] | None = None,
    ) -> None:
        whole = isinstance(threads, int) and not isinstance(threads, bool)
        if threads is not None and not (whole and 1 <= threads <= MAX_THREADS):
            raise InputError(f"threads={threads!r}; a whole number from 1 to {MAX_THREADS} is expected, or None")
        if not isinstance(min_confidence, (int, float)) or not 0 <= min_confidence <= 1:
            raise InputError(f"min_confidence={min_confidence!r}; a probability from 0 to 1 is expected")
        if not isinstance(clean_text, bool):
            raise InputError(f"clean_text={clean_text!r}; True or False is expected")
        if on_prediction is not None and not callable(on_prediction):
            raise InputError(f"on_prediction is of type {type(on_prediction).__name__}; a callable is expected")
        loaded = load_bundle(bundle, public_key)
        self.labels = loaded.labels
        self.manifest = loaded.manifest
        self.min_confidence = float(min_confidence)
        self._key = loaded.key
        self._hook = on_prediction
        self._stats = Stats()
        self._worker: ThreadPoolExecutor | None = None
        self._worker_lock = threading.Lock()
        # More turns at once than cores take each other's caches: 16 callers get a tenth more done if most of them wait.
        self._room = threading.BoundedSemaphore((os.cpu_count() or 1) + 1)
        backend = open_backend(loaded, provider, threads or default_threads(), kernels)
        self._judge: Judge | None = Judge(loaded, backend, self.min_confidence, clean_text)

    def _ready(self) -> Judge:
        """What computes, unless it is closed or belongs to another process."""
        judge = self._judge
        if judge is None:
            raise BackendError("this runtime is closed; make a new HBAFRuntime")
        judge.check_process()
        return judge

    @property
    def provider(self) -> str:
        """Where it runs; with provider="auto" what was picked."""
        return self._ready().backend.provider

    @property
    def threads(self) -> int:
        """CPU threads of the audio encoder's operators."""
        return self._ready().backend.threads

    def close(self) -> None:
        """Give the model's memory back; turns under way on other threads end as they would have. Twice is once."""
        judge, self._judge = self._judge, None
        if judge is None or not judge.is_here:
            return  # in a forked child there is no worker to stop
        with self._worker_lock:
            worker, self._worker = self._worker, None
        if worker is not None:
            worker.shutdown(wait=False, cancel_futures=True)

    def _background(self, work: Callable[[], object]) -> None:
        """Have it done on this runtime's own thread, soon."""
        with self._worker_lock:
            if self._worker is None and self._judge is not None:
                self._worker = ThreadPoolExecutor(1, thread_name_prefix="hbaf_edge")
            if self._worker is not None:
                self._worker.submit(work)

    def __enter__(self) -> HBAFRuntime:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def warmup(self) -> None:
        """Run turns of 1, 3 and 10 s with words on a conversation of their own, so that the first real one is quick."""
        noise = np.random.default_rng(0).standard_normal(10 * 16_000).astype(np.float32) * 0.01
        for seconds in (1, 3, 10):
            said = "And how do you feel about that?"
            self._turn(TurnInput(audio=noise[: seconds * 16_000], sample_rate=16_000, text=said))

    def stats(self) -> dict[str, Any]:
        """Turns and failed calls so far, p50, p90 and p99 of each stage in milliseconds, and resident memory in MB.

        >>> runtime = HBAFRuntime()
        >>> _ = runtime.predict(text="We won!")
        >>> runtime.stats()["turns"]
        1
        """
        return self._stats.to_json()

    def __repr__(self) -> str:
        if self._judge is None:
            return "<HBAFRuntime, closed>"
        ran = f"{self._judge.backend.provider}, {self._judge.backend.threads} threads"
        return "\n".join([f"<HBAFRuntime on {ran}", *(f"  {line}" for line in describe(self.manifest))]) + ">"

    def conversation(self) -> Conversation:
        """A new, empty conversation."""
        m = self.manifest
        return Conversation(self._key, int(m["window"]), int(m["dialogue_layers"]), int(m["width"]))

    def load_conversation(self, path: str | os.PathLike[str]) -> Conversation:
        """A conversation that `Conversation.save` wrote; it goes on bit for bit as it would have.

        Raises:
            StateError: the file is missing, cut, edited, of a newer version, or was begun with another bundle.
        """
        return self.conversation()._restore(path)

    def predict(
        self,
        audio: Any = None,
        *,
        text: str | None = None,
        speaker: str | None = None,
        conversation: Conversation | None = None,
        sample_rate: int | None = None,
        sample_format: str | None = None,
    ) -> Prediction:
        """Estimate the emotion expressed in one turn and commit the turn to its conversation.

        Args:
            audio: a path, bytes or binary file object, also one that cannot seek (WAV, FLAC, OGG, MP3 and whatever
                else libsndfile reads; with the extra `av` WebM, MP4, M4A, AMR and others too), or a numpy array
                (samples,) or (samples, channels) of float32, float64, int16 or int32; None where there is none.
            text: what was said, in English; None or empty where it is not known. Either modality may be absent, not
                both. Tags, notes and markup of recognisers and captions are removed, with a warning.
            speaker: any name that is the same for the same person within the conversation; None or empty means unknown.
            conversation: the turns before this one; without it the call stands alone.
            sample_rate: Hz, 8,000 to 192,000; required with an array and with raw bytes, left out otherwise.
            sample_format: of raw bytes without a header, mono: "s16le", "f32le", "mulaw" and others.

        Raises:
            InputError: for unusable input; the conversation is as it was before.

        >>> p = HBAFRuntime().predict(np.zeros(16_000), sample_rate=16_000, text="Leave me alone, I hate you!")
        >>> p.label, p.modalities, p.warnings
        ('anger', ('text',), ('audio is digital silence: treated as no audio',))
        """
        given = TurnInput(
            audio=audio, text=text, speaker=speaker, conversation=conversation, sample_rate=sample_rate,
            sample_format=sample_format,
        )  # fmt: skip
        return self._finished(self._counted(lambda: self._turn(given)))

    async def apredict(
        self,
        audio: Any = None,
        *,
        text: str | None = None,
        speaker: str | None = None,
        conversation: Conversation | None = None,
        sample_rate: int | None = None,
        sample_format: str | None = None,
    ) -> Prediction:
        """`predict` for asyncio; the loop goes on meanwhile. Cancelling the wait does not take the turn back.

        >>> import asyncio
        >>> asyncio.run(HBAFRuntime().apredict(text="We won!")).modalities
        ('text',)
        """
        return await asyncio.to_thread(
            self.predict, audio, text=text, speaker=speaker, conversation=conversation, sample_rate=sample_rate,
            sample_format=sample_format,
        )  # fmt: skip

    def predict_many(self, turns: Sequence[TurnInput]) -> list[Prediction]:
        """One turn of each of several conversations, computed together: more turns a second, all as `predict` has them.

        Args:
            turns: of each, a dictionary of `predict`'s arguments.

        Returns:
            a `Prediction` for each; its `timing` is that of all together.

        Raises:
            InputError: one of them cannot be used, or two are of one conversation; nothing is committed.

        >>> runtime = HBAFRuntime()
        >>> [p.label for p in runtime.predict_many([{"text": "We won! I am so happy!"}, {"text": "I hate you!"}])]
        ['joy', 'anger']
        """
        found = self._counted(lambda: self._many(prepare_all(turns, self._prepared)))
        return [self._finished(p) for p in found]

    def begin(self, *, speaker: str | None = None, conversation: Conversation | None = None) -> LiveTurn:
        """A turn that is still to be spoken: feed it as the microphone does, then finish it (hbaf_edge/live.py).

        Args:
            speaker: as in `predict`.
            conversation: the turns before it; without it the turn stands alone.
        """
        self._ready()
        speaker = check_speaker(speaker)
        self._background(int)  # starts the thread now: the first chunk must not wait for it
        return LiveTurn(self, self._own(conversation), speaker)

    def _counted(self, work: Callable[[], Result]) -> Result:
        try:
            return work()
        except Exception:
            self._stats.failed()
            raise

    def _finished(self, result: Prediction) -> Prediction:
        """Count a committed turn and tell of it."""
        self._stats.turn(result.timing)
        return self._tell(result)

    def _tell(self, result: Prediction) -> Prediction:
        """Hooks and log filters are somebody else's code: what they raise must not look as if the turn had failed."""
        try:
            log.debug("turn %d: %s, %.1f ms", result.turn, "+".join(result.modalities), result.timing["total"])
            if self._hook is not None:
                self._hook(result)
        except Exception:
            with contextlib.suppress(Exception):  # it may have been the log itself
                log.exception("on_prediction raised; the turn is committed all the same")
        return result

    def _prepared(self, given: TurnInput) -> Prepared:
        return prepare(given, self._ready().tokeniser, self._own)

    def _turn(self, given: TurnInput) -> Prediction:
        """`predict` without what is kept about it."""
        clock, judge = Clock(), self._ready()
        with self._room:
            clock.waited()
            turn = self._prepared(given)
            clock("features")
            return judge.estimate(judge.encode(turn.features, clock), turn.chat, turn.speaker, clock)[0]

    def _many(self, turns: Sequence[Prepared]) -> list[Prediction]:
        """Turns of different conversations together."""
        clock, judge = Clock(), self._ready()
        if not turns:
            return []
        if len({id(t.chat) for t in turns}) < len(turns):
            raise InputError("two of these turns are of one conversation; predict them one after another")
        encoded = judge.encode_many([t.features for t in turns], clock)
        found = judge.estimate_many(encoded, [t.chat for t in turns], [t.speaker for t in turns], clock)
        done = time.perf_counter()  # a turn's total also holds what it was decoded in and waited
        return [replace(p, timing={**p.timing, "total": (done - t.begun) * 1e3}) for p, t in zip(found, turns)]

    def observe(
        self,
        *,
        conversation: Conversation,
        text: str | None = None,
        audio: Any = None,
        speaker: str | None = "robot",
        sample_rate: int | None = None,
        sample_format: str | None = None,
    ) -> None:
        """Commit a turn as context and return nothing: the robot's own words, or anyone's that need no estimate.

        Arguments and errors are those of `predict`.
        """
        self.predict(
            audio, text=text, speaker=speaker, conversation=conversation, sample_rate=sample_rate,
            sample_format=sample_format,
        )  # fmt: skip

    def _own(self, conversation: Conversation | None) -> Conversation:
        """The conversation, found to be of this bundle, or one of its own for a turn that stands alone."""
        if conversation is None:
            return self.conversation()
        if not isinstance(conversation, Conversation):
            kind = type(conversation).__name__
            raise InputError(f"conversation is of type {kind}; make one with runtime.conversation()")
        if conversation._key != self._key:
            raise InputError(
                "this conversation was begun with another bundle, whose keys mean other things; "
                "make one with this runtime's conversation()"
            )
        return conversation
