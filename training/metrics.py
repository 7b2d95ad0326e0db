"""Scores of predictions, their confidence intervals, and calibration temperatures.

All scores are computed from counts per group (confusion matrices and calibration bins), so a bootstrap resample is only
a weighted sum of counts.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional

BINS = 15
RESAMPLES = 2000
MAIN_SCORES = ("weighted_f1", "macro_f1", "accuracy", "uar")
Array = NDArray[np.float64]


def scores(logits: Tensor, labels: Tensor, names: Sequence[str]) -> dict[str, Any]:
    """Weighted F1, macro F1, accuracy, UAR, ECE (15 bins), precision and recall per class, and the confusion matrix.

    Shapes: logits (U, labels), labels (U,). Means over labels exclude labels that do not occur.
    """
    one_group = [""] * len(labels)
    (confusion,) = _confusions(logits, labels, one_group)
    correct, true, predicted = np.diagonal(confusion), confusion.sum(1), confusion.sum(0)
    per_class = {"precision": correct / np.maximum(predicted, 1), "recall": correct / np.maximum(true, 1)}
    return {
        "utterances": len(labels),
        **{name: float(value) for name, value in from_confusion(confusion).items()},
        "ece": float(_ece(_bins(logits, labels, one_group)[0])),
        **{k: {n: float(v) for n, v, t in zip(names, x, true, strict=True) if t} for k, x in per_class.items()},
        "confusion": confusion.astype(int).tolist(),
    }


def from_confusion(confusion: Array) -> dict[str, Array]:
    """`MAIN_SCORES` of confusion matrices (…, true label, predicted label)."""
    correct = np.diagonal(confusion, axis1=-2, axis2=-1)
    true, predicted = confusion.sum(-1), confusion.sum(-2)
    f1 = 2 * correct / np.maximum(true + predicted, 1)
    recall = correct / np.maximum(true, 1)
    total = np.maximum(true.sum(-1), 1)
    present = true > 0
    return {
        "weighted_f1": (f1 * true).sum(-1) / total,
        "macro_f1": (f1 * present).sum(-1) / np.maximum(present.sum(-1), 1),
        "accuracy": correct.sum(-1) / total,
        "uar": (recall * present).sum(-1) / np.maximum(present.sum(-1), 1),
    }


def bootstrap_intervals(
    logits: Tensor, labels: Tensor, groups: Sequence[str], seed: int = 0, resamples: int = RESAMPLES
) -> dict[str, tuple[float, float]]:
    """95 % bootstrap intervals of `MAIN_SCORES` and ECE.

    Args:
        logits, labels: (U, labels) and (U,).
        groups: (U,) names of dialogues. Whole dialogues are resampled, since their turns are not independent.
        seed: random seed.
        resamples: number of resamples.
    """
    weights = _resample_weights(groups, seed, resamples)
    samples = from_confusion(np.tensordot(weights, _confusions(logits, labels, groups), axes=1))
    samples["ece"] = _ece(np.tensordot(weights, _bins(logits, labels, groups), axes=1))
    return {name: tuple(np.quantile(values, (0.025, 0.975)).tolist()) for name, values in samples.items()}


def paired_bootstrap(
    ours: Tensor, theirs: Tensor, labels: Tensor, groups: Sequence[str], name: str = "weighted_f1", seed: int = 0
) -> dict[str, float]:
    """Difference of the scores of `ours` and `theirs` on the same utterances, by paired bootstrap over groups.

    Returns:
        difference, its 95 % interval (low, high), and p: twice the share of resamples with the opposite sign.
    """
    weights = _resample_weights(groups, seed, RESAMPLES)
    confusions = [_confusions(logits, labels, groups) for logits in (ours, theirs)]
    a, b = (from_confusion(np.tensordot(weights, c, axes=1))[name] for c in confusions)
    totals = [float(from_confusion(c.sum(0))[name]) for c in confusions]
    low, high = np.quantile(a - b, (0.025, 0.975)).tolist()
    p = 2 * min(float((a <= b).mean()), float((a >= b).mean()))
    return {"difference": totals[0] - totals[1], "low": low, "high": high, "p": min(1.0, p)}


def fit_temperature(logits: Tensor, labels: Tensor) -> float:
    """The temperature that minimises cross-entropy, by a search on a logarithmic grid from 0.22 to 4.5."""
    candidates = torch.linspace(-1.5, 1.5, 301).exp()
    losses = torch.stack([functional.cross_entropy(logits / t, labels) for t in candidates])
    return float(candidates[losses.argmin()])


def ece_floor(logits: Tensor, seed: int = 0, resamples: int = 500) -> float:
    """Expected ECE of a perfectly calibrated model with the same confidences.

    It is above zero, since the accuracy of each bin is the mean of few utterances: about .055 for 240 clips, .02 for
    2,610 turns.

    >>> undecided = torch.zeros(400, 2)
    >>> round(ece_floor(undecided), 2)  # mean distance from one half in 400 tosses of a coin
    0.02
    """
    confidence, bin_index = _confidence(logits)
    correct = np.random.default_rng(seed).random((resamples, len(confidence))) < confidence
    return float(np.abs((correct - confidence) @ np.eye(BINS)[bin_index]).sum(1).mean() / len(confidence))


def _group_indices(groups: Sequence[str]) -> tuple[NDArray[np.int64], int]:
    """Group index of each utterance, and the number of groups."""
    order = {name: i for i, name in enumerate(dict.fromkeys(groups))}
    return np.array([order[name] for name in groups]), len(order)


def _resample_weights(groups: Sequence[str], seed: int, resamples: int) -> Array:
    """(resamples, G) number of times that each group occurs in a resample."""
    _, count = _group_indices(groups)
    return np.random.default_rng(seed).multinomial(count, np.full(count, 1 / count), resamples).astype(float)


def _confusions(logits: Tensor, labels: Tensor, groups: Sequence[str]) -> Array:
    """Confusion matrix of each group, (G, true label, predicted label)."""
    index, count = _group_indices(groups)
    confusions = np.zeros((count, logits.shape[1], logits.shape[1]))
    np.add.at(confusions, (index, labels.numpy(), logits.argmax(-1).numpy()), 1)
    return confusions


def _confidence(logits: Tensor) -> tuple[Array, NDArray[np.int64]]:
    """The highest probability of each utterance, and its bin."""
    confidence = torch.softmax(logits, -1).amax(-1).double().numpy()
    return confidence, np.minimum((confidence * BINS).astype(int), BINS - 1)


def _bins(logits: Tensor, labels: Tensor, groups: Sequence[str]) -> Array:
    """(G, 3, bins): number of utterances, sum of confidences, number of correct predictions."""
    index, count = _group_indices(groups)
    confidence, bin_index = _confidence(logits)
    is_correct = (logits.argmax(-1) == labels).numpy()
    bins = np.zeros((count, 3, BINS))
    for part, values in enumerate((np.ones(len(labels)), confidence, is_correct)):
        np.add.at(bins[:, part], (index, bin_index), values)
    return bins


def _ece(bins: Array) -> Array:
    """Expected calibration error of bins (…, 3, bins)."""
    count, confidence, correct = np.moveaxis(bins, -2, 0)
    error: Array = np.abs(confidence - correct).sum(-1) / np.maximum(count.sum(-1), 1)
    return error
