"""Measure the energy of a turn with a Jetson's power rails, an NVIDIA GPU, or the RAPL counters of Intel and AMD.

A Jetson's total is the rail VDD_IN, or VIN on Thor. The sum of all rails would count energy twice, because some rails
feed others. AGX Orin has no rail for the total: exactly three rails feed its module, and their sum is used. The values
are read from files, or from NVIDIA's library for a GPU (pip install nvidia-ml-py).
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
TOTALS = ("VDD_IN", "POM_5V_IN", "VIN")  # on Orin NX and Orin Nano; on Nano and TX2; on Thor
MODULE = ("VDD_CPU_CV", "VDD_GPU_SOC", "VIN_SYS_5V0")  # the rails that feed the module of AGX Orin
CHIPS = ("ina3221", "ina238")
PARTS = 5
INTERVAL = 0.05  # seconds between two samples of a rail


class EnergyCounter:
    """Hardware counters of energy.

    Args:
        name: name in reports.
        read: returns all counters in microjoules.
        limits: value at which each counter wraps around to 0; 0 if it never does.
    """

    def __init__(self, name: str, read: Callable[[], list[int]], limits: list[int]) -> None:
        self.name, self._read, self._limits = name, read, limits
        read()

    def joules(self, work: Callable[[], object]) -> tuple[float, float]:
        """Return the joules and seconds of a call."""
        before, start = self._read(), time.perf_counter()
        work()
        seconds, after = time.perf_counter() - start, self._read()
        spent = [(b - a) % limit if limit else b - a for a, b, limit in zip(before, after, self._limits)]
        return sum(spent) / 1e6, seconds


class PowerSampler:
    """A meter of the present power, which is sampled and integrated.

    Args:
        name: name in reports.
        watts: returns the present power in watts.
    """

    def __init__(self, name: str, watts: Callable[[], float]) -> None:
        self.name, self._watts = name, watts
        watts()

    def joules(self, work: Callable[[], object]) -> tuple[float, float]:
        """Return the joules and seconds of a call."""
        samples, is_done = list[tuple[float, float]](), threading.Event()

        def sample() -> None:
            samples.append((time.perf_counter(), self._watts()))

        def sample_until_done() -> None:
            while not is_done.wait(INTERVAL):
                sample()

        sample()
        thread = threading.Thread(target=sample_until_done, daemon=True)
        thread.start()
        try:
            work()
        finally:
            is_done.set()
            thread.join()
        sample()
        total = sum((b - a) * (p + q) / 2 for (a, p), (b, q) in itertools.pairwise(samples))
        return total, samples[-1][0] - samples[0][0]


PowerMeter = EnergyCounter | PowerSampler


class Energy(NamedTuple):
    """Power of the machine and energy of a turn.

    Attributes:
        idle_watts: power of the idle machine, before and after the turns.
        watts: power while turns run one after another.
        millijoules: energy of a turn without the idle part; about zero or negative if it is smaller than the noise.
        error: standard error of `millijoules`.
    """

    idle_watts: float
    watts: float
    millijoules: float
    error: float


def find_power_meters(sys: Path = SYS) -> tuple[list[PowerMeter], list[str]]:
    """Find the power meters of this machine, the most complete first.

    Args:
        sys: the folder /sys; tests pass a recorded one.

    Returns:
        The meters that can be read, and why others cannot.
    """
    available: list[PowerMeter] = []
    unreadable: list[str] = []
    finders: tuple[Callable[[Path], PowerMeter | None], ...] = (jetson, nvidia_gpu, rapl)
    for find in finders:
        try:
            meter = find(sys)
        except (OSError, ValueError) as error:
            unreadable.append(f"{find.__name__}: {error}")
        else:
            available += [] if meter is None else [meter]
    return available, unreadable


def jetson(sys: Path = SYS) -> PowerSampler | None:
    """The total power of a Jetson, from the monitors in hwmon (millivolts, milliamperes); None on other machines."""
    rails = dict(_rails(sys))
    for name in TOTALS:
        if name in rails:
            return PowerSampler(f"rail {name} (whole board)", partial(_watts, *rails[name]))
    if rails.keys() >= set(MODULE):
        name = f"rails {' + '.join(MODULE)} (module)"
        return PowerSampler(name, lambda: sum(_watts(*rails[rail]) for rail in MODULE))
    if rails:
        raise ValueError(f"rails are {', '.join(sorted(rails))}; none of them is the total of a board")
    return None


def _watts(folder: Path, number: str) -> float:
    """Present power of one rail in watts."""
    power = folder / f"power{number}_input"  # microwatts; not every driver has it
    if power.exists():
        return int(_text(power)) / 1e6
    return int(_text(folder / f"in{number}_input")) * int(_text(folder / f"curr{number}_input")) / 1e6


def _rails(sys: Path) -> Iterator[tuple[str, tuple[Path, str]]]:
    """Yield the name of each rail of the power monitors, with its folder and number."""
    for name in sorted((*sys.glob("class/hwmon/hwmon*/name"), *sys.glob("class/hwmon/hwmon*/device/name"))):
        if _text(name).startswith(CHIPS):
            for label in sorted(name.parent.glob("in*_label")):
                yield _text(label), (name.parent, label.name[2:].split("_")[0])


def nvidia_gpu(sys: Path = SYS) -> PowerMeter | None:
    """The first NVIDIA GPU, with NVML; None if there is no GPU or nvidia-ml-py is not installed."""
    try:
        import pynvml  # type: ignore[import-not-found,import-untyped,unused-ignore]

        pynvml.nvmlInit()
        handle = pynvml.nvmlDeviceGetHandleByIndex(0)
        name = f"NVML, {pynvml.nvmlDeviceGetName(handle)} (GPU only)"
    except Exception:  # no package, driver or GPU; NVML has its own errors
        return None
    try:  # GPUs since Volta count millijoules; the power is a mean over the last second
        return EnergyCounter(name, lambda: [1000 * int(pynvml.nvmlDeviceGetTotalEnergyConsumption(handle))], [0])
    except Exception:
        return PowerSampler(name, lambda: float(pynvml.nvmlDeviceGetPowerUsage(handle)) / 1e3)


def rapl(sys: Path = SYS) -> EnergyCounter | None:
    """The processor's energy counters; None if there are none.

    Raises:
        PermissionError: only root may read them, which is the default of most systems.
    """
    # Only packages: their parts, and psys on laptops, would count the same energy again.
    counters = sorted(
        counter for counter in sys.glob("class/powercap/*-rapl:*/energy_uj")
        if counter.parent.name.count(":") == 1 and _text(counter.with_name("name")).startswith("package")
    )  # fmt: skip
    if not counters:
        return None
    name = f"RAPL, {len(counters)} package{'s' * (len(counters) > 1)} (processor only)"
    limits = [int(_text(counter.with_name("max_energy_range_uj"))) for counter in counters]
    return EnergyCounter(name, lambda: [int(_text(counter)) for counter in counters], limits)


def measure_energy(meter: PowerMeter, turn: Callable[[], object], turns: int, idle_seconds: float) -> Energy:
    """Measure the energy of a turn, without the energy of the idle machine.

    Args:
        meter: from `find_power_meters`.
        turn: runs one turn.
        turns: number of turns, in five parts.
        idle_seconds: seconds of idling measured before and after the turns.
    """
    per_part, parts = max(1, turns // PARTS), []
    time.sleep(idle_seconds / 5)
    before, seconds_before = meter.joules(lambda: time.sleep(idle_seconds))
    for _ in range(PARTS):
        parts.append(meter.joules(lambda: [turn() for _ in range(per_part)]))
    time.sleep(idle_seconds / 5)
    after, seconds_after = meter.joules(lambda: time.sleep(idle_seconds))
    idle_watts = (before + after) / (seconds_before + seconds_after)
    millijoules = np.array([(joules - idle_watts * seconds) / per_part * 1e3 for joules, seconds in parts])
    # The idle power may have drifted during the turns: half of the difference counts as an error.
    idle_drift = abs(before / seconds_before - after / seconds_after) / 2
    drift = idle_drift * sum(seconds for _, seconds in parts) / (PARTS * per_part) * 1e3
    watts = sum(joules for joules, _ in parts) / sum(seconds for _, seconds in parts)
    error = float(millijoules.std(ddof=1) / np.sqrt(PARTS) + drift)
    return Energy(idle_watts, watts, float(millijoules.mean()), error)


def _text(path: Path) -> str:
    return path.read_text().strip()
