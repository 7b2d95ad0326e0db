"""Checkpoint -> the bundle that ships. Each step is checked against the one before.

    python -m export.release runs/default/whole --work runs/default/release --out hbaf_edge/models/default --final

1. PyTorch -> ONNX; each graph is compared with its module.
2. Float32 bundle; compared with PyTorch turn by turn.
3. Float16 bundle; calibration on conversations of the training data.
4. INT8 bundle within a budget on dev.
5. Parity: float32, float16 and the INT8 files that ship, each against PyTorch on the same dev conversations.
6. Scores on dev and label flips against float32. With --final also the scores on test (training/ledger.py).

The results of 5 and 6 go into the manifest and the card, with the hash of the float32 checkpoint: keep its folder as
long as the bundle ships. docs/calibration.md shows the same steps as single commands. The tables of the steps go to
stderr, the result to stdout.
"""

from __future__ import annotations

import sys
from contextlib import redirect_stdout
from pathlib import Path
from typing import Any

from export import calibrate, float16, quantize, score, to_onnx, verify
from export.bundle import PARITY_COLUMNS, card_scores, rewrite_bundle
from export.console import note
from export.conversations import conversations
from export.model_card import headline
from export.voices import final_voices
from hbaf_edge.bundle import GRAPHS, load_bundle
from hbaf_edge.errors import BundleError
from training.command import cli, emit
from training.evaluate import weights_hash
from training.training_module import TrainingModule, load_training_module

PARITY_TURNS = 1500


def release(
    folder: Path, work: Path, out: Path, name: str, final: bool = False, parity_turns: int = PARITY_TURNS
) -> dict[str, Any]:
    """Run all steps.

    Args:
        folder: of the checkpoint.
        work: folder for the bundles of the steps.
        out: folder of the finished bundle.
        name: of the model.
        final: also score the test sets, and enter the scores in the ledger.
        parity_turns: turns of dev conversations on which the precisions are compared, about.

    Returns:
        the scores that went into the manifest.

    Raises:
        BundleError: the float32 bundle differs from PyTorch, or INT8 flips too many dev labels.
    """
    reference, half, calibration, small = (work / n for n in ("float32", "float16", "calibration.json", "int8"))
    with redirect_stdout(sys.stderr):
        module = load_training_module(folder)
        difference = _export_float32(folder, reference, name, module)
        float16.main(reference, half)
        calibrate.main(reference, calibration)
        quantize.main(reference, small, calibration)
        dialogues = conversations(load_bundle(reference).manifest, "dev", parity_turns, seed=2)
        rows = verify.parity_chain(module, [reference, half, small], dialogues, threads=1)
        note(verify.parity_table(rows, int(rows[0]["turns"])))
    bundle = load_bundle(small)
    scores = score.score(small, score.bundle_sets(bundle.manifest), reference)
    flip_rate = scores["against_float32"]["flip_rate"]
    if flip_rate > quantize.Budget.max_flips:
        raise BundleError(f"INT8 flips {flip_rate:.2%} of the dev labels; {quantize.Budget.max_flips:.0%} are allowed")
    if broken := [f"{row['name']}: {limit}" for row in rows for limit in row["broken"]]:
        raise BundleError(f"a precision differs too much from PyTorch: {'; '.join(broken)}")
    if final:
        score.final_scores(small)
        final_voices(small)
    about = card_scores(bundle, scores) | {
        "float32_difference": difference, "checkpoint": weights_hash([folder]),
        "parity": [{column: row[column] for column in PARITY_COLUMNS} for row in rows],
        "parity_about": verify.parity_about(folder, rows, "dev"),
    }  # fmt: skip
    rewrite_bundle(bundle, {graph: bundle.graph(graph) for graph in GRAPHS}, out, about)
    return dict(about["scores"])


def _export_float32(folder: Path, reference: Path, name: str, module: TrainingModule) -> float:
    """Write the float32 bundle; return its largest difference from PyTorch."""
    to_onnx.main(folder, reference, name)
    (row,) = verify.parity_chain(module, [reference], [verify.example_dialogue()], threads=1)
    note(verify.parity_table([row], row["turns"]))
    if not row["difference_max"] <= to_onnx.TOLERANCE:
        raise BundleError(f"the float32 bundle differs from PyTorch by {row['difference_max']:.1e}")
    return float(row["difference_max"])


def main(
    checkpoint: Path,
    /,
    work: Path,
    out: Path,
    name: str = "hbaf-edge default",
    final: bool = False,
    json_output: bool = False,
) -> None:
    """Make a release.

    Args:
        checkpoint: trained and evaluated.
        work: folder for the bundles of the steps.
        out: folder of the finished bundle.
        name: of the model, for its card.
        final: also score test, once, and enter the scores in the ledger.
    """
    scores = release(checkpoint, work, out, name, final)
    lines = (f"{name}: {line}" for name, line in headline(scores).items())
    emit(scores, json_output, *lines, f"saved to {out}")


if __name__ == "__main__":
    cli(main)
