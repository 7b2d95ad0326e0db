"""What files say of themselves, and that files of different models never become one bundle."""

import json
import shutil

import onnx
import pytest

from export import metadata
from export.bundle import write_bundle
from export.half import to_half
from export.int8 import quantised, with_int8_weights
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


def test_every_file_names_version_graph_labels_and_hashes(tiny, calibrated, tmp_path):
    bundle = load_bundle(tiny.bundle)
    model = metadata.identity(tiny.model, tiny.audio, tiny.text)
    for graph in GRAPHS:
        found = metadata.entries_of(onnx.load_from_string(bundle.graph(graph)))
        assert found == {"version": __version__, "graph": graph, "labels": json.dumps(list(bundle.labels)),
                         "precision": "float32", "model_sha256": model}  # fmt: skip
    made = {
        "int8": quantised(bundle, calibrated, Recipe(), tmp_path / "int8"),
        "int8-weights": with_int8_weights(bundle, tmp_path / "weights"),
        "float16": to_half(bundle, tmp_path / "half"),
    }
    for precision, path in made.items():
        for graph in GRAPHS:
            found = metadata.entries_of(onnx.load_from_string(load_bundle(path).graph(graph)))
            assert (found["precision"], found["model_sha256"], found["graph"]) == (precision, model, graph)
            assert found["made_from_sha256"] == bundle.manifest["files"][f"{graph}.onnx"]["sha256"]


@pytest.mark.parametrize(
    ("entry", "value", "said"),
    [
        ("model_sha256", "0" * 64, r"text\.onnx has model_sha256 000.*, this bundle .*of one checkpoint together"),
        ("graph", "audio", r"text\.onnx has graph audio, this bundle text"),
        ("labels", '["a", "b"]', r'text\.onnx has labels \["a", "b"\]'),
        ("precision", "int8", r"text\.onnx has precision int8, this bundle float32"),
        (None, None, r"text\.onnx has graph None, this bundle text"),
    ],
)
def test_files_that_do_not_belong_together_make_no_bundle(tiny, tmp_path, entry, value, said):
    folder = shutil.copytree(tiny.onnx, tmp_path / "onnx")
    model = onnx.load(folder / "text.onnx")
    entries = {**metadata.entries_of(model), entry: value} if entry else {}
    onnx.helper.set_model_props(model, {metadata.PREFIX + key: text for key, text in entries.items()})
    onnx.save(model, folder / "text.onnx")
    with pytest.raises(BundleError, match=said):
        write_bundle(folder, tmp_path / "bundle", tiny.model.config, ABOUT)
    assert not (tmp_path / "bundle").exists()
