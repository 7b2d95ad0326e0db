"""Watts, where a machine tells them: a Jetson's rails, an NVIDIA card, or Intel's and AMD's RAPL counters.

A Jetson's total is the rail VDD_IN, or VIN on Thor, never the sum of all rails, which count each other. AGX Orin has no
such rail: its module is fed by exactly three, which are added and named so. Whatever is read is a file or NVIDIA's own
library; nothing needs another package but a card's (pip install nvidia-ml-py).
"""

from __future__ import annotations

import itertools
import threading
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import NamedTuple, Protocol

import numpy as np

SYS = Path("/sys")
TOTALS = ("VDD_IN", "POM_5V_IN", "VIN")  # of Orin NX and Nano, of Nano and TX2, of Thor
MODULE = {"VDD_GPU_SOC", "VDD_CPU_CV", "VIN_SYS_5V0"}  # what AGX Orin's module is fed by
CHIPS = ("ina3221", "ina238")
PARTS = 5
EVERY = 0.05  # seconds between two looks at a rail


class Reader(Protocol):
    """Where power can be read.

    Attributes:
        name: what it reads, for people.
    """

    name: str

    def joules(self, work: Callable[[], object]) -> tuple[float, float]:
        """Joules and seconds of a call."""


class Counter:
    """Counters of microjoules.

    Args:
        name: for people.
        read: all of them.
        limits: at which each starts again; 0 where it never does.
    """

    def __init__(self, name: str, read: Callable[[], list[int]], limits: list[int]) -> None:
        self.name, self._read, self._limits = name, read, limits
        read()

    def joules(self, work: Callable[[], object]) -> tuple[float, float]:
        """See `Reader`."""
        before, start = self._read(), time.perf_counter()
        work()
        seconds, after = time.perf_counter() - start, self._read()
        spent = [(b - a) % limit if limit else b - a for a, b, limit in zip(before, after, self._limits)]
        return sum(spent) / 1e6, seconds


class Sampled:
    """Something that tells watts when asked: asked all the while, and added up.

    Args:
        name: for people.
        watts: asks.
    """

    def __init__(self, name: str, watts: Callable[[], float]) -> None:
        self.name, self._watts = name, watts
        watts()

    def joules(self, work: Callable[[], object]) -> tuple[float, float]:
        """See `Reader`."""
        samples, is_over = [(time.perf_counter(), self._watts())], threading.Event()

        def look() -> None:
            while not is_over.wait(EVERY):
                samples.append((time.perf_counter(), self._watts()))

        looking = threading.Thread(target=look, daemon=True)
        looking.start()
        try:
            work()
        finally:
            is_over.set()
            looking.join()
        samples.append((time.perf_counter(), self._watts()))
        total = sum((b - a) * (p + q) / 2 for (a, p), (b, q) in itertools.pairwise(samples))
        return total, samples[-1][0] - samples[0][0]


class Energy(NamedTuple):
    """What turns cost.

    Attributes:
        source: of the figures.
        idle_watts: before and after, nothing running.
        watts: while turns ran one after the other.
        millijoules: of a turn, idle subtracted; near zero or below it where it drowns in noise.
        error: standard error of `millijoules`.
    """

    source: str
    idle_watts: float
    watts: float
    millijoules: float
    error: float


def readers(sys: Path = SYS) -> tuple[list[Reader], list[str]]:
    """All that can be read here, the most complete first, and why what is there cannot be.

    Args:
        sys: of the system; tests give a recorded one.
    """
    available: list[Reader] = []
    refused: list[str] = []
    for make in (jetson, card, rapl):
        try:
            one = make(sys)
        except (OSError, ValueError) as error:
            refused.append(f"{make.__name__}: {error}")
            continue
        if one is not None:
            available.append(one)
    return available, refused


def jetson(sys: Path = SYS) -> Reader | None:
    """The total of a Jetson's power monitors, which hwmon shows as millivolts and milliamperes; None elsewhere."""
    rails = dict(_rails(sys))
    for name in TOTALS:
        if name in rails:
            return Sampled(f"rail {name} (whole board)", partial(_watts, *rails[name]))
    if rails.keys() >= MODULE:
        fed = [rails[name] for name in sorted(MODULE)]
        return Sampled(f"rails {' + '.join(sorted(MODULE))} (module)", lambda: sum(_watts(*rail) for rail in fed))
    if rails:
        raise ValueError(f"rails are {', '.join(sorted(rails))}, none of which is a board's total")
    return None


def _watts(folder: Path, number: str) -> float:
    power = folder / f"power{number}_input"  # microwatts, where the driver has it
    if power.exists():
        return int(_text(power)) / 1e6
    return int(_text(folder / f"in{number}_input")) * int(_text(folder / f"curr{number}_input")) / 1e6


def _rails(sys: Path) -> Iterator[tuple[str, tuple[Path, str]]]:
    """Named rails of every power monitor: folder and number."""
    for chip in sorted((sys / "class" / "hwmon").glob("hwmon*")):
        folder = chip if (chip / "name").exists() else chip / "device"
        if not (folder / "name").exists() or not _text(folder / "name").startswith(CHIPS):
            continue
        for label in sorted(folder.glob("in*_label")):
            yield _text(label), (folder, label.name[2:].split("_")[0])


def card(sys: Path = SYS) -> Reader | None:
    """The first NVIDIA card through NVML; None where there is none, or nvidia-ml-py is not installed."""
    try:
        import pynvml  # type: ignore[import-not-found,import-untyped,unused-ignore]

        pynvml.nvmlInit()
        handle = pynvml.nvmlDeviceGetHandleByIndex(0)
        name = f"NVML, {pynvml.nvmlDeviceGetName(handle)} (card alone)"
    except Exception:  # no package, no driver, no card: NVML's errors are its own
        return None
    try:  # a counter of millijoules since Volta; watts are averages of the last second
        pynvml.nvmlDeviceGetTotalEnergyConsumption(handle)
        return Counter(name, lambda: [1000 * int(pynvml.nvmlDeviceGetTotalEnergyConsumption(handle))], [0])
    except Exception:
        return Sampled(name, lambda: float(pynvml.nvmlDeviceGetPowerUsage(handle)) / 1e3)


def rapl(sys: Path = SYS) -> Reader | None:
    """Energy counters of the processor; None where there are none.

    Raises:
        PermissionError: they are for root alone, as most systems have it.
    """
    zones = [z for z in sorted((sys / "class" / "powercap").glob("*-rapl:*")) if (z / "energy_uj").exists()]
    # Packages alone: their parts, and psys, which laptops have beside them, would count the same energy again.
    zones = [z for z in zones if z.name.count(":") == 1 and _text(z / "name").startswith("package")]
    if not zones:
        return None
    name = f"RAPL, {len(zones)} package{'s' * (len(zones) > 1)} (processor alone)"
    limits = [int(_text(z / "max_energy_range_uj")) for z in zones]
    return Counter(name, lambda: [int(_text(z / "energy_uj")) for z in zones], limits)


def measured(reader: Reader, turn: Callable[[], object], turns: int, idle_seconds: float) -> Energy:
    """Millijoules of a turn, what an idle machine takes subtracted.

    Args:
        reader: of `readers`.
        turn: one.
        turns: how many, in five parts.
        idle_seconds: how long nothing runs before and after, when the machine has settled.
    """
    each, parts = max(1, turns // PARTS), []
    time.sleep(idle_seconds / 5)
    before, seconds = reader.joules(lambda: time.sleep(idle_seconds))
    for _ in range(PARTS):
        parts.append(reader.joules(lambda: [turn() for _ in range(each)]))
    time.sleep(idle_seconds / 5)
    after, more = reader.joules(lambda: time.sleep(idle_seconds))
    resting = (before + after) / (seconds + more)
    spent = np.array([(joules - resting * took) / each * 1e3 for joules, took in parts])
    drift = abs(before / seconds - after / more) / 2 * sum(t for _, t in parts) / (PARTS * each) * 1e3
    watts = sum(j for j, _ in parts) / sum(t for _, t in parts)
    return Energy(reader.name, resting, watts, float(spent.mean()), float(spent.std(ddof=1) / np.sqrt(PARTS) + drift))


def _text(path: Path) -> str:
    return path.read_text().strip()
