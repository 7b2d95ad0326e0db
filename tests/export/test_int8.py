"""INT8 graphs: rounding is bounded, scale migration changes nothing by itself, and both profiles stay close."""

import numpy as np
import onnx
import onnxruntime as ort
import pytest
from hypothesis import given
from hypothesis import strategies as st
from onnx import helper, numpy_helper

from export.compare import drift, predictions
from export.graphs import graphs
from export.int8 import fidelity, quantised, weights_only, with_int8_weights
from export.linears import linears
from export.migrate import Channels, migrate
from export.qdq import Recipe, grid, insert, to_int8
from export.to_onnx import compare
from hbaf_edge import HBAFRuntime
from hbaf_edge.backends.settings import session_options
from hbaf_edge.bundle import GRAPHS, load_bundle
from hbaf_edge.errors import BundleError
from training import from_bundle


@given(rows=st.integers(1, 9), columns=st.integers(1, 9), axis=st.integers(0, 1), seed=st.integers(0, 99))
def test_rounding_is_at_most_half_a_step(rows, columns, axis, seed):
    weight = np.random.default_rng(seed).standard_normal((rows, columns)).astype(np.float32)
    integers, scale = to_int8(weight, axis)
    shaped = scale[:, None] if axis == 0 else scale
    assert np.abs(integers * shaped - weight).max() <= scale.max() / 2 + 1e-7
    assert np.abs(integers).max() <= 127


@given(low=st.floats(-50, 0), high=st.floats(0, 50), profile=st.sampled_from(["cpu", "tensorrt"]))
def test_a_grid_covers_its_range_and_holds_zero(low, high, profile):
    scale, zero = grid(low, high, profile)
    ends = (-zero, 255 - zero) if profile == "cpu" else (-127, 127)
    assert ends[0] * scale <= low + scale / 2
    assert ends[1] * scale >= high - scale / 2
    assert profile == "cpu" or zero == 0


@pytest.mark.parametrize("name", GRAPHS)
def test_weights_alone_stay_close(tiny, name, small_counts):
    whole = onnx.load(tiny.onnx / f"{name}.onnx")
    made = weights_only(whole)
    assert any(t.data_type == onnx.TensorProto.INT8 for t in made.graph.initializer)
    onnx.save(made, tiny.onnx / f"{name}.small")
    assert 0 < compare(graphs(tiny.model, tiny.audio, tiny.text)[name], tiny.onnx / f"{name}.small") < 0.1
    assert fidelity(whole, made) > 15


def test_a_bundle_that_drifts_is_refused(tiny, small_counts, tmp_path, monkeypatch):
    bundle = load_bundle(tiny.bundle)
    assert load_bundle(with_int8_weights(bundle, tmp_path / "good")).manifest["precision"] == "int8-weights"
    monkeypatch.setattr("export.qdq.to_int8", lambda w, axis: (to_int8(w, axis)[0], to_int8(w, axis)[1] * 2))
    with pytest.raises(BundleError, match=r"leave -?\d.*keep float32"):
        with_int8_weights(bundle, tmp_path / "bad")
    assert not (tmp_path / "bad").exists()


@pytest.mark.parametrize("graph", ["audio", "text"])
def test_migrated_scale_changes_no_result(tiny, graph, calibrated):
    before = onnx.load(tiny.onnx / f"{graph}.onnx")
    after = onnx.ModelProto()
    after.CopyFrom(before)
    chosen = [one for one in linears(graph, before) if one.axis == 1]
    moved = migrate(after, chosen, calibrated.channels, 0.8)
    assert moved
    assert {name == activation for activation, (name, _) in moved.items()} == ({True, False} if graph == "audio" else
                                                                             {False})  # fmt: skip
    assert fidelity(before, after) > 90


@pytest.mark.parametrize(("profile", "narrow"), [("cpu", False), ("cpu", True), ("tensorrt", False)])
def test_both_profiles_stay_close_turn_by_turn(tiny, calibrated, talks, tmp_path, profile, narrow):
    bundle = load_bundle(tiny.bundle)
    out = quantised(bundle, calibrated, Recipe(profile, narrow=narrow), tmp_path / "int8")
    moved = drift(predictions(HBAFRuntime(out, threads=1), talks), predictions(HBAFRuntime(tiny.bundle), talks))
    assert moved["cosine_min"] > 0.97
    assert moved["flip_rate"] <= 0.15
    assert 0 < moved["difference_max"] < 0.2
    manifest = load_bundle(out).manifest
    assert manifest["precision"] == ("int8" if profile == "cpu" else "int8-tensorrt")
    assert manifest["quantisation"]["calibration"] == calibrated.sha256


def test_a_cpu_computes_in_integers_what_the_profile_says(tiny, calibrated, tmp_path):
    """ONNX Runtime takes INT8 kernels for every product that has Q/DQ: counted in what it made of the graph."""
    model = onnx.load(tiny.onnx / "text.onnx")
    made = insert("text", model, Recipe(), calibrated.ranges["minmax"], calibrated.channels)
    options = session_options(1, integers=True)
    options.optimized_model_filepath = str(tmp_path / "optimised.onnx")
    ort.InferenceSession(made.SerializeToString(), options, providers=["CPUExecutionProvider"])
    kinds = [n.op_type for n in onnx.load(tmp_path / "optimised.onnx").graph.node]
    assert kinds.count("MatMulIntegerToFloat") == len(linears("text", model))
    assert "LayerNormalization" in kinds or "SkipLayerNormalization" in kinds


def test_signed_activations_have_no_zero_point_and_biases_stay_float(tiny, calibrated):
    model = onnx.load(tiny.onnx / "audio.onnx")
    made = insert("audio", model, Recipe("tensorrt"), calibrated.ranges["minmax"], calibrated.channels)
    stored = {t.name: t for t in made.graph.initializer}
    rounding = [n for n in made.graph.node if n.op_type == "QuantizeLinear"]
    assert len(rounding) == len({one.activation for one in linears("audio", model)})
    assert all(not numpy_helper.to_array(stored[n.input[2]]).any() for n in rounding)
    assert not any(t.data_type == onnx.TensorProto.INT32 for t in stored.values())


def test_blocks_kept_in_float_are_what_they_were(tiny, calibrated):
    model = onnx.load(tiny.onnx / "utterance.onnx")
    blocks = {one.block for one in linears("utterance", model)}
    ranges, channels = calibrated.ranges["mse"], calibrated.channels
    made = insert("utterance", model, Recipe(float_blocks=tuple(blocks)), ranges, channels)
    assert not any(n.op_type == "QuantizeLinear" for n in made.graph.node)
    weights = {t.name: numpy_helper.to_array(t) for t in made.graph.initializer}
    for one in linears("utterance", model):
        assert np.array_equal(weights[one.weight], from_bundle.weights(model.SerializeToString())[one.weight])


def test_bias_correction_takes_away_the_mean_of_what_rounding_loses(small_counts):
    """One product whose inputs are far from centred: its outputs are off by a constant, which the bias takes up."""
    rng = np.random.default_rng(0)
    weight, bias = rng.standard_normal((32, 8)).astype(np.float32), np.zeros(8, np.float32)
    inputs = (rng.standard_normal((200, 32)) + 5 * rng.standard_normal(32)).astype(np.float32)
    name, values = "encoder.blocks.0.out.weight|T", helper.make_tensor_value_info
    nodes = [helper.make_node("MatMul", ["x", name], ["y"], "product"), helper.make_node("Add", ["y", "b"], ["z"])]
    stored = [numpy_helper.from_array(weight, name), numpy_helper.from_array(bias, "b")]
    ends = [[values(n, onnx.TensorProto.FLOAT, ["rows", width])] for n, width in (("x", 32), ("z", 8))]
    model = helper.make_model(helper.make_graph(nodes, "g", *ends, stored), opset_imports=[helper.make_opsetid("", 20)])
    seen = Channels(inputs.min(0), inputs.max(0), inputs.mean(0))
    ranges = {"utterance/x": (float(inputs.min()), float(inputs.max()))}
    offset = []
    for channels in ({"utterance/x": seen}, {}):
        made = insert("utterance", model, Recipe(narrow=True), ranges, channels)
        session = ort.InferenceSession(made.SerializeToString(), session_options(1))
        offset.append(np.abs((session.run(None, {"x": inputs})[0] - inputs @ weight).mean(0)).max())
    assert offset[0] < 0.2 * offset[1]


def test_weights_come_back_from_int8_to_within_a_step(tiny, calibrated):
    for graph in GRAPHS:
        whole = onnx.load(tiny.onnx / f"{graph}.onnx")
        made = insert(graph, whole, Recipe(migration=0.0), calibrated.ranges["mse"], {})
        a, b = (from_bundle.weights(m.SerializeToString()) for m in (whole, made))
        assert set(a) <= set(b)
        for name, value in a.items():
            if value.dtype == np.float32 and value.ndim > 1:
                step = np.abs(value).max() / 127
                assert np.abs(value - b[name]).max() <= 0.51 * step + 1e-7, name


def test_migrated_weights_come_back_as_they_were(tiny, calibrated, talks, tmp_path):
    """What scale migration multiplied is divided again: a model restored from INT8 is the model."""
    bundle = load_bundle(tiny.bundle)
    out = load_bundle(quantised(bundle, calibrated, Recipe(migration=0.8), tmp_path / "int8"))
    a, b = (from_bundle.weights(one.graph("audio")) for one in (bundle, out))
    for name in a:
        if name.endswith("feed.2.weight|T"):  # behind GELU: divided by a multiplication
            spread = np.abs(a[name]).max()
            assert np.abs(a[name] - b[name]).max() < 0.1 * spread


def test_a_neighbour_in_a_batch_changes_no_bit(tiny, calibrated, tmp_path):
    """Scales are fixed, so no conversation can reach into another's result."""
    runtime = HBAFRuntime(quantised(load_bundle(tiny.bundle), calibrated, Recipe(), tmp_path / "int8"), threads=1)
    loud = {"text": "SHOUTING!!! What? " * 3}
    quiet = {"text": "a quiet word"}
    alone = runtime.predict(**quiet, conversation=runtime.conversation())
    chats = [runtime.conversation(), runtime.conversation()]
    beside = runtime.predict_batch([{**quiet, "conversation": chats[0]}, {**loud, "conversation": chats[1]}])[0]
    assert max(abs(alone.probabilities[k] - beside.probabilities[k]) for k in alone.probabilities) <= 1e-6
