"""How far one runtime's predictions are from another's on the same turns."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from export.calibrate import talk
from hbaf_edge import HBAFRuntime, Prediction
from training.corpora.records import UNLABELLED, Dialogue
from training.metrics import scores


def predictions(runtime: HBAFRuntime, dialogues: Sequence[Dialogue]) -> list[Prediction]:
    """Every turn of every dialogue, each dialogue a conversation of its own."""
    return [p for dialogue in dialogues for p in talk(runtime, dialogue)]


def drift(found: Sequence[Prediction], reference: Sequence[Prediction]) -> dict[str, float]:
    """Label flips, KL divergence of the probabilities, and how far embeddings and probabilities have moved."""
    pairs = list(zip(found, reference, strict=True))
    p, q = (np.array([list(one.probabilities.values()) for one in side]) for side in (reference, found))
    cosines = [
        float(a.embedding @ b.embedding / (np.linalg.norm(a.embedding) * np.linalg.norm(b.embedding))) for a, b in pairs
    ]
    return {
        "turns": len(pairs),
        "label_flips": sum(a.label != b.label for a, b in pairs),
        "flip_rate": round(sum(a.label != b.label for a, b in pairs) / len(pairs), 5),
        "kl_divergence": round(float((p * np.log(np.maximum(p, 1e-12) / np.maximum(q, 1e-12))).sum(1).mean()), 6),
        "snr_db": round(snr_db(p, q), 3),
        "embedding_cosine_mean": round(float(np.mean(cosines)), 5),
        "embedding_cosine_min": round(min(cosines), 5),
        "probability_difference_mean": round(float(np.abs(p - q).max(1).mean()), 5),
        "probability_difference_max": round(float(np.abs(p - q).max()), 5),
    }


def snr_db(reference: NDArray[Any], found: NDArray[Any]) -> float:
    """Signal-to-noise ratio of the logits behind probabilities (U, labels), up to the constant softmax does not see.

    >>> round(snr_db(np.array([[0.5, 0.5], [0.9, 0.1]]), np.array([[0.5, 0.5], [0.8, 0.2]])))
    9
    """
    signal, other = (np.log(np.maximum(p, 1e-12)) for p in (reference, found))
    signal, other = (logits - logits.mean(1, keepdims=True) for logits in (signal, other))
    noise = float(np.square(signal - other).sum())
    return float(10 * np.log10(float(np.square(signal).sum()) / max(noise, 1e-30)))


def judged(found: Sequence[Prediction], dialogues: Sequence[Dialogue], names: Sequence[str]) -> dict[str, Any]:
    """Scores of the labelled turns."""
    labels = torch.tensor([u.label for d in dialogues for u in d.turns])
    logits = torch.tensor([list(p.probabilities.values()) for p in found]).clamp(min=1e-12).log()
    kept = labels != UNLABELLED
    return scores(logits[kept], labels[kept], names)
