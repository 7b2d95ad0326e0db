"""The floor a model has to beat: logistic regression on the frozen encoders' states, in the same folds.

    python -m training.probe --corpus ravdess-8 --use audio --folds all
    python -m training.probe --corpus features --folds all

Every turn by itself is the mean and deviation over time of its states, all layers side by side, standardised on the
training turns; both modalities are put side by side. The selecting split chooses how strongly weights are held down.
Minutes on a CPU, and it says what an encoder is worth before anything is trained.
"""

from __future__ import annotations

import json
from dataclasses import replace
from typing import Any, Literal

import numpy as np
import torch
from rich.console import Console
from torch import Tensor
from torch.nn import functional

from training.command import cli
from training.config import ModelConfig, TrainConfig, Use
from training.corpora.records import UNLABELLED, Dialogue
from training.distributed import Compute
from training.errors import TrainingError
from training.learner import begin
from training.material import Material
from training.metrics import fit_temperature, scores
from training.stages import load_corpus, selecting
from training.train import SHOWN, folded, pooled, summary, table

HELD = (3e-4, 3e-3, 3e-2, 3e-1)  # weights of half the squared norm
STEPS = 60  # of L-BFGS


def summarise(material: Material, dialogues: list[Dialogue], use: Use) -> tuple[Tensor, Tensor]:
    """Labelled turns that show all of `use` -> (turns, features) and labels (turns,)."""
    rows, labels = [], []
    for dialogue in dialogues:
        for turn in material.shown(dialogue, use):
            found = [states for name, states in (("audio", turn.audio), ("text", turn.text)) if name in use]
            if turn.label != UNLABELLED and all(isinstance(states, np.ndarray) for states in found):
                parts = [part for states in found for part in _moments(np.asarray(states, np.float32))]
                rows.append(np.concatenate(parts))
                labels.append(turn.label)
    if not rows:
        raise TrainingError(f"no labelled turn of these dialogues shows {use}")
    return torch.from_numpy(np.stack(rows)), torch.tensor(labels)


def _moments(states: np.ndarray) -> list[np.ndarray]:
    """(length, layers, dim) -> mean and deviation over time, flat; of a single vector only itself."""
    mean = states.mean(0).ravel()
    return [mean] if len(states) == 1 and states.shape[1] == 1 else [mean, states.std(0).ravel()]


def fit(features: Tensor, labels: Tensor, classes: int, held: float) -> tuple[Tensor, Tensor]:
    """Weights (features, classes) and offsets (classes,) of the least regularised cross-entropy.

    >>> x = torch.tensor([[-1.0], [-2.0], [1.0], [2.0]])
    >>> w, b = fit(x, torch.tensor([0, 0, 1, 1]), 2, 1e-3)
    >>> (x @ w + b).argmax(1).tolist()
    [0, 0, 1, 1]
    """
    weights = torch.zeros(features.shape[1], classes, requires_grad=True)
    offsets = torch.zeros(classes, requires_grad=True)
    optimiser = torch.optim.LBFGS([weights, offsets], max_iter=STEPS, line_search_fn="strong_wolfe")

    def loss() -> Tensor:
        optimiser.zero_grad()
        value = functional.cross_entropy(features @ weights + offsets, labels) + held * weights.square().sum() / 2
        value.backward()  # type: ignore[no-untyped-call]
        return value

    optimiser.step(loss)
    return weights.detach(), offsets.detach()


def probe(
    config: TrainConfig, model: ModelConfig | None = None, device: torch.device | str = "cpu"
) -> dict[str, Tensor]:
    """Logits and labels of one split's test turns, with the temperature that dev asks for."""
    config = replace(config, text_tuning="frozen", audio_tuning="frozen")
    corpus = load_corpus(config)
    learner, _ = begin(config, corpus, model, None)
    material = Material(learner.to(device), config).prepare(corpus.dialogues)
    sets = {split: summarise(material, corpus.split(split), config.use) for split in ("train", "dev")}
    sets["test"] = summarise(material, corpus.split(corpus.scored_split), config.use)
    mean, deviation = sets["train"][0].mean(0), sets["train"][0].std(0) + 1e-5
    sets = {split: ((x - mean) / deviation, y) for split, (x, y) in sets.items()}
    best: tuple[float, Tensor, Tensor] | None = None
    for held in HELD:
        weights, offsets = fit(*sets["train"], len(corpus.labels), held)
        found = scores(sets["dev"][0] @ weights + offsets, sets["dev"][1], corpus.labels)
        value = selecting(found, config.use)
        if best is None or value > best[0]:
            best = value, weights, offsets
    assert best is not None
    dev, test = (sets[split][0] @ best[1] + best[2] for split in ("dev", "test"))
    temperature = torch.tensor(fit_temperature(dev, sets["dev"][1]))
    return {"logits": test, "labels": sets["test"][1], "temperature": temperature}


def main(
    train: TrainConfig = TrainConfig(),
    model: ModelConfig = ModelConfig(),
    folds: Literal["own", "all"] = "own",
    compute: Compute = Compute(device="cpu"),
) -> None:
    """Probe.

    Args:
        train: corpus, modalities and fold are read; the rest is for training.
        model: its encoders are read.
        folds: all: cross-validation over the corpus' folds; own: its own split, or --fold.
        compute: device and threads.
    """
    device = compute.start()
    corpus, which = folded(train, folds == "all")
    found: dict[str, Any] = pooled([probe(replace(train, fold=k), model, device) for k in which], corpus.labels)
    name = f"{corpus.name}, {train.use}"
    shown = summary([found]) | {"scored_on": corpus.scored_split}
    Console().print(table({name: shown}, "logistic regression"))
    print(json.dumps({name: {k: found[k] for k in SHOWN}}))


if __name__ == "__main__":
    cli(main)
