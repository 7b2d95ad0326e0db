"""Scores of a set of predictions, by torchmetrics; their uncertainty, and the temperatures that calibrate them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional
from torchmetrics.functional.classification import (
    multiclass_accuracy,
    multiclass_calibration_error,
    multiclass_confusion_matrix,
    multiclass_f1_score,
    multiclass_precision,
    multiclass_recall,
)

BINS = 15
RESAMPLES = 2000
FIRST = ("weighted_f1", "macro_f1", "accuracy", "uar")
Array = NDArray[np.float64]


def scores(logits: Tensor, labels: Tensor, names: Sequence[str]) -> dict[str, Any]:
    """Weighted F1, macro F1, accuracy, UAR, ECE (15 bins), precision and recall per class, the confusion matrix.

    Shapes: logits (U, labels), labels (U,). A label that none of these utterances has counts in no mean.
    """
    n, guess = len(names), logits.argmax(-1)
    recall = multiclass_recall(guess, labels, n, average=None)
    precision = multiclass_precision(guess, labels, n, average=None)
    present = torch.bincount(labels, minlength=n) > 0
    return {
        "utterances": len(labels),
        "weighted_f1": float(multiclass_f1_score(guess, labels, n, average="weighted")),
        "macro_f1": float(multiclass_f1_score(guess, labels, n, average=None)[present].mean()),
        "accuracy": float(multiclass_accuracy(guess, labels, n, average="micro")),
        "uar": float(recall[present].mean()),
        "ece": float(multiclass_calibration_error(torch.softmax(logits, -1), labels, n, n_bins=BINS)),
        "precision": {name: float(value) for name, value, p in zip(names, precision, present, strict=True) if p},
        "recall": {name: float(value) for name, value, p in zip(names, recall, present, strict=True) if p},
        "confusion": multiclass_confusion_matrix(guess, labels, n).tolist(),
    }


def from_confusion(confusion: Array) -> dict[str, Array]:
    """The first four scores from confusion matrices (…, truth, guess), for thousands of resamples at once."""
    right = np.diagonal(confusion, axis1=-2, axis2=-1)
    true, guessed = confusion.sum(-1), confusion.sum(-2)
    f1 = 2 * right / np.maximum(true + guessed, 1)
    recall = right / np.maximum(true, 1)
    total = np.maximum(true.sum(-1), 1)
    present = true > 0
    return {
        "weighted_f1": (f1 * true).sum(-1) / total,
        "macro_f1": (f1 * present).sum(-1) / np.maximum(present.sum(-1), 1),
        "accuracy": right.sum(-1) / total,
        "uar": (recall * present).sum(-1) / np.maximum(present.sum(-1), 1),
    }


def intervals(
    logits: Tensor, labels: Tensor, groups: Sequence[str], seed: int = 0, resamples: int = RESAMPLES
) -> dict[str, tuple[float, float]]:
    """95 % bootstrap intervals of the first four scores and of ECE.

    Whole groups are drawn (dialogues: their turns are not independent of one another).

    Args:
        logits, labels: (U, labels) and (U,).
        groups: (U,) names.
        seed: of the resampling.
        resamples: how many.
    """
    drawn = _drawn(groups, seed, resamples)
    found = from_confusion(_resampled(drawn, _confusions(logits, labels, groups)))
    found["ece"] = _resampled_ece(drawn, _bins(logits, labels, groups))
    return {name: tuple(np.quantile(values, (0.025, 0.975)).tolist()) for name, values in found.items()}


def paired(
    ours: Tensor, theirs: Tensor, labels: Tensor, groups: Sequence[str], name: str = "weighted_f1", seed: int = 0
) -> dict[str, float]:
    """How much better `ours` scores than `theirs` on the same utterances, by paired bootstrap over groups.

    Returns:
        difference, its 95 % interval (low, high) and p, the two-sided share of resamples on the other side of zero.
    """
    drawn = _drawn(groups, seed, RESAMPLES)
    each = [_confusions(logits, labels, groups) for logits in (ours, theirs)]
    a, b = (from_confusion(_resampled(drawn, c))[name] for c in each)
    whole = [float(from_confusion(c.sum(0))[name]) for c in each]
    low, high = np.quantile(a - b, (0.025, 0.975)).tolist()
    p = 2 * min(float((a <= b).mean()), float((a >= b).mean()))
    return {"difference": whole[0] - whole[1], "low": low, "high": high, "p": min(1.0, p)}


def fit_temperature(logits: Tensor, labels: Tensor) -> float:
    """The temperature that minimises cross-entropy on dev: one number, found by a fine search in its logarithm."""
    candidates = torch.linspace(-1.5, 1.5, 301).exp()
    losses = torch.stack([functional.cross_entropy(logits / t, labels) for t in candidates])
    return float(candidates[losses.argmin()])


def least_ece(logits: Tensor, seed: int = 0, draws: int = 500) -> float:
    """The ECE that a perfectly calibrated model of the same confidence would show on so few utterances.

    Never zero: each bin's accuracy is a mean of few. On 240 clips it is about .055, on 2,610 turns .02.

    >>> even = torch.zeros(400, 2)
    >>> round(least_ece(even), 2)  # the mean distance from a half in 400 throws of a coin
    0.02
    """
    sure = torch.softmax(logits, -1).amax(-1).double().numpy()
    place = np.minimum((sure * BINS).astype(int), BINS - 1)
    right = np.random.default_rng(seed).random((draws, len(sure))) < sure
    return float(np.abs((right - sure) @ np.eye(BINS)[place]).sum(1).mean() / len(sure))


def reliability(logits: Tensor, labels: Tensor) -> tuple[Array, Array, Array]:
    """Mean confidence, accuracy and share of utterances in each of 15 bins; NaN where a bin is empty."""
    count, sure, right = _bins(logits, labels, [""] * len(labels))[0]
    with np.errstate(invalid="ignore"):
        return sure / count, right / count, count / count.sum()


def _index(groups: Sequence[str]) -> tuple[NDArray[np.int64], int]:
    order = {name: i for i, name in enumerate(dict.fromkeys(groups))}
    return np.array([order[name] for name in groups]), len(order)


def _drawn(groups: Sequence[str], seed: int, resamples: int) -> Array:
    """(resamples, G) how often each group was drawn."""
    _, count = _index(groups)
    return np.random.default_rng(seed).multinomial(count, np.full(count, 1 / count), resamples).astype(float)


def _confusions(logits: Tensor, labels: Tensor, groups: Sequence[str]) -> Array:
    """(G, truth, guess) of each group."""
    index, count = _index(groups)
    found = np.zeros((count, logits.shape[1], logits.shape[1]))
    np.add.at(found, (index, labels.numpy(), logits.argmax(-1).numpy()), 1)
    return found


def _bins(logits: Tensor, labels: Tensor, groups: Sequence[str]) -> Array:
    """(G, 3, bins): utterances, summed confidence, right ones."""
    index, count = _index(groups)
    sure, guess = torch.softmax(logits, -1).max(-1)
    place = np.minimum((sure.numpy() * BINS).astype(int), BINS - 1)
    found = np.zeros((count, 3, BINS))
    for part, values in enumerate((np.ones(len(labels)), sure.numpy(), (guess == labels).numpy())):
        np.add.at(found[:, part], (index, place), values)
    return found


def _resampled(drawn: Array, per_group: Array) -> Array:
    return np.tensordot(drawn, per_group, axes=1)


def _resampled_ece(drawn: Array, bins: Array) -> Array:
    found = _resampled(drawn, bins)
    off: Array = np.abs(found[:, 1] - found[:, 2]).sum(-1) / np.maximum(found[:, 0].sum(-1), 1)
    return off
