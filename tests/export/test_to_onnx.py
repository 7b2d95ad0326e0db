"""The four exported graphs equal their modules, at other batches and lengths than they were exported with."""

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
def test_graph_equals_module(tiny, name):
    graph = graphs(tiny.model, tiny.audio, tiny.text)[name]
    assert compare(graph, tiny.onnx / f"{name}.onnx", seed=3) <= 1e-5


@pytest.mark.parametrize("name", NAMES)
def test_files_are_plain_onnx_of_the_promised_version(tiny, name):
    model = onnx.load(tiny.onnx / f"{name}.onnx")
    assert {d.domain: d.version for d in model.opset_import}[""] == 20
    assert model.ir_version == 10
    assert {node.domain for node in model.graph.node} <= {"", gate.DOMAIN}
    assert {(f.domain, f.name) for f in model.functions} <= {(gate.DOMAIN, gate.NAME)}
    text = str(model)
    for trace in ("site-packages", "stack_trace", "/home/", "/root/", "/work/"):
        assert trace not in text


@pytest.mark.slow
def test_every_verb_starts_in_a_fresh_interpreter():
    """Imported in another order than here, transformers may not be importable beside a CPU torch."""
    for verb in ("to_onnx", "half", "calibrate", "quantize", "verify", "bundle", "score", "release"):
        done = subprocess.run(
            [sys.executable, "-m", f"export.{verb}", "--help"], cwd=ROOT, capture_output=True, text=True
        )
        assert done.returncode == 0, done.stderr
        assert f"Usage: python -m export.{verb}" in done.stdout


def test_a_variant_for_research_is_refused_in_a_line(tiny, tmp_path):
    model = copy.deepcopy(tiny.model)
    model.config = replace(model.config, causal=False)
    with pytest.raises(InputError, match="it has no incremental form"):
        export(model, tiny.audio, tiny.text, tmp_path)
    assert not list(tmp_path.iterdir())
