"""Metadata of an ONNX file: version, graph, labels, and hashes of its model and of the file it was converted from.

Any ONNX viewer shows these entries. All files of a bundle must name the same model. Keys begin with `hbaf_edge.`.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence

import onnx
from onnx import ModelProto
from torch import nn

from hbaf_edge import __version__
from hbaf_edge.errors import BundleError

PREFIX = "hbaf_edge."


def model_hash(*modules: nn.Module) -> str:
    """SHA-256 of all weights of a model, by name, shape and value.

    >>> layer = nn.Linear(2, 2)
    >>> model_hash(layer) == model_hash(layer), model_hash(layer) == model_hash(nn.Linear(2, 2))
    (True, False)
    """
    sha256 = hashlib.sha256()
    for module in modules:
        for name, value in sorted(module.state_dict().items()):
            array = value.detach().cpu().contiguous().numpy()
            sha256.update(f"{name} {array.dtype} {array.shape}".encode())
            sha256.update(array.tobytes())
    return sha256.hexdigest()


def describe_exported(model: ModelProto, graph: str, labels: Sequence[str], model_sha256: str) -> None:
    """Add the entries of a newly exported float32 graph, in place."""
    entries = {"version": __version__, "graph": graph, "labels": json.dumps(list(labels)), "precision": "float32",
               "model_sha256": model_sha256}  # fmt: skip
    onnx.helper.set_model_props(model, {PREFIX + key: value for key, value in entries.items()})


def describe_converted(model: ModelProto, source: bytes, precision: str) -> None:
    """Copy the entries of the source file to a graph that was converted from it and add the file's hash, in place."""
    entries = {
        **entries_of(onnx.load_from_string(source)),
        "version": __version__,
        "precision": precision,
        "made_from_sha256": hashlib.sha256(source).hexdigest(),
    }
    onnx.helper.set_model_props(model, {PREFIX + key: value for key, value in entries.items()})


def entries_of(model: ModelProto) -> dict[str, str]:
    """The entries of a file, without the prefix of their keys."""
    return {p.key.removeprefix(PREFIX): p.value for p in model.metadata_props if p.key.startswith(PREFIX)}


def check_one_model(entries: Mapping[str, Mapping[str, str]], labels: Sequence[str], precision: str) -> None:
    """Check that the files of a bundle belong together.

    Args:
        entries: metadata entries of each graph's file.
        labels: the bundle's.
        precision: the bundle's.

    Raises:
        BundleError: two files are of different models, were swapped, or have other labels or another precision.
    """
    model = next(iter(entries.values())).get("model_sha256", "that of one checkpoint")
    for graph, actual in entries.items():
        expected = {"graph": graph, "labels": json.dumps(list(labels)), "precision": precision, "model_sha256": model}
        for key, value in expected.items():
            if actual.get(key) != value:
                raise BundleError(
                    f"{graph}.onnx has {key} {actual.get(key)}, the bundle has {value}; export or convert all four "
                    "graphs of one checkpoint together: python -m export.to_onnx"
                )
