"""The input of `hbaf-edge predict`: audio files, and dialogue files (JSON Lines), which are read line by line.

A line that cannot be used becomes an utterance with an error, so that the rest of the dialogue is still read.
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
MAX_LINE = 1 << 20  # bytes; an endless line must not fill the memory
MAX_DEPTH = 64  # of nested values; reading and writing them are recursive
BOM = b"\xef\xbb\xbf"  # some editors write it at the start; joined files also have it in the middle
EXPECTED = f"JSON Lines with {', '.join(FIELDS)} are expected"


@dataclass(frozen=True)
class Utterance:
    """One input turn: a line of a dialogue file, an audio file, or the options --audio and --text.

    Attributes:
        source: name of its file, as the user wrote it; None with only --text.
        line: number of the line in a dialogue file, from 1; None for other sources.
        audio: a path or a binary file object.
        text: the transcript.
        speaker: the speaker's name.
        fields: the other fields of the line, which its answer repeats.
        error: why it cannot be used, if that is known already.
        is_turn: False if it stands for a source that cannot be read at all; `error` says why.
    """

    source: str | None
    line: int | None = None
    audio: Any = None
    text: str | None = None
    speaker: str | None = None
    fields: Mapping[str, Any] = field(default_factory=dict)
    error: str | None = None
    is_turn: bool = True

    def located_error(self, error: str) -> str:
        """The error with its file and line in front. Without a line, an error that names the file stays as it is."""
        file = "standard input" if self.source == STDIN else self.source
        if self.line is not None:
            return f"{file}, line {self.line}: {error}"
        return error if file is None or error.startswith(file) or repr(file) in error else f"{file}: {error}"


@dataclass(frozen=True)
class Source:
    """A dialogue file, or an audio file with one utterance."""

    name: str
    is_dialogue: bool

    def utterances(self) -> Iterator[Utterance]:
        """Yield every turn as soon as it can be read. Errors do not end the iteration; they are in the utterances."""
        if not self.is_dialogue:
            yield Utterance(self.name, audio=self.name)
            return
        try:
            with contextlib.nullcontext(standard_input()) if self.name == STDIN else open(self.name, "rb") as stream:
                yield from read_utterances(stream, self.name, self._folder())
        except (InputError, OSError) as error:
            yield Utterance(self.name, error=str(error), is_turn=False)

    def _folder(self) -> Path:
        """Base folder of relative audio paths: the file's own folder, or the current one for pipes and devices."""
        on_disk = self.name != STDIN and os.path.isfile(self.name) and not self.name.startswith(("/dev/", "/proc/"))
        return Path(self.name).parent if on_disk else Path()


def standard_input() -> BinaryIO:
    """Standard input as a binary stream."""
    if sys.stdin is None:
        raise InputError("standard input is closed; '-' reads it")
    return sys.stdin.buffer


def find_source(name: str, *, is_raw: bool = False) -> Source:
    """Check a file and decide whether it is a dialogue or audio.

    Args:
        name: a path, or '-' for a dialogue on standard input.
        is_raw: audio files have no header, so they may begin with any byte.

    Raises:
        InputError: there is no such file, or it cannot be read.
    """
    if name == STDIN:
        return Source(name, is_dialogue=True)
    is_dialogue = name.lower().endswith(DIALOGUE_SUFFIXES)
    mode = check_file(name, "dialogue" if is_dialogue else "dialogue or audio")
    if is_dialogue or stat.S_ISFIFO(mode) or stat.S_ISCHR(mode) or stat.S_ISSOCK(mode):
        return Source(name, is_dialogue=True)
    return Source(name, is_dialogue=not is_raw and _begins_with_object(name))


def check_file(name: str, kind: str) -> int:
    """Raise InputError if a file cannot be read; return its mode. `kind` is for the message."""
    try:
        mode = os.stat(name).st_mode
    except (OSError, ValueError) as error:  # ValueError: a NUL character
        reason = getattr(error, "strerror", None) or str(error)
        raise InputError(f"there is no {kind} file {name!r} ({reason}; looked in {os.getcwd()!r})") from None
    if stat.S_ISDIR(mode):
        raise InputError(f"{name!r} is a folder; pass the {kind} files in it")
    if not os.access(name, os.R_OK):
        raise InputError(f"the {kind} file {name!r} cannot be read (permission denied)")
    return mode


def _begins_with_object(path: str) -> bool:
    with open(path, "rb") as file:
        return file.read(4096).removeprefix(BOM).lstrip().startswith(b"{")


def read_utterances(stream: BinaryIO, name: str, folder: Path) -> Iterator[Utterance]:
    """Yield one utterance for each line that is not blank, before the next line is read.

    Args:
        stream: bytes of JSON Lines.
        name: the source's name for answers and messages.
        folder: base folder of relative audio paths.

    Raises:
        InputError: the stream is not text, or has no turns.
    """
    number, is_empty, title = 0, True, "standard input" if name == STDIN else name
    while line := stream.readline(MAX_LINE + 1):
        number += 1
        is_complete = len(line) <= MAX_LINE or line.endswith(b"\n")
        line = line.removeprefix(BOM)
        if is_empty and is_complete and not _is_text(line):
            raise InputError(f"{title} is not a UTF-8 text file; {EXPECTED}; pass audio from a pipe with --audio")
        if is_complete and not line.strip():
            continue
        is_empty = False
        if is_complete:
            yield _utterance(line, number, name, folder)
        else:
            yield Utterance(name, number, error=f"the line is longer than {MAX_LINE:,} bytes; one turn is expected")
            _skip_line(stream)
    if is_empty:
        raise InputError(f"{title} has no turns; {EXPECTED}")


def read_dialogue(path: str | os.PathLike[str]) -> Iterator[dict[str, Any]]:
    """Yield the turns of a dialogue file as dictionaries of audio, text and speaker.

    Raises:
        InputError: a line cannot be used.
    """
    for turn in find_source(os.fspath(path)).utterances():
        if turn.error:
            raise InputError(turn.located_error(turn.error))
        yield {"audio": turn.audio, "text": turn.text, "speaker": turn.speaker}


def _is_text(line: bytes) -> bool:
    """Whether a file that begins with this line can be JSON Lines, and not audio or UTF-16."""
    start = line.lstrip()[:2]
    if start[:1] == b"{" and start != b"{\0":
        return True  # an error in it concerns only this line
    try:
        return "\0" not in line.decode()
    except UnicodeDecodeError:
        return False


def _skip_line(stream: BinaryIO) -> None:
    """Read and discard the rest of a line in small pieces."""
    while (piece := stream.readline(1 << 16)) and not piece.endswith(b"\n"):
        pass


def _utterance(line: bytes, number: int, name: str, folder: Path) -> Utterance:
    """Parse one line; an invalid line becomes an utterance with an error."""
    try:
        value = parse_object(line)
    except InputError as error:
        return Utterance(name, number, error=str(error))
    invalid = [field for field in FIELDS if not isinstance(value.get(field), (str, type(None)))]
    problems = "; ".join(f"{field} is {reprlib.repr(value[field])}" for field in invalid)
    audio, text, speaker = (None if field in invalid else value.get(field) for field in FIELDS)
    return Utterance(
        name,
        number,
        audio=(audio if "://" in audio else folder / audio) if audio else None,  # `load_audio` rejects addresses
        text=text,
        speaker=speaker,
        fields={key: entry for key, entry in value.items() if key not in FIELDS},
        error=f"{problems}; a string or null is expected" if invalid else None,
    )


def parse_object(line: bytes) -> dict[str, Any]:
    """Parse one line to a JSON object whose values can all be written as JSON again.

    Raises:
        InputError: it is not UTF-8, not JSON (NaN is not), not an object, or nested too deeply.

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
    """Parse a number. NaN, Infinity and 1e999 are errors, because JSON cannot represent them."""
    if not math.isfinite(value := float(number)):
        raise ValueError(f"{number[:20]} is not a finite number")
    return value


def _is_deeper(value: Any, levels: int) -> bool:
    """Whether a value is nested deeper than so many levels."""
    if not isinstance(value, (dict, list)):
        return False
    return levels == 0 or any(_is_deeper(v, levels - 1) for v in (value.values() if isinstance(value, dict) else value))
