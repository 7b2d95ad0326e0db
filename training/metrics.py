"""Scores of a set of predictions, by torchmetrics; expected calibration error and the temperatures that lower it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional
from torchmetrics.functional.classification import (
    multiclass_accuracy,
    multiclass_calibration_error,
    multiclass_confusion_matrix,
    multiclass_f1_score,
    multiclass_recall,
)


def scores(logits: Tensor, labels: Tensor, names: Sequence[str]) -> dict[str, Any]:
    """Weighted F1, macro F1, accuracy, UAR, ECE (15 bins), recall per class and the confusion matrix.

    Shapes: logits (U, labels), labels (U,).
    """
    n, guess = len(names), logits.argmax(-1)
    recall = multiclass_recall(guess, labels, n, average=None)
    present = torch.bincount(labels, minlength=n) > 0
    return {
        "utterances": len(labels),
        "weighted_f1": float(multiclass_f1_score(guess, labels, n, average="weighted")),
        "macro_f1": float(multiclass_f1_score(guess, labels, n, average=None)[present].mean()),
        "accuracy": float(multiclass_accuracy(guess, labels, n, average="micro")),
        "uar": float(recall[present].mean()),
        "ece": float(multiclass_calibration_error(torch.softmax(logits, -1), labels, n, n_bins=15)),
        "recall": {name: float(value) for name, value, p in zip(names, recall, present, strict=True) if p},
        "confusion": multiclass_confusion_matrix(guess, labels, n).tolist(),
    }


def fit_temperature(logits: Tensor, labels: Tensor) -> float:
    """The temperature that minimises cross-entropy on dev: one number, found by a fine search in its logarithm."""
    candidates = torch.linspace(-1.5, 1.5, 301).exp()
    losses = torch.stack([functional.cross_entropy(logits / t, labels) for t in candidates])
    return float(candidates[losses.argmin()])
