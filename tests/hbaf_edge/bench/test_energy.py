"""Power meters on recorded /sys folders: several Jetsons, RAPL, and a machine without a meter."""

import os
import threading
import time

import numpy as np
import pytest

from hbaf_edge.bench import sections
from hbaf_edge.bench.energy import PowerSampler, find_power_meters, jetson, measure_energy, rapl
from hbaf_edge.bench.turns import Bench


def write_tree(root, files):
    """Write a recorded /sys (path -> content) to a folder."""
    for name, content in files.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(f"{content}\n")
    return root


def monitor(folder, chip, **rails):
    """Files of a power monitor; each rail has a number, millivolts and milliamperes."""
    files = {f"{folder}/name": chip}
    for label, (number, millivolts, milliamperes) in rails.items():
        files[f"{folder}/in{number}_label"] = label
        files[f"{folder}/in{number}_input"] = millivolts
        files[f"{folder}/curr{number}_input"] = milliamperes
    return files


# An Orin Nano with JetPack 6: one INA3221, whose first rail includes the second and the third.
PARTS = {"VDD_CPU_GPU_CV": (2, 5016, 344), "VDD_SOC": (3, 5016, 296), "sum of shunt voltages": (7, 0, 0)}
ORIN_NANO = {
    "class/hwmon/hwmon0/name": "cpu_thermal",
    **monitor("class/hwmon/hwmon1", "ina3221", VDD_IN=(1, 5024, 1208), **PARTS),
}
# A kernel whose files of the chip are one folder deeper.
OLD_KERNEL = monitor("class/hwmon/hwmon1/device", "ina3221x", POM_5V_IN=(0, 5000, 400))
# An AGX Orin: no rail for the board; three rails feed its module, and the third is not a total.
AGX_ORIN = monitor("class/hwmon/hwmon3", "ina3221", VDD_GPU_SOC=(1, 20000, 1000), VDD_CPU_CV=(2, 20000, 500),
                   VIN_SYS_5V0=(3, 5000, 800))  # fmt: skip
# A Thor: the total is on another chip, which also measures power.
THOR = {
    **monitor("class/hwmon/hwmon3", "ina3221", VIN_SYS_5V0=(3, 5000, 800)),
    **monitor("class/hwmon/hwmon4", "ina238", VIN=(1, 19984, 1)),
    "class/hwmon/hwmon4/power1_input": 31_500_000,
}
RAPL = {
    "class/powercap/intel-rapl:0/name": "package-0",
    "class/powercap/intel-rapl:0/energy_uj": 262_143_000_000,
    "class/powercap/intel-rapl:0/max_energy_range_uj": 262_143_328_850,
    "class/powercap/intel-rapl:0:0/energy_uj": 7,  # a part of package 0
    "class/powercap/intel-rapl:0:0/name": "core",
    "class/powercap/intel-rapl:1/name": "package-1",
    "class/powercap/intel-rapl:1/energy_uj": 5_000_000,
    "class/powercap/intel-rapl:1/max_energy_range_uj": 262_143_328_850,
    "class/powercap/intel-rapl:2/name": "psys",  # on a laptop: includes package 0
    "class/powercap/intel-rapl:2/energy_uj": 9,
    "class/powercap/intel-rapl:2/max_energy_range_uj": 262_143_328_850,
}


@pytest.mark.parametrize(
    ("files", "name", "watts"),
    [
        (ORIN_NANO, "rail VDD_IN (whole board)", 6.069),
        (OLD_KERNEL, "rail POM_5V_IN (whole board)", 2.0),
        (AGX_ORIN, "rails VDD_CPU_CV + VDD_GPU_SOC + VIN_SYS_5V0 (module)", 34.0),
        (THOR, "rail VIN (whole board)", 31.5),
    ],
)
def test_jetson_reads_its_total_power(tmp_path, files, name, watts):
    meter = jetson(write_tree(tmp_path, files))
    assert meter.name == name
    joules, seconds = meter.joules(lambda: time.sleep(0.2))
    assert joules / seconds == pytest.approx(watts, rel=1e-3)
    assert [m.name for m in find_power_meters(tmp_path)[0]][:1] == [name]


def test_rails_without_a_total_are_reported_and_not_added(tmp_path):
    meters, unreadable = find_power_meters(write_tree(tmp_path, monitor("class/hwmon/hwmon1", "ina3221", **PARTS)))
    assert not meters
    assert unreadable == [
        "jetson: rails are VDD_CPU_GPU_CV, VDD_SOC, sum of shunt voltages; none of them is the total of a board"
    ]


def test_rapl_counts_packages_once_and_handles_wraparound(tmp_path):
    meter = rapl(write_tree(tmp_path, RAPL))
    assert meter.name == "RAPL, 2 packages (processor only)"

    later = {"class/powercap/intel-rapl:0/energy_uj": 1_671_150, "class/powercap/intel-rapl:1/energy_uj": 6_000_000}
    joules, seconds = meter.joules(lambda: write_tree(tmp_path, later))
    assert joules == pytest.approx(2.0 + 1.0)
    assert seconds < 1


def test_counters_without_permission_are_reported(tmp_path):
    write_tree(tmp_path, RAPL)
    (tmp_path / "class/powercap/intel-rapl:0/energy_uj").chmod(0)
    if os.access(tmp_path / "class/powercap/intel-rapl:0/energy_uj", os.R_OK):
        pytest.skip("this user can read all files")
    assert find_power_meters(tmp_path)[1][0].startswith("rapl: [Errno 13]")


def test_no_meter_is_found_when_the_machine_has_none(tmp_path):
    assert jetson(tmp_path) is rapl(tmp_path) is None
    assert find_power_meters(tmp_path) == ([], [])


def test_energy_of_the_idle_machine_is_subtracted():
    power = [3.0]
    meter = PowerSampler("test", lambda: power[0])

    def turn():
        power[0] = 5.0
        time.sleep(0.03)
        power[0] = 3.0 if turn.left == 0 else 5.0
        turn.left -= 1

    turn.left = 9
    energy = measure_energy(meter, turn, turns=10, idle_seconds=0.2)
    assert energy.idle_watts == pytest.approx(3.0, rel=0.1)
    assert energy.millijoules == pytest.approx(2.0 * 30, rel=0.5)
    assert 0 <= energy.error < energy.millijoules


def test_energy_below_the_noise_is_shown_as_a_bound(tiny, monkeypatch):
    rng = np.random.default_rng(0)
    meter = PowerSampler("noise", lambda: float(rng.normal(3, 1)))
    monkeypatch.setattr(sections, "find_power_meters", lambda: ([meter], ["rapl: no"]))
    section = sections.energy(Bench([tiny.bundle], 1, "cpu", 6, quick=True))
    assert section.rows[0][0] == "noise"
    assert "below" in section.rows[0][3] or "±" in section.rows[0][3]
    assert "Not readable: rapl: no" in section.text
    monkeypatch.setattr(sections, "find_power_meters", lambda: ([], []))
    assert sections.energy(Bench([tiny.bundle], 1, "cpu", 6)).text.startswith("Not measurable on this machine")


def test_sampler_stops_its_thread_when_the_work_fails(tmp_path):
    count = threading.active_count()
    with pytest.raises(ZeroDivisionError):
        jetson(write_tree(tmp_path, ORIN_NANO)).joules(lambda: 1 / 0)
    assert threading.active_count() == count
