"""Whatever a caller holds audio in -> one binary file object that can seek and never raises.

Decoders written in C call it back, where an exception could only be printed: what a caller's file object raises is
kept, and raised when the decoder has returned.
"""

from __future__ import annotations

import contextlib
import inspect
import io
import os
import stat
from typing import IO, Any

from hbaf_edge.audio.sniff import container_name
from hbaf_edge.errors import InputError

MAX_STREAM_BYTES = 1 << 28  # 256 MiB of what cannot seek, and so has to be held in memory
CHUNK = 1 << 20


class Source(io.RawIOBase):
    """A seekable, read-only view of audio bytes, in which a few bytes of the header can be replaced.

    Args:
        handle: a binary file object that can seek; it is not closed unless `owned`.
        name: for messages, such as "'a.wav'".
        owned: whether it was opened here.
        notes: what the caller should be told about how it was opened.

    Attributes:
        size: bytes from the place where the handle stood to its end.
        error: what the handle raised, to be raised when the decoder has returned.
    """

    def __init__(self, handle: IO[bytes], name: str, owned: bool = False, notes: tuple[str, ...] = ()) -> None:
        self.name, self.notes = name, notes
        self.error: Exception | None = None
        self._handle, self._owned = handle, owned
        self._begin = handle.tell()
        handle.seek(0, io.SEEK_END)  # some give no place back
        self.size = handle.tell() - self._begin
        self._place = 0
        self._patches: dict[int, bytes] = {}

    def patch(self, offset: int, replacement: bytes) -> None:
        """Let readers see `replacement` in place of the bytes at `offset`; the file itself is not changed."""
        self._patches[offset] = replacement

    def bytes_at(self, offset: int, count: int) -> bytes:
        """Up to `count` bytes at `offset`, without moving the place."""
        place, self._place = self._place, offset
        found = self.read(count)
        self._place = place
        return found or b""

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def tell(self) -> int:
        return self._place

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        """Never fails: a damaged header may ask for places far outside of the file."""
        base = {io.SEEK_SET: 0, io.SEEK_CUR: self._place, io.SEEK_END: self.size}[whence]
        self._place = max(0, min(base + offset, 1 << 62))
        return self._place

    def readinto(self, buffer: Any) -> int:
        view = memoryview(buffer).cast("B")
        wanted = max(0, min(len(view), self.size - self._place))
        found = self._read(wanted) if wanted else b""
        for offset, replacement in self._patches.items():
            found = _overlaid(found, self._place, offset, replacement)
        view[: len(found)] = found
        self._place += len(found)
        return len(found)

    def _read(self, wanted: int) -> bytes:
        """All of so many bytes, fewer only where the handle ends or raises."""
        try:
            self._handle.seek(self._begin + self._place)
            return read_fully(self._handle, wanted)
        except Exception as error:
            self.error = self.error or error
            return b""

    def close(self) -> None:
        """Close what was opened here; a caller's object goes back to where it stood, and can be read again."""
        if not self.closed:
            with contextlib.suppress(Exception):  # it may be closed, or broken
                if self._owned:
                    self._handle.close()
                else:
                    self._handle.seek(self._begin)
        super().close()


def open_source(source: Any, has_header: bool = True) -> Source:
    """Open a path, bytes or a binary file object.

    A file object that can seek is read from where it stands; one that was written and not rewound, from its start. What
    cannot seek (a pipe, standard input, an HTTP response) is read to its end, into memory.

    Args:
        source: what the caller holds.
        has_header: whether it is a file of a known kind, not bare samples.

    >>> open_source(b"RIFF").name
    'the audio of 4 bytes'
    """
    if isinstance(source, (str, os.PathLike)):
        return _open_path(os.fspath(source))
    if isinstance(source, (bytes, bytearray, memoryview)):
        data = bytes(source)
        return Source(io.BytesIO(data), f"the audio of {len(data):,} bytes")
    if hasattr(source, "read"):
        try:
            return _open_object(source, has_header)
        except InputError:
            raise
        except Exception as error:  # a caller's file object may raise anything at all: closed, write-only, a socket's
            raise InputError(
                f"the audio file object cannot be read ({one_line(error)}); give one that is open for "
                "reading in binary mode, or its bytes"
            ) from None
    raise InputError(
        f"audio of type {type(source).__name__} is not accepted; give a path, bytes, a binary file object, "
        "a numpy array with sample_rate, or None"
    )


def _open_path(path: str | bytes) -> Source:
    path = os.fsdecode(path)
    if "://" in path[:12]:
        raise InputError(f"{path!r} is an address; audio is never fetched from a network: save it to a file first")
    try:
        mode = os.stat(path).st_mode
    except (OSError, ValueError):  # ValueError: a zero byte in the name
        raise InputError(f"there is no audio file {path!r} (looked in {os.getcwd()!r})") from None
    if stat.S_ISDIR(mode):
        raise InputError(f"{path!r} is not a file but a folder; give one audio file")
    try:
        handle = open(path, "rb")  # noqa: SIM115 - the source closes it
    except OSError as error:
        raise InputError(f"{path!r} cannot be opened: {error.strerror}") from None
    try:
        if stat.S_ISREG(mode):
            return Source(handle, repr(path), owned=True)
        with handle:
            return Source(_read_stream(handle, repr(path)), repr(path))
    except OSError as error:
        raise InputError(f"{path!r} cannot be read: {error.strerror}") from None


def _open_object(source: Any, has_header: bool) -> Source:
    name = "the audio file object"
    first = source.read(0)
    if inspect.isawaitable(first):
        if inspect.iscoroutine(first):
            first.close()
        raise InputError(f"{name} is asynchronous: await its read() and give the bytes")
    if not isinstance(first, (bytes, type(None))):
        raise InputError(f"{name} gives text; open the file in binary mode, with open(path, 'rb')")
    if not _can_seek(source):
        return Source(_read_stream(source, name), name)
    place = source.tell()
    source.seek(0, io.SEEK_END)
    end = source.tell()
    if place and (place == end or (has_header and not _names_container(source, place) and _names_container(source, 0))):
        source.seek(0)
        return Source(source, name, notes=(f"{name} was not rewound: it was read from its start",))
    source.seek(place)
    return Source(source, name)


def _can_seek(source: Any) -> bool:
    if not hasattr(source, "seekable"):
        return hasattr(source, "seek")
    try:
        return bool(source.seekable())
    except AttributeError:  # tarfile's stream asks what it reads from, which may not know
        return False


def _names_container(source: Any, place: int) -> bool:
    source.seek(place)
    return bool(container_name(read_fully(source, 1024)))


def _read_stream(handle: Any, name: str) -> io.BytesIO:
    """All of a stream, refused where it is longer than can be held."""
    held = io.BytesIO()
    while chunk := read_fully(handle, CHUNK):
        if held.write(chunk) and held.tell() > MAX_STREAM_BYTES:
            raise InputError(
                f"{name} cannot seek and holds more than {MAX_STREAM_BYTES >> 20} MiB; save it to a file and give that"
            )
    held.seek(0)
    return held


def one_line(error: Exception) -> str:
    """What an exception says, or what it is, without line breaks.

    >>> one_line(OSError("disk\\nfell off")), one_line(KeyError())
    ('disk fell off', 'KeyError')
    """
    return " ".join(str(error).split()) or type(error).__name__


def read_fully(handle: Any, wanted: int) -> bytes:
    """So many bytes, from an object that may give fewer at a time; fewer only at its end."""
    parts = []
    while wanted > 0:
        part = handle.read(wanted)
        if part is None:
            raise InputError("the audio file object has no data yet: it does not wait for it; give a blocking one")
        if not isinstance(part, (bytes, bytearray, memoryview)):
            raise InputError("the audio file object gives text; open the file in binary mode, with open(path, 'rb')")
        if not len(part):
            break
        parts.append(bytes(part[:wanted]))
        wanted -= len(parts[-1])
    return b"".join(parts)


def _overlaid(found: bytes, place: int, offset: int, replacement: bytes) -> bytes:
    """What was read at `place`, with the bytes at `offset` replaced as far as they were read."""
    first, last = max(place, offset), min(place + len(found), offset + len(replacement))
    if first >= last:
        return found
    middle = replacement[first - offset : last - offset]
    return found[: first - place] + middle + found[last - place :]
