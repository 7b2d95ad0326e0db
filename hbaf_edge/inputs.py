"""Checks of the caller's arguments, and the features of a turn's input."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from typing import Any, TypedDict

from hbaf_edge.conversation import Conversation
from hbaf_edge.errors import InputError
from hbaf_edge.features import Features, Tokeniser, extract_features
from hbaf_edge.text import normalise_name

MAX_SPEAKER = 256  # characters; a conversation stores W names and must not grow


class TurnInput(TypedDict, total=False):
    """The arguments of `HBAFRuntime.predict` as a dictionary, for `predict_batch`."""

    audio: Any
    text: str | None
    speaker: str | None
    conversation: Conversation | None
    sample_rate: int | None
    sample_format: str | None


def check_turn(turn: Any) -> TurnInput:
    """Return a turn if it is a dictionary of `predict`'s arguments.

    Raises:
        InputError: it is of another type, or has an unknown argument; the message names it.
    """
    accepted = f"it takes {', '.join(TurnInput.__annotations__)}"
    if not isinstance(turn, dict):
        raise InputError(f"a turn of type {type(turn).__name__} is not accepted; a dictionary is: {accepted}")
    unknown = sorted(set(turn) - set(TurnInput.__annotations__), key=str)
    if unknown:
        raise InputError(f"a turn has no {unknown[0]!r}; {accepted}")
    checked: TurnInput = turn  # type: ignore[assignment]
    return checked


def check_turns(turns: Any) -> list[TurnInput]:
    """Return several turns as a list if each is a dictionary of `predict`'s arguments.

    Raises:
        InputError: one of them is not; the message says which.
    """
    if isinstance(turns, (dict, str)) or not isinstance(turns, Iterable):
        raise InputError(f"turns are of type {type(turns).__name__}; a list of dictionaries is expected")
    checked: list[TurnInput] = list(turns)
    for number, turn in enumerate(checked):
        with number_in_errors(number, len(checked)):
            check_turn(turn)
            check_speaker(turn.get("speaker"))
    return checked


@contextmanager
def number_in_errors(number: int, count: int) -> Iterator[None]:
    """Add the turn's number to errors that are raised inside the context."""
    try:
        yield
    except InputError as error:
        raise InputError(f"turn {number} of these {count}: {error}; nothing was committed") from error


def features_of_turns(turns: Sequence[TurnInput], tokeniser: Tokeniser, is_batch: bool = False) -> list[Features]:
    """Decode the audio of several turns and return the features of each.

    Args:
        turns: checked turns.
        tokeniser: tokeniser of the runtime's bundle.
        is_batch: whether errors name the turn's number.

    Raises:
        InputError: audio or text of a turn cannot be used.
    """
    features = []
    for number, t in enumerate(turns):
        with number_in_errors(number, len(turns)) if is_batch else nullcontext():
            audio, text = t.get("audio"), t.get("text")
            features.append(extract_features(audio, t.get("sample_rate"), text, tokeniser, t.get("sample_format")))
    return features


def check_speaker(speaker: Any) -> str | None:
    """Normalise a speaker's name.

    Args:
        speaker: the caller's argument.

    Returns:
        the normalised name (hbaf_edge/text.py), or None for None and for an empty name: the speaker is unknown.

    Raises:
        InputError: it is not a str, or it is too long.

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


def check_integer(name: str, value: object, maximum: int, allow_none: bool = False) -> None:
    """Raise `InputError` unless the value is a whole number from 1 to `maximum`."""
    if allow_none and value is None:
        return
    if isinstance(value, bool) or not isinstance(value, int) or not 1 <= value <= maximum:
        none = ", or None" if allow_none else ""
        raise InputError(f"{name}={value!r}; a whole number from 1 to {maximum:,} is expected{none}")


def check_number(name: str, value: object, maximum: float) -> None:
    """Raise `InputError` unless the value is a number from 0 to `maximum`."""
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not 0 <= value <= maximum:
        raise InputError(f"{name}={value!r}; a number from 0 to {maximum:,} is expected")
