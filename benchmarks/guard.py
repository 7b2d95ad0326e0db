"""Has a turn become more expensive? Counts, which are the same on every run, against recorded budgets.

    python -m benchmarks.guard               # exit code 1 where a budget is exceeded
    python -m benchmarks.guard --record      # write benchmarks/budgets.json anew: what is counted now, and 3 % more

Operators and bytes of each graph, what a turn holds and copies on the Python side, and instructions of one fusion
step under valgrind's callgrind. Seconds take no part: they depend on the machine and on who else uses it. What ONNX
Runtime does with a graph depends on its version, what it executes on the processor: budgets of another version or
another kind of processor are not compared with, and are named.
"""

from __future__ import annotations

import json
import os
import platform
import shutil
import subprocess
import sys
import tempfile
import threading
import time
import tracemalloc
from collections import Counter
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import typer
from rich.console import Console

from benchmarks.counted import count, stored_nodes
from benchmarks.insides import graph_inputs
from benchmarks.report import run
from hbaf_edge import HBAFRuntime
from hbaf_edge.bench.document import Section, print_section
from hbaf_edge.bench.turns import turn_of
from hbaf_edge.bundle import GRAPHS, load_bundle
from hbaf_edge.errors import BackendError
from hbaf_edge.ort import onnxruntime as ort

BUDGETS = Path(__file__).parent / "budgets.json"
SLACK = 1.03
SCOPES = ("utterance", "dialogue")
COPYING = ("array", "ascontiguousarray", "astype", "concatenate", "copy", "copyto", "pad", "repeat", "stack", "tile")
STEPS = 3
SETTLED = 0.1  # seconds after which a worker has nothing left to do of a turn
# One thread, and a pause on either side of the steps, in which the parent switches counting on and off.
FUSION = """
import sys, numpy as np, onnxruntime as ort
from hbaf_edge.backends.settings import session_options
sessions = []
for name in sys.argv[3:]:
    session = ort.InferenceSession(f"{sys.argv[1]}/{name}.onnx", session_options(1, True, True),
                                   providers=["CPUExecutionProvider"])
    sessions.append((session, dict(np.load(f"{sys.argv[1]}/{name}.npz"))))
for session, feeds in sessions: session.run(None, feeds)
print("ready", flush=True); input()
for _ in range(int(sys.argv[2])):
    for session, feeds in sessions: session.run(None, feeds)
print("done", flush=True); input()
"""


def graph_counts() -> dict[str, int]:
    """Operators and bytes of the default model's graphs, in the file and as they run."""
    bundle = load_bundle(None)
    counts, result = count(bundle), {}
    for graph in GRAPHS:
        result[f"{graph}: operators in the file"] = stored_nodes(bundle.graph(graph))
        result[f"{graph}: operators that run"] = counts[graph].nodes
        result[f"{graph}: bytes"] = len(bundle.graph(graph))
    return result


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
    calls = call_counts()
    return {"a turn: bytes held at its peak": peak, "a turn: calls that copy arrays": sum(calls[n] for n in COPYING),
            "a turn: Python calls": calls["calls"]}  # fmt: skip


def call_counts() -> Counter[str]:
    """How often a turn calls each function, by its name, and all of them together as "calls"; on every thread."""
    counts: Counter[str] = Counter()
    is_counting = False

    def note(frame: Any, event: str, argument: Any) -> None:
        if is_counting and event in ("call", "c_call"):
            counts[argument.__name__ if event == "c_call" else frame.f_code.co_name] += 1
            counts["calls"] += 1

    threading.setprofile(note)  # of threads that begin from now on: the runtime's
    sys.setprofile(note)
    try:
        with HBAFRuntime(threads=1) as runtime:
            turn = turn_of(runtime, past=32)
            turn()
            turn()
            time.sleep(SETTLED)
            is_counting = True
            turn()
            time.sleep(SETTLED)
            is_counting = False
    finally:
        threading.setprofile(None)  # type: ignore[arg-type]
        sys.setprofile(None)
    return counts


def instructions() -> dict[str, int]:
    """Of one fusion step at turn 33, under callgrind; empty where valgrind is not installed.

    Only the steps are counted: starting Python and making sessions takes a different number each time.
    """
    if shutil.which("valgrind") is None or shutil.which("callgrind_control") is None:
        return {}
    bundle = load_bundle(None)
    feeds = graph_inputs(bundle)
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
        for line, switch in (("ready", "on"), ("done", "off")):
            assert running.stdin is not None
            assert running.stdout is not None
            if running.stdout.readline().strip() != line:
                raise BackendError(f"valgrind did not run a fusion step: {running.communicate()[1][-2000:]}")
            subprocess.run(["callgrind_control", "-i", switch, str(running.pid)], check=True, capture_output=True)
            running.stdin.write("\n")
            running.stdin.flush()
        summary = running.communicate()[1]
    return int(next(line for line in summary.splitlines() if "Collected" in line).split(":")[1])


def conditions() -> dict[str, str]:
    """What counts depend on besides this project."""
    python = ".".join(platform.python_version_tuple()[:2])
    return {"onnxruntime": ort.__version__, "machine": platform.machine(), "python": python, "numpy": np.__version__}


def exceeded(counts: dict[str, int], recorded: dict[str, Any]) -> tuple[list[str], list[str]]:
    """What is over its budget, and what could not be compared with one.

    >>> exceeded({"a": 4, "b": 1}, {"conditions": conditions(), "budgets": {"a": 3, "c": 1}})
    (['a: 4, budget 3'], ['b: no budget is recorded', 'c: not counted here'])
    """
    here, there = conditions(), recorded["conditions"]
    other = [f"{k} is {v}, budgets are of {there.get(k)}" for k, v in here.items() if v != there.get(k)]
    over, skipped = [], []
    for name, value in counts.items():
        budget = recorded["budgets"].get(name)
        if budget is None:
            skipped.append(f"{name}: no budget is recorded")
        elif other and not name.endswith(("in the file", ": bytes")):
            skipped.append(f"{name}: {', '.join(other)}")
        elif value > budget:
            over.append(f"{name}: {value}, budget {budget}")
    skipped += [f"{name}: not counted here" for name in recorded["budgets"] if name not in counts]
    return over, skipped


def main(
    record: Annotated[bool, typer.Option("--record", help="write budgets.json anew")] = False,
    strict: Annotated[bool, typer.Option("--strict", help="fail where something could not be compared, too")] = False,
) -> int:
    counts = {**graph_counts(), **python_counts(), **instructions()}
    if record:
        budgets = {n: v if "operators" in n else int(v * SLACK) for n, v in counts.items()}
        BUDGETS.write_text(json.dumps({"conditions": conditions(), "budgets": budgets}, indent=1) + "\n")
    recorded = json.loads(BUDGETS.read_text())
    over, skipped = exceeded(counts, recorded)
    rows = [(name, value, recorded["budgets"].get(name)) for name, value in counts.items()]
    print_section(Console(), Section("guard", "What a turn costs, counted", ("what", "now", "budget"), rows))
    for line in skipped:
        print(f"not compared: {line}")
    for line in over:
        print(f"EXCEEDED: {line}")
    return int(bool(over or (strict and skipped)))


if __name__ == "__main__":
    run(main, __doc__)
