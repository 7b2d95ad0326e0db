"""What `hbaf-edge predict` answers: a `Prediction`, or why there is none, for every turn."""

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

NOT_JUDGED: dict[str, Any] = {
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
    """An utterance with its prediction, or with the reason why it has none."""

    utterance: Utterance
    prediction: Prediction | None
    error: str | None

    def to_json(self) -> str:
        """One line of JSON in ASCII, so that no encoding of the output can spoil it. Our keys are always there.

        Fields of the input are repeated as they are. Those with a name of ours, such as a reference "label", are
        found under "input".
        """
        u = self.utterance
        judged = self.prediction.to_json() if self.prediction else NOT_JUDGED
        speaker = self.prediction.speaker if self.prediction else u.speaker
        ours = {"source": u.source, "line": u.line, **judged, "speaker": speaker, "error": self.error}
        reserved = {*ours, *FIELDS, "input"}
        passed = {key: value for key, value in u.fields.items() if key not in reserved}
        clashing = {key: value for key, value in u.fields.items() if key in reserved}
        return json.dumps({**ours, **passed, **({"input": clashing} if clashing else {})}, allow_nan=False)


def answers(
    runtime: HBAFRuntime,
    dialogues: Iterable[Iterable[Utterance]],
    *,
    speaker: str | None = None,
    is_one_conversation: bool = False,
    sample_rate: int | None = None,
    sample_format: str | None = None,
) -> Iterator[Answer]:
    """An answer to every utterance, before the next one is asked for.

    Args:
        runtime: the model.
        dialogues: each is a conversation of its own.
        speaker: of utterances that name nobody.
        is_one_conversation: the dialogues follow one another in a single conversation.
        sample_rate, sample_format: of all audio, as `HBAFRuntime.predict` takes them.
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
    """Judge one utterance. One that cannot be judged leaves the conversation as it was."""
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
    """What a line holds instead of audio and text: perhaps one of them was misspelt."""
    if not utterance.fields or utterance.audio is not None or utterance.text:
        return ""
    names = ", ".join(map(repr, list(utterance.fields)[:8]))
    return f"; the line has no audio and no text, only {names[:200]}"
