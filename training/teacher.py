"""What a larger model, or several, say of the training turns: computed once, learned from in every epoch.

    python -m training.train --corpus meld --use text --teacher runs/large --out runs/small

Each dialogue is shown to each teacher by itself, with the modalities of --use. Probabilities of several teachers are
averaged; the embedding is taken where there is one teacher, since the axes of two mean different things.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from rich.console import Console

from training.config import TrainConfig
from training.corpora.records import Corpus, Dialogue
from training.errors import TrainingError
from training.learner import load_learner
from training.material import Lessons, Material
from training.stages import Predicted, predict


def lessons_of(
    config: TrainConfig,
    corpus: Corpus,
    also: Sequence[tuple[list[Dialogue], float]],
    device: torch.device | str = "cpu",
) -> Lessons:
    """Probabilities (labels,) and embedding of every training turn, by dialogue and place; empty without teachers."""
    if not config.teacher:
        return {}
    dialogues = [*corpus.split("train"), *(d for more, _ in also for d in more)]
    said: list[Predicted] = []
    for folder in config.teacher:
        Console(stderr=True).print(f"teacher {folder}: {sum(len(d.turns) for d in dialogues)} turns", highlight=False)
        said.append(_ask(Path(folder), config, corpus, dialogues, device))
    mean = np.mean([torch.softmax(p.logits, -1).numpy() for p in said], 0)
    embedding = said[0].embedding.numpy() if len(said) == 1 else np.zeros((len(mean), 0), np.float32)
    keys = list(zip(said[0].dialogues, said[0].places))
    if any(list(zip(p.dialogues, p.places)) != keys for p in said):
        raise TrainingError("the teachers heard different turns; let all of them read the same modalities")
    return {key: (mean[i], embedding[i]) for i, key in enumerate(keys)}


def _ask(
    folder: Path, config: TrainConfig, corpus: Corpus, dialogues: list[Dialogue], device: torch.device | str
) -> Predicted:
    """What one teacher says of every turn that shows something."""
    learner = load_learner(folder, device)
    known = learner.hbaf.config.labels
    if known != corpus.labels:
        raise TrainingError(f"teacher {folder} knows {known}; {corpus.name} has {corpus.labels}")
    return predict(learner, Material(learner, config, cached=False), dialogues, config.use)
