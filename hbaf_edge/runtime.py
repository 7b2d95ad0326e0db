"""`HBAFRuntime`: a turn of a conversation in, its emotion out. Follow `predict` from here:
runtime -> features -> backend -> conversation -> prediction.
"""

from __future__ import annotations

import os
import time
from typing import Any

import numpy as np
from numpy.typing import NDArray

from hbaf_edge.backend import Backend, default_threads
from hbaf_edge.bundle import load_bundle
from hbaf_edge.card import describe
from hbaf_edge.conversation import Conversation, Slot
from hbaf_edge.errors import BundleError, InputError
from hbaf_edge.features import Tokeniser, extract
from hbaf_edge.prediction import Prediction, softmax

MAX_THREADS = 256
MAX_SPEAKER = 256  # characters; a conversation keeps W names and must not grow


class HBAFRuntime:
    """Emotion recognition in conversations, turn by turn. Immutable: one runtime serves any number of conversations.

    Args:
        bundle: path of a bundle (folder or `.hbaf` file); None loads the default model inside of the package.
        threads: CPU threads; None takes two (one on a single core).
        provider: where it runs: "cpu", "ort-cuda" or "ort-tensorrt".
        min_confidence: below this probability `Prediction.label` is None.

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
        self._backend = Backend(loaded, provider, threads or default_threads())

    def __repr__(self) -> str:
        ran = f"{self._backend.provider}, {self._backend.threads} threads"
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
        clock = _Clock()
        _check_speaker(speaker)
        chat = self.conversation() if conversation is None else self._own(conversation)
        features = extract(audio, sample_rate, text, self._tokeniser)
        clock("features")
        frames = None if features.mel is None else self._backend.audio(features.mel)
        clock("audio")
        tokens = None if features.tokens is None else self._backend.text(features.tokens)
        clock("text")
        with chat:
            logits, embedding, slot = self._backend.turn(frames, tokens, chat.recall(speaker), clock)
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
