"""Convert a float32 bundle to INT8: with a recipe and a calibration file, or weights only."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnx import ModelProto

from export import metadata
from export.atomic_replace import check_output
from export.bundle import rewrite_bundle
from export.calibrate import Calibration
from export.compare import random_inputs, run_once, snr_db
from export.console import note
from export.qdq import Profile, Recipe, insert_qdq
from export.rewrite import fuse_attention
from hbaf_edge.backends.settings import INT8
from hbaf_edge.bundle import GRAPHS, Bundle
from hbaf_edge.errors import BundleError, InputError

MIN_SNR_DB = 15.0
SAME_SNR_DB = 80.0  # of float32 graphs that should compute the same
WEIGHTS_ONLY = "int8-weights"
PRECISIONS: dict[Profile, str] = {"cpu": INT8, "tensorrt": "int8-tensorrt"}


def quantise_bundle(bundle: Bundle, calibration: Calibration, recipe: Recipe, out: Path) -> Path:
    """Convert a float32 bundle to INT8 by a recipe. `out` is written completely or not at all."""
    ranges, channels = calibration.ranges[recipe.method], calibration.channels
    calibrated = {key.split("/")[0] for key in ranges}
    float_graphs = tuple(graph for graph in GRAPHS if graph not in calibrated)
    about = {
        "precision": PRECISIONS[recipe.profile],
        "quantisation": {**recipe.to_json(), "calibration": calibration.sha256, **calibration.about,
                         "float_graphs": float_graphs},
    }  # fmt: skip

    def convert(graph: str, model: ModelProto) -> ModelProto:
        result = insert_qdq(graph, model, recipe, ranges, channels)
        if recipe.profile == "cpu" and can_fuse_attention(graph, bundle.graph(graph)):  # TensorRT lacks the operator
            result = fuse_attention(result)
        return result

    return convert_bundle(bundle, out, convert, about, float_graphs)


@lru_cache(maxsize=len(GRAPHS))  # a search converts the same float32 graphs for each of its candidates
def can_fuse_attention(graph: str, content: bytes) -> bool:
    """Whether a float32 graph gives the same results with fused attention; print a note if it does not."""
    model = onnx.load_from_string(content)
    fused = fuse_attention(model)
    if fused == model or (snr := graph_snr_db(model, fused)) >= SAME_SNR_DB:
        return True
    note(f"{graph}: fused attention changes its results ({snr:.1f} dB), so attention stays in separate operators")
    return False


def bundle_with_int8_weights(bundle: Bundle, out: Path) -> Path:
    """Convert a bundle to one whose weights are stored in INT8 and whose products are computed in float32."""
    return convert_bundle(
        bundle, out, lambda _, model: graph_with_int8_weights(model), {"precision": WEIGHTS_ONLY}, GRAPHS
    )


def convert_bundle(
    bundle: Bundle,
    out: Path,
    convert: Callable[[str, ModelProto], ModelProto],
    about: dict[str, Any],
    checked_graphs: Sequence[str] = (),
    min_snr_db: float = MIN_SNR_DB,
) -> Path:
    """Convert each graph of a bundle and write the result as a new bundle.

    Args:
        bundle: the source.
        out: folder of the new bundle.
        convert: receives a graph's name and model and returns the new model.
        about: manifest fields to set.
        checked_graphs: graphs to check here, on random inputs. The others are compared on conversations later.
        min_snr_db: smallest signal-to-noise ratio of the checked graphs.

    Raises:
        BundleError: a checked graph has a smaller ratio; nothing is written.
        InputError: `out` is the source.
    """
    if out.resolve() == Path(bundle.path).resolve():
        raise InputError(f"{out} is the source bundle itself; give --out another folder")
    check_output(out)
    graphs = {}
    for graph in GRAPHS:
        source = onnx.load_from_string(bundle.graph(graph))
        result = convert(graph, source)
        if graph in checked_graphs and (snr := graph_snr_db(source, result)) < min_snr_db:
            what = f"{graph} in {about['precision']} has {snr:.1f} dB"
            raise BundleError(f"{what}, at least {min_snr_db} are needed; keep float32")
        metadata.describe_converted(result, bundle.graph(graph), about["precision"])
        graphs[graph] = result.SerializeToString()
    return rewrite_bundle(bundle, graphs, out, about)


def graph_with_int8_weights(model: ModelProto) -> ModelProto:
    """A copy of a graph whose large weights are stored in INT8."""
    return insert_qdq("", model, Recipe(), {}, {})


def graph_snr_db(reference: ModelProto, model: ModelProto) -> float:
    """Signal-to-noise ratio in dB of the worst output on the same random inputs; padded tokens are ignored."""
    inputs = random_inputs(reference)
    results = [run_once(graph, inputs) for graph in (reference, model)]
    mask = inputs.get("token_mask")
    if mask is not None and mask.dtype == np.int64:  # the text graph; other graphs' masks are bool
        results = [[states[mask > 0] for states in outputs] for outputs in results]
    return min(snr_db(a, b) for a, b in zip(*results, strict=True))
