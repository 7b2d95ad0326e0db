"""A damaged, altered or hostile bundle is refused with a clear word; a good one loads from folder and zip alike."""

import hashlib
import json
import shutil
import zipfile

import pytest

from hbaf_edge import BundleError, HBAFRuntime
from hbaf_edge.bundle import DEFAULT, load_bundle


def replace_file(folder, name, content):
    """Replace a file and its hash."""
    (folder / name).write_bytes(content)
    files = json.loads((folder / "manifest.json").read_text())["files"]
    rewrite(folder, files={**files, name: {"bytes": len(content), "sha256": hashlib.sha256(content).hexdigest()}})


@pytest.fixture
def copy(tiny, tmp_path):
    return shutil.copytree(tiny.bundle, tmp_path / "bundle")


def rewrite(folder, **changes):
    path = folder / "manifest.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))


def test_default_bundle_is_small_and_says_what_it_is():
    bundle = load_bundle()
    assert bundle.labels == ("anger", "disgust", "fear", "joy", "neutral", "sadness", "surprise")
    assert sum(map(len, bundle.files.values())) <= 60e6
    assert bundle.manifest["licence"]["commercial"] is False
    assert bundle.manifest["precision"] == "int8"
    assert bundle.manifest["scores"]["against_float32_before_rewriting"]["turns"] > 1000
    assert {p.name for p in DEFAULT.iterdir()} == {*bundle.files, "manifest.json"}


def test_folder_and_zip_are_the_same(tiny, tmp_path):
    from export.bundle import zip_bundle

    zipped = zip_bundle(tiny.bundle, tmp_path / "tiny.hbaf")
    assert load_bundle(zipped).key == load_bundle(tiny.bundle).key
    a, b = (HBAFRuntime(path, threads=1).predict(text="hello") for path in (zipped, tiny.bundle))
    assert a.probabilities == b.probabilities


def test_wrong_hash(copy):
    content = bytearray((copy / "dialogue.onnx").read_bytes())
    content[len(content) // 2] ^= 1
    (copy / "dialogue.onnx").write_bytes(content)
    with pytest.raises(BundleError, match=r"dialogue\.onnx has SHA-256 .* altered or damaged"):
        load_bundle(copy)


def test_missing_file(copy):
    (copy / "text.onnx").unlink()
    with pytest.raises(BundleError, match=r"text\.onnx is missing"):
        load_bundle(copy)


def test_file_without_hash(copy):
    files = json.loads((copy / "manifest.json").read_text())["files"]
    del files["tokenizer.json"]
    rewrite(copy, files=files)
    with pytest.raises(BundleError, match=r"no hash for tokenizer\.json"):
        load_bundle(copy)


@pytest.mark.parametrize("name", ["../secret", "a/../../b", "/etc/passwd", "..", "a\\..\\b", "C:x", ".hidden", ""])
def test_paths_cannot_leave(copy, name):
    files = json.loads((copy / "manifest.json").read_text())["files"]
    rewrite(copy, files={**files, name: {"bytes": 1, "sha256": "0" * 64}})
    with pytest.raises(BundleError, match="only plain names"):
        load_bundle(copy)


def test_link_cannot_leave(copy, tmp_path):
    outside = tmp_path / "outside.json"
    shutil.move(copy / "tokenizer.json", outside)
    (copy / "tokenizer.json").symlink_to(outside)
    with pytest.raises(BundleError, match="leads out of the bundle"):
        load_bundle(copy)


def test_newer_format(copy):
    rewrite(copy, format=2)
    with pytest.raises(BundleError, match=r"format 2, hbaf-edge .* reads up to 1; upgrade"):
        load_bundle(copy)


@pytest.mark.parametrize("content", ["{", "", "[]", "null", '"x"', "{}", '{"format": "1"}', "[" * 100_000])
def test_manifest_that_is_none(copy, content):
    (copy / "manifest.json").write_text(content)
    with pytest.raises(BundleError, match=r"manifest\.json"):
        load_bundle(copy)


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
def test_manifest_out_of_bounds(copy, changes):
    rewrite(copy, **changes)
    with pytest.raises(BundleError, match="incomplete"):
        load_bundle(copy)


@pytest.mark.parametrize(
    "changes",
    [{"labels": ["a", "b", "c"]}, {"labels": list("abcdefgh")}, {"window": 4}, {"width": 31}, {"dialogue_layers": 1}],
)
def test_manifest_that_does_not_fit_its_graphs(copy, changes):
    rewrite(copy, **changes)
    with pytest.raises(BundleError, match="manifest"):
        HBAFRuntime(copy, threads=1)


def test_zip_that_lies_about_its_sizes(tiny, tmp_path):
    """A manifest of 300 MB that states 1,000 bytes is given up at the limit, not unpacked."""
    import tracemalloc

    path = tmp_path / "bomb.hbaf"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("manifest.json", bytes(300 << 20))
    content = bytearray(path.read_bytes())
    for place in (content.index(b"PK\x03\x04") + 22, content.index(b"PK\x01\x02") + 24):
        content[place : place + 4] = (1_000).to_bytes(4, "little")
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
def test_files_of_another_kind(copy, name, content, message):
    replace_file(copy, name, content)
    with pytest.raises(BundleError, match=message):
        HBAFRuntime(copy)


def test_file_longer_than_promised(copy):
    with (copy / "text.onnx").open("ab") as file:
        file.write(b"more")
    with pytest.raises(BundleError, match="are allowed"):
        load_bundle(copy)


def test_not_a_bundle(tmp_path, tiny):
    (tmp_path / "x.hbaf").write_text("no zip")
    with pytest.raises(BundleError, match="expected a folder or an"):
        load_bundle(tmp_path / "x.hbaf")
    with pytest.raises(BundleError, match="there is no bundle"):
        load_bundle(tmp_path / "nowhere")
    for odd in (5, "x" * 5000):
        with pytest.raises(BundleError):
            load_bundle(odd)
    from export.bundle import zip_bundle

    whole = zip_bundle(tiny.bundle, tmp_path / "whole.hbaf").read_bytes()
    for name, content in (("short", whole[: len(whole) // 2]), ("torn", whole[:5000] + b"x" * 500 + whole[5500:])):
        (tmp_path / f"{name}.hbaf").write_bytes(content)
        with pytest.raises(BundleError):
            load_bundle(tmp_path / f"{name}.hbaf")
    with zipfile.ZipFile(tmp_path / "empty.hbaf", "w"):
        pass
    with pytest.raises(BundleError, match=r"manifest\.json is missing"):
        load_bundle(tmp_path / "empty.hbaf")
