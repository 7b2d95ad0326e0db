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
NEEDED = {"graph", "labels", "precision", "model_sha256"}
# A graph of an INT8 bundle may be stored in INT8 alone, where calibration had no data for it.
MIXED = {"int8": "int8-weights", "int8-tensorrt": "int8-weights"}


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


def converted(model: ModelProto, before: bytes, precision: str | None) -> None:
    """Give a graph that was made from another file that file's entries and hash, in place; None keeps its precision."""
    entries = {
        **entries_of(onnx.load_from_string(before)),
        "version": __version__,
        **({"precision": precision} if precision else {}),
        "made_from_sha256": hashlib.sha256(before).hexdigest(),
    }
    onnx.helper.set_model_props(model, {PREFIX + key: value for key, value in entries.items()})


def entries_of(model: ModelProto) -> dict[str, str]:
    """Of a file, without the prefix."""
    return {p.key.removeprefix(PREFIX): p.value for p in model.metadata_props if p.key.startswith(PREFIX)}


def check_one_model(entries: Mapping[str, Mapping[str, str]], labels: Sequence[str], precision: str) -> None:
    """That files belong together.

    Args:
        entries: of each graph's file, by graph.
        labels: of the bundle they go into.
        precision: of that bundle.

    Raises:
        BundleError: they are of different models, in each other's place, or have other labels or another precision.
    """
    silent = [graph for graph, found in entries.items() if not set(found) >= NEEDED]
    if silent:
        raise BundleError(
            f"{silent[0]}.onnx does not say which model it is of; export all four: python -m export.to_onnx"
        )
    of = {graph: found["model_sha256"] for graph, found in entries.items()}
    if len(set(of.values())) > 1:
        raise BundleError(
            "the graphs are of different models ("
            + ", ".join(f"{graph} of {sha[:12]}…" for graph, sha in of.items())
            + "); export them from one checkpoint: python -m export.to_onnx"
        )
    for graph, found in entries.items():
        if found["graph"] != graph:
            raise BundleError(f"{graph}.onnx holds the {found['graph']} graph; export again: python -m export.to_onnx")
        if found["precision"] not in (precision, MIXED.get(precision)):
            raise BundleError(
                f"{graph}.onnx is {found['precision']}, the bundle {precision}; convert all four together"
            )
        if found["labels"] != json.dumps(list(labels)):
            raise BundleError(f"{graph}.onnx is of the labels {found['labels']}, the bundle of {list(labels)}")
