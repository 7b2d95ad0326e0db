"""Readers of power on recorded trees of /sys: Jetsons of two generations, RAPL, and a machine that tells nothing."""

import os
import threading
import time

import numpy as np
import pytest

from hbaf_edge.bench import scenes
from hbaf_edge.bench.energy import Sampled, jetson, measured, rapl, readers
from hbaf_edge.bench.turns import Bench


def tree(root, files):
    """A recorded /sys: path -> content."""
    for name, content in files.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(f"{content}\n")
    return root


def monitor(folder, chip, **rails):
    """The files of a power monitor. Each rail: its number, millivolts and milliamperes."""
    files = {f"{folder}/name": chip}
    for label, (number, volts, amperes) in rails.items():
        files[f"{folder}/in{number}_label"] = label
        files[f"{folder}/in{number}_input"] = volts
        files[f"{folder}/curr{number}_input"] = amperes
    return files


# Of an Orin Nano with JetPack 6: one INA3221, whose second and third rails are counted in the first.
PARTS = {"VDD_CPU_GPU_CV": (2, 5016, 344), "VDD_SOC": (3, 5016, 296), "sum of shunt voltages": (7, 0, 0)}
ORIN_NANO = {
    "class/hwmon/hwmon0/name": "cpu_thermal",
    **monitor("class/hwmon/hwmon1", "ina3221", VDD_IN=(1, 5024, 1208), **PARTS),
}
# Of a kernel that keeps the chip's files a folder deeper.
OLD_KERNEL = monitor("class/hwmon/hwmon1/device", "ina3221x", POM_5V_IN=(0, 5000, 400))
# Of an AGX Orin: no rail of the whole board; its module is fed by three, the third is not the total of anything.
AGX_ORIN = monitor("class/hwmon/hwmon3", "ina3221", VDD_GPU_SOC=(1, 20000, 1000), VDD_CPU_CV=(2, 20000, 500),
                   VIN_SYS_5V0=(3, 5000, 800))  # fmt: skip
# Of a Thor: the total is on another chip, which tells power besides.
THOR = {
    **monitor("class/hwmon/hwmon3", "ina3221", VIN_SYS_5V0=(3, 5000, 800)),
    **monitor("class/hwmon/hwmon4", "ina238", VIN=(1, 19984, 1)),
    "class/hwmon/hwmon4/power1_input": 31_500_000,
}
RAPL = {
    "class/powercap/intel-rapl:0/name": "package-0",
    "class/powercap/intel-rapl:0/energy_uj": 262_143_000_000,
    "class/powercap/intel-rapl:0/max_energy_range_uj": 262_143_328_850,
    "class/powercap/intel-rapl:0:0/energy_uj": 7,  # a part of package 0: not counted again
    "class/powercap/intel-rapl:0:0/name": "core",
    "class/powercap/intel-rapl:1/name": "package-1",
    "class/powercap/intel-rapl:1/energy_uj": 5_000_000,
    "class/powercap/intel-rapl:1/max_energy_range_uj": 262_143_328_850,
    "class/powercap/intel-rapl:2/name": "psys",  # of a laptop: holds package 0
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
def test_a_jetsons_total_is_read_and_nothing_counted_twice(tmp_path, files, name, watts):
    reader = jetson(tree(tmp_path, files))
    assert reader.name == name
    joules, seconds = reader.joules(lambda: time.sleep(0.2))
    assert joules / seconds == pytest.approx(watts, rel=1e-3)
    assert [r.name for r in readers(tmp_path)[0]][:1] == [name]


def test_rails_without_a_total_are_said_not_added(tmp_path):
    found, refused = readers(tree(tmp_path, monitor("class/hwmon/hwmon1", "ina3221", **PARTS)))
    assert not found
    assert refused == [
        "jetson: rails are VDD_CPU_GPU_CV, VDD_SOC, sum of shunt voltages, none of which is a board's total"
    ]


def test_rapl_counts_packages_once_and_starts_again_at_its_limit(tmp_path):
    reader = rapl(tree(tmp_path, RAPL))
    assert reader.name == "RAPL, 2 packages (processor alone)"

    later = {"class/powercap/intel-rapl:0/energy_uj": 1_671_150, "class/powercap/intel-rapl:1/energy_uj": 6_000_000}
    joules, seconds = reader.joules(lambda: tree(tmp_path, later))
    assert joules == pytest.approx(2.0 + 1.0)
    assert seconds < 1


def test_counters_for_root_alone_are_named(tmp_path):
    tree(tmp_path, RAPL)
    (tmp_path / "class/powercap/intel-rapl:0/energy_uj").chmod(0)
    if os.access(tmp_path / "class/powercap/intel-rapl:0/energy_uj", os.R_OK):
        pytest.skip("this user may read everything")
    assert readers(tmp_path)[1][0].startswith("rapl: [Errno 13]")


def test_a_machine_that_tells_nothing_has_no_reader(tmp_path):
    assert jetson(tmp_path) is rapl(tmp_path) is None
    assert readers(tmp_path) == ([], [])


def test_what_an_idle_machine_takes_is_subtracted():
    power = [3.0]
    reader = Sampled("made", lambda: power[0])

    def turn():
        power[0] = 5.0
        time.sleep(0.03)
        power[0] = 3.0 if turn.left == 0 else 5.0
        turn.left -= 1

    turn.left = 9
    found = measured(reader, turn, turns=10, idle_seconds=0.2)
    assert found.idle_watts == pytest.approx(3.0, rel=0.1)
    assert found.millijoules == pytest.approx(2.0 * 30, rel=0.5)
    assert 0 <= found.error < found.millijoules


def test_what_drowns_in_noise_is_not_called_zero(tiny, monkeypatch):
    rng = np.random.default_rng(0)
    monkeypatch.setattr(scenes, "readers", lambda: ([Sampled("noise", lambda: float(rng.normal(3, 1)))], ["card: no"]))
    found = scenes.energy(Bench([tiny.bundle], 1, "cpu", 6, quick=True))
    assert found.rows[0][0] == "noise"
    assert "below" in found.rows[0][3] or "±" in found.rows[0][3]
    assert "Not readable: card: no" in found.text
    monkeypatch.setattr(scenes, "readers", lambda: ([], []))
    assert scenes.energy(Bench([tiny.bundle], 1, "cpu", 6)).text.startswith("Not measurable on this machine")


def test_work_that_fails_leaves_no_thread_behind(tmp_path):
    before = threading.active_count()
    with pytest.raises(ZeroDivisionError):
        jetson(tree(tmp_path, ORIN_NANO)).joules(lambda: 1 / 0)
    assert threading.active_count() == before
