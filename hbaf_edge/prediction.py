"""`Prediction`: the result of a turn."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True)
class Prediction:
    """An estimate of the emotion expressed in one turn (not of what the person feels).

    Attributes:
        label: the likeliest emotion, or None if its probability is below `min_confidence`.
        confidence: probability of the likeliest emotion, after temperature scaling.
        probabilities: probability of each label; they sum to 1.
        modalities: which of "audio" and "text" were used.
        turn: 0-based number of the turn in its conversation.
        speaker: the normalised name of the speaker, or None if unknown.
        warnings: how the input was changed or only partly used.
        timing: milliseconds per stage, and "total". With two or more CPU threads the stages "audio" and "text" run in
            parallel and overlap.
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
        """Return a JSON object without the embedding.

        Examples:
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
    """Return the probabilities (labels,) of logits (labels,) after temperature scaling.

    Examples:
        >>> softmax(np.array([0.0, 0.0], np.float32), 1.5).tolist()
        [0.5, 0.5]
    """
    scaled = logits.astype(np.float64) / temperature
    exponentials = np.exp(scaled - scaled.max())
    return np.asarray(exponentials / exponentials.sum())
