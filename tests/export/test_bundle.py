"""Putting a bundle together: what the manifest says is what the files are."""

import json
import shutil

import onnx
import pytest

from export.bundle import finished, write_bundle
from export.metadata import PREFIX, entries_of
from hbaf_edge.bundle import load_bundle
from hbaf_edge.errors import BundleError, InputError


def test_the_card_of_a_finished_bundle_shows_every_precision(tiny, tmp_path):
    step = {"name": "int8", "flip_rate": 0.0125, "cosine_mean": 0.9991, "weighted_f1": 0.61, "f1_drop": 0.002,
            "megabytes": 43.2, "broken": [], "key": load_bundle(tiny.bundle).key}  # fmt: skip
    (tmp_path / "parity.json").write_text(json.dumps({"steps": [step, {**step, "broken": ["snr_db 20"]}]}))
    out = finished(tiny.bundle, tmp_path / "out", "another name", tmp_path / "parity.json")
    card = (out / "MODEL_CARD.md").read_text()
    assert "# Model card: another name" in card
    assert "int8: 1.25% of the labels differ, cosine of the fused vector 0.9991, weighted F1 0.6100 (-0.0020)" in card
    assert "**breaks its limits**: snr_db 20" in card
    assert finished(tiny.bundle, tmp_path / "zip", zipped=True).suffix == ".hbaf"
    (tmp_path / "parity.json").write_text(json.dumps({"steps": [{**step, "key": "another"}]}))
    with pytest.raises(InputError, match="is of other bundles"):
        finished(tiny.bundle, tmp_path / "no", parity=tmp_path / "parity.json")
    (tmp_path / "parity.json").write_text("{}")
    with pytest.raises(InputError, match=r"no result of python -m export.verify"):
        finished(tiny.bundle, tmp_path / "no", parity=tmp_path / "parity.json")
    assert not (tmp_path / "no").exists()


def test_a_bundle_that_does_not_load_replaces_nothing(tiny, tmp_path):
    folder = shutil.copytree(tiny.onnx, tmp_path / "onnx")
    entries = entries_of(onnx.load(folder / "dialogue.onnx"))
    model = onnx.load(folder / "text.onnx")
    onnx.helper.set_model_props(model, {PREFIX + key: value for key, value in entries.items()})  # a lie
    onnx.save(model, folder / "dialogue.onnx")
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


@pytest.mark.parametrize("what", ["file", "folder"])
def test_nothing_but_a_bundle_is_ever_replaced(tiny, tmp_path, what):
    """A slip of --out must not cost a checkpoint."""
    place = tmp_path / "runs"
    if what == "file":
        place.write_text("precious")
    else:
        place.mkdir()
        (place / "config.json").write_text("precious")
    with pytest.raises(InputError, match="is no bundle; nothing is replaced"):
        finished(tiny.bundle, place)
    assert (place if what == "file" else place / "config.json").read_text() == "precious"


def test_a_bundle_with_something_else_in_it_is_not_replaced(tiny, tmp_path):
    """And no folder of somebody else's whose name looks like ours."""
    place = shutil.copytree(tiny.bundle, tmp_path / "bundle")
    for name in ("bundle.old", "bundle.partial"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "precious").write_text("precious")
    (place / "calibration.json").write_text("precious")
    with pytest.raises(InputError, match=r"holds calibration.json beside a bundle; nothing is replaced"):
        finished(tiny.bundle, place)
    (place / "calibration.json").unlink()
    finished(tiny.bundle, place)
    assert all((tmp_path / name / "precious").exists() for name in ("bundle.old", "bundle.partial"))
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "manifest.json").write_text("[]")
    with pytest.raises(InputError, match="is no bundle; nothing is replaced"):
        finished(tiny.bundle, tmp_path / "data")


def test_a_link_is_followed_and_stays(tiny, tmp_path):
    (tmp_path / "disk").mkdir()
    link = tmp_path / "bundle"
    link.symlink_to(tmp_path / "disk" / "bundle")
    for name in ("first", "second"):
        finished(tiny.bundle, link, name)
        assert load_bundle(link).manifest["name"] == name
    assert link.is_symlink()
    assert {path.name for path in (tmp_path / "disk").iterdir()} == {"bundle"}
