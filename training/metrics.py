"""Scores of a set of predictions, their uncertainty, and the temperatures that calibrate them.

All scores come from counts (a confusion matrix, and the bins of the calibration error), so that thousands of bootstrap
resamples are sums of the same counts.
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
FIRST = ("weighted_f1", "macro_f1", "accuracy", "uar")
Array = NDArray[np.float64]


def scores(logits: Tensor, labels: Tensor, names: Sequence[str]) -> dict[str, Any]:
    """Weighted F1, macro F1, accuracy, UAR, ECE (15 bins), precision and recall per class, the confusion matrix.

    Shapes: logits (U, labels), labels (U,). A label that none of these utterances has counts in no mean.
    """
    one = [""] * len(labels)
    (confusion,) = _confusions(logits, labels, one)
    right, true, guessed = np.diagonal(confusion), confusion.sum(1), confusion.sum(0)
    per_class = {"precision": right / np.maximum(guessed, 1), "recall": right / np.maximum(true, 1)}
    return {
        "utterances": len(labels),
        **{name: float(value) for name, value in from_confusion(confusion).items()},
        "ece": float(_ece(_bins(logits, labels, one)[0])),
        **{k: {n: float(v) for n, v, t in zip(names, x, true, strict=True) if t} for k, x in per_class.items()},
        "confusion": confusion.astype(int).tolist(),
    }


def from_confusion(confusion: Array) -> dict[str, Array]:
    """The scores of `FIRST` from confusion matrices (…, truth, guess)."""
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
    found = from_confusion(np.tensordot(drawn, _confusions(logits, labels, groups), axes=1))
    found["ece"] = _ece(np.tensordot(drawn, _bins(logits, labels, groups), axes=1))
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
    a, b = (from_confusion(np.tensordot(drawn, c, axes=1))[name] for c in each)
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
    sure, place = _confidence(logits)
    right = np.random.default_rng(seed).random((draws, len(sure))) < sure
    return float(np.abs((right - sure) @ np.eye(BINS)[place]).sum(1).mean() / len(sure))


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


def _confidence(logits: Tensor) -> tuple[Array, NDArray[np.int64]]:
    """The highest probability of each utterance, and the bin it is in."""
    sure = torch.softmax(logits, -1).amax(-1).double().numpy()
    return sure, np.minimum((sure * BINS).astype(int), BINS - 1)


def _bins(logits: Tensor, labels: Tensor, groups: Sequence[str]) -> Array:
    """(G, 3, bins): utterances, summed confidence, right ones."""
    index, count = _index(groups)
    sure, place = _confidence(logits)
    right = (logits.argmax(-1) == labels).numpy()
    found = np.zeros((count, 3, BINS))
    for part, values in enumerate((np.ones(len(labels)), sure, right)):
        np.add.at(found[:, part], (index, place), values)
    return found


def _ece(bins: Array) -> Array:
    """Expected calibration error from bins (…, 3, bins)."""
    count, sure, right = np.moveaxis(bins, -2, 0)
    error: Array = np.abs(sure - right).sum(-1) / np.maximum(count.sum(-1), 1)
    return error
