"""What a larger model, or several, say of the training turns: computed once, learned from in every epoch.

    python -m training.train --corpus meld --use text --teachers runs/large --out runs/small

Each dialogue is shown to each teacher by itself and with all modalities it has. Probabilities of several teachers are
averaged; the embedding is taken where there is one teacher, since the axes of two mean different things.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from rich.console import Console

from training import checkpoint
from training.config import TrainConfig
from training.corpora.records import Corpus, Dialogue
from training.learner import Learner, tune
from training.material import Lessons, Material
from training.stages import predict


def lessons_of(
    config: TrainConfig,
    corpus: Corpus,
    also: Sequence[tuple[list[Dialogue], float]],
    device: torch.device | str = "cpu",
) -> Lessons:
    """Probabilities (labels,) and embedding of every training turn, by dialogue and place; empty without teachers."""
    if not config.teachers:
        return {}
    dialogues = [*corpus.split("train"), *(d for more, _ in also for d in more)]
    dialogues = [d for d in dialogues if all(t.text or t.audio or t.vectors for t in d.turns)]
    probabilities, embedding = [], np.zeros((0,), np.float32)
    for folder in config.teachers:
        Console(stderr=True).print(f"teacher {folder}: {sum(len(d.turns) for d in dialogues)} turns", highlight=False)
        logits, embedding = _ask(Path(folder), config, corpus, dialogues, device)
        probabilities.append(torch.softmax(logits, -1).numpy())
    mean = np.mean(probabilities, 0)
    if len(config.teachers) > 1:
        embedding = np.zeros((len(mean), 0), np.float32)
    places = [(d.name, place) for d in dialogues for place in range(len(d.turns))]
    return {place: (mean[i], embedding[i]) for i, place in enumerate(places)}


def _ask(
    folder: Path, config: TrainConfig, corpus: Corpus, dialogues: list[Dialogue], device: torch.device | str
) -> tuple[torch.Tensor, np.ndarray]:
    """Tempered logits (U, labels) and embeddings (U, 2d) of one teacher."""
    stored = checkpoint.load(folder)
    if stored.hbaf.config.labels != corpus.labels:
        raise SystemExit(f"teacher {folder} knows {stored.hbaf.config.labels}; {corpus.name} has {corpus.labels}")
    learner = Learner(stored.hbaf, tune(stored.text, "frozen", 1), tune(stored.audio, "frozen", 1)).to(device).eval()
    material = Material(learner, replace(config, text_tuning="full", audio_tuning="full"))  # no cache for one pass
    found = predict(learner, material, dialogues, config.use)
    return found.logits, found.embedding.numpy()
