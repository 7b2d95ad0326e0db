"""Discard what C libraries print, without affecting Python's own streams.

libmpg123, inside libsndfile, prints a line to standard error for every damaged frame of an MP3; libsndfile prints one
to standard output for a damaged ALAC. Neither can be switched off. While they decode, C's two streams point to the null
device. Python writes to the file descriptors and is not affected. Output of C code in other threads is lost meanwhile.
"""

from __future__ import annotations

import ctypes
import os
import platform
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache

# Names of these variables in the C library.
_NAMES = {"linux": ("stdout", "stderr"), "darwin": ("__stdoutp", "__stderrp")}
_lock = threading.Lock()
_users = 0
_saved: list[int | None] = []


@contextmanager
def quiet_c_output() -> Iterator[None]:
    """Discard the output of C code in this process. No effect on systems where that is not possible.

    >>> with quiet_c_output():
    ...     _ = ctypes.CDLL(None).perror(b"discarded") if os.name == "posix" else 0
    """
    global _users
    with _lock:
        _users += 1
        if _users == 1 and (null := _null()):
            _saved[:] = [stream.value for stream in _streams()]
            for stream in _streams():
                stream.value = null
    try:
        yield
    finally:
        with _lock:
            _users -= 1
            if _users == 0 and _saved:
                for stream, value in zip(_streams(), _saved):
                    stream.value = value
                _saved.clear()


def _restore_in_child() -> None:
    """Restore the streams in a forked child.

    A child that is forked while another thread decodes would lose its output, and could wait for that thread's lock.
    """
    global _lock, _users
    _lock, _users = threading.Lock(), 0
    for stream, value in zip(_streams(), _saved):
        stream.value = value
    _saved.clear()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_restore_in_child)


@cache
def _streams() -> list[ctypes.c_void_p]:
    """C's variables for the two streams; empty if they cannot be written (musl keeps them read-only)."""
    if sys.platform == "linux" and platform.libc_ver()[0] != "glibc":
        return []
    try:
        return [ctypes.c_void_p.in_dll(ctypes.CDLL(None), name) for name in _NAMES.get(sys.platform, ())]
    except (OSError, ValueError):
        return []


@cache
def _null() -> int | None:
    """A C stream to the null device, opened once."""
    if not _streams():
        return None
    fopen = ctypes.CDLL(None).fopen
    fopen.restype, fopen.argtypes = ctypes.c_void_p, (ctypes.c_char_p, ctypes.c_char_p)
    stream = fopen(os.devnull.encode(), b"w")
    return int(stream) if stream else None
