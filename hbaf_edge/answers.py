"""The output of `hbaf-edge predict`: for every turn, a `Prediction` or the reason why there is none."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from typing import Any

from hbaf_edge.conversation import Conversation
from hbaf_edge.dialogue_file import FIELDS, Utterance
from hbaf_edge.errors import InputError
from hbaf_edge.prediction import Prediction
from hbaf_edge.runtime import HBAFRuntime
from hbaf_edge.text import normalise_name

NO_PREDICTION: dict[str, Any] = {
    "turn": None,
    "speaker": None,
    "label": None,
    "confidence": None,
    "probabilities": None,
    "modalities": [],
    "warnings": [],
    "timing": None,
}


@dataclass(frozen=True)
class Answer:
    """An utterance with its prediction, or with the error that prevented one."""

    utterance: Utterance
    prediction: Prediction | None
    error: str | None

    def to_json(self) -> str:
        """One line of JSON in ASCII, which is valid in any encoding of the output. All our keys are present.

        Other fields of the input line are repeated unchanged. Fields with the same name as one of our keys, such as a
        reference "label", are under "input".
        """
        u = self.utterance
        predicted = self.prediction.to_json() if self.prediction else NO_PREDICTION
        speaker = self.prediction.speaker if self.prediction else u.speaker
        own = {"source": u.source, "line": u.line, **predicted, "speaker": speaker, "error": self.error}
        reserved = {*own, *FIELDS, "input"}
        repeated = {key: value for key, value in u.fields.items() if key not in reserved}
        clashing = {key: value for key, value in u.fields.items() if key in reserved}
        return json.dumps({**own, **repeated, **({"input": clashing} if clashing else {})}, allow_nan=False)


def predict_dialogues(
    runtime: HBAFRuntime,
    dialogues: Iterable[Iterable[Utterance]],
    *,
    speaker: str | None = None,
    is_one_conversation: bool = False,
    sample_rate: int | None = None,
    sample_format: str | None = None,
) -> Iterator[Answer]:
    """Yield an answer to every utterance, before the next utterance is read.

    Args:
        runtime: the model.
        dialogues: utterances of each dialogue; each dialogue is a separate conversation.
        speaker: speaker of utterances without a speaker.
        is_one_conversation: all dialogues belong to one conversation.
        sample_rate: sample rate of all audio in Hz, as for `HBAFRuntime.predict`.
        sample_format: sample format of all audio without a header.
    """
    conversation = runtime.conversation()
    for dialogue in dialogues:
        if not is_one_conversation:
            conversation = runtime.conversation()
        for utterance in dialogue:
            if utterance.error is None and not normalise_name(utterance.speaker or ""):
                utterance = replace(utterance, speaker=speaker)
            yield _answer(runtime, utterance, conversation, sample_rate, sample_format)


def _answer(
    runtime: HBAFRuntime, utterance: Utterance, conversation: Conversation, rate: int | None, sample_format: str | None
) -> Answer:
    """Predict one utterance. If that fails, the conversation is unchanged."""
    if utterance.error is not None:
        return Answer(utterance, None, utterance.error)
    has_audio = utterance.audio is not None
    try:
        prediction = runtime.predict(
            utterance.audio,
            text=utterance.text,
            speaker=utterance.speaker,
            conversation=conversation,
            sample_rate=rate if has_audio else None,
            sample_format=sample_format if has_audio else None,
        )
    except (InputError, OSError) as error:
        return Answer(utterance, None, f"{error}{_hint(utterance)}")
    return Answer(utterance, prediction, None)


def _hint(utterance: Utterance) -> str:
    """Name the fields of a line without audio and text, because one of them may be misspelt."""
    if not utterance.fields or utterance.audio is not None or utterance.text:
        return ""
    names = ", ".join(map(repr, list(utterance.fields)[:8]))
    return f"; the line has no audio and no text, only {names[:200]}"
