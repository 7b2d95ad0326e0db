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


def available_cpus(root: Path = Path("/sys/fs/cgroup"), group: str | None = None) -> int:
    """CPUs that this process may use: those of its affinity, as far as a container's quota goes; at least one.

    Args:
        root: where control groups are mounted.
        group: this process's group below it; None reads it from /proc/self/cgroup.

    >>> 1 <= available_cpus() <= (os.cpu_count() or 1)
    True
    """
    allowed = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    quotas = [quota for folder in _groups(root, group) if (quota := _quota(folder)) is not None]
    return max(1, min(allowed, *(int(quota) for quota in quotas)) if quotas else allowed)


def _groups(root: Path, group: str | None) -> list[Path]:
    """Folders of this process's control group and all above it, of version 2 and of version 1's CPU controller."""
    if group is None:
        lines = (_text("/proc/self/cgroup") or "").splitlines()
        groups = {line.split(":", 2)[1]: line.split(":", 2)[2] for line in lines if line.count(":") >= 2}
    else:
        groups = {"": group, "cpu,cpuacct": group}
    found = []
    for controllers, path in groups.items():
        if not controllers or "cpu" in controllers.split(","):
            base = root / controllers if controllers else root
            inner = base / path.lstrip("/")
            found += [folder for folder in (inner, *inner.parents) if folder == base or base in folder.parents]
    return found


def _quota(folder: Path) -> float | None:
    """CPUs that a control group may use; None where there is no limit."""
    limits = (_text(folder / "cpu.max") or "").split()
    if not limits:
        limits = [_text(folder / f"cpu.cfs_{name}_us") or "" for name in ("quota", "period")]
    try:
        quota, period = (float(limit) for limit in limits)
    except ValueError:  # "max", or no such file
        return None
    return quota / period if quota > 0 and period > 0 else None


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
        "cores_available": available_cpus(),
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
    return (_text(path) or "").strip("\0\n ").split("\n")[0] or None


def _text(path: str | Path) -> str | None:
    try:
        return Path(path).read_text(errors="replace")
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
