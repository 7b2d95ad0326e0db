"""Logistic regression on frozen encoders' states, the baseline of training/probe.py and training/voices.py."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from training.config import Use
from training.corpora.records import UNLABELLED, Dialogue
from training.errors import TrainingError
from training.feature_provider import FeatureProvider

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


def fit(
    features: Tensor, labels: Tensor, classes: int, weight_decay: float, weights_of: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """Fit logistic regression. Return weights (features, classes) and biases (classes,).

    Args:
        features: (N, features), standardised.
        labels: (N,).
        classes: number of labels.
        weight_decay: factor of half the squared norm of the weights.
        weights_of: (N,) weight of each row in the loss, with mean 1; None for equal weights.

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
        losses = functional.cross_entropy(features @ weights + biases, labels, reduction="none")
        value = (
            losses if weights_of is None else losses * weights_of
        ).mean() + weight_decay * weights.square().sum() / 2
        value.backward()  # type: ignore[no-untyped-call]
        return value

    optimiser.step(loss)
    return weights.detach(), biases.detach()
