"""INT8 graphs: bounded rounding, SmoothQuant without rounding changes no result, and both profiles stay close."""

import numpy as np
import onnx
import onnxruntime as ort
import pytest
from hypothesis import given
from hypothesis import strategies as st
from onnx import helper, numpy_helper

from export.compare import drift, predictions
from export.graphs import graphs
from export.int8 import bundle_with_int8_weights, graph_snr_db, graph_with_int8_weights, quantise_bundle
from export.qdq import Recipe, grid, insert_qdq, to_int8
from export.quantizable_matmuls import quantizable_matmuls
from export.smoothquant import ChannelStats, smoothquant
from export.to_onnx import compare
from hbaf_edge import HBAFRuntime
from hbaf_edge.backends.cuda.weights import read_weights
from hbaf_edge.backends.settings import session_options
from hbaf_edge.bundle import GRAPHS, load_bundle
from hbaf_edge.errors import BundleError


@given(rows=st.integers(1, 9), columns=st.integers(1, 9), axis=st.integers(0, 1), seed=st.integers(0, 99))
def test_rounding_is_at_most_half_a_step(rows, columns, axis, seed):
    weight = np.random.default_rng(seed).standard_normal((rows, columns)).astype(np.float32)
    integers, scale = to_int8(weight, axis)
    shaped = scale[:, None] if axis == 0 else scale
    assert np.abs(integers * shaped - weight).max() <= scale.max() / 2 + 1e-7
    assert np.abs(integers).max() <= 127


@given(low=st.floats(-50, 0), high=st.floats(0, 50), profile=st.sampled_from(["cpu", "tensorrt"]))
def test_grid_covers_its_range_and_zero(low, high, profile):
    scale, zero = grid(low, high, profile)
    ends = (-zero, 255 - zero) if profile == "cpu" else (-127, 127)
    assert ends[0] * scale <= low + scale / 2
    assert ends[1] * scale >= high - scale / 2
    assert profile == "cpu" or zero == 0


@pytest.mark.parametrize("name", GRAPHS)
def test_graph_with_int8_weights_stays_close(tiny, name, quantise_small_matrices):
    model = onnx.load(tiny.onnx / f"{name}.onnx")
    small = graph_with_int8_weights(model)
    assert any(t.data_type == onnx.TensorProto.INT8 for t in small.graph.initializer)
    onnx.save(small, tiny.onnx / f"{name}.small")
    assert 0 < compare(graphs(tiny.model, tiny.audio, tiny.text)[name], tiny.onnx / f"{name}.small") < 0.1
    assert graph_snr_db(model, small) > 15


def test_conversion_raises_when_weights_lose_too_much(tiny, quantise_small_matrices, tmp_path, monkeypatch):
    bundle = load_bundle(tiny.bundle)
    assert load_bundle(bundle_with_int8_weights(bundle, tmp_path / "good")).manifest["precision"] == "int8-weights"
    monkeypatch.setattr("export.qdq.to_int8", lambda w, axis: (to_int8(w, axis)[0], to_int8(w, axis)[1] * 2))
    with pytest.raises(BundleError, match=r"has -?\d.* dB, at least 15.0 are needed; keep float32"):
        bundle_with_int8_weights(bundle, tmp_path / "bad")
    assert not (tmp_path / "bad").exists()


@pytest.mark.parametrize("graph", ["audio", "text"])
def test_smoothquant_changes_no_result(tiny, graph, calibrated):
    before = onnx.load(tiny.onnx / f"{graph}.onnx")
    after = onnx.ModelProto()
    after.CopyFrom(before)
    matmuls = [matmul for matmul in quantizable_matmuls(graph, before) if matmul.axis == 1]
    smoothed = smoothquant(after, matmuls, calibrated.channels, 0.8)
    # In the audio graph, LayerNorms take a part of the factors; in the text graph they also feed residual sums.
    kept_names = {name == activation for activation, (name, _) in smoothed.items()}
    assert kept_names == ({True, False} if graph == "audio" else {False})
    assert graph_snr_db(before, after) > 90


@pytest.mark.parametrize(("profile", "reduce_range"), [("cpu", False), ("cpu", True), ("tensorrt", False)])
def test_int8_bundle_stays_close_turn_by_turn(tiny, calibrated, dialogues, tmp_path, profile, reduce_range):
    bundle = load_bundle(tiny.bundle)
    out = quantise_bundle(bundle, calibrated, Recipe(profile, reduce_range=reduce_range), tmp_path / "int8")
    int8, float32 = (predictions(HBAFRuntime(path, threads=1), dialogues) for path in (out, tiny.bundle))
    differences = drift(int8, float32)
    assert differences["cosine_min"] > 0.97
    assert differences["flip_rate"] <= 0.15
    assert 0 < differences["difference_max"] < 0.2
    manifest = load_bundle(out).manifest
    assert manifest["precision"] == ("int8" if profile == "cpu" else "int8-tensorrt")
    assert manifest["quantisation"]["calibration"] == calibrated.sha256
    assert manifest["quantisation"]["narrow"] == reduce_range


def test_onnx_runtime_computes_every_quantised_product_in_int8(tiny, calibrated, tmp_path):
    """Counts the INT8 kernels in the graph that ONNX Runtime runs."""
    model = onnx.load(tiny.onnx / "text.onnx")
    int8 = insert_qdq("text", model, Recipe(), calibrated.ranges["minmax"], calibrated.channels)
    options = session_options(1, use_int8=True)
    options.optimized_model_filepath = str(tmp_path / "optimised.onnx")
    ort.InferenceSession(int8.SerializeToString(), options, providers=["CPUExecutionProvider"])
    op_types = [n.op_type for n in onnx.load(tmp_path / "optimised.onnx").graph.node]
    assert op_types.count("MatMulIntegerToFloat") == len(quantizable_matmuls("text", model))
    assert "LayerNormalization" in op_types or "SkipLayerNormalization" in op_types


def test_tensorrt_profile_has_no_zero_points_and_float_biases(tiny, calibrated):
    model = onnx.load(tiny.onnx / "audio.onnx")
    int8 = insert_qdq("audio", model, Recipe("tensorrt"), calibrated.ranges["minmax"], calibrated.channels)
    initializers = {t.name: t for t in int8.graph.initializer}
    quantize_nodes = [n for n in int8.graph.node if n.op_type == "QuantizeLinear"]
    assert len(quantize_nodes) == len({matmul.activation for matmul in quantizable_matmuls("audio", model)})
    assert all(not numpy_helper.to_array(initializers[n.input[2]]).any() for n in quantize_nodes)
    assert not any(t.data_type == onnx.TensorProto.INT32 for t in initializers.values())


def test_float_blocks_keep_their_weights(tiny, calibrated):
    model = onnx.load(tiny.onnx / "utterance.onnx")
    matmuls = quantizable_matmuls("utterance", model)
    recipe = Recipe(float_blocks=tuple({matmul.block for matmul in matmuls}))
    result = insert_qdq("utterance", model, recipe, calibrated.ranges["mse"], calibrated.channels)
    assert not any(n.op_type == "QuantizeLinear" for n in result.graph.node)
    initializers = {t.name: numpy_helper.to_array(t) for t in result.graph.initializer}
    weights = read_weights(model.SerializeToString())
    for matmul in matmuls:
        assert np.array_equal(initializers[matmul.weight], weights[matmul.weight])


def test_bias_correction_removes_the_mean_error_of_rounding(quantise_small_matrices):
    """The inputs of one product have a large mean, so rounded weights shift its outputs by a constant."""
    rng = np.random.default_rng(0)
    weight, bias = rng.standard_normal((32, 8)).astype(np.float32), np.zeros(8, np.float32)
    inputs = (rng.standard_normal((200, 32)) + 5 * rng.standard_normal(32)).astype(np.float32)
    name, tensor_info = "encoder.blocks.0.out.weight|T", helper.make_tensor_value_info
    nodes = [helper.make_node("MatMul", ["x", name], ["y"], "product"), helper.make_node("Add", ["y", "b"], ["z"])]
    initializers = [numpy_helper.from_array(weight, name), numpy_helper.from_array(bias, "b")]
    io = [[tensor_info(n, onnx.TensorProto.FLOAT, ["rows", width])] for n, width in (("x", 32), ("z", 8))]
    graph = helper.make_graph(nodes, "g", *io, initializers)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)])
    stats = ChannelStats(inputs.min(0), inputs.max(0), inputs.mean(0))
    ranges = {"utterance/x": (float(inputs.min()), float(inputs.max()))}
    offsets = []
    for channels in ({"utterance/x": stats}, {}):  # with and without correction
        int8 = insert_qdq("utterance", model, Recipe(reduce_range=True), ranges, channels)
        session = ort.InferenceSession(int8.SerializeToString(), session_options(1))
        offsets.append(np.abs((session.run(None, {"x": inputs})[0] - inputs @ weight).mean(0)).max())
    assert offsets[0] < 0.2 * offsets[1]


def test_weights_are_restored_from_int8_to_within_a_step(tiny, calibrated):
    for graph in GRAPHS:
        model = onnx.load(tiny.onnx / f"{graph}.onnx")
        int8 = insert_qdq(graph, model, Recipe(smoothquant=0.0), calibrated.ranges["mse"], {})
        expected, actual = (read_weights(m.SerializeToString()) for m in (model, int8))
        assert set(expected) <= set(actual)
        for name, value in expected.items():
            if value.dtype == np.float32 and value.ndim > 1:
                step = np.abs(value).max() / 127
                assert np.abs(value - actual[name]).max() <= 0.51 * step + 1e-7, name


def test_smoothed_weights_are_restored_without_their_factors(tiny, calibrated, dialogues, tmp_path):
    """What SmoothQuant multiplied is divided again, so a model restored from INT8 is the original model."""
    bundle = load_bundle(tiny.bundle)
    out = load_bundle(quantise_bundle(bundle, calibrated, Recipe(smoothquant=0.8), tmp_path / "int8"))
    expected, actual = (read_weights(one.graph("audio")) for one in (bundle, out))
    for name in expected:
        if name.endswith("feed.2.weight|T"):  # after GELU, where a Mul node divides the activation
            assert np.abs(expected[name] - actual[name]).max() < 0.1 * np.abs(expected[name]).max()


def test_result_does_not_depend_on_other_conversations_in_the_batch(tiny, calibrated, tmp_path):
    """Scales are fixed, so another conversation cannot change them."""
    runtime = HBAFRuntime(quantise_bundle(load_bundle(tiny.bundle), calibrated, Recipe(), tmp_path / "int8"), threads=1)
    loud = {"text": "SHOUTING!!! What? " * 3}
    quiet = {"text": "a quiet word"}
    single = runtime.predict(**quiet, conversation=runtime.conversation())
    a, b = runtime.conversation(), runtime.conversation()
    batched = runtime.predict_batch([{**quiet, "conversation": a}, {**loud, "conversation": b}])[0]
    assert max(abs(single.probabilities[k] - batched.probabilities[k]) for k in single.probabilities) <= 1e-6


def test_default_bundle_has_int8_weights_and_an_int8_embedding_table():
    bundle = load_bundle()
    for name in GRAPHS:
        graph = onnx.load_from_string(bundle.graph(name)).graph
        floats = [t for t in graph.initializer if t.data_type == onnx.TensorProto.FLOAT]
        integers = [t for t in graph.initializer if t.data_type == onnx.TensorProto.INT8]
        assert sum(np.prod(t.dims) for t in integers) > 5 * sum(np.prod(t.dims) for t in floats), name
    weights = onnx.load_from_string(bundle.graph("text")).graph.initializer
    table = next(t for t in weights if list(t.dims) == [30522, 384])
    assert numpy_helper.to_array(table).dtype == np.int8
