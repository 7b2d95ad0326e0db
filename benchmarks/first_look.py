"""Measure installation and first use: the demo's output and memory, and the sizes and times of an installation.

    python -m benchmarks.first_look             # the demo
    python -m benchmarks.first_look --install   # also wheel, installed size and make demo, each in a fresh folder

How long a turn, an import and a load take is measured by `hbaf-edge benchmark`.
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

from benchmarks.report import AsJson, Save, measure_and_report, run, verdict
from hbaf_edge.bench.document import Report, Section
from hbaf_edge.bench.series import rounded, single_value

ROOT = Path(__file__).resolve().parents[1]
GOALS = {
    "peak memory of hbaf-edge demo, MB": 400.0,
    "wheel, MB": 70.0,
    "installed, without torch, MB": 450.0,
    "make demo from a bare clone, s": 180.0,
}
DEMO = "from hbaf_edge.cli import demo; from hbaf_edge.stats import peak_mb; demo(threads=2); print(peak_mb())"


def demo() -> tuple[list[str], float]:
    """Run `hbaf-edge demo` in a new process; return the lines that it prints, and its peak memory in MB."""
    output = subprocess.check_output([sys.executable, "-c", DEMO], cwd=ROOT, text=True)
    *lines, peak = output.splitlines()
    return lines, float(peak)


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


def first_look(with_install: bool) -> list[Section]:
    """Run the demo and compare its memory, and the sizes and times of an installation, with the goals."""
    lines, peak = demo()
    measured = dict(zip(GOALS, [peak, *(installation() if with_install else [])]))
    rows = [(name, rounded(value), verdict(value, "≤", GOALS[name])) for name, value in measured.items()]
    measures = {name: single_value(value) for name, value in measured.items()}
    return [Section("first_look", "First use", ("what", "value", "goal"), rows, "", measures, ""),
            Section("demo", "What hbaf-edge demo prints", ("line",), [(line,) for line in lines])]  # fmt: skip


def main(
    install: Annotated[bool, typer.Option("--install", help="also wheel, installed size and make demo")] = False,
    save: Save = False,
    as_json: AsJson = False,
) -> int:
    new = Report("hbaf-edge: first use", {"threads": 2})
    return measure_and_report("first_look", new, [("first use", partial(first_look, install))], save, as_json=as_json)


if __name__ == "__main__":
    run(main, __doc__)
