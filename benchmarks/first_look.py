"""What a newcomer meets: import, load, a turn's latency, memory, sizes, and `make demo` from a bare clone.

    OMP_WAIT_POLICY=PASSIVE python -m benchmarks.first_look             # runtime figures
    OMP_WAIT_POLICY=PASSIVE python -m benchmarks.first_look --install   # also wheel, install size, make demo

The last line is JSON; --save also writes benchmarks/results/first_look.json.
"""

from __future__ import annotations

import argparse
import os
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.report import finish, percentiles, show
from hbaf_edge import HBAFRuntime
from hbaf_edge.machine import machine

ROOT = Path(__file__).resolve().parents[1]
WORDS = "I really did not expect to see all of you here tonight"  # twelve words
GOALS = {
    "import_s": 0.25,
    "load_s": 1.5,
    "predict_ms": 60.0,
    "demo_peak_mb": 400.0,
    "install_mb": 450.0,
    "wheel_mb": 70.0,
    "make_demo_s": 180.0,
}
LOAD = (
    "import time; from hbaf_edge import HBAFRuntime; t = time.perf_counter(); "
    "HBAFRuntime(threads={threads}); print(time.perf_counter() - t)"
)
IMPORT = "import time; t = time.perf_counter(); import hbaf_edge; print(time.perf_counter() - t)"


def fresh(script: str, times: int) -> list[float]:
    """A number printed by a fresh interpreter, several times."""
    return [float(subprocess.check_output([sys.executable, "-c", script], cwd=ROOT)) for _ in range(times)]


def latency(threads: int, repeats: int) -> dict[str, Any]:
    """Three seconds of speech and twelve words as turn 10 of a conversation; load and first call apart."""
    import soundfile

    clip, _ = soundfile.read(ROOT / "hbaf_edge/examples/turn2_anna.flac", dtype="float32")
    clip = clip[:48_000]
    runtime = HBAFRuntime(threads=threads)
    stages: dict[str, list[float]] = {}
    first = None
    for _ in range(repeats):
        chat = runtime.conversation()
        for turn in range(10):
            runtime.observe(text="And then we went home.", speaker="ab"[turn % 2], conversation=chat)
        p = runtime.predict(clip, text=WORDS, speaker="a", conversation=chat, sample_rate=16_000)
        if first is None:
            first = p.timing["total"]
            continue
        for stage, ms in p.timing.items():
            stages.setdefault(stage, []).append(ms)
    return {"first_call_ms": round(first or np.nan, 2), "stages": {s: percentiles(v) for s, v in stages.items()}}


def peak_memory(threads: int) -> float:
    """MB that `hbaf-edge demo` needs at its peak."""
    command = [sys.executable, "-m", "hbaf_edge", "demo", "--threads", str(threads)]
    before = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss
    subprocess.run(command, cwd=ROOT, check=True, stdout=subprocess.DEVNULL)
    after = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss
    assert after > before, "an earlier child used more memory; run this first"
    return after / 1e3


def installation() -> dict[str, float]:
    """Wheel size, size of an environment that holds it alone, and seconds of `make demo` from a bare clone."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        subprocess.run(
            [sys.executable, "-m", "build", "--wheel", "-o", folder, ROOT], check=True, stdout=subprocess.DEVNULL
        )
        wheel = next(folder.glob("*.whl"))
        subprocess.run([sys.executable, "-m", "venv", folder / "venv"], check=True)
        subprocess.run([folder / "venv/bin/python", "-m", "pip", "install", "-q", f"{wheel}[cpu]"], check=True)
        packages = next((folder / "venv/lib").glob("python*/site-packages"))
        installed = sum(f.stat().st_size for f in packages.rglob("*") if f.is_file() and not f.is_symlink())
        subprocess.run(["git", "clone", "-q", ROOT, folder / "clone"], check=True)
        started = time.perf_counter()
        kept = {k: v for k, v in os.environ.items() if k in ("PATH", "HOME") or k.startswith(("PIP_", "SSL_"))}
        subprocess.run(["make", "demo"], cwd=folder / "clone", env=kept, check=True, stdout=subprocess.DEVNULL)
        return {
            "wheel_mb": wheel.stat().st_size / 1e6,
            "install_mb": installed / 1e6,
            "make_demo_s": time.perf_counter() - started,
        }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--repeats", type=int, default=101)
    parser.add_argument("--install", action="store_true")
    parser.add_argument("--save", action="store_true")
    given = parser.parse_args()
    measured: dict[str, Any] = {"demo_peak_mb": peak_memory(given.threads)}
    imports, loads = fresh(IMPORT, 11), fresh(LOAD.format(threads=given.threads), 7)
    turn = latency(given.threads, given.repeats)
    measured["import_s"], measured["load_s"] = percentiles(imports), percentiles(loads)
    measured["predict_ms"] = turn["stages"]["total"]
    if given.install:
        measured.update(installation())
    rows = []
    for name, goal in GOALS.items():
        if name in measured:
            value = measured[name]
            middle = value["p50"] if isinstance(value, dict) else value
            spread = f"p90 {value['p90']:.3f}  p99 {value['p99']:.3f}" if isinstance(value, dict) else ""
            rows.append((name, f"{middle:.3f}", spread, f"≤ {goal}", "yes" if middle <= goal else "NO"))
    show(f"first look, {given.threads} threads", rows, ("what", "p50 or value", "spread", "goal", "met"))
    show(
        "a turn: 3 s of speech, 12 words, turn 10",
        [(s, *(f"{v[p]:.2f}" for p in ("p50", "p90", "p99"))) for s, v in turn["stages"].items()],
        ("stage, ms", "p50", "p90", "p99"),
    )
    finish(
        "first_look",
        {"machine": machine(), "threads": given.threads, "repeats": given.repeats, **measured, **turn, "goals": GOALS},
        given.save,
    )


if __name__ == "__main__":
    main()
