"""Calibration: the ranges are those of the model, and bad data or files give a clear message."""

import json
from dataclasses import replace

import numpy as np
import onnx
import pytest

from export import calibrate as calibrate_module
from export.calibrate import CalibrationError, bundle_matmuls, calibrate, load
from export.compare import drift, predictions
from export.histogram import METHODS
from export.int8 import bundle_with_int8_weights, quantise_bundle
from export.qdq import Recipe
from export.sensitivity import int8_blocks
from export.verify import example_dialogue
from hbaf_edge import HBAFRuntime
from hbaf_edge.audio import load_audio
from hbaf_edge.bundle import GRAPHS, load_bundle
from hbaf_edge.features import extract_features
from training.corpora.records import Dialogue


def test_every_activation_of_a_quantizable_product_is_recorded(tiny, calibrated):
    keys = {matmul.key for matmul in bundle_matmuls(load_bundle(tiny.bundle))}
    assert keys == set(calibrated.ranges["minmax"])
    for method in METHODS:
        assert all(low <= 0 <= high for low, high in calibrated.ranges[method].values())
    assert calibrated.about["data"]["turns"] == 36
    assert all(high - low > 0 for low, high in calibrated.ranges["minmax"].values())


def test_range_of_first_audio_product_equals_range_of_log_mel(tiny, quantise_small_matrices, tmp_path):
    utterance = next(u for u in example_dialogue(12).turns if u.audio)
    bundle = load_bundle(tiny.bundle)
    both = [replace(utterance, text="two words"), replace(utterance, text="more words")]
    calibration = calibrate(bundle, [Dialogue("d", "train", tuple(both))], tmp_path / "c.json")
    tokeniser = HBAFRuntime(tiny.bundle).engine.tokeniser
    mel = extract_features(load_audio(utterance.audio).samples, 16_000, None, tokeniser).mel
    low, high = calibration.ranges["minmax"]["audio/mel"]
    assert (low, high) == (pytest.approx(float(mel.min())), pytest.approx(float(mel.max())))


def test_load_raises_for_file_of_another_model_or_format(tiny, calibrated, tmp_path):
    bundle = load_bundle(tiny.bundle)
    path = tmp_path / "calibration.json"
    assert load(path, bundle).sha256 == calibrated.sha256
    stored = json.loads(path.read_text())
    stored["model"]["text"] = "0" * 64
    path.write_text(json.dumps(stored))
    with pytest.raises(CalibrationError, match=r"another model than .*\(text differ\)"):
        load(path, bundle)
    stored["format"] = 99
    path.write_text(json.dumps(stored))
    with pytest.raises(CalibrationError, match="format 99"):
        load(path)
    for content in ("{}", "[1]", "nonsense", '{"format": 1, "tensors": {"a": {"ranges": {}}}, "model": {}}'):
        path.write_text(content)
        with pytest.raises(CalibrationError, match="not a calibration file"):
            load(path)
    with pytest.raises(CalibrationError, match="not a calibration file"):
        load(tmp_path / "missing.json")


def test_calibrate_raises_when_weights_are_not_float32(tiny, dialogues, quantise_small_matrices, tmp_path):
    small = load_bundle(bundle_with_int8_weights(load_bundle(tiny.bundle), tmp_path / "small"))
    with pytest.raises(CalibrationError, match="has int8-weights weights; use the float32 bundle"):
        calibrate(small, dialogues, tmp_path / "c.json")


@pytest.mark.parametrize("modality", ["text", "audio"])
def test_data_of_one_modality_quantise_only_its_encoder(
    tiny, dialogues, quantise_small_matrices, tmp_path, capsys, modality
):
    utterances = [u for d in dialogues for u in d.turns if (u.text if modality == "text" else u.audio)]
    turns = tuple(replace(u, audio=None) if modality == "text" else replace(u, text="") for u in utterances)
    bundle = load_bundle(tiny.bundle)
    calibration = calibrate(bundle, [Dialogue("d", "train", turns)], tmp_path / "c.json")
    notes = "".join(capsys.readouterr().err.splitlines())
    assert "utterance, dialogue, which will be computed in float32" in notes
    assert {key.split("/")[0] for key in calibration.ranges["minmax"]} == {modality}
    for profile in ("cpu", "tensorrt"):
        out = load_bundle(quantise_bundle(bundle, calibration, Recipe(profile), tmp_path / profile))
        models = {graph: onnx.load_from_string(out.graph(graph)) for graph in GRAPHS}
        has_qdq = {g: "QuantizeLinear" in {n.op_type for n in model.graph.node} for g, model in models.items()}
        assert has_qdq == {g: g == modality for g in GRAPHS}
        assert out.manifest["quantisation"]["float_graphs"] == [g for g in GRAPHS if g != modality]
        for model in models.values():
            assert onnx.TensorProto.INT8 in {t.data_type for t in model.graph.initializer}
    assert {block.split("/")[0] for block in int8_blocks(bundle, calibration, Recipe())} == {modality}
    both = replace(dialogues[0], turns=tuple(u for u in dialogues[0].turns if u.text and u.audio))
    difference = drift(*(predictions(HBAFRuntime(path), [both]) for path in (tmp_path / "cpu", tiny.bundle)))
    assert difference["cosine_min"] > 0.97  # the modality without calibration data still works


def test_calibrate_raises_when_activations_are_not_finite(
    tiny, dialogues, quantise_small_matrices, tmp_path, monkeypatch
):
    add = calibrate_module.Histogram.add
    monkeypatch.setattr(calibrate_module.Histogram, "add", lambda self, values: add(self, values * np.float32(np.nan)))
    with pytest.raises(CalibrationError, match=r"has values that are not finite"):
        calibrate(load_bundle(tiny.bundle), dialogues, tmp_path / "c.json")


def test_calibrate_raises_when_a_graph_has_no_known_product(tiny, dialogues, tmp_path):
    """Without quantise_small_matrices, no product of the tiny model is large enough: as if its names were unknown."""
    with pytest.raises(CalibrationError, match=r"no known product .* in audio.*exported by hbaf-edge"):
        calibrate(load_bundle(tiny.bundle), dialogues, tmp_path / "c.json")


def test_calibrate_warns_about_few_turns_with_audio(tiny, dialogues, quantise_small_matrices, tmp_path, capsys):
    text_only = [replace(u, audio=None) for d in dialogues for u in d.turns if u.text]
    with_audio = next(u for d in dialogues for u in d.turns if u.audio)
    calibrate(load_bundle(tiny.bundle), [Dialogue("d", "train", (*text_only, with_audio))], tmp_path / "c.json")
    assert "only 1 turns with audio: its ranges may be too small" in "".join(capsys.readouterr().err.splitlines())
