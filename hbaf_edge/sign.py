"""Ed25519 signatures of bundles: who made it, beside the hashes that say it is whole. Needs the extra `sign`.

The signature is of manifest.json, which holds the hash of every other file. Keys are PEM files:

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
    """The signature of a manifest.

    Raises:
        BundleError: the key cannot be read or is no Ed25519 private key.
    """
    signature: bytes = _key(private_key, "private").sign(manifest)
    return signature


def verify(manifest: bytes, signature: bytes | None, public_key: str | os.PathLike[str], what: str) -> None:
    """That the holder of the private key signed this manifest.

    Raises:
        BundleError: nobody did, or the key cannot be read or is no Ed25519 public key.
    """
    key = _key(public_key, "public")
    if signature is None:
        raise BundleError(
            f"{what} is not signed; sign it with python -m export.bundle --sign, or load it without a public key"
        )
    from cryptography.exceptions import InvalidSignature

    try:
        key.verify(signature, manifest)
    except InvalidSignature:
        raise BundleError(
            f"{what} was not signed with the key that belongs to {public_key}: it was altered or is somebody else's"
        ) from None


def _key(path: str | os.PathLike[str], which: str) -> Any:
    """The "private" or "public" key in a PEM file."""
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
        if which == "private":
            key: Any = serialization.load_pem_private_key(pem, password=None)
        else:
            key = serialization.load_pem_public_key(pem)
    except (OSError, ValueError, TypeError, UnsupportedAlgorithm) as error:
        raise BundleError(
            f"{path} is no {which} key in PEM form ({error}); see hbaf_edge/sign.py for how to make one"
        ) from None
    if not isinstance(key, (ed25519.Ed25519PrivateKey, ed25519.Ed25519PublicKey)):
        raise BundleError(f"{path} is a {type(key).__name__}; an Ed25519 {which} key is expected")
    return key
