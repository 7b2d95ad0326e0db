"""How far results are from a reference: the measures that every command of export reports and judges by.

Turns are compared by their probabilities as a user sees them and by their fused vectors, tensors by `snr_db` and
`largest_difference`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from export.conversations import talk
from hbaf_edge import HBAFRuntime, Prediction
from training.corpora.records import UNLABELLED, Dialogue
from training.metrics import scores

Array = NDArray[Any]
LEAST = 1e-12  # probabilities and shares of noise below it count as this much


@dataclass(frozen=True)
class Outcome:
    """What one side says of U turns: probabilities (U, labels), embeddings (U, 2d), median milliseconds of a turn."""

    probabilities: Array
    embeddings: Array
    milliseconds: float = float("nan")

    @classmethod
    def of(cls, found: Sequence[Prediction]) -> Outcome:
        """A runtime's predictions."""
        probabilities = np.array([list(p.probabilities.values()) for p in found])
        milliseconds = float(np.median([p.timing["total"] for p in found]))
        return cls(probabilities, np.array([p.embedding for p in found]), milliseconds)


def predictions(runtime: HBAFRuntime, dialogues: Sequence[Dialogue]) -> list[Prediction]:
    """Every turn of every dialogue, each dialogue a conversation of its own."""
    return [p for dialogue in dialogues for p in talk(runtime, dialogue)]


def measures(found: Outcome, reference: Outcome) -> dict[str, float]:
    """Flipped labels, Kullback-Leibler divergence and SNR of the logits, cosines of the fused vector, and differences.

    Returns:
        turns, label_flips, flip_rate, kl_divergence (nats, mean over turns), snr_db (of the logits up to a constant,
        which softmax does not see), cosine_mean, cosine_min (over turns), difference_mean, difference_max (of a
        probability).
    """
    p, q = reference.probabilities, found.probabilities
    log_p, log_q = (np.log(np.maximum(side, LEAST)) for side in (p, q))
    flips = int((p.argmax(1) != q.argmax(1)).sum())
    near = cosines(reference.embeddings, found.embeddings)
    return {
        "turns": len(p),
        "label_flips": flips,
        "flip_rate": flips / len(p),
        "kl_divergence": float((p * (log_p - log_q)).sum(1).mean()),
        "snr_db": snr_db(*(logs - logs.mean(1, keepdims=True) for logs in (log_p, log_q))),
        "cosine_mean": float(near.mean()),
        "cosine_min": float(near.min()),
        "difference_mean": float(np.abs(p - q).mean()),
        "difference_max": float(np.abs(p - q).max()),
    }


def drift(found: Sequence[Prediction], reference: Sequence[Prediction]) -> dict[str, float]:
    """`measures` of two runtimes' predictions, rounded for a manifest."""
    return {name: round(value, 6) for name, value in measures(Outcome.of(found), Outcome.of(reference)).items()}


def snr_db(reference: Array, found: Array) -> float:
    """Signal-to-noise ratio of a tensor; 120 where the two are the same.

    >>> round(snr_db(np.array([1.0, -1.0]), np.array([1.1, -0.9])))
    20
    """
    noise = float(np.square(reference - found).sum()) / max(float(np.square(reference).sum()), LEAST)
    return float(-10 * np.log10(max(noise, LEAST)))


def cosines(a: Array, b: Array) -> Array:
    """Of each row of (U, d) with the other's; of two vectors (d,) one number.

    >>> cosines(np.eye(2), np.array([[2.0, 0.0], [1.0, 0.0]])).tolist()
    [1.0, 0.0]
    """
    lengths = np.linalg.norm(a, axis=-1) * np.linalg.norm(b, axis=-1)
    return np.asarray((a * b).sum(-1) / np.maximum(lengths, 1e-30))


def largest_difference(found: Sequence[Array], expected: Sequence[Array]) -> float:
    """Of any value of several tensors, relative to a tensor's largest value (at least 1).

    >>> largest_difference([np.array([11.0])], [np.array([10.0])])
    0.1
    """
    pairs = zip(found, expected, strict=True)
    return max(float(np.abs(a - b).max() / max(1.0, float(np.abs(b).max()))) for a, b in pairs)


def labels_of(dialogues: Sequence[Dialogue]) -> list[int]:
    """Of every turn."""
    return [u.label for d in dialogues for u in d.turns]


def judged(found: Outcome, labels: Sequence[int], names: Sequence[str]) -> dict[str, Any] | None:
    """Scores of the labelled turns (training/metrics.py) and F1 of each label among them; None where there is none."""
    truth = torch.tensor(labels)
    known = truth != UNLABELLED
    if not known.any():
        return None
    logits = torch.from_numpy(found.probabilities).clamp(min=LEAST).log()
    result = scores(logits[known], truth[known], names)
    precision, recall = result["precision"], result["recall"]
    return result | {"f1": {name: _harmonic(precision[name], recall[name]) for name in recall}}


def _harmonic(a: float, b: float) -> float:
    return 2 * a * b / (a + b) if a + b else 0.0
