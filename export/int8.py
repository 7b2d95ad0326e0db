"""INT8 bundles of a float32 bundle: by a recipe and a calibration, or with weights alone in INT8."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnx import ModelProto
from rich.console import Console

from export import metadata
from export.bundle import rewritten
from export.calibrate import Calibration
from export.compare import random_inputs, run_once, snr_db
from export.place import check_place
from export.qdq import Profile, Recipe, insert
from export.rewrite import fuse_attention
from hbaf_edge.backends.settings import INT8
from hbaf_edge.bundle import GRAPHS, Bundle
from hbaf_edge.errors import BundleError, InputError

LEAST_DB = 15.0
SAME_DB = 80.0  # of float32 graphs that should compute the same
WEIGHTS_ONLY = "int8-weights"
PRECISIONS: dict[Profile, str] = {"cpu": INT8, "tensorrt": "int8-tensorrt"}


def quantised(bundle: Bundle, calibration: Calibration, recipe: Recipe, out: Path) -> Path:
    """An INT8 bundle of a float32 one, written to `out` whole or not at all."""
    ranges, channels = calibration.ranges[recipe.method], calibration.channels
    reached = {key.split("/")[0] for key in ranges}
    stored = tuple(graph for graph in GRAPHS if graph not in reached)
    about = {
        "precision": PRECISIONS[recipe.profile],
        "quantisation": {**asdict(recipe), "calibration": calibration.sha256, **calibration.about,
                         "float_graphs": stored},
    }  # fmt: skip

    def convert(graph: str, model: ModelProto) -> ModelProto:
        made = insert(graph, model, recipe, ranges, channels)
        if recipe.profile == "cpu" and attends_plainly(graph, bundle.graph(graph)):  # TensorRT lacks the operator
            made = fuse_attention(made)
        return made

    return converted(bundle, out, convert, about, stored)


@lru_cache(maxsize=len(GRAPHS))  # a search converts the same float32 graphs again for each of its candidates
def attends_plainly(graph: str, content: bytes) -> bool:
    """Whether a float32 graph computes the same with its attention as one operator; said where it does not."""
    model = onnx.load_from_string(content)
    made = fuse_attention(model)
    if made == model or (ratio := fidelity(model, made)) >= SAME_DB:
        return True
    said = f"{graph}: its attention is not ONNX Runtime's (outputs keep {ratio:.1f} dB); it stays in single operators"
    Console(stderr=True, soft_wrap=True).print(said)
    return False


def with_int8_weights(bundle: Bundle, out: Path) -> Path:
    """A bundle whose weights are stored as INT8 and computed in float32."""
    return converted(bundle, out, lambda _, model: weights_only(model), {"precision": WEIGHTS_ONLY}, GRAPHS)


def converted(
    bundle: Bundle,
    out: Path,
    convert: Callable[[str, ModelProto], ModelProto],
    about: dict[str, Any],
    stored: Sequence[str] = (),
    least_db: float = LEAST_DB,
) -> Path:
    """A bundle again, each of its graphs converted, with `about` in its manifest.

    No run on conversations judges the graphs of `stored`: on random inputs they have to keep `least_db`.

    Raises:
        BundleError: one of them does not; nothing is written.
        InputError: the bundle would replace itself.
    """
    if out.resolve() == Path(bundle.path).resolve():
        raise InputError(f"{out} is the bundle itself; what is made of it needs another place")
    check_place(out)
    made = {}
    for graph in GRAPHS:
        before = onnx.load_from_string(bundle.graph(graph))
        after = convert(graph, before)
        if graph in stored and (ratio := fidelity(before, after)) < least_db:
            what = f"{graph} in {about['precision']}: its weights leave {ratio:.1f} dB of at least {least_db}"
            raise BundleError(f"{what}; keep float32")
        metadata.converted(after, bundle.graph(graph), about["precision"])
        made[graph] = after.SerializeToString()
    return rewritten(bundle, made, out, about)


def weights_only(model: ModelProto) -> ModelProto:
    """A copy whose large weights are stored as INT8."""
    return insert("", model, Recipe(), {}, {})


def fidelity(before: ModelProto, after: ModelProto) -> float:
    """Signal-to-noise ratio in dB of the worst output on the same random inputs; padding counts for nothing."""
    inputs = random_inputs(before)
    results = [run_once(model, inputs) for model in (before, after)]
    mask = inputs.get("token_mask")
    if mask is not None and mask.dtype == np.int64:  # the text graph's
        results = [[states[mask > 0] for states in each] for each in results]
    return min(snr_db(a, b) for a, b in zip(*results, strict=True))
