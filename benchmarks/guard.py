"""Compare the cost of a turn with recorded budgets. It counts operations, which do not vary between runs.

    python -m benchmarks.guard               # exit code 1 if a budget is exceeded
    python -m benchmarks.guard --record      # write benchmarks/budgets.json: today's counts plus 3 %

Counts are operators and bytes of each graph, memory and array copies of a turn in Python, and instructions of a fusion
step under valgrind's callgrind. Times are left out because they depend on the machine and its load. Operators that run
depend on ONNX Runtime's version and on the processor; a budget of other versions is listed as not compared.
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

from benchmarks.internals import graph_inputs
from benchmarks.operation_counts import count, stored_nodes
from benchmarks.report import AsJson, run
from hbaf_edge import HBAFRuntime
from hbaf_edge.bench.document import Section, print_section
from hbaf_edge.bench.turns import repeatable_turn
from hbaf_edge.bundle import GRAPHS, load_bundle
from hbaf_edge.errors import BackendError
from hbaf_edge.ort import onnxruntime as ort

BUDGETS = Path(__file__).parent / "budgets.json"
BUDGET_FACTOR = 1.03  # budget = count at the time of recording times this
FUSION_GRAPHS = ("utterance", "dialogue")
COPY_FUNCTIONS = ("array", "ascontiguousarray", "astype", "concatenate", "copy", "copyto", "pad", "repeat", "stack",
                  "tile")  # fmt: skip
STEPS = 3  # fusion steps that are counted
SETTLE_SECONDS = 0.1  # after this time workers have finished the work of a turn
# Uses one thread and waits before and after the steps, so that the parent can switch counting on and off.
FUSION_PROGRAM = """
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
    """Count operators and bytes of the default model's graphs, both in the file and when run."""
    bundle = load_bundle(None)
    counts, result = count(bundle), {}
    for graph in GRAPHS:
        result[f"{graph}: operators in the file"] = stored_nodes(bundle.graph(graph))
        result[f"{graph}: operators that run"] = counts[graph].nodes
        result[f"{graph}: bytes"] = len(bundle.graph(graph))
    return result


def python_counts() -> dict[str, int]:
    """Count what one turn of 3 s and twelve words allocates and copies outside of ONNX Runtime."""
    with HBAFRuntime(threads=1) as runtime:
        turn = repeatable_turn(runtime, past=32)
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
    copies = sum(calls[name] for name in COPY_FUNCTIONS)
    return {"a turn: bytes held at its peak": peak, "a turn: calls that copy arrays": copies,
            "a turn: Python calls": calls["calls"]}  # fmt: skip


def call_counts() -> Counter[str]:
    """Count the calls of each function, by name, in one turn on all threads; "calls" is their sum."""
    counts: Counter[str] = Counter()
    is_counting = False

    def count_call(frame: Any, event: str, argument: Any) -> None:
        if is_counting and event in ("call", "c_call"):
            counts[argument.__name__ if event == "c_call" else frame.f_code.co_name] += 1
            counts["calls"] += 1

    threading.setprofile(count_call)  # affects new threads: the workers of the runtime
    sys.setprofile(count_call)
    try:
        with HBAFRuntime(threads=1) as runtime:
            turn = repeatable_turn(runtime, past=32)
            turn()
            turn()
            time.sleep(SETTLE_SECONDS)
            is_counting = True
            turn()
            time.sleep(SETTLE_SECONDS)
            is_counting = False
    finally:
        threading.setprofile(None)  # type: ignore[arg-type]
        sys.setprofile(None)
    return counts


def instructions() -> dict[str, int]:
    """Count the instructions of one fusion step at turn 33 under callgrind; empty if valgrind is not installed.

    Only the steps are counted, because starting Python and creating sessions varies from run to run.
    """
    if shutil.which("valgrind") is None or shutil.which("callgrind_control") is None:
        return {}
    bundle = load_bundle(None)
    feeds = graph_inputs(bundle)
    with tempfile.TemporaryDirectory() as folder:
        for name in FUSION_GRAPHS:
            (Path(folder) / f"{name}.onnx").write_bytes(bundle.graph(name))
            np.savez(Path(folder) / f"{name}.npz", **feeds[name])  # type: ignore[arg-type]
        return {"a fusion step: instructions": _count_instructions([folder, str(STEPS), *FUSION_GRAPHS]) // STEPS}


def _count_instructions(arguments: list[str]) -> int:
    command = ["valgrind", "--tool=callgrind", "--instr-atstart=no", "--callgrind-out-file=/dev/null", sys.executable]
    environment = {**os.environ, "PYTHONHASHSEED": "0", "OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"}
    pipe = subprocess.PIPE
    program = [*command, "-c", FUSION_PROGRAM, *arguments]
    with subprocess.Popen(program, stdin=pipe, stdout=pipe, stderr=pipe, text=True, env=environment) as process:
        for expected, switch in (("ready", "on"), ("done", "off")):
            assert process.stdin is not None
            assert process.stdout is not None
            if process.stdout.readline().strip() != expected:
                raise BackendError(f"valgrind did not run a fusion step: {process.communicate()[1][-2000:]}")
            subprocess.run(["callgrind_control", "-i", switch, str(process.pid)], check=True, capture_output=True)
            process.stdin.write("\n")
            process.stdin.flush()
        summary = process.communicate()[1]
    return int(next(line for line in summary.splitlines() if "Collected" in line).split(":")[1])


def conditions() -> dict[str, str]:
    """Return the versions and the processor type that counts depend on."""
    python = ".".join(platform.python_version_tuple()[:2])
    return {"onnxruntime": ort.__version__, "machine": platform.machine(), "python": python, "numpy": np.__version__}


def check_budgets(counts: dict[str, int], recorded: dict[str, Any]) -> tuple[list[str], list[str]]:
    """Return the counts that exceed their budgets, and those that could not be compared.

    >>> check_budgets({"a": 4, "b": 1}, {"conditions": conditions(), "budgets": {"a": 3, "c": 1}})
    (['a: 4, budget 3'], ['b: no budget is recorded', 'c: not counted here'])
    """
    recorded_conditions = recorded["conditions"]
    changed = [f"{name} is {value}, budgets are of {recorded_conditions.get(name)}"
               for name, value in conditions().items() if value != recorded_conditions.get(name)]  # fmt: skip
    exceeded, skipped = [], []
    for name, value in counts.items():
        budget = recorded["budgets"].get(name)
        if budget is None:
            skipped.append(f"{name}: no budget is recorded")
        elif changed and not name.endswith(("in the file", ": bytes")):
            skipped.append(f"{name}: {', '.join(changed)}")
        elif value > budget:
            exceeded.append(f"{name}: {value}, budget {budget}")
    skipped += [f"{name}: not counted here" for name in recorded["budgets"] if name not in counts]
    return exceeded, skipped


def main(
    record: Annotated[bool, typer.Option("--record", help="write new budgets to budgets.json")] = False,
    strict: Annotated[bool, typer.Option("--strict", help="also fail if a count could not be compared")] = False,
    as_json: AsJson = False,
) -> int:
    counts = {**graph_counts(), **python_counts(), **instructions()}
    if record:
        budgets = {n: v if "operators" in n else int(v * BUDGET_FACTOR) for n, v in counts.items()}
        BUDGETS.write_text(json.dumps({"conditions": conditions(), "budgets": budgets}, indent=1) + "\n")
    recorded = json.loads(BUDGETS.read_text())
    exceeded, skipped = check_budgets(counts, recorded)
    if as_json:
        budgets = recorded["budgets"]
        print(json.dumps({"counts": counts, "budgets": budgets, "exceeded": exceeded, "not_compared": skipped}))
    else:
        rows = [(name, value, recorded["budgets"].get(name)) for name, value in counts.items()]
        print_section(Console(), Section("guard", "Counted cost of a turn", ("what", "now", "budget"), rows))
        for line in skipped:
            print(f"not compared: {line}")
        for line in exceeded:
            print(f"EXCEEDED: {line}")
    return int(bool(exceeded or (strict and skipped)))


if __name__ == "__main__":
    run(main, __doc__)
