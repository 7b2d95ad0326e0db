"""The four exported graphs equal their modules, also with other batch sizes and lengths than in the export."""

import copy
import subprocess
import sys
from dataclasses import replace

import onnx
import pytest

from export.graphs import graphs
from export.to_onnx import compare, export
from hbaf_edge.errors import InputError
from kernels import gate
from tests.conftest import ROOT

NAMES = ("audio", "text", "utterance", "dialogue")


@pytest.mark.parametrize("name", NAMES)
def test_graph_equals_its_module(tiny, name):
    graph = graphs(tiny.model, tiny.audio, tiny.text)[name]
    assert compare(graph, tiny.onnx / f"{name}.onnx", seed=3) <= 1e-5


@pytest.mark.parametrize("name", NAMES)
def test_files_have_the_documented_versions_and_no_local_paths(tiny, name):
    model = onnx.load(tiny.onnx / f"{name}.onnx")
    assert {d.domain: d.version for d in model.opset_import}[""] == 20
    assert model.ir_version == 10
    assert {node.domain for node in model.graph.node} <= {"", gate.DOMAIN}
    assert {(f.domain, f.name) for f in model.functions} <= {(gate.DOMAIN, gate.NAME)}
    text = str(model)
    for trace in ("site-packages", "stack_trace", "/home/", "/root/", "/work/"):
        assert trace not in text


@pytest.mark.slow
def test_every_command_starts_in_a_new_interpreter():
    """The tests import modules in another order; the order decides whether transformers works with a CPU torch."""
    for command in ("to_onnx", "float16", "calibrate", "quantize", "verify", "bundle", "score", "release"):
        process = subprocess.run(
            [sys.executable, "-m", f"export.{command}", "--help"], cwd=ROOT, capture_output=True, text=True
        )
        assert process.returncode == 0, process.stderr
        assert f"Usage: python -m export.{command}" in process.stdout


def test_export_raises_when_the_model_is_an_ablation(tiny, tmp_path):
    model = copy.deepcopy(tiny.model)
    model.config = replace(model.config, causal=False)
    with pytest.raises(InputError, match="it has no incremental form"):
        export(model, tiny.audio, tiny.text, tmp_path)
    assert not list(tmp_path.iterdir())
