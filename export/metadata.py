"""What an ONNX file says of itself: version, graph, labels, and hashes of its model and of the file it was made from.

Any reader of ONNX shows these entries; a bundle's files must agree on the model. Keys begin with `hbaf_edge.`.
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


def identity(*modules: nn.Module) -> str:
    """SHA-256 of all weights of a model, by name, shape and value.

    >>> layer = nn.Linear(2, 2)
    >>> identity(layer) == identity(layer), identity(layer) == identity(nn.Linear(2, 2))
    (True, False)
    """
    found = hashlib.sha256()
    for module in modules:
        for name, value in sorted(module.state_dict().items()):
            array = value.detach().cpu().contiguous().numpy()
            found.update(f"{name} {array.dtype} {array.shape}".encode())
            found.update(array.tobytes())
    return found.hexdigest()


def describe(model: ModelProto, graph: str, labels: Sequence[str], model_sha256: str) -> None:
    """Give a fresh float32 graph its entries, in place."""
    entries = {"version": __version__, "graph": graph, "labels": json.dumps(list(labels)), "precision": "float32",
               "model_sha256": model_sha256}  # fmt: skip
    onnx.helper.set_model_props(model, {PREFIX + key: value for key, value in entries.items()})


def converted(model: ModelProto, before: bytes, precision: str) -> None:
    """Give a graph that was made from another file that file's entries and hash, in place."""
    entries = {
        **entries_of(onnx.load_from_string(before)),
        "version": __version__,
        "precision": precision,
        "made_from_sha256": hashlib.sha256(before).hexdigest(),
    }
    onnx.helper.set_model_props(model, {PREFIX + key: value for key, value in entries.items()})


def entries_of(model: ModelProto) -> dict[str, str]:
    """Of a file, without the prefix."""
    return {p.key.removeprefix(PREFIX): p.value for p in model.metadata_props if p.key.startswith(PREFIX)}


def check_one_model(entries: Mapping[str, Mapping[str, str]], labels: Sequence[str], precision: str) -> None:
    """That the files of a bundle (their entries by graph) belong together.

    Raises:
        BundleError: they are of different models, in each other's place, or have other labels or another precision.
    """
    model = next(iter(entries.values())).get("model_sha256", "that of one checkpoint")
    for graph, found in entries.items():
        expected = {"graph": graph, "labels": json.dumps(list(labels)), "precision": precision, "model_sha256": model}
        for key, value in expected.items():
            if found.get(key) != value:
                raise BundleError(
                    f"{graph}.onnx has {key} {found.get(key)}, this bundle {value}; export or convert all four graphs "
                    "of one checkpoint together: python -m export.to_onnx"
                )
