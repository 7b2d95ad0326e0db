"""Metadata of ONNX files, and the check that all files of a bundle are of one model."""

import json
import shutil

import onnx
import pytest

from export import metadata
from export.bundle import write_bundle
from export.float16 import to_float16
from export.int8 import bundle_with_int8_weights, quantise_bundle
from export.qdq import Recipe
from hbaf_edge import __version__
from hbaf_edge.bundle import GRAPHS, load_bundle
from hbaf_edge.errors import BundleError

ABOUT = {
    "name": "x",
    "precision": "float32",
    "temperatures": {"audio": 1, "text": 1, "audio+text": 1},
    "licence": {"id": "Apache-2.0", "commercial": True, "why": "random weights"},
}


def test_files_name_version_graph_labels_and_hashes(tiny, calibrated, tmp_path):
    bundle = load_bundle(tiny.bundle)
    model_sha256 = metadata.model_hash(tiny.model, tiny.audio, tiny.text)
    for graph in GRAPHS:
        entries = metadata.entries_of(onnx.load_from_string(bundle.graph(graph)))
        assert entries == {"version": __version__, "graph": graph, "labels": json.dumps(list(bundle.labels)),
                           "precision": "float32", "model_sha256": model_sha256}  # fmt: skip
    converted = {
        "int8": quantise_bundle(bundle, calibrated, Recipe(), tmp_path / "int8"),
        "int8-weights": bundle_with_int8_weights(bundle, tmp_path / "weights"),
        "float16": to_float16(bundle, tmp_path / "float16"),
    }
    for precision, path in converted.items():
        for graph in GRAPHS:
            entries = metadata.entries_of(onnx.load_from_string(load_bundle(path).graph(graph)))
            assert (entries["precision"], entries["graph"]) == (precision, graph)
            assert entries["model_sha256"] == model_sha256
            assert entries["made_from_sha256"] == bundle.manifest["files"][f"{graph}.onnx"]["sha256"]


@pytest.mark.parametrize(
    ("entry", "value", "message"),
    [
        ("model_sha256", "0" * 64, r"text\.onnx has model_sha256 000.*, the bundle has .*of one checkpoint together"),
        ("graph", "audio", r"text\.onnx has graph audio, the bundle has text"),
        ("labels", '["a", "b"]', r'text\.onnx has labels \["a", "b"\]'),
        ("precision", "int8", r"text\.onnx has precision int8, the bundle has float32"),
        (None, None, r"text\.onnx has graph None, the bundle has text"),
    ],
)
def test_write_bundle_raises_when_files_do_not_belong_together(tiny, tmp_path, entry, value, message):
    folder = shutil.copytree(tiny.onnx, tmp_path / "onnx")
    model = onnx.load(folder / "text.onnx")
    entries = {**metadata.entries_of(model), entry: value} if entry else {}
    onnx.helper.set_model_props(model, {metadata.PREFIX + key: text for key, text in entries.items()})
    onnx.save(model, folder / "text.onnx")
    with pytest.raises(BundleError, match=message):
        write_bundle(folder, tmp_path / "bundle", tiny.model.config, ABOUT)
    assert not (tmp_path / "bundle").exists()
