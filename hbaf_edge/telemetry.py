"""ONNX Runtime's telemetry, off before the library loads.

ONNX Runtime 1.29 and newer reports usage by default: loading it writes a device id and a queue of events to the home
folder and looks up the vendor's address. It reads one environment variable, once, while it loads; `import hbaf_edge`
sets it. Where the caller's program imported ONNX Runtime first that is too late: what the library's own switch can
still stop is stopped, and a warning says so.
"""

from __future__ import annotations

import os
import sys
import warnings

SWITCH = "ORT_DISABLE_TELEMETRY"
REPORTS_SINCE = (1, 29)  # ONNX Runtime; on Linux, older versions report nothing


def disable_telemetry() -> None:
    """Turn it off for this process and the processes it starts, whatever the environment said before.

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
    """Whether the switch was set when this process began: later is too late for a library that is loaded already."""
    try:
        with open("/proc/self/environ", "rb") as file:
            return f"{SWITCH}=1".encode() in file.read().split(b"\0")
    except OSError:  # not Linux
        return os.environ.get(SWITCH) == "1"


def reports_usage(version: str) -> bool:
    """Whether an ONNX Runtime of this version reports usage unless it is told not to.

    >>> reports_usage("1.23.2"), reports_usage("1.32.0"), reports_usage("1.30.0rc1"), reports_usage("")
    (False, True, True, True)
    """
    try:
        major, minor = (int(part) for part in version.split(".")[:2])
    except ValueError:
        return True  # a build that does not say its version is not trusted
    return (major, minor) >= REPORTS_SINCE
