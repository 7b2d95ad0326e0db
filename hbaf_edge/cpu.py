"""What this CPU can do with 8-bit integers."""

from __future__ import annotations

import platform
from functools import cache
from pathlib import Path

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
    info = Path("/proc/cpuinfo")
    return saturates(platform.machine(), info.read_text() if info.exists() else "")
