"""Rewritten graphs compute the same with fewer operators; patterns that they do not know stay unchanged."""

import numpy as np
import onnx
import onnxruntime as ort
import pytest

from export import to_onnx
from export.int8 import can_fuse_attention, graph_snr_db
from export.qdq import set_nodes
from export.rewrite import fuse_attention, mix_layers
from hbaf_edge.backends.cuda.weights import read_weights
from hbaf_edge.backends.settings import session_options
from hbaf_edge.bundle import load_bundle

LAYERS = 2


@pytest.fixture(scope="module")
def exported(tiny, tmp_path_factory):
    """The tiny model's graphs as PyTorch's exporter writes them, by name."""
    folder = tmp_path_factory.mktemp("exported")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(to_onnx, "mix_layers", lambda model: model)
        to_onnx.export(tiny.model, tiny.audio, tiny.text, folder)
    return {name: onnx.load(folder / f"{name}.onnx") for name in ("audio", "text", "utterance", "dialogue")}


def copy_of(model):
    copied = onnx.ModelProto()
    copied.CopyFrom(model)
    return copied


def op_types(model):
    return [node.op_type for node in model.graph.node]


@pytest.mark.slow
@pytest.mark.parametrize("name", ["audio", "text"])
def test_mix_layers_sums_encoder_layers_without_a_stack(exported, name, tmp_path):
    mixed = mix_layers(exported[name])
    assert "Einsum" in op_types(exported[name])
    assert "Einsum" not in op_types(mixed)
    assert op_types(mixed).count("Sum") == 1
    assert graph_snr_db(exported[name], mixed) > 110
    assert mix_layers(mixed) == mixed
    # ONNX Runtime computes the shares once, when it loads the graph: no operator with only constant inputs is left.
    options = session_options(1)
    options.optimized_model_filepath = str(tmp_path / "optimised.onnx")
    ort.InferenceSession(mixed.SerializeToString(), options, providers=["CPUExecutionProvider"])
    optimised = onnx.load(tmp_path / "optimised.onnx")
    constants = {t.name for t in optimised.graph.initializer}
    assert not [n.op_type for n in optimised.graph.node if set(n.input) <= constants]
    assert op_types(mixed).count("Split") == 1


@pytest.mark.slow
@pytest.mark.parametrize("name", ["audio", "text"])
def test_rewritten_graphs_keep_the_names_of_weights(exported, name):
    before = read_weights(exported[name].SerializeToString())
    after = read_weights(fuse_attention(mix_layers(exported[name])).SerializeToString())
    parameters = {n for n in before if n.startswith(("encoder.", "mix."))}
    assert "mix.logits|softmax" in parameters
    assert parameters <= set(after)
    assert all(np.array_equal(before[n], after[n]) for n in parameters)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["audio", "text"])
def test_fuse_attention_writes_one_operator_per_layer(exported, name):
    fused = fuse_attention(exported[name])
    assert op_types(fused).count("MultiHeadAttention") == LAYERS
    assert "Softmax" not in op_types(fused)
    assert len(op_types(fused)) < len(op_types(exported[name])) - 10 * LAYERS
    assert graph_snr_db(exported[name], fused) > 100
    assert fuse_attention(fused) == fused


@pytest.mark.slow
@pytest.mark.parametrize("name", ["utterance", "dialogue"])
def test_attention_of_the_fusion_stays_unchanged(exported, name):
    """MultiHeadAttention has none of its masks, biases and gates."""
    assert mix_layers(exported[name]) == exported[name]
    assert op_types(fuse_attention(exported[name])) == op_types(exported[name])


@pytest.mark.slow
def test_attention_with_another_scale_stays_unchanged(exported):
    model = copy_of(exported["audio"])
    scale = next(n.input[1] for n in model.graph.node if n.op_type == "Mul")
    tensor = next(t for t in model.graph.initializer if t.name == scale)
    tensor.CopyFrom(onnx.numpy_helper.from_array(onnx.numpy_helper.to_array(tensor) * np.float32(1.1), scale))
    assert "MultiHeadAttention" not in op_types(fuse_attention(model))


@pytest.mark.slow
def test_attention_with_a_causal_mask_is_not_fused(exported, capsys):
    """A decoder also masks later tokens; MultiHeadAttention would ignore that mask."""
    model = copy_of(exported["text"])
    softmax = next(n for n in model.graph.node if n.op_type == "Softmax")
    (scores,) = softmax.input
    causal = np.triu(np.full((16, 16), -1e4, np.float32), 1)
    model.graph.initializer.append(onnx.numpy_helper.from_array(causal, "later"))
    (mask,) = {n.input[1] for n in model.graph.node if n.op_type == "Add" and scores in n.output}
    for add in [n for n in model.graph.node if n.op_type == "Add" and n.input[1] == mask]:
        add.input[1] = "both"
    model.graph.node.append(onnx.helper.make_node("Add", [mask, "later"], ["both"]))
    set_nodes(model, model.graph.node)
    assert can_fuse_attention("text", exported["text"].SerializeToString())
    assert not capsys.readouterr().err
    assert not can_fuse_attention("text", model.SerializeToString())
    assert "stays in separate operators" in capsys.readouterr().err


@pytest.mark.slow
def test_fused_attention_masks_padding(exported):
    """A batch of texts of unequal length; only the longest one fills its row."""
    lengths = [9, 4, 1]
    mask = (np.arange(9) < np.array(lengths)[:, None]).astype(np.int64)
    inputs = {"tokens": np.random.default_rng(0).integers(5, 100, (3, 9)) * mask, "token_mask": mask}
    expected, actual = (
        ort.InferenceSession(m.SerializeToString(), session_options(1), providers=["CPUExecutionProvider"])
        .run(None, inputs)[0] for m in (exported["text"], fuse_attention(exported["text"]))
    )  # fmt: skip
    for row, length in enumerate(lengths):
        np.testing.assert_allclose(actual[row, :length], expected[row, :length], atol=2e-5)


@pytest.mark.slow
def test_swapped_keys_and_values_are_detected(exported):
    model = copy_of(exported["audio"])
    constants = {t.name: onnx.numpy_helper.to_array(t).ravel() for t in model.graph.initializer}
    slices = [n for n in model.graph.node if n.op_type == "Slice" and n.input[0].startswith("permute")]
    keys, values = ([n for n in slices if constants[n.input[1]][0] == part] for part in (1, 2))
    assert len(keys) == len(values) == LAYERS
    for key, value in zip(keys, values):
        key.output[0], value.output[0] = value.output[0], key.output[0]
    set_nodes(model, model.graph.node)
    assert not can_fuse_attention("audio", model.SerializeToString())


def test_default_bundle_has_rewritten_encoders(runtime):
    bundle = load_bundle()
    for name, layers in (("audio", 4), ("text", 6)):
        types = op_types(onnx.load_from_string(bundle.graph(name)))
        assert types.count("MultiHeadAttention") == layers
        assert "Einsum" not in types
