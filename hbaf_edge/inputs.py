"""What a caller hands over of a turn, checked and turned into features before the model computes anything."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from typing import Any, TypedDict

from hbaf_edge.conversation import Conversation
from hbaf_edge.errors import InputError
from hbaf_edge.features import Features, Tokeniser, extract
from hbaf_edge.text import normalise_name

MAX_SPEAKER = 256  # characters; a conversation keeps W names and must not grow


class TurnInput(TypedDict, total=False):
    """`HBAFRuntime.predict`'s arguments, as `predict_batch` takes them."""

    audio: Any
    text: str | None
    speaker: str | None
    conversation: Conversation | None
    sample_rate: int | None
    sample_format: str | None


def check_turn(turn: Any) -> TurnInput:
    """A dictionary of `predict`'s arguments; anything else is refused.

    Raises:
        InputError: naming what it is, or the argument that there is not.
    """
    takes = f"it takes {', '.join(TurnInput.__annotations__)}"
    if not isinstance(turn, dict):
        raise InputError(f"a turn of type {type(turn).__name__} is not accepted; a dictionary is: {takes}")
    unknown = sorted(set(turn) - set(TurnInput.__annotations__), key=str)
    if unknown:
        raise InputError(f"a turn has no {unknown[0]!r}; {takes}")
    checked: TurnInput = turn  # type: ignore[assignment]
    return checked


def check_turns(turns: Any) -> list[TurnInput]:
    """Several turns, each a dictionary of `predict`'s arguments.

    Raises:
        InputError: saying which of them is not.
    """
    if isinstance(turns, (dict, str)) or not isinstance(turns, Iterable):
        raise InputError(f"turns are of type {type(turns).__name__}; a list of dictionaries is expected")
    checked: list[TurnInput] = list(turns)
    for number, turn in enumerate(checked):
        with naming(number, len(checked)):
            check_turn(turn)
            check_speaker(turn.get("speaker"))
    return checked


@contextmanager
def naming(number: int, count: int) -> Iterator[None]:
    """Errors in the context say which turn of several they are of."""
    try:
        yield
    except InputError as error:
        raise InputError(f"turn {number} of these {count}: {error}; nothing was committed") from error


def features_of_all(turns: Sequence[TurnInput], tokeniser: Tokeniser, numbered: bool = False) -> list[Features]:
    """What the encoders read of each turn; audio is decoded here.

    Args:
        turns: checked.
        tokeniser: of the runtime's bundle.
        numbered: errors say which turn they are of.

    Raises:
        InputError: something of a turn cannot be used.
    """
    features = []
    for number, t in enumerate(turns):
        with naming(number, len(turns)) if numbered else nullcontext():
            audio, text = t.get("audio"), t.get("text")
            features.append(extract(audio, t.get("sample_rate"), text, tokeniser, t.get("sample_format")))
    return features


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


def check_whole(name: str, value: object, most: int, may_be_none: bool = False) -> None:
    """Refuse what is no whole number from 1 to `most`."""
    is_whole = isinstance(value, int) and not isinstance(value, bool)
    if not (may_be_none and value is None) and not (is_whole and 1 <= value <= most):  # type: ignore[operator]
        more = ", or None" if may_be_none else ""
        raise InputError(f"{name}={value!r}; a whole number from 1 to {most:,} is expected{more}")


def check_number(name: str, value: object, most: float) -> None:
    """Refuse what is no number from 0 to `most`."""
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not 0 <= value <= most:
        raise InputError(f"{name}={value!r}; a number from 0 to {most:,} is expected")
