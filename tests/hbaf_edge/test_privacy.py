"""Nothing leaves the machine: a fresh home stays empty, and no process opens anything but a local socket."""

import os
import shutil
import subprocess
import sys

import pytest

from hbaf_edge.telemetry import SWITCH
from tests.conftest import ROOT

TELL_ORT_FIRST = """
import sys, warnings
import onnxruntime
stopped = []
onnxruntime.disable_telemetry_events = lambda: stopped.append(True)
onnxruntime.__version__ = "{version}"
with warnings.catch_warnings(record=True) as caught:
    warnings.simplefilter("always")
    import hbaf_edge
print(len(stopped), [str(w.message) for w in caught if "onnxruntime" in str(w.message)])
"""


def run(command, home, **more):
    """A command in a home of its own, as from a shell that asks for telemetry."""
    kept = {k: v for k, v in os.environ.items() if not k.startswith(("ORT_", "XDG_", "HBAF_"))}
    env = {**kept, "HOME": str(home), SWITCH: "0", **more}
    return subprocess.run(command, cwd=ROOT, env=env, capture_output=True, text=True, timeout=120)


def files(folder):
    return [str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file()]


def test_the_demo_leaves_a_fresh_home_empty(tmp_path):
    done = run([sys.executable, "-B", "-m", "hbaf_edge", "demo"], tmp_path)
    assert done.returncode == 0, done.stderr
    assert files(tmp_path) == []


@pytest.mark.skipif(shutil.which("strace") is None, reason="strace is not installed; CI installs it")
def test_no_process_opens_anything_but_local_sockets(tmp_path):
    """System calls of the demo and everything it starts, seen from outside; a name look-up is one of them."""

    def sockets(code):
        trace, home = tmp_path / "trace", tmp_path / "home"
        home.mkdir(exist_ok=True)
        watch = ["strace", "-f", "-e", "trace=socket,connect,sendto,sendmsg", "-o", str(trace)]
        done = run([*watch, sys.executable, "-B", *code], home)
        if "Operation not permitted" in done.stderr:
            pytest.skip("this system forbids tracing")
        assert done.returncode == 0, done.stderr
        return [line for line in trace.read_text().splitlines() if "AF_INET" in line]

    look_up = "import socket; socket.socket(socket.AF_INET, socket.SOCK_DGRAM)"
    assert sockets(["-c", look_up]), "the watch sees a network socket where there is one"
    assert sockets(["-m", "hbaf_edge", "demo"]) == []


@pytest.mark.parametrize(("version", "warned"), [("1.32.0", True), ("1.23.2", False)])
def test_onnx_runtime_imported_first_is_stopped_and_said(tmp_path, version, warned):
    done = run([sys.executable, "-c", TELL_ORT_FIRST.format(version=version)], tmp_path)
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("1 "), done.stdout
    assert ("import hbaf_edge first" in done.stdout) == warned


def test_it_is_off_before_the_workbench_loads_onnx_runtime(tmp_path):
    for module in ("export.compare", "benchmarks.counted"):
        assert run([sys.executable, "-B", "-c", f"import {module}"], tmp_path).returncode == 0
    assert [path for path in files(tmp_path) if "onnxruntime" in path] == []
