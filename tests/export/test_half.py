"""FP16 keeps norms, softmax and gates in float32; the parity chain judges every precision."""

import json

import onnx
import pytest

from export import verify
from export.half import half, to_half
from export.int8 import quantised, with_int8_weights
from export.qdq import Recipe
from hbaf_edge.bundle import GRAPHS, load_bundle
from kernels import gate
from training.command import cli
from training.learner import Learner


def test_weights_are_half_and_gates_are_not(tiny):
    for name in GRAPHS:
        model = half(onnx.load(tiny.onnx / f"{name}.onnx"))
        stored = {t.name: t.data_type for t in model.graph.initializer}
        assert onnx.TensorProto.FLOAT16 in stored.values()
        for node in model.graph.node:
            if node.op_type in (gate.NAME, "LayerNormalization"):
                kinds = {stored[i] for i in node.input if i in stored}
                assert onnx.TensorProto.FLOAT16 not in kinds, node.name


@pytest.mark.slow
def test_the_chain_walks_every_precision(tiny, calibrated, talks, tmp_path):
    bundle = load_bundle(tiny.bundle)
    bundles = [tiny.bundle, to_half(bundle, tmp_path / "float16"), with_int8_weights(bundle, tmp_path / "small")]
    bundles += [quantised(bundle, calibrated, Recipe(p), tmp_path / p) for p in ("cpu", "tensorrt")]
    learner = Learner(tiny.model, tiny.text, tiny.audio).eval()
    steps = verify.walk(learner, bundles, talks, threads=1, layer_turns=15)
    assert [s["name"] for s in steps] == ["float32", "float16", "int8-weights", "int8", "int8-tensorrt"]
    whole, half_, *_, signed = steps
    assert not whole["broken"]
    assert not half_["broken"]
    assert whole["difference_max"] < half_["difference_max"] < signed["difference_max"]
    assert half_["megabytes"] < whole["megabytes"]
    assert min(half_["layers"].values()) > 0.999
    assert {name.split("/")[0] for name in signed["layers"]} == set(GRAPHS)
    assert all(s["milliseconds"] > 0 for s in steps)
    assert whole["f1_drop"] is None  # the conversations have no labels


def test_a_step_that_breaks_its_limits_fails_the_command(tiny, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(verify, "load_learner", lambda folder: Learner(tiny.model, tiny.text, tiny.audio).eval())
    command = ["checkpoint", str(tiny.bundle), "--save", str(tmp_path / "parity.json")]
    cli(verify.main, command)
    stored = json.loads((tmp_path / "parity.json").read_text())
    assert stored["steps"][0]["broken"] == []
    assert stored["data"]["turns"] == 300
    monkeypatch.setitem(verify.LIMITS, "float32", {"difference_max": 0.0})
    with pytest.raises(SystemExit, match=r"float32: difference_max .*, allowed 0"):
        cli(verify.main, command)
