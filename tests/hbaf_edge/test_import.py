"""Importing the runtime loads no heavy package, tested in a new interpreter."""

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


def test_runtime_and_cli_import_no_heavy_package():
    result = subprocess.run([sys.executable, "-c", SCRIPT], cwd=ROOT, capture_output=True, text=True, check=True)
    assert json.loads(result.stdout) == []


def test_packages_import_only_lower_packages():
    """hbaf_edge imports none of the others, kernels only hbaf_edge, training not export."""
    allowed = {
        "hbaf_edge": {"hbaf_edge"},
        "kernels": {"hbaf_edge", "kernels"},
        "training": {"hbaf_edge", "kernels", "training"},
        "export": {"hbaf_edge", "kernels", "training", "export"},
    }
    packages = {*allowed, "benchmarks", "tests"}
    for package, lower in allowed.items():
        for path in (ROOT / package).rglob("*.py"):
            for line in path.read_text().splitlines():
                parts = line.split()
                if len(parts) > 1 and parts[0] in ("import", "from"):
                    imported = parts[1].split(".")[0]
                    assert imported not in packages - lower, f"{path.relative_to(ROOT)}: {line.strip()}"
