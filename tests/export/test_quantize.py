"""INT8 weights: every large matrix is stored as INT8, rounding is bounded, and results stay close."""

import numpy as np
import onnx
import pytest
from hypothesis import given
from hypothesis import strategies as st
from onnx import numpy_helper

from export import quantize
from export.quantize import quantize_weights, to_int8
from hbaf_edge.bundle import load_bundle


@given(rows=st.integers(1, 9), columns=st.integers(1, 9), axis=st.integers(0, 1), seed=st.integers(0, 99))
def test_rounding_is_at_most_half_a_step(rows, columns, axis, seed):
    weight = np.random.default_rng(seed).standard_normal((rows, columns)).astype(np.float32)
    integers, scale = to_int8(weight, axis)
    shaped = scale[:, None] if axis == 0 else scale
    assert np.abs(integers * shaped - weight).max() <= scale.max() / 2 + 1e-7
    assert np.abs(integers).max() <= 127


@pytest.mark.parametrize("name", ["audio", "text", "utterance", "dialogue"])
def test_quantised_graph_stays_close(tiny, name, tmp_path, monkeypatch):
    from export.graphs import graphs
    from export.to_onnx import compare

    monkeypatch.setattr(quantize, "SMALLEST", 64)  # the tiny model's matrices are small
    made = quantize_weights(onnx.load(tiny.onnx / f"{name}.onnx"))
    onnx.save(made, tmp_path / f"{name}.onnx")
    kinds = {node.op_type for node in made.graph.node}
    assert "DequantizeLinear" in kinds
    difference = compare(graphs(tiny.model, tiny.audio, tiny.text)[name], tmp_path / f"{name}.onnx")
    assert 0 < difference < 0.1


def test_a_file_that_drifts_is_refused(tiny, tmp_path, monkeypatch):
    monkeypatch.setattr(quantize, "SMALLEST", 64)
    assert "dB" in quantize.quantize_file(tiny.onnx / "dialogue.onnx", tmp_path / "good.onnx")
    monkeypatch.setattr(
        quantize, "to_int8", lambda weight, axis: (to_int8(weight, axis)[0], to_int8(weight, axis)[1] * 2)
    )
    with pytest.raises(SystemExit, match="keep it in float32"):
        quantize.quantize_file(tiny.onnx / "dialogue.onnx", tmp_path / "bad.onnx")
    assert not (tmp_path / "bad.onnx").exists()


def test_default_bundle_holds_int8_weights_and_an_int8_embedding_table():
    bundle = load_bundle()
    for name in ("audio", "text", "utterance", "dialogue"):
        graph = onnx.load_from_string(bundle.graph(name)).graph
        floats = [t for t in graph.initializer if t.data_type == onnx.TensorProto.FLOAT]
        integers = [t for t in graph.initializer if t.data_type == onnx.TensorProto.INT8]
        assert sum(np.prod(t.dims) for t in integers) > 10 * sum(np.prod(t.dims) for t in floats), name
    table = next(
        t for t in onnx.load_from_string(bundle.graph("text")).graph.initializer if list(t.dims) == [30522, 384]
    )
    assert numpy_helper.to_array(table).dtype == np.int8
