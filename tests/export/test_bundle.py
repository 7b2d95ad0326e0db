"""Writing and finishing bundles: the manifest describes the files, and only bundles are replaced."""

import json
import shutil

import onnx
import pytest

from export.bundle import finish_bundle, write_bundle
from export.metadata import PREFIX, entries_of
from hbaf_edge.bundle import load_bundle
from hbaf_edge.errors import BundleError, InputError


def test_card_of_finished_bundle_shows_every_precision(tiny, tmp_path):
    step = {"name": "int8", "flip_rate": 0.0125, "cosine_mean": 0.9991, "weighted_f1": 0.61, "f1_drop": 0.002,
            "megabytes": 43.2, "broken": [], "sha256": "a", "key": load_bundle(tiny.bundle).key}  # fmt: skip
    parity = tmp_path / "parity.json"
    about = {"reference": "the trained weights"}
    parity.write_text(json.dumps({"steps": [step, {**step, "broken": ["snr_db 20"]}], "about": about}))
    out = finish_bundle(tiny.bundle, tmp_path / "out", "another name", parity)
    card = (out / "MODEL_CARD.md").read_text()
    assert "# Model card: another name" in card
    assert "int8: 1.25% of the labels differ, cosine of the embedding 0.9991, weighted F1 changes by -0.0020" in card
    assert "compared with PyTorch in float32, with the trained weights" in card
    assert "**exceeds its limits**: snr_db 20" in card
    assert finish_bundle(tiny.bundle, tmp_path / "zip", zipped=True).suffix == ".hbaf"
    parity.write_text(json.dumps({"steps": [{**step, "key": "another"}], "about": about}))
    with pytest.raises(InputError, match="is of other bundles"):
        finish_bundle(tiny.bundle, tmp_path / "refused", parity=parity)
    parity.write_text("{}")
    with pytest.raises(InputError, match=r"not a result of python -m export.verify"):
        finish_bundle(tiny.bundle, tmp_path / "refused", parity=parity)
    assert not (tmp_path / "refused").exists()


def test_bundle_that_does_not_load_replaces_nothing(tiny, tmp_path):
    folder = shutil.copytree(tiny.onnx, tmp_path / "onnx")
    entries = entries_of(onnx.load(folder / "dialogue.onnx"))
    model = onnx.load(folder / "text.onnx")
    onnx.helper.set_model_props(model, {PREFIX + key: value for key, value in entries.items()})
    onnx.save(model, folder / "dialogue.onnx")  # the text graph with the metadata of the dialogue graph
    target = shutil.copytree(tiny.bundle, tmp_path / "bundle")
    about = {
        "name": "x",
        "precision": "float32",
        "temperatures": {"audio": 1, "text": 1, "audio+text": 1},
        "licence": {"id": "Apache-2.0", "commercial": True, "why": "random weights"},
    }
    before = (target / "manifest.json").read_bytes()
    with pytest.raises(BundleError, match="do not fit the manifest"):
        write_bundle(folder, target, tiny.model.config, about)
    assert (target / "manifest.json").read_bytes() == before


@pytest.mark.parametrize("kind", ["file", "folder"])
def test_existing_output_is_refused_when_it_is_not_a_bundle(tiny, tmp_path, kind):
    """A mistyped --out must not delete a checkpoint."""
    out = tmp_path / "runs"
    if kind == "file":
        out.write_text("precious")
    else:
        out.mkdir()
        (out / "config.json").write_text("precious")
    with pytest.raises(InputError, match="exists and is not a bundle; nothing was replaced"):
        finish_bundle(tiny.bundle, out)
    assert (out if kind == "file" else out / "config.json").read_text() == "precious"


def test_bundle_folder_with_another_file_is_not_replaced(tiny, tmp_path):
    """Folders of the user with names similar to the hidden work folders are not touched either."""
    out = shutil.copytree(tiny.bundle, tmp_path / "bundle")
    for name in ("bundle.old", "bundle.partial"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "precious").write_text("precious")
    (out / "calibration.json").write_text("precious")
    with pytest.raises(InputError, match=r"is a bundle but also holds calibration.json; nothing was replaced"):
        finish_bundle(tiny.bundle, out)
    (out / "calibration.json").unlink()
    finish_bundle(tiny.bundle, out)
    assert all((tmp_path / name / "precious").exists() for name in ("bundle.old", "bundle.partial"))
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "manifest.json").write_text("[]")
    with pytest.raises(InputError, match="exists and is not a bundle; nothing was replaced"):
        finish_bundle(tiny.bundle, tmp_path / "data")


def test_symbolic_link_is_followed_and_kept(tiny, tmp_path):
    (tmp_path / "disk").mkdir()
    link = tmp_path / "bundle"
    link.symlink_to(tmp_path / "disk" / "bundle")
    for name in ("first", "second"):
        finish_bundle(tiny.bundle, link, name)
        assert load_bundle(link).manifest["name"] == name
    assert link.is_symlink()
    assert {path.name for path in (tmp_path / "disk").iterdir()} == {"bundle"}
