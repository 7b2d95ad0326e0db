"""Keeps what a C library prints to standard error off the terminal, without touching Python's own.

libmpg123, inside of libsndfile, prints a line for every damaged frame of an MP3 and has no switch that libsndfile
hands on. While it decodes, C's `stderr` points to the null device; Python writes to the descriptor and is not affected,
whatever its threads do meanwhile.
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

_lock = threading.Lock()
_users = 0
_saved: int | None = None


@contextmanager
def quiet_c_stderr() -> Iterator[None]:
    """Within it, C code of this process prints to nowhere; nothing happens on systems where that is not possible.

    >>> with quiet_c_stderr():
    ...     _ = ctypes.CDLL(None).perror(b"nobody reads this") if os.name == "posix" else 0
    """
    _enter()
    try:
        yield
    finally:
        _leave()


def _enter() -> None:
    global _users, _saved
    with _lock:
        _users += 1
        if _users == 1 and (stream := _stream()) is not None:
            null = _null()
            if null:
                _saved, stream.value = stream.value, null


def _leave() -> None:
    global _users, _saved
    with _lock:
        _users -= 1
        if _users == 0 and _saved is not None and (stream := _stream()) is not None:
            stream.value, _saved = _saved, None


@cache
def _stream() -> ctypes.c_void_p | None:
    """C's variable `stderr`; None where it is not one that may be written (musl keeps it read-only)."""
    name = {"linux": "stderr", "darwin": "__stderrp"}.get(sys.platform)
    if name is None or (sys.platform == "linux" and platform.libc_ver()[0] != "glibc"):
        return None
    try:
        return ctypes.c_void_p.in_dll(ctypes.CDLL(None), name)
    except (OSError, ValueError):
        return None


@cache
def _null() -> int | None:
    """A C stream to the null device, opened once and kept."""
    fopen = ctypes.CDLL(None).fopen
    fopen.restype, fopen.argtypes = ctypes.c_void_p, (ctypes.c_char_p, ctypes.c_char_p)
    found = fopen(os.devnull.encode(), b"w")
    return int(found) if found else None
