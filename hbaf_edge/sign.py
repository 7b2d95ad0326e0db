"""Ed25519 signatures of bundles, which prove who made a bundle. They need the extra `sign`.

Only manifest.json is signed, because it contains the hash of every other file. Keys are PEM files:

    openssl genpkey -algorithm ed25519 -out private.pem && openssl pkey -in private.pem -pubout -out public.pem
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from hbaf_edge.errors import BundleError

SIGNATURE = "manifest.sig"
LENGTH = 64  # bytes of an Ed25519 signature
MAX_KEY = 1 << 14


def sign(manifest: bytes, private_key: str | os.PathLike[str]) -> bytes:
    """Sign a manifest with the key in a PEM file and return the signature.

    Raises:
        BundleError: the key cannot be read or is not an Ed25519 private key.
    """
    signature: bytes = _load_key(private_key, "private").sign(manifest)
    return signature


def verify(manifest: bytes, signature: bytes | None, public_key: str | os.PathLike[str], name: str) -> None:
    """Check that the manifest was signed with the private key that matches `public_key`. `name` is for messages.

    Raises:
        BundleError: it was not, or the key cannot be read or is not an Ed25519 public key.
    """
    key = _load_key(public_key, "public")
    if signature is None:
        raise BundleError(
            f"{name} is not signed; sign it with python -m export.bundle --sign, or load it without a public key"
        )
    from cryptography.exceptions import InvalidSignature

    try:
        key.verify(signature, manifest)
    except InvalidSignature:
        raise BundleError(
            f"{name} was not signed with the key that matches {public_key}: it was altered or comes from another source"
        ) from None


def _load_key(path: str | os.PathLike[str], kind: str) -> Any:
    """Load the key in a PEM file; `kind` is "private" or "public"."""
    try:
        from cryptography.exceptions import UnsupportedAlgorithm
        from cryptography.hazmat.primitives import serialization
        from cryptography.hazmat.primitives.asymmetric import ed25519
    except ImportError as error:
        raise BundleError(
            f"signatures need the package cryptography: pip install 'hbaf-edge[sign]' ({error})"
        ) from None
    try:
        if Path(path).stat().st_size > MAX_KEY:
            raise ValueError("it is too long")
        pem = Path(path).read_bytes()
        if kind == "private":
            key: Any = serialization.load_pem_private_key(pem, password=None)
        else:
            key = serialization.load_pem_public_key(pem)
    except (OSError, ValueError, TypeError, UnsupportedAlgorithm) as error:
        raise BundleError(
            f"{path} is not a {kind} key in PEM format ({error}); see hbaf_edge/sign.py for how to make one"
        ) from None
    if not isinstance(key, (ed25519.Ed25519PrivateKey, ed25519.Ed25519PublicKey)):
        raise BundleError(f"{path} is a {type(key).__name__}; an Ed25519 {kind} key is expected")
    return key
