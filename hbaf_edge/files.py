"""Writing a file completely or not at all."""

from __future__ import annotations

import contextlib
import os
import tempfile
from pathlib import Path


def write_atomically(path: str | os.PathLike[str], content: bytes, mode: int = 0o600) -> None:
    """Write a temporary file next to the target, then rename it: after a crash or a full disk the old file is intact.

    Args:
        path: the file; its folder must exist.
        content: the file's bytes.
        mode: the file's permissions; by default only its owner may read it.

    Raises:
        OSError: the file cannot be written; nothing has changed.
        ValueError: the path is invalid, for example it contains a zero byte.
    """
    target = Path(path)
    handle, temporary = tempfile.mkstemp(dir=target.parent, prefix=f".{target.name}.")
    try:
        with os.fdopen(handle, "wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        os.chmod(temporary, mode)
        os.replace(temporary, target)
    except BaseException:
        with contextlib.suppress(OSError):
            os.unlink(temporary)
        raise
