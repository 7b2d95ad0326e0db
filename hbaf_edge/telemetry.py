"""Turn off ONNX Runtime's telemetry before the library is loaded.

ONNX Runtime 1.29 and newer reports usage by default: loading it writes a device id and a queue of events to the home
folder and resolves the vendor's address. It reads an environment variable once, while it loads, and
`import hbaf_edge` sets this variable. If the program has imported ONNX Runtime before, it is too late: then the
library's own function stops further events, and a warning says so.
"""

from __future__ import annotations

import os
import sys
import warnings

SWITCH = "ORT_DISABLE_TELEMETRY"
FIRST_REPORTING = (1, 29)  # version of ONNX Runtime; older ones report nothing on Linux


def disable_telemetry() -> None:
    """Turn telemetry off for this process and its children, whatever the environment says.

    >>> disable_telemetry()
    >>> os.environ["ORT_DISABLE_TELEMETRY"]
    '1'
    """
    was_off = _was_off_at_start()
    os.environ[SWITCH] = "1"
    loaded = sys.modules.get("onnxruntime")
    if loaded is None:
        return
    stop = getattr(loaded, "disable_telemetry_events", None)
    if stop is not None:
        stop()
    if not was_off and reports_usage(getattr(loaded, "__version__", "")):
        warnings.warn(
            "onnxruntime was imported before hbaf_edge, so its telemetry had already started: it has written a device "
            "id to the home folder. Further events are turned off now. To stop all of it, import hbaf_edge first or "
            f"set {SWITCH}=1 before the program starts",
            RuntimeWarning,
            stacklevel=3,
        )


def _was_off_at_start() -> bool:
    """Whether the variable was set when this process started; for a loaded library only that counts."""
    try:
        with open("/proc/self/environ", "rb") as file:
            return f"{SWITCH}=1".encode() in file.read().split(b"\0")
    except OSError:  # not Linux
        return os.environ.get(SWITCH) == "1"


def reports_usage(version: str) -> bool:
    """Whether this version of ONNX Runtime reports usage by default.

    >>> reports_usage("1.23.2"), reports_usage("1.32.0"), reports_usage("1.30.0rc1"), reports_usage("")
    (False, True, True, True)
    """
    try:
        major, minor = (int(part) for part in version.split(".")[:2])
    except ValueError:
        return True  # an unknown version is assumed to report
    return (major, minor) >= FIRST_REPORTING
