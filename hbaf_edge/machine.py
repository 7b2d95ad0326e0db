"""What this machine is, as far as results and figures depend on it."""

from __future__ import annotations

import os
import platform
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np

EXACT = ("avx512_vnni", "avx_vnni", "avx512vnni", "avxvnni")  # as Linux and FreeBSD spell it
X86 = ("x86_64", "amd64", "i386", "i686")


def saturates(machine: str, flags: str) -> bool:
    """Whether sums of unsigned times signed bytes overflow: on x86 without VNNI, and where nobody can tell.

    Args:
        machine: as `platform.machine` says it.
        flags: of /proc/cpuinfo, empty where there is none.

    >>> saturates("x86_64", "fma avx2"), saturates("x86_64", "avx2 avx512_vnni"), saturates("aarch64", "asimddp")
    (True, False, False)
    """
    return machine.lower() in X86 and not any(name in flags.split() for name in EXACT)


@cache
def saturates_here() -> bool:
    """`saturates` of the machine this runs on."""
    return saturates(platform.machine(), _cpuinfo())


def machine() -> dict[str, Any]:
    """Hardware, versions and flags that a figure depends on."""
    import onnxruntime

    lines = _cpuinfo().splitlines()
    return {
        "cpu": next((line.split(": ", 1)[1] for line in lines if line.startswith("model name")), platform.processor()),
        "vnni": not saturates_here(),
        "cores": os.cpu_count(),
        "system": f"{platform.system()} {platform.machine()}",
        "python": platform.python_version(),
        "numpy": np.__version__,
        "onnxruntime": onnxruntime.__version__,
        "OMP_WAIT_POLICY": os.environ.get("OMP_WAIT_POLICY", "not set"),
        "load_average_1min": round(os.getloadavg()[0], 2) if hasattr(os, "getloadavg") else None,
    }


def _cpuinfo() -> str:
    info = Path("/proc/cpuinfo")
    return info.read_text() if info.exists() else ""
