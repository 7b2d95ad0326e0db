"""How every verb of `export` ends when it cannot go on: in one line that says why, never in a traceback."""

from __future__ import annotations

import errno
from collections.abc import Callable

from hbaf_edge.errors import HBAFError

FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


def run(main: Callable[[], None]) -> None:
    """Run a command.

    Raises:
        SystemExit: it could not read a bundle or write a file; nothing half-written stands in a result's place.
    """
    try:
        main()
    except HBAFError as error:
        raise SystemExit(str(error)) from error
    except OSError as error:
        if error.errno is None:
            raise
        advice = "make room, or give --out a place on another disk" if error.errno in FULL else "nothing was replaced"
        where = error.filename or "a file"
        raise SystemExit(f"{where}: {error.strerror}; {advice}") from error
