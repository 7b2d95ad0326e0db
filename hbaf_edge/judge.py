"""From features to an estimate: the encoders, the two scopes over a conversation's rings, and the probabilities.

`HBAFRuntime` is its face; a turn at once, a turn that is still being spoken and many turns together all come here.
"""

from __future__ import annotations

import os
import time
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from hbaf_edge.backend import Runs
from hbaf_edge.bundle import Bundle
from hbaf_edge.conversation import Conversation, Slot, Turn
from hbaf_edge.errors import BackendError, BundleError
from hbaf_edge.features import Features, Tokeniser
from hbaf_edge.prediction import Prediction, softmax


@dataclass(frozen=True)
class Encoded:
    """An utterance as the encoders see it: states (1, length, dim) of each modality or None, and what to warn of."""

    frames: NDArray[np.float32] | None
    tokens: NDArray[np.float32] | None
    warnings: tuple[str, ...] = ()


class Judge:
    """A bundle's graphs, tokeniser, labels and temperatures; immutable, and shared by all threads.

    Args:
        bundle: verified.
        backend: that runs its graphs.
        min_confidence: below it a label is None.
        clean_text: whether transcripts are cleaned (hbaf_edge/text.py).
    """

    def __init__(self, bundle: Bundle, backend: Runs, min_confidence: float, clean_text: bool = True) -> None:
        self.backend = backend
        self.labels = bundle.labels
        self._temperatures = bundle.manifest["temperatures"]
        self._min_confidence = min_confidence
        self._process = os.getpid()
        try:
            self.tokeniser = Tokeniser(bundle.files["tokenizer.json"], clean_text)
        except Exception as error:  # tokenizers raises bare Exception
            raise BundleError(f"{bundle.path}: tokenizer.json cannot be read: {error}") from None

    @property
    def is_here(self) -> bool:
        """Whether this is the process that made it."""
        return os.getpid() == self._process

    def check_process(self) -> None:
        """ONNX Runtime's threads stay with the process that made them: said, not hung upon."""
        if not self.is_here:
            raise BackendError(
                f"this runtime was made in process {self._process} and its threads did not survive the fork; make an "
                "HBAFRuntime in each process, or start processes with multiprocessing's 'spawn'"
            )

    def encode(self, features: Features, clock: Clock) -> Encoded:
        """Both encoders, each where there is something for it."""
        return self.encode_many([features], clock)[0]

    def encode_many(self, features: Sequence[Features], clock: Clock) -> list[Encoded]:
        """Several utterances: texts padded and masked, sounds of one length together.

        Whisper's encoder has no mask for lengths and its convolutions carry a bias, so a shorter sound beside a longer
        one would hear other things than it does alone.
        """
        said = {i: f.tokens for i, f in enumerate(features) if f.tokens is not None}
        lengths: dict[int, list[int]] = {}
        for i, f in enumerate(features):
            if f.mel is not None:
                lengths.setdefault(f.mel.shape[1], []).append(i)

        def read() -> tuple[dict[int, NDArray[np.float32]], float]:
            begun = time.perf_counter()
            found = dict(zip(said, self.backend.text(list(said.values())))) if said else {}
            return found, (time.perf_counter() - begun) * 1e3

        # The audio encoder takes four times as long, and alone can hardly use a second thread.
        beside = self.backend.beside
        texts = beside.start(read) if beside is not None and said and lengths else read
        frames: dict[int, NDArray[np.float32]] = {}
        for rows in lengths.values():
            states = self.backend.audio(np.stack([m for i in rows if (m := features[i].mel) is not None]))
            frames |= {i: states[j : j + 1] for j, i in enumerate(rows)}
        clock("audio")
        tokens, took = texts()
        clock("text", took)
        return [Encoded(frames.get(i), tokens.get(i), f.warnings) for i, f in enumerate(features)]

    def estimate(
        self,
        encoded: Encoded,
        chat: Conversation,
        speaker: str | None,
        clock: Clock,
        commit: bool = True,
        amended: Turn | None = None,
    ) -> tuple[Prediction, Turn | None]:
        """The turn among earlier ones, committed unless told otherwise.

        Args:
            encoded: its states.
            chat: its conversation; it is locked meanwhile.
            speaker: who speaks.
            clock: times the stages.
            commit: whether later turns shall see it.
            amended: the committed turn whose place it takes, which must be the last one.
        """
        with chat._lock:
            number = chat.turn if amended is None else chat.last(amended)
            (found,) = self.backend.turns(
                [encoded.frames], [encoded.tokens], [chat], [chat.recall(speaker, number)], clock
            )
            result = self._prediction(*found, number, speaker, encoded.warnings, clock.stages())
            # Last: whatever fails above leaves the conversation as it was.
            return result, chat.commit(found[2], speaker, *_noted(result), number) if commit else None

    def estimate_many(
        self, encoded: Sequence[Encoded], chats: Sequence[Conversation], speakers: Sequence[str | None], clock: Clock
    ) -> list[Prediction]:
        """One turn of each of several conversations together; all are committed, or none."""
        with ExitStack() as locks:
            # In one order everywhere, so that two callers with the same conversations cannot wait for each other.
            for chat in sorted(chats, key=id):
                locks.enter_context(chat._lock)
            recalls = [chat.recall(speaker) for chat, speaker in zip(chats, speakers)]
            found = self.backend.turns([e.frames for e in encoded], [e.tokens for e in encoded], chats, recalls, clock)
            results = [
                self._prediction(*one, chat.turn, speaker, e.warnings, clock.stages())
                for one, chat, speaker, e in zip(found, chats, speakers, encoded)
            ]
            for chat, one, result, speaker in zip(chats, found, results, speakers):
                chat.commit(one[2], speaker, *_noted(result))
        return results

    def _prediction(
        self,
        logits: NDArray[Any],
        embedding: NDArray[Any],
        slot: Slot,
        turn: int,
        speaker: str | None,
        warnings: tuple[str, ...],
        timing: dict[str, float],
    ) -> Prediction:
        modalities = tuple(name for name, used in zip(("audio", "text"), slot.present) if used)
        probabilities = softmax(logits, float(self._temperatures["+".join(modalities)]))
        best = int(np.argmax(probabilities))
        confidence = float(probabilities[best])
        return Prediction(
            label=self.labels[best] if confidence >= self._min_confidence else None,
            confidence=confidence,
            probabilities={label: float(p) for label, p in zip(self.labels, probabilities)},
            modalities=modalities,
            turn=turn,
            speaker=speaker,
            warnings=warnings,
            timing=timing,
            embedding=embedding.copy(),  # not a view that keeps a whole batch
        )


def _noted(result: Prediction) -> tuple[str | None, float, tuple[str, ...]]:
    """What a conversation remembers of a prediction."""
    return result.label, result.confidence, result.modalities


class Clock:
    """Milliseconds per stage; calling it ends the stage of that name."""

    def __init__(self) -> None:
        self._start = self._last = time.perf_counter()
        self._stages: dict[str, float] = {}

    def __call__(self, stage: str, took: float | None = None) -> None:
        """End a stage that began with the last one's end, or that `took` so long beside others."""
        now = time.perf_counter()
        self._stages[stage] = (now - self._last) * 1e3 if took is None else took
        self._last = now

    def waited(self) -> None:
        """What passed until now is of no stage, but of the total."""
        self._last = time.perf_counter()

    def stages(self) -> dict[str, float]:
        """Those that have ended, and the total, to which stages that ran beside each other add less than their sum."""
        return {**self._stages, "total": (time.perf_counter() - self._start) * 1e3}
