"""What this machine is, as far as results and figures depend on it."""

from __future__ import annotations

import os
import platform
from contextlib import suppress
from functools import cache
from importlib import metadata
from pathlib import Path
from typing import Any

import numpy as np

EXACT = ("avx512_vnni", "avx_vnni", "avx512vnni", "avxvnni")  # as Linux and FreeBSD spell it
TOLD = ("avx2", "avx512f", "avx512_vnni", "avx_vnni", "amx_int8", "asimddp", "i8mm", "sve", "bf16")  # flags that count
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
    from hbaf_edge.ort import onnxruntime

    lines = _cpuinfo().splitlines()
    flags = " ".join(line.split(":", 1)[-1] for line in lines if line.startswith(("flags", "Features"))).split()
    return {
        "cpu": _cpu(lines),
        "vnni": not saturates_here(),
        "flags": " ".join(name for name in TOLD if name in flags),
        "cores": os.cpu_count(),
        "memory_gb": _memory_gb(),
        "governor": _line("/sys/devices/system/cpu/cpu0/cpufreq/scaling_governor"),
        "board": _line("/proc/device-tree/model"),
        "power_mode": _power_mode(),
        **_gpu(),
        "system": f"{platform.system()} {platform.machine()}",
        "python": platform.python_version(),
        "numpy": np.__version__,
        "onnxruntime": onnxruntime.__version__,
        "OMP_WAIT_POLICY": os.environ.get("OMP_WAIT_POLICY", "not set"),
        "load_average_1min": round(os.getloadavg()[0], 2) if hasattr(os, "getloadavg") else None,
    }


def _cpu(lines: list[str]) -> str:
    """Its name; of an Arm processor, which tells none, the part's number and the system's own word."""
    told: dict[str, str] = {}
    for line in lines:
        key, colon, value = line.partition(":")
        if colon:
            told.setdefault(key.strip(), value.strip())
    named = told.get("model name") or told.get("Model")
    part = f"CPU implementer {told['CPU implementer']}, part {told['CPU part']}" if "CPU part" in told else ""
    return named or part or platform.processor() or platform.machine()


def _gpu() -> dict[str, str]:
    """Name and driver of an NVIDIA card, and TensorRT's version; what is not there is left out."""
    cards = sorted(Path("/proc/driver/nvidia/gpus").glob("*/information"))
    lines = cards[0].read_text(errors="replace").splitlines() if cards else []
    name = next((line.split(":", 1)[1].strip() for line in lines if line.startswith("Model")), None)
    found = {"gpu": name, "gpu_driver": _line("/proc/driver/nvidia/version")}
    for package in ("tensorrt", "tensorrt_rtx", "pycuda"):
        with suppress(metadata.PackageNotFoundError):
            found[package] = metadata.version(package)
    return {key: value for key, value in found.items() if value}


def _line(path: str) -> str | None:
    """A file's first line; None where there is none."""
    try:
        return Path(path).read_text(errors="replace").strip("\0\n ").split("\n")[0] or None
    except OSError:
        return None


def _memory_gb() -> float | None:
    found = _line("/proc/meminfo")
    return round(int(found.split()[1]) * 1024 / 1e9, 1) if found else None


def _power_mode() -> str | None:
    """Of a Jetson, such as 0000, the number that `nvpmodel -q` calls the mode by."""
    found = _line("/var/lib/nvpmodel/status")
    return found.removeprefix("pmode:") if found else None


def _cpuinfo() -> str:
    info = Path("/proc/cpuinfo")
    return info.read_text() if info.exists() else ""
