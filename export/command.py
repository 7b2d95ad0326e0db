"""How every verb of `export` ends when it cannot go on: in one line that says why, never in a traceback."""

from __future__ import annotations

import errno
import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

from hbaf_edge.errors import HBAFError


def write_json(path: Path, content: Any, indent: int | None = None) -> None:
    """A JSON file, whole or not at all."""
    path.parent.mkdir(parents=True, exist_ok=True)
    fresh = path.with_name(path.name + ".writing")
    try:
        fresh.write_text(json.dumps(content, indent=indent) + "\n")
        os.replace(fresh, path)
    finally:
        fresh.unlink(missing_ok=True)


FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


def run(main: Callable[[], None]) -> None:
    """Run a command.

    Raises:
        SystemExit: it could not read or write a file.
    """
    try:
        main()
    except HBAFError as error:
        raise SystemExit(str(error)) from error
    except OSError as error:
        if error.errno is None:
            raise
        advice = "; make room, or give --out a place on another disk" if error.errno in FULL else ""
        raise SystemExit(f"{error.filename or 'a file'}: {error.strerror}{advice}") from error
