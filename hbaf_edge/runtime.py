"""`HBAFRuntime`: predict the emotion of a conversation's turns. `predict` passes these modules:
runtime -> inputs -> calls -> engine -> backends/onnxruntime -> conversation.
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
from hbaf_edge.calls import Call, TurnResult, TurnTarget
from hbaf_edge.card import describe
from hbaf_edge.conversation import Conversation, Sizes
from hbaf_edge.engine import Engine
from hbaf_edge.errors import BackendError, InputError
from hbaf_edge.inputs import (
    TurnInput,
    check_integer,
    check_number,
    check_speaker,
    check_turn,
    check_turns,
    features_of_turns,
    number_in_errors,
)
from hbaf_edge.pending import PendingTurn
from hbaf_edge.prediction import Prediction
from hbaf_edge.stats import Stats
from hbaf_edge.streaming import LiveTurn

log = logging.getLogger("hbaf_edge")
log.addHandler(logging.NullHandler())
MAX_THREADS = 256
T = TypeVar("T")


class HBAFRuntime:
    """Emotion recognition in conversations, turn by turn. One runtime serves any number of conversations.

    Args:
        bundle: path of a bundle (folder or `.hbaf` file), or the result of `load_bundle`; None loads the default model
            of the package.
        threads: CPU threads of the audio encoder, which takes most of a turn's time. None takes two, or one if the
            process may use only one core (affinity and a container's quota count). With two or more, the text encoder
            runs in parallel with the audio encoder; the later stages use one thread.
        provider: where the model runs: "cpu", "ort-cuda", "ort-tensorrt", our own "cuda" and "tensorrt", or "auto" for
            the best of the first three that works, which is logged.
        min_confidence: `Prediction.label` is None if its probability is lower than this.
        clean_text: remove from every text what was not spoken, such as `<|en|>`, `[LAUGHTER]` or `<b>`, and list it in
            `Prediction.warnings`; False uses texts unchanged.
        on_prediction: called with every `Prediction` after its turn is committed and before the caller has it, on one
            of the runtime's threads. An exception that it raises is logged and changes nothing. It must not wait for
            another turn.
        max_batch_size: number of turns of different conversations, from different threads or tasks, that are computed
            together: more turns a second on a busy server, a few milliseconds more for each turn. 1 turns it off.
        max_wait_ms: milliseconds that the first turn of a batch waits for others.
        max_waiting: number of calls that may wait to be computed; beyond that `predict` raises BackendError at once.
        public_key: PEM file of an Ed25519 key; the bundle must be signed with its private key (extra `sign`).
        kernels: for "cuda" and "tensorrt", folder of `python -m kernels.build --bundle BUNDLE --out FOLDER`; None
            takes the packaged kernels, which fit models of the default sizes.

    A runtime is a context manager; `close` releases the model. A turn is computed on the runtime's threads, one for
    each CPU that this process may use, while its caller waits. Ctrl-C ends the wait at once, and the turn is then not
    committed unless it was committed just before (check `Conversation.turn`). A runtime does not survive `os.fork`:
    make one in each process, and end a forked child that inherited one with `os._exit`, as multiprocessing does. The
    logger "hbaf_edge" reports every turn at level DEBUG, but never its text.

    Raises:
        BundleError: the bundle is missing, altered or in a newer format.
        BackendError: the provider is unknown or cannot run here.

    Examples:
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
        check_integer("threads", threads, MAX_THREADS, allow_none=True)
        check_integer("max_batch_size", max_batch_size, 256)
        check_integer("max_waiting", max_waiting, 1_000_000)
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
        """The engine, for calibration and benchmarks.

        Raises:
            BackendError: the runtime is closed, or belongs to another process.
        """
        engine = self._engine
        if engine is None:
            raise BackendError("this runtime is closed; make a new HBAFRuntime")
        engine.check_process()
        return engine

    @property
    def provider(self) -> str:
        """The provider that is used; with provider="auto" the one that was chosen."""
        return self.engine.backend.provider

    @property
    def threads(self) -> int:
        """Number of CPU threads of the audio encoder."""
        return self.engine.backend.threads

    def close(self) -> None:
        """Release the model. In-flight calls finish normally. Safe to call more than once."""
        engine, self._engine = self._engine, None
        if engine is not None:
            engine.workers.stop()

    def __reduce__(self) -> NoReturn:
        raise BackendError("a runtime cannot be copied or pickled; make one in each process, threads can share it")

    def __enter__(self) -> HBAFRuntime:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def warmup(self) -> None:
        """Run turns of 1, 3 and 10 s of audio with text, so that the first real turn is fast. Nothing is counted."""
        noise = np.random.default_rng(0).standard_normal(10 * 16_000).astype(np.float32) * 0.01
        for seconds in (1, 3, 10):
            text = "And how do you feel about that?"
            turn = TurnInput(audio=noise[: seconds * 16_000], sample_rate=16_000, text=text)
            self._predict([turn], is_counted=False)

    def stats(self) -> dict[str, Any]:
        """Return turns and failed calls so far, p50, p90, p99 of each stage in milliseconds, and resident memory in MB.

        Examples:
            >>> runtime = HBAFRuntime()
            >>> _ = runtime.predict(text="We won!")
            >>> runtime.stats()["turns"]
            1
        """
        return self._stats.to_json()

    def __repr__(self) -> str:
        if self._engine is None:
            return "<HBAFRuntime, closed>"
        backend = f"{self._engine.backend.detail}, {self._engine.backend.threads} threads"
        return "\n".join([f"<HBAFRuntime on {backend}", *(f"  {line}" for line in describe(self.manifest))]) + ">"

    def conversation(self) -> Conversation:
        """Return a new, empty conversation."""
        m = self.manifest
        return Conversation(self._key, Sizes(int(m["window"]), int(m["dialogue_layers"]), int(m["width"])))

    def load_conversation(self, source: str | os.PathLike[str] | bytes) -> Conversation:
        """Load a saved conversation. Later predictions are bit for bit those of the original conversation.

        Args:
            source: path of a file that `Conversation.save` wrote, or the bytes of `Conversation.to_bytes`.

        Raises:
            StateError: the file is missing, cut short, edited, of a newer version, or belongs to another bundle.

        Examples:
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
            audio: a path, bytes or binary file object, seekable or not (WAV, FLAC, OGG, MP3 and other formats that
                libsndfile reads; with the extra `av` also WebM, MP4, M4A, AMR and others), or a numpy array
                (samples,) or (samples, channels) of float32, float64, int16 or int32; None without audio.
            text: the transcript in English; None or empty if it is not known. One of audio and text is required.
                Tags, notes and markup of recognisers and captions are removed, with a warning.
            speaker: any name, the same for the same person within the conversation; None or empty means unknown.
            conversation: the turns before this one; None predicts the turn without context.
            sample_rate: Hz, 8,000 to 192,000; required with an array and with raw bytes, omitted otherwise.
            sample_format: format of raw mono bytes without a header: "s16le", "f32le", "mulaw" and others.

        Returns:
            the estimate.

        Raises:
            InputError: the input cannot be used; the conversation is as it was before.
            BackendError: the turn could not be computed, or too many calls wait; nothing was committed.

        Examples:
            >>> p = HBAFRuntime().predict(np.zeros(16_000), sample_rate=16_000, text="Leave me alone, I hate you!")
            >>> p.label, p.modalities, p.warnings
            ('anger', ('text',), ('audio is digital silence: treated as no audio',))
        """
        turn = TurnInput(
            audio=audio, text=text, speaker=speaker, conversation=conversation, sample_rate=sample_rate,
            sample_format=sample_format,
        )  # fmt: skip
        return self._count_failure(lambda: self._predict([turn]))[0].prediction

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
        """`predict` for asyncio; it does not block the event loop. Turns are committed in the order of the calls.

        Cancelling the task does not take the turn back.

        Examples:
            >>> import asyncio
            >>> asyncio.run(HBAFRuntime().apredict(text="We won!")).modalities
            ('text',)
        """
        turn = TurnInput(
            audio=audio, text=text, speaker=speaker, conversation=conversation, sample_rate=sample_rate,
            sample_format=sample_format,
        )  # fmt: skip
        pending = self._count_failure(lambda: self._pending_turn(turn))
        self._count_failure(lambda: pending.start(in_thread=audio is not None))
        return await asyncio.shield(asyncio.wrap_future(pending.future))

    def submit(self, audio: Any = None, **arguments: Any) -> Future[Prediction]:
        """Start `predict` and return a future of its result. Audio is decoded on the caller's thread before it returns.

        The future's callbacks run on the runtime's threads. Cancelling the future before the turn is committed takes
        the turn back.

        Args:
            audio: as in `predict`.
            **arguments: the other arguments of `predict`.

        Raises:
            InputError: the input cannot be used; other turns are not affected.
            BackendError: too many calls wait.

        Examples:
            >>> runtime = HBAFRuntime(max_batch_size=16, max_wait_ms=2)
            >>> futures = [runtime.submit(text=text) for text in ("We won! I am so happy!", "I hate you!")]
            >>> [future.result().label for future in futures]
            ['joy', 'anger']
        """
        turn: TurnInput = {"audio": audio, **arguments}  # type: ignore[typeddict-item]
        pending = self._count_failure(lambda: self._pending_turn(check_turn(turn)))
        return self._count_failure(pending.submit)

    def predict_batch(self, turns: Iterable[TurnInput]) -> list[Prediction]:
        """Predict one turn of each of several conversations together: more turns a second, the same results.

        Args:
            turns: for each turn, a dictionary of `predict`'s arguments.

        Returns:
            a `Prediction` for each turn; its `timing` is that of the whole batch.

        Raises:
            InputError: a turn cannot be used, or two turns belong to one conversation; nothing is committed.

        Examples:
            >>> runtime = HBAFRuntime()
            >>> [p.label for p in runtime.predict_batch([{"text": "We won! I am so happy!"}, {"text": "I hate you!"}])]
            ['joy', 'anger']
        """
        results = self._count_failure(lambda: self._predict(check_turns(turns), is_batch=True))
        return [result.prediction for result in results]

    def begin(self, *, speaker: str | None = None, conversation: Conversation | None = None) -> LiveTurn:
        """Begin a turn that is still being spoken: feed its audio as it is recorded, then finish it.

        Args:
            speaker: as in `predict`.
            conversation: as in `predict`.

        Examples:
            >>> runtime = HBAFRuntime()
            >>> turn = runtime.begin(speaker="anna", conversation=runtime.conversation())
            >>> turn.finish(text="We won! I am so happy!").label
            'joy'
        """
        target = TurnTarget(self._check_conversation(conversation), check_speaker(speaker))
        return LiveTurn(self, target, self._on_commit, self._stats)

    @contextlib.contextmanager
    def tap(self, tap: Tap) -> Iterator[None]:
        """Show the inputs and outputs of every graph that runs inside the context to a function.

        Args:
            tap: called with a graph's name (audio, text, utterance, dialogue) and its inputs and outputs by name, on
                the thread that computed it. It must not change them.

        Raises:
            BackendError: the provider does not support it.

        Examples:
            >>> runtime, graphs = HBAFRuntime(), []
            >>> with runtime.tap(lambda graph, inputs, outputs: graphs.append(graph)):
            ...     _ = runtime.predict(text="We won!")
            >>> graphs
            ['text', 'utterance', 'dialogue']
        """
        backend = self.engine.backend
        previous = backend.set_tap(tap)
        try:
            yield
        finally:
            backend.set_tap(previous)

    def _count_failure(self, work: Callable[[], T]) -> T:
        """Call a function, and count an exception."""
        try:
            return work()
        except Exception:
            self._stats.add_failure()
            raise

    def _on_commit(self, results: list[TurnResult], is_new: bool = True) -> None:
        """Count and log committed turns, and call the hook. An exception in it does not affect the turns."""
        for result in results:
            p = result.prediction
            if is_new:
                self._stats.add_turn(p.timing)
            try:
                log.debug("turn %d: %s, %.1f ms", p.turn, "+".join(p.modalities), p.timing["total"])
                if self._hook is not None:
                    self._hook(p)
            except BaseException:
                with contextlib.suppress(Exception):  # the logger itself may be what failed
                    log.exception("on_prediction raised; the turn is committed all the same")

    def _predict(self, turns: list[TurnInput], is_batch: bool = False, is_counted: bool = True) -> list[TurnResult]:
        """Compute and commit turns of different conversations."""
        engine = self.engine
        if not turns:
            return []
        call = Call(engine, self._targets(turns, is_batch), self._on_commit if is_counted else None)
        return call.run(partial(features_of_turns, turns, engine.tokeniser, is_batch))

    def _pending_turn(self, turn: TurnInput) -> PendingTurn:
        """Make a turn whose result goes to a future."""
        (target,) = self._targets([turn])
        get_features = partial(features_of_turns, [turn], self.engine.tokeniser)
        return PendingTurn(self.engine, target, get_features, self._on_commit, self._stats)

    def _targets(self, turns: list[TurnInput], is_batch: bool = False) -> list[TurnTarget]:
        """Check and return the conversation and speaker of each turn."""
        targets: list[TurnTarget] = []
        for number, turn in enumerate(turns):
            with number_in_errors(number, len(turns)) if is_batch else contextlib.nullcontext():
                conversation = self._check_conversation(turn.get("conversation"))
                target = TurnTarget(conversation, check_speaker(turn.get("speaker")))
                if any(target.conversation is other.conversation for other in targets):
                    raise InputError("another one of these turns is of the same conversation; predict them in turn")
            targets.append(target)
        return targets

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
        """Commit a turn as context and return nothing, for example the robot's own speech.

        Arguments and errors are those of `predict`.
        """
        self.predict(
            audio, text=text, speaker=speaker, conversation=conversation, sample_rate=sample_rate,
            sample_format=sample_format,
        )  # fmt: skip

    def _check_conversation(self, conversation: Conversation | None) -> Conversation:
        """Return the conversation if it belongs to this bundle, or a new one for None."""
        if conversation is None:
            return self.conversation()
        if not isinstance(conversation, Conversation):
            kind = type(conversation).__name__
            raise InputError(f"conversation is of type {kind}; make one with runtime.conversation()")
        if conversation.key != self._key:
            raise InputError(
                "this conversation belongs to another bundle, whose keys are not compatible; "
                "make one with this runtime's conversation()"
            )
        return conversation
