"""Load a bundle: a folder or one `.hbaf` zip file with everything that inference needs. Every byte is verified.

`manifest.json` contains the format, labels, graphs, provenance, licence and scores, and the SHA-256 of every other
file. Each file is read once and hashed in memory, so the verified bytes are the ones that run. Nothing is unpickled.
"""

from __future__ import annotations

import hashlib
import json
import lzma
import os
import re
import zipfile
import zlib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

from hbaf_edge.errors import BundleError
from hbaf_edge.sign import LENGTH, SIGNATURE, verify
from hbaf_edge.version import __version__

FORMAT = 1
GRAPHS = ("audio", "text", "utterance", "dialogue")
MAX_MANIFEST = 1 << 20
MAX_FILE = 1 << 30
MAX_TOTAL, MAX_FILES = 1 << 31, 64  # bytes and files of one bundle
MAX_STATE = 1 << 26  # bytes of a conversation's key/value cache; the default model's has 393,216
DEFAULT = Path(__file__).parent / "models" / "default"

# Errors that reading a damaged or malicious folder or zip file can raise.
READ_ERRORS = (
    OSError, ValueError, TypeError, RuntimeError, EOFError, NotImplementedError, zipfile.BadZipFile, zlib.error,
    lzma.LZMAError,
)  # fmt: skip

OpenFile = Callable[[str], IO[bytes] | None]  # opens a file of the bundle by name; returns None if there is none


@dataclass(frozen=True)
class Bundle:
    """A verified bundle in memory.

    Attributes:
        manifest: the content of manifest.json.
        files: content by name; sizes and SHA-256 match the manifest.
        key: SHA-256 of manifest.json, and so of the whole bundle; a saved conversation works only with this bundle.
        path: the folder or file it was loaded from.
    """

    manifest: dict[str, Any]
    files: dict[str, bytes]
    key: str
    path: str

    @property
    def labels(self) -> tuple[str, ...]:
        """Labels in the order of the logits."""
        return tuple(self.manifest["labels"])

    @property
    def model_key(self) -> str:
        """SHA-256 of what results depend on: graphs, tokeniser and temperatures.

        Measurements and scores are recorded under it. Unlike `key`, it does not change with the card that shows them.
        """
        sha256 = hashlib.sha256(json.dumps(self.manifest.get("temperatures", {}), sort_keys=True).encode())
        for name in sorted(self.files):
            if name.endswith(".onnx") or name == "tokenizer.json":
                sha256.update(name.encode() + hashlib.sha256(self.files[name]).digest())
        return sha256.hexdigest()

    @property
    def megabytes(self) -> float:
        """Size of all files in MB."""
        return sum(map(len, self.files.values())) / 1e6

    def graph(self, name: str) -> bytes:
        """Content of the ONNX file of one graph: audio, text, utterance or dialogue."""
        return self.files[self.manifest["graphs"][name]["file"]]


def load_bundle(path: str | os.PathLike[str] | None = None, public_key: str | os.PathLike[str] | None = None) -> Bundle:
    """Read and verify a bundle.

    Args:
        path: folder or `.hbaf` file; None loads the default model of the package.
        public_key: PEM file; the bundle must be signed with the matching private key.

    Raises:
        BundleError: the bundle cannot be used; the message names the file and the reason.

    >>> load_bundle().labels[0]
    'anger'
    """
    try:
        location = Path(path) if path is not None else DEFAULT
        if location.is_dir():
            return _load_verified(location, lambda name: _open_file(location, name), public_key)
        if location.is_file():
            with zipfile.ZipFile(location) as archive:
                return _load_verified(location, lambda name: _open_member(archive, name), public_key)
    except BundleError:
        raise
    except READ_ERRORS as error:
        raise BundleError(f"{path} is not a bundle: {error}; pass a folder or an .hbaf zip file") from None
    raise BundleError(f"there is no bundle at {str(location)!r}; pass a folder with manifest.json, or an .hbaf file")


def _load_verified(location: Path, open_file: OpenFile, public_key: str | os.PathLike[str] | None) -> Bundle:
    def read(name: str, limit: int) -> bytes:
        content = _read(location, open_file, name, limit)
        if content is None:
            raise BundleError(f"{location}: {name} is missing; the bundle is incomplete")
        return content

    raw = read("manifest.json", MAX_MANIFEST)
    if public_key is not None:  # before any field of the manifest is used
        verify(raw, _read(location, open_file, SIGNATURE, LENGTH), public_key, str(location))
    manifest = _parse_manifest(raw, location)
    files = {}
    for name, entry in manifest["files"].items():
        if not all(re.fullmatch(r"[A-Za-z0-9_][A-Za-z0-9_.+-]*", part) for part in name.split("/")):
            raise BundleError(f"{location}: the manifest names {name!r}; only plain relative names are accepted")
        content = read(name, min(MAX_FILE, int(entry["bytes"])))
        digest = hashlib.sha256(content).hexdigest()
        if digest != entry["sha256"]:
            raise BundleError(
                f"{location}: {name} has SHA-256 {digest[:12]}…, the manifest says {str(entry['sha256'])[:12]}…; "
                "the file was altered or damaged: download or copy the bundle again"
            )
        files[name] = content
    required = ["tokenizer.json", *(manifest["graphs"][g]["file"] for g in GRAPHS)]
    missing = [name for name in required if name not in files]
    if missing:
        raise BundleError(f"{location}: manifest.json has no hash for {', '.join(missing)}; the bundle is incomplete")
    return Bundle(manifest, files, hashlib.sha256(raw).hexdigest(), str(location))


def _parse_manifest(raw: bytes, location: Path) -> dict[str, Any]:
    try:
        manifest = json.loads(raw)
    except (ValueError, RecursionError) as error:
        raise BundleError(f"{location}: manifest.json is not JSON ({error})") from None
    version = manifest.get("format") if isinstance(manifest, dict) else None
    if not isinstance(version, int):
        raise BundleError(f"{location}: manifest.json has no whole number as 'format'; it is not a bundle's manifest")
    if version > FORMAT:
        raise BundleError(
            f"{location}: the bundle has format {version}, hbaf-edge {__version__} reads up to {FORMAT}; "
            "upgrade with: pip install -U hbaf-edge"
        )
    try:
        _check_fields(manifest)
    except (KeyError, TypeError, ValueError, AttributeError, OverflowError) as error:
        raise BundleError(f"{location}: manifest.json is incomplete ({type(error).__name__}: {error})") from None
    return dict(manifest)


def _check_fields(manifest: dict[str, Any]) -> None:
    """Check type and bounds of every field that the runtime uses, before any memory is allocated.

    Raises:
        KeyError, TypeError, ValueError, AttributeError, OverflowError: a field is missing or wrong.
    """
    labels = manifest["labels"]
    if not isinstance(labels, list) or not all(isinstance(label, str) for label in labels):
        raise TypeError("'labels' must be a list of names")
    if len(set(labels)) != len(labels) or len(labels) < 2:
        raise ValueError("'labels' must be two or more different names")
    if not isinstance(manifest["precision"], str):
        raise TypeError("'precision' must be a name")
    objects, lists = ("quantisation", "encoders", "headline", "licence"), ("data", "limits")
    for field in (*objects, *lists):
        kind: type = dict if field in objects else list
        if not isinstance(manifest.get(field, kind()), kind):
            raise TypeError(f"{field!r} must be a JSON {'object' if kind is dict else 'list'}")
    if not all(isinstance(encoder, dict) for encoder in manifest.get("encoders", {}).values()):
        raise TypeError("each of 'encoders' must be a JSON object")
    if any(
        not isinstance(entry, dict) or {"name", "licence", "use"} - set(entry) for entry in manifest.get("data", [])
    ):
        raise TypeError("each of 'data' must be a JSON object with name, licence and use")
    for field, low, high in (("window", 1, 4096), ("width", 1, 8192), ("dialogue_layers", 1, 64), ("stack", 1, 64)):
        if type(manifest[field]) is not int or not low <= manifest[field] <= high:
            raise ValueError(f"{field!r} must lie in {low}..{high}")
    state = 8 * 2 * int(manifest["window"]) * int(manifest["width"]) * (int(manifest["dialogue_layers"]) + 1)
    if state > MAX_STATE:
        raise ValueError(f"a conversation would take {state:,} bytes, {MAX_STATE:,} are allowed")
    for graph in GRAPHS:
        if not isinstance(manifest["graphs"][graph]["file"], str):
            raise TypeError(f"graphs.{graph}.file must be a name")
        if not isinstance(manifest["graphs"][graph]["inputs"], dict):
            raise TypeError(f"graphs.{graph}.inputs must be a JSON object")
    for modalities in ("audio", "text", "audio+text"):
        if not 0.01 <= float(manifest["temperatures"][modalities]) <= 100:
            raise ValueError(f"temperatures.{modalities} must lie in 0.01..100")
    if len(manifest["files"]) > MAX_FILES or sum(int(e["bytes"]) for e in manifest["files"].values()) > MAX_TOTAL:
        raise ValueError(f"'files' may have {MAX_FILES} entries with {MAX_TOTAL:,} bytes in total")
    for name, entry in manifest["files"].items():
        if not 0 <= int(entry["bytes"]) <= MAX_FILE or len(entry["sha256"]) != 64:
            raise ValueError(f"files.{name} must have 'bytes' (up to {MAX_FILE:,}) and a 'sha256' of 64 digits")


def _open_file(folder: Path, name: str) -> IO[bytes] | None:
    path = folder / name
    if not path.is_file():
        return None
    if folder.resolve() not in path.resolve().parents:
        raise BundleError(f"{folder}: {name} leads outside the bundle; only files inside it are accepted")
    return path.open("rb")


def _open_member(archive: zipfile.ZipFile, name: str) -> IO[bytes] | None:
    return archive.open(name) if name in archive.namelist() else None


def _read(location: Path, open_file: OpenFile, name: str, limit: int) -> bytes | None:
    """Read a whole file; None if there is none. The size that a zip file states can be false, so it is not used."""
    file = open_file(name)
    if file is None:
        return None
    with file:
        content = file.read(limit + 1)
    if len(content) > limit:
        raise BundleError(
            f"{location}: {name} has more than the {limit:,} bytes that are allowed; it was altered or damaged"
        )
    return content
