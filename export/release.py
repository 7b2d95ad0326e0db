"""Checkpoint -> the bundle that ships. Each step is checked against the one before.

    python -m export.release runs/default/whole --work runs/default/release --out hbaf_edge/models/default

1. PyTorch -> ONNX; each graph is compared with its module.
2. Float32 bundle; compared with PyTorch turn by turn.
3. Calibration on conversations of the training data.
4. INT8 bundle within a budget on dev.
5. Scores on the checkpoint's test sets and label flips against float32, which go into the manifest.

docs/calibration.md shows the same steps as single commands. The tables of the steps go to stderr, the result to stdout.
"""

from __future__ import annotations

import sys
from contextlib import redirect_stdout
from pathlib import Path
from typing import Any

from export import calibrate, quantize, score, to_onnx, verify
from export.bundle import rewrite_bundle
from export.console import note
from hbaf_edge.bundle import GRAPHS, load_bundle
from hbaf_edge.errors import BundleError
from training import checkpoint as checkpoints
from training.command import cli, emit
from training.evaluate import evaluation_sets, scoring_config, scoring_corpus
from training.training_module import load_training_module


def release(folder: Path, work: Path, out: Path, name: str) -> dict[str, Any]:
    """Run all steps.

    Args:
        folder: of the checkpoint.
        work: folder for the bundles of the steps.
        out: folder of the finished bundle.
        name: of the model.

    Returns:
        the scores that went into the manifest.

    Raises:
        BundleError: the float32 bundle differs from PyTorch, or INT8 flips too many test labels.
    """
    reference, calibration, small = work / "float32", work / "calibration.json", work / "int8"
    with redirect_stdout(sys.stderr):
        to_onnx.main(folder, reference, name)
        module = load_training_module(folder)
        (row,) = verify.parity_chain(module, [reference], [verify.example_dialogue()], threads=1)
        note(verify.parity_table([row], row["turns"]))
        if not row["difference_max"] <= to_onnx.TOLERANCE:
            raise BundleError(f"the float32 bundle differs from PyTorch by {row['difference_max']:.1e}")
        calibrate.main(reference, calibration)
        quantize.main(reference, small, calibration)
    config = scoring_config(checkpoints.load(folder).about)
    _, tests = evaluation_sets(config, scoring_corpus(config, module.hbaf.config))
    scores = score.score(small, tests, reference)
    flip_rate = scores["against_float32"]["flip_rate"]
    if flip_rate > quantize.Budget.max_flips:
        raise BundleError(f"INT8 flips {flip_rate:.2%} of the test labels; {quantize.Budget.max_flips:.0%} are allowed")
    bundle = load_bundle(small)
    about = {"scores": scores, "headline": score.headline(scores), "float32_difference": row["difference_max"]}
    rewrite_bundle(bundle, {graph: bundle.graph(graph) for graph in GRAPHS}, out, about)
    return scores


def main(
    checkpoint: Path, /, work: Path, out: Path, name: str = "hbaf-edge default", json_output: bool = False
) -> None:
    """Make a release.

    Args:
        checkpoint: trained and evaluated.
        work: folder for the bundles of the steps.
        out: folder of the finished bundle.
        name: of the model, for its card.
    """
    scores = release(checkpoint, work, out, name)
    lines = (f"{name}: {line}" for name, line in score.headline(scores).items())
    emit(scores, json_output, *lines, f"saved to {out}")


if __name__ == "__main__":
    cli(main)
