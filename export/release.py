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

from export import score, to_onnx, verify
from export.bundle import about_checkpoint, rewritten, write_bundle
from export.calibrate import calibrate
from export.conversations import conversations
from export.int8 import quantised
from export.qdq import Recipe
from export.quantize import HELD, Budget, search
from export.sensitivity import Held, table
from hbaf_edge.bundle import load_bundle
from hbaf_edge.errors import BundleError
from training import checkpoint as checkpoints
from training.command import cli
from training.evaluate import own_corpus, settings, trials
from training.learner import Learner


def release(
    folder: Path, work: Path, out: Path, name: str, recipe: Recipe = Recipe(), turns: int = 1000, held_turns: int = HELD
) -> dict[str, Any]:
    """Returns the scores that went into the manifest."""
    console = Console()
    model, text, audio, about = checkpoints.load(folder)
    console.print("graphs against PyTorch:", to_onnx.export(model, audio, text, work / "onnx"))
    described = about_checkpoint(about, model.config, name, "float32")
    reference = write_bundle(work / "onnx", work / "float32", model.config, described)
    found, flips = verify.difference(Learner(model, text, audio).eval(), reference)
    console.print(f"turn by turn against the whole pass in PyTorch: {found:.1e}, {flips} flips in 100 turns")
    if not found <= verify.TOLERANCE:
        raise BundleError(f"the float32 bundle differs from PyTorch by {found:.1e}; {verify.TOLERANCE:.0e} is allowed")
    small = _quantised(reference, work, recipe, turns, held_turns)
    config = settings(about)
    _, tests = trials(config, own_corpus(config, model.config))
    measured = score.score(small, tests, reference)
    flip_rate = measured["against_float32"]["flip_rate"]
    if flip_rate > Budget.max_flips:
        raise BundleError(f"INT8 flips {flip_rate:.2%} of the test labels; {Budget.max_flips:.0%} are allowed")
    scored = {"scores": measured, "headline": headline(measured), "float32_difference": found}
    rewritten(load_bundle(small), small, out, scored)
    return measured


def _quantised(reference: Path, work: Path, recipe: Recipe, turns: int, held_turns: int) -> Path:
    """The float32 bundle calibrated and in INT8, within the budget on dev."""
    bundle = load_bundle(reference)
    talks = conversations(bundle.manifest, "train", turns)
    calibration = calibrate(bundle, talks, work / "calibration.json")
    held = Held(bundle, conversations(bundle.manifest, "dev", held_turns, seed=1))
    recipe, steps = search(held, calibration, recipe, Budget())
    Console().print(table(steps, "INT8 against float32 on held-out conversations"))
    return quantised(bundle, calibration, recipe, work / "int8")


def headline(measured: dict[str, Any]) -> dict[str, str]:
    """The scores as the card shows them."""
    drift = measured["against_float32"]
    found = {}
    for name, s in measured.items():
        if name == "meld_test_text":
            found["MELD test, text only"] = f"weighted F1 {s['weighted_f1']:.3f}, macro F1 {s['macro_f1']:.3f}"
        elif name == "ravdess_17_20_audio":
            found["RAVDESS actors 17-20, audio only"] = f"UAR {s['uar']:.3f} (acted speech, 7 classes)"
        elif name != "against_float32":
            found[name] = f"weighted F1 {s['weighted_f1']:.3f}, UAR {s['uar']:.3f} on {s['utterances']} utterances"
    return found | {
        "against float32": f"{drift['label_flips']} of {drift['turns']} labels differ ({drift['flip_rate']:.2%})",
    }


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
