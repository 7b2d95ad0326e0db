"""Properties of this machine that affect predictions and measurements."""

from __future__ import annotations

import math
import os
import platform
from contextlib import suppress
from functools import cache
from importlib import metadata
from pathlib import Path
from typing import Any

import numpy as np

VNNI_FLAGS = ("avx512_vnni", "avx_vnni", "avx512vnni", "avxvnni")  # as Linux and FreeBSD spell them
REPORTED_FLAGS = ("avx2", "avx512f", "avx512_vnni", "avx_vnni", "amx_int8", "asimddp", "i8mm", "sve", "bf16")
X86 = ("x86_64", "amd64", "i386", "i686")


def saturates(machine: str, flags: str) -> bool:
    """Whether the CPU's products of unsigned and signed INT8 can overflow: x86 without VNNI, or with unknown flags.

    Args:
        machine: the value of `platform.machine`.
        flags: the flags in /proc/cpuinfo; empty if unknown.

    >>> saturates("x86_64", "fma avx2"), saturates("x86_64", "avx2 avx512_vnni"), saturates("aarch64", "asimddp")
    (True, False, False)
    """
    return machine.lower() in X86 and not any(name in flags.split() for name in VNNI_FLAGS)


@cache
def saturates_here() -> bool:
    """`saturates` for this machine."""
    return saturates(platform.machine(), _text("/proc/cpuinfo"))


def available_cpus(root: Path = Path("/sys/fs/cgroup"), group: str | None = None) -> int:
    """Number of CPUs that this process may use, by its affinity and its container's quota; at least 1.

    Args:
        root: folder of the control groups.
        group: this process's control group; None reads it from /proc/self/cgroup.

    >>> 1 <= available_cpus() <= (os.cpu_count() or 1)
    True
    """
    allowed = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return max(1, int(min([allowed, *map(_quota, _groups(root, group))])))


def _groups(root: Path, group: str | None) -> list[Path]:
    """Folders of this process's control group and its parents, for version 2 and version 1's CPU controller."""
    lines = [f"::{group}", f":cpu,cpuacct:{group}"] if group else _text("/proc/self/cgroup").splitlines()
    folders = []
    for _, controllers, path in (line.split(":", 2) for line in lines):
        if not controllers or "cpu" in controllers.split(","):
            base = root / controllers
            inner = base / path.lstrip("/")
            folders += [folder for folder in (inner, *inner.parents) if folder == base or base in folder.parents]
    return folders


def _quota(folder: Path) -> float:
    """Number of CPUs that a control group may use; infinity without a limit."""
    limits = _text(folder / "cpu.max").split() or [_text(folder / f"cpu.cfs_{name}_us") for name in ("quota", "period")]
    try:
        quota, period = (float(limit) for limit in limits)
    except ValueError:  # "max", or no such file
        return math.inf
    return quota / period if quota > 0 and period > 0 else math.inf


def machine_info() -> dict[str, Any]:
    """Hardware, versions and settings that measurements depend on."""
    from hbaf_edge.ort import onnxruntime

    cpu = _fields("/proc/cpuinfo")
    flags = (cpu.get("flags") or cpu.get("Features") or "").split()
    memory_kb = _fields("/proc/meminfo").get("MemTotal", "").removesuffix(" kB")
    return {
        "cpu": _cpu_name(cpu),
        "vnni": not saturates_here(),
        "flags": " ".join(name for name in REPORTED_FLAGS if name in flags),
        "cores": os.cpu_count(),
        "cores_available": available_cpus(),
        "memory_gb": round(int(memory_kb) * 1024 / 1e9, 1) if memory_kb else None,
        "governor": _line("/sys/devices/system/cpu/cpu0/cpufreq/scaling_governor"),
        "board": _line("/proc/device-tree/model"),
        "power_mode": _line("/var/lib/nvpmodel/status"),  # on a Jetson, by the number in `nvpmodel -q`: pmode:0000
        **_gpu(),
        "system": f"{platform.system()} {platform.machine()}",
        "python": platform.python_version(),
        "numpy": np.__version__,
        "onnxruntime": onnxruntime.__version__,
        "OMP_WAIT_POLICY": os.environ.get("OMP_WAIT_POLICY", "not set"),
        "load_average_1min": round(os.getloadavg()[0], 2),
    }


def _cpu_name(fields: dict[str, str]) -> str:
    """Name of the processor. An Arm processor may have no name in /proc/cpuinfo; then its part number."""
    part = "CPU implementer {CPU implementer}, part {CPU part}".format(**fields) if "CPU part" in fields else ""
    return fields.get("model name") or fields.get("Model") or part or platform.processor() or platform.machine()


def _gpu() -> dict[str, str]:
    """Name and driver of the first NVIDIA GPU, and versions of TensorRT and PyCUDA; missing ones are left out."""
    cards = sorted(Path("/proc/driver/nvidia/gpus").glob("*/information"))
    info = {"gpu": _fields(cards[0]).get("Model") if cards else None,
            "gpu_driver": _line("/proc/driver/nvidia/version")}  # fmt: skip
    for package in ("tensorrt", "tensorrt_rtx", "pycuda"):
        with suppress(metadata.PackageNotFoundError):
            info[package] = metadata.version(package)
    return {key: value for key, value in info.items() if value}


def _fields(path: str | Path) -> dict[str, str]:
    """Parse lines of "key: value" in a file; the first value of each key."""
    pairs = [line.partition(":") for line in _text(path).splitlines()]
    return {key.strip(): value.strip() for key, colon, value in reversed(pairs) if colon}


def _line(path: str) -> str | None:
    """First line of a file; None if there is none."""
    return _text(path).strip("\0\n ").split("\n")[0] or None


def _text(path: str | Path) -> str:
    """Content of a file; empty if it cannot be read."""
    try:
        return Path(path).read_text(errors="replace")
    except OSError:
        return ""
