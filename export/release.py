"""Checkpoint -> the bundle that ships, every step checked against the one before it.

    python -m export.release runs/default/whole --work runs/default/release --out hbaf_edge/models/default

PyTorch -> ONNX (each graph compared) -> float32 bundle (turn by turn against the whole pass in PyTorch) -> calibration
on conversations of the training data -> INT8 within a budget on dev -> scores on the test sets of the checkpoint and
label flips against float32, which go into the manifest. The same steps one by one: export/WORKFLOW.md.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from rich.console import Console

from export import calibrate, quantize, score, to_onnx, verify
from export.bundle import rewritten
from hbaf_edge.bundle import GRAPHS, load_bundle
from hbaf_edge.errors import BundleError
from training import checkpoint as checkpoints
from training.command import cli
from training.evaluate import own_corpus, settings, trials
from training.learner import load_learner


def release(folder: Path, work: Path, out: Path, name: str) -> dict[str, Any]:
    """Returns the scores that went into the manifest."""
    reference, calibration, small = work / "float32", work / "calibration.json", work / "int8"
    to_onnx.main(folder, reference, name)
    learner = load_learner(folder)
    (step,) = verify.walk(learner, [reference], [verify.conversation()], threads=1)
    Console().print(verify.table([step], step["turns"]))
    if not step["difference_max"] <= to_onnx.TOLERANCE:
        raise BundleError(f"the float32 bundle differs from PyTorch by {step['difference_max']:.1e}")
    calibrate.main(reference, calibration)
    quantize.main(reference, small, calibration)
    config = settings(checkpoints.load(folder).about)
    _, tests = trials(config, own_corpus(config, learner.hbaf.config))
    measured = score.score(small, tests, reference)
    flip_rate = measured["against_float32"]["flip_rate"]
    if flip_rate > quantize.Budget.max_flips:
        raise BundleError(f"INT8 flips {flip_rate:.2%} of the test labels; {quantize.Budget.max_flips:.0%} are allowed")
    bundle = load_bundle(small)
    scored = {"scores": measured, "headline": headline(measured), "float32_difference": step["difference_max"]}
    rewritten(bundle, {graph: bundle.graph(graph) for graph in GRAPHS}, out, scored)
    return measured


def headline(measured: dict[str, Any]) -> dict[str, str]:
    """The scores as the card shows them."""
    drift = measured["against_float32"]
    found = {
        name: f"weighted F1 {s['weighted_f1']:.3f}, UAR {s['uar']:.3f} on {s['utterances']} utterances"
        for name, s in measured.items() if s is not drift
    }  # fmt: skip
    drifted = f"{drift['label_flips']} of {drift['turns']} labels differ ({drift['flip_rate']:.2%})"
    return found | {"against float32": drifted}


def main(checkpoint: Path, /, work: Path, out: Path, name: str = "hbaf-edge default") -> None:
    """Release.

    Args:
        checkpoint: trained and evaluated.
        work: folder of every step's bundle.
        out: the finished bundle's folder.
        name: of the model, for its card.
    """
    print(json.dumps(release(checkpoint, work, out, name)))


if __name__ == "__main__":
    cli(main)
