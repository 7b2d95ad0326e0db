"""What `hbaf-edge predict` is given: dialogue files (JSON Lines) read line by line as they come, and audio files.

A line that cannot be used becomes an utterance that says why, so that the rest of the dialogue is still read.
"""

from __future__ import annotations

import contextlib
import json
import math
import os
import reprlib
import stat
import sys
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, BinaryIO

from hbaf_edge.errors import InputError

FIELDS = ("audio", "text", "speaker")
DIALOGUE_SUFFIXES = (".jsonl", ".ndjson", ".json")
STDIN = "-"
MAX_LINE = 1 << 20  # bytes: an endless line must not fill the memory
MAX_DEPTH = 64  # of nested values: what was read must also be writable, and both recurse
BOM = b"\xef\xbb\xbf"  # some editors begin a file with it; joined files hold it in the middle
EXPECTED = f"JSON Lines with {', '.join(FIELDS)} are expected"


@dataclass(frozen=True)
class Utterance:
    """One turn as it was given: a line of a dialogue file, an audio file, or the options --audio and --text.

    Attributes:
        source: the file it is of, as the user named it; None for --text alone.
        line: 1-based, of a dialogue file; None elsewhere.
        audio: a path or a binary file object.
        text, speaker: as given.
        fields: the other fields of the line, which its answer repeats.
        error: why it cannot be judged, if that is known already.
        is_turn: False stands for a whole source that cannot be read; `error` says why.
    """

    source: str | None
    line: int | None = None
    audio: Any = None
    text: str | None = None
    speaker: str | None = None
    fields: Mapping[str, Any] = field(default_factory=dict)
    error: str | None = None
    is_turn: bool = True

    def complaint(self, error: str) -> str:
        """The error with the place it belongs to, unless it names the file itself."""
        place = "standard input" if self.source == STDIN else self.source
        if self.line is not None:
            return f"{place}, line {self.line}: {error}"
        return error if place is None or place in error else f"{place}: {error}"


@dataclass(frozen=True)
class Source:
    """A dialogue file, or an audio file that is one utterance."""

    name: str
    is_dialogue: bool

    def utterances(self) -> Iterator[Utterance]:
        """Every turn as soon as it can be read. Errors do not end the iteration: they are in the utterances."""
        if not self.is_dialogue:
            yield Utterance(self.name, audio=self.name)
            return
        try:
            with contextlib.nullcontext(standard_input()) if self.name == STDIN else open(self.name, "rb") as stream:
                yield from read_utterances(stream, self.name, self._folder())
        except (InputError, OSError) as error:
            yield Utterance(self.name, error=str(error), is_turn=False)

    def _folder(self) -> Path:
        """Where relative audio paths begin: the file's own folder; the current one for what has no place on disk."""
        on_disk = self.name != STDIN and os.path.isfile(self.name) and not self.name.startswith(("/dev/", "/proc/"))
        return Path(self.name).parent if on_disk else Path()


def standard_input() -> BinaryIO:
    """Standard input as bytes."""
    if sys.stdin is None:
        raise InputError("standard input is closed; '-' reads it")
    return sys.stdin.buffer


def find_source(name: str, *, is_raw: bool = False) -> Source:
    """Tell dialogue and audio files apart, before anything slow is begun.

    Args:
        name: a path, or '-' for a dialogue on standard input.
        is_raw: audio files hold bare samples, which may begin with any byte.

    Raises:
        InputError: there is no such file.
    """
    if name == STDIN:
        return Source(name, is_dialogue=True)
    is_dialogue = name.lower().endswith(DIALOGUE_SUFFIXES)
    kind = check_file(name, "dialogue" if is_dialogue else "dialogue or audio")
    if is_dialogue or stat.S_ISFIFO(kind) or stat.S_ISCHR(kind) or stat.S_ISSOCK(kind):
        return Source(name, is_dialogue=True)
    return Source(name, is_dialogue=not is_raw and _begins_with_object(name))


def check_file(name: str, kind: str) -> int:
    """Raise InputError where a file cannot be read; return its mode."""
    try:
        mode = os.stat(name).st_mode
    except (OSError, ValueError) as error:  # ValueError: a NUL character
        reason = getattr(error, "strerror", None) or str(error)
        raise InputError(f"there is no {kind} file {name!r} ({reason}; looked in {os.getcwd()!r})") from None
    if stat.S_ISDIR(mode):
        raise InputError(f"{name!r} is a folder; name the {kind} files in it")
    if not os.access(name, os.R_OK):
        raise InputError(f"the {kind} file {name!r} may not be read (permission denied)")
    return mode


def _begins_with_object(path: str) -> bool:
    with open(path, "rb") as file:
        return file.read(4096).removeprefix(BOM).lstrip().startswith(b"{")


def read_utterances(stream: BinaryIO, name: str, folder: Path) -> Iterator[Utterance]:
    """One utterance per line that is not blank, each yielded before the next line is waited for.

    Args:
        stream: bytes of JSON Lines.
        name: what to call it.
        folder: where relative audio paths begin.

    Raises:
        InputError: it is not text at all, or holds no turns.
    """
    number, is_empty, title = 0, True, "standard input" if name == STDIN else name
    while line := stream.readline(MAX_LINE + 1):
        number += 1
        is_whole = len(line) <= MAX_LINE or line.endswith(b"\n")
        line = line.removeprefix(BOM)
        if is_empty and is_whole and not _is_text(line):
            raise InputError(f"{title} is not a UTF-8 text file; {EXPECTED}, and audio from a pipe goes to --audio")
        if not line.strip():
            continue
        is_empty = False
        if is_whole:
            yield _utterance(line, number, name, folder)
        else:
            yield Utterance(name, number, error=f"the line is longer than {MAX_LINE:,} bytes; one turn is expected")
            _skip_line(stream)
    if is_empty:
        raise InputError(f"{title} holds no turns; {EXPECTED}")


def read_dialogue(path: str | os.PathLike[str]) -> Iterator[dict[str, Any]]:
    """Turns of a dialogue file as dictionaries of audio, text and speaker.

    Raises:
        InputError: at the first line that cannot be used.
    """
    for turn in find_source(os.fspath(path)).utterances():
        if turn.error:
            raise InputError(turn.complaint(turn.error))
        yield {"audio": turn.audio, "text": turn.text, "speaker": turn.speaker}


def _is_text(line: bytes) -> bool:
    """Whether a file that begins with this line may be JSON Lines, and not audio or UTF-16."""
    start = line.lstrip()[:2]
    if start[:1] == b"{" and start != b"{\0":
        return True  # whatever is wrong with it, it is wrong with this line
    try:
        return "\0" not in line.decode()
    except UnicodeDecodeError:
        return False


def _skip_line(stream: BinaryIO) -> None:
    """Read the rest of a line in small pieces."""
    while (piece := stream.readline(1 << 16)) and not piece.endswith(b"\n"):
        pass


def _utterance(line: bytes, number: int, name: str, folder: Path) -> Utterance:
    try:
        value = parse_object(line)
    except InputError as error:
        return Utterance(name, number, error=str(error))
    wrong = [field for field in FIELDS if not isinstance(value.get(field), (str, type(None)))]
    problems = "; ".join(f"{field} is {reprlib.repr(value[field])}" for field in wrong)
    audio, text, speaker = (None if field in wrong else value.get(field) for field in FIELDS)
    return Utterance(
        name,
        number,
        audio=(audio if "://" in audio else folder / audio) if audio else None,  # an address is refused as one
        text=text,
        speaker=speaker,
        fields={key: entry for key, entry in value.items() if key not in FIELDS},
        error=f"{problems}; a string or null is expected" if wrong else None,
    )


def parse_object(line: bytes) -> dict[str, Any]:
    """One line -> its JSON object, of which every value can be written as JSON again.

    Raises:
        InputError: it is not UTF-8, not JSON (NaN is none), no object, or too deep.

    >>> parse_object(b'{"text": "Fine.", "id": 7}')
    {'text': 'Fine.', 'id': 7}
    """
    try:
        value = json.loads(line.decode(), parse_float=_finite, parse_constant=_finite)
        is_too_deep = _is_deeper(value, MAX_DEPTH)
    except UnicodeDecodeError as error:
        raise InputError(f"not UTF-8 (byte {error.start + 1} of the line)") from None
    except RecursionError:
        is_too_deep = True
    except ValueError as error:
        reason = f"{error.msg} at character {error.pos + 1}" if isinstance(error, json.JSONDecodeError) else error
        raise InputError(f"not JSON ({reason}); one object per line is expected") from None
    if is_too_deep:
        raise InputError(f"not a turn: values are nested deeper than {MAX_DEPTH} levels")
    if not isinstance(value, dict):
        kind = {list: "an array", str: "a string", bool: "a boolean", type(None): "null"}.get(type(value), "a number")
        raise InputError(f"not an object but {kind}; one object with {', '.join(FIELDS)} is expected")
    return value


def _finite(number: str) -> float:
    """A number of a line. NaN, Infinity and 1e999 could not be written as JSON again."""
    if not math.isfinite(value := float(number)):
        raise ValueError(f"{number[:20]} is no finite number")
    return value


def _is_deeper(value: Any, levels: int) -> bool:
    if not isinstance(value, (dict, list)):
        return False
    return levels == 0 or any(_is_deeper(v, levels - 1) for v in (value.values() if isinstance(value, dict) else value))
