"""Has a turn become more expensive? Counts, which are the same on every run, against recorded budgets.

    python -m benchmarks.guard               # exit code 1 where a budget is exceeded
    python -m benchmarks.guard --record      # write benchmarks/budgets.json anew: what is counted now, and 3 % more

Operators and bytes of each graph, what a turn holds and copies on the Python side, and instructions of one fusion
step under valgrind's callgrind. Seconds take no part: they depend on the machine and on who else uses it. What ONNX
Runtime does with a graph depends on its version, what it executes on the processor: budgets of another version or
another kind of processor are not held against this one, and are named.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import shutil
import subprocess
import sys
import tempfile
import tracemalloc
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.counted import count
from benchmarks.graphs import kept_feeds, stored_nodes
from benchmarks.report import show
from hbaf_edge import HBAFRuntime
from hbaf_edge.bench.turns import turn_of
from hbaf_edge.bundle import DEFAULT, GRAPHS, load_bundle
from hbaf_edge.ort import onnxruntime as ort

BUDGETS = Path(__file__).parent / "budgets.json"
SLACK = 1.03
SCOPES = ("utterance", "dialogue")
COPYING = ("array", "ascontiguousarray", "astype", "concatenate", "copy", "copyto", "pad", "repeat", "stack", "tile")
STEPS = 3
# One thread, and a pause on either side of the steps, in which the parent switches counting on and off.
FUSION = """
import sys, numpy as np, onnxruntime as ort
from hbaf_edge.backend import session_options
made = []
for name in sys.argv[3:]:
    session = ort.InferenceSession(f"{sys.argv[1]}/{name}.onnx", session_options(1, True, True),
                                   providers=["CPUExecutionProvider"])
    made.append((session, dict(np.load(f"{sys.argv[1]}/{name}.npz"))))
for session, feeds in made: session.run(None, feeds)
print("ready", flush=True); input()
for _ in range(int(sys.argv[2])):
    for session, feeds in made: session.run(None, feeds)
print("done", flush=True); input()
"""


def graph_counts() -> dict[str, int]:
    """Operators and bytes of the default model's graphs, in the file and as they run."""
    bundle = load_bundle(None)
    run = count(bundle)
    found = {}
    for graph in GRAPHS:
        found[f"{graph}: operators in the file"] = stored_nodes(bundle.graph(graph))
        found[f"{graph}: operators that run"] = run[graph].nodes
        found[f"{graph}: bytes"] = len(bundle.graph(graph))
    return found


def python_counts() -> dict[str, int]:
    """What one turn of 3 s and twelve words allocates and copies outside of ONNX Runtime."""
    with HBAFRuntime(threads=1) as runtime:
        turn = turn_of(runtime, past=32)
        for _ in range(3):
            turn()
        tracemalloc.start()
        turn()
        tracemalloc.reset_peak()
        before = tracemalloc.get_traced_memory()[0]
        turn()
        peak = tracemalloc.get_traced_memory()[1] - before
        tracemalloc.stop()
        calls = called(turn)
    return {"a turn: bytes held at its peak": peak, "a turn: calls that copy arrays": sum(calls[n] for n in COPYING),
            "a turn: Python calls": calls["calls"]}  # fmt: skip


def called(work: Callable[[], object]) -> Counter[str]:
    """How often each function was called, by its name, and all of them together as "calls"."""
    found: Counter[str] = Counter()

    def note(frame: Any, event: str, argument: Any) -> None:
        if event in ("call", "c_call"):
            found[argument.__name__ if event == "c_call" else frame.f_code.co_name] += 1
            found["calls"] += 1

    sys.setprofile(note)
    try:
        work()
    finally:
        sys.setprofile(None)
    return found


def instructions() -> dict[str, int]:
    """Of one fusion step at turn 33, under callgrind; empty where valgrind is not installed.

    Only the steps are counted: starting Python and making sessions takes a different number each time.
    """
    if shutil.which("valgrind") is None or shutil.which("callgrind_control") is None:
        return {}
    bundle = load_bundle(None)
    feeds = kept_feeds(bundle)
    with tempfile.TemporaryDirectory() as folder:
        for name in SCOPES:
            (Path(folder) / f"{name}.onnx").write_bytes(bundle.graph(name))
            np.savez(Path(folder) / f"{name}.npz", **feeds[name])  # type: ignore[arg-type]
        return {"a fusion step: instructions": _callgrind([folder, str(STEPS), *SCOPES]) // STEPS}


def _callgrind(arguments: list[str]) -> int:
    command = ["valgrind", "--tool=callgrind", "--instr-atstart=no", "--callgrind-out-file=/dev/null", sys.executable]
    steady = {**os.environ, "PYTHONHASHSEED": "0", "OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"}
    pipe = subprocess.PIPE
    with subprocess.Popen([*command, "-c", FUSION, *arguments], stdin=pipe, stdout=pipe, stderr=pipe, text=True,
                          env=steady) as running:  # fmt: skip
        for said, switch in (("ready", "on"), ("done", "off")):
            assert running.stdin is not None
            assert running.stdout is not None
            if running.stdout.readline().strip() != said:
                raise SystemExit(f"valgrind did not run a fusion step: {running.communicate()[1][-2000:]}")
            subprocess.run(["callgrind_control", "-i", switch, str(running.pid)], check=True, capture_output=True)
            running.stdin.write("\n")
            running.stdin.flush()
        told = running.communicate()[1]
    return int(next(line for line in told.splitlines() if "Collected" in line).split(":")[1])


def conditions() -> dict[str, str]:
    """What counts depend on besides this project."""
    python = ".".join(platform.python_version_tuple()[:2])
    return {"onnxruntime": ort.__version__, "machine": platform.machine(), "python": python, "numpy": np.__version__}


def exceeded(found: dict[str, int], recorded: dict[str, Any]) -> tuple[list[str], list[str]]:
    """What is over its budget, and what could not be held against one.

    >>> exceeded({"a": 4, "b": 1}, {"conditions": conditions(), "budgets": {"a": 3, "c": 1}})
    (['a: 4, budget 3'], ['b: no budget is recorded', 'c: not counted here'])
    """
    here, there = conditions(), recorded["conditions"]
    other = [f"{k} is {v}, budgets are of {there.get(k)}" for k, v in here.items() if v != there.get(k)]
    over, skipped = [], []
    for name, value in found.items():
        budget = recorded["budgets"].get(name)
        if budget is None:
            skipped.append(f"{name}: no budget is recorded")
        elif other and not name.endswith(("in the file", ": bytes")):
            skipped.append(f"{name}: {', '.join(other)}")
        elif value > budget:
            over.append(f"{name}: {value}, budget {budget}")
    skipped += [f"{name}: not counted here" for name in recorded["budgets"] if name not in found]
    return over, skipped


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--record", action="store_true")
    parser.add_argument("--strict", action="store_true", help="fail where something could not be compared, too")
    given = parser.parse_args()
    assert DEFAULT.exists()
    found = {**graph_counts(), **python_counts(), **instructions()}
    if given.record:
        budgets = {n: v if "operators" in n else int(v * SLACK) for n, v in found.items()}
        BUDGETS.write_text(json.dumps({"conditions": conditions(), "budgets": budgets}, indent=1) + "\n")
    recorded = json.loads(BUDGETS.read_text())
    over, skipped = exceeded(found, recorded)
    rows = [(n, f"{v:,}", f"{recorded['budgets'].get(n, 0):,}") for n, v in found.items()]
    show("what a turn costs, counted", rows, ("what", "now", "budget"))
    for line in skipped:
        print(f"not compared: {line}")
    for line in over:
        print(f"EXCEEDED: {line}")
    sys.exit(bool(over or (given.strict and skipped)))


if __name__ == "__main__":
    main()
