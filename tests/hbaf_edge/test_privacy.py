"""No data leaves the machine: no file is written to the home folder, and only local sockets are opened."""

import os
import shutil
import subprocess
import sys

import pytest

from hbaf_edge.telemetry import SWITCH
from tests.conftest import ROOT

IMPORT_ORT_FIRST = """
import sys, warnings
import onnxruntime
calls = []
onnxruntime.disable_telemetry_events = lambda: calls.append(True)
onnxruntime.__version__ = "{version}"
with warnings.catch_warnings(record=True) as caught:
    warnings.simplefilter("always")
    import hbaf_edge
print(len(calls), [str(w.message) for w in caught if "onnxruntime" in str(w.message)])
"""


def run(command, home, **variables):
    """Run a command with its own home folder and with telemetry switched on by an environment variable."""
    inherited = {k: v for k, v in os.environ.items() if not k.startswith(("ORT_", "XDG_", "HBAF_"))}
    env = {**inherited, "HOME": str(home), SWITCH: "0", **variables}
    return subprocess.run(command, cwd=ROOT, env=env, capture_output=True, text=True, timeout=120)


def files(folder):
    return [str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file()]


def test_the_demo_writes_nothing_to_the_home_folder(tmp_path):
    result = run([sys.executable, "-B", "-m", "hbaf_edge", "demo"], tmp_path)
    assert result.returncode == 0, result.stderr
    assert files(tmp_path) == []


@pytest.mark.skipif(shutil.which("strace") is None, reason="strace is not installed; CI installs it")
def test_only_local_sockets_are_opened(tmp_path):
    """Trace the system calls of the demo and its child processes; a DNS query would be among them."""

    def network_calls(code):
        trace, home = tmp_path / "trace", tmp_path / "home"
        home.mkdir(exist_ok=True)
        strace = ["strace", "-f", "-e", "trace=socket,connect,sendto,sendmsg", "-o", str(trace)]
        result = run([*strace, sys.executable, "-B", *code], home)
        if "Operation not permitted" in result.stderr:
            pytest.skip("this system forbids tracing")
        assert result.returncode == 0, result.stderr
        return [line for line in trace.read_text().splitlines() if "AF_INET" in line]

    open_socket = "import socket; socket.socket(socket.AF_INET, socket.SOCK_DGRAM)"
    assert network_calls(["-c", open_socket]), "strace reports a network socket"
    assert network_calls(["-m", "hbaf_edge", "demo"]) == []


@pytest.mark.parametrize(("version", "has_warning"), [("1.32.0", True), ("1.23.2", False)])
def test_telemetry_is_disabled_when_onnx_runtime_was_imported_first(tmp_path, version, has_warning):
    result = run([sys.executable, "-c", IMPORT_ORT_FIRST.format(version=version)], tmp_path)
    assert result.returncode == 0, result.stderr
    assert result.stdout.startswith("1 "), result.stdout
    assert ("import hbaf_edge first" in result.stdout) == has_warning


def test_telemetry_is_disabled_in_the_other_packages(tmp_path):
    for module in ("export.compare", "benchmarks.operation_counts"):
        assert run([sys.executable, "-B", "-c", f"import {module}"], tmp_path).returncode == 0
    assert [path for path in files(tmp_path) if "onnxruntime" in path] == []
