"""Damaged and malicious bundles are rejected with a reason; valid ones load from a folder and a zip."""

import hashlib
import json
import shutil
import zipfile

import pytest

from hbaf_edge import BundleError, HBAFRuntime
from hbaf_edge.bundle import DEFAULT, load_bundle


def replace_file(folder, name, content):
    """Replace a file and its hash in the manifest."""
    (folder / name).write_bytes(content)
    files = json.loads((folder / "manifest.json").read_text())["files"]
    entry = {"bytes": len(content), "sha256": hashlib.sha256(content).hexdigest()}
    change_manifest(folder, files={**files, name: entry})


@pytest.fixture
def bundle_copy(tiny, tmp_path):
    return shutil.copytree(tiny.bundle, tmp_path / "bundle")


def change_manifest(folder, **changes):
    path = folder / "manifest.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))


def test_default_bundle_is_small_and_describes_itself():
    bundle = load_bundle()
    assert bundle.labels == ("anger", "disgust", "fear", "joy", "neutral", "sadness", "surprise")
    assert sum(map(len, bundle.files.values())) <= 60e6
    assert bundle.manifest["licence"]["commercial"] is False
    assert bundle.manifest["precision"] == "int8"
    assert bundle.manifest["parity_about"]["turns"] > 1000
    assert {p.name for p in DEFAULT.iterdir()} == {*bundle.files, "manifest.json"}


def test_folder_and_zip_give_the_same_probabilities(tiny, tmp_path):
    from export.bundle import zip_bundle

    zipped = zip_bundle(tiny.bundle, tmp_path / "tiny.hbaf")
    assert load_bundle(zipped).key == load_bundle(tiny.bundle).key
    a, b = (HBAFRuntime(path, threads=1).predict(text="hello") for path in (zipped, tiny.bundle))
    assert a.probabilities == b.probabilities


def test_bundle_is_rejected_when_a_file_was_changed(bundle_copy):
    content = bytearray((bundle_copy / "dialogue.onnx").read_bytes())
    content[len(content) // 2] ^= 1
    (bundle_copy / "dialogue.onnx").write_bytes(content)
    with pytest.raises(BundleError, match=r"dialogue\.onnx has SHA-256 .* altered or damaged"):
        load_bundle(bundle_copy)


def test_bundle_is_rejected_when_a_file_is_missing(bundle_copy):
    (bundle_copy / "text.onnx").unlink()
    with pytest.raises(BundleError, match=r"text\.onnx is missing"):
        load_bundle(bundle_copy)


def test_bundle_is_rejected_when_a_file_has_no_hash(bundle_copy):
    files = json.loads((bundle_copy / "manifest.json").read_text())["files"]
    del files["tokenizer.json"]
    change_manifest(bundle_copy, files=files)
    with pytest.raises(BundleError, match=r"no hash for tokenizer\.json"):
        load_bundle(bundle_copy)


@pytest.mark.parametrize("name", ["../secret", "a/../../b", "/etc/passwd", "..", "a\\..\\b", "C:x", ".hidden", ""])
def test_manifest_is_rejected_when_a_path_leaves_the_bundle(bundle_copy, name):
    files = json.loads((bundle_copy / "manifest.json").read_text())["files"]
    change_manifest(bundle_copy, files={**files, name: {"bytes": 1, "sha256": "0" * 64}})
    with pytest.raises(BundleError, match="only plain relative names"):
        load_bundle(bundle_copy)


def test_bundle_is_rejected_when_a_link_leaves_it(bundle_copy, tmp_path):
    outside = tmp_path / "outside.json"
    shutil.move(bundle_copy / "tokenizer.json", outside)
    (bundle_copy / "tokenizer.json").symlink_to(outside)
    with pytest.raises(BundleError, match="leads outside the bundle"):
        load_bundle(bundle_copy)


def test_bundle_is_rejected_when_its_format_is_newer(bundle_copy):
    change_manifest(bundle_copy, format=2)
    with pytest.raises(BundleError, match=r"format 2, hbaf-edge .* reads up to 1; upgrade"):
        load_bundle(bundle_copy)


@pytest.mark.parametrize("content", ["{", "", "[]", "null", '"x"', "{}", '{"format": "1"}', "[" * 100_000])
def test_manifest_is_rejected_when_it_is_invalid(bundle_copy, content):
    (bundle_copy / "manifest.json").write_text(content)
    with pytest.raises(BundleError, match=r"manifest\.json"):
        load_bundle(bundle_copy)


@pytest.mark.parametrize(
    "changes",
    [
        {"window": 10**9},
        {"window": 4096, "width": 8192, "dialogue_layers": 64},
        {"labels": ["one"]},
        {"temperatures": {}},
        {"graphs": {}},
        {"width": "wide"},
        {"files": {"x": {"bytes": 1 << 60, "sha256": "0" * 64}}},
        {"files": []},
        {"labels": 7},
        {"labels": "abcdefg"},
        {"labels": ["a"] * 7},
        {"window": float("inf")},
        {"window": 5.0},
        {"encoders": 5},
        {"encoders": {"text": 5}},
        {"data": ["MELD"]},
        {"data": [{"name": "MELD"}]},
        {"limits": {}},
    ],
)
def test_manifest_is_rejected_when_a_field_is_wrong(bundle_copy, changes):
    change_manifest(bundle_copy, **changes)
    with pytest.raises(BundleError, match="incomplete"):
        load_bundle(bundle_copy)


@pytest.mark.parametrize(
    "changes",
    [{"labels": ["a", "b", "c"]}, {"labels": list("abcdefgh")}, {"window": 4}, {"width": 31}, {"dialogue_layers": 1}],
)
def test_manifest_is_rejected_when_it_does_not_match_the_graphs(bundle_copy, changes):
    change_manifest(bundle_copy, **changes)
    with pytest.raises(BundleError, match="manifest"):
        HBAFRuntime(bundle_copy, threads=1)


def test_zip_is_rejected_when_its_stated_sizes_are_false(tiny, tmp_path):
    """Reading a manifest of 300 MB that states 1,000 bytes stops at the limit."""
    import tracemalloc

    path = tmp_path / "bomb.hbaf"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("manifest.json", bytes(300 << 20))
    content = bytearray(path.read_bytes())
    for offset in (content.index(b"PK\x03\x04") + 22, content.index(b"PK\x01\x02") + 24):
        content[offset : offset + 4] = (1_000).to_bytes(4, "little")
    path.write_bytes(content)
    tracemalloc.start()
    with pytest.raises(BundleError):
        load_bundle(path)
    assert tracemalloc.get_traced_memory()[1] < 20 << 20
    tracemalloc.stop()


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("tokenizer.json", b"{}", r"tokenizer\.json cannot be read"),
        ("text.onnx", b"nonsense", "cannot load the text graph"),
    ],
)
def test_bundle_is_rejected_when_a_file_has_the_wrong_kind(bundle_copy, name, content, message):
    replace_file(bundle_copy, name, content)
    with pytest.raises(BundleError, match=message):
        HBAFRuntime(bundle_copy)


def test_bundle_is_rejected_when_a_file_is_longer_than_stated(bundle_copy):
    with (bundle_copy / "text.onnx").open("ab") as file:
        file.write(b"more")
    with pytest.raises(BundleError, match="are allowed"):
        load_bundle(bundle_copy)


def test_other_files_and_arguments_are_rejected(tmp_path, tiny):
    (tmp_path / "x.hbaf").write_text("no zip")
    with pytest.raises(BundleError, match="pass a folder or an"):
        load_bundle(tmp_path / "x.hbaf")
    with pytest.raises(BundleError, match="there is no bundle"):
        load_bundle(tmp_path / "nowhere")
    for argument in (5, "x" * 5000):
        with pytest.raises(BundleError):
            load_bundle(argument)
    from export.bundle import zip_bundle

    archive = zip_bundle(tiny.bundle, tmp_path / "valid.hbaf").read_bytes()
    damaged = archive[:5000] + b"x" * 500 + archive[5500:]
    for name, content in (("truncated", archive[: len(archive) // 2]), ("damaged", damaged)):
        (tmp_path / f"{name}.hbaf").write_bytes(content)
        with pytest.raises(BundleError):
            load_bundle(tmp_path / f"{name}.hbaf")
    with zipfile.ZipFile(tmp_path / "empty.hbaf", "w"):
        pass
    with pytest.raises(BundleError, match=r"manifest\.json is missing"):
        load_bundle(tmp_path / "empty.hbaf")
