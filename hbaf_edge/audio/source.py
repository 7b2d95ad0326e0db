"""Open any accepted audio input as one seekable binary file object that never raises.

Decoders written in C call it back, where an exception could only be printed. An error of the caller's file object is
therefore stored, and raised after the decoder has returned.
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

MAX_STREAM_BYTES = 1 << 28  # 256 MiB; a stream that cannot seek is read into memory
CHUNK = 1 << 20


class Source(io.RawIOBase):
    """A seekable, read-only view of audio bytes whose header bytes can be replaced.

    Args:
        handle: a seekable binary file object; `close` closes it only if it is `owned`.
        name: name in messages, such as "'a.wav'".
        owned: whether this module opened the handle.
        notes: warnings for the caller about how it was opened.

    Attributes:
        size: bytes from the handle's initial position to its end.
        error: first error of the handle, to be raised after the decoder has returned.
    """

    def __init__(self, handle: IO[bytes], name: str, owned: bool = False, notes: tuple[str, ...] = ()) -> None:
        self.name, self.notes = name, notes
        self.error: Exception | None = None
        self._handle, self._owned = handle, owned
        self._begin = handle.tell()
        handle.seek(0, io.SEEK_END)  # some file objects return None here
        self.size = handle.tell() - self._begin
        self._position = 0
        self._patches: dict[int, bytes] = {}

    def patch(self, offset: int, replacement: bytes) -> None:
        """Replace the bytes at `offset` for all readers; the file itself is not changed."""
        self._patches[offset] = replacement

    def bytes_at(self, offset: int, count: int) -> bytes:
        """Up to `count` bytes at `offset`; the position does not change."""
        position, self._position = self._position, offset
        data = self.read(count)
        self._position = position
        return data or b""

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def tell(self) -> int:
        return self._position

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        """Set the position. It never fails: a damaged header may ask for positions far outside the file."""
        base = {io.SEEK_SET: 0, io.SEEK_CUR: self._position, io.SEEK_END: self.size}[whence]
        self._position = max(0, min(base + offset, 1 << 62))
        return self._position

    def readinto(self, buffer: Any) -> int:
        view = memoryview(buffer).cast("B")
        count = max(0, min(len(view), self.size - self._position))
        data = self._read(count) if count else b""
        for offset, replacement in self._patches.items():
            data = _apply_patch(data, self._position, offset, replacement)
        view[: len(data)] = data
        self._position += len(data)
        return len(data)

    def _read(self, count: int) -> bytes:
        """`count` bytes at the position; fewer only if the handle ends or raises."""
        try:
            self._handle.seek(self._begin + self._position)
            return read_fully(self._handle, count)
        except Exception as error:
            self.error = self.error or error
            return b""

    def close(self) -> None:
        """Close an owned handle; return a caller's handle to its initial position, so that it can be read again."""
        if not self.closed:
            with contextlib.suppress(Exception):  # it may be closed already, or fail
                if self._owned:
                    self._handle.close()
                else:
                    self._handle.seek(self._begin)
        super().close()


def open_source(source: Any, has_header: bool = True) -> Source:
    """Open a path, bytes or a binary file object.

    A seekable file object is read from its position, or from its start if it was written and not rewound. A stream that
    cannot seek (a pipe, standard input, an HTTP response) is read into memory, to its end.

    Args:
        source: the audio.
        has_header: False for samples without a header.

    Raises:
        InputError: `source` cannot be opened or read.

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
        except Exception as error:  # a caller's file object may raise anything: closed, write-only, a socket's error
            raise InputError(
                f"the audio file object cannot be read ({one_line(error)}); pass one that is open for "
                "reading in binary mode, or its bytes"
            ) from None
    raise InputError(
        f"audio of type {type(source).__name__} is not accepted; pass a path, bytes, a binary file object, "
        "a numpy array with sample_rate, or None"
    )


def _open_path(path: str | bytes) -> Source:
    path = os.fsdecode(path)
    if "://" in path[:12]:
        raise InputError(f"{path!r} is an address; audio is never fetched from a network: download it to a file first")
    try:
        mode = os.stat(path).st_mode
    except (OSError, ValueError):  # ValueError: a NUL character in the name
        raise InputError(f"there is no audio file {path!r} (looked in {os.getcwd()!r})") from None
    if stat.S_ISDIR(mode):
        raise InputError(f"{path!r} is a folder; pass one audio file")
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
        raise InputError(f"{name} is asynchronous: await its read() and pass the bytes")
    if not isinstance(first, (bytes, type(None))):
        raise InputError(f"{name} returns text; open the file in binary mode, with open(path, 'rb')")
    if not _can_seek(source):
        return Source(_read_stream(source, name), name)
    position = source.tell()
    source.seek(0, io.SEEK_END)
    end = source.tell()
    starts_later = has_header and not _is_container(source, position) and _is_container(source, 0)
    if position and (position == end or starts_later):
        source.seek(0)
        return Source(source, name, notes=(f"{name} was not rewound: it was read from its start",))
    source.seek(position)
    return Source(source, name)


def _can_seek(source: Any) -> bool:
    if not hasattr(source, "seekable"):
        return hasattr(source, "seek")
    try:
        return bool(source.seekable())
    except AttributeError:  # tarfile's stream asks its own source, which may not have the method
        return False


def _is_container(source: Any, position: int) -> bool:
    """Whether a known container begins at the position."""
    source.seek(position)
    return bool(container_name(read_fully(source, 1024)))


def _read_stream(handle: Any, name: str) -> io.BytesIO:
    """Read a stream to its end. Raise InputError if it is too long for memory."""
    buffer = io.BytesIO()
    while chunk := read_fully(handle, CHUNK):
        if buffer.write(chunk) and buffer.tell() > MAX_STREAM_BYTES:
            raise InputError(
                f"{name} cannot seek and has more than {MAX_STREAM_BYTES >> 20} MiB; save it to a file first"
            )
    buffer.seek(0)
    return buffer


def one_line(error: Exception) -> str:
    """The text of an exception in one line; its type if it has no text.

    >>> one_line(OSError("disk\\nfell off")), one_line(KeyError())
    ('disk fell off', 'KeyError')
    """
    return " ".join(str(error).split()) or type(error).__name__


def read_fully(handle: Any, count: int) -> bytes:
    """Read `count` bytes from an object that may return fewer at a time; return fewer only at its end."""
    parts = []
    while count > 0:
        part = handle.read(count)
        if part is None:
            raise InputError("the audio file object has no data yet and does not wait for it; pass a blocking one")
        if not isinstance(part, (bytes, bytearray, memoryview)):
            raise InputError("the audio file object returns text; open the file in binary mode, with open(path, 'rb')")
        if not len(part):
            break
        parts.append(bytes(part[:count]))
        count -= len(parts[-1])
    return b"".join(parts)


def _apply_patch(data: bytes, position: int, offset: int, replacement: bytes) -> bytes:
    """`data`, read at `position`, with the bytes at `offset` replaced as far as they are part of it.

    >>> _apply_patch(b"cdef", 2, 0, b"ABC"), _apply_patch(b"cdef", 2, 5, b"FGH")
    (b'Cdef', b'cdeF')
    """
    first, last = max(position, offset), min(position + len(data), offset + len(replacement))
    if first >= last:
        return data
    middle = replacement[first - offset : last - offset]
    return data[: first - position] + middle + data[last - position :]
