"""A conversation as bytes or a file: one piece, without pickle, that is whole or is refused.

    magic 8 | version u32 | header length u32 | header, JSON | rings, float32 little-endian | SHA-256 of all before

The header names the bundle whose keys the rings hold, their sizes, who spoke and what was found; the rings follow as
they lie in memory: context keys, context values, keys, values. A file holds exactly these bytes. They hold speakers'
names and estimates of what they expressed: treat them as personal data.
"""

from __future__ import annotations

import hashlib
import json
import os
import struct
from collections.abc import Iterable
from typing import Any

import numpy as np
from numpy.typing import NDArray

from hbaf_edge.errors import StateError
from hbaf_edge.files import write_atomically

MAGIC, VERSION = b"HBAFCHAT", 1
HEAD = struct.Struct("<8sII")
DIGEST = 32
MAX_HEADER = 1 << 22
Source = str | os.PathLike[str] | bytes


def encode(header: dict[str, Any], rings: Iterable[NDArray[np.float32]]) -> bytes:
    """Header and rings as the bytes of a file."""
    text = json.dumps(header, separators=(",", ":")).encode()
    body = HEAD.pack(MAGIC, VERSION, len(text)) + text + b"".join(r.astype("<f4").tobytes() for r in rings)
    return body + hashlib.sha256(body).digest()


def write(path: str | os.PathLike[str], content: bytes) -> None:
    """Write `encode`'s bytes to a file.

    Raises:
        StateError: the file cannot be written; what was there before is as it was.
    """
    try:
        write_atomically(path, content)
    except (OSError, ValueError) as error:
        why = f"the conversation cannot be saved ({_reason(error)}); what was there is untouched"
        raise StateError(f"{os.fspath(path)}: {why}") from None


def name_of(source: Source) -> str:
    """How messages call a path or bytes."""
    return f"a conversation of {len(source):,} bytes" if isinstance(source, bytes) else str(source)


def read(source: Source, floats: int) -> tuple[dict[str, Any], NDArray[np.float32]]:
    """Header and all rings in a row, (floats,).

    Args:
        source: path of a file, or its bytes.
        floats: how many the rings of this bundle's conversations hold; nothing larger is read.

    Raises:
        StateError: the file is missing, cut, edited, or of another kind, version or size.
    """
    name, limit = name_of(source), HEAD.size + MAX_HEADER + 4 * floats + DIGEST
    content = source if isinstance(source, bytes) else _content(source, limit + 1)
    if not content.startswith(MAGIC):
        raise StateError(f"{name} is not a saved conversation; chat.save(path) writes one")
    body, digest = content[:-DIGEST], content[-DIGEST:]
    version = struct.unpack_from("<I", content.ljust(HEAD.size, b"\0"), 8)[0]
    if version > VERSION:
        raise StateError(f"{name} is of version {version}, this hbaf-edge reads up to {VERSION}; upgrade hbaf-edge")
    if not HEAD.size <= len(body) <= limit - DIGEST or hashlib.sha256(body).digest() != digest:
        raise StateError(f"{name} was cut short or altered: its hash does not fit; begin a new conversation")
    length = HEAD.unpack_from(body)[2]
    header, rings = body[HEAD.size : HEAD.size + length], body[HEAD.size + length :]
    if len(rings) != 4 * floats:
        raise StateError(f"{name} holds {len(rings):,} bytes of rings where this bundle's take {4 * floats:,}")
    try:
        return dict(json.loads(header)), np.frombuffer(rings, "<f4").astype(np.float32)
    except (ValueError, TypeError, RecursionError) as error:
        raise StateError(f"{name}: its header is not JSON ({error})") from None


def _content(path: str | os.PathLike[str], limit: int) -> bytes:
    try:
        with open(path, "rb") as file:
            return file.read(limit)
    except (OSError, ValueError, TypeError) as error:
        raise StateError(f"{path!r}: the conversation cannot be read ({_reason(error)})") from None


def _reason(error: Exception) -> str:
    """Why the system refused; a path that is none at all is a ValueError."""
    return (error.strerror if isinstance(error, OSError) else None) or str(error)
