"""A conversation on disk: one file, without pickle, that is whole or is refused.

    magic 8 | version u32 | header length u32 | header, JSON | rings, float32 little-endian | SHA-256 of all before

The header names the bundle whose keys the rings hold, their sizes, who spoke and what was found; the rings follow as
they lie in memory: context keys, context values, keys, values. It holds speakers' names and estimates of what they
expressed: treat the file as personal data.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import struct
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from hbaf_edge.errors import StateError

MAGIC, VERSION = b"HBAFCHAT", 1
HEAD = struct.Struct("<8sII")
DIGEST = 32
MAX_HEADER = 1 << 22


def write(path: str | os.PathLike[str], header: dict[str, Any], rings: list[NDArray[np.float32]]) -> None:
    """Write beside the target and put it there in one step: a kill or a full disk leaves the old file as it was.

    Raises:
        StateError: the file cannot be written.
    """
    text = json.dumps(header, separators=(",", ":")).encode()
    body = HEAD.pack(MAGIC, VERSION, len(text)) + text + b"".join(r.astype("<f4").tobytes() for r in rings)
    target = Path(path)
    made: str | None = None
    try:
        handle, made = tempfile.mkstemp(dir=target.parent, prefix=f".{target.name}.")
        with os.fdopen(handle, "wb") as file:
            file.write(body + hashlib.sha256(body).digest())
            file.flush()
            os.fsync(file.fileno())
        os.replace(made, target)
    except (OSError, ValueError) as error:
        if made is not None:
            with contextlib.suppress(OSError):
                os.unlink(made)
        why = f"the conversation cannot be saved ({_reason(error)}); what was there is untouched"
        raise StateError(f"{target}: {why}") from None


def read(path: str | os.PathLike[str], floats: int) -> tuple[dict[str, Any], NDArray[np.float32]]:
    """Header and all rings in a row, (floats,).

    Args:
        path: of the file.
        floats: how many the rings of this bundle's conversations hold; nothing larger is read.

    Raises:
        StateError: the file is missing, cut, edited, or of another kind, version or size.
    """
    limit = HEAD.size + MAX_HEADER + 4 * floats + DIGEST
    try:
        with open(path, "rb") as file:
            content = file.read(limit + 1)
    except (OSError, ValueError) as error:
        raise StateError(f"{path!r}: the conversation cannot be read ({_reason(error)})") from None
    if not content.startswith(MAGIC):
        raise StateError(f"{path} is not a saved conversation; chat.save(path) writes one")
    body, found = content[:-DIGEST], content[-DIGEST:]
    version = struct.unpack_from("<I", content.ljust(HEAD.size, b"\0"), 8)[0]
    if version > VERSION:
        raise StateError(f"{path} is of version {version}, this hbaf-edge reads up to {VERSION}; upgrade hbaf-edge")
    if not HEAD.size <= len(body) <= limit - DIGEST or hashlib.sha256(body).digest() != found:
        raise StateError(f"{path} was cut short or altered: its hash does not fit; begin a new conversation")
    length = HEAD.unpack_from(body)[2]
    header, rings = body[HEAD.size : HEAD.size + length], body[HEAD.size + length :]
    if len(rings) != 4 * floats:
        raise StateError(f"{path} holds {len(rings):,} bytes of rings where this bundle's take {4 * floats:,}")
    try:
        return dict(json.loads(header)), np.frombuffer(rings, "<f4").astype(np.float32)
    except (ValueError, TypeError, RecursionError) as error:
        raise StateError(f"{path}: its header is not JSON ({error})") from None


def _reason(error: OSError | ValueError) -> str:
    """Why the system refused; a path that is none at all is a ValueError."""
    return (error.strerror if isinstance(error, OSError) else None) or str(error)
