"""What a caller gives of a turn, checked and turned to features before anything is computed on the model."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable
from typing import Any, NamedTuple, TypedDict

from hbaf_edge.conversation import Conversation
from hbaf_edge.errors import InputError
from hbaf_edge.features import Features, Tokeniser, extract
from hbaf_edge.text import normalise_name

MAX_SPEAKER = 256  # characters; a conversation keeps W names and must not grow


class TurnInput(TypedDict, total=False):
    """`HBAFRuntime.predict`'s arguments, as `predict_many` takes them."""

    audio: Any
    text: str | None
    speaker: str | None
    conversation: Conversation | None
    sample_rate: int | None
    sample_format: str | None


class Prepared(NamedTuple):
    """A turn that has been checked: what the encoders read, its conversation, who speaks, when its call began."""

    features: Features
    chat: Conversation
    speaker: str | None
    begun: float


def prepare(given: TurnInput, tokeniser: Tokeniser, own: Callable[[Conversation | None], Conversation]) -> Prepared:
    """One turn.

    Args:
        given: `HBAFRuntime.predict`'s arguments.
        tokeniser: of the runtime's bundle.
        own: finds a conversation to be of that bundle, or makes one where there is none.

    Raises:
        InputError: something of it cannot be used.
    """
    begun = time.perf_counter()
    takes = f"it takes {', '.join(TurnInput.__annotations__)}"
    if not isinstance(given, dict):
        raise InputError(f"a turn of type {type(given).__name__} is not accepted; a dictionary is: {takes}")
    unknown = sorted(set(given) - set(TurnInput.__annotations__), key=str)
    if unknown:
        raise InputError(f"a turn has no {unknown[0]!r}; {takes}")
    speaker = check_speaker(given.get("speaker"))
    chat = own(given.get("conversation"))
    features = extract(
        given.get("audio"), given.get("sample_rate"), given.get("text"), tokeniser, given.get("sample_format")
    )
    return Prepared(features, chat, speaker, begun)


def prepare_all(turns: Iterable[TurnInput], each: Callable[[TurnInput], Prepared]) -> list[Prepared]:
    """Every turn, or an error that says which of them cannot be used."""
    if isinstance(turns, (dict, str)) or not isinstance(turns, Iterable):
        raise InputError(f"turns are of type {type(turns).__name__}; a list of dictionaries is expected")
    turns, prepared = list(turns), []
    for i, given in enumerate(turns):
        try:
            prepared.append(each(given))
        except InputError as error:
            raise InputError(f"turn {i} of these {len(turns)}: {error}; nothing was committed") from error
    return prepared


def check_speaker(speaker: Any) -> str | None:
    """A speaker's name as a conversation keeps it.

    Args:
        speaker: as the caller has it.

    Returns:
        the normalised name (hbaf_edge/text.py), or None where it is None or empty: nobody knows who speaks.

    Raises:
        InputError: it is no name that a conversation can keep.

    >>> check_speaker(" Anna\\n"), check_speaker("")
    ('Anna', None)
    """
    if speaker is None:
        return None
    if not isinstance(speaker, str):
        raise InputError(f"speaker is of type {type(speaker).__name__}; a str is expected, or None where unknown")
    if len(speaker) > MAX_SPEAKER:
        raise InputError(f"speaker is a name of {len(speaker):,} characters; {MAX_SPEAKER} are accepted")
    return normalise_name(speaker)
