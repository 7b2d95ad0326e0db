"""What a turn came out as."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True)
class Prediction:
    """An estimate of the emotion expressed in one turn (not of what the person feels).

    Attributes:
        label: the likeliest emotion, or None where its probability is below `min_confidence`.
        confidence: that emotion's probability, after temperature scaling.
        probabilities: label -> probability; they sum to 1.
        modalities: which of "audio" and "text" were used.
        turn: 0-based number of the turn in its conversation.
        speaker: as given.
        warnings: what was done to the input that the caller should know.
        timing: milliseconds per stage, and "total"; on two threads and more a CPU reads while it hears, so that the
            stages "audio" and "text" overlap.
        embedding: (2d,) float32, the fused vector.
    """

    label: str | None
    confidence: float
    probabilities: dict[str, float]
    modalities: tuple[str, ...]
    turn: int
    speaker: str | None
    warnings: tuple[str, ...]
    timing: dict[str, float]
    embedding: NDArray[np.float32] = field(repr=False, compare=False)

    def to_json(self) -> dict[str, Any]:
        """As a JSON object, without the embedding.

        >>> from hbaf_edge import HBAFRuntime
        >>> sorted(HBAFRuntime().predict(text="We won!").to_json())[:3]
        ['confidence', 'label', 'modalities']
        """
        return {
            "turn": self.turn,
            "speaker": self.speaker,
            "label": self.label,
            "confidence": round(self.confidence, 6),
            "probabilities": {label: round(p, 6) for label, p in self.probabilities.items()},
            "modalities": list(self.modalities),
            "warnings": list(self.warnings),
            "timing": {stage: round(ms, 3) for stage, ms in self.timing.items()},
        }


def softmax(logits: NDArray[np.float32], temperature: float) -> NDArray[np.float64]:
    """(labels,) logits -> probabilities that sum to 1.

    >>> softmax(np.array([0.0, 0.0], np.float32), 1.5).tolist()
    [0.5, 0.5]
    """
    scaled = logits.astype(np.float64) / temperature
    raised = np.exp(scaled - scaled.max())
    return np.asarray(raised / raised.sum())
