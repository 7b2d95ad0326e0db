"""Statistics of a runtime: number of turns, milliseconds of each stage, memory. Bounded and thread-safe."""

from __future__ import annotations

import sys
import threading
from collections import deque
from pathlib import Path
from typing import Any

import numpy as np

HISTORY = 1000  # turns whose times are stored


class Stats:
    """Number of all turns, and times of the last 1,000.

    >>> stats = Stats()
    >>> stats.add_turn({"text": 2.0, "total": 3.0})
    >>> stats.add_turn({"text": 4.0, "total": 5.0})
    >>> summary = stats.to_json()
    >>> summary["turns"], summary["stages"]["text"]["p50"]
    (2, 3.0)
    """

    def __init__(self) -> None:
        self._lock = threading.RLock()  # reentrant: a signal handler may call `to_json`
        self._turns = 0
        self._failed = 0
        self._stages: dict[str, deque[float]] = {}

    def add_turn(self, timing: dict[str, float]) -> None:
        """Add one turn's milliseconds by stage."""
        with self._lock:
            self._turns += 1
            for stage, ms in timing.items():
                self._stages.setdefault(stage, deque(maxlen=HISTORY)).append(ms)

    def add_failure(self) -> None:
        """Count one call that raised an error."""
        with self._lock:
            self._failed += 1

    def to_json(self) -> dict[str, Any]:
        """Return turns, failed, stages (p50, p90, p99 in milliseconds over the last 1,000 turns) and resident_mb."""
        with self._lock:
            stages = {name: np.array(values) for name, values in self._stages.items()}
            counts = {"turns": self._turns, "failed": self._failed}
        percentiles = {
            name: {f"p{q}": round(float(np.percentile(ms, q)), 3) for q in (50, 90, 99)} for name, ms in stages.items()
        }
        return {**counts, "stages": percentiles, "resident_mb": resident_mb()}


def resident_mb() -> float | None:
    """Return this process's resident memory in MB, or None if the system does not report it. On macOS: the peak."""
    return peak_mb() if sys.platform == "darwin" else _status_mb("VmRSS")


def peak_mb() -> float | None:
    """Return this process's peak resident memory in MB, or None if the system does not report it."""
    if sys.platform == "darwin":
        import resource

        return round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e6, 1)
    return _status_mb("VmHWM")  # not getrusage: on Linux a child process inherits its parent's peak there


def _status_mb(name: str) -> float | None:
    """Return a value of Linux's /proc/self/status in MB."""
    status = Path("/proc/self/status")
    lines = status.read_text().splitlines() if status.exists() else []
    return next((round(int(line.split()[1]) * 1024 / 1e6, 1) for line in lines if line.startswith(name)), None)
