"""What benchmarks say and hear."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import soundfile
from numpy.typing import NDArray

CLIP = Path(__file__).resolve().parents[1] / "examples" / "turn2_anna.flac"
WORDS = "I really did not expect to see all of you here tonight"  # twelve words
RATE = 16_000


def sound(seconds: float) -> NDArray[np.float32]:
    """(samples,) at 16 kHz: speech of that length, the example's clip repeated."""
    clip, _ = soundfile.read(CLIP, dtype="float32")
    return np.tile(clip, 1 + int(seconds * RATE / len(clip)))[: int(seconds * RATE)]
