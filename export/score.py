"""Score a bundle through the runtime, turn by turn, and compare its labels with those of a reference bundle.

    python -m export.score runs/int8-bundle --reference runs/float32-bundle    # on the dev splits of its training data
    python -m export.score hbaf_edge/models/default --final                    # on test: once (training/ledger.py)

It needs the corpora of docs/data.md.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

from export.compare import ModelOutputs, drift, score_turns
from export.console import progress
from export.conversations import predict_dialogue
from export.model_card import headline
from hbaf_edge import HBAFRuntime, Prediction
from hbaf_edge.bundle import load_bundle
from training import ledger
from training.command import cli, emit
from training.config import ModelConfig
from training.corpora.records import UNLABELLED, Dialogue, EvaluationSet, digest
from training.evaluate import dev_sets, final_sets, scoring_config, scoring_corpus


def predict_labelled_turns(
    runtime: HBAFRuntime, one: EvaluationSet, description: str
) -> tuple[list[Prediction], list[int]]:
    """Predict every turn of a set, each dialogue in its own conversation.

    Args:
        runtime: the model.
        one: dialogues, and the modalities to use.
        description: for the progress bar.

    Returns:
        predictions and labels of the labelled turns.
    """
    predictions, labels = [], []
    for dialogue in progress([_restrict(d, one.use) for d in one.dialogues], description):
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
    bundle: Path, sets: dict[str, EvaluationSet], reference: Path | None = None, threads: int = 2
) -> dict[str, Any]:
    """Scores by set; with a reference bundle also `against_float32`: flips, differences and cosines."""
    result: dict[str, Any] = {}
    runtime = HBAFRuntime(bundle, threads=threads)
    reference_runtime = HBAFRuntime(reference, threads=threads) if reference else None
    all_predictions: list[Prediction] = []
    reference_predictions: list[Prediction] = []
    for name, one in sets.items():
        predictions, labels = predict_labelled_turns(runtime, one, name)
        result[name] = score_turns(ModelOutputs.of(predictions), labels, runtime.labels)
        if reference_runtime:
            all_predictions += predictions
            reference_predictions += predict_labelled_turns(reference_runtime, one, f"{name}, reference")[0]
    if reference_runtime:
        result["against_float32"] = drift(all_predictions, reference_predictions)
    return result


def bundle_sets(manifest: dict[str, Any], final: bool = False) -> dict[str, EvaluationSet]:
    """The dev sets of a bundle's training corpora by name, or with `final` its test sets."""
    config = scoring_config({"train": manifest.get("training", {})})
    corpus = scoring_corpus(config, ModelConfig.from_json(manifest["model"]))
    return final_sets(config, corpus) if final else dev_sets(config, corpus)


def final_scores(bundle: Path) -> dict[str, Any]:
    """Score a bundle on its test sets, once, and enter the scores in the ledger."""
    loaded = load_bundle(bundle)
    sets = bundle_sets(loaded.manifest, final=True)
    data = {name: digest(one.dialogues) for name, one in sets.items()}
    name = f"{loaded.manifest['name']}, {loaded.manifest['precision']}"
    return ledger.score_once(name, loaded.model_key, data, lambda names: score(bundle, {n: sets[n] for n in names}))


def main(bundle: Path, /, reference: Path | None = None, final: bool = False, json_output: bool = False) -> None:
    """Score a bundle.

    Args:
        bundle: folder or .hbaf file.
        reference: float32 bundle of the same checkpoint.
        final: score test instead of dev, and enter the scores in the ledger.
    """
    result = final_scores(bundle) if final else score(bundle, bundle_sets(load_bundle(bundle).manifest), reference)
    emit(result, json_output, *(f"{name}: {line}" for name, line in headline(result).items()))


if __name__ == "__main__":
    cli(main)
