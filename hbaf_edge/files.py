"""Files that are written whole or not at all."""

from __future__ import annotations

import contextlib
import os
import tempfile
from pathlib import Path


def write_atomically(path: str | os.PathLike[str], content: bytes, mode: int = 0o600) -> None:
    """Write beside the target and put it there in one step: a kill or a full disk leaves an old file as it was.

    Args:
        path: of the file; its folder must be there.
        content: all of it.
        mode: permissions of the file; by default its owner alone may read it.

    Raises:
        OSError: it cannot be written; nothing has changed.
        ValueError: the path is none, such as one with a zero byte.
    """
    target = Path(path)
    handle, made = tempfile.mkstemp(dir=target.parent, prefix=f".{target.name}.")
    try:
        with os.fdopen(handle, "wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        os.chmod(made, mode)
        os.replace(made, target)
    except BaseException:
        with contextlib.suppress(OSError):
            os.unlink(made)
        raise
