"""Calibration: ranges of this model alone, and a clear message for bad data."""

import json
from dataclasses import replace

import numpy as np
import onnx
import pytest

from export import calibrate as module
from export.calibrate import CalibrationError, all_linears, calibrate, load
from export.compare import drift, predictions
from export.histogram import METHODS
from export.int8 import quantised, with_int8_weights
from export.qdq import Recipe
from export.sensitivity import computed_blocks
from export.verify import conversation
from hbaf_edge import HBAFRuntime
from hbaf_edge.audio import load_audio
from hbaf_edge.bundle import GRAPHS, load_bundle
from hbaf_edge.features import extract
from training.corpora.records import Dialogue


def test_every_input_of_every_product_is_seen(tiny, calibrated):
    keys = {one.key for one in all_linears(load_bundle(tiny.bundle))}
    assert keys == set(calibrated.ranges["minmax"])
    for method in METHODS:
        assert all(low <= 0 <= high for low, high in calibrated.ranges[method].values())
    assert calibrated.about["data"]["turns"] == 36
    wide = [calibrated.ranges["minmax"][key] for key in keys]
    assert all(high - low > 0 for low, high in wide)


def test_values_are_those_of_the_graph(tiny, small_counts, tmp_path):
    """The range of the audio encoder's first product against the log-mel that the runtime makes of the same clip."""
    turn = next(u for u in conversation(12).turns if u.audio)
    bundle = load_bundle(tiny.bundle)
    both = [replace(turn, text="two words"), replace(turn, text="more words")]
    found = calibrate(bundle, [Dialogue("d", "train", tuple(both))], tmp_path / "c.json")
    mel = extract(load_audio(turn.audio).samples, 16_000, None, HBAFRuntime(tiny.bundle).engine.tokeniser).mel
    low, high = found.ranges["minmax"]["audio/mel"]
    assert (low, high) == (pytest.approx(float(mel.min())), pytest.approx(float(mel.max())))


def test_a_file_of_another_model_is_refused(tiny, calibrated, tmp_path):
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
    for broken in ("{}", "[1]", "nonsense", '{"format": 1, "tensors": {"a": {"ranges": {}}}, "model": {}}'):
        path.write_text(broken)
        with pytest.raises(CalibrationError, match="no calibration file"):
            load(path)
    with pytest.raises(CalibrationError, match="no calibration file"):
        load(tmp_path / "nothing.json")


def test_only_float32_can_be_calibrated(tiny, talks, small_counts, tmp_path):
    small = load_bundle(with_int8_weights(load_bundle(tiny.bundle), tmp_path / "small"))
    with pytest.raises(CalibrationError, match="holds int8-weights weights; calibrate the float32 bundle"):
        calibrate(small, talks, tmp_path / "c.json")


@pytest.mark.parametrize(("kept", "known"), [("text", "text"), ("audio", "audio")])
def test_data_of_one_modality_quantise_its_encoder_alone(tiny, talks, small_counts, tmp_path, capsys, kept, known):
    alone = [u for d in talks for u in d.turns if (u.text and kept == "text") or (u.audio and kept == "audio")]
    turns = tuple(replace(u, audio=None) if kept == "text" else replace(u, text="") for u in alone)
    bundle = load_bundle(tiny.bundle)
    found = calibrate(bundle, [Dialogue("d", "train", turns)], tmp_path / "c.json")
    assert "utterance, dialogue, which will compute in float32" in "".join(capsys.readouterr().err.splitlines())
    assert {key.split("/")[0] for key in found.ranges["minmax"]} == {known}
    for profile in ("cpu", "tensorrt"):
        out = load_bundle(quantised(bundle, found, Recipe(profile), tmp_path / profile))
        rounded = {g: "QuantizeLinear" in {n.op_type for n in onnx.load_from_string(out.graph(g)).graph.node}
                   for g in GRAPHS}  # fmt: skip
        assert rounded == {g: g == known for g in GRAPHS}
        assert out.manifest["quantisation"]["float_graphs"] == [g for g in GRAPHS if g != known]
        for graph in GRAPHS:
            kinds = {t.data_type for t in onnx.load_from_string(out.graph(graph)).graph.initializer}
            assert onnx.TensorProto.INT8 in kinds
    assert {b.split("/")[0] for b in computed_blocks(bundle, found, Recipe())} == {known}
    both = replace(talks[0], turns=tuple(u for u in talks[0].turns if u.text and u.audio))
    moved = drift(*(predictions(HBAFRuntime(path), [both]) for path in (tmp_path / "cpu", tiny.bundle)))
    assert moved["cosine_min"] > 0.97  # the modality that was never shown is not cut off


def test_a_model_that_overflows_is_said(tiny, talks, small_counts, tmp_path, monkeypatch):
    bundle = load_bundle(tiny.bundle)
    seen = module.Histogram.add
    monkeypatch.setattr(module.Histogram, "add", lambda self, values: seen(self, values * np.float32(np.nan)))
    with pytest.raises(CalibrationError, match=r"took values that are not finite"):
        calibrate(bundle, talks, tmp_path / "c.json")


def test_a_bundle_whose_names_are_another_versions_is_said(tiny, talks, tmp_path):
    """Without small_counts no weight of the tiny model counts: as if all had names that this version does not know."""
    with pytest.raises(CalibrationError, match=r"is known in audio.*exported by hbaf-edge"):
        calibrate(load_bundle(tiny.bundle), talks, tmp_path / "c.json")


def test_a_handful_of_sounds_among_words_is_said(tiny, talks, small_counts, tmp_path, capsys):
    words = [replace(u, audio=None) for d in talks for u in d.turns if u.text]
    heard = next(u for d in talks for u in d.turns if u.audio)
    calibrate(load_bundle(tiny.bundle), [Dialogue("d", "train", (*words, heard))], tmp_path / "c.json")
    assert "1 turns with sound tell little" in "".join(capsys.readouterr().err.splitlines())
