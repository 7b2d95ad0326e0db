"""A bundle loads with the matching public key; one that is unsigned, altered or signed with another key does not."""

import sys

import pytest
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec, ed25519

from export.bundle import finish_bundle
from hbaf_edge import BundleError, HBAFRuntime
from hbaf_edge.bundle import load_bundle
from hbaf_edge.sign import SIGNATURE


def write_key_pair(folder, name, key=None):
    """Write a private and a public PEM file; return their paths."""
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
    return write_key_pair(tmp_path, "ours")


@pytest.mark.parametrize("zipped", [False, True])
def test_signed_bundle_loads_with_and_without_its_key(tiny, keys, tmp_path, zipped):
    out = finish_bundle(tiny.bundle, tmp_path / "signed", key=keys[0], zipped=zipped)
    assert load_bundle(out, keys[1]).key == load_bundle(out).key
    assert HBAFRuntime(out, public_key=keys[1]).predict(text="signed").label


def test_bundle_is_rejected_when_unsigned_or_altered(tiny, keys, tmp_path):
    out = finish_bundle(tiny.bundle, tmp_path / "signed", key=keys[0])
    with pytest.raises(BundleError, match="was not signed with the key that matches"):
        load_bundle(out, write_key_pair(tmp_path, "theirs")[1])
    manifest = out / "manifest.json"
    manifest.write_text(manifest.read_text().replace('"tiny"', '"tony"'))
    assert load_bundle(out).manifest["name"] == "tony"  # hashes cannot detect this
    with pytest.raises(BundleError, match="was altered or comes from another source"):
        load_bundle(out, keys[1])
    (out / SIGNATURE).write_bytes(b"x" * 65)
    with pytest.raises(BundleError, match="more than the 64 bytes that are allowed"):
        load_bundle(out, keys[1])
    with pytest.raises(BundleError, match=r"is not signed; sign it with python -m export.bundle --sign"):
        HBAFRuntime(tiny.bundle, public_key=keys[1])


def test_invalid_key_is_rejected_before_anything_is_written(tiny, keys, tmp_path):
    elliptic = write_key_pair(tmp_path, "elliptic", ec.generate_private_key(ec.SECP256R1()))
    (tmp_path / "text.pem").write_text("no key")
    invalid = [(elliptic[0], "an Ed25519 private key is expected")]
    unreadable = (tmp_path / "text.pem", tmp_path / "none.pem", keys[1])
    invalid += [(path, "not a private key in PEM format") for path in unreadable]
    for path, message in invalid:
        with pytest.raises(BundleError, match=message):
            finish_bundle(tiny.bundle, tmp_path / "out", key=path)
    assert not (tmp_path / "out").exists()
    with pytest.raises(BundleError, match="an Ed25519 public key is expected"):
        load_bundle(tiny.bundle, elliptic[1])


def test_error_names_the_extra_when_cryptography_is_missing(tiny, keys, monkeypatch):
    monkeypatch.setitem(sys.modules, "cryptography.hazmat.primitives", None)
    with pytest.raises(BundleError, match=r"hbaf-edge\[sign\]"):
        load_bundle(tiny.bundle, keys[1])
    assert load_bundle(tiny.bundle)
