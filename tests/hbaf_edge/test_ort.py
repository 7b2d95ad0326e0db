"""The package installs no build of ONNX Runtime, and says what to do without one."""

import re
import subprocess
import sys
from importlib import metadata

import pytest

from hbaf_edge import BackendError
from hbaf_edge.backends.open import open_backend
from tests.conftest import ROOT

PROGRAM = """
import sys
from importlib.abc import MetaPathFinder

class HidingFinder(MetaPathFinder):
    def find_spec(self, name, path=None, target=None):
        if name == "{hidden}":
            raise {error}

sys.meta_path.insert(0, HidingFinder())
import hbaf_edge
for _ in range(2):  # the second attempt raises the same error
    try:
        hbaf_edge.HBAFRuntime()
    except hbaf_edge.BackendError as error:
        print(error)
"""


def test_only_extras_install_a_build_of_onnx_runtime():
    required = [r for r in metadata.requires("hbaf-edge") if re.match(r"onnxruntime\b", r)]
    extras = {re.search(r"extra == ['\"](\w+)['\"]", r).group(1) for r in required}
    assert extras == {"cpu", "gpu", "openvino"}
    assert all("extra ==" in r for r in required)


@pytest.mark.parametrize(
    ("hidden", "error", "expected"),
    [
        ("onnxruntime", "ModuleNotFoundError(name=name)", "pip install 'hbaf-edge[cpu]'"),
        ("onnxruntime.capi", "ImportError('libcudart.so.12: cannot open')", "libcudart.so.12: cannot open"),
        ("onnxruntime.capi", "ModuleNotFoundError('No module named capi', name=name)", "cannot be loaded"),
    ],
)
def test_error_says_what_to_install_when_onnx_runtime_is_missing(hidden, error, expected):
    code = PROGRAM.format(hidden=hidden, error=error)
    process = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    first, second = process.stdout.splitlines()
    assert first == second
    assert expected in first
    assert "Traceback" not in process.stderr


def test_error_explains_it_when_two_builds_are_installed(runtime, monkeypatch):
    from hbaf_edge.bundle import load_bundle

    with pytest.raises(BackendError, match=r"hbaf-edge\[gpu\]"):
        open_backend(load_bundle(), "ort-cuda", 1)
    monkeypatch.setattr(metadata, "version", lambda name: "1.32.0")
    with pytest.raises(BackendError, match="overwrote each other's files"):
        open_backend(load_bundle(), "ort-cuda", 1)
