"""A bundle is a folder, or one `.hbaf` zip, holding all that inference needs; every byte of it is checked on load.

`manifest.json` names the format, labels, graphs, provenance, licence and scores, and the SHA-256 of every other file.
Files are read once and hashed in memory, so what is verified is what runs. There is no pickle anywhere.
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
MAX_TOTAL, MAX_FILES = 1 << 31, 64  # of one bundle
MAX_STATE = 1 << 26  # bytes of a conversation's rings; the default model takes 393,216
DEFAULT = Path(__file__).parent / "models" / "default"

# What reading a folder or a zip made in bad faith can raise.
BROKEN = (
    OSError, ValueError, TypeError, RuntimeError, EOFError, NotImplementedError, zipfile.BadZipFile, zlib.error,
    lzma.LZMAError,
)  # fmt: skip

Open = Callable[[str], IO[bytes] | None]  # a file of the bundle by its name; None where there is none


@dataclass(frozen=True)
class Bundle:
    """A verified bundle in memory.

    Attributes:
        manifest: the content of manifest.json.
        files: content by name, each of the manifest's size and SHA-256.
        key: SHA-256 of manifest.json, which pins every other hash; conversations are tied to it.
        path: where it came from.
    """

    manifest: dict[str, Any]
    files: dict[str, bytes]
    key: str
    path: str

    @property
    def labels(self) -> tuple[str, ...]:
        """Class names in the order of the logits."""
        return tuple(self.manifest["labels"])

    @property
    def megabytes(self) -> float:
        """Of all files together."""
        return sum(map(len, self.files.values())) / 1e6

    def graph(self, name: str) -> bytes:
        """The ONNX file of one graph: audio, text, utterance or dialogue."""
        return self.files[self.manifest["graphs"][name]["file"]]


def load_bundle(path: str | os.PathLike[str] | None = None, public_key: str | os.PathLike[str] | None = None) -> Bundle:
    """Read and verify a bundle; None means the default model inside of the package.

    Args:
        path: folder or `.hbaf` file.
        public_key: PEM file; the bundle must be signed with the private key that belongs to it.

    Raises:
        BundleError: naming the file and what is wrong with it.
    """
    try:
        where = Path(path) if path is not None else DEFAULT
        if where.is_dir():
            return _verified(where, lambda name: _open_file(where, name), public_key)
        if where.is_file():
            with zipfile.ZipFile(where) as archive:
                return _verified(where, lambda name: _open_member(archive, name), public_key)
    except BundleError:
        raise
    except BROKEN as error:
        raise BundleError(f"{path} is not a bundle: {error}; expected a folder or an .hbaf zip file") from None
    raise BundleError(f"there is no bundle at {str(where)!r}; give a folder that holds manifest.json, or an .hbaf file")


def _verified(where: Path, open_file: Open, public_key: str | os.PathLike[str] | None) -> Bundle:
    def read(name: str, limit: int) -> bytes:
        content = _read(where, open_file, name, limit)
        if content is None:
            raise BundleError(f"{where}: {name} is missing; the bundle is incomplete")
        return content

    raw = read("manifest.json", MAX_MANIFEST)
    if public_key is not None:  # before a word of it is believed
        verify(raw, _read(where, open_file, SIGNATURE, LENGTH), public_key, str(where))
    manifest = _manifest(raw, where)
    files = {}
    for name, entry in manifest["files"].items():
        if not all(re.fullmatch(r"[A-Za-z0-9_][A-Za-z0-9_.+-]*", part) for part in name.split("/")):
            raise BundleError(f"{where}: the manifest names {name!r}; only plain names inside of it are accepted")
        content = read(name, min(MAX_FILE, int(entry["bytes"])))
        found = hashlib.sha256(content).hexdigest()
        if found != entry["sha256"]:
            raise BundleError(
                f"{where}: {name} has SHA-256 {found[:12]}…, the manifest says {str(entry['sha256'])[:12]}…; "
                "the file was altered or damaged: take the bundle from its source again"
            )
        files[name] = content
    wanted = ["tokenizer.json", *(manifest["graphs"][g]["file"] for g in GRAPHS)]
    missing = [name for name in wanted if name not in files]
    if missing:
        raise BundleError(f"{where}: manifest.json gives no hash for {', '.join(missing)}; the bundle is incomplete")
    return Bundle(manifest, files, hashlib.sha256(raw).hexdigest(), str(where))


def _manifest(raw: bytes, where: Path) -> dict[str, Any]:
    try:
        manifest = json.loads(raw)
    except (ValueError, RecursionError) as error:
        raise BundleError(f"{where}: manifest.json is not JSON ({error})") from None
    version = manifest.get("format") if isinstance(manifest, dict) else None
    if not isinstance(version, int):
        raise BundleError(f"{where}: manifest.json has no whole-number 'format'; it is not a bundle's manifest")
    if version > FORMAT:
        raise BundleError(
            f"{where}: the bundle is of format {version}, hbaf-edge {__version__} reads up to {FORMAT}; "
            "upgrade with: pip install -U hbaf-edge"
        )
    try:
        _check_shape(manifest)
    except (KeyError, TypeError, ValueError, AttributeError, OverflowError) as error:
        raise BundleError(f"{where}: manifest.json is incomplete ({type(error).__name__}: {error})") from None
    return dict(manifest)


def _check_shape(manifest: dict[str, Any]) -> None:
    """Every field the runtime relies on, of its type and within its bounds, before anything is allocated."""
    labels = manifest["labels"]
    if not isinstance(labels, list) or not all(isinstance(label, str) for label in labels):
        raise TypeError("'labels' must be a list of names")
    if len(set(labels)) != len(labels) or len(labels) < 2:
        raise ValueError("'labels' must be two or more different names")
    if not isinstance(manifest["precision"], str):
        raise TypeError("'precision' must be a name")
    objects, lists = ("quantisation", "encoders", "headline", "licence"), ("data", "limits")
    for shown in (*objects, *lists):
        shape: type = dict if shown in objects else list
        if not isinstance(manifest.get(shown, shape()), shape):
            raise TypeError(f"{shown!r} must be a JSON {'object' if shape is dict else 'list'}")
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
    for kind in ("audio", "text", "audio+text"):
        if not 0.01 <= float(manifest["temperatures"][kind]) <= 100:
            raise ValueError(f"temperatures.{kind} must lie in 0.01..100")
    if len(manifest["files"]) > MAX_FILES or sum(int(e["bytes"]) for e in manifest["files"].values()) > MAX_TOTAL:
        raise ValueError(f"'files' may be {MAX_FILES} with {MAX_TOTAL:,} bytes in all")
    for name, entry in manifest["files"].items():
        if not 0 <= int(entry["bytes"]) <= MAX_FILE or len(entry["sha256"]) != 64:
            raise ValueError(f"files.{name} must have 'bytes' (up to {MAX_FILE:,}) and a 'sha256' of 64 digits")


def _open_file(folder: Path, name: str) -> IO[bytes] | None:
    path = folder / name
    if not path.is_file():
        return None
    if folder.resolve() not in path.resolve().parents:
        raise BundleError(f"{folder}: {name} leads out of the bundle; only files inside of it are accepted")
    return path.open("rb")


def _open_member(archive: zipfile.ZipFile, name: str) -> IO[bytes] | None:
    return archive.open(name) if name in archive.namelist() else None


def _read(where: Path, open_file: Open, name: str, limit: int) -> bytes | None:
    """A whole file; None where there is none. The size that a zip states may be a lie, so no size is asked for."""
    file = open_file(name)
    if file is None:
        return None
    with file:
        content = file.read(limit + 1)
    if len(content) > limit:
        raise BundleError(
            f"{where}: {name} is longer than the {limit:,} bytes that are allowed; it was altered or damaged"
        )
    return content
