"""Importing the runtime stays light, proven in a fresh interpreter."""

import json
import subprocess
import sys

from tests.conftest import ROOT

SCRIPT = """
import json, sys
import hbaf_edge, hbaf_edge.cli
from hbaf_edge import HBAFRuntime
HBAFRuntime(threads=1).predict(text="hello")
heavy = ("torch", "transformers", "tensorrt", "torchaudio", "onnx", "cuda")
print(json.dumps([m for m in heavy if m in sys.modules]))
"""


def test_runtime_and_cli_import_nothing_heavy():
    done = subprocess.run([sys.executable, "-c", SCRIPT], cwd=ROOT, capture_output=True, text=True, check=True)
    assert json.loads(done.stdout) == []


def test_nothing_imports_upward():
    """The house (STYLE.md): hbaf_edge knows none of the other rooms, kernels only it, training not export."""
    allowed = {
        "hbaf_edge": {"hbaf_edge"},
        "kernels": {"hbaf_edge", "kernels"},
        "training": {"hbaf_edge", "kernels", "training"},
        "export": {"hbaf_edge", "kernels", "training", "export"},
    }
    rooms = {*allowed, "benchmarks", "tests"}
    for room, may in allowed.items():
        for path in (ROOT / room).rglob("*.py"):
            for line in path.read_text().splitlines():
                words = line.split()
                if len(words) > 1 and words[0] in ("import", "from"):
                    imported = words[1].split(".")[0]
                    assert imported not in rooms - may, f"{path.relative_to(ROOT)}: {line.strip()}"
