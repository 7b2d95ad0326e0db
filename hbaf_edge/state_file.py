"""The file format of a conversation: one block of bytes without pickle, which is read completely or rejected.

    magic 8 | version u32 | header length u32 | header, JSON | rings, float32 little-endian | SHA-256 of all before

The header contains the bundle that computed the keys, the rings' sizes, speakers, and predictions. The rings follow in
this order: context keys, context values, keys, values. `Conversation.to_bytes` returns exactly a file's content. It
contains speakers' names and estimates of their emotions: treat it as personal data.
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
DIGEST = 32  # bytes of the SHA-256
MAX_HEADER = 1 << 22  # bytes
Source = str | os.PathLike[str] | bytes


def encode(header: dict[str, Any], rings: Iterable[NDArray[np.float32]]) -> bytes:
    """Return the content of a file with this header and these rings."""
    text = json.dumps(header, separators=(",", ":")).encode()
    body = HEAD.pack(MAGIC, VERSION, len(text)) + text + b"".join(r.astype("<f4").tobytes() for r in rings)
    return body + hashlib.sha256(body).digest()


def write(path: str | os.PathLike[str], content: bytes) -> None:
    """Write the bytes of `encode` to a file.

    Raises:
        StateError: the file cannot be written; an existing file is unchanged.
    """
    try:
        write_atomically(path, content)
    except (OSError, ValueError) as error:
        reason = f"the conversation cannot be saved ({_reason(error)}); an existing file is unchanged"
        raise StateError(f"{os.fspath(path)}: {reason}") from None


def name_of(source: Source) -> str:
    """Return the name of a path or of bytes in messages."""
    return f"a conversation of {len(source):,} bytes" if isinstance(source, bytes) else str(source)


def read(source: Source, floats: int) -> tuple[dict[str, Any], NDArray[np.float32]]:
    """Read a saved conversation.

    Args:
        source: path of a file, or its bytes.
        floats: number of values in the rings of this bundle's conversations; nothing larger is read.

    Returns:
        the header, and all rings as one array (floats,).

    Raises:
        StateError: the file is missing, cut short, edited, or of another kind, version or size.
    """
    name, limit = name_of(source), HEAD.size + MAX_HEADER + 4 * floats + DIGEST
    content = source if isinstance(source, bytes) else _read_file(source, limit + 1)
    if not content.startswith(MAGIC):
        raise StateError(f"{name} is not a saved conversation; chat.save(path) writes one")
    body, digest = content[:-DIGEST], content[-DIGEST:]
    version = struct.unpack_from("<I", content.ljust(HEAD.size, b"\0"), 8)[0]
    if version > VERSION:
        raise StateError(f"{name} is of version {version}, this hbaf-edge reads up to {VERSION}; upgrade hbaf-edge")
    if not HEAD.size <= len(body) <= limit - DIGEST or hashlib.sha256(body).digest() != digest:
        raise StateError(f"{name} was cut short or altered: its hash does not match; begin a new conversation")
    length = HEAD.unpack_from(body)[2]
    header, rings = body[HEAD.size : HEAD.size + length], body[HEAD.size + length :]
    if len(rings) != 4 * floats:
        raise StateError(f"{name} has {len(rings):,} bytes of rings, this bundle's have {4 * floats:,}")
    try:
        return dict(json.loads(header)), np.frombuffer(rings, "<f4").astype(np.float32)
    except (ValueError, TypeError, RecursionError) as error:
        raise StateError(f"{name}: its header is not JSON ({error})") from None


def _read_file(path: str | os.PathLike[str], limit: int) -> bytes:
    try:
        with open(path, "rb") as file:
            return file.read(limit)
    except (OSError, ValueError, TypeError) as error:
        raise StateError(f"{path!r}: the conversation cannot be read ({_reason(error)})") from None


def _reason(error: Exception) -> str:
    """Return the system's message, or the text of a ValueError, which an invalid path raises."""
    return (error.strerror if isinstance(error, OSError) else None) or str(error)
