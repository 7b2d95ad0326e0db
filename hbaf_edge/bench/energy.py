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
from typing import NamedTuple

import numpy as np

SYS = Path("/sys")
TOTALS = ("VDD_IN", "POM_5V_IN", "VIN")  # of Orin NX and Nano, of Nano and TX2, of Thor
MODULE = ("VDD_CPU_CV", "VDD_GPU_SOC", "VIN_SYS_5V0")  # what AGX Orin's module is fed by
CHIPS = ("ina3221", "ina238")
PARTS = 5
EVERY = 0.05  # seconds between two looks at a rail


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
        """Joules and seconds of a call."""
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
        """Joules and seconds of a call."""
        samples, is_over = list[tuple[float, float]](), threading.Event()

        def look() -> None:
            samples.append((time.perf_counter(), self._watts()))

        def keep_looking() -> None:
            while not is_over.wait(EVERY):
                look()

        look()
        thread = threading.Thread(target=keep_looking, daemon=True)
        thread.start()
        try:
            work()
        finally:
            is_over.set()
            thread.join()
        look()
        total = sum((b - a) * (p + q) / 2 for (a, p), (b, q) in itertools.pairwise(samples))
        return total, samples[-1][0] - samples[0][0]


Reader = Counter | Sampled


class Energy(NamedTuple):
    """What turns cost.

    Attributes:
        idle_watts: before and after, nothing running.
        watts: while turns ran one after the other.
        millijoules: of a turn, idle subtracted; near zero or below it where it drowns in noise.
        error: standard error of `millijoules`.
    """

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
    finders: tuple[Callable[[Path], Reader | None], ...] = (jetson, card, rapl)
    for find in finders:
        try:
            reader = find(sys)
        except (OSError, ValueError) as error:
            refused.append(f"{find.__name__}: {error}")
        else:
            available += [] if reader is None else [reader]
    return available, refused


def jetson(sys: Path = SYS) -> Sampled | None:
    """The total of a Jetson's power monitors, which hwmon shows as millivolts and milliamperes; None elsewhere."""
    rails = dict(_rails(sys))
    for name in TOTALS:
        if name in rails:
            return Sampled(f"rail {name} (whole board)", partial(_watts, *rails[name]))
    if rails.keys() >= set(MODULE):
        return Sampled(f"rails {' + '.join(MODULE)} (module)", lambda: sum(_watts(*rails[name]) for name in MODULE))
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
    for name in sorted((*sys.glob("class/hwmon/hwmon*/name"), *sys.glob("class/hwmon/hwmon*/device/name"))):
        if _text(name).startswith(CHIPS):
            for label in sorted(name.parent.glob("in*_label")):
                yield _text(label), (name.parent, label.name[2:].split("_")[0])


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
        return Counter(name, lambda: [1000 * int(pynvml.nvmlDeviceGetTotalEnergyConsumption(handle))], [0])
    except Exception:
        return Sampled(name, lambda: float(pynvml.nvmlDeviceGetPowerUsage(handle)) / 1e3)


def rapl(sys: Path = SYS) -> Counter | None:
    """Energy counters of the processor; None where there are none.

    Raises:
        PermissionError: they are for root alone, as most systems have it.
    """
    # Packages alone: their parts, and psys, which laptops have beside them, would count the same energy again.
    counters = sorted(
        counter for counter in sys.glob("class/powercap/*-rapl:*/energy_uj")
        if counter.parent.name.count(":") == 1 and _text(counter.with_name("name")).startswith("package")
    )  # fmt: skip
    if not counters:
        return None
    name = f"RAPL, {len(counters)} package{'s' * (len(counters) > 1)} (processor alone)"
    limits = [int(_text(counter.with_name("max_energy_range_uj"))) for counter in counters]
    return Counter(name, lambda: [int(_text(counter)) for counter in counters], limits)


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
    return Energy(resting, watts, float(spent.mean()), float(spent.std(ddof=1) / np.sqrt(PARTS) + drift))


def _text(path: Path) -> str:
    return path.read_text().strip()
