"""Every step of an export against PyTorch: turn by turn in the runtime against the whole causal pass in float32.

    python -m export.verify runs/mine runs/mine/float32                      # on conversations of the example's clips
    python -m export.verify runs/mine runs/mine/float32 runs/mine/float16 runs/mine/int8 --split test

Differences, label flips, cosines of the fused vector and of every residual sum, weighted F1 by label, latency and size;
exits non-zero where a step breaks the limits of its precision (export/parity.py). Without data the conversations are
the example's clips and words over 300 turns, speakers and missing modalities drawn at random, past the window often.
"""

from __future__ import annotations

import argparse
import json
import random
from dataclasses import asdict
from pathlib import Path

import numpy as np
from rich.console import Console

from export import parity
from export.command import run, write_json
from export.conversations import conversations, counts
from hbaf_edge.bundle import load_bundle
from hbaf_edge.cli import EXAMPLE, read_dialogue
from hbaf_edge.machine import machine
from training.corpora.records import UNLABELLED, Dialogue, Utterance
from training.learner import Learner, load_learner

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
        made.append(Utterance(text, UNLABELLED, rng.choice(["anna", "bob", None]), audio))
    return Dialogue("verify", "dev", tuple(made))


def difference(learner: Learner, bundle: Path) -> tuple[float, int]:
    """Largest difference of a probability, and label flips, over the conversation."""
    loaded, talks = load_bundle(bundle), [conversation()]
    expected = parity.in_torch(learner, talks, loaded.manifest["temperatures"]).probabilities
    found = parity.in_runtime(loaded, talks, threads=1).probabilities
    return float(np.abs(found - expected).max()), int((found.argmax(1) != expected.argmax(1)).sum())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("checkpoint", type=Path)
    parser.add_argument("bundles", type=Path, nargs="+", help="float32 first, then what was made of it")
    parser.add_argument("--split", choices=("train", "dev", "test"), help="of the model's own corpora")
    parser.add_argument("--on", help="corpus in place of the model's own, such as manifest:mine.jsonl")
    parser.add_argument("--turns", type=int, default=1500)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--save", type=Path, help="JSON, such as benchmarks/results/parity-default.json")
    given = parser.parse_args()
    manifest = load_bundle(given.bundles[0]).manifest
    talks = conversations(manifest, given.split or "dev", given.turns, given.on, seed=2) if given.split or given.on \
        else [conversation(seed=seed) for seed in range(3)]  # fmt: skip
    steps = parity.walk(load_learner(given.checkpoint), given.bundles, talks, given.threads)
    console = Console()
    console.width = max(console.width, 130)  # a log wraps what a terminal shows
    console.print(parity.table(steps, sum(len(d.turns) for d in talks)))
    result = {
        "machine": machine(), "threads": given.threads, "data": {**counts(talks), "split": given.split or "example"},
        "model": manifest["name"], "steps": [asdict(s) for s in steps],
    }  # fmt: skip
    print(json.dumps(result))
    if given.save:
        write_json(given.save, result, indent=1)
    if any(s.broken for s in steps):
        raise SystemExit("; ".join(f"{s.name}: {why}" for s in steps for why in s.broken))


if __name__ == "__main__":
    run(main)
