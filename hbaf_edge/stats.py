"""What a runtime has done so far: turns, milliseconds of each stage, memory. Bounded, and safe between threads."""

from __future__ import annotations

import sys
import threading
from collections import deque
from pathlib import Path
from typing import Any

import numpy as np

KEPT = 1000  # turns whose times are remembered


class Stats:
    """Times of the last 1,000 turns and counts of all.

    >>> stats = Stats()
    >>> stats.turn({"text": 2.0, "total": 3.0})
    >>> stats.turn({"text": 4.0, "total": 5.0})
    >>> shown = stats.to_json()
    >>> shown["turns"], shown["stages"]["text"]["p50"]
    (2, 3.0)
    """

    def __init__(self) -> None:
        self._lock = threading.RLock()  # a signal's handler may ask too
        self._turns = 0
        self._failed = 0
        self._stages: dict[str, deque[float]] = {}

    def turn(self, timing: dict[str, float]) -> None:
        """One turn's milliseconds by stage."""
        with self._lock:
            self._turns += 1
            for stage, ms in timing.items():
                self._stages.setdefault(stage, deque(maxlen=KEPT)).append(ms)

    def failed(self) -> None:
        """One call that ended in an error."""
        with self._lock:
            self._failed += 1

    def to_json(self) -> dict[str, Any]:
        """turns, failed, stages (p50, p90, p99 in milliseconds over the last 1,000 turns), resident_mb."""
        with self._lock:
            stages = {name: np.array(values) for name, values in self._stages.items()}
            counts = {"turns": self._turns, "failed": self._failed}
        shown = {
            name: {f"p{q}": round(float(np.percentile(ms, q)), 3) for q in (50, 90, 99)} for name, ms in stages.items()
        }
        return {**counts, "stages": shown, "resident_mb": resident_mb()}


def resident_mb() -> float | None:
    """Resident memory of this process in MB; None where the system does not tell. macOS tells only the most so far."""
    return peak_mb() if sys.platform == "darwin" else _status_mb("VmRSS")


def peak_mb() -> float | None:
    """The most memory of this process that was ever resident, in MB; None where the system does not tell."""
    if sys.platform == "darwin":
        import resource

        return round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e6, 1)
    return _status_mb("VmHWM")  # getrusage would tell the peak of the process that started this one, if that was larger


def _status_mb(name: str) -> float | None:
    """A figure of Linux's status of this process, in MB."""
    status = Path("/proc/self/status")
    lines = status.read_text().splitlines() if status.exists() else []
    return next((round(int(line.split()[1]) * 1024 / 1e6, 1) for line in lines if line.startswith(name)), None)
