"""`HBAFRuntime`: a turn of a conversation in, its emotion out. Follow `predict` from here:
runtime -> inputs -> engine -> backends/onnxruntime -> conversation.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future
from functools import partial
from typing import Any, NoReturn, TypeVar

import numpy as np

from hbaf_edge.backends.base import Tap
from hbaf_edge.backends.open import open_backend
from hbaf_edge.backends.settings import default_threads
from hbaf_edge.bundle import Bundle, load_bundle
from hbaf_edge.calls import Answer, Call, Place
from hbaf_edge.card import describe
from hbaf_edge.conversation import Conversation, Sizes
from hbaf_edge.engine import Engine
from hbaf_edge.errors import BackendError, InputError
from hbaf_edge.inputs import (
    TurnInput,
    check_number,
    check_speaker,
    check_turn,
    check_turns,
    check_whole,
    features_of_all,
    naming,
)
from hbaf_edge.pending import PendingTurn
from hbaf_edge.prediction import Prediction
from hbaf_edge.stats import Stats
from hbaf_edge.streaming import LiveTurn

log = logging.getLogger("hbaf_edge")
log.addHandler(logging.NullHandler())
MAX_THREADS = 256
Returned = TypeVar("Returned")


class HBAFRuntime:
    """Emotion recognition in conversations, turn by turn. Immutable: one runtime serves any number of conversations.

    Args:
        bundle: path of a bundle (folder or `.hbaf` file), or what `load_bundle` returned; None loads the default model
            inside of the package.
        threads: CPU threads of the audio encoder, which takes most of a turn; None takes two, or one where the process
            may use a single core (affinity and a container's quota count). From two on the text encoder runs beside
            the audio encoder; what follows runs on one.
        provider: where it runs: "cpu", "ort-cuda", "ort-tensorrt", our own "cuda" and "tensorrt", or "auto" for the
            best of the first three that works, which is logged.
        min_confidence: below this probability `Prediction.label` is None.
        clean_text: take out of every text what nobody said, such as "<|en|>", "[LAUGHTER]" or "<b>", and name it in
            `Prediction.warnings`; False reads texts as they are.
        on_prediction: called with every `Prediction` after its turn is committed and before the caller has it, on one
            of the runtime's threads; what it raises is logged and changes nothing. It must not wait for another turn.
        max_batch_size: turns of different conversations, from different threads or tasks, that are computed together:
            more turns a second on a busy server, at a few milliseconds more for each; 1 for none.
        max_wait_ms: milliseconds that the first of them waits for others.
        max_waiting: calls that may wait to be computed; beyond that `predict` raises BackendError at once.
        public_key: PEM file of an Ed25519 key; the bundle must be signed with its private key (extra `sign`).
        kernels: for "cuda" and "tensorrt", folder of `python -m kernels.build --bundle BUNDLE --out FOLDER`; None
            takes the packaged ones, which fit models of the default sizes.

    A runtime is a context manager; `close` releases the model. A turn is computed on threads of the runtime, as many as
    this process may use CPUs, while its caller waits: Ctrl-C ends the wait at once, and the turn is then not committed
    unless it just was (`Conversation.turn` tells). A runtime does not survive `os.fork`: make one in each process, and
    end a forked child that inherited one with `os._exit`, as multiprocessing does. The logger "hbaf_edge" tells of
    every turn at level DEBUG, never what was said.

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
        bundle: str | os.PathLike[str] | Bundle | None = None,
        *,
        threads: int | None = None,
        provider: str = "cpu",
        min_confidence: float = 0.0,
        clean_text: bool = True,
        on_prediction: Callable[[Prediction], object] | None = None,
        max_batch_size: int = 1,
        max_wait_ms: float = 5.0,
        max_waiting: int = 256,
        public_key: str | os.PathLike[str] | None = None,
        kernels: str | os.PathLike[str] | None = None,
    ) -> None:
        check_whole("threads", threads, MAX_THREADS, may_be_none=True)
        check_whole("max_batch_size", max_batch_size, 256)
        check_whole("max_waiting", max_waiting, 1_000_000)
        check_number("min_confidence", min_confidence, 1)
        check_number("max_wait_ms", max_wait_ms, 1000)
        if not isinstance(clean_text, bool):
            raise InputError(f"clean_text={clean_text!r}; True or False is expected")
        if on_prediction is not None and not callable(on_prediction):
            raise InputError(f"on_prediction is of type {type(on_prediction).__name__}; a callable is expected")
        if isinstance(bundle, Bundle) and public_key is not None:
            raise InputError("public_key was given with a bundle that is loaded already; give it to load_bundle")
        loaded = bundle if isinstance(bundle, Bundle) else load_bundle(bundle, public_key)
        self.labels = loaded.labels
        self.manifest = loaded.manifest
        self.min_confidence = float(min_confidence)
        self._key = loaded.key
        self._hook = on_prediction
        self._stats = Stats()
        backend = open_backend(loaded, provider, threads or default_threads(), kernels)
        self._engine: Engine | None = Engine(
            loaded, backend, self.min_confidence, clean_text, max_waiting, max_batch_size, max_wait_ms
        )

    @property
    def engine(self) -> Engine:
        """What computes: for calibration and benchmarks, which look inside.

        Raises:
            BackendError: it is closed, or belongs to another process.
        """
        engine = self._engine
        if engine is None:
            raise BackendError("this runtime is closed; make a new HBAFRuntime")
        engine.check_process()
        return engine

    @property
    def provider(self) -> str:
        """Where it runs; with provider="auto" what was picked."""
        return self.engine.backend.provider

    @property
    def threads(self) -> int:
        """CPU threads of the audio encoder's operators."""
        return self.engine.backend.threads

    def close(self) -> None:
        """Release the model. In-flight calls finish normally. Safe to call more than once."""
        engine, self._engine = self._engine, None
        if engine is not None:
            engine.workers.end()

    def __reduce__(self) -> NoReturn:
        raise BackendError("a runtime cannot be copied or pickled; make one in each process, threads can share it")

    def __enter__(self) -> HBAFRuntime:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def warmup(self) -> None:
        """Run turns of 1, 3 and 10 s with words on a conversation of their own, so that the first real one is quick."""
        noise = np.random.default_rng(0).standard_normal(10 * 16_000).astype(np.float32) * 0.01
        for seconds in (1, 3, 10):
            words = "And how do you feel about that?"
            turn = TurnInput(audio=noise[: seconds * 16_000], sample_rate=16_000, text=words)
            self._predict([turn], is_told=False)

    def stats(self) -> dict[str, Any]:
        """Turns and failed calls so far, p50, p90 and p99 of each stage in milliseconds, and resident memory in MB.

        >>> runtime = HBAFRuntime()
        >>> _ = runtime.predict(text="We won!")
        >>> runtime.stats()["turns"]
        1
        """
        return self._stats.to_json()

    def __repr__(self) -> str:
        if self._engine is None:
            return "<HBAFRuntime, closed>"
        ran = f"{self._engine.backend.detail}, {self._engine.backend.threads} threads"
        return "\n".join([f"<HBAFRuntime on {ran}", *(f"  {line}" for line in describe(self.manifest))]) + ">"

    def conversation(self) -> Conversation:
        """A new, empty conversation."""
        m = self.manifest
        return Conversation(self._key, Sizes(int(m["window"]), int(m["dialogue_layers"]), int(m["width"])))

    def load_conversation(self, source: str | os.PathLike[str] | bytes) -> Conversation:
        """A conversation from a file that `Conversation.save` wrote, or from the bytes of `Conversation.to_bytes`.

        It goes on bit for bit as it would have.

        Raises:
            StateError: the file is missing, cut, edited, of a newer version, or was begun with another bundle.

        >>> runtime = HBAFRuntime()
        >>> chat = runtime.conversation()
        >>> _ = runtime.predict(text="We won!", conversation=chat)
        >>> runtime.load_conversation(chat.to_bytes()).turn
        1
        """
        return self.conversation().restore(source)

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
        turn = TurnInput(
            audio=audio, text=text, speaker=speaker, conversation=conversation, sample_rate=sample_rate,
            sample_format=sample_format,
        )  # fmt: skip
        return self._counted(lambda: self._predict([turn]))[0].prediction

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
        """`predict` for asyncio; the loop goes on meanwhile. Turns of a conversation are in the order of the calls.

        Cancelling the wait does not take the turn back.

        >>> import asyncio
        >>> asyncio.run(HBAFRuntime().apredict(text="We won!")).modalities
        ('text',)
        """
        turn = TurnInput(
            audio=audio, text=text, speaker=speaker, conversation=conversation, sample_rate=sample_rate,
            sample_format=sample_format,
        )  # fmt: skip
        pending = self._counted(lambda: self._pending(turn))
        pending.start(on_a_thread=audio is not None)
        return await asyncio.shield(asyncio.wrap_future(pending.future))

    def submit(self, audio: Any = None, **arguments: Any) -> Future[Prediction]:
        """`predict`'s arguments -> a future of its result. Audio is decoded before it returns, on the caller's thread.

        A future's callbacks run on the runtime's threads; a future that is cancelled before its turn is committed takes
        the turn back.

        Raises:
            InputError: for unusable input; nobody else's turn is touched.
            BackendError: too many turns wait.

        >>> runtime = HBAFRuntime(max_batch_size=16, max_wait_ms=2)
        >>> futures = [runtime.submit(text=text) for text in ("We won! I am so happy!", "I hate you!")]
        >>> [future.result().label for future in futures]
        ['joy', 'anger']
        """
        turn: TurnInput = {"audio": audio, **arguments}  # type: ignore[typeddict-item]
        pending = self._counted(lambda: self._pending(check_turn(turn)))
        return self._counted(pending.submit)

    def predict_batch(self, turns: Iterable[TurnInput]) -> list[Prediction]:
        """One turn of each of several conversations, computed together: more turns a second, all as `predict` has them.

        Args:
            turns: of each, a dictionary of `predict`'s arguments.

        Returns:
            a `Prediction` for each; its `timing` is that of all together.

        Raises:
            InputError: one of them cannot be used, or two are of one conversation; nothing is committed.

        >>> runtime = HBAFRuntime()
        >>> [p.label for p in runtime.predict_batch([{"text": "We won! I am so happy!"}, {"text": "I hate you!"}])]
        ['joy', 'anger']
        """
        answers = self._counted(lambda: self._predict(check_turns(turns), numbered=True))
        return [answer.prediction for answer in answers]

    def begin(self, *, speaker: str | None = None, conversation: Conversation | None = None) -> LiveTurn:
        """A turn that is still to be spoken: feed it as the microphone does, then finish it (hbaf_edge/streaming.py).

        Args:
            speaker: as in `predict`.
            conversation: the turns before it; without it the turn stands alone.
        """
        place = Place(self._own(conversation), check_speaker(speaker))
        return LiveTurn(self, place, self._tell, self._stats)

    @contextlib.contextmanager
    def tap(self, tap: Tap) -> Iterator[None]:
        """Show inputs and outputs of every graph that runs while the context is open.

        Args:
            tap: called with a graph's name (audio, text, utterance, dialogue), its inputs and its outputs by name, on
                the thread that computed it. It must not change them.

        Raises:
            BackendError: this provider cannot show them.

        >>> runtime, graphs = HBAFRuntime(), []
        >>> with runtime.tap(lambda graph, inputs, outputs: graphs.append(graph)):
        ...     _ = runtime.predict(text="We won!")
        >>> graphs
        ['text', 'utterance', 'dialogue']
        """
        backend = self.engine.backend
        before = backend.set_tap(tap)
        try:
            yield
        finally:
            backend.set_tap(before)

    def _counted(self, work: Callable[[], Returned]) -> Returned:
        try:
            return work()
        except Exception:
            self._stats.failed()
            raise

    def _tell(self, answers: list[Answer], is_new: bool = True) -> None:
        """Count committed turns and tell of them. What the log or the hook raises, the engine catches."""
        for answer in answers:
            result = answer.prediction
            if is_new:
                self._stats.turn(result.timing)
            try:
                log.debug("turn %d: %s, %.1f ms", result.turn, "+".join(result.modalities), result.timing["total"])
                if self._hook is not None:
                    self._hook(result)
            except BaseException:
                with contextlib.suppress(Exception):  # it may have been the log itself
                    log.exception("on_prediction raised; the turn is committed all the same")

    def _predict(self, turns: list[TurnInput], numbered: bool = False, is_told: bool = True) -> list[Answer]:
        """Turns of different conversations from input to answers."""
        engine = self.engine
        if not turns:
            return []
        call = Call(engine, self._places(turns, numbered), self._tell if is_told else None)
        return call.run(partial(features_of_all, turns, engine.tokeniser, numbered))

    def _pending(self, turn: TurnInput) -> PendingTurn:
        """A turn whose answer goes to a future."""
        (place,) = self._places([turn])
        decode = partial(features_of_all, [turn], self.engine.tokeniser)
        return PendingTurn(self.engine, place, decode, self._tell, self._stats)

    def _places(self, turns: list[TurnInput], numbered: bool = False) -> list[Place]:
        """Conversation and speaker of each turn, checked."""
        places: list[Place] = []
        for number, turn in enumerate(turns):
            with naming(number, len(turns)) if numbered else contextlib.nullcontext():
                place = Place(self._own(turn.get("conversation")), check_speaker(turn.get("speaker")))
                if any(place.conversation is other.conversation for other in places):
                    raise InputError("another one of these turns is of the same conversation; predict them in turn")
            places.append(place)
        return places

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
        if conversation.key != self._key:
            raise InputError(
                "this conversation was begun with another bundle, whose keys mean other things; "
                "make one with this runtime's conversation()"
            )
        return conversation
