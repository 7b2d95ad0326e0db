"""Measure first use: import, load, a turn's latency, memory, and optionally installation and `make demo`.

OMP_WAIT_POLICY=PASSIVE python -m benchmarks.first_look             # runtime figures
OMP_WAIT_POLICY=PASSIVE python -m benchmarks.first_look --install   # also wheel, install size, make demo
"""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
import time
from functools import partial
from pathlib import Path
from typing import Annotated

import typer

from benchmarks.report import AsJson, Repeats, ReportFolder, Save, Threads, measure_and_report, run, verdict
from hbaf_edge.bench.document import Report, Section
from hbaf_edge.bench.sections import fresh_start, stages
from hbaf_edge.bench.series import rounded, single_value
from hbaf_edge.bench.turns import Bench

ROOT = Path(__file__).resolve().parents[1]
GOALS = {
    "import hbaf_edge, ms": 250.0,
    "HBAFRuntime(), ms": 1500.0,
    "a turn of 3 s and twelve words, ms": 60.0,
    "peak memory of hbaf-edge demo, MB": 400.0,
    "wheel, MB": 70.0,
    "installed, without torch, MB": 450.0,
    "make demo from a bare clone, s": 180.0,
}
DEMO = (
    "import sys; from hbaf_edge.cli import demo; from hbaf_edge.stats import peak_mb; "
    "demo(threads=int(sys.argv[1])); print(peak_mb())"
)


def demo_peak_mb(threads: int) -> float:
    """Return the peak memory of `hbaf-edge demo` in MB."""
    output = subprocess.check_output([sys.executable, "-c", DEMO, str(threads)], cwd=ROOT, text=True)
    return float(output.splitlines()[-1])


def installation() -> list[float]:
    """Return MB of the wheel, MB of its packages once installed, and seconds of `make demo` in a fresh clone."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        build = [sys.executable, "-m", "build", "--wheel", "-o", str(folder), str(ROOT)]
        subprocess.run(build, check=True, stdout=subprocess.DEVNULL)
        wheel = next(folder.glob("*.whl"))
        subprocess.run([sys.executable, "-m", "venv", folder / "venv"], check=True)
        subprocess.run([folder / "venv/bin/python", "-m", "pip", "install", "-q", f"{wheel}[cpu]"], check=True)
        packages = next((folder / "venv/lib").glob("python*/site-packages"))
        installed = sum(f.stat().st_size for f in packages.rglob("*") if f.is_file() and not f.is_symlink())
        subprocess.run(["git", "clone", "-q", ROOT, folder / "clone"], check=True)
        allowed = {k: v for k, v in os.environ.items() if k in ("PATH", "HOME") or k.startswith(("PIP_", "SSL_"))}
        start = time.perf_counter()
        subprocess.run(["make", "demo"], cwd=folder / "clone", env=allowed, check=True, stdout=subprocess.DEVNULL)
        return [wheel.stat().st_size / 1e6, installed / 1e6, time.perf_counter() - start]


def first_look(bench: Bench, with_install: bool) -> list[Section]:
    """Measure fresh starts and a turn's stages as `hbaf-edge benchmark` does, and compare them with the goals."""
    start, turn = fresh_start(bench), stages(bench)
    import_ms, load_ms = (series["p50"] for series in list(start.measures.values())[:2])
    turn_ms = turn.measures["a turn"]["p50"]
    values = [import_ms, load_ms, turn_ms, demo_peak_mb(bench.threads), *(installation() if with_install else [])]
    measured = dict(zip(GOALS, values))
    rows = [(name, rounded(value), verdict(value, "≤", GOALS[name])) for name, value in measured.items()]
    measures = {name: single_value(value) for name, value in measured.items()}
    goals = Section("first_look", "First use", ("what", "median or value", "goal"), rows, "", measures, "")
    return [start, turn, goals]


def main(
    threads: Threads = 2,
    repeats: Repeats = 101,
    install: Annotated[bool, typer.Option("--install", help="also wheel, install size and make demo")] = False,
    report: ReportFolder = None,
    save: Save = False,
    as_json: AsJson = False,
) -> int:
    bench = Bench([None], threads, "cpu", repeats)
    new = Report("hbaf-edge: first use", {"threads": threads, "repeats": repeats})
    sections = [("first use", partial(first_look, bench, install))]
    return measure_and_report("first_look", new, sections, save, report, bench, as_json)


if __name__ == "__main__":
    run(main, __doc__)
