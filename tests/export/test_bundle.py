"""Putting a bundle together: what the manifest says is what the files are."""

import json

import onnx

from export.bundle import write_bundle


def test_manifest_describes_the_graphs(tiny):
    manifest = json.loads((tiny.bundle / "manifest.json").read_text())
    assert set(manifest["graphs"]) == {"audio", "text", "utterance", "dialogue"}
    for name, entry in manifest["graphs"].items():
        model = onnx.load(tiny.bundle / entry["file"])
        assert list(entry["inputs"]) == [i.name for i in model.graph.input]
        assert list(entry["outputs"]) == [o.name for o in model.graph.output], name
    assert manifest["graphs"]["audio"]["inputs"]["mel"]["shape"] == ["batch", 80, "mel_frames"]
    assert manifest["window"] == 5


def test_a_bundle_that_does_not_load_replaces_nothing(tiny, tmp_path):
    import shutil

    import pytest

    from hbaf_edge import BundleError

    folder = shutil.copytree(tiny.onnx, tmp_path / "onnx")
    (folder / "dialogue.onnx").write_bytes((folder / "text.onnx").read_bytes())
    target = shutil.copytree(tiny.bundle, tmp_path / "bundle")
    about = {"name": "x", "temperatures": {"audio": 1, "text": 1, "audio+text": 1}, "licence": {"commercial": True}}
    before = (target / "manifest.json").read_bytes()
    with pytest.raises((BundleError, KeyError, Exception)):
        write_bundle(folder, target, tiny.model.config, about)
    assert (target / "manifest.json").read_bytes() == before
