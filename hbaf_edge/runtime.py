"""`HBAFRuntime`: a turn of a conversation in, its emotion out. Follow `predict` from here:
runtime -> features -> backend -> conversation -> prediction.
"""

from __future__ import annotations

import logging
import os
import time
from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray

from hbaf_edge.backend import Backend, default_threads
from hbaf_edge.bundle import load_bundle
from hbaf_edge.card import describe
from hbaf_edge.conversation import Conversation, Slot
from hbaf_edge.errors import BackendError, BundleError, InputError
from hbaf_edge.features import Tokeniser, extract
from hbaf_edge.prediction import Prediction, softmax
from hbaf_edge.stats import Stats

log = logging.getLogger("hbaf_edge")
log.addHandler(logging.NullHandler())
MAX_THREADS = 256
MAX_SPEAKER = 256  # characters; a conversation keeps W names and must not grow


class HBAFRuntime:
    """Emotion recognition in conversations, turn by turn. Immutable: one runtime serves any number of conversations.

    Args:
        bundle: path of a bundle (folder or `.hbaf` file); None loads the default model inside of the package.
        threads: CPU threads; None takes two (one on a single core).
        provider: where it runs: "cpu", "ort-cuda" or "ort-tensorrt".
        min_confidence: below this probability `Prediction.label` is None.
        on_prediction: called with every `Prediction` after its turn is committed, on the thread that asked; what it
            raises is logged and changes nothing.

    A runtime is a context manager; `close` gives its memory back. It does not survive `os.fork`: make one in each
    process. The logger "hbaf_edge" tells of every turn at level DEBUG, never what was said.

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
        on_prediction: Callable[[Prediction], object] | None = None,
    ) -> None:
        whole = isinstance(threads, int) and not isinstance(threads, bool)
        if threads is not None and not (whole and 1 <= threads <= MAX_THREADS):
            raise InputError(f"threads={threads!r}; a whole number from 1 to {MAX_THREADS} is expected, or None")
        if not isinstance(min_confidence, (int, float)) or not 0 <= min_confidence <= 1:
            raise InputError(f"min_confidence={min_confidence!r}; a probability from 0 to 1 is expected")
        loaded = load_bundle(bundle)
        self.labels = loaded.labels
        self.manifest = loaded.manifest
        self.min_confidence = float(min_confidence)
        self._key = loaded.key
        try:
            self._tokeniser = Tokeniser(loaded.files["tokenizer.json"])
        except Exception as error:  # tokenizers raises bare Exception
            raise BundleError(f"{loaded.path}: tokenizer.json cannot be read: {error}") from None
        if on_prediction is not None and not callable(on_prediction):
            raise InputError(f"on_prediction is of type {type(on_prediction).__name__}; a callable is expected")
        self._hook = on_prediction
        self._stats = Stats()
        self._process = os.getpid()
        self._open: Backend | None = Backend(loaded, provider, threads or default_threads())

    @property
    def _backend(self) -> Backend:
        """The back end, unless it is closed or belongs to another process."""
        backend = self._open
        if backend is None:
            raise BackendError("this runtime is closed; make a new HBAFRuntime")
        if os.getpid() != self._process:
            raise BackendError(
                f"this runtime was made in process {self._process} and its threads did not survive the fork; make an "
                "HBAFRuntime in each process, or start processes with multiprocessing's 'spawn'"
            )
        return backend

    def close(self) -> None:
        """Give the model's memory back; turns under way on other threads end as they would have. Twice is once."""
        self._open = None

    def __enter__(self) -> HBAFRuntime:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def warmup(self) -> None:
        """Run turns of 1, 3 and 10 s with words on a conversation of their own, so that the first real one is quick."""
        noise = np.random.default_rng(0).standard_normal(10 * 16_000).astype(np.float32) * 0.01
        for seconds in (1, 3, 10):
            self._turn(noise[: seconds * 16_000], "And how do you feel about that?", None, self.conversation(), 16_000)

    def stats(self) -> dict[str, Any]:
        """Turns and failed calls so far, p50, p90 and p99 of each stage in milliseconds, and resident memory in MB.

        >>> runtime = HBAFRuntime()
        >>> _ = runtime.predict(text="We won!")
        >>> runtime.stats()["turns"]
        1
        """
        return self._stats.to_json()

    def __repr__(self) -> str:
        if self._open is None:
            return "<HBAFRuntime, closed>"
        ran = f"{self._open.provider}, {self._open.threads} threads"
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
    ) -> Prediction:
        """Estimate the emotion expressed in one turn and commit the turn to its conversation.

        Args:
            audio: a path, bytes or binary file object (WAV, FLAC, OGG, MP3), or a numpy array (samples,) or
                (samples, channels) of float32, float64, int16 or int32; None where there is none.
            text: what was said; None or empty where it is not known. Either modality may be absent, not both.
            speaker: any name that is the same for the same person within the conversation; None means unknown.
            conversation: the turns before this one; without it the call stands alone.
            sample_rate: Hz, 8,000 to 192,000; required with an array, left out otherwise.

        Raises:
            InputError: for unusable input; the conversation is as it was before.

        >>> p = HBAFRuntime().predict(np.zeros(16_000), sample_rate=16_000, text="Leave me alone, I hate you!")
        >>> p.label, p.modalities, p.warnings
        ('anger', ('text',), ('audio is digital silence: treated as no audio',))
        """
        try:
            result = self._turn(audio, text, speaker, conversation, sample_rate)
        except Exception:
            self._stats.failed()
            raise
        self._stats.turn(result.timing)
        log.debug("turn %d: %s, %.1f ms", result.turn, "+".join(result.modalities), result.timing["total"])
        self._tell(result)
        return result

    def _tell(self, result: Prediction) -> None:
        """A hook is somebody else's code: what it raises must not look as if the turn had failed."""
        try:
            if self._hook is not None:
                self._hook(result)
        except Exception:
            log.exception("on_prediction raised; the turn is committed all the same")

    def _turn(
        self, audio: Any, text: str | None, speaker: str | None, conversation: Conversation | None, rate: int | None
    ) -> Prediction:
        """`predict` without what is kept about it."""
        clock, backend = _Clock(), self._backend
        _check_speaker(speaker)
        chat = self.conversation() if conversation is None else self._own(conversation)
        features = extract(audio, rate, text, self._tokeniser)
        clock("features")
        frames = None if features.mel is None else backend.audio(features.mel)
        clock("audio")
        tokens = None if features.tokens is None else backend.text(features.tokens)
        clock("text")
        with chat:
            logits, embedding, slot = backend.turn(frames, tokens, chat.recall(speaker), clock)
            result = self._prediction(logits, embedding, slot, chat.turn, speaker, features.warnings, clock)
            # Last: whatever fails above leaves the conversation as it was.
            chat.commit(slot, speaker, result.label, result.confidence, result.modalities)
        return result

    def _prediction(
        self,
        logits: NDArray[Any],
        embedding: NDArray[Any],
        slot: Slot,
        turn: int,
        speaker: str | None,
        warnings: tuple[str, ...],
        clock: _Clock,
    ) -> Prediction:
        modalities = tuple(name for name, used in zip(("audio", "text"), slot.present) if used)
        probabilities = softmax(logits, float(self.manifest["temperatures"]["+".join(modalities)]))
        best = int(np.argmax(probabilities))
        confidence = float(probabilities[best])
        return Prediction(
            label=self.labels[best] if confidence >= self.min_confidence else None,
            confidence=confidence,
            probabilities={label: float(p) for label, p in zip(self.labels, probabilities)},
            modalities=modalities,
            turn=turn,
            speaker=speaker,
            warnings=warnings,
            timing=clock.stages(),
            embedding=embedding,
        )

    def observe(
        self,
        *,
        conversation: Conversation,
        text: str | None = None,
        audio: Any = None,
        speaker: str | None = "robot",
        sample_rate: int | None = None,
    ) -> None:
        """Commit a turn as context and return nothing: the robot's own words, or anyone's that need no estimate.

        Arguments and errors are those of `predict`.
        """
        self.predict(audio, text=text, speaker=speaker, conversation=conversation, sample_rate=sample_rate)

    def _own(self, conversation: Conversation) -> Conversation:
        if not isinstance(conversation, Conversation):
            kind = type(conversation).__name__
            raise InputError(f"conversation is of type {kind}; make one with runtime.conversation()")
        if conversation._key != self._key:
            raise InputError(
                "this conversation was begun with another bundle, whose keys mean other things; "
                "make one with this runtime's conversation()"
            )
        return conversation


def _check_speaker(speaker: Any) -> None:
    if speaker is not None and not isinstance(speaker, str):
        raise InputError(f"speaker is of type {type(speaker).__name__}; a str is expected, or None where unknown")
    if speaker is not None and len(speaker) > MAX_SPEAKER:
        raise InputError(f"speaker is a name of {len(speaker):,} characters; {MAX_SPEAKER} are accepted")


class _Clock:
    """Milliseconds per stage; calling it ends the stage of that name."""

    def __init__(self) -> None:
        self._start = self._last = time.perf_counter()
        self._stages: dict[str, float] = {}

    def __call__(self, stage: str) -> None:
        now = time.perf_counter()
        self._stages[stage] = (now - self._last) * 1e3
        self._last = now

    def stages(self) -> dict[str, float]:
        return {**self._stages, "total": (time.perf_counter() - self._start) * 1e3}
