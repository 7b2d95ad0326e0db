"""Float16 keeps norms, softmax and gates in float32; the parity chain compares every precision with PyTorch."""

import json

import onnx
import pytest

from export import verify
from export.float16 import graph_to_float16, to_float16
from export.int8 import bundle_with_int8_weights, quantise_bundle
from export.qdq import Recipe
from hbaf_edge.bundle import GRAPHS, load_bundle
from kernels import gate
from training.command import cli
from training.training_module import TrainingModule


def test_weights_are_float16_except_those_of_norms_and_gates(tiny):
    for name in GRAPHS:
        model = graph_to_float16(onnx.load(tiny.onnx / f"{name}.onnx"))
        types = {t.name: t.data_type for t in model.graph.initializer}
        assert onnx.TensorProto.FLOAT16 in types.values()
        for node in model.graph.node:
            if node.op_type in (gate.NAME, "LayerNormalization"):
                input_types = {types[i] for i in node.input if i in types}
                assert onnx.TensorProto.FLOAT16 not in input_types, node.name


@pytest.mark.slow
def test_parity_chain_compares_every_precision(tiny, calibrated, dialogues, tmp_path):
    bundle = load_bundle(tiny.bundle)
    bundles = [
        tiny.bundle,
        to_float16(bundle, tmp_path / "float16"),
        bundle_with_int8_weights(bundle, tmp_path / "small"),
    ]
    bundles += [quantise_bundle(bundle, calibrated, Recipe(p), tmp_path / p) for p in ("cpu", "tensorrt")]
    module = TrainingModule(tiny.model, tiny.text, tiny.audio).eval()
    rows = verify.parity_chain(module, bundles, dialogues, threads=1, layer_turns=15)
    assert [row["name"] for row in rows] == ["float32", "float16", "int8-weights", "int8", "int8-tensorrt"]
    float32, float16, *_, tensorrt = rows
    assert not float32["broken"]
    assert not float16["broken"]
    assert float32["difference_max"] < float16["difference_max"] < tensorrt["difference_max"]
    assert float16["megabytes"] < float32["megabytes"]
    assert min(float16["layers"].values()) > 0.999
    assert {name.split("/")[0] for name in tensorrt["layers"]} == set(GRAPHS)
    assert all(row["milliseconds"] > 0 for row in rows)
    assert float32["f1_drop"] is None  # the conversations have no labels


def test_verify_fails_when_a_bundle_exceeds_its_limits(tiny, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(
        verify, "load_training_module", lambda folder: TrainingModule(tiny.model, tiny.text, tiny.audio).eval()
    )
    monkeypatch.setattr(verify, "describe", lambda folder: ({}, tiny.model.config))
    command = ["checkpoint", str(tiny.bundle), "--save", str(tmp_path / "parity.json")]
    cli(verify.main, command)
    assert "against PyTorch in float32, 300 turns" in capsys.readouterr().out
    stored = json.loads((tmp_path / "parity.json").read_text())
    assert stored["steps"][0]["broken"] == []
    assert stored["data"]["turns"] == 300
    monkeypatch.setitem(verify.LIMITS, "float32", {"difference_max": 0.0})
    with pytest.raises(SystemExit, match=r"float32: difference_max .*, allowed 0"):
        cli(verify.main, [*command, "--json"])
    (line,) = capsys.readouterr().out.splitlines()
    assert json.loads(line)["steps"][0]["broken"]
