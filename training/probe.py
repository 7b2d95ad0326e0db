"""A baseline for every model: logistic regression on the frozen encoders' states, in the same folds.

    python -m training.probe --corpus ravdess-8 --use audio --folds all
    python -m training.probe --corpus features --folds all

Features of a turn are the mean and deviation over time of the states of all layers and both modalities, standardised
on the training turns. The dev split selects the weight decay and is scored. It takes minutes on a CPU and shows what an
encoder is worth before a model is trained. training/voices.py does the same across corpora.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any, Literal

import torch
from torch import Tensor

from training.command import cli, emit
from training.config import ModelConfig, TrainConfig
from training.distributed import Compute
from training.feature_provider import FeatureProvider
from training.linear import feature_matrix, fit
from training.metrics import fit_temperature, scores
from training.tasks import load_corpus, selection_score
from training.train import TABLE_SCORES, corpus_and_folds, pooled_scores, summarise_seeds, table
from training.training_module import initialise

WEIGHT_DECAYS = (3e-4, 3e-3, 3e-2, 3e-1)  # factors of half the squared norm of the weights


def probe(
    config: TrainConfig, model: ModelConfig | None = None, device: torch.device | str = "cpu"
) -> dict[str, Tensor]:
    """Fit one split. Return logits and labels of the dev turns and the temperature fitted to them."""
    config = replace(config, text_tuning="frozen", audio_tuning="frozen")
    corpus = load_corpus(config)
    module, _ = initialise(config, corpus, model, None)
    features = FeatureProvider(module.to(device), config).prepare(corpus.split("train") + corpus.split("dev"))
    sets = {split: feature_matrix(features, corpus.split(split), config.use) for split in ("train", "dev")}
    mean, deviation = sets["train"][0].mean(0), sets["train"][0].std(0) + 1e-5
    sets = {split: ((x - mean) / deviation, y) for split, (x, y) in sets.items()}
    best, best_value = torch.empty(0), -1.0
    for weight_decay in WEIGHT_DECAYS:
        weights, biases = fit(*sets["train"], len(corpus.labels), weight_decay)
        logits = sets["dev"][0] @ weights + biases
        value = selection_score(scores(logits, sets["dev"][1], corpus.labels), config.use)
        if value > best_value:
            best, best_value = logits, value
    labels = sets["dev"][1]
    return {"logits": best, "labels": labels, "temperature": torch.tensor(fit_temperature(best, labels))}


def main(
    train: TrainConfig = TrainConfig(),
    model: ModelConfig = ModelConfig(),
    folds: Literal["own", "all"] = "own",
    compute: Compute = Compute(device="cpu"),
    json_output: bool = False,
) -> None:
    """Fit the baseline.

    Args:
        train: only corpus, modalities and fold are used.
        model: only its encoders are used.
        folds: all: cross-validation over the corpus' folds; own: its own split, or --fold.
        compute: device and threads.
    """
    device = compute.start()
    corpus, test_folds = corpus_and_folds(train, folds == "all")
    predictions = [probe(replace(train, fold=k), model, device) for k in test_folds]
    result: dict[str, Any] = pooled_scores(predictions, corpus.labels)
    name = f"{corpus.name}, {train.use}"
    summary = summarise_seeds([result]) | {"scored_on": "dev"}
    emit({name: {k: result[k] for k in TABLE_SCORES}}, json_output, table({name: summary}, "logistic regression"))


if __name__ == "__main__":
    cli(main)
