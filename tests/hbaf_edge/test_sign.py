"""Signatures: a bundle of the right key loads, one of another key, altered or unsigned does not."""

import sys

import pytest
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec, ed25519

from export.bundle import finished
from hbaf_edge import BundleError, HBAFRuntime
from hbaf_edge.bundle import load_bundle
from hbaf_edge.sign import SIGNATURE


def pair(folder, name, key=None):
    """A private and a public PEM file."""
    key = key or ed25519.Ed25519PrivateKey.generate()
    pem = serialization.Encoding.PEM
    private = key.private_bytes(pem, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
    public = key.public_key().public_bytes(pem, serialization.PublicFormat.SubjectPublicKeyInfo)
    paths = folder / f"{name}.pem", folder / f"{name}.pub"
    for path, content in zip(paths, (private, public)):
        path.write_bytes(content)
    return paths


@pytest.fixture
def keys(tmp_path):
    return pair(tmp_path, "ours")


@pytest.mark.parametrize("zipped", [False, True])
def test_a_signed_bundle_loads_with_its_key_and_without(tiny, keys, tmp_path, zipped):
    out = finished(tiny.bundle, tmp_path / "signed", key=keys[0], zipped=zipped)
    assert load_bundle(out, keys[1]).key == load_bundle(out).key
    assert HBAFRuntime(out, public_key=keys[1]).predict(text="signed").label


def test_anything_else_does_not(tiny, keys, tmp_path):
    out = finished(tiny.bundle, tmp_path / "signed", key=keys[0])
    with pytest.raises(BundleError, match="was not signed with the key that belongs to"):
        load_bundle(out, pair(tmp_path, "theirs")[1])
    manifest = out / "manifest.json"
    manifest.write_text(manifest.read_text().replace('"tiny"', '"tony"'))
    assert load_bundle(out).manifest["name"] == "tony"  # hashes alone cannot tell
    with pytest.raises(BundleError, match="was altered or is somebody else's"):
        load_bundle(out, keys[1])
    (out / SIGNATURE).write_bytes(b"x" * 65)
    with pytest.raises(BundleError, match="longer than the 64 bytes that are allowed"):
        load_bundle(out, keys[1])
    with pytest.raises(BundleError, match=r"is not signed; sign it with python -m export.bundle --sign"):
        HBAFRuntime(tiny.bundle, public_key=keys[1])


def test_keys_that_are_none_are_refused_before_anything_is_written(tiny, keys, tmp_path):
    elliptic = pair(tmp_path, "elliptic", ec.generate_private_key(ec.SECP256R1()))
    (tmp_path / "text.pem").write_text("no key")
    wrong = [(elliptic[0], "an Ed25519 private key is expected"), (tmp_path / "text.pem", "no private key in PEM form")]
    wrong += [(tmp_path / "none.pem", "no private key in PEM form"), (keys[1], "no private key in PEM form")]
    for path, message in wrong:
        with pytest.raises(BundleError, match=message):
            finished(tiny.bundle, tmp_path / "out", key=path)
    assert not (tmp_path / "out").exists()
    with pytest.raises(BundleError, match="an Ed25519 public key is expected"):
        load_bundle(tiny.bundle, elliptic[1])


def test_without_the_extra_it_says_so(tiny, keys, monkeypatch):
    monkeypatch.setitem(sys.modules, "cryptography.hazmat.primitives", None)
    with pytest.raises(BundleError, match=r"hbaf-edge\[sign\]"):
        load_bundle(tiny.bundle, keys[1])
    assert load_bundle(tiny.bundle)
