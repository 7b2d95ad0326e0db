"""A bundle, turn by turn through the runtime, against the whole causal pass of its checkpoint in PyTorch.

    python -m export.verify runs/default runs/float32          # exits non-zero above 1e-4 on probabilities

The conversation is the example's clips and words over 100 turns, with speakers and missing modalities drawn at random,
so that it runs past the window several times and needs no corpus.
"""

from __future__ import annotations

import argparse
import random
from pathlib import Path

import numpy as np
import torch
from rich.console import Console

from hbaf_edge import HBAFRuntime
from hbaf_edge.cli import EXAMPLE, read_dialogue
from training.config import TrainConfig
from training.corpora.records import Dialogue, Utterance
from training.learner import Learner, load_learner
from training.material import Material
from training.stages import predict

TOLERANCE = 1e-4


def conversation(turns: int = 100, seed: int = 0) -> Dialogue:
    """The example's clips and words in random order, speakers and missing modalities drawn at random."""
    rng = random.Random(seed)
    example = list(read_dialogue(EXAMPLE))
    made = []
    for _ in range(turns):
        turn, kind = rng.choice(example), rng.random()
        audio = None if kind < 0.2 else turn["audio"]
        text = "" if kind > 0.8 else turn["text"]
        made.append(Utterance(text, 0, rng.choice(["anna", "bob", None]), audio))
    return Dialogue("verify", "dev", tuple(made))


def difference(learner: Learner, bundle: Path) -> tuple[float, int]:
    """Largest difference of a probability (temperatures aside), and label flips, over the conversation."""
    dialogue = conversation()
    runtime = HBAFRuntime(bundle, threads=1)
    logits = predict(learner, Material(learner, TrainConfig(), cached=False), [dialogue], "audio+text").logits
    chat, found = runtime.conversation(), []
    for u in dialogue.turns:
        p = runtime.predict(u.audio, text=u.text, speaker=u.speaker, conversation=chat)
        temperature = runtime.manifest["temperatures"]["+".join(p.modalities)]
        raised = np.array(list(p.probabilities.values())) ** temperature
        found.append(raised / raised.sum())
    expected = torch.softmax(logits.double(), -1).numpy()
    flips = int((np.argmax(found, 1) != expected.argmax(1)).sum())
    return float(np.abs(np.array(found) - expected).max()), flips


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("checkpoint", type=Path)
    parser.add_argument("bundle", type=Path)
    parser.add_argument("--tolerance", type=float, default=TOLERANCE)
    given = parser.parse_args()
    found, flips = difference(load_learner(given.checkpoint), given.bundle)
    Console().print(f"{given.bundle}: largest difference from PyTorch {found:.1e}, {flips} label flips in 100 turns")
    if not found <= given.tolerance:
        raise SystemExit(f"{found:.1e} is more than the {given.tolerance:.0e} allowed")


if __name__ == "__main__":
    main()
