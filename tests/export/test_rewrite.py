"""Rewritten graphs compute the same in fewer operators; what they do not know they leave alone."""

import numpy as np
import onnx
import onnxruntime as ort
import pytest

from export import to_onnx
from export.int8 import attends_plainly, fidelity
from export.qdq import set_nodes
from export.rewrite import fuse_attention, mix_layers
from hbaf_edge.backends.cuda.weights import weights
from hbaf_edge.backends.settings import session_options
from hbaf_edge.bundle import load_bundle

LAYERS = 2


@pytest.fixture(scope="module")
def plain(tiny, tmp_path_factory):
    """The tiny model's graphs as the exporter writes them."""
    folder = tmp_path_factory.mktemp("plain")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(to_onnx, "mix_layers", lambda model: model)
        to_onnx.export(tiny.model, tiny.audio, tiny.text, folder)
    return {name: onnx.load(folder / f"{name}.onnx") for name in ("audio", "text", "utterance", "dialogue")}


def kinds(model):
    return [node.op_type for node in model.graph.node]


@pytest.mark.slow
@pytest.mark.parametrize("name", ["audio", "text"])
def test_layers_are_summed_without_a_stack(plain, name, tmp_path):
    made = mix_layers(plain[name])
    assert "Einsum" in kinds(plain[name])
    assert "Einsum" not in kinds(made)
    assert kinds(made).count("Sum") == 1
    assert fidelity(plain[name], made) > 110
    assert mix_layers(made) == made, "once is enough"
    # Whoever loads it computes the shares once.
    options = session_options(1)
    options.optimized_model_filepath = str(tmp_path / "optimised.onnx")
    ort.InferenceSession(made.SerializeToString(), options, providers=["CPUExecutionProvider"])
    ran = onnx.load(tmp_path / "optimised.onnx")
    stored = {t.name for t in ran.graph.initializer}
    assert not [n.op_type for n in ran.graph.node if set(n.input) <= stored]
    assert kinds(made).count("Split") == 1


@pytest.mark.slow
@pytest.mark.parametrize("name", ["audio", "text"])
def test_weights_keep_their_names(plain, name):
    before, after = (
        weights(plain[name].SerializeToString()),
        weights(fuse_attention(mix_layers(plain[name])).SerializeToString()),
    )
    named = {n for n in before if n.startswith(("encoder.", "mix."))}
    assert "mix.logits|softmax" in named
    lost = {n for n in named if n not in after}
    assert not lost
    assert all(np.array_equal(before[n], after[n]) for n in named)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["audio", "text"])
def test_an_attention_is_one_operator(plain, name):
    made = fuse_attention(plain[name])
    assert kinds(made).count("MultiHeadAttention") == LAYERS
    assert "Softmax" not in kinds(made)
    assert len(kinds(made)) < len(kinds(plain[name])) - 10 * LAYERS
    assert fidelity(plain[name], made) > 100
    assert fuse_attention(made) == made


@pytest.mark.slow
@pytest.mark.parametrize("name", ["utterance", "dialogue"])
def test_the_fusion_s_own_attention_is_left_as_it_is(plain, name):
    """Its masks, biases and gates are none of MultiHeadAttention's."""
    assert mix_layers(plain[name]) == plain[name]
    assert kinds(fuse_attention(plain[name])) == kinds(plain[name])


@pytest.mark.slow
def test_an_attention_of_another_scale_is_left_as_it_is(plain):
    strange = onnx.ModelProto()
    strange.CopyFrom(plain["audio"])
    ((scale,),) = {tuple(n.input[1] for n in strange.graph.node if n.op_type == "Mul")[:1]}
    stored = next(t for t in strange.graph.initializer if t.name == scale)
    stored.CopyFrom(onnx.numpy_helper.from_array(onnx.numpy_helper.to_array(stored) * np.float32(1.1), scale))
    assert "MultiHeadAttention" not in kinds(fuse_attention(strange))


@pytest.mark.slow
def test_an_encoder_with_another_mask_keeps_its_attention(plain, capsys):
    """A decoder's: what comes later is masked too, which MultiHeadAttention would not be told."""
    made = onnx.ModelProto()
    made.CopyFrom(plain["text"])
    node = next(n for n in made.graph.node if n.op_type == "Softmax")
    (scores,) = node.input
    later = np.triu(np.full((16, 16), -1e4, np.float32), 1)
    made.graph.initializer.append(onnx.numpy_helper.from_array(later, "later"))
    (mask,) = {n.input[1] for n in made.graph.node if n.op_type == "Add" and scores in n.output}
    for adding in [n for n in made.graph.node if n.op_type == "Add" and n.input[1] == mask]:
        adding.input[1] = "both"
    made.graph.node.append(onnx.helper.make_node("Add", [mask, "later"], ["both"]))
    set_nodes(made, made.graph.node)
    assert attends_plainly("text", plain["text"].SerializeToString())
    assert not capsys.readouterr().err
    assert not attends_plainly("text", made.SerializeToString())
    assert "stays in single operators" in capsys.readouterr().err


@pytest.mark.slow
def test_padding_is_masked_as_before(plain):
    """Texts of unequal length beside each other, of which the longest alone fills its row."""
    lengths = [9, 4, 1]
    mask = (np.arange(9) < np.array(lengths)[:, None]).astype(np.int64)
    given = {"tokens": np.random.default_rng(0).integers(5, 100, (3, 9)) * mask, "token_mask": mask}
    found = [
        ort.InferenceSession(m.SerializeToString(), session_options(1), providers=["CPUExecutionProvider"])
        .run(None, given)[0] for m in (plain["text"], fuse_attention(plain["text"]))
    ]  # fmt: skip
    for row, length in enumerate(lengths):
        np.testing.assert_allclose(found[1][row, :length], found[0][row, :length], atol=2e-5)


@pytest.mark.slow
def test_swapped_keys_and_values_are_found_out(plain):
    swapped = onnx.ModelProto()
    swapped.CopyFrom(plain["audio"])
    stored = {t.name: onnx.numpy_helper.to_array(t).ravel() for t in swapped.graph.initializer}
    parts = [n for n in swapped.graph.node if n.op_type == "Slice" and n.input[0].startswith("permute")]
    keys, values = ([n for n in parts if stored[n.input[1]][0] == which] for which in (1, 2))
    assert len(keys) == len(values) == LAYERS
    for one, other in zip(keys, values):
        one.output[0], other.output[0] = other.output[0], one.output[0]
    set_nodes(swapped, swapped.graph.node)
    assert not attends_plainly("audio", swapped.SerializeToString())


def test_the_default_model_is_written_so(runtime):
    bundle = load_bundle()
    for name, layers in (("audio", 4), ("text", 6)):
        found = kinds(onnx.load_from_string(bundle.graph(name)))
        assert found.count("MultiHeadAttention") == layers
        assert "Einsum" not in found
