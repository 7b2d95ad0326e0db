"""Dialogue files: every line gives a turn or an error, an invalid line does not stop the next, memory is bounded."""

import io
import json
from pathlib import Path

import pytest

from hbaf_edge import InputError
from hbaf_edge.dialogue_file import MAX_DEPTH, MAX_LINE, find_source, read_dialogue, read_utterances


def read(content):
    return list(read_utterances(io.BytesIO(content), "d.jsonl", Path("folder")))


def test_lines_of_all_editors_are_read():
    """Byte-order marks (also in the middle), CRLF, blank lines, U+2028 in a string, no line break at the end."""
    content = b'\xef\xbb\xbf{"text": "a"}\r\n\r\n  \n\xef\xbb\xbf{"text": "one\xe2\x80\xa8two"}\r\n{"audio": "b.wav"}'
    first, second, third = read(content)
    assert (first.text, first.line, first.error) == ("a", 1, None)
    assert (second.text, second.line) == ("one\u2028two", 4)
    assert (third.audio, third.text, third.line) == (Path("folder/b.wav"), None, 5)


@pytest.mark.parametrize(
    ("line", "message"),
    [
        (b"not json", "not JSON"),
        (b'{"text": "a"', "not JSON"),
        (b"[1]", "an array"),
        (b"null", "null"),
        (b"7", "a number"),
        (b'{"text": 5}', "text is 5; a string or null"),
        (b'{"text": "a", "audio": {"path": "b"}, "speaker": [1]}', "audio is {'path': 'b'}; speaker is [1]"),
        (b'{"text": "\xff"}', "not UTF-8"),
        (b'{"text": "a", "start": NaN}', "NaN"),
        (b'{"text": "a", "start": -Infinity}', "-Infinity"),
        (b'{"text": "a", "start": 1e999}', "1e999"),
        (b'{"text": "a", "id": ' + b"1" * 5000 + b"}", "not JSON"),
        (b'{"text": "a\0"}', "not JSON"),
        (b'{"text": "a", "x": ' + b"[" * 100_000 + b"]" * 100_000 + b"}", "nested deeper"),
        (b'{"text": "a", "x": ' + b"[" * MAX_DEPTH + b"]" * MAX_DEPTH + b"}", "nested deeper"),
        (b'{"text": "' + b"a" * MAX_LINE + b'"}', "longer than 1,048,576 bytes"),
    ],
)
def test_invalid_line_becomes_one_turn_with_an_error(line, message):
    before, invalid, after = read(b'{"text": "before"}\n' + line + b'\n{"text": "after"}\n')
    assert (before.text, after.text, after.line) == ("before", "after", 3)
    assert message in invalid.error
    assert len(invalid.error) < 250
    assert invalid.line == 2
    assert invalid.error in invalid.located_error(invalid.error)
    assert invalid.located_error("x") == "d.jsonl, line 2: x"
    first, after = read(line + b'\n{"text": "after"}\n')[-2:]  # also as the first line: it is not a binary file
    assert (first.line, after.text) == (1, "after")


def test_line_of_the_maximum_length_is_read():
    text = "a" * (MAX_LINE - len('{"text": ""}'))
    for end in (b"\n", b""):
        (turn,) = read(json.dumps({"text": text}).encode() + end)
        assert turn.text == text


def test_endless_line_needs_little_memory():
    class Endless(io.RawIOBase):
        """64 MB without a line break."""

        left = 64 << 20

        def readable(self):
            return True

        def readinto(self, buffer):
            size = min(len(buffer), self.left)
            buffer[:size] = b"a" * size
            self.left -= size
            return size

    import tracemalloc

    tracemalloc.start()
    (turn,) = read_utterances(io.BufferedReader(Endless()), "-", Path())
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert "longer than" in turn.error
    assert peak < 8 * MAX_LINE


def test_each_turn_is_yielded_before_the_next_line_is_read():
    lines = [b'{"text": "a"}\n', b'{"text": "b"}\n']

    class Stream:
        def readline(self, limit):
            return lines.pop(0) if lines else b""

    turns = read_utterances(Stream(), "-", Path())
    assert next(turns).text == "a"
    assert len(lines) == 1


@pytest.mark.parametrize(
    "content",
    [
        b"RIFF\x24\0\0\0WAVEfmt ",
        b"\xff\xfb\x90\x64\n\n",
        '{"text": "hi"}\n'.encode("utf-16"),
        b'{\0"\0t\0',
        b"\xff\xfe\0",
    ],
)
def test_file_is_rejected_when_it_is_not_text(content):
    with pytest.raises(InputError, match=r"d\.jsonl is not a UTF-8 text file"):
        read(content)


def test_find_source_tells_dialogues_from_audio(tmp_path):
    for name, content, is_dialogue in [
        ("a.jsonl", b"", True),
        ("a.NDJSON", b"", True),
        ("a.json", b"", True),
        ("a.txt", b'\xef\xbb\xbf \n{"text": "a"}', True),
        ("a.wav", b"RIFF", False),
        ("a", b"", False),
    ]:
        path = tmp_path / name
        path.write_bytes(content)
        assert find_source(str(path)).is_dialogue is is_dialogue, name
    raw = tmp_path / "a.pcm"
    raw.write_bytes(b"{{{{")
    assert find_source(str(raw)).is_dialogue
    assert not find_source(str(raw), is_raw=True).is_dialogue
    assert find_source("-", is_raw=True).is_dialogue
    assert find_source("/dev/null").is_dialogue
    for name, message in [("nowhere.jsonl", "no dialogue file"), ("a\0b", "no dialogue or audio"), (".", "a folder")]:
        with pytest.raises(InputError, match=message):
            find_source(name)


def test_read_dialogue_raises_at_the_first_invalid_line(tmp_path):
    path = tmp_path / "d.jsonl"
    path.write_text('{"text": "a", "speaker": "anna", "audio": "b.wav", "id": 1}\n{"text": 5}\n')
    turns = read_dialogue(path)
    assert next(turns) == {"audio": tmp_path / "b.wav", "text": "a", "speaker": "anna"}
    with pytest.raises(InputError, match=r"d\.jsonl, line 2: text is 5"):
        next(turns)
