"""Score a bundle on the test sets through the runtime, and compare its labels with those of a reference bundle.

    python -m export.score runs/int8-bundle --reference runs/float32-bundle

MELD test turn by turn with text only; RAVDESS actors 17-20 with audio only. It needs the corpora of docs/data.md.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

from export.compare import ModelOutputs, drift, score_turns
from export.console import progress
from export.conversations import predict_dialogue
from hbaf_edge import HBAFRuntime, Prediction
from training.command import cli, emit
from training.corpora.records import UNLABELLED, Dialogue
from training.evaluate import EvaluationSet, default_test_sets


def predict_labelled_turns(
    runtime: HBAFRuntime, test: EvaluationSet, description: str
) -> tuple[list[Prediction], list[int]]:
    """Predict every turn of a test set, each dialogue in its own conversation.

    Args:
        runtime: the model.
        test: dialogues, and the modalities to use.
        description: for the progress bar.

    Returns:
        predictions and labels of the labelled turns.
    """
    predictions, labels = [], []
    for dialogue in progress([_restrict(d, test.use) for d in test.dialogues], description):
        for u, prediction in zip(dialogue.turns, predict_dialogue(runtime, dialogue), strict=True):
            if u.label != UNLABELLED:
                predictions.append(prediction)
                labels.append(u.label)
    return predictions, labels


def _restrict(dialogue: Dialogue, use: str) -> Dialogue:
    """Drop the modalities that are not used, and turns without any."""
    turns = (
        replace(u, text=u.text if "text" in use else "", audio=u.audio if "audio" in use else None)
        for u in dialogue.turns
    )
    return replace(dialogue, turns=tuple(u for u in turns if u.text or u.audio))


def score(
    bundle: Path, tests: dict[str, EvaluationSet], reference: Path | None = None, threads: int = 2
) -> dict[str, Any]:
    """Scores by test set; with a reference bundle also `against_float32`: flips, differences and cosines."""
    result: dict[str, Any] = {}
    runtime = HBAFRuntime(bundle, threads=threads)
    reference_runtime = HBAFRuntime(reference, threads=threads) if reference else None
    all_predictions: list[Prediction] = []
    reference_predictions: list[Prediction] = []
    for name, test in tests.items():
        predictions, labels = predict_labelled_turns(runtime, test, name)
        result[name] = score_turns(ModelOutputs.of(predictions), labels, runtime.labels)
        if reference_runtime:
            all_predictions += predictions
            reference_predictions += predict_labelled_turns(reference_runtime, test, f"{name}, reference")[0]
    if reference_runtime:
        result["against_float32"] = drift(all_predictions, reference_predictions)
    return result


def headline(result: dict[str, Any]) -> dict[str, str]:
    """One line per test set, and one for the difference from float32, as the model card shows them."""
    lines = {
        name: f"weighted F1 {s['weighted_f1']:.3f}, UAR {s['uar']:.3f} on {s['utterances']} utterances"
        for name, s in result.items() if name != "against_float32"
    }  # fmt: skip
    if "against_float32" in result:
        d = result["against_float32"]
        lines["against float32"] = f"{d['label_flips']} of {d['turns']} labels differ ({d['flip_rate']:.2%})"
    return lines


def main(bundle: Path, /, reference: Path | None = None, json_output: bool = False) -> None:
    """Score a bundle.

    Args:
        bundle: folder or .hbaf file.
        reference: float32 bundle of the same checkpoint.
    """
    result = score(bundle, default_test_sets(), reference)
    emit(result, json_output, *(f"{name}: {line}" for name, line in headline(result).items()))


if __name__ == "__main__":
    cli(main)
