"""A baseline for every model: logistic regression on the frozen encoders' states, in the same folds.

    python -m training.probe --corpus ravdess-8 --use audio --folds all
    python -m training.probe --corpus features --folds all

Features of a turn are the mean and deviation over time of the states of all layers and both modalities, standardised
on the training turns. The dev split selects the weight decay. It takes minutes on a CPU and shows what an encoder is
worth before a model is trained.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from training.command import cli, emit
from training.config import ModelConfig, TrainConfig, Use
from training.corpora.records import UNLABELLED, Dialogue
from training.distributed import Compute
from training.errors import TrainingError
from training.feature_provider import FeatureProvider
from training.metrics import fit_temperature, scores
from training.tasks import load_corpus, selection_score
from training.train import TABLE_SCORES, corpus_and_folds, pooled_scores, summarise_seeds, table
from training.training_module import initialise

WEIGHT_DECAYS = (3e-4, 3e-3, 3e-2, 3e-1)  # factors of half the squared norm of the weights
STEPS = 60  # of L-BFGS


def feature_matrix(features: FeatureProvider, dialogues: list[Dialogue], use: Use) -> tuple[Tensor, Tensor]:
    """Features (turns, features) and labels (turns,) of the labelled turns that have all modalities of `use`."""
    rows, labels = [], []
    for dialogue in dialogues:
        for turn in features.turns(dialogue, use):
            states_of = [states for name, states in (("audio", turn.audio), ("text", turn.text)) if name in use]
            if turn.label != UNLABELLED and all(isinstance(states, np.ndarray) for states in states_of):
                parts = [part for states in states_of for part in _statistics(np.asarray(states, np.float32))]
                rows.append(np.concatenate(parts))
                labels.append(turn.label)
    if not rows:
        raise TrainingError(f"no labelled turn of these dialogues has {use}")
    return torch.from_numpy(np.stack(rows)), torch.tensor(labels)


def _statistics(states: np.ndarray) -> list[np.ndarray]:
    """Mean and deviation over time of states (length, layers, dim), flat; for a single vector only the vector."""
    mean = states.mean(0).ravel()
    return [mean] if len(states) == 1 and states.shape[1] == 1 else [mean, states.std(0).ravel()]


def fit(features: Tensor, labels: Tensor, classes: int, weight_decay: float) -> tuple[Tensor, Tensor]:
    """Fit logistic regression. Return weights (features, classes) and biases (classes,).

    >>> x = torch.tensor([[-1.0], [-2.0], [1.0], [2.0]])
    >>> w, b = fit(x, torch.tensor([0, 0, 1, 1]), 2, 1e-3)
    >>> (x @ w + b).argmax(1).tolist()
    [0, 0, 1, 1]
    """
    weights = torch.zeros(features.shape[1], classes, requires_grad=True)
    biases = torch.zeros(classes, requires_grad=True)
    optimiser = torch.optim.LBFGS([weights, biases], max_iter=STEPS, line_search_fn="strong_wolfe")

    def loss() -> Tensor:
        optimiser.zero_grad()
        cross_entropy = functional.cross_entropy(features @ weights + biases, labels)
        value = cross_entropy + weight_decay * weights.square().sum() / 2
        value.backward()  # type: ignore[no-untyped-call]
        return value

    optimiser.step(loss)
    return weights.detach(), biases.detach()


def probe(
    config: TrainConfig, model: ModelConfig | None = None, device: torch.device | str = "cpu"
) -> dict[str, Tensor]:
    """Fit one split. Return logits and labels of the test turns and the temperature fitted on dev."""
    config = replace(config, text_tuning="frozen", audio_tuning="frozen")
    corpus = load_corpus(config)
    module, _ = initialise(config, corpus, model, None)
    features = FeatureProvider(module.to(device), config).prepare(corpus.dialogues)
    sets = {split: feature_matrix(features, corpus.split(split), config.use) for split in ("train", "dev")}
    sets["test"] = feature_matrix(features, corpus.split(corpus.scored_split), config.use)
    mean, deviation = sets["train"][0].mean(0), sets["train"][0].std(0) + 1e-5
    sets = {split: ((x - mean) / deviation, y) for split, (x, y) in sets.items()}
    best: tuple[float, Tensor, Tensor] | None = None
    for weight_decay in WEIGHT_DECAYS:
        weights, biases = fit(*sets["train"], len(corpus.labels), weight_decay)
        dev_scores = scores(sets["dev"][0] @ weights + biases, sets["dev"][1], corpus.labels)
        value = selection_score(dev_scores, config.use)
        if best is None or value > best[0]:
            best = value, weights, biases
    assert best is not None
    dev, test = (sets[split][0] @ best[1] + best[2] for split in ("dev", "test"))
    temperature = torch.tensor(fit_temperature(dev, sets["dev"][1]))
    return {"logits": test, "labels": sets["test"][1], "temperature": temperature}


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
    summary = summarise_seeds([result]) | {"scored_on": corpus.scored_split}
    emit({name: {k: result[k] for k in TABLE_SCORES}}, json_output, table({name: summary}, "logistic regression"))


if __name__ == "__main__":
    cli(main)
